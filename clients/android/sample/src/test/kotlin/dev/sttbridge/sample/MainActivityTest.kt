package dev.sttbridge.sample

import android.Manifest.permission.RECORD_AUDIO
import android.content.ComponentName
import android.content.pm.PackageManager.PERMISSION_DENIED
import android.content.pm.PackageManager.PERMISSION_GRANTED
import android.text.Spanned
import android.text.style.ForegroundColorSpan
import android.view.View
import dev.sttbridge.android.FakeMicrophone
import dev.sttbridge.android.Waiting.until
import dev.sttbridge.client.BridgeServer
import dev.sttbridge.client.Speech
import kotlin.test.AfterTest
import kotlin.test.BeforeTest
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import org.junit.runner.RunWith
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.android.controller.ActivityController
import org.robolectric.android.controller.ServiceController
import org.robolectric.annotation.Config

/** From the button over the permission and the microphone to the server, and back to the screen. */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [35])
class MainActivityTest {
    private val application = shadowOf(RuntimeEnvironment.getApplication())
    private lateinit var service: ServiceController<CaptionService>
    private lateinit var controller: ActivityController<MainActivity>
    private val activity: MainActivity get() = controller.get()

    @BeforeTest
    fun create() {
        service = Robolectric.buildService(CaptionService::class.java).create()
        val name = ComponentName(RuntimeEnvironment.getApplication(), CaptionService::class.java)
        application.setComponentNameAndServiceForBindService(name, service.get().onBind(null))
        controller = Robolectric.buildActivity(MainActivity::class.java).setup()
        until { activity.button.text == "Start" }
    }

    @AfterTest
    fun destroy() {
        controller.pause().stop().destroy()
        service.destroy()
    }

    private fun press() {
        activity.button.performClick()
        startService()
    }

    /** Robolectric notes that a service is to be started, and leaves it at that. */
    private fun startService() {
        application.nextStartedService?.let { service.get().onStartCommand(it, 0, 1) }
    }

    private fun answer(result: Int) {
        val asked = assertNotNull(shadowOf(activity).lastRequestedPermission)
        if (result == PERMISSION_GRANTED) application.grantPermissions(RECORD_AUDIO)
        val results = IntArray(asked.requestedPermissions.size) { result }
        activity.onRequestPermissionsResult(asked.requestCode, asked.requestedPermissions, results)
        startService()
    }

    @Test
    fun `speech becomes text, grey while it may change`() = BridgeServer("pocketsphinx").use { server ->
        val speech = Speech.samples.copyOf(12 * Speech.SECOND_BYTES)
        val microphone = FakeMicrophone(speech, speed = 8)
        microphone.install()
        activity.address.setText("ws://127.0.0.1:${server.port}")
        press()
        answer(PERMISSION_GRANTED)
        assertEquals("Stop", activity.button.text)
        until { activity.status.text == "Listening." }
        until { grey().isNotEmpty() }
        until(30) { microphone.position > speech.size }
        press()
        until(30) { activity.status.text == "Done." }
        assertEquals(0, grey().size)
        assertEquals(service.get().transcript.text, "${activity.text.text}")
        assertEquals(View.ACCESSIBILITY_LIVE_REGION_POLITE, activity.text.accessibilityLiveRegion)
        assertContains("${activity.text.text}", "what time is it in new york")
        assertEquals("Start", activity.button.text)
    }

    private fun grey(): Array<ForegroundColorSpan> {
        val text = activity.text.text as? Spanned ?: return emptyArray()
        return text.getSpans(0, text.length, ForegroundColorSpan::class.java)
    }

    @Test
    fun `without the permission it says what is missing`() {
        shadowOf(activity.packageManager).setShouldShowRequestPermissionRationale(RECORD_AUDIO, true)
        press()
        answer(PERMISSION_DENIED)
        assertContains("${activity.status.text}", "microphone")
        assertNull(service.get().client)
        shadowOf(activity.packageManager).setShouldShowRequestPermissionRationale(RECORD_AUDIO, false)
        press()
        answer(PERMISSION_DENIED)
        assertEquals("android.settings.APPLICATION_DETAILS_SETTINGS", shadowOf(activity).nextStartedActivity.action)
    }

    @Test
    fun `an address that is none is told`() {
        application.grantPermissions(RECORD_AUDIO)
        activity.address.setText("nonsense")
        press()
        assertNull(service.get().client)
        assertEquals(true, activity.status.text.isNotEmpty())
    }
}
