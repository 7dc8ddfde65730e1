package dev.sttbridge.client

import kotlin.random.Random
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertNull
import kotlin.test.assertTrue
import kotlin.time.Duration.Companion.minutes
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.ExperimentalCoroutinesApi
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.channels.ReceiveChannel
import kotlinx.coroutines.delay
import kotlinx.coroutines.launch
import kotlinx.coroutines.test.StandardTestDispatcher
import kotlinx.coroutines.test.runTest

/** Eight hours of speech in virtual time, over a network that breaks every few minutes. */
@OptIn(ExperimentalCoroutinesApi::class)
class VirtualDayTest {
    @Test
    fun `eight hours leave no word out and the memory as it was`() = runTest(timeout = 5.minutes) {
        val server = Server(backgroundScope, Random(8))
        val client = SttClient(
            server,
            sttOptions { },
            reconnect { },
            tokens = null,
            StandardTestDispatcher(testScheduler),
            testScheduler.timeSource,
            Random(88),
        )
        var finals = 0
        var resumed = 0
        var last: SttEvent? = null
        val collecting = launch {
            client.events.collect {
                last = it
                if (it is SttEvent.Final) assertEquals("s${finals++}", it.text)
                if (it is SttEvent.Resumed) resumed += 1
            }
        }
        client.start()
        val frame = ByteArray(FRAME)
        val heaps = mutableListOf<Long>()
        for (number in 0 until HOURS * FRAMES_AN_HOUR) {
            server.write(frame, number)
            assertTrue(client.offer(frame), "frame $number")
            delay(100)
            if ((number + 1) % FRAMES_AN_HOUR == 0) heaps += heap()
        }
        val ended = client.finish()
        collecting.join()
        println("8 h: $finals finals, $resumed resumes, ${server.attempts} attempts, heap (KiB) ${heaps.map { it / 1024 }}")
        assertNull(ended.error)
        assertEquals(ended, last)
        assertEquals(HOURS * 3_600 / FINAL_SECONDS, finals)
        assertEquals(HOURS * FRAMES_AN_HOUR * FRAME.toLong(), server.received)
        assertTrue(resumed > 100, "$resumed")
        val growth = heaps.drop(1).max() - heaps.first()
        assertTrue(growth < MOST_GROWTH, "the heap grew by $growth bytes: $heaps")
    }

    private fun heap(): Long {
        val runtime = Runtime.getRuntime()
        return (1..3).minOf {
            System.gc()
            runtime.totalMemory() - runtime.freeMemory()
        }
    }

    /** A server that checks every byte, and a network that loses what is under way when it breaks. */
    private class Server(private val scope: CoroutineScope, private val random: Random) : Transport {
        var received = 0L
        var attempts = 0
        private var seq = 0L
        private val lasting = ArrayDeque<Pair<Long, String>>() // the last ones
        private var current: Link? = null
        private val expected = ByteArray(FRAME)

        /** Frame [number] of the audio. */
        fun write(frame: ByteArray, number: Int) {
            for (i in 0 until 4) frame[i] = (number shr (8 * i)).toByte()
            frame[FRAME - 1] = number.toByte()
        }

        override suspend fun open(token: String?, millis: Long): Connection {
            attempts += 1
            delay(random.nextLong(10, 500))
            if (attempts > 1 && random.nextInt(3) == 0) throw SttConnectException("the network is away")
            return Link(random.nextLong(1, 300L * 32_000)).also { current = it }
        }

        private inner class Link(private var left: Long) : Connection {
            private val messages = Channel<String>(4_096)
            private var dead = false
            private var acked = received
            override val incoming: ReceiveChannel<String> get() = messages
            override val queued: Long get() = 0

            override fun say(text: String): Boolean {
                if (dead) return true
                when {
                    "resume_token" in text -> {
                        ready(resumed = true)
                        val from = Regex("\"from_seq\":(\\d+)").find(text)!!.groupValues[1].toLong()
                        lasting.filter { it.first >= from }.forEach { tell(it.second) }
                    }
                    "\"start\"" in text -> ready(resumed = false)
                    "\"stop\"" in text -> {
                        seq += 1
                        tell("""{"type":"closed","seq":$seq,"code":"stopped","duration":${received / 32_000.0}}""")
                        messages.close(SttLostException("the server closed the connection"))
                    }
                }
                return true
            }

            private fun ready(resumed: Boolean) = tell(
                """{"type":"ready","protocol":1,"session_id":"s","backend":"fake","language":"en","partials":true,""" +
                    """"limits":{"session_seconds":99999,"idle_seconds":60,"message_bytes":1048576},""" +
                    """"resume_token":"t","resume_seconds":60,"resumed":$resumed,"received_bytes":$received}""",
            )

            override fun say(bytes: ByteArray): Boolean {
                left -= bytes.size
                if (left < 0 && !dead) die()
                if (dead) return true
                for (byte in bytes) {
                    val at = (received % FRAME).toInt()
                    if (at == 0) write(expected, (received / FRAME).toInt())
                    check(byte == expected[at]) { "byte $received is another one" }
                    received += 1
                    if (received % (FINAL_SECONDS * 32_000) == 0L) final()
                }
                if (received - acked >= 32_000) ack()
                return true
            }

            private fun final() {
                seq += 1
                val end = received / 32_000.0
                val text = """{"type":"final","seq":$seq,"text":"s${seq - 1}","start":${end - FINAL_SECONDS},"end":$end}"""
                lasting.addLast(seq to text)
                if (lasting.size > 64) lasting.removeFirst()
                tell(text)
            }

            private fun ack() {
                acked = received
                val end = received / 32_000.0
                tell("""{"type":"partial","text":"still speaking","start":$end,"end":$end}""")
                val final = received / (FINAL_SECONDS * 32_000) * FINAL_SECONDS * 16_000
                tell("""{"type":"ack","received":${received / 2},"finalized":$final}""")
            }

            private fun tell(text: String) {
                if (!dead) check(messages.trySend(text).isSuccess) { "the client does not read" }
            }

            /** At once, after a while, or without a word. */
            private fun die() {
                dead = true
                when (random.nextInt(3)) {
                    0 -> messages.close(SttLostException("the connection broke off"))
                    1 -> scope.launch {
                        delay(random.nextLong(5_000))
                        messages.close(SttLostException("the connection broke off"))
                    }
                }
            }

            override fun close() {
                dead = true
                messages.cancel()
            }

            override fun abort(reason: String) {
                dead = true
                messages.close(SttLostException(reason))
            }
        }
    }

    private companion object {
        const val HOURS = 8
        const val FRAMES_AN_HOUR = 36_000
        const val FRAME = 3_200
        const val FINAL_SECONDS = 4
        const val MOST_GROWTH = 1_048_576L
    }
}
