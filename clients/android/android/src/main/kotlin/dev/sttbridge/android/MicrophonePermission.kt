package dev.sttbridge.android

import android.Manifest
import android.app.Activity
import android.content.Context
import android.content.Intent
import android.content.pm.PackageManager
import android.net.Uri
import android.os.Build
import android.provider.Settings

/**
 * The permission to record, asked for when the user wants to speak and not before.
 *
 *     if (MicrophonePermission.granted(this)) begin() else MicrophonePermission.request(this, MICROPHONE)
 *
 *     override fun onRequestPermissionsResult(code: Int, permissions: Array<String>, results: IntArray) {
 *         if (code == MICROPHONE) when (MicrophonePermission.outcome(this, permissions, results)) { … }
 *     }
 */
public object MicrophonePermission {
    /** What came of asking. */
    public enum class Outcome {
        GRANTED,

        /** Not now. Say what it is for before asking again. */
        DENIED,

        /** The system does not ask any more; only [settings] can change it. */
        DENIED_FOR_GOOD,
    }

    @JvmStatic
    public fun granted(context: Context): Boolean = has(context, Manifest.permission.RECORD_AUDIO)

    /** What is to be asked for: the microphone, and from Android 13 on the service's notification. */
    @JvmStatic
    public fun missing(context: Context): Array<String> = buildList {
        add(Manifest.permission.RECORD_AUDIO)
        // Without it the service runs all the same, but nothing shows that it listens.
        if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.TIRAMISU) add(Manifest.permission.POST_NOTIFICATIONS)
    }.filterNot { has(context, it) }.toTypedArray()

    /** Show the system's question; the answer comes to `onRequestPermissionsResult` with [code]. */
    @JvmStatic
    public fun request(activity: Activity, code: Int): Unit = activity.requestPermissions(missing(activity), code)

    /** What `onRequestPermissionsResult` was told; a question that was dismissed (no results) counts as denied. */
    @JvmStatic
    public fun outcome(activity: Activity, permissions: Array<out String>, results: IntArray): Outcome {
        val index = permissions.indexOf(Manifest.permission.RECORD_AUDIO)
        return when {
            granted(activity) -> Outcome.GRANTED
            index !in results.indices -> Outcome.DENIED
            activity.shouldShowRequestPermissionRationale(Manifest.permission.RECORD_AUDIO) -> Outcome.DENIED
            else -> Outcome.DENIED_FOR_GOOD
        }
    }

    /** The system's page about this app. */
    @JvmStatic
    public fun settings(context: Context): Intent =
        Intent(Settings.ACTION_APPLICATION_DETAILS_SETTINGS, Uri.fromParts("package", context.packageName, null))

    private fun has(context: Context, permission: String) =
        context.checkSelfPermission(permission) == PackageManager.PERMISSION_GRANTED
}
