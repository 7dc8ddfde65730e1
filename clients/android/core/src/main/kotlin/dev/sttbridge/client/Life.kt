package dev.sttbridge.client

import kotlin.random.Random
import kotlin.time.TimeMark
import kotlin.time.TimeSource
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.ExperimentalCoroutinesApi
import kotlinx.coroutines.async
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.launch
import kotlinx.coroutines.selects.onTimeout
import kotlinx.coroutines.selects.select
import kotlinx.coroutines.withTimeoutOrNull

/**
 * Connection after connection to one session, so that the caller sees a single unbroken run of events: what
 * docs/client.md asks of a sender. [run] is one coroutine; everything else may be called from any thread.
 */
internal class Life(
    private val options: SttOptions,
    private val policy: Reconnect,
    transport: Transport,
    tokens: TokenProvider?,
    private val clock: TimeSource,
    random: Random,
) {
    val sender = Sender(options, policy)
    val mailbox = Mailbox()
    val state = MutableStateFlow(SttState.IDLE)

    /** There may be something to say. */
    val wanted = Signal()

    /** There may be room for audio. */
    val room = Signal()

    private val door = Door(transport, tokens, policy.tokenMillis)
    private val beginning = Wire.start(options)
    private val ack = Signal()
    private val hurry = Signal()
    private val silence = Silence(clock)
    private val backoff = Backoff(policy.baseMillis, policy.mostMillis, random)

    @Volatile private var connection: Connection? = null
    @Volatile private var acksCome = true
    @Volatile private var offline = false
    private lateinit var ready: Message.Ready
    private var begun = false
    private var last = 0L // number of the last lasting message
    private var refusal: SttEvent.Error? = null // the fatal one
    private var faults = 0
    private var since: TimeMark? = null // when the outage began that has seen no progress since
    private var doubtful: TimeMark? = null // an attempt broke off without an answer, which a server may see late

    /** The whole session; returns its last message. */
    suspend fun run(): Message.Closed {
        try {
            var current = first()
            while (true) {
                val began = clock.markNow()
                val loss = when (val end = converse(current)) {
                    is Over -> return end.closed
                    is Lost -> end.why
                }
                current.abort("it was given up")
                connection = null
                if (began.elapsedNow().inWholeMilliseconds >= STEADY_MILLIS) progress()
                current = comeBack(loss)
            }
        } catch (cancelled: CancellationException) {
            // Without `stop` the server would hold the session for somebody who does not come back.
            connection?.say(Wire.STOP)
            throw cancelled
        } finally {
            connection?.close()
        }
    }

    /** The network is another one: what was open is broken, though nothing says so yet. */
    fun networkChanged() {
        offline = false
        hurry.wake()
        connection?.abort("the network changed")
    }

    /** There is no network: attempts are rare until [networkChanged]. */
    fun networkLost() {
        offline = true
    }

    // Connections

    private suspend fun first(): Connection {
        state.value = SttState.CONNECTING
        val began = clock.markNow()
        while (true) {
            when (val outcome = attempt(policy.openMillis)) {
                is Opened -> {
                    backoff.reset()
                    return welcomed(outcome.connection)
                }
                is Failed -> {
                    val left = policy.firstMillis - began.elapsedNow().inWholeMilliseconds
                    if (!outcome.why.retryable || left <= 0) throw outcome.why
                    pause(backoff.next(), outcome.why, left)
                }
            }
        }
    }

    private suspend fun comeBack(loss: SttLostException): Connection {
        val hold = ready.resumeMillis
        if (hold == null || ready.resumeToken == null) {
            throw refusal?.let { SttServerException(it.code, it.message, it.retryable) } ?: loss
        }
        if (loss is ProtocolFault && ++faults >= MAX_FAULTS) throw loss
        val began = clock.markNow()
        val limit = policy.giveUpMillis ?: hold
        val outage = since ?: began.also { since = it }
        if (outage.elapsedNow().inWholeMilliseconds >= FRUITLESS * limit && outage !== began) {
            throw SttLostException("${loss.message}; resumed for ${FRUITLESS * limit} ms without getting any further")
        }
        if (!sender.stopped) state.value = SttState.RECONNECTING
        mailbox.put(SttEvent.Interrupted(loss.message ?: "the connection broke off"))
        var failure: SttException? = null
        var attempts = 0
        while (true) {
            val left = limit - began.elapsedNow().inWholeMilliseconds
            if (failure != null && left <= 0) {
                throw SttLostException("${loss.message}; it could not be resumed within $limit ms: ${failure.message}")
            }
            pause(backoff.next(), failure, left)
            attempts += 1
            val rest = limit - began.elapsedNow().inWholeMilliseconds
            when (val outcome = attempt(rest.coerceIn(LEAST_MILLIS, maxOf(policy.openMillis, LEAST_MILLIS)))) {
                is Opened -> {
                    val millis = began.elapsedNow().inWholeMilliseconds
                    return welcomed(outcome.connection, SttEvent.Resumed(millis, attempts, outcome.againBytes))
                }
                is Failed -> {
                    failure = outcome.why
                    // A session can be taken only for a moment: while it ends, or moves from one server to another.
                    val forGood = failure is SttServerException && !failure.retryable && failure.code != "session_taken"
                    if (forGood) throw failure
                    if (failure is SttConnectException) doubtful = clock.markNow()
                }
            }
        }
    }

    private suspend fun welcomed(connection: Connection, resumed: SttEvent.Resumed? = null): Connection {
        state.value = SttState.LIVE
        if (sender.stopped) state.value = SttState.STOPPING // in this order: `stop` may come in between
        resumed?.let { mailbox.put(it) }
        val told = ready
        mailbox.put(SttEvent.Ready(told.sessionId, told.backend, told.language, told.partials, told.resumed))
        return connection
    }

    /** Wait before the next attempt, at most [left]; another network ends it. */
    private suspend fun pause(millis: Long, failure: SttException?, left: Long) {
        val asked = (failure as? SttServerException)?.afterMillis ?: 0
        val wait = maxOf(if (offline) OFFLINE_MILLIS else millis, asked)
        withTimeoutOrNull(wait.coerceIn(0, left.coerceAtLeast(0))) { hurry.wait() }
    }

    private sealed interface Outcome

    private class Opened(val connection: Connection, val againBytes: Long) : Outcome

    private class Failed(val why: SttException) : Outcome

    /** One connection, up to the server's welcome. */
    private suspend fun attempt(millis: Long): Outcome = coroutineScope {
        hurry.clear()
        val work = async {
            try {
                open(millis).also { connection = it.connection }
            } catch (failure: SttException) {
                Failed(failure)
            }
        }
        select {
            work.onAwait { it }
            hurry.onWake {
                work.cancelAndJoin() // what it opened at the same moment is aborted by who woke
                Failed(SttConnectException("the network changed"))
            }
        }
    }

    private suspend fun open(millis: Long): Opened {
        val start = if (begun) Wire.resume(ready.sessionId, ready.resumeToken.orEmpty(), last + 1) else beginning
        val (opened, first) = door.open(start, millis)
        return opened.orAbort { Opened(opened, welcome(first)) }
    }

    /** Take the first message of a connection. Returns the bytes that are to be sent again. */
    private fun welcome(first: Message): Long {
        val event = (first as? Message.Told)?.event
        if (event is SttEvent.Error) throw SttServerException(event.code, event.message, event.retryable)
        if (first is Message.Closed) throw ended(first)
        if (first !is Message.Ready) throw SttConnectException("the server began with something else than `ready`")
        if (!begun) {
            begun = true
            ready = first
            sender.begin(first.messageBytes, keep = first.resumeToken != null)
            return 0
        }
        if (!first.resumed || first.sessionId != ready.sessionId) {
            throw SttConnectException("the server opened another session instead of resuming this one")
        }
        if (first.resumeToken == null) return 0 // it has ended meanwhile: only messages are left, and audio is ignored
        val again = try {
            sender.resume(first.receivedBytes, first.finalized)
        } catch (fault: ProtocolFault) {
            throw SttConnectException(fault.message.orEmpty(), fault)
        }
        ready = first
        acksCome = true
        room.wake()
        return again
    }

    // A conversation

    private sealed interface End

    private class Over(val closed: Message.Closed) : End

    private class Lost(val why: SttLostException) : End

    private suspend fun converse(connection: Connection): End = coroutineScope {
        silence.heard()
        val writer = launch { write(connection) }
        try {
            read(connection)
        } catch (loss: SttLostException) {
            Lost(loss)
        } finally {
            writer.cancel()
        }
    }

    /** Audio, flushes and `stop`, each at its place; ends after `stop`, or with the connection. */
    private suspend fun write(connection: Connection) {
        val idle = if (options.keepAlive) ready.idleMillis / 2 else Long.MAX_VALUE
        while (true) {
            if (connection.queued > QUEUE_BYTES) {
                withTimeoutOrNull(ACK_PATIENCE_MILLIS) { ack.wait() }
                continue
            }
            val said = when (val next = sender.next(free = !acksCome)) {
                is Utterance.Audio -> say(connection, next.bytes).also { room.wake() }
                Utterance.Flush -> connection.say(Wire.FLUSH)
                Utterance.Stop -> {
                    connection.say(Wire.STOP)
                    return
                }
                Utterance.Nothing -> withTimeoutOrNull(idle) { wanted.wait() } != null || connection.say(Wire.FLUSH)
                Utterance.Full -> {
                    if (withTimeoutOrNull(ACK_PATIENCE_MILLIS) { ack.wait() } == null) acksCome = false
                    true
                }
            }
            if (!said) return // who reads learns why
        }
    }

    private fun say(connection: Connection, audio: ByteArray): Boolean {
        silence.said()
        return if (options.framing == Framing.BINARY) connection.say(audio) else connection.say(Wire.audio(audio))
    }

    private suspend fun read(connection: Connection): End {
        var refused: SttEvent.Error? = null // the connection, not the session
        while (true) {
            val message = Wire.decode(next(connection))
            silence.heard()
            if (!isNews(message)) continue
            if (heed(message)) progress()
            when (message) {
                is Message.Told -> {
                    val event = message.event
                    if (event is SttEvent.Error && event.fatal) {
                        if (message.seq == null && ready.resumeToken != null) {
                            refused = event // nothing for the caller unless the session ends with it
                            continue
                        }
                        refusal = event
                    }
                    mailbox.put(event)
                }
                is Message.Closed -> {
                    if (message.seq == null && ready.resumeToken != null && notForGood(message.code)) {
                        return Lost(SttLostException("the server ended the connection (${message.code})"))
                    }
                    refused?.let {
                        refusal = it
                        mailbox.put(it)
                    }
                    return Over(message)
                }
                is Message.Ack -> mailbox.put(
                    SttEvent.Progress(seconds(message.received), seconds(message.finalized)),
                )
                is Message.Ready, Message.Unknown -> Unit
            }
        }
    }

    /** The next message; fails when the server has long owed an answer. */
    @OptIn(ExperimentalCoroutinesApi::class)
    private suspend fun next(connection: Connection): String {
        while (true) {
            val text = select<String?> {
                connection.incoming.onReceive { it }
                onTimeout(policy.silenceMillis) { null }
            }
            if (text != null) return text
            if (sender.stopSaid || silence.answerOwed) {
                throw SttLostException("nothing was heard of the server for ${policy.silenceMillis} ms")
            }
        }
    }

    /** Whether the caller is to see it. */
    private fun isNews(message: Message): Boolean {
        val seq = message.seq ?: return true
        if (ready.resumeToken == null) return true
        if (seq > last + 1) throw ProtocolFault("the server went on with message $seq after $last")
        if (seq <= last) return false
        last = seq
        faults = 0
        return true
    }

    /** Look at a message before the caller gets it. Whether it shows that the session has come further. */
    private fun heed(message: Message): Boolean {
        if (message !is Message.Ack) return message.seq != null
        val further = sender.heed(message.received, message.finalized)
        acksCome = true
        ack.wake()
        room.wake()
        return further
    }

    /** The outage before, if there was one, is over. */
    private fun progress() {
        since = null
        backoff.reset()
    }

    /**
     * Whether a connection that ends with this code may be followed by another one. What took this one's place may be
     * an attempt of our own, which we gave up and a server that hung has seen late.
     */
    private fun notForGood(code: String): Boolean {
        val late = doubtful?.let { it.elapsedNow().inWholeMilliseconds < DOUBTFUL_MILLIS } ?: false
        return (code == "taken_over" && late) || isRetryable(code, unknown = true)
    }

    private fun seconds(frames: Long) = frames.toDouble() / options.sampleRate

    /** Why a session ended that was not stopped. */
    fun ended(closed: Message.Closed): SttServerException = ended(closed, refusal)

    private companion object {
        /** What may wait in OkHttp's queue, which has no end of its own before it fails at 16 MiB. */
        const val QUEUE_BYTES = 1_048_576L

        /** An attempt that broke off may lie so long in a server that hangs. */
        const val DOUBTFUL_MILLIS = 15_000L

        /** A connection that has lived so long ends an outage, even if nobody has said anything. */
        const val STEADY_MILLIS = 10_000L

        /** Connections given up one after another for what came over them, with nothing lasting in between. */
        const val MAX_FAULTS = 3

        /** Times the limit of one outage, for which resumes that come to nothing are gone on with. */
        const val FRUITLESS = 5L

        /** Between attempts without a network, in case that the system is wrong about it. */
        const val OFFLINE_MILLIS = 15_000L

        /** For an attempt at least, however little is left. */
        const val LEAST_MILLIS = 1_000L
    }
}
