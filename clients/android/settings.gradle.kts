// The build for Android Studio and Gradle. CI cannot run it (see README.md, "What CI covers"); it builds the same sources
// with Maven. A test compares the versions of both.
pluginManagement {
    repositories {
        google()
        mavenCentral()
        gradlePluginPortal()
    }
}

dependencyResolutionManagement {
    repositoriesMode = RepositoriesMode.FAIL_ON_PROJECT_REPOS
    repositories {
        google()
        mavenCentral()
    }
}

rootProject.name = "stt-bridge-clients"

// The folders' names are short; these are the artifacts'.
include(":stt-bridge-client", ":stt-bridge-android", ":sample")
project(":stt-bridge-client").projectDir = file("core")
project(":stt-bridge-android").projectDir = file("android")
