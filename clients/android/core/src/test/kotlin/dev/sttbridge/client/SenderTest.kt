package dev.sttbridge.client

import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertIs
import kotlin.test.assertSame
import kotlin.test.assertTrue

class SenderTest {
    private val sender = Sender(
        sttOptions { },
        reconnect {
            ringMillis = 4_000
            windowMillis = 1_000
        },
    )

    private fun append(seconds: Int) = sender.append(ByteArray(seconds * 32_000), 0, seconds * 32_000)

    private var other: Utterance? = null // what `said` met behind the audio

    private fun said(free: Boolean = false): Int {
        var bytes = 0
        while (true) {
            val next = sender.next(free)
            if (next !is Utterance.Audio) return bytes.also { other = next }
            bytes += next.bytes.size
        }
    }

    private fun next(): Utterance = other?.also { other = null } ?: sender.next(free = true)

    @Test
    fun `a second goes out beyond what was acknowledged, in pieces of a quarter`() {
        append(3)
        assertEquals(8_000, assertIs<Utterance.Audio>(sender.next(free = false)).bytes.size)
        assertEquals(24_000, said())
        assertSame(Utterance.Full, next())
        sender.heed(received = 8_000, finalized = 0)
        assertEquals(16_000, said())
        assertEquals(48_000, said(free = true))
        assertSame(Utterance.Nothing, next())
    }

    @Test
    fun `what is final is forgotten, what is not goes out again`() {
        append(2)
        said(free = true)
        assertTrue(sender.heed(received = 32_000, finalized = 16_000))
        assertFalse(sender.heed(received = 16_000, finalized = 8_000), "no further than before")
        assertEquals("offset_ahead", assertFailsWith<SttServerException> { sender.resume(31_999, 0) }.code)
        assertFailsWith<ProtocolFault> { sender.resume(64_001, 0) }
        assertEquals(32_000, sender.resume(32_000, 0))
        assertEquals(32_000, said(free = true))
    }

    @Test
    fun `flush and stop keep their places, and are said again`() {
        append(1)
        sender.flush()
        append(1)
        sender.stop()
        assertFalse(append(1), "nothing follows stop")
        repeat(2) {
            assertEquals(32_000, said(free = true))
            assertSame(Utterance.Flush, next())
            assertEquals(32_000, said(free = true))
            assertSame(Utterance.Stop, next())
            assertSame(Utterance.Nothing, next())
            sender.resume(0, 0)
        }
        sender.heed(received = 32_000, finalized = 16_000) // the flush is answered
        sender.resume(32_000, 16_000)
        assertEquals(32_000, said(free = true))
        assertSame(Utterance.Stop, next())
    }

    @Test
    fun `what is final when the session is resumed makes room`() {
        append(4)
        said(free = true)
        assertFalse(append(1))
        assertEquals(0, sender.resume(128_000, 32_000))
        assertTrue(append(2))
        assertEquals("offset_ahead", assertFailsWith<SttServerException> { sender.resume(63_998, 0) }.code)
    }

    @Test
    fun `what the server has makes room, what it has not does not`() {
        assertTrue(append(4))
        assertFalse(append(1))
        said(free = true)
        assertFalse(append(1), "it is under way")
        sender.heed(received = 32_000, finalized = 0)
        assertTrue(append(2), "received, though not final")
        assertFalse(append(1))
        sender.heed(received = 64_000, finalized = 64_000)
        assertTrue(append(2))
    }
}
