package dev.sttbridge.client

import kotlin.math.log10
import kotlin.math.sqrt

/** How loud audio is. */
public object Level {
    /** What silence has: the quietest that 16 bits can say. */
    public const val SILENCE: Float = -96f

    /** RMS of PCM16 little-endian, in dB of full scale: 0 is the loudest, [SILENCE] the least. Allocates nothing. */
    @JvmStatic
    public fun ofPcm16(audio: ByteArray, offset: Int, count: Int): Float {
        val samples = count / 2
        if (samples == 0) return SILENCE
        var sum = 0.0
        for (i in 0 until samples) {
            val at = offset + 2 * i
            val sample = ((audio[at + 1].toInt() shl 8) or (audio[at].toInt() and 0xff)).toDouble()
            sum += sample * sample
        }
        val rms = sqrt(sum / samples) / 32_768
        return if (rms <= 0) SILENCE else (20 * log10(rms)).toFloat().coerceIn(SILENCE, 0f)
    }
}
