package dev.sttbridge.android

import android.content.Context
import android.net.ConnectivityManager
import android.net.Network
import dev.sttbridge.client.SttClient
import java.io.Closeable

/**
 * Tells a client of the device's networks: from Wi-Fi to the mobile network the session goes on at once, and without any
 * network nothing is tried. Needs the permission ACCESS_NETWORK_STATE. Close it with the client.
 */
public class NetworkWatch(context: Context, private val client: SttClient) : Closeable {
    private val manager = context.service<ConnectivityManager>()
    private var current: Network? = manager.activeNetwork

    private val callback = object : ConnectivityManager.NetworkCallback() {
        override fun onAvailable(network: Network) {
            val same = network == current
            current = network
            if (!same) client.networkChanged() // the first call only says what is there already
        }

        override fun onLost(network: Network) {
            if (network == current) {
                current = null
                client.networkLost()
            }
        }
    }

    init {
        manager.registerDefaultNetworkCallback(callback)
    }

    override fun close(): Unit = manager.unregisterNetworkCallback(callback)
}
