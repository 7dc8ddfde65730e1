import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    alias(libs.plugins.android.application)
}

android {
    namespace = "dev.sttbridge.sample"
    compileSdk = 36

    defaultConfig {
        applicationId = "dev.sttbridge.sample"
        minSdk = 26
        targetSdk = 36
        versionCode = 1
        versionName = libs.versions.stt.bridge.get()
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_11
        targetCompatibility = JavaVersion.VERSION_11
    }

    buildTypes {
        release {
            isMinifyEnabled = true
            proguardFiles(getDefaultProguardFile("proguard-android-optimize.txt"))
        }
    }

    sourceSets.named("test") { kotlin.setSrcDirs(emptyList<String>()) }
}

kotlin {
    compilerOptions { jvmTarget = JvmTarget.JVM_11 }
}

dependencies {
    implementation(project(":stt-bridge-android"))
}
