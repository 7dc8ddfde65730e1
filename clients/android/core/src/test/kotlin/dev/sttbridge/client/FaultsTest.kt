package dev.sttbridge.client

import kotlin.random.Random
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import kotlin.test.assertTrue
import kotlin.time.Duration.Companion.seconds
import kotlinx.coroutines.async
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout

/** Whatever breaks, the transcript is that of a run in which nothing does. */
class FaultsTest {
    @Test
    fun `fifty faults in real speech leave the transcript as it is`() {
        BridgeServer("pocketsphinx").use { server ->
            // Nobody is in a hurry: on a machine that is busy enough, fifteen seconds without a word are no fault.
            val plain = Run(Speech.strangers).through(server.port) { reconnect(reconnect { silenceMillis = 120_000 }) }
            assertTrue(plain.text.length > 200, plain.text)
            assertEquals(0, plain.resumed)
            for (seed in seeds()) {
                val broken = Run(Speech.strangers, seed).broken(server.port)
                assertEquals(plain.text, broken.text, "seed $seed")
                assertEquals(plain.times, broken.times, "seed $seed")
            }
        }
    }
}

/** CI runs a few; `STT_SEEDS=100` runs many. */
internal fun seeds() = 1..(System.getenv("STT_SEEDS")?.toInt() ?: 1)

internal class Told(val events: List<SttEvent>) {
    val finals = events.filterIsInstance<SttEvent.Final>()
    val text = finals.joinToString(" ") { it.text }
    val times = finals.map { it.start to it.end }
    val resumed = events.count { it is SttEvent.Resumed }
    val ended = events.last() as SttEvent.Ended
}

/** All that a session tells, up to its end, while [speak] goes on. */
internal suspend fun SttClient.told(speak: suspend SttClient.() -> Unit): Told = coroutineScope {
    val all = async { events.toList() }
    start()
    speak(this@told)
    finish()
    Told(all.await())
}

/** A recording as fast as the server takes it. */
internal class Run(private val audio: ByteArray, private val seed: Int = 0, private val faults: Int = 50) {
    fun broken(port: Int): Told {
        val plans = FaultProxy.plans(faults, audio.size, Random(seed))
        return FaultProxy(port, plans).use { proxy ->
            val began = System.nanoTime()
            val told = through(proxy.port)
            val seconds = (System.nanoTime() - began) / 1e9
            val kinds = proxy.struck.groupingBy { it }.eachCount()
            println("seed $seed: $kinds in ${audio.size / Speech.SECOND_BYTES} s of audio, ${told.resumed} resumes, %.1f s".format(seconds))
            assertEquals(faults, proxy.struck.size, "all faults struck")
            assertTrue(told.resumed > faults / 2, "${told.resumed} resumes")
            told
        }
    }

    fun through(port: Int, prepare: SttClient.Builder.() -> Unit = {}): Told = runBlocking {
        val client = SttClient.Builder("ws://127.0.0.1:$port")
            .random(Random(seed))
            .reconnect(reconnect { silenceMillis = 1_000; openMillis = 2_000 })
            .apply(prepare)
            .build()
        withTimeout(240.seconds) {
            val told = client.told {
                for (at in audio.indices step FRAME) send(audio, at, minOf(FRAME, audio.size - at))
            }
            assertNull(told.ended.error)
            assertEquals(audio.size.toDouble() / Speech.SECOND_BYTES, assertNotNull(told.ended.duration), 1e-3)
            val numbers = told.finals.map { it.seq }
            assertEquals(numbers.distinct().sorted(), numbers)
            told
        }
    }

    private companion object {
        const val FRAME = 3_200
    }
}
