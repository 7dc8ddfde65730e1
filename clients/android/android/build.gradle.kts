import org.jetbrains.kotlin.gradle.dsl.JvmTarget
import org.jetbrains.kotlin.gradle.dsl.KotlinVersion

plugins {
    alias(libs.plugins.android.library)
    `maven-publish`
}

android {
    namespace = "dev.sttbridge.android"
    compileSdk = 36

    defaultConfig {
        minSdk = 26
        consumerProguardFiles("consumer-rules.pro")
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_11
        targetCompatibility = JavaVersion.VERSION_11
    }

    publishing {
        singleVariant("release") { withSourcesJar() }
    }

    // The tests need the server beside them, and run with Maven.
    sourceSets.named("test") { kotlin.setSrcDirs(emptyList<String>()) }
}

kotlin {
    explicitApi()
    coreLibrariesVersion = libs.versions.stdlib.get() // no newer than the language version
    compilerOptions {
        jvmTarget = JvmTarget.JVM_11
        languageVersion = KotlinVersion.KOTLIN_2_2
        apiVersion = KotlinVersion.KOTLIN_2_2
    }
}

dependencies {
    api(project(":stt-bridge-client"))
}

afterEvaluate {
    publishing.publications.register<MavenPublication>("release") {
        artifactId = "stt-bridge-android"
        from(components["release"])
    }
}
