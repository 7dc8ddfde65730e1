package dev.sttbridge.client

/**
 * Where bearer tokens come from. Asked before each connection, so a token need only last until it is used once.
 *
 * What it throws ends the attempt: an `IOException` is tried again as a failed connection is, anything else ends the
 * session. It may be cancelled, and has `Reconnect.tokenMillis`.
 */
public fun interface TokenProvider {
    /**
     * A token, or null for none. [refused] is the one that the server has just refused as wrong or expired: give a new
     * one. The same again ends the session.
     */
    public suspend fun token(refused: String?): String?
}

/** The same for Java; called on a thread that may block. */
public fun interface BlockingTokenProvider {
    @Throws(java.io.IOException::class)
    public fun token(refused: String?): String?
}
