package dev.sttbridge.android

import android.content.Context
import android.media.AudioManager
import android.media.AudioRecordingConfiguration
import android.os.Build
import android.os.Handler
import android.os.Looper

/** Whether the system gives silence instead of what the microphone hears; known from Android 10 on. */
internal class Silencing(context: Context, private val changed: () -> Unit) {
    private val manager = context.service<AudioManager>()

    /** The audio session that counts. */
    @Volatile var session = NONE
        set(value) {
            field = value
            if (value == NONE) silenced = false else look(manager.activeRecordingConfigurations)
        }

    @Volatile var silenced = false
        private set

    private val callback = object : AudioManager.AudioRecordingCallback() {
        override fun onRecordingConfigChanged(configurations: List<AudioRecordingConfiguration>) {
            val before = silenced
            look(configurations)
            if (silenced != before) changed()
        }
    }

    fun begin(): Unit = manager.registerAudioRecordingCallback(callback, Handler(Looper.getMainLooper()))

    fun end(): Unit = manager.unregisterAudioRecordingCallback(callback)

    private fun look(configurations: List<AudioRecordingConfiguration>) {
        val own = configurations.firstOrNull { it.clientAudioSessionId == session }
        silenced = own != null && Build.VERSION.SDK_INT >= Build.VERSION_CODES.Q && own.isClientSilenced
    }

    companion object {
        const val NONE = -1
    }
}
