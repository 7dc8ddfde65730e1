package dev.sttbridge.client

import java.io.IOException
import kotlinx.coroutines.withTimeoutOrNull

/** How a connection comes about, up to the server's first message: token, WebSocket, `start`. */
internal class Door(
    private val transport: Transport,
    private val tokens: TokenProvider?,
    private val tokenMillis: Long,
) {
    /**
     * Connect, say [start], and wait for the first message. May be cancelled; leaves no connection then. [millis] count
     * for the connection, and again for the message.
     *
     * @throws SttConnectException no server, none that answers in time, one that breaks off, or no token.
     * @throws SttServerException the server refuses the upgrade.
     */
    suspend fun open(start: String, millis: Long): Pair<Connection, Message> {
        val opened = connect(millis)
        return opened.orAbort {
            opened.say(start)
            val first = withTimeoutOrNull(millis) { firstMessage(opened) }
                ?: throw SttConnectException("the server did not get ready within $millis ms")
            opened to first
        }
    }

    private suspend fun connect(millis: Long): Connection {
        val token = token(null)
        try {
            return transport.open(token, millis)
        } catch (refused: SttServerException) {
            if (refused.code != "unauthorized" || token == null) throw refused
            val renewed = token(token)
            if (renewed == null || renewed == token) throw refused
            return transport.open(renewed, millis)
        }
    }

    private suspend fun firstMessage(connection: Connection): Message = try {
        Wire.decode(connection.incoming.receive())
    } catch (lost: SttLostException) {
        throw SttConnectException(lost.message ?: "the connection broke off", lost)
    }

    private suspend fun token(refused: String?): String? {
        val provider = tokens ?: return null
        val answer = try {
            withTimeoutOrNull(tokenMillis) { Answer(provider.token(refused)) }
        } catch (failure: SttException) {
            throw failure
        } catch (failure: IOException) {
            throw SttConnectException("no token: ${failure.message}", failure)
        }
        return (answer ?: throw SttConnectException("no token within $tokenMillis ms")).token
    }

    private class Answer(val token: String?)
}
