package dev.sttbridge.sample

import android.content.Context
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.Paint
import android.view.View

/** A bar as long as the microphone is loud: -60 dB to 0. Draws itself anew with each screen frame while it is seen. */
class LevelView(context: Context, private val level: () -> Float) : View(context) {
    private val paint = Paint().apply { color = Color.rgb(0x2e, 0x7d, 0x32) }
    private var shown = 0f

    init {
        contentDescription = "Level of the microphone"
        minimumHeight = (HEIGHT_DP * resources.displayMetrics.density).toInt()
    }

    override fun onMeasure(width: Int, height: Int) {
        setMeasuredDimension(getDefaultSize(suggestedMinimumWidth, width), resolveSize(minimumHeight, height))
    }

    override fun onDraw(canvas: Canvas) {
        val loud = ((level() - QUIET) / -QUIET).coerceIn(0f, 1f)
        shown = maxOf(loud, shown - FALL) // up at once, down slowly
        canvas.drawRect(0f, 0f, width * shown, height.toFloat(), paint)
        postInvalidateOnAnimation()
    }

    private companion object {
        const val QUIET = -60f
        const val FALL = 0.02f
        const val HEIGHT_DP = 8
    }
}
