package dev.sttbridge.android

import android.Manifest.permission.POST_NOTIFICATIONS
import android.Manifest.permission.RECORD_AUDIO
import android.app.Activity
import android.content.pm.PackageManager.PERMISSION_DENIED
import android.content.pm.PackageManager.PERMISSION_GRANTED
import android.provider.Settings
import dev.sttbridge.android.MicrophonePermission.Outcome
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFalse
import kotlin.test.assertTrue
import org.junit.runner.RunWith
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config

@RunWith(RobolectricTestRunner::class)
@Config(sdk = [35])
class MicrophonePermissionTest {
    private val activity = Robolectric.buildActivity(Activity::class.java).setup().get()
    private val application = shadowOf(RuntimeEnvironment.getApplication())
    private val asked = arrayOf(RECORD_AUDIO, POST_NOTIFICATIONS)

    @Test
    fun `it asks for what is missing, with the notification's permission`() {
        assertFalse(MicrophonePermission.granted(activity))
        MicrophonePermission.request(activity, 7)
        val request = shadowOf(activity).lastRequestedPermission
        assertContentEquals(asked, request.requestedPermissions)
        assertEquals(7, request.requestCode)
    }

    @Test
    fun `granted is granted, whatever becomes of the notification`() {
        application.grantPermissions(RECORD_AUDIO)
        assertTrue(MicrophonePermission.granted(activity))
        assertContentEquals(arrayOf(POST_NOTIFICATIONS), MicrophonePermission.missing(activity))
        val results = intArrayOf(PERMISSION_GRANTED, PERMISSION_DENIED)
        assertEquals(Outcome.GRANTED, MicrophonePermission.outcome(activity, asked, results))
    }

    @Test
    fun `denied may be asked again where the system would`() {
        val results = intArrayOf(PERMISSION_DENIED, PERMISSION_DENIED)
        shadowOf(activity.packageManager).setShouldShowRequestPermissionRationale(RECORD_AUDIO, true)
        assertEquals(Outcome.DENIED, MicrophonePermission.outcome(activity, asked, results))
        shadowOf(activity.packageManager).setShouldShowRequestPermissionRationale(RECORD_AUDIO, false)
        assertEquals(Outcome.DENIED_FOR_GOOD, MicrophonePermission.outcome(activity, asked, results))
        assertEquals(Settings.ACTION_APPLICATION_DETAILS_SETTINGS, MicrophonePermission.settings(activity).action)
    }

    @Test
    fun `a question that was dismissed is no denial for good`() {
        assertEquals(Outcome.DENIED, MicrophonePermission.outcome(activity, emptyArray(), intArrayOf()))
    }
}
