// The Android plugin compiles Kotlin by itself; named here, Kotlin's own plugin says in which version.
plugins {
    alias(libs.plugins.android.application) apply false
    alias(libs.plugins.android.library) apply false
    alias(libs.plugins.kotlin.jvm) apply false
}

subprojects {
    group = "dev.sttbridge"
    version = rootProject.libs.versions.stt.bridge.get()
}
