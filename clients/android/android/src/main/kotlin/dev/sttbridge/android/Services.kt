package dev.sttbridge.android

import android.content.Context

/** A service that every device of our API level has. */
internal inline fun <reified T : Any> Context.service(): T =
    checkNotNull(getSystemService(T::class.java)) { "this device has no ${T::class.java.simpleName}" }
