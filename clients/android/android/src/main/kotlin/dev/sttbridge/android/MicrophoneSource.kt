package dev.sttbridge.android

import android.content.Context
import android.media.AudioDeviceInfo
import android.media.AudioFormat
import android.media.AudioManager
import android.media.AudioRecord
import android.media.MediaRecorder
import android.os.Process
import dev.sttbridge.client.Level
import java.io.Closeable
import java.util.concurrent.TimeUnit
import java.util.concurrent.locks.ReentrantLock
import kotlin.concurrent.withLock
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow

/** Takes audio, on the microphone's own thread: quickly, and without keeping [buffer], which is used again. */
public fun interface AudioSink {
    public fun onAudio(buffer: ByteArray, count: Int)
}

/** What the microphone does. */
public enum class MicrophoneState {
    /** Not begun, or closed. */
    STOPPED,

    /** Audio comes. */
    RECORDING,

    /** Audio comes, but the system has put silence in its place: a call or another app has the microphone. */
    SILENCED,

    /** No audio comes until `resume`: the app, or whoever took the audio focus for a while (a call), wants it so. */
    PAUSED,

    /** The microphone broke off, and is being opened again; audio of this time is missing. */
    REOPENING,

    /** It could not be opened, or not again; see [MicrophoneSource.failure]. */
    FAILED,
}

/**
 * The microphone as PCM16 mono, in frames of 100 ms, on a thread of its own with the priority of audio; a frame
 * allocates nothing. Needs the permission RECORD_AUDIO, and in the background a foreground service of the type
 * microphone ([DictationService] is one). Every method may be called from any thread.
 */
public class MicrophoneSource private constructor(builder: Builder, private val sink: AudioSink) : Closeable {
    private val context = builder.context
    private val rate = builder.sampleRate
    private val source = builder.source
    private val device = builder.device
    private val frameBytes = rate / 10 * BYTES
    private val lock = ReentrantLock()
    private val changed = lock.newCondition()
    private val focus = if (builder.focus) AudioFocus(context, ::interrupted) else null
    private val silencing = Silencing(context) { update() }
    private val states = MutableStateFlow(MicrophoneState.STOPPED)

    // Guarded by `lock`.
    private var thread: Thread? = null
    private var record: AudioRecord? = null
    private var wanted = false
    private var paused = false
    private var interrupted = false

    public val state: StateFlow<MicrophoneState> get() = states

    /** Why the state is [MicrophoneState.FAILED]; a sentence for the developer. */
    @Volatile public var failure: String? = null
        private set

    /** How loud the last frame was, in dB of full scale: -96 to 0. Read it as often as a meter is drawn. */
    @Volatile public var level: Float = Level.SILENCE
        private set

    /**
     * Begin; does nothing where it has begun. Once [close] was called it is over.
     *
     * @throws SecurityException without the permission RECORD_AUDIO.
     */
    public fun start() {
        if (!MicrophonePermission.granted(context)) {
            throw SecurityException("the permission RECORD_AUDIO is missing: see MicrophonePermission")
        }
        lock.withLock {
            if (thread != null) return
            wanted = true
            thread = Thread(::run, "stt-microphone").apply { isDaemon = true }.also { it.start() }
        }
        focus?.request()
        silencing.begin()
    }

    /** No audio until [resume]; the microphone is let go, and its indicator goes out. */
    public fun pause(): Unit = lock.withLock {
        paused = true
        settle()
    }

    /** Audio again. */
    public fun resume(): Unit = lock.withLock {
        paused = false
        settle()
    }

    /** The end. Waits a moment for the last frame to be given to the sink, shorter than the others if need be. */
    override fun close() {
        val ending = lock.withLock {
            wanted = false
            settle()
            thread
        }
        focus?.abandon()
        silencing.end()
        if (ending != null && ending !== Thread.currentThread()) ending.join(CLOSE_MILLIS)
    }

    private fun interrupted(by: Boolean): Unit = lock.withLock {
        interrupted = by
        settle()
    }

    /** Wake the thread, wherever it waits. */
    private fun settle() {
        changed.signalAll()
        if (!recording) record?.let { if (it.recordingState == AudioRecord.RECORDSTATE_RECORDING) it.stop() }
    }

    private val recording: Boolean get() = wanted && !paused && !interrupted

    // The thread

    private fun run() {
        Process.setThreadPriority(Process.THREAD_PRIORITY_URGENT_AUDIO)
        val frame = ByteArray(frameBytes)
        var failures = 0
        while (awaitTurn(failures)) {
            val before = heard
            val why = capture(frame)
            if (heard > before) failures = 0
            if (why == null) continue
            failures += 1
            if (failures >= MAX_FAILURES) {
                failure = why
                break
            }
        }
        lock.withLock {
            wanted = false
            thread = null
            update()
        }
    }

    private var heard = 0L // frames

    /** Waits while no audio is wanted, and a little after a failure. False: it is over. */
    private fun awaitTurn(failures: Int): Boolean = lock.withLock {
        update()
        if (failures > 0) {
            var left = TimeUnit.MILLISECONDS.toNanos(minOf(FIRST_MILLIS shl (failures - 1), MOST_MILLIS))
            while (wanted && left > 0) left = changed.awaitNanos(left)
        }
        while (wanted && !recording) changed.await() // until somebody says otherwise: `settle` wakes it
        wanted
    }

    /** Record until no audio is wanted; null, or what broke it off. */
    private fun capture(frame: ByteArray): String? {
        val opened = try {
            open()
        } catch (refused: SecurityException) {
            return "the microphone may not be used: ${refused.message}"
        } catch (refused: UnsupportedOperationException) {
            return "the microphone cannot do this: ${refused.message}"
        } catch (refused: IllegalStateException) {
            return "the microphone cannot be had: ${refused.message}"
        }
        try {
            lock.withLock {
                record = opened
                if (!recording) return null
                silencing.session = opened.audioSessionId
                update()
            }
            return read(opened, frame)
        } finally {
            lock.withLock {
                record = null
                silencing.session = Silencing.NONE
            }
            opened.release()
        }
    }

    private fun open(): AudioRecord {
        val least = AudioRecord.getMinBufferSize(rate, AudioFormat.CHANNEL_IN_MONO, AudioFormat.ENCODING_PCM_16BIT)
        check(least > 0) { "no microphone records $rate Hz (${name(least)})" }
        val format = AudioFormat.Builder()
            .setEncoding(AudioFormat.ENCODING_PCM_16BIT)
            .setSampleRate(rate)
            .setChannelMask(AudioFormat.CHANNEL_IN_MONO)
            .build()
        val opened = AudioRecord.Builder()
            .setAudioSource(source)
            .setAudioFormat(format)
            .setBufferSizeInBytes(maxOf(least, rate * BYTES)) // a second: a thread that is held up loses nothing
            .build()
        try {
            device?.let { opened.setPreferredDevice(it) }
            opened.startRecording()
            check(opened.recordingState == AudioRecord.RECORDSTATE_RECORDING) { "another app has it" }
            return opened
        } catch (failure: IllegalStateException) {
            opened.release()
            throw failure
        }
    }

    private fun read(opened: AudioRecord, frame: ByteArray): String? {
        var filled = 0
        var empty = 0
        var why: String? = null
        while (lock.withLock { recording }) {
            val count = opened.read(frame, filled, frame.size - filled, AudioRecord.READ_BLOCKING)
            if (count < 0) {
                if (lock.withLock { recording }) why = "the microphone broke off (${name(count)})"
                break
            }
            empty = if (count == 0) empty + 1 else 0
            if (empty > MAX_EMPTY) {
                why = "the microphone gives nothing"
                break
            }
            filled += count
            if (filled == frame.size) {
                deliver(frame, filled)
                filled = 0
            }
        }
        filled -= filled % BYTES
        if (filled > 0) deliver(frame, filled) // the rest, before a pause or the end
        level = Level.SILENCE
        return why
    }

    private fun deliver(frame: ByteArray, count: Int) {
        heard += 1
        level = Level.ofPcm16(frame, 0, count)
        sink.onAudio(frame, count)
    }

    private fun update(): Unit = lock.withLock {
        states.value = when {
            failure != null -> MicrophoneState.FAILED
            !wanted -> MicrophoneState.STOPPED
            !recording -> MicrophoneState.PAUSED
            record == null -> MicrophoneState.REOPENING
            silencing.silenced -> MicrophoneState.SILENCED
            else -> MicrophoneState.RECORDING
        }
    }

    public class Builder(context: Context) {
        internal val context: Context = context.applicationContext
        internal var sampleRate = 16_000
        internal var source = MediaRecorder.AudioSource.VOICE_RECOGNITION
        internal var device: AudioDeviceInfo? = null
        internal var focus = true

        /** Hz; a multiple of 10. */
        public fun sampleRate(hertz: Int): Builder = apply { sampleRate = hertz }

        /**
         * One of `MediaRecorder.AudioSource`. VOICE_RECOGNITION is the signal as recognizers want it;
         * VOICE_COMMUNICATION cancels the echo of what the device itself plays.
         */
        public fun source(value: Int): Builder = apply { source = value }

        /** Which microphone is preferred; null: the system's choice. */
        public fun device(value: AudioDeviceInfo?): Builder = apply { device = value }

        /** Whether others are asked to be quiet meanwhile, and a call pauses the microphone. */
        public fun focus(value: Boolean): Builder = apply { focus = value }

        public fun build(sink: AudioSink): MicrophoneSource = MicrophoneSource(this, sink)
    }

    private companion object {
        /** Of a sample. */
        const val BYTES = 2

        /** Openings and breaks one after another, without a frame in between. */
        const val MAX_FAILURES = 8
        const val FIRST_MILLIS = 50L
        const val MOST_MILLIS = 2_000L
        const val CLOSE_MILLIS = 1_000L

        /** Reads that bring nothing, one after another; a blocking read brings something or waits. */
        const val MAX_EMPTY = 50

        fun name(error: Int): String = when (error) {
            AudioRecord.ERROR_DEAD_OBJECT -> "ERROR_DEAD_OBJECT"
            AudioRecord.ERROR_INVALID_OPERATION -> "ERROR_INVALID_OPERATION"
            AudioRecord.ERROR_BAD_VALUE -> "ERROR_BAD_VALUE"
            AudioManager.ERROR -> "ERROR"
            else -> "$error"
        }
    }
}
