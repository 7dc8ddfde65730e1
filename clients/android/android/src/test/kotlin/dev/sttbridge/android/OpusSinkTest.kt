package dev.sttbridge.android

import android.media.MediaFormat
import dev.sttbridge.client.SttClient
import dev.sttbridge.client.sttOptions
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertTrue
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.annotation.Config
import org.robolectric.shadows.MediaCodecInfoBuilder
import org.robolectric.shadows.MediaCodecInfoBuilder.CodecCapabilitiesBuilder
import org.robolectric.shadows.ShadowMediaCodec
import org.robolectric.shadows.ShadowMediaCodec.CodecConfig
import org.robolectric.shadows.ShadowMediaCodecList

/** The way through MediaCodec. What it encodes only a device can show: Robolectric has no encoder. */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [35])
class OpusSinkTest {
    private val client = SttClient.Builder("ws://127.0.0.1:1").options(sttOptions { encoding = "opus" }).build()

    @Test
    fun `where there is no encoder it says so`() {
        assertFalse(OpusSink.available())
        assertFailsWith<IllegalStateException> { OpusSink(client) }
    }

    @Test
    fun `every buffer becomes a packet, the last at the end`() {
        val format = MediaFormat.createAudioFormat(MediaFormat.MIMETYPE_AUDIO_OPUS, 16_000, 1)
        val capabilities = CodecCapabilitiesBuilder.newBuilder().setMediaFormat(format).setIsEncoder(true).build()
        val codec = MediaCodecInfoBuilder.newBuilder().setName("opus").setIsEncoder(true).setCapabilities(capabilities)
        ShadowMediaCodecList.addCodec(codec.build())
        // "Encodes" to a tenth of the bytes.
        ShadowMediaCodec.addEncoder("opus", CodecConfig(1_600, 1_600) { input, output ->
            val size = input.remaining() / 10
            input.position(input.limit())
            repeat(size) { output.put(1) }
        })
        assertTrue(OpusSink.available())
        val sink = OpusSink(client)
        repeat(10) { sink.onAudio(ByteArray(3_200), 3_200) }
        sink.close()
        sink.close()
        assertEquals(10L * 320, client.taken)
    }

}
