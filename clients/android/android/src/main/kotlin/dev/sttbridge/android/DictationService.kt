package dev.sttbridge.android

import android.app.Notification
import android.app.NotificationChannel
import android.app.NotificationManager
import android.app.PendingIntent
import android.app.Service
import android.content.Context
import android.content.Intent
import android.content.pm.ServiceInfo
import android.os.Binder
import android.os.Build
import android.os.Handler
import android.os.IBinder
import android.os.Looper
import dev.sttbridge.client.SttClient
import dev.sttbridge.client.SttEvent
import dev.sttbridge.client.SttListener
import dev.sttbridge.client.SttState
import dev.sttbridge.client.Transcript
import java.io.Closeable
import java.util.concurrent.Executor
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch

/**
 * A session that goes on while its app is in the background: a foreground service of the type microphone, without which
 * Android gives silence there. An app extends it, says in [createClient] to whom it speaks, and declares it:
 *
 *     <service android:name=".MyService" android:exported="false" android:foregroundServiceType="microphone" />
 *
 * [start] it while an activity is visible and the permission is granted, bind to it for the text, [stop] it in the end.
 * Everything in it happens on the main thread. It is not started again by itself: from the background Android 14 lets no
 * service have the microphone.
 */
public abstract class DictationService : Service() {
    /** Who wants to be told of the session; on the main thread. */
    public interface Observer {
        /** Anything of the service's properties is another one now; [event] if that came of one. */
        public fun onChanged(service: DictationService, event: SttEvent?)
    }

    /** What `bindService` gives. */
    public inner class LocalBinder internal constructor() : Binder() {
        public val service: DictationService get() = this@DictationService
    }

    private val main = Handler(Looper.getMainLooper())
    private val observers = mutableSetOf<Observer>()
    private val giveUp = Runnable { client?.close() }
    private val listener = object : SttListener() {
        override fun onEvent(event: SttEvent) = take(event)
    }
    private val scope = CoroutineScope(SupervisorJob() + Executor(main::post).asCoroutineDispatcher())
    private var listening: Closeable? = null
    private var watching: Job? = null
    private var network: NetworkWatch? = null

    /** The session; null before the first. It stays after its end, until the next begins. */
    public var client: SttClient? = null
        private set

    /** Null while nothing is recorded. */
    public var microphone: MicrophoneSource? = null
        private set

    /** What was said in this session. */
    public var transcript: Transcript = Transcript()
        private set

    /** Why nothing is recorded, or the session ended; a sentence for the developer. Null if all is well. */
    public var failure: String? = null
        private set

    /** What the notification and its channel say, in the user's language. */
    protected open val listeningText: CharSequence get() = "Listening"

    /** What the notification's button says. */
    protected open val stopText: CharSequence get() = "Stop"

    /** To whom a new session speaks. */
    protected abstract fun createClient(): SttClient

    /** What listens; [sink] gives its audio to the client. */
    protected open fun createMicrophone(sink: AudioSink): MicrophoneSource = MicrophoneSource.Builder(this).build(sink)

    /** What shows that the app listens; [stop] ends that. Of the channel [CHANNEL]. */
    protected open fun createNotification(stop: PendingIntent): Notification {
        return Notification.Builder(this, CHANNEL)
            .setSmallIcon(android.R.drawable.ic_btn_speak_now)
            .setContentTitle(applicationInfo.loadLabel(packageManager))
            .setContentText(listeningText)
            .setOngoing(true)
            .setCategory(Notification.CATEGORY_SERVICE)
            .addAction(Notification.Action.Builder(null, stopText, stop).build())
            .build()
    }

    public fun observe(observer: Observer) {
        observers += observer
        observer.onChanged(this, null)
    }

    public fun forget(observer: Observer) {
        observers -= observer
    }

    override fun onBind(intent: Intent?): IBinder = LocalBinder()

    override fun onStartCommand(intent: Intent?, flags: Int, startId: Int): Int {
        when (intent?.action) {
            ACTION_START -> begin()
            ACTION_STOP -> finish()
            else -> if (client == null) stopSelf()
        }
        return START_NOT_STICKY
    }

    override fun onDestroy() {
        main.removeCallbacks(giveUp)
        release()
        scope.cancel()
        client?.close()
        listening?.close()
        super.onDestroy()
    }

    private fun begin() {
        if (microphone != null) return
        failure = null
        main.removeCallbacks(giveUp)
        if (!promote()) return
        listening?.close()
        client?.close()
        transcript = Transcript()
        val session = createClient()
        client = session
        listening = session.listen(main::post, listener)
        network = NetworkWatch(this, session)
        session.start()
        val source = createMicrophone { buffer, count -> session.offer(buffer, 0, count) }
        microphone = source
        source.start()
        watching = scope.launch { source.state.collect { heed(source, it) } }
        changed(null)
    }

    private fun heed(source: MicrophoneSource, state: MicrophoneState) {
        if (source !== microphone) return
        if (state == MicrophoneState.FAILED) {
            finish()
            failure = source.failure
        }
        changed(null)
    }

    /** Into the foreground. Whether it may listen. */
    private fun promote(): Boolean {
        val channel = NotificationChannel(CHANNEL, listeningText, NotificationManager.IMPORTANCE_LOW)
        service<NotificationManager>().createNotificationChannel(channel)
        val stop = Intent(this, javaClass).setAction(ACTION_STOP)
        val pending = PendingIntent.getService(this, 0, stop, PendingIntent.FLAG_IMMUTABLE)
        try {
            val notification = createNotification(pending)
            if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.R) {
                startForeground(NOTIFICATION, notification, ServiceInfo.FOREGROUND_SERVICE_TYPE_MICROPHONE)
            } else {
                startForeground(NOTIFICATION, notification)
            }
        } catch (refused: SecurityException) {
            return refuse("the service may not use the microphone: ${refused.message}")
        } catch (refused: IllegalStateException) { // ForegroundServiceStartNotAllowedException, of Android 12
            return refuse("the service may not be started from the background: ${refused.message}")
        }
        return MicrophonePermission.granted(this) || refuse("the permission RECORD_AUDIO is missing")
    }

    private fun refuse(why: String): Boolean {
        failure = why
        leave()
        changed(null)
        return false
    }

    /** The microphone goes silent at once, the last words are waited for. */
    private fun finish() {
        release()
        val session = client
        if (session == null || session.state.value == SttState.ENDED) {
            leave()
            return
        }
        session.stop()
        main.postDelayed(giveUp, STOP_MILLIS)
        changed(null)
    }

    /** Out of the foreground; the service ends once nobody is bound to it. */
    private fun leave() {
        stopForeground(STOP_FOREGROUND_REMOVE)
        stopSelf()
    }

    private fun release() {
        watching?.cancel()
        microphone?.close()
        microphone = null
        network?.close()
        network = null
    }

    private fun take(event: SttEvent) {
        transcript.take(event)
        if (event is SttEvent.Ended) {
            main.removeCallbacks(giveUp)
            release()
            failure = event.error?.message ?: failure
            leave()
        }
        changed(event)
    }

    private fun changed(event: SttEvent?) = observers.toList().forEach { it.onChanged(this, event) }

    public companion object {
        /** The notification channel. */
        public const val CHANNEL: String = "dev.sttbridge.listening"
        public const val ACTION_START: String = "dev.sttbridge.START"
        public const val ACTION_STOP: String = "dev.sttbridge.STOP"
        private const val NOTIFICATION = 0x5774

        /** For the last words; then they are given up. */
        private const val STOP_MILLIS = 30_000L

        /**
         * Begin a session, while an activity is visible.
         *
         * @throws IllegalStateException the app is in the background: Android lets no microphone be used from there.
         */
        @JvmStatic
        public fun start(context: Context, service: Class<out DictationService>) {
            // Not startForegroundService: that ends the whole app where the service may not come to the foreground.
            context.startService(Intent(context, service).setAction(ACTION_START))
        }

        /** End it; the last words are waited for. */
        @JvmStatic
        public fun stop(context: Context, service: Class<out DictationService>) {
            context.startService(Intent(context, service).setAction(ACTION_STOP))
        }
    }
}
