package dev.sttbridge.android

import android.media.AudioRecord
import java.util.Collections
import java.util.IdentityHashMap
import kotlin.random.Random
import org.robolectric.shadows.ShadowAudioRecord
import org.robolectric.shadows.ShadowAudioRecord.AudioRecordSource

/**
 * What Robolectric's AudioRecord hears: [audio] in reads of random sizes, [speed] times as fast as real time, then
 * silence. At the positions of [errors] a read fails once, and whatever was open then fails from there on.
 */
class FakeMicrophone(
    private val audio: ByteArray,
    private val errors: Map<Int, Int> = emptyMap(),
    private val speed: Int = 50,
) {
    private val random = Random(1)
    private val struck = mutableSetOf<Int>()

    private val opened = Collections.synchronizedMap(IdentityHashMap<AudioRecord, Opened>())

    /** How often it was opened. */
    val openings: Int get() = opened.size

    /** Position of the next byte. */
    @Volatile var position = 0
        private set

    /** Whether every read fails from now on. */
    @Volatile var dead = false

    fun install() = ShadowAudioRecord.setSourceProvider { opened.getOrPut(it) { Opened() } }

    private inner class Opened : AudioRecordSource {
        private var broken = 0

        override fun readInByteArray(data: ByteArray, offset: Int, size: Int, isBlocking: Boolean): Int {
            check(isBlocking)
            if (dead) return AudioRecord.ERROR_DEAD_OBJECT
            if (broken != 0) return broken
            val error = errors.keys.firstOrNull { it <= position && it !in struck }
            if (error != null) {
                struck += error
                broken = errors.getValue(error)
                return broken
            }
            // Short reads: any number of samples, and now and then none.
            val count = random.nextInt(0, size / 2 + 1) * 2
            Thread.sleep(count * 1_000L / 32_000 / speed)
            val left = audio.size - position
            if (left <= 0) {
                data.fill(0, offset, offset + count)
            } else {
                audio.copyInto(data, offset, position, position + minOf(count, left))
                if (count > left) data.fill(0, offset + left, offset + count)
            }
            position += count
            return count
        }
    }
}
