package dev.sttbridge.client

/** What a session tells, for Java: override what you need. See [SttEvent] for what each means. */
public abstract class SttListener {
    /** Every event, before the method that is its own. */
    public open fun onEvent(event: SttEvent) {}

    public open fun onReady(event: SttEvent.Ready) {}

    public open fun onPartial(event: SttEvent.Partial) {}

    public open fun onFinal(event: SttEvent.Final) {}

    public open fun onSpeechStarted(event: SttEvent.SpeechStarted) {}

    public open fun onSpeechEnded(event: SttEvent.SpeechEnded) {}

    public open fun onWarning(event: SttEvent.Warning) {}

    public open fun onError(event: SttEvent.Error) {}

    public open fun onProgress(event: SttEvent.Progress) {}

    public open fun onInterrupted(event: SttEvent.Interrupted) {}

    public open fun onResumed(event: SttEvent.Resumed) {}

    public open fun onOverflow(event: SttEvent.Overflow) {}

    public open fun onEnded(event: SttEvent.Ended) {}

    internal fun on(event: SttEvent) {
        onEvent(event)
        when (event) {
            is SttEvent.Ready -> onReady(event)
            is SttEvent.Partial -> onPartial(event)
            is SttEvent.Final -> onFinal(event)
            is SttEvent.SpeechStarted -> onSpeechStarted(event)
            is SttEvent.SpeechEnded -> onSpeechEnded(event)
            is SttEvent.Warning -> onWarning(event)
            is SttEvent.Error -> onError(event)
            is SttEvent.Progress -> onProgress(event)
            is SttEvent.Interrupted -> onInterrupted(event)
            is SttEvent.Resumed -> onResumed(event)
            is SttEvent.Overflow -> onOverflow(event)
            is SttEvent.Ended -> onEnded(event)
        }
    }
}
