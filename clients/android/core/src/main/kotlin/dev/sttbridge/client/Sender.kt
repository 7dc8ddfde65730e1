package dev.sttbridge.client

import kotlin.math.max
import kotlin.math.min

/** What is to be said next on a connection. */
internal sealed interface Utterance {
    class Audio(val bytes: ByteArray) : Utterance

    data object Flush : Utterance

    data object Stop : Utterance

    /** Nothing now; [Sender] wakes who waits when there may be more. */
    data object Nothing : Utterance

    /** There is audio, but too much is on its way: an ack makes room. */
    data object Full : Utterance
}

/**
 * What a sender remembers (docs/client.md, "A sender"): the audio that may have to be sent again, the flushes and the
 * stop, and how far the server has come. No I/O; any thread may call it.
 */
internal class Sender(private val options: SttOptions, private val reconnect: Reconnect) {
    private val frame = options.frameBytes
    private val second = frame.toLong() * options.sampleRate
    private val ring = Ring(options.packets)
    private val limit: Int
    private val piece: Int
    private val baseWindow: Long
    private var window: Long
    private var cursor = 0L // the next byte to be sent
    private var acked = 0L // bytes known to be received
    private var bestReceived = 0L // frames, of the furthest ack
    private var bestFinal = 0L
    private val flushes = ArrayDeque<Long>() // where they were asked for
    private var flushed = -1L // those up to here were said on this connection
    private var stopAt: Long? = null
    private var messageBytes = PIECE_BYTES
    private var keeps = true // for another connection
    private var ended = false

    init {
        val ringed = if (second > 0) min(reconnect.ringMillis * second / 1_000, reconnect.ringBytes.toLong()) else null
        limit = max(ringed ?: reconnect.ringBytes.toLong(), 1).toInt()
        baseWindow = if (second > 0) max(reconnect.windowMillis * second / 1_000, 1) else CODED_WINDOW_BYTES
        window = baseWindow
        piece = if (second > 0) max((PIECE_MILLIS * second / 1_000).toInt(), 1) else PIECE_BYTES
    }

    /** Bytes that were taken. */
    val taken: Long @Synchronized get() = ring.end

    val stopped: Boolean @Synchronized get() = stopAt != null

    /** Whether `stop` was said on this connection: the server owes its last message. */
    @get:Synchronized var stopSaid = false
        private set

    /** Whether audio may still come: neither [stop] nor [end] has been called. */
    val open: Boolean @Synchronized get() = stopAt == null && !ended

    /** Takes all of the audio or none: false where there is no room, or nothing may come any more. */
    @Synchronized
    fun append(audio: ByteArray, offset: Int, count: Int): Boolean {
        if (!open || !makeRoom(count)) return false
        ring.append(audio, offset, count)
        return true
    }

    /** The largest piece that [append] can ever take. */
    val most: Int get() = if (options.packets) Int.MAX_VALUE else limit

    /**
     * Where there is no room, audio that this server has got is let go of, final or not: the session can then be
     * resumed only where it lives, but a microphone need not wait for a final.
     */
    private fun makeRoom(size: Int): Boolean {
        val over = ring.held + size - limit
        if (over <= 0) return true
        if (keeps) {
            // Of coded audio nobody says how much arrived; what was sent long before the last byte did.
            val got = if (frame > 0) acked else cursor - limit / 2
            ring.forget(min(ring.start + over, min(got, cursor)))
        }
        return ring.held + size <= limit || ring.held == 0
    }

    @Synchronized
    fun flush() {
        flushes.addLast(ring.end)
        if (flushes.size > MAX_FLUSHES) flushes.removeFirst()
    }

    @Synchronized
    fun stop() {
        if (stopAt == null) stopAt = ring.end
    }

    /** Nothing is taken any more. */
    @Synchronized
    fun end() {
        ended = true
    }

    /** The first connection is ready. [keep]: what is sent may be needed again. */
    @Synchronized
    fun begin(messageBytes: Int, keep: Boolean) {
        this.messageBytes = messageBytes
        keeps = keep
        rewind(0)
    }

    /**
     * The session is resumed: the server wants the audio from byte [at] on, [finalized] frames are final.
     *
     * @return bytes that are sent again.
     * @throws ProtocolFault it wants what there never was.
     * @throws SttServerException it wants what is no longer kept.
     */
    @Synchronized
    fun resume(at: Long, finalized: Long): Long {
        if (at > ring.end) throw ProtocolFault("the server wants audio from byte $at on of ${ring.end}")
        if (at < ring.start) {
            throw SttServerException(
                "offset_ahead",
                "the session cannot be resumed there: the server wants audio from byte $at on, " +
                    "and what was kept begins with byte ${ring.start}",
                retryable = false,
            )
        }
        val before = cursor
        rewind(ring.whole(at))
        acked = at
        letGo(finalized) // what is told here is not told again by an ack
        return max(before - cursor, 0)
    }

    private fun rewind(at: Long) {
        cursor = at
        flushed = at - 1
        window = baseWindow
        stopSaid = false
    }

    /** What to say next. [free]: the server sends no acks, or none for now; the socket alone holds back. */
    @Synchronized
    fun next(free: Boolean): Utterance {
        val flush = flushes.firstOrNull { it > flushed }
        val until = flush ?: ring.end
        return when {
            cursor < until -> audio(until, free)
            flush != null -> Utterance.Flush.also { flushed = flush }
            stopAt != null && !stopSaid -> Utterance.Stop.also { stopSaid = true }
            else -> Utterance.Nothing
        }
    }

    private fun audio(until: Long, free: Boolean): Utterance {
        var size = min(min(piece, messageBytes).toLong(), until - cursor)
        if (frame > 0 && !free) {
            val room = acked + window - cursor
            if (room <= 0) return Utterance.Full
            size = min(size, room)
        }
        val bytes = ring.piece(cursor, size.toInt())
        cursor += bytes.size
        if (!keeps) ring.forget(cursor)
        return Utterance.Audio(bytes)
    }

    /** Takes an ack, both in frames. Whether it shows that the session has come further than ever. */
    @Synchronized
    fun heed(received: Long, finalized: Long): Boolean {
        val further = received > bestReceived || finalized > bestFinal
        bestReceived = max(bestReceived, received)
        bestFinal = max(bestFinal, finalized)
        if (frame > 0) {
            val bytes = received * frame
            // Two intervals' worth: twice as much as a fast server takes from one ack to the next.
            window = max(baseWindow, 2 * (bytes - acked))
            acked = max(acked, bytes)
            letGo(finalized)
        }
        return further
    }

    private fun letGo(finalized: Long) {
        val final = finalized * frame
        // A header of the client's, which is no frame, makes this err on the side of keeping.
        ring.forget(min(final, cursor))
        while (flushes.isNotEmpty() && flushes.first() < final + frame) flushes.removeFirst()
    }

    private companion object {
        /** Raw audio in one message at most; more only delays what follows it. */
        const val PIECE_MILLIS = 250L

        /** The same of coded audio. */
        const val PIECE_BYTES = 32_768

        /** Of coded audio, whose acks count something else than its bytes. */
        const val CODED_WINDOW_BYTES = 262_144L

        /** Flushes that are remembered until they are answered; the oldest are the least missed. */
        const val MAX_FLUSHES = 1_024
    }
}
