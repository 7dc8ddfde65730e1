package dev.sttbridge.client

import java.io.Closeable
import java.io.IOException
import java.net.InetAddress
import java.net.ServerSocket
import java.net.Socket
import java.util.concurrent.ConcurrentLinkedQueue
import java.util.concurrent.CopyOnWriteArrayList
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit
import kotlin.concurrent.thread
import kotlin.random.Random

/** How a connection breaks. */
enum class Fault {
    /** The end of the stream on both sides. */
    FIN,

    /** A reset on both sides. */
    RESET,

    /** The client sees a reset; for the server the connection stays for seconds. */
    HALF_OPEN,

    /** Nothing goes through any more; both sides believe that the connection lives. */
    STALL,
}

/** A connection breaks in this way when so many bytes have gone [up] or down it; the last chunk is cut there. */
class Plan(val fault: Fault, val up: Boolean, val after: Long)

/** A TCP proxy whose connections break as planned: the n-th plan is the n-th connection's, then they live. */
class FaultProxy(private val target: Int, plans: List<Plan> = emptyList()) : Closeable {
    private val server = ServerSocket(0, 50, InetAddress.getLoopbackAddress())
    private val plans = ConcurrentLinkedQueue(plans)
    private val links = CopyOnWriteArrayList<Link>()

    val port: Int = server.localPort

    /** Faults that struck. */
    val struck = ConcurrentLinkedQueue<Fault>()

    init {
        thread(isDaemon = true, name = "proxy") { accept() }
    }

    private fun accept() {
        while (true) {
            val client = try {
                server.accept()
            } catch (_: IOException) {
                return // closed
            }
            try {
                links += Link(client, Socket(InetAddress.getLoopbackAddress(), target), plans.poll())
            } catch (_: IOException) {
                reset(client) // no server
            }
        }
    }

    /** Break the newest connection now. */
    fun strike(fault: Fault) = links.last().strike(fault)

    override fun close() {
        server.close()
        links.forEach { it.end() }
    }

    private inner class Link(private val client: Socket, private val server: Socket, private val plan: Plan?) {
        private val ended = CountDownLatch(1)
        @Volatile private var how: Fault? = null

        init {
            thread(isDaemon = true) { pump(client, server, up = true) }
            thread(isDaemon = true) { pump(server, client, up = false) }
        }

        private fun pump(from: Socket, to: Socket, up: Boolean) {
            val buffer = ByteArray(65_536)
            var left = if (plan?.up == up) plan.after else Long.MAX_VALUE
            try {
                while (true) {
                    val count = from.getInputStream().read(buffer)
                    if (how == Fault.STALL) ended.await()
                    if (count < 0) break
                    to.getOutputStream().write(buffer, 0, minOf(count.toLong(), left).toInt())
                    left -= count
                    if (left <= 0) return strike(plan!!.fault)
                }
                to.shutdownOutput()
            } catch (_: IOException) {
                if (how != Fault.HALF_OPEN) end()
            }
        }

        fun strike(fault: Fault) {
            synchronized(this) {
                if (how != null) return
                how = fault
            }
            struck += fault
            when (fault) {
                Fault.FIN -> {
                    client.close()
                    server.close()
                }
                Fault.RESET -> end()
                Fault.HALF_OPEN -> {
                    reset(client)
                    thread(isDaemon = true) {
                        ended.await(HOLD_SECONDS, TimeUnit.SECONDS)
                        reset(server)
                    }
                }
                Fault.STALL -> Unit
            }
        }

        fun end() {
            reset(client)
            reset(server)
            ended.countDown()
        }
    }

    companion object {
        private const val HOLD_SECONDS = 3L

        private fun reset(socket: Socket) {
            try {
                socket.setSoLinger(true, 0)
            } catch (_: IOException) {
                // closed before
            }
            socket.close()
        }

        /**
         * [count] plans for audio of so many bytes: most break it at a random byte of the audio, some while the
         * server's answers come, before `ready` among them. Sizes are such that all strike before the audio is over.
         */
        fun plans(count: Int, bytes: Int, random: Random): List<Plan> = List(count) {
            // One in ten: to notice it takes a silence.
            val fault = if (random.nextInt(10) == 0) Fault.STALL else Fault.entries.filter { it != Fault.STALL }.random(random)
            if (random.nextInt(4) == 0) {
                Plan(fault, up = false, after = random.nextLong(1, 1_500))
            } else {
                Plan(fault, up = true, after = random.nextLong(200, 2L * bytes / (count + count / 4)))
            }
        }
    }
}
