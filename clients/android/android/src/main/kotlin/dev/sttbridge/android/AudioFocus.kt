package dev.sttbridge.android

import android.content.Context
import android.media.AudioAttributes
import android.media.AudioFocusRequest
import android.media.AudioManager
import android.os.Handler
import android.os.Looper

/**
 * Asks others to be quiet while the microphone listens. [interrupted] is told true when somebody takes the focus for a
 * while (a call, an assistant), false when it is back.
 */
internal class AudioFocus(context: Context, private val interrupted: (Boolean) -> Unit) {
    private val manager = context.service<AudioManager>()
    private val request = AudioFocusRequest.Builder(AudioManager.AUDIOFOCUS_GAIN_TRANSIENT)
        .setAudioAttributes(
            AudioAttributes.Builder()
                .setUsage(AudioAttributes.USAGE_ASSISTANT)
                .setContentType(AudioAttributes.CONTENT_TYPE_SPEECH)
                .build(),
        )
        .setOnAudioFocusChangeListener(::changed, Handler(Looper.getMainLooper()))
        .build()

    /** A refusal is no reason not to listen: during a call the system gives silence, and says so. */
    fun request() {
        manager.requestAudioFocus(request)
    }

    fun abandon() {
        manager.abandonAudioFocusRequest(request)
    }

    private fun changed(change: Int) {
        when (change) {
            AudioManager.AUDIOFOCUS_LOSS_TRANSIENT -> interrupted(true)
            // For good: somebody plays music now, and nobody says when that ends. Listening goes on.
            AudioManager.AUDIOFOCUS_LOSS, AudioManager.AUDIOFOCUS_GAIN -> interrupted(false)
        }
    }
}
