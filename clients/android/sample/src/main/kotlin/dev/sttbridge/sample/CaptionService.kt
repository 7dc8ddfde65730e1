package dev.sttbridge.sample

import android.content.Context
import dev.sttbridge.android.DictationService
import dev.sttbridge.client.SttClient
import dev.sttbridge.client.sttOptions

/** The session, which goes on while the app is in the background. */
class CaptionService : DictationService() {
    override fun createClient(): SttClient {
        val builder = SttClient.Builder(address(this)).options(sttOptions { sampleRate = 16_000 })
        // A real app asks its own service for a token that soon expires: builder.tokens { refused -> … }
        if (key.isNotEmpty()) builder.key(key)
        return builder.build()
    }

    companion object {
        /** The computer on which the emulator runs. */
        private const val DEFAULT = "ws://10.0.2.2:8000"
        private const val ADDRESS = "address"

        /** In memory only. */
        var key = ""

        fun address(context: Context): String = preferences(context).getString(ADDRESS, null) ?: DEFAULT

        /** @throws IllegalArgumentException it is no address. */
        fun setAddress(context: Context, address: String) {
            SttClient.Builder(address)
            preferences(context).edit().putString(ADDRESS, address).apply()
        }

        private fun preferences(context: Context) = context.getSharedPreferences("sample", Context.MODE_PRIVATE)
    }
}
