import org.jetbrains.kotlin.gradle.dsl.JvmTarget
import org.jetbrains.kotlin.gradle.dsl.KotlinVersion

plugins {
    alias(libs.plugins.kotlin.jvm)
    `java-library`
    `maven-publish`
}

java {
    sourceCompatibility = JavaVersion.VERSION_11
    targetCompatibility = JavaVersion.VERSION_11
    withSourcesJar()
}

sourceSets.named("test") { java.setSrcDirs(emptyList<String>()) }

kotlin {
    explicitApi()
    coreLibrariesVersion = libs.versions.stdlib.get() // no newer than the language version
    compilerOptions {
        jvmTarget = JvmTarget.JVM_11
        languageVersion = KotlinVersion.KOTLIN_2_2 // so that apps on an older Kotlin can compile against it
        apiVersion = KotlinVersion.KOTLIN_2_2
    }
    // The tests need the server beside them, and run with Maven.
    sourceSets.named("test") { kotlin.setSrcDirs(emptyList<String>()) }
}

dependencies {
    api(libs.coroutines.core)
    api(libs.okhttp)
    implementation(libs.serialization.json)
}

publishing.publications.register<MavenPublication>("maven") {
    artifactId = "stt-bridge-client"
    from(components["java"])
}
