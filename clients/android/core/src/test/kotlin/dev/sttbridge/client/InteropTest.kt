package dev.sttbridge.client

import java.io.File
import java.net.InetAddress
import java.net.ServerSocket
import java.nio.file.Files
import java.util.concurrent.CopyOnWriteArrayList
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFalse
import kotlin.test.assertIs
import kotlin.test.assertNull
import kotlin.test.assertTrue
import kotlin.time.Duration.Companion.seconds
import kotlin.time.TimeSource
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.async
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout
import okhttp3.CertificatePinner
import okhttp3.OkHttpClient
import okhttp3.Request
import okhttp3.tls.HandshakeCertificates
import okhttp3.tls.HeldCertificate

/** The client and the real server, where nothing breaks by chance. */
class InteropTest {
    private val audio by lazy { Speech.markers(12) }
    private val said = Speech.said(12)

    private fun client(port: Int, scheme: String = "ws", prepare: SttClient.Builder.() -> Unit = {}) =
        SttClient.Builder("$scheme://localhost:$port").apply(prepare).build()

    private fun within(block: suspend CoroutineScope.() -> Unit) = runBlocking { withTimeout(60.seconds) { block() } }

    private suspend fun told(client: SttClient, audio: ByteArray = this.audio) = client.told { send(audio) }

    @Test
    fun `audio goes as base64 where binary messages do not pass`() = Shared.markers { server ->
        within {
            val told = told(client(server.port) { options(sttOptions { framing = Framing.BASE64 }) })
            assertNull(told.ended.error)
            assertEquals(said, told.text)
            assertTrue(told.finals.all { it.words.isNotEmpty() && it.confidence == 1.0 })
        }
    }

    @Test
    fun `audio that is spoken before there is a server is not lost`() = within {
        val port = ServerSocket(0, 1, InetAddress.getLoopbackAddress()).use { it.localPort }
        val client = client(port) { reconnect(reconnect { firstMillis = 30_000 }) }
        client.start()
        val half = audio.size / 2
        assertTrue(client.offer(audio, 0, half))
        BridgeServer.markers(port = port).use {
            val events = async { client.events.toList() }
            client.connect()
            assertEquals(SttState.LIVE, client.state.value)
            assertTrue(client.offer(audio, half, audio.size - half))
            client.finish()
            assertEquals(said, Told(events.await()).text)
        }
    }

    @Test
    fun `a token that was refused is renewed, and each connection asks for one`() {
        val asked = CopyOnWriteArrayList<String?>()
        val tokens = TokenProvider { refused ->
            asked += refused
            if (refused == null) "expired-token-0000" else "good-token-0000000"
        }
        BridgeServer.markers(mapOf("STT_API_KEYS" to "good-token-0000000")).use { server ->
            FaultProxy(server.port).use { proxy ->
                within {
                    val told = client(proxy.port) { tokens(tokens) }.told {
                        connect()
                        assertEquals(listOf(null, "expired-token-0000"), asked.toList())
                        send(audio)
                        proxy.strike(Fault.RESET)
                    }
                    assertEquals(said, told.text)
                    assertEquals(1, told.resumed)
                    assertEquals(4, asked.size)
                }
            }
            assertFalse("good-token" in server.output)
        }
    }

    @Test
    fun `a token that stays refused ends the session`() {
        var asked = 0
        BridgeServer.markers(mapOf("STT_API_KEYS" to "good-token-0000000")).use { server ->
            within {
                val client = client(server.port) { tokens(TokenProvider { "wrong-token-000000".also { asked++ } }) }
                val ended = told(client).ended
                assertEquals("unauthorized", assertIs<SttServerException>(ended.error).code)
                assertEquals(2, asked)
            }
        }
    }

    @Test
    fun `wss needs a certificate that is trusted, and pins hold`() {
        val certificate = HeldCertificate.Builder().addSubjectAlternativeName("localhost").build()
        val folder = Files.createTempDirectory("tls").toFile()
        val chain = File(folder, "chain.pem").apply { writeText(certificate.certificatePem()) }
        val key = File(folder, "key.pem").apply { writeText(certificate.privateKeyPkcs8Pem()) }
        val trust = HandshakeCertificates.Builder().addTrustedCertificate(certificate.certificate).build()
        val trusting = OkHttpClient.Builder().sslSocketFactory(trust.sslSocketFactory(), trust.trustManager).build()
        val once = reconnect { firstMillis = 0 }
        val pin = CertificatePinner.pin(certificate.certificate)
        val other = CertificatePinner.pin(HeldCertificate.Builder().build().certificate)
        BridgeServer.markers(mapOf("STT_TLS_CERT" to chain.path, "STT_TLS_KEY" to key.path)).use { server ->
            within {
                assertEquals(said, told(client(server.port, "wss") { httpClient(trusting).pins(other, pin) }).text)
                for (refused in listOf<SttClient.Builder.() -> Unit>({ }, { httpClient(trusting).pins(other) })) {
                    val ended = told(client(server.port, "wss") { reconnect(once).refused() }, ByteArray(0)).ended
                    assertTrue("certificate" in assertIs<SttConnectException>(ended.error).message!!)
                }
            }
        }
        folder.deleteRecursively()
    }

    @Test
    fun `a server that is stopped and started again goes on with the session`() {
        val folder = Files.createTempDirectory("log").toFile()
        val settings = mapOf("STT_EVENT_LOG" to "sqlite:${File(folder, "events.db").path}")
        within {
            val first = BridgeServer.markers(settings)
            val client = client(first.port)
            val events = async { client.events.toList() }
            client.start()
            client.send(audio, 0, audio.size / 2)
            client.state.first { it == SttState.LIVE }
            delay(300) // some of it is final then, and some is not
            first.terminate()
            client.send(audio, audio.size / 2)
            BridgeServer.markers(settings, first.port).use {
                client.finish()
                val told = Told(events.await())
                assertNull(told.ended.error)
                assertEquals(said, told.text)
                assertEquals(1, told.resumed)
            }
            first.close()
        }
        folder.deleteRecursively()
    }

    @Test
    fun `another network is gone over to at once`() = Shared.markers { server ->
        FaultProxy(server.port).use { proxy ->
            within {
                val client = client(proxy.port)
                val events = async { client.events.toList() }
                client.connect()
                client.send(audio, 0, audio.size / 2)
                proxy.strike(Fault.STALL) // nothing says that the old connection is dead
                val began = TimeSource.Monotonic.markNow()
                client.networkChanged()
                client.send(audio, audio.size / 2)
                client.finish()
                val told = Told(events.await())
                assertEquals(said, told.text)
                assertEquals(1, told.resumed)
                assertTrue(began.elapsedNow() < 5.seconds, "${began.elapsedNow()}")
            }
        }
    }

    @Test
    fun `a connection that breaks during stop costs no word`() = Shared.markers { server ->
        for (fault in listOf(Fault.FIN, Fault.RESET, Fault.HALF_OPEN)) {
            FaultProxy(server.port).use { proxy ->
                within {
                    val told = client(proxy.port).told {
                        connect()
                        send(audio)
                        stop()
                        proxy.strike(fault)
                    }
                    assertEquals(said, told.text)
                }
            }
        }
    }

    @Test
    fun `a client that is closed leaves no session that waits for it`() = Shared.markers { server ->
        within {
            val client = client(server.port)
            client.connect()
            client.send(audio)
            val session = client.events.first() as SttEvent.Ready
            client.close()
            client.close()
            val ended = Regex("\"state\": *\"ended\"")
            val request = Request.Builder().url("http://localhost:${server.port}/v1/sessions/${session.sessionId}").build()
            while (!ended.containsMatchIn(OkHttpClient().newCall(request).execute().body.string())) delay(20)
        }
    }

    @Test
    fun `flush asks for finals while the session goes on`() = Shared.markers { server ->
        within {
            val word = audio.copyOf(9_600) // without the pause that would end the utterance
            val told = client(server.port).told {
                connect()
                send(word)
                flush()
                send(audio, word.size)
            }
            assertEquals(said, told.text)
            assertEquals("w0", told.finals.first().text)
        }
    }

    @Test
    fun `a paused microphone does not end the session`() =
        BridgeServer.markers(mapOf("STT_IDLE_SECONDS" to "1")).use { server ->
            within {
                val told = client(server.port).told {
                    connect()
                    send(audio, 0, audio.size / 2)
                    delay(2_500)
                    send(audio, audio.size / 2)
                }
                assertEquals(said, told.text)
            }
        }

    @Test
    fun `more audio than may wait is refused, and told`() = within {
        val client = client(1) { reconnect(reconnect { ringMillis = 1_000; firstMillis = 500 }) }
        client.start()
        assertTrue(client.offer(ByteArray(32_000)))
        assertFalse(client.offer(ByteArray(3_200)))
        assertFalse(client.offer(ByteArray(3_200)))
        val events = client.events.toList()
        assertEquals(3_200, events.filterIsInstance<SttEvent.Overflow>().single().bytes)
        assertIs<SttConnectException>((events.last() as SttEvent.Ended).error)
    }

    @Test
    fun `a Java caller is told the same`() = Shared.markers { server ->
        assertEquals(said, JavaCaller.transcript("ws://localhost:${server.port}", audio))
    }
}
