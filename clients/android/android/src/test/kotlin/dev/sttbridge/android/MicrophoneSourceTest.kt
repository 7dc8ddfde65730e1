package dev.sttbridge.android

import android.Manifest
import android.content.Context
import android.media.AudioManager
import android.media.AudioRecord
import android.media.AudioRecordingConfiguration
import android.media.MediaRecorder
import android.os.Looper
import dev.sttbridge.android.Waiting.until
import dev.sttbridge.client.Level
import dev.sttbridge.client.Speech
import java.io.ByteArrayOutputStream
import java.util.concurrent.CopyOnWriteArrayList
import java.util.concurrent.TimeUnit
import kotlin.test.AfterTest
import kotlin.test.BeforeTest
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config

@RunWith(RobolectricTestRunner::class)
@Config(sdk = [35])
class MicrophoneSourceTest {
    private val context: Context = RuntimeEnvironment.getApplication()
    private val manager = context.service<AudioManager>()
    private val speech = Speech.samples.copyOf(10 * Speech.SECOND_BYTES)
    private val heard = ByteArrayOutputStream()
    private val sizes = CopyOnWriteArrayList<Int>()
    private val buffers = mutableSetOf<Int>()
    private val loud = CopyOnWriteArrayList<Float>()
    private lateinit var source: MicrophoneSource

    @BeforeTest
    fun grant() {
        shadowOf(RuntimeEnvironment.getApplication()).grantPermissions(Manifest.permission.RECORD_AUDIO)
        source = MicrophoneSource.Builder(context).build { buffer, count ->
            heard.write(buffer, 0, count)
            sizes += count
            buffers += System.identityHashCode(buffer)
            loud += source.level
        }
    }

    @AfterTest
    fun close() = source.close()

    @Test
    fun `a recording arrives whole, in frames of 100 ms, whatever reads bring`() {
        FakeMicrophone(speech).install()
        source.start()
        until { heard.size() >= speech.size }
        assertEquals(MicrophoneState.RECORDING, source.state.value)
        source.close()
        assertContentEquals(speech, heard.toByteArray().copyOf(speech.size))
        assertEquals(setOf(3_200), sizes.dropLast(1).toSet())
        assertEquals(1, buffers.size, "one buffer for all frames")
        assertTrue(loud.max() > -30 && loud.max() < 0, "${loud.max()}")
        assertEquals(MicrophoneState.STOPPED, source.state.value)
        assertEquals(Level.SILENCE, source.level)
    }

    @Test
    fun `a microphone that dies is opened again`() {
        val errors = mapOf(64_000 to AudioRecord.ERROR_DEAD_OBJECT, 160_000 to AudioRecord.ERROR_INVALID_OPERATION)
        val microphone = FakeMicrophone(speech, errors)
        microphone.install()
        source.start()
        until { heard.size() >= speech.size }
        assertEquals(3, microphone.openings)
        assertContentEquals(speech, heard.toByteArray().copyOf(speech.size)) // what was read before it broke included
        assertEquals(MicrophoneState.RECORDING, source.state.value)
    }

    @Test
    fun `a microphone that stays dead is a failure with a reason`() {
        val microphone = FakeMicrophone(speech)
        microphone.install()
        source.start()
        until { sizes.size > 5 }
        microphone.dead = true
        until { source.state.value == MicrophoneState.REOPENING }
        until(20) { source.state.value == MicrophoneState.FAILED }
        assertContains(source.failure!!, "ERROR_DEAD_OBJECT")
        assertEquals(Level.SILENCE, source.level)
    }

    @Test
    fun `a pause lets the microphone go`() {
        val microphone = FakeMicrophone(speech)
        microphone.install()
        source.start()
        until { sizes.size > 5 }
        source.pause()
        until { source.state.value == MicrophoneState.PAUSED }
        until { source.level == Level.SILENCE }
        val count = heard.size()
        Thread.sleep(50)
        assertEquals(count, heard.size())
        source.resume()
        until { heard.size() >= speech.size }
        assertEquals(2, microphone.openings)
        assertContentEquals(speech, heard.toByteArray().copyOf(speech.size))
    }

    @Test
    fun `a call takes the audio focus, and gives it back`() {
        FakeMicrophone(speech).install()
        source.start()
        val focus = shadowOf(manager).lastAudioFocusRequest
        assertEquals(AudioManager.AUDIOFOCUS_GAIN_TRANSIENT, focus.durationHint)
        focus.listener.onAudioFocusChange(AudioManager.AUDIOFOCUS_LOSS_TRANSIENT)
        until { source.state.value == MicrophoneState.PAUSED }
        focus.listener.onAudioFocusChange(AudioManager.AUDIOFOCUS_GAIN)
        until { source.state.value == MicrophoneState.RECORDING }
        source.close()
        assertEquals(focus.audioFocusRequest, shadowOf(manager).lastAbandonedAudioFocusRequest)
    }

    @Test
    fun `silence that the system puts in its place is told`() {
        FakeMicrophone(speech).install()
        val session = 0 // Robolectric's for every AudioRecord
        source.start()
        until { source.state.value == MicrophoneState.RECORDING }
        shadowOf(manager).setActiveRecordingConfigurations(listOf(configuration(session, silenced = true)), true)
        until { source.state.value == MicrophoneState.SILENCED }
        shadowOf(manager).setActiveRecordingConfigurations(listOf(configuration(session, silenced = false)), true)
        until { source.state.value == MicrophoneState.RECORDING }
        shadowOf(manager).setActiveRecordingConfigurations(listOf(configuration(session + 1, silenced = true)), true)
        shadowOf(Looper.getMainLooper()).idle()
        assertEquals(MicrophoneState.RECORDING, source.state.value, "another app's microphone")
    }

    private fun configuration(session: Int, silenced: Boolean): AudioRecordingConfiguration {
        val own = shadowOf(manager)
            .createActiveRecordingConfiguration(session, MediaRecorder.AudioSource.VOICE_RECOGNITION, context.packageName)
        AudioRecordingConfiguration::class.java.getDeclaredField("mClientSilenced")
            .apply { isAccessible = true }
            .setBoolean(own, silenced)
        return own
    }

    @Test
    fun `without the permission nothing begins`() {
        shadowOf(RuntimeEnvironment.getApplication()).denyPermissions(Manifest.permission.RECORD_AUDIO)
        assertFailsWith<SecurityException> { source.start() }
        assertEquals(MicrophoneState.STOPPED, source.state.value)
    }
}

/** Waits for another thread's doing while the main looper goes on. */
object Waiting {
    fun until(seconds: Long = 10, condition: () -> Boolean) {
        val end = System.nanoTime() + TimeUnit.SECONDS.toNanos(seconds)
        while (true) {
            shadowOf(Looper.getMainLooper()).idle()
            if (condition()) return
            check(System.nanoTime() < end) { "it did not come about within $seconds s" }
            Thread.sleep(5)
        }
    }
}
