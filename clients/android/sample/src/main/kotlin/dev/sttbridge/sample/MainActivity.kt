package dev.sttbridge.sample

import android.app.Activity
import android.content.ComponentName
import android.content.Context
import android.content.Intent
import android.content.ServiceConnection
import android.os.Build
import android.os.Bundle
import android.os.IBinder
import android.text.InputType
import android.text.SpannableStringBuilder
import android.text.Spanned
import android.text.style.ForegroundColorSpan
import android.view.View
import android.view.ViewGroup.LayoutParams.MATCH_PARENT
import android.view.ViewGroup.LayoutParams.WRAP_CONTENT
import android.widget.Button
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.ScrollView
import android.widget.TextView
import dev.sttbridge.android.DictationService
import dev.sttbridge.android.MicrophonePermission
import dev.sttbridge.android.MicrophonePermission.Outcome
import dev.sttbridge.android.MicrophoneState
import dev.sttbridge.client.Level
import dev.sttbridge.client.SttEvent
import dev.sttbridge.client.SttState

/** One screen: live text, a level meter, the server's address. Views made by hand, so that there is nothing else to read. */
class MainActivity : Activity(), DictationService.Observer {
    internal lateinit var address: EditText
    internal lateinit var key: EditText
    internal lateinit var button: Button
    internal lateinit var status: TextView
    internal lateinit var text: TextView
    private lateinit var scroll: ScrollView
    private var service: DictationService? = null
    private val level = { service?.microphone?.level ?: Level.SILENCE }

    private val connection = object : ServiceConnection {
        override fun onServiceConnected(name: ComponentName, binder: IBinder) {
            service = (binder as DictationService.LocalBinder).service.also { it.observe(this@MainActivity) }
        }

        override fun onServiceDisconnected(name: ComponentName) {
            service = null
        }
    }

    override fun onCreate(saved: Bundle?) {
        val dayNight = Build.VERSION.SDK_INT >= Build.VERSION_CODES.Q
        setTheme(
            if (dayNight) android.R.style.Theme_DeviceDefault_DayNight else android.R.style.Theme_DeviceDefault_Light,
        )
        super.onCreate(saved)
        setContentView(content())
    }

    override fun onStart() {
        super.onStart()
        bindService(Intent(this, CaptionService::class.java), connection, Context.BIND_AUTO_CREATE)
    }

    override fun onStop() {
        service?.forget(this)
        service = null
        unbindService(connection)
        super.onStop()
    }

    private fun content(): View {
        address = EditText(this).apply {
            setText(CaptionService.address(this@MainActivity))
            hint = "ws://server:8000"
            inputType = InputType.TYPE_CLASS_TEXT or InputType.TYPE_TEXT_VARIATION_URI
        }
        key = EditText(this).apply {
            setText(CaptionService.key)
            hint = "key or token, if the server wants one"
            inputType = InputType.TYPE_CLASS_TEXT or InputType.TYPE_TEXT_VARIATION_PASSWORD
        }
        button = Button(this).apply { setOnClickListener { pressed() } }
        status = TextView(this)
        text = TextView(this).apply {
            textSize = TEXT_SP
            accessibilityLiveRegion = View.ACCESSIBILITY_LIVE_REGION_POLITE
        }
        scroll = ScrollView(this).apply { addView(text) }
        return LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            fitsSystemWindows = true // Android 15 draws behind the bars
            for (view in listOf(address, key, button, LevelView(context, level), status)) {
                addView(view, LinearLayout.LayoutParams(MATCH_PARENT, WRAP_CONTENT))
            }
            addView(scroll, LinearLayout.LayoutParams(MATCH_PARENT, 0, 1f))
        }
    }

    private fun pressed() {
        when {
            service?.microphone != null -> DictationService.stop(this, CaptionService::class.java)
            MicrophonePermission.granted(this) -> begin()
            else -> MicrophonePermission.request(this, MICROPHONE)
        }
    }

    override fun onRequestPermissionsResult(code: Int, permissions: Array<String>, results: IntArray) {
        if (code != MICROPHONE) return
        when (MicrophonePermission.outcome(this, permissions, results)) {
            Outcome.GRANTED -> begin()
            Outcome.DENIED -> status.text = "Without the microphone there is nothing to write down."
            Outcome.DENIED_FOR_GOOD -> startActivity(MicrophonePermission.settings(this))
        }
    }

    private fun begin() {
        CaptionService.key = key.text.toString()
        try {
            CaptionService.setAddress(this, address.text.toString())
        } catch (wrong: IllegalArgumentException) {
            status.text = wrong.message
            return
        }
        DictationService.start(this, CaptionService::class.java)
    }

    override fun onChanged(service: DictationService, event: SttEvent?) {
        button.text = if (service.microphone == null) "Start" else "Stop"
        status.text = service.failure ?: stateOf(service)
        if (event == null || event is SttEvent.Partial || event is SttEvent.Final || event is SttEvent.Interrupted) {
            show(service)
        }
    }

    private fun stateOf(service: DictationService): String {
        val microphone = service.microphone?.state?.value
        return when (service.client?.state?.value) {
            null, SttState.IDLE -> ""
            SttState.CONNECTING -> "Connecting; what you say is kept."
            SttState.RECONNECTING -> "The connection broke; what you say is kept."
            SttState.STOPPING -> "The last words …"
            SttState.ENDED -> "Done."
            SttState.LIVE -> when (microphone) {
                MicrophoneState.SILENCED -> "Another app or a call has the microphone."
                MicrophoneState.PAUSED -> "Paused."
                MicrophoneState.FAILED -> service.microphone?.failure.orEmpty()
                else -> "Listening."
            }
        }
    }

    /** Finals in the theme's text colour, the partial in grey. */
    private fun show(service: DictationService) {
        val all = SpannableStringBuilder(service.transcript.text)
        service.transcript.partial?.let { partial ->
            if (all.isNotEmpty()) all.append(' ')
            all.append(partial.text, ForegroundColorSpan(GREY), Spanned.SPAN_EXCLUSIVE_EXCLUSIVE)
        }
        text.text = all
        scroll.post { scroll.fullScroll(View.FOCUS_DOWN) }
    }

    private companion object {
        const val MICROPHONE = 1
        const val TEXT_SP = 20f

        /** Legible on black and on white. */
        const val GREY = 0xff_75_75_75.toInt()
    }
}
