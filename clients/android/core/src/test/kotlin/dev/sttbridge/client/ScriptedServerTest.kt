package dev.sttbridge.client

import java.util.concurrent.CopyOnWriteArrayList
import java.util.concurrent.LinkedBlockingQueue
import java.util.concurrent.TimeUnit
import kotlin.test.AfterTest
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertIs
import kotlin.test.assertNull
import kotlin.test.assertTrue
import kotlin.time.Duration.Companion.seconds
import kotlin.time.TimeSource
import kotlinx.coroutines.async
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout
import mockwebserver3.MockResponse
import mockwebserver3.MockWebServer
import okhttp3.WebSocket
import okhttp3.WebSocketListener

/** What a server of ours does not do, or not on demand: each connection follows a script. */
class ScriptedServerTest {
    private val server = MockWebServer()
    private val starts = CopyOnWriteArrayList<String>()
    private val closings = LinkedBlockingQueue<String>()
    private var connections = 0

    @AfterTest
    fun close() = server.close()

    /** A connection that answers `start` with [answers]; a close code among them closes. */
    private fun connection(vararg answers: Any) = server.enqueue(
        MockResponse.Builder().webSocketUpgrade(
            object : WebSocketListener() {
                private val number = ++connections

                override fun onMessage(webSocket: WebSocket, text: String) {
                    if ("\"start\"" !in text) return
                    starts += text
                    for (answer in answers) if (answer is Int) webSocket.close(answer, null) else webSocket.send("$answer")
                }

                override fun onClosing(webSocket: WebSocket, code: Int, reason: String) {
                    closings += "connection $number: $code"
                    webSocket.close(1000, null)
                }
            },
        ).build(),
    )

    private fun ready(resumed: Boolean = false, session: String = "s", token: String? = "t", received: Int = 0) =
        """{"type":"ready","session_id":"$session","backend":"b","language":"en","partials":true,"limits":{},""" +
            """"resume_token":${token?.let { "\"$it\"" }},"resume_seconds":5,"resumed":$resumed,"received_bytes":$received}"""

    private fun final(seq: Int) = """{"type":"final","seq":$seq,"text":"w$seq","start":$seq,"end":${seq + 1}}"""

    private fun closed(seq: Int?, code: String = "stopped") =
        """{"type":"closed","code":"$code","received":0,"finalized":0,"duration":0${seq?.let { ",\"seq\":$it" } ?: ""}}"""

    private fun error(code: String, seq: Int?) = """{"type":"error","code":"$code","message":"A sentence.","fatal":true,""" +
        """"retryable":false${seq?.let { ",\"seq\":$it" } ?: ""}}"""

    private fun told(prepare: SttClient.Builder.() -> Unit = {}): Told = runBlocking {
        server.start()
        withTimeout(30.seconds) {
            val client = SttClient.Builder("ws://localhost:${server.port}").reconnect(reconnect { firstMillis = 0 })
                .apply(prepare).build()
            val events = async { client.events.toList() }
            client.start()
            Told(events.await())
        }
    }

    @Test
    fun `a close of the server is answered at once, and the session goes on`() {
        connection(ready(), final(1), 1011)
        connection(ready(resumed = true), final(2), closed(3))
        val began = TimeSource.Monotonic.markNow()
        val told = told()
        assertEquals("connection 1: 1000", closings.poll(5, TimeUnit.SECONDS))
        assertTrue(began.elapsedNow() < 5.seconds)
        assertEquals("w1 w2", told.text)
        assertContains(starts[1], "\"from_seq\":2")
        assertContains(told.events.filterIsInstance<SttEvent.Interrupted>().single().reason, "1011")
        assertNull(told.ended.error)
    }

    @Test
    fun `repeats are dropped, and a gap is a break`() {
        connection(ready(), final(1), final(3))
        connection(ready(resumed = true), final(1), final(2), final(2), final(3), closed(4))
        assertEquals("w1 w2 w3", told().text)
        assertEquals(2, starts.size)
    }

    @Test
    fun `nonsense is a break, three times over the end`() {
        connection(ready(), "{")
        connection(ready(resumed = true), "nonsense")
        connection(ready(resumed = true), """{"type":"ack"}""")
        val ended = told().ended
        assertContains(assertIs<SttLostException>(ended.error).message!!, "cannot be understood")
        assertEquals(3, starts.size)
    }

    @Test
    fun `an error that ends the session is told in the server's words`() {
        connection(ready(), error("backend_failed", 1), final(2), closed(3, "backend_failed"))
        val told = told()
        assertEquals("w2", told.text)
        val error = assertIs<SttServerException>(told.ended.error)
        assertEquals("backend_failed", error.code)
        assertContains(error.message!!, "A sentence.")
    }

    @Test
    fun `a connection that ends for a passing reason is followed by another`() {
        connection(ready(), closed(null, "shutting_down"), 1001)
        connection(ready(resumed = true), closed(1))
        assertNull(told().ended.error)
    }

    @Test
    fun `who was taken over does not come back`() {
        connection(ready(), error("taken_over", null), closed(null, "taken_over"), 4409)
        assertEquals("taken_over", assertIs<SttServerException>(told().ended.error).code)
        assertEquals(1, starts.size)
    }

    @Test
    fun `a session that cannot be resumed is lost with its connection`() {
        connection(ready(token = null), final(1), 1011)
        assertIs<SttLostException>(told().ended.error)
        assertEquals(1, starts.size)
    }

    @Test
    fun `a session that is gone is not taken for another`() {
        connection(ready(), 1011)
        repeat(30) { connection(ready(resumed = false, session = "another")) }
        val ended = told { reconnect(reconnect { giveUpMillis = 300 }) }.ended
        assertContains(assertIs<SttLostException>(ended.error).message!!, "another session")
    }

    @Test
    fun `a session that is refused for good is given up`() {
        connection(ready(), 1011)
        connection(error("session_expired", null), closed(null, "session_expired"))
        assertEquals("session_expired", assertIs<SttServerException>(told().ended.error).code)
    }

    @Test
    fun `audio that nobody keeps any more cannot be asked for`() {
        connection(ready(), 1011)
        connection(ready(resumed = true, received = 7_000))
        assertIs<SttLostException>(told { reconnect(reconnect { giveUpMillis = 1 }) }.ended.error)
    }

    @Test
    fun `an HTTP refusal is told by its code, and waited for as it asks`() {
        val body = """{"error":{"code":"rate_limited","message":"Slowly."}}"""
        server.enqueue(MockResponse.Builder().code(429).addHeader("Retry-After", "1").body(body).build())
        connection(ready(), closed(1))
        val began = TimeSource.Monotonic.markNow()
        assertNull(told { reconnect(reconnect { firstMillis = 5_000 }) }.ended.error)
        assertTrue(began.elapsedNow() >= 1.seconds, "${began.elapsedNow()}")
    }

    @Test
    fun `a page instead of a WebSocket is no server`() {
        server.enqueue(MockResponse.Builder().code(200).body("<html>").build())
        assertIs<SttConnectException>(told().ended.error)
    }

    @Test
    fun `a token provider's own failure ends the session, and is not lost`() {
        val ended = told { tokens(TokenProvider { error("no account") }) }.ended
        assertEquals("no account", assertIs<SttConnectException>(ended.error).cause?.message)
    }
}
