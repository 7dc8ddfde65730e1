/**
 * Stands in for `androidx.test:monitor`, together with the files beside it: as much of it as Robolectric calls when it
 * makes an application. The library itself is in Google's repository only, and these tests need no other than Maven's.
 */
package androidx.test.platform.app

import android.app.Instrumentation
import android.os.Bundle

object InstrumentationRegistry {
    private var registered: Instrumentation? = null

    @JvmStatic
    val instrumentation: Instrumentation get() = checkNotNull(registered) { "Robolectric has not begun" }

    @JvmStatic
    fun registerInstance(instrumentation: Instrumentation?, @Suppress("UNUSED_PARAMETER") arguments: Bundle?) {
        registered = instrumentation
    }
}
