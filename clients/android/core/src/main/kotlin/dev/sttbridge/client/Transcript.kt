package dev.sttbridge.client

/**
 * What a session's events come to: text for a screen. Not for several threads. Of finals the last [mostFinals] are kept,
 * so that a session of a day does not fill the memory.
 */
public class Transcript @JvmOverloads constructor(private val mostFinals: Int = 5_000) {
    private val kept = ArrayDeque<SttEvent.Final>()

    /** What will not change any more, oldest first. */
    public val finals: List<SttEvent.Final> get() = kept.toList()

    /** What is being said and may change; null if nothing is. */
    public var partial: SttEvent.Partial? = null
        private set

    /** The finals' text. */
    public val text: String get() = kept.joinToString(" ") { it.text }

    /** Take an event. Whether the text is another one now. */
    public fun take(event: SttEvent): Boolean {
        when (event) {
            is SttEvent.Partial -> partial = event
            is SttEvent.Final -> {
                kept.addLast(event)
                if (kept.size > mostFinals) kept.removeFirst()
                partial = null
            }
            // What was not final is heard again; after the end nothing follows.
            is SttEvent.Interrupted, is SttEvent.Ended -> if (partial == null) return false else partial = null
            else -> return false
        }
        return true
    }
}
