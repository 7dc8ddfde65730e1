package dev.sttbridge.client

import kotlin.random.Random
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertNull
import kotlin.test.assertTrue
import kotlin.time.Duration.Companion.seconds
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout

/** The same where every word is known, and in packets. A class of its own: it runs beside the other. */
class KnownWordsTest {
    @Test
    fun `faults in known words lose, cut and double none`() {
        val words = 400 // 4 minutes
        val audio = Speech.markers(words)
        BridgeServer.markers().use { server ->
            for (seed in seeds()) {
                val broken = Run(audio, seed, faults = 25).broken(server.port)
                assertEquals(Speech.said(words), broken.text, "seed $seed")
            }
        }
    }

    @Test
    fun `packets of Opus are neither cut nor lost`() {
        val packets = Speech.opus(seconds = 12)
        val bytes = packets.sumOf { it.size }
        BridgeServer("pocketsphinx").use { server ->
            val plain = opus(packets, server.port)
            assertTrue(plain.text.length > 30, plain.text)
            FaultProxy(server.port, FaultProxy.plans(12, bytes, Random(5))).use { proxy ->
                val broken = opus(packets, proxy.port)
                assertEquals(12, proxy.struck.size)
                assertEquals(plain.text, broken.text)
                assertEquals(plain.times, broken.times)
            }
        }
    }

    private fun opus(packets: List<ByteArray>, port: Int): Told = runBlocking {
        val client = SttClient.Builder("ws://127.0.0.1:$port")
            .options(sttOptions { encoding = "opus" })
            .reconnect(reconnect { silenceMillis = 1_000; openMillis = 2_000 })
            .build()
        withTimeout(120.seconds) {
            client.told { for (packet in packets) send(packet) }.also { assertNull(it.ended.error) }
        }
    }
}
