package androidx.test.runner.intent

import android.app.Instrumentation
import android.content.Intent

interface IntentMonitor

interface IntentStubber {
    fun getActivityResultForIntent(intent: Intent): Instrumentation.ActivityResult?
}

object IntentMonitorRegistry {
    @JvmStatic
    fun registerInstance(@Suppress("UNUSED_PARAMETER") monitor: IntentMonitor) = Unit
}

object IntentStubberRegistry {
    /** No intent is answered by anything but the shadows. */
    @JvmStatic
    val isLoaded: Boolean get() = false

    @JvmStatic
    val instance: IntentStubber get() = error("there is none")
}
