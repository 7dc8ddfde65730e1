package dev.sttbridge.android

import android.content.Context
import android.net.ConnectivityManager
import dev.sttbridge.client.Shared
import dev.sttbridge.client.SttClient
import dev.sttbridge.client.SttEvent
import java.util.concurrent.CopyOnWriteArrayList
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.shadows.ShadowNetwork

@RunWith(RobolectricTestRunner::class)
@Config(sdk = [35])
class NetworkWatchTest {
    private val context: Context = RuntimeEnvironment.getApplication()
    private val manager = context.service<ConnectivityManager>()
    private val events = CopyOnWriteArrayList<SttEvent>()

    @Test
    fun `another network is gone over to, the first is no other`() = Shared.markers { server ->
        SttClient.Builder("ws://127.0.0.1:${server.port}").build().use { client ->
            client.listen(Runnable::run, object : dev.sttbridge.client.SttListener() {
                override fun onEvent(event: SttEvent) {
                    events += event
                }
            })
            client.start()
            Waiting.until { events.lastOrNull() is SttEvent.Ready }
            NetworkWatch(context, client).use {
                val callback = shadowOf(manager).networkCallbacks.single()
                callback.onAvailable(manager.activeNetwork!!)
                callback.onAvailable(manager.activeNetwork!!)
                assertEquals(1, events.size)
                callback.onLost(manager.activeNetwork!!)
                callback.onAvailable(ShadowNetwork.newInstance(77))
                Waiting.until { events.count { it is SttEvent.Ready } == 2 }
                assertTrue(events.any { it is SttEvent.Interrupted } && events.any { it is SttEvent.Resumed })
            }
            assertTrue(shadowOf(manager).networkCallbacks.isEmpty())
        }
    }
}
