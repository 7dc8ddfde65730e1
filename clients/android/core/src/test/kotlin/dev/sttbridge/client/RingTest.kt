package dev.sttbridge.client

import com.sun.management.ThreadMXBean
import java.lang.management.ManagementFactory
import kotlin.random.Random
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue

class RingTest {
    @Test
    fun `it holds what was appended and not forgotten, however it grows and turns`() {
        val random = Random(3)
        val ring = Ring()
        val all = random.nextBytes(3_000_000)
        while (ring.end < all.size) {
            val count = minOf(random.nextInt(20_000), (all.size - ring.end).toInt())
            ring.append(all, ring.end.toInt(), count)
            if (random.nextInt(3) > 0) ring.forget(ring.start + random.nextInt(ring.held + 1) / 2)
            if (ring.held == 0) continue
            val at = ring.start + random.nextInt(ring.held)
            val piece = ring.piece(at, 5_000)
            assertContentEquals(all.copyOfRange(at.toInt(), minOf(at + 5_000, ring.end).toInt()), piece)
        }
        ring.forget(ring.end)
        assertEquals(0, ring.held)
        assertFailsWith<IllegalArgumentException> { ring.piece(ring.end, 1) }
        assertFailsWith<IllegalArgumentException> { ring.piece(ring.start - 1, 1) }
    }

    @Test
    fun `packets go out as they came in`() {
        val ring = Ring(packets = true)
        for (size in listOf(3, 5, 0, 7)) ring.append(ByteArray(size) { size.toByte() }, 0, size)
        assertContentEquals(ByteArray(3) { 3 }, ring.piece(0, 1))
        assertContentEquals(ByteArray(5) { 5 }, ring.piece(3, 100))
        assertContentEquals(ByteArray(4) { 7 }, ring.piece(11, 100))
        assertEquals(3, ring.whole(7))
        ring.forget(7)
        assertEquals(3, ring.start)
        ring.forget(8)
        assertEquals(8, ring.start)
        assertContentEquals(ByteArray(7) { 7 }, ring.piece(8, 1))
        assertEquals(15, ring.whole(15))
    }

    @Test
    fun `a frame of the microphone allocates next to nothing`() {
        val client = SttClient.Builder("ws://127.0.0.1:1").build() // not begun: the ring fills up to two minutes
        val frame = ByteArray(3_200) { it.toByte() }
        val threads = ManagementFactory.getThreadMXBean() as ThreadMXBean
        fun offer(count: Int): Long {
            val before = threads.getThreadAllocatedBytes(Thread.currentThread().id)
            repeat(count) {
                check(client.offer(frame))
                check(Level.ofPcm16(frame, 0, frame.size) < 0)
            }
            return threads.getThreadAllocatedBytes(Thread.currentThread().id) - before
        }
        offer(700) // past 2 MiB: the ring has its last size
        val bytes = offer(400) / 400
        assertTrue(bytes < 64, "$bytes bytes a frame")
    }
}
