package dev.sttbridge.client

import kotlinx.coroutines.channels.ReceiveChannel

/** Where connections come from; tests bring their own. */
internal fun interface Transport {
    /**
     * An open WebSocket, with [token] as bearer. May be cancelled.
     *
     * @throws SttConnectException no server, or none that answers within [millis].
     * @throws SttServerException the server refuses the upgrade.
     */
    suspend fun open(token: String?, millis: Long): Connection
}

/** One WebSocket; one coroutine receives, one sends. */
internal interface Connection {
    /** Text messages in order; closed with an [SttLostException] when the connection is over. */
    val incoming: ReceiveChannel<String>

    /** Bytes that were said and have not left. */
    val queued: Long

    /** False: the connection is over, [incoming] says why. Never waits. */
    fun say(text: String): Boolean

    /** The same with a binary message. */
    fun say(bytes: ByteArray): Boolean

    /** Close in order, behind what was said; what comes meanwhile is dropped. Does not wait. */
    fun close()

    /** Cut it at once; [incoming] ends with [reason]. */
    fun abort(reason: String)
}

/** What [block] makes of it; the connection is cut where that fails or is cancelled. */
internal inline fun <T> Connection.orAbort(block: () -> T): T {
    var done = false
    try {
        return block().also { done = true }
    } finally {
        if (!done) abort("it was given up")
    }
}
