package dev.sttbridge.client

import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow

/** Wakes one coroutine that waits; a wake while nobody waits is remembered, so who is woken looks again. */
internal class Signal {
    private val channel = Channel<Unit>(Channel.CONFLATED)

    fun wake() {
        channel.trySend(Unit) // never fails
    }

    suspend fun wait() = channel.receive()

    /** Forget a wake that nobody waited for. */
    fun clear() {
        channel.tryReceive()
    }

    /** For `select`. */
    val onWake get() = channel.onReceive
}

/** Events for the caller, in order and bounded: lasting ones wait for room, passing ones replace each other. */
internal class Mailbox {
    private val waiting = ArrayDeque<SttEvent>()
    private var lasting = 0
    private var collected = false
    private val filled = Signal()
    private val emptied = Signal()

    /** Leave an event. Waits while the caller is far behind; one caller at a time. A cancelled one was not left. */
    suspend fun put(event: SttEvent) {
        while (!leave(event, force = false)) emptied.wait()
    }

    /** The same without waiting: of passing events, and of the last one. */
    fun push(event: SttEvent) {
        leave(event, force = true)
    }

    private fun leave(event: SttEvent, force: Boolean): Boolean {
        synchronized(waiting) {
            if (event.passing) {
                if (waiting.size >= MAX_PASSING) replace(event)
            } else {
                if (lasting >= MAX_LASTING && !force) return false
                lasting += 1
            }
            waiting.addLast(event)
        }
        filled.wake()
        return true
    }

    /** Take away the one before it of its kind; of partials, of its channel. */
    private fun replace(event: SttEvent) {
        val index = waiting.indexOfLast {
            it.javaClass == event.javaClass && (it as? SttEvent.Partial)?.channel == (event as? SttEvent.Partial)?.channel
        }
        if (index >= 0) waiting.removeAt(index)
    }

    /** All events, each once: what a collector that was cancelled has not finished with is the next one's first. */
    val events: Flow<SttEvent> = flow {
        synchronized(waiting) {
            check(!collected) { "events are collected already; share them with shareIn for several collectors" }
            collected = true
        }
        try {
            while (true) {
                val event = synchronized(waiting) { waiting.firstOrNull() }
                if (event == null) {
                    filled.wait()
                    continue
                }
                emit(event)
                if (event is SttEvent.Ended) break // stays, for who comes later
                taken(event)
            }
        } finally {
            synchronized(waiting) { collected = false }
        }
    }

    private fun taken(event: SttEvent) {
        synchronized(waiting) {
            if (waiting.firstOrNull() !== event) return // a newer one took its place meanwhile
            waiting.removeFirst()
            if (!event.passing) lasting -= 1
        }
        emptied.wake()
    }

    private val SttEvent.passing: Boolean
        get() = this is SttEvent.Partial || this is SttEvent.Progress || this is SttEvent.Overflow

    private companion object {
        /** Lasting events that may wait for the caller; past that the client stops reading, and the server notices. */
        const val MAX_LASTING = 1_024

        /** Waiting events from which on a new partial takes the place of the one before it. */
        const val MAX_PASSING = 128
    }
}
