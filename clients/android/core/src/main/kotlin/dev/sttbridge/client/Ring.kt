package dev.sttbridge.client

import kotlin.math.max
import kotlin.math.min

/**
 * A stretch of the session's audio that may have to be sent again, in positions counted in bytes from its first one.
 *
 * [packets]: each piece that was appended goes out as it is, never cut and never joined to another. It grows as is needed,
 * and gives the memory back after an outage; who appends asks [held] first. Not for several threads.
 */
internal class Ring(private val packets: Boolean = false) {
    /** The first byte that is kept. */
    var start = 0L
        private set

    /** Behind the last byte. */
    var end = 0L
        private set

    /** Bytes that are kept. */
    val held: Int get() = (end - start).toInt()

    private var data = ByteArray(FIRST_BYTES) // position p lies at p modulo its size, a power of two
    private val begins = ArrayDeque<Long>() // of packets

    fun append(audio: ByteArray, offset: Int, count: Int) {
        if (packets && count > 0) begins.addLast(end)
        if (held + count > data.size) resize(held + count)
        val at = index(end)
        val first = min(count, data.size - at)
        audio.copyInto(data, at, offset, offset + first)
        audio.copyInto(data, 0, offset + first, offset + count)
        end += count
    }

    /** Audio from [at] on, at most [most] bytes; where packets count, the rest of one, whatever its size. */
    fun piece(at: Long, most: Int): ByteArray {
        require(at in start until end) { "$at is outside $start to $end" }
        val until = if (packets) begins.getOrNull(packet(at) + 1) ?: end else min(at + most, end)
        val piece = ByteArray((until - at).toInt())
        val from = index(at)
        val first = min(piece.size, data.size - from)
        data.copyInto(piece, 0, from, from + first)
        data.copyInto(piece, first, 0, piece.size - first)
        return piece
    }

    /** Where the packet begins that [at] lies in; [at] itself where packets do not count. */
    fun whole(at: Long): Long {
        if (!packets || at >= end) return at
        return begins.getOrNull(packet(at)) ?: at
    }

    /** The number of the packet that [at] lies in, of those that are kept; -1: of none. */
    private fun packet(at: Long): Int {
        val found = begins.binarySearch { it.compareTo(at) }
        return if (found >= 0) found else -found - 2
    }

    /** Let go of what lies before [before], whole packets only. */
    fun forget(before: Long) {
        val until = whole(min(before, end))
        if (until <= start) return
        start = until
        while (begins.isNotEmpty() && begins.first() < start) begins.removeFirst()
        if (data.size > FIRST_BYTES && held < data.size / SPARE) resize(held * 2)
    }

    private fun index(position: Long, size: Int = data.size): Int = (position and (size - 1).toLong()).toInt()

    private fun resize(least: Int) {
        val other = ByteArray(max(Integer.highestOneBit(max(least - 1, 1)) shl 1, FIRST_BYTES))
        var at = start
        while (at < end) {
            val from = index(at)
            val to = index(at, other.size)
            val run = minOf((end - at).toInt(), data.size - from, other.size - to)
            data.copyInto(other, to, from, from + run)
            at += run
        }
        data = other
    }

    private companion object {
        const val FIRST_BYTES = 65_536 // 2 s of PCM16 at 16 kHz
        const val SPARE = 16 // so much more than is held
    }
}
