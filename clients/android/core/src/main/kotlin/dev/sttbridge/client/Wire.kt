package dev.sttbridge.client

import kotlinx.serialization.SerializationException
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonNull
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.add
import kotlinx.serialization.json.booleanOrNull
import kotlinx.serialization.json.buildJsonObject
import kotlinx.serialization.json.doubleOrNull
import kotlinx.serialization.json.longOrNull
import kotlinx.serialization.json.put
import kotlinx.serialization.json.putJsonArray
import okio.ByteString.Companion.toByteString

/** A message of the server. [seq] is the number of a lasting one. */
internal sealed interface Message {
    val seq: Long? get() = null

    class Ready(
        val sessionId: String,
        val backend: String,
        val language: String,
        val partials: Boolean,
        val resumeToken: String?,
        val resumeMillis: Long?,
        val resumed: Boolean,
        val receivedBytes: Long,
        val finalized: Long,
        val idleMillis: Long,
        val messageBytes: Int,
    ) : Message

    /** Both in frames. */
    class Ack(val received: Long, val finalized: Long) : Message

    class Closed(val code: String, val duration: Double?, override val seq: Long?) : Message

    /** What the caller is told as it is. */
    class Told(val event: SttEvent, override val seq: Long?) : Message

    /** Of a newer protocol. */
    data object Unknown : Message
}

/** The native protocol's messages as text; docs/protocol.md. */
internal object Wire {
    /** `start` of a new session, which its client comes back to. */
    fun start(options: SttOptions): String = buildJsonObject {
        put("type", "start")
        put("encoding", options.encoding)
        put("sample_rate", options.sampleRate)
        put("channels", options.channels)
        options.language?.let { put("language", it) }
        options.backend?.let { put("backend", it) }
        put("partials", options.partials)
        put("words", options.words)
        if (options.phrases.isNotEmpty()) putJsonArray("phrases") { options.phrases.forEach { add(it) } }
        options.vad?.let { put("vad", it) }
        options.endpointSilenceMillis?.let { put("endpoint_silence_ms", it) }
        options.denoise?.let { put("denoise", it) }
        options.sessionId?.let { put("session_id", it) }
        if (!options.store) put("store", false)
        put("resume", true)
    }.toString()

    /** `start` of a session that goes on. */
    fun resume(sessionId: String, token: String, fromSeq: Long): String = buildJsonObject {
        put("type", "start")
        put("session_id", sessionId)
        put("resume_token", token)
        put("from_seq", fromSeq)
    }.toString()

    fun audio(bytes: ByteArray): String = """{"type":"audio","data":"${bytes.toByteString().base64()}"}"""

    const val FLUSH: String = """{"type":"flush"}"""
    const val STOP: String = """{"type":"stop"}"""

    /**
     * A message of the server.
     *
     * @throws ProtocolFault it is none that can be understood.
     */
    fun decode(text: String): Message = try {
        decode(Json.parseToJsonElement(text).asObject("the message"))
    } catch (fault: SerializationException) {
        throw ProtocolFault("the server sent something that is no message: ${fault.message?.lineSequence()?.first()}")
    }

    /** Code and sentence of an HTTP answer that refuses; null if its body says nothing of the kind. */
    fun refusal(body: String): Pair<String, String>? {
        val error = try {
            (Json.parseToJsonElement(body) as? JsonObject)?.get("error") as? JsonObject
        } catch (_: SerializationException) {
            null // some proxy's page
        }
        val code = error?.textOrNull("code") ?: return null
        return code to (error.textOrNull("message") ?: code)
    }

    private fun decode(m: JsonObject): Message = when (m.text("type")) {
        "ready" -> ready(m)
        "ack" -> Message.Ack(m.long("received"), m.long("finalized"))
        "partial" -> told(m, partial(m))
        "final" -> told(m, final(m))
        "speech_started" -> told(m, SttEvent.SpeechStarted(m.double("start"), m.intOrNull("channel")))
        "speech_ended" -> told(m, SttEvent.SpeechEnded(m.double("end"), m.intOrNull("channel")))
        "warning" -> told(m, SttEvent.Warning(m.text("code"), m.text("message")))
        "error" ->
            told(m, SttEvent.Error(m.text("code"), m.text("message"), m.boolean("fatal"), m.boolean("retryable")))
        "closed" -> Message.Closed(m.text("code"), m.doubleOrNull("duration"), m.longOrNull("seq"))
        else -> Message.Unknown
    }

    private fun told(m: JsonObject, event: SttEvent) = Message.Told(event, m.longOrNull("seq"))

    private fun ready(m: JsonObject): Message.Ready {
        val limits = (m["limits"] ?: JsonObject(emptyMap())).asObject("limits")
        return Message.Ready(
            sessionId = m.text("session_id"),
            backend = m.text("backend"),
            language = m.text("language"),
            partials = m.boolean("partials"),
            resumeToken = m.textOrNull("resume_token"),
            resumeMillis = m.doubleOrNull("resume_seconds")?.let { (it * 1_000).toLong() },
            resumed = (m["resumed"] as? JsonPrimitive)?.booleanOrNull ?: false,
            receivedBytes = m.longOrNull("received_bytes") ?: 0,
            finalized = m.longOrNull("finalized") ?: 0,
            idleMillis = ((limits.doubleOrNull("idle_seconds") ?: 60.0) * 1_000).toLong(),
            messageBytes = (limits.longOrNull("message_bytes") ?: 1_048_576).coerceIn(1, Int.MAX_VALUE.toLong()).toInt(),
        )
    }

    private fun partial(m: JsonObject) = SttEvent.Partial(
        m.text("text"),
        m.double("start"),
        m.double("end"),
        m.doubleOrNull("stability"),
        m.intOrNull("committed"),
        words(m),
        m.intOrNull("channel"),
    )

    private fun final(m: JsonObject) = SttEvent.Final(
        m.longOrNull("seq") ?: 0,
        m.text("text"),
        m.double("start"),
        m.double("end"),
        words(m),
        m.doubleOrNull("confidence"),
        m.textOrNull("language"),
        m.intOrNull("channel"),
    )

    private fun words(m: JsonObject): List<Word> = (m["words"] as? JsonArray).orEmpty().map { element ->
        val w = element.asObject("a word")
        Word(w.text("text"), w.double("start"), w.double("end"), w.doubleOrNull("confidence"), w.textOrNull("speaker"))
    }

    private fun JsonElement.asObject(what: String): JsonObject =
        this as? JsonObject ?: throw ProtocolFault("the server sent something that is no message: $what is no object")

    private fun JsonObject.primitive(name: String): JsonPrimitive? =
        get(name)?.takeIf { it !is JsonNull } as? JsonPrimitive

    private fun JsonObject.textOrNull(name: String): String? = primitive(name)?.takeIf { it.isString }?.content

    private fun JsonObject.longOrNull(name: String): Long? = primitive(name)?.takeUnless { it.isString }?.longOrNull

    private fun JsonObject.intOrNull(name: String): Int? =
        longOrNull(name)?.takeIf { it in Int.MIN_VALUE..Int.MAX_VALUE }?.toInt()

    private fun JsonObject.doubleOrNull(name: String): Double? =
        primitive(name)?.takeUnless { it.isString }?.doubleOrNull

    private fun JsonObject.text(name: String): String = textOrNull(name) ?: lacks(name)

    private fun JsonObject.long(name: String): Long = longOrNull(name) ?: lacks(name)

    private fun JsonObject.double(name: String): Double = doubleOrNull(name) ?: lacks(name)

    private fun JsonObject.boolean(name: String): Boolean =
        primitive(name)?.takeUnless { it.isString }?.booleanOrNull ?: lacks(name)

    private fun JsonObject.lacks(name: String): Nothing {
        val type = textOrNull("type") ?: "without a type"
        throw ProtocolFault("the server sent a message that cannot be understood: $type has no valid $name")
    }
}
