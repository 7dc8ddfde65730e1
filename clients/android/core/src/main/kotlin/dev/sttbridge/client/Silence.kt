package dev.sttbridge.client

import kotlin.time.TimeMark
import kotlin.time.TimeSource

/** Acks come about once a second while audio comes. From a server that sends none the socket alone holds back. */
internal const val ACK_PATIENCE_MILLIS = 2_000L

/** Whose turn it is to say something; one coroutine says, another hears. */
internal class Silence(private val clock: TimeSource) {
    private var first: TimeMark? = null // of the audio that was sent since the server was last heard
    private var last: TimeMark? = null

    /** Audio was sent. */
    @Synchronized
    fun said() {
        val now = clock.markNow()
        if (first == null) first = now
        last = now
    }

    /** The server said something. */
    @Synchronized
    fun heard() {
        first = null
        last = null
    }

    /** Whether so much was sent that a server which lives had acknowledged it; little may wait until more comes. */
    val answerOwed: Boolean
        @Synchronized get() {
            val from = first?.elapsedNow() ?: return false
            val to = last?.elapsedNow() ?: return false
            return (from - to).inWholeMilliseconds >= ACK_PATIENCE_MILLIS
        }
}
