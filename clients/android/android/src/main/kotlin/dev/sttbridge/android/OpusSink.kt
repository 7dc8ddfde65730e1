package dev.sttbridge.android

import android.media.MediaCodec
import android.media.MediaCodecList
import android.media.MediaFormat
import android.os.Build
import dev.sttbridge.client.SttClient
import java.io.Closeable

/**
 * Turns the microphone's audio into Opus: a tenth of the bytes, for slow or metered networks. The client's options say
 * `encoding("opus")`, with the same sample rate. From Android 10 on where [available] says so; PCM16 else.
 *
 * A session of Opus can be resumed like any other on the server that holds it; on one that was started again only
 * while all of its audio is kept (`Reconnect.ringBytes`: 90 minutes), since no decoder begins in the middle.
 *
 * Used by one thread, the microphone's; [close] it after that: the encoder's last packet goes out then.
 */
public class OpusSink @JvmOverloads constructor(
    private val client: SttClient,
    private val sampleRate: Int = 16_000,
    bitsPerSecond: Int = 24_000,
) : AudioSink, Closeable {
    private val codec: MediaCodec
    private val info = MediaCodec.BufferInfo()
    private var packet = ByteArray(PACKET_BYTES)
    private var samples = 0L
    private var closed = false

    init {
        val format = format(sampleRate)
        format.setInteger(MediaFormat.KEY_BIT_RATE, bitsPerSecond)
        format.setInteger(MediaFormat.KEY_MAX_INPUT_SIZE, sampleRate / 10 * 2)
        val name = checkNotNull(encoder(sampleRate)) { "this device has no encoder of Opus at $sampleRate Hz" }
        codec = MediaCodec.createByCodecName(name)
        codec.configure(format, null, null, MediaCodec.CONFIGURE_FLAG_ENCODE)
        codec.start()
    }

    override fun onAudio(buffer: ByteArray, count: Int) {
        var at = 0
        while (at < count) {
            drain(0)
            val index = codec.dequeueInputBuffer(PATIENCE_MICROS)
            check(index >= 0) { "the encoder takes nothing" }
            val input = checkNotNull(codec.getInputBuffer(index))
            val size = minOf(count - at, input.remaining())
            input.put(buffer, at, size)
            codec.queueInputBuffer(index, 0, size, micros(), 0)
            samples += size / 2
            at += size
        }
        drain(0)
    }

    override fun close() {
        if (closed) return
        closed = true
        try {
            val index = codec.dequeueInputBuffer(PATIENCE_MICROS)
            if (index >= 0) codec.queueInputBuffer(index, 0, 0, micros(), MediaCodec.BUFFER_FLAG_END_OF_STREAM)
            drain(PATIENCE_MICROS)
            codec.stop()
        } finally {
            codec.release()
        }
    }

    /** Send what is encoded; with patience, up to the end of the stream. */
    private fun drain(patienceMicros: Long) {
        while (true) {
            val index = codec.dequeueOutputBuffer(info, patienceMicros)
            if (index == MediaCodec.INFO_TRY_AGAIN_LATER) return
            if (index < 0) continue // another format, which says nothing that the server wants to know
            // The decoder needs no header: packets are all that goes over the wire.
            if (info.size > 0 && info.flags and MediaCodec.BUFFER_FLAG_CODEC_CONFIG == 0) {
                if (info.size > packet.size) packet = ByteArray(info.size)
                val output = checkNotNull(codec.getOutputBuffer(index))
                output.position(info.offset)
                output.get(packet, 0, info.size)
                client.offer(packet, 0, info.size)
            }
            val last = info.flags and MediaCodec.BUFFER_FLAG_END_OF_STREAM != 0
            codec.releaseOutputBuffer(index, false)
            if (last) return
        }
    }

    private fun micros() = samples * 1_000_000 / sampleRate

    public companion object {
        private const val PATIENCE_MICROS = 100_000L

        /** Larger than 20 ms of speech ever become. */
        private const val PACKET_BYTES = 1_500

        /** Whether this device can. */
        @JvmStatic
        @JvmOverloads
        public fun available(sampleRate: Int = 16_000): Boolean = encoder(sampleRate) != null

        private fun encoder(sampleRate: Int): String? {
            if (Build.VERSION.SDK_INT < Build.VERSION_CODES.Q) return null // the first with an encoder of Opus
            return MediaCodecList(MediaCodecList.REGULAR_CODECS).findEncoderForFormat(format(sampleRate))
        }

        private fun format(sampleRate: Int) =
            MediaFormat.createAudioFormat(MediaFormat.MIMETYPE_AUDIO_OPUS, sampleRate, 1)
    }
}
