package dev.sttbridge.client

import java.io.Closeable
import java.util.concurrent.Executor
import kotlin.random.Random
import kotlin.time.TimeSource
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.launch
import kotlinx.coroutines.runInterruptible
import kotlinx.coroutines.sync.Mutex
import kotlinx.coroutines.sync.withLock
import okhttp3.CertificatePinner
import okhttp3.HttpUrl
import okhttp3.HttpUrl.Companion.toHttpUrl
import okhttp3.OkHttpClient

/**
 * One session with the bridge: audio in, [events] out, whatever the connection does.
 *
 * [start] begins it and returns at once; audio may follow at once, too: what is said before the server is ready waits
 * here and is not lost. When the connection breaks the session is resumed over another one, and no word is lost or
 * told twice. Collect [events] from the beginning: nobody else takes them away. All methods may be called from any
 * thread. A client is used once; it is done after [SttEvent.Ended], or after [close].
 */
public class SttClient internal constructor(
    transport: Transport,
    options: SttOptions,
    reconnect: Reconnect,
    tokens: TokenProvider?,
    private val dispatcher: CoroutineDispatcher,
    clock: TimeSource,
    random: Random,
) : Closeable {
    private val life = Life(options, reconnect, transport, tokens, clock, random)
    private val scope = CoroutineScope(SupervisorJob() + dispatcher)
    private val end = CompletableDeferred<SttEvent.Ended>()
    private val sending = Mutex()
    private var work: Job? = null
    @Volatile private var lost = 0L // bytes of the overflow that goes on

    /**
     * What the session tells; ends after [SttEvent.Ended]. For one collector at a time: each event comes once, and what
     * nobody has collected yet waits. Up to 1,024 events that last do, then the client reads no more.
     */
    public val events: Flow<SttEvent> get() = life.mailbox.events

    /** Where the session stands. */
    public val state: StateFlow<SttState> get() = life.state

    /** Begin. A second call does nothing. */
    public fun start() {
        synchronized(this) {
            if (work == null) work = begin(CoroutineStart.DEFAULT)
        }
    }

    private fun begin(how: CoroutineStart): Job {
        val job = scope.launch(start = how) { run() }
        // Also when it was closed before it ran.
        job.invokeOnCompletion { over(SttLostException("the client was closed"), null) }
        return job
    }

    /**
     * [start], and wait until the server listens. May be cancelled; the session goes on then.
     *
     * @throws SttException there is no session.
     */
    public suspend fun connect() {
        start()
        val reached = state.first { it == SttState.LIVE || it == SttState.STOPPING || it == SttState.ENDED }
        if (reached == SttState.ENDED) end.await().error?.let { throw it }
    }

    /**
     * Send audio in the format of the options (of `opus`, one packet). Taken at once while there is room, also while
     * there is no connection; then it waits for acks to make room. When cancelled, a part may have been taken.
     *
     * @throws IllegalStateException after [stop], or when the session is over.
     */
    public suspend fun send(audio: ByteArray, offset: Int = 0, count: Int = audio.size - offset) {
        sending.withLock {
            var at = offset
            while (at < offset + count) {
                val size = minOf(offset + count - at, life.sender.most)
                while (!life.sender.append(audio, at, size)) {
                    check(life.sender.open) { "no audio may follow stop, or the session's end" }
                    life.room.wait()
                }
                life.wanted.wake()
                at += size
            }
        }
    }

    /**
     * The same without waiting, for microphones: false where there is no room ([SttEvent.Overflow] tells), after [stop],
     * or when the session is over; the audio is not sent then. Copies what it takes.
     */
    @JvmOverloads
    public fun offer(audio: ByteArray, offset: Int = 0, count: Int = audio.size - offset): Boolean {
        val taken = life.sender.append(audio, offset, count)
        if (taken) life.wanted.wake()
        if (!taken && !life.sender.open) return false
        if (!taken || lost > 0) overflow(taken, count)
        return taken
    }

    @Synchronized
    private fun overflow(taken: Boolean, count: Int) {
        if (!taken) {
            lost += count
            if (lost == count.toLong()) life.mailbox.push(SttEvent.Overflow(lost, over = false))
        } else if (lost > 0) {
            life.mailbox.push(SttEvent.Overflow(lost, over = true))
            lost = 0
        }
    }

    /** Bytes of audio that were taken. */
    public val taken: Long get() = life.sender.taken

    /** Ask for finals of everything so far; the session goes on. */
    public fun flush() {
        life.sender.flush()
        life.wanted.wake()
    }

    /** No more audio. The finals that are left follow, then [SttEvent.Ended]. */
    public fun stop() {
        life.sender.stop()
        life.state.compareAndSet(SttState.LIVE, SttState.STOPPING)
        life.wanted.wake()
    }

    /** [stop], and wait for the end; somebody has to collect [events] meanwhile. */
    public suspend fun finish(): SttEvent.Ended {
        start()
        stop()
        return end.await()
    }

    /** [stop] without waiting for the finals that are left: they are lost to this client. Does not wait. */
    override fun close() {
        synchronized(this) { work ?: begin(CoroutineStart.LAZY).also { work = it } }.cancel()
    }

    /**
     * Tell that the device has another network now: what is open is taken for broken, and the session is resumed at
     * once instead of after a silence or a wait.
     */
    public fun networkChanged(): Unit = life.networkChanged()

    /** Tell that there is no network: attempts are rare until [networkChanged]. */
    public fun networkLost(): Unit = life.networkLost()

    /** [events] for Java: each is told to [listener] on [executor], in order. Closing it ends that, not the session. */
    public fun listen(executor: Executor, listener: SttListener): Closeable {
        val job = CoroutineScope(executor.asCoroutineDispatcher()).launch { events.collect(listener::on) }
        return Closeable { job.cancel() }
    }

    private suspend fun run() {
        try {
            val closed = life.run()
            over(if (closed.code == "stopped") null else life.ended(closed), closed.duration)
        } catch (failure: SttException) {
            over(failure, null)
        } catch (cancelled: CancellationException) {
            throw cancelled
        } catch (failure: Exception) { // a token provider's, say: it is the caller's to see, not a thread's end
            over(SttConnectException("the session failed: $failure", failure), null)
        }
    }

    private fun over(error: SttException?, duration: Double?) {
        life.sender.end()
        life.room.wake()
        val ended = SttEvent.Ended(error, duration)
        if (!end.complete(ended)) return
        life.state.value = SttState.ENDED
        life.mailbox.push(ended)
    }

    /** Builds a client for the bridge at [url]: `wss://host`, or `ws://`, `https://`, `http://`, with a path or without. */
    public class Builder(url: String) {
        private val address: HttpUrl = address(url)
        private var options = SttOptions.Builder().build()
        private var reconnect = Reconnect.Builder().build()
        private var tokens: TokenProvider? = null
        private var http: OkHttpClient? = null
        private var pins: List<String> = emptyList()
        private var dispatcher: CoroutineDispatcher = Dispatchers.Default
        private var clock: TimeSource = TimeSource.Monotonic
        private var random: Random = Random.Default
        private val headers = mutableMapOf<String, String>()

        public fun options(value: SttOptions): Builder = apply { options = value }

        public fun reconnect(value: Reconnect): Builder = apply { reconnect = value }

        /** Where bearer tokens come from; see [TokenProvider]. */
        public fun tokens(value: TokenProvider): Builder = apply { tokens = value }

        /** The same for Java, asked on a thread that may block. */
        public fun blockingTokens(value: BlockingTokenProvider): Builder = apply {
            tokens = TokenProvider { refused -> runInterruptible(Dispatchers.IO) { value.token(refused) } }
        }

        /** A key that does not change. An app on other people's devices should have none: see docs/access.md, "Tokens". */
        public fun key(value: String): Builder = apply { tokens = TokenProvider { value } }

        /** A header of each connection's request. */
        public fun header(name: String, value: String): Builder = apply { headers[name] = value }

        /** Whose threads, trust store, proxy and DNS are used. */
        public fun httpClient(value: OkHttpClient): Builder = apply { http = value }

        /** Certificates that alone are accepted of the host: `sha256/…`, of the public key; give a spare one, too. */
        public fun pins(vararg value: String): Builder = apply { pins = value.toList() }

        /** Where the session's work is done; it never blocks. */
        public fun dispatcher(value: CoroutineDispatcher): Builder = apply { dispatcher = value }

        /** Of all durations; together with [dispatcher] for tests in virtual time. */
        public fun clock(value: TimeSource): Builder = apply { clock = value }

        /** Of the waits between attempts. */
        public fun random(value: Random): Builder = apply { random = value }

        public fun build(): SttClient {
            var client = http ?: shared
            if (pins.isNotEmpty()) {
                val pinner = CertificatePinner.Builder().add(address.host, *pins.toTypedArray()).build()
                client = client.newBuilder().certificatePinner(pinner).build()
            }
            val transport = OkHttpTransport(client, address, headers, reconnect.silenceMillis)
            return SttClient(transport, options, reconnect, tokens, dispatcher, clock, random)
        }

        private companion object {
            /** One set of threads for all clients that bring none. */
            val shared: OkHttpClient by lazy { OkHttpClient() }

            /** @throws IllegalArgumentException it is no address. */
            fun address(url: String): HttpUrl {
                val http = url.replaceFirst(Regex("^ws(s?)://", RegexOption.IGNORE_CASE), "http$1://").toHttpUrl()
                return if (http.encodedPath == "/") http.newBuilder().addPathSegments("v1/stream").build() else http
            }
        }
    }
}
