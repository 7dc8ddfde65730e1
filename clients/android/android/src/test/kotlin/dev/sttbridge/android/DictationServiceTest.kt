package dev.sttbridge.android

import android.Manifest
import android.app.NotificationManager
import android.app.Service
import android.content.Intent
import dev.sttbridge.client.BridgeServer
import dev.sttbridge.client.Shared
import dev.sttbridge.client.Speech
import dev.sttbridge.client.SttClient
import dev.sttbridge.client.SttEvent
import dev.sttbridge.client.SttState
import kotlin.test.AfterTest
import kotlin.test.BeforeTest
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import kotlin.test.assertTrue
import org.junit.runner.RunWith
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.android.controller.ServiceController
import org.robolectric.annotation.Config

@RunWith(RobolectricTestRunner::class)
@Config(sdk = [35])
class DictationServiceTest {
    class Dictation : DictationService() {
        override fun createClient() = SttClient.Builder("ws://127.0.0.1:$port").build()

        companion object {
            var port = 0
        }
    }

    private val application = shadowOf(RuntimeEnvironment.getApplication())
    private val words = 20
    private val audio = Speech.markers(words)
    private val start = Intent(DictationService.ACTION_START)
    private val stop = Intent(DictationService.ACTION_STOP)
    private lateinit var controller: ServiceController<Dictation>
    private val service: Dictation get() = controller.get()

    @BeforeTest
    fun create() {
        Dictation.port = Shared.markers { it.port }
        application.grantPermissions(Manifest.permission.RECORD_AUDIO)
        controller = Robolectric.buildService(Dictation::class.java).create()
    }

    @AfterTest
    fun close() {
        controller.destroy()
    }

    @Test
    fun `it listens in the foreground until it is stopped, and tells every word`() {
        val microphone = FakeMicrophone(audio, speed = 20)
        microphone.install()
        val events = mutableListOf<SttEvent>()
        val observer = object : DictationService.Observer {
            override fun onChanged(service: DictationService, event: SttEvent?) {
                event?.let { events += it }
            }
        }
        service.observe(observer)
        assertEquals(Service.START_NOT_STICKY, service.onStartCommand(start, 0, 1))
        val notification = assertNotNull(shadowOf(service).lastForegroundNotification)
        assertEquals(DictationService.CHANNEL, notification.channelId)
        assertEquals(1, notification.actions.size)
        assertNotNull(service.service<NotificationManager>().getNotificationChannel(DictationService.CHANNEL))
        Waiting.until { microphone.position > audio.size }
        service.onStartCommand(stop, 0, 2)
        assertNull(service.microphone, "it stops to listen at once")
        Waiting.until { service.client?.state?.value == SttState.ENDED && events.last() is SttEvent.Ended }
        assertEquals(Speech.said(words), service.transcript.text)
        assertTrue(events.any { it is SttEvent.Partial })
        assertNull(service.failure)
        assertTrue(shadowOf(service).isForegroundStopped)
        assertTrue(shadowOf(service).isStoppedBySelf)
    }

    @Test
    fun `a second start changes nothing, and a start after the end begins anew`() {
        FakeMicrophone(audio).install()
        service.onStartCommand(start, 0, 1)
        val first = service.client
        service.onStartCommand(start, 0, 2)
        assertEquals(first, service.client)
        service.onStartCommand(stop, 0, 3)
        Waiting.until { shadowOf(service).isStoppedBySelf }
        service.onStartCommand(start, 0, 4)
        assertTrue(service.client !== first)
        assertNotNull(service.microphone)
    }

    @Test
    fun `without the permission it refuses, and says why`() {
        application.denyPermissions(Manifest.permission.RECORD_AUDIO)
        service.onStartCommand(start, 0, 1)
        refused("RECORD_AUDIO")
    }

    @Test
    fun `where Android lets it not come to the foreground it gives up`() {
        shadowOf(service).setThrowInStartForeground(SecurityException("no foreground type"))
        service.onStartCommand(start, 0, 1)
        refused("no foreground type")
        shadowOf(service).setThrowInStartForeground(IllegalStateException("from the background"))
        service.onStartCommand(start, 0, 2)
        refused("from the background")
    }

    private fun refused(why: String) {
        assertContains(service.failure!!, why)
        assertNull(service.microphone)
        assertNull(service.client)
        assertTrue(shadowOf(service).isStoppedBySelf)
    }

    @Test
    fun `a server that refuses ends it, with its words`() {
        BridgeServer.markers(mapOf("STT_API_KEYS" to "good-token-0000000")).use { guarded ->
            Dictation.port = guarded.port
            FakeMicrophone(audio).install()
            service.onStartCommand(start, 0, 1)
            Waiting.until { shadowOf(service).isStoppedBySelf }
            assertContains(service.failure!!, "unauthorized")
            assertNull(service.microphone)
        }
    }

    @Test
    fun `a microphone that is gone ends it, and what was said is told`() {
        val microphone = FakeMicrophone(audio, speed = 20)
        microphone.install()
        service.onStartCommand(start, 0, 1)
        Waiting.until { microphone.position > audio.size / 2 }
        microphone.dead = true
        Waiting.until(30) { shadowOf(service).isStoppedBySelf }
        assertContains(service.failure!!, "ERROR_DEAD_OBJECT")
        assertNull(service.microphone)
        assertTrue(service.transcript.text.startsWith("w0 w1 w2"))
    }

    @Test
    fun `what the system destroys leaves nothing running`() {
        FakeMicrophone(audio).install()
        service.onStartCommand(start, 0, 1)
        Waiting.until { service.client?.state?.value == SttState.LIVE }
        val client = service.client!!
        controller.destroy()
        Waiting.until { client.state.value == SttState.ENDED }
        assertNull(service.microphone)
        controller = Robolectric.buildService(Dictation::class.java).create()
    }
}
