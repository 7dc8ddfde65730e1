package dev.sttbridge.client

/**
 * What a session tells. Times are seconds from the session's first sample, on one clock whatever broke in between.
 *
 * The last event is [Ended]; every session has exactly one.
 */
public sealed interface SttEvent {
    /** The session is open. Comes again, with [resumed], each time a connection has taken it up. */
    public class Ready internal constructor(
        /** Names the session; who knows it may receive it. */
        public val sessionId: String,
        /** The engine that listens. */
        public val backend: String,
        /** BCP 47 tag in use. */
        public val language: String,
        /** Whether partials will come. */
        public val partials: Boolean,
        /** Whether the session was there before. */
        public val resumed: Boolean,
    ) : SttEvent

    /** The hypothesis for speech that goes on. It replaces the partial before it; the next [Final] replaces it. */
    public class Partial internal constructor(
        public val text: String,
        public val start: Double,
        public val end: Double,
        /** How likely the text is to stay, 0 to 1; null if the engine does not say. */
        public val stability: Double?,
        /** How many code points at the beginning are certain to stay; null if unknown. */
        public val committed: Int?,
        /** Empty where the engine tells no words. */
        public val words: List<Word>,
        /** Of audio whose channels are recognized apart; else null. */
        public val channel: Int?,
    ) : SttEvent

    /** The text of record for a stretch of time: never taken back, never told twice, none left out. */
    public class Final internal constructor(
        /** The number of this message in the session. */
        public val seq: Long,
        public val text: String,
        public val start: Double,
        public val end: Double,
        public val words: List<Word>,
        /** How likely the text is to be right, 0 to 1; null if the engine does not say. */
        public val confidence: Double?,
        /** BCP 47 tag that the engine recognized; null if it does not say. */
        public val language: String?,
        public val channel: Int?,
    ) : SttEvent

    /** Somebody began to speak. */
    public class SpeechStarted internal constructor(
        public val start: Double,
        public val channel: Int?,
    ) : SttEvent

    /** The speech that [SpeechStarted] told of is over. */
    public class SpeechEnded internal constructor(
        public val end: Double,
        public val channel: Int?,
    ) : SttEvent

    /** For the developer of the app; the session goes on. [code] is one of docs/protocol.md, "Warnings". */
    public class Warning internal constructor(
        public val code: String,
        public val message: String,
    ) : SttEvent

    /** A refusal or a failure; [code] is one of docs/protocol.md, "Errors". If it is [fatal], [Ended] follows. */
    public class Error internal constructor(
        public val code: String,
        public val message: String,
        public val fatal: Boolean,
        public val retryable: Boolean,
    ) : SttEvent

    /** How far the server has come, in seconds of audio: what it [received], and before what all is [finalized]. */
    public class Progress internal constructor(
        public val received: Double,
        public val finalized: Double,
    ) : SttEvent

    /** The connection is lost and another one is tried for. The last [Partial] is no longer valid. */
    public class Interrupted internal constructor(
        /** A sentence for the developer. */
        public val reason: String,
    ) : SttEvent

    /** The session goes on over a new connection. Nothing that lasts was missed. */
    public class Resumed internal constructor(
        /** Since the connection was lost. */
        public val millis: Long,
        /** Connections that were tried. */
        public val attempts: Int,
        /** Audio that was sent before and is sent again. */
        public val againBytes: Long,
    ) : SttEvent

    /**
     * Audio was refused by [SttClient.offer] because more waits than may: it is not in the transcript. Told at the
     * first refusal, and once more when there is room again, with the [bytes] that are missing by then.
     */
    public class Overflow internal constructor(
        public val bytes: Long,
        public val over: Boolean,
    ) : SttEvent

    /** The session is over: with [error] null it was stopped, and every word was told. */
    public class Ended internal constructor(
        public val error: SttException?,
        /** Seconds of audio that the server received; null if it did not say. */
        public val duration: Double?,
    ) : SttEvent
}

/** A word of a result. */
public class Word internal constructor(
    public val text: String,
    public val start: Double,
    public val end: Double,
    /** How likely it is to be right, 0 to 1; null if the engine does not say. */
    public val confidence: Double?,
    /** A label for the voice; null if unknown. */
    public val speaker: String?,
)

/** Where a session stands. */
public enum class SttState {
    /** Not begun. */
    IDLE,

    /** The first connection is being tried; audio is kept. */
    CONNECTING,

    /** The server listens. */
    LIVE,

    /** The connection broke; audio is kept until the session is resumed. */
    RECONNECTING,

    /** No more audio; the last finals are awaited. */
    STOPPING,

    /** Over. */
    ENDED,
}
