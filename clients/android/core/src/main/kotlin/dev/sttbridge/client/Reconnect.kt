package dev.sttbridge.client

import kotlin.math.min
import kotlin.math.pow
import kotlin.random.Random

/** How a client comes back, and what it keeps for that. Times are milliseconds. */
public class Reconnect private constructor(builder: Builder) {
    public val firstMillis: Long = builder.firstMillis
    public val giveUpMillis: Long? = builder.giveUpMillis
    public val baseMillis: Long = positive("baseMillis", builder.baseMillis)
    public val mostMillis: Long = positive("mostMillis", builder.mostMillis)
    public val ringMillis: Long = positive("ringMillis", builder.ringMillis)
    public val ringBytes: Int = positive("ringBytes", builder.ringBytes.toLong()).toInt()
    public val windowMillis: Long = positive("windowMillis", builder.windowMillis)
    public val silenceMillis: Long = positive("silenceMillis", builder.silenceMillis)
    public val openMillis: Long = positive("openMillis", builder.openMillis)
    public val tokenMillis: Long = positive("tokenMillis", builder.tokenMillis)

    public class Builder {
        /** How long even the first connection is tried again, after failures that may pass; 0: once. */
        public var firstMillis: Long = 10_000

        /** How long after a break it is tried to resume; null: as long as the server holds the session. */
        public var giveUpMillis: Long? = null

        /** The wait before attempt n is random, up to this × 2ⁿ: clients of a server that fell do not come at once. */
        public var baseMillis: Long = 100

        /** The longest wait between two attempts. */
        public var mostMillis: Long = 2_000

        /** Raw audio that is kept to be sent again; more than a server keeps without a final (90 s). */
        public var ringMillis: Long = 120_000

        /** The same in bytes, and the only limit for coded audio. */
        public var ringBytes: Int = 16 * 1_048_576

        /** Raw audio on its way beyond the last ack. It widens for a server that turns out to be fast. */
        public var windowMillis: Long = 10_000

        /** A server of which nothing is heard for so long, although it has to answer, counts as gone. */
        public var silenceMillis: Long = 15_000

        /** For a connection to come about, and again for the server's first answer. */
        public var openMillis: Long = 10_000

        /** For [TokenProvider.token] to answer. */
        public var tokenMillis: Long = 15_000

        public fun firstMillis(value: Long): Builder = apply { firstMillis = value }

        public fun giveUpMillis(value: Long?): Builder = apply { giveUpMillis = value }

        public fun baseMillis(value: Long): Builder = apply { baseMillis = value }

        public fun mostMillis(value: Long): Builder = apply { mostMillis = value }

        public fun ringMillis(value: Long): Builder = apply { ringMillis = value }

        public fun ringBytes(value: Int): Builder = apply { ringBytes = value }

        public fun windowMillis(value: Long): Builder = apply { windowMillis = value }

        public fun silenceMillis(value: Long): Builder = apply { silenceMillis = value }

        public fun openMillis(value: Long): Builder = apply { openMillis = value }

        public fun tokenMillis(value: Long): Builder = apply { tokenMillis = value }

        /** @throws IllegalArgumentException a number is not more than 0. */
        public fun build(): Reconnect = Reconnect(this)
    }

    private companion object {
        fun positive(name: String, value: Long): Long {
            require(value > 0) { "$name has to be more than 0, not $value" }
            return value
        }
    }
}

/** [Reconnect] as a block. */
public inline fun reconnect(block: Reconnect.Builder.() -> Unit): Reconnect = Reconnect.Builder().apply(block).build()

/**
 * The waits of one outage after another: "full jitter", after Brooker, "Exponential Backoff and Jitter".
 */
internal class Backoff(private val base: Long, private val most: Long, private val random: Random) {
    private var tries = 0

    /** Milliseconds to wait before the next attempt. */
    fun next(): Long {
        val longest = min(most.toDouble(), base * 2.0.pow(min(tries, 32)))
        tries += 1
        return (random.nextDouble() * longest).toLong()
    }

    /** The outage is over. */
    fun reset() {
        tries = 0
    }
}
