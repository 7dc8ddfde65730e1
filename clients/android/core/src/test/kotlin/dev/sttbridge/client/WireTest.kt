package dev.sttbridge.client

import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertIs
import kotlin.test.assertNull
import kotlin.test.assertSame
import kotlin.test.assertTrue

class WireTest {
    @Test
    fun `what may be tried again is what the server's table says`() {
        val script = "from bridge.errors import ERRORS; print(*(f'{c}={e.retryable}' for c, e in ERRORS.items()))"
        val table = String(Python.output(script)).trim().split(" ").map { it.split("=") }
        assertTrue(table.size > 40)
        val (retryable, final) = table.partition { it[1] == "True" }
        assertEquals(retryable.map { it[0] }.toSet(), RETRYABLE)
        assertEquals(final.map { it[0] }.toSet(), FINAL)
        assertTrue(isRetryable("of_a_newer_server", unknown = true))
        assertTrue(!isRetryable("unauthorized", unknown = true))
    }

    @Test
    fun `start says what was chosen`() {
        val plain = """{"type":"start","encoding":"pcm_s16le","sample_rate":16000,"channels":1,"partials":true,""" +
            """"words":true,"resume":true}"""
        assertEquals(plain, Wire.start(sttOptions { }))
        val chosen = sttOptions {
            language = "de-DE"
            backend = "whisper"
            phrases = listOf("say \"when\"")
            vad = true
            endpointSilenceMillis = 700
            denoise = false
            sessionId = "0123456789abcdef"
            store = false
        }
        val text = Wire.start(chosen)
        for (part in listOf(
            """"language":"de-DE"""", """"phrases":["say \"when\""]""", """"vad":true""", """"endpoint_silence_ms":700""",
            """"denoise":false""", """"session_id":"0123456789abcdef"""", """"store":false""",
            """"backend":"whisper"""",
        )) {
            assertTrue(part in text, "$part in $text")
        }
        assertFailsWith<IllegalArgumentException> { sttOptions { encoding = "auto" } }
        assertFailsWith<IllegalArgumentException> { sttOptions { sampleRate = 7_999 } }
    }

    @Test
    fun `messages are read as they are meant`() {
        val text = """{"type":"final","seq":9,"text":"hé 😀","start":1.5,"end":2,"confidence":null,"new":{},""" +
            """"words":[{"text":"hé","start":1.5,"end":1.7,"confidence":0.5,"speaker":"A"}]}"""
        val message = assertIs<Message.Told>(Wire.decode(text))
        val final = assertIs<SttEvent.Final>(message.event)
        assertEquals(9, message.seq)
        assertEquals("hé 😀", final.text)
        assertNull(final.confidence)
        assertEquals("A", final.words.single().speaker)
        assertEquals(0.5, final.words.single().confidence)
        assertSame(Message.Unknown, Wire.decode("""{"type":"of a newer protocol"}"""))
    }

    @Test
    fun `what is no message is a fault`() {
        val bad = listOf(
            "", "[]", "{", "null", "3", """{"type":7}""", """{"seq":1}""", """{"type":"ack","received":"3","finalized":0}""",
            """{"type":"final","seq":1,"text":7,"start":0,"end":1}""", """{"type":"partial","text":"a","start":0}""",
            """{"type":"final","seq":1,"text":"a","start":0,"end":1,"words":[7]}""", """{"type":"error","code":"x"}""",
        )
        for (text in bad) assertFailsWith<ProtocolFault>(text) { Wire.decode(text) }
    }

    @Test
    fun `no fault repeats what was said`() {
        val bad = listOf(
            """{"type":"final","seq":1,"text":"secret words""", """{"type":"final","text":"secret words" "start":0}""",
            """["secret words"]""", """{"type":"final","seq":1,"text":"secret words","start":"x","end":1}""", "secret words",
        )
        for (text in bad) {
            val message = assertFailsWith<ProtocolFault>(text) { Wire.decode(text) }.message!!
            assertTrue("secret" !in message && "words" !in message, message)
        }
    }

    @Test
    fun `a refusal is read from the body, if it is one`() {
        assertEquals("at_capacity" to "Full.", Wire.refusal("""{"error":{"code":"at_capacity","message":"Full."}}"""))
        for (body in listOf("", "<html>", "[]", "{}", """{"error":"no"}""")) assertNull(Wire.refusal(body))
    }

    @Test
    fun `an address needs no path`() {
        for (url in listOf("ws://host:8000", "wss://host/", "https://host", "http://host/stt/v1/stream?x=1")) {
            SttClient.Builder(url)
        }
        for (url in listOf("", "host:8000", "ftp://host", "ws://")) {
            assertFailsWith<IllegalArgumentException>(url) { SttClient.Builder(url) }
        }
    }
}
