package dev.sttbridge.client

import java.io.IOException
import java.util.concurrent.TimeUnit
import javax.net.ssl.SSLException
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.channels.ReceiveChannel
import kotlinx.coroutines.channels.trySendBlocking
import kotlinx.coroutines.withTimeoutOrNull
import okhttp3.HttpUrl
import okhttp3.OkHttpClient
import okhttp3.Request
import okhttp3.Response
import okhttp3.WebSocket
import okhttp3.WebSocketListener
import okio.ByteString
import okio.ByteString.Companion.toByteString

/** WebSockets of OkHttp. [client] may be shared: its threads and pools are used, its settings are not changed. */
internal class OkHttpTransport(
    client: OkHttpClient,
    private val url: HttpUrl,
    private val headers: Map<String, String>,
    silenceMillis: Long,
) : Transport {
    private val client = client.newBuilder()
        .readTimeout(0, TimeUnit.MILLISECONDS) // a session may be silent for long; pings tell whether it lives
        .pingInterval(PINGS * silenceMillis, TimeUnit.MILLISECONDS)
        .minWebSocketMessageToCompress(Long.MAX_VALUE) // audio does not shrink
        .build()

    override suspend fun open(token: String?, millis: Long): Connection {
        val request = Request.Builder().url(url)
        headers.forEach { (name, value) -> request.header(name, value) }
        token?.let { request.header("Authorization", "Bearer $it") }
        val connection = OkHttpConnection()
        val webSocket = client.newWebSocket(request.build(), connection)
        var opened = false
        try {
            withTimeoutOrNull(millis) { connection.opened.await() }
                ?: throw SttConnectException("no answer within $millis ms")
            opened = true
            return connection
        } finally {
            if (!opened) webSocket.cancel()
        }
    }

    private companion object {
        /**
         * Silences between two pings; a pong that is not there by the next one is a failure. Long, because a pong may
         * wait behind audio that a slow server has yet to read, and OkHttp does not count messages as signs of life, as
         * [Life] does. So pings are for connections over which nothing goes.
         */
        const val PINGS = 4
    }
}

private class OkHttpConnection : WebSocketListener(), Connection {
    val opened = CompletableDeferred<Unit>()
    private val messages = Channel<String>(WAITING)
    private lateinit var webSocket: WebSocket // from `opened` on
    @Volatile private var closing = false // by the server

    override val incoming: ReceiveChannel<String> get() = messages
    override val queued: Long get() = webSocket.queueSize()

    override fun say(text: String): Boolean = webSocket.send(text)

    override fun say(bytes: ByteArray): Boolean = webSocket.send(bytes.toByteString())

    override fun close() {
        messages.cancel()
        webSocket.close(NORMAL, null)
    }

    override fun abort(reason: String) {
        messages.close(SttLostException(reason))
        if (!closing) webSocket.cancel() // else it would cut off our answer; OkHttp ends the connection behind that
    }

    // OkHttp's threads

    override fun onOpen(webSocket: WebSocket, response: Response) {
        this.webSocket = webSocket
        if (!opened.complete(Unit)) webSocket.cancel()
    }

    override fun onMessage(webSocket: WebSocket, text: String) {
        // Blocks while the caller is behind: the server notices, and nothing is dropped. Fails once nobody listens.
        messages.trySendBlocking(text)
    }

    override fun onMessage(webSocket: WebSocket, bytes: ByteString) {
        messages.close(ProtocolFault("the server sent a binary message"))
        webSocket.cancel()
    }

    override fun onClosing(webSocket: WebSocket, code: Int, reason: String) {
        // OkHttp leaves the answer to us: without it the server waits, and so would we until a ping fails.
        closing = true
        webSocket.close(NORMAL, null)
        val why = if (reason.isEmpty()) "" else ": $reason"
        messages.close(SttLostException("the server closed the connection with code $code$why"))
    }

    override fun onFailure(webSocket: WebSocket, t: Throwable, response: Response?) {
        if (!opened.isCompleted) opened.completeExceptionally(refusal(t, response))
        messages.close(SttLostException("the connection broke off: ${sentence(t)}"))
    }

    private fun refusal(t: Throwable, response: Response?): SttException {
        // 101 with the wrong headers is no WebSocket; other failures come without a response.
        val status = response?.code ?: return SttConnectException(sentence(t), t)
        val body = try {
            response.peekBody(MAX_REFUSAL_BYTES).string()
        } catch (_: IOException) {
            "" // the status says enough
        }
        val (code, message) = Wire.refusal(body) ?: when (status) {
            401 -> "unauthorized" to "The server answers with HTTP status 401."
            else -> return SttConnectException("the server answers with HTTP status $status instead of a WebSocket", t)
        }
        val after = response.header("Retry-After")?.toLongOrNull()?.times(1_000) ?: 0
        return SttServerException(code, message, isRetryable(code, unknown = status >= 500), after)
    }

    private fun sentence(t: Throwable): String = when (t) {
        is SSLException -> "the server's certificate is not accepted, or it speaks no TLS (${t.message})"
        else -> t.message ?: t.javaClass.simpleName
    }

    private companion object {
        const val NORMAL = 1_000
        const val MAX_REFUSAL_BYTES = 65_536L

        /** Messages between OkHttp's thread and the session. */
        const val WAITING = 64
    }
}
