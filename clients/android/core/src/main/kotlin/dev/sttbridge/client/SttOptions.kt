package dev.sttbridge.client

/** How audio is written into messages. */
public enum class Framing {
    /** WebSocket binary messages. */
    BINARY,

    /** `{"type":"audio","data":"<base64>"}`, a third larger: for servers and proxies that pass text only. */
    BASE64,
}

/**
 * What a session is to be: the fields of `start` in docs/protocol.md. From Kotlin: `sttOptions { language = "en-US" }`;
 * from Java: `new SttOptions.Builder()…build()`.
 */
public class SttOptions private constructor(builder: Builder) {
    public val encoding: String = builder.encoding
    public val sampleRate: Int = builder.sampleRate
    public val channels: Int = builder.channels
    public val language: String? = builder.language
    public val backend: String? = builder.backend
    public val partials: Boolean = builder.partials
    public val words: Boolean = builder.words
    public val phrases: List<String> = builder.phrases.toList()
    public val vad: Boolean? = builder.vad
    public val endpointSilenceMillis: Int? = builder.endpointSilenceMillis
    public val denoise: Boolean? = builder.denoise
    public val sessionId: String? = builder.sessionId
    public val store: Boolean = builder.store
    public val framing: Framing = builder.framing
    public val keepAlive: Boolean = builder.keepAlive

    /** Bytes of one sample of every channel; 0 where bytes and time have nothing to do with each other. */
    internal val frameBytes: Int = (WIDTHS[encoding] ?: 0) * channels

    /** Each piece of audio is a packet that must not be cut. */
    internal val packets: Boolean = encoding == "opus"

    init {
        require(encoding in WIDTHS || encoding in CODED) {
            "encoding $encoding is none of ${(WIDTHS.keys + CODED).joinToString()}"
        }
        require(sampleRate in 8_000..192_000) { "sampleRate has to be 8000 to 192000, not $sampleRate" }
        require(channels in 1..8) { "channels has to be 1 to 8, not $channels" }
    }

    public class Builder {
        /** One of the encodings of docs/protocol.md but `auto`. */
        public var encoding: String = "pcm_s16le"

        /** Hz. */
        public var sampleRate: Int = 16_000

        public var channels: Int = 1

        /** BCP 47 tag; null: the server's default. */
        public var language: String? = null

        /** Which backend, as the server names it; null: the best of those that are well. */
        public var backend: String? = null

        /** Whether partials are wanted. */
        public var partials: Boolean = true

        /** Whether results carry words with times and confidences. */
        public var words: Boolean = true

        /** Words or short phrases that are likely to be said. */
        public var phrases: List<String> = emptyList()

        /** Whether a voice activity detector tells of speech; null: only where the server needs one. */
        public var vad: Boolean? = null

        /** The silence that ends an utterance, 100 to 10000 ms; null: the engine's choice. */
        public var endpointSilenceMillis: Int? = null

        /** Whether the server suppresses noise; null: its own choice. */
        public var denoise: Boolean? = null

        /** A name of your own for the session, 16 to 128 characters and hard to guess; null: the server makes one. */
        public var sessionId: String? = null

        /** Whether the server may keep the session's messages. */
        public var store: Boolean = true

        public var framing: Framing = Framing.BINARY

        /**
         * Whether a session without audio (the microphone is paused) is kept from the server's idle timeout, by a
         * `flush` at half of it.
         */
        public var keepAlive: Boolean = true

        public fun encoding(value: String): Builder = apply { encoding = value }

        public fun sampleRate(hertz: Int): Builder = apply { sampleRate = hertz }

        public fun channels(value: Int): Builder = apply { channels = value }

        public fun language(tag: String?): Builder = apply { language = tag }

        public fun backend(name: String?): Builder = apply { backend = name }

        public fun partials(value: Boolean): Builder = apply { partials = value }

        public fun words(value: Boolean): Builder = apply { words = value }

        public fun phrases(value: List<String>): Builder = apply { phrases = value }

        public fun vad(value: Boolean?): Builder = apply { vad = value }

        public fun endpointSilenceMillis(value: Int?): Builder = apply { endpointSilenceMillis = value }

        public fun denoise(value: Boolean?): Builder = apply { denoise = value }

        public fun sessionId(value: String?): Builder = apply { sessionId = value }

        public fun store(value: Boolean): Builder = apply { store = value }

        public fun framing(value: Framing): Builder = apply { framing = value }

        public fun keepAlive(value: Boolean): Builder = apply { keepAlive = value }

        /** @throws IllegalArgumentException the server would refuse it. */
        public fun build(): SttOptions = SttOptions(this)
    }

    internal companion object {
        /** Bytes of a sample. */
        val WIDTHS: Map<String, Int> = mapOf(
            "pcm_s8" to 1, "pcm_u8" to 1, "pcm_s16le" to 2, "pcm_s16be" to 2, "pcm_s24le" to 3, "pcm_s24be" to 3,
            "pcm_s32le" to 4, "pcm_s32be" to 4, "pcm_f32le" to 4, "pcm_f32be" to 4, "pcm_f64le" to 8, "pcm_f64be" to 8,
            "mulaw" to 1, "alaw" to 1,
        )
        val CODED: Set<String> =
            setOf("g722", "amr_nb", "amr_wb", "opus", "ogg", "webm", "flac", "mp3", "aac", "mp4", "wav")
    }
}

/** [SttOptions] as a block. */
public inline fun sttOptions(block: SttOptions.Builder.() -> Unit): SttOptions = SttOptions.Builder().apply(block).build()
