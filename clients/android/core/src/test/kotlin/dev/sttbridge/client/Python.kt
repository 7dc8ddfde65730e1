package dev.sttbridge.client

import java.io.Closeable
import java.io.File
import java.nio.file.Files
import java.util.concurrent.TimeUnit
import kotlin.test.fail

/** The project's Python: `STT_PYTHON`, else the one that `make` has set up. */
object Python {
    val root: File = generateSequence(File("").absoluteFile) { it.parentFile }.first { File(it, "bridge/app.py").exists() }
    private val executable = System.getenv("STT_PYTHON") ?: File(root, ".venv/bin/python").path

    fun process(vararg arguments: String): ProcessBuilder {
        val builder = ProcessBuilder(executable, *arguments)
        builder.environment().keys.removeAll { it.startsWith("STT_") }
        builder.environment()["PYTHONPATH"] = root.path
        return builder
    }

    /** What a script writes to standard output. */
    fun output(script: String, vararg arguments: String): ByteArray {
        val errors = File.createTempFile("python", ".err")
        val process = process("-c", script, *arguments).redirectError(errors).start()
        val output = process.inputStream.readBytes()
        if (process.waitFor() != 0) fail(errors.readText())
        errors.delete()
        return output
    }
}

/** The real server as a process of its own; `settings` are its `STT_` variables. */
class BridgeServer(
    backend: String,
    settings: Map<String, String> = emptyMap(),
    port: Int = 0,
) : Closeable {
    private val folder = Files.createTempDirectory("bridge").toFile()
    private val log = File(folder, "stderr")
    private val process: Process
    val port: Int

    init {
        val builder = Python.process("-m", "bridge", "serve", "--backend", backend, "--port", "$port")
        builder.environment() += settings + ("XDG_STATE_HOME" to folder.path)
        process = builder.directory(folder).redirectError(log).redirectOutput(File(folder, "stdout")).start()
        val address = Regex("""stream +wss?://[^/\s]+:(\d+)/v1/stream""")
        val deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(60)
        while (!log.readText().contains("try ") && process.isAlive && System.nanoTime() < deadline) Thread.sleep(20)
        this.port = address.find(log.readText())?.groupValues?.get(1)?.toInt() ?: fail(log.readText())
    }

    val output: String get() = log.readText()

    /** SIGTERM; waits for its end. */
    fun terminate() {
        process.destroy()
        check(process.waitFor(30, TimeUnit.SECONDS)) { "the server does not end" }
    }

    override fun close() {
        process.destroyForcibly().waitFor()
        folder.deleteRecursively()
    }

    companion object {
        fun markers(settings: Map<String, String> = emptyMap(), port: Int = 0) =
            BridgeServer("scripted", settings + ("STT_SCRIPTED_MODE" to "markers"), port)
    }
}

/** Audio: PCM16 mono at 16 kHz. */
object Speech {
    const val SECOND_BYTES = 32_000

    /** The project's samples of 16 kHz and one channel, one after the other. */
    val samples: ByteArray by lazy {
        val names = listOf("commands", "demo", "hello", "meeting", "pause", "short", "train", "voice-slt", "weather")
        joined(names.map { File(Python.root, "samples/$it.flac") })
    }

    /** The recordings of `STT_RECORDINGS`, if it is set; else [samples]. */
    val strangers: ByteArray by lazy {
        val folder = System.getenv("STT_RECORDINGS")?.let { File(it) }
        val files = folder?.listFiles { file -> file.name.startsWith("librivox") && file.extension == "wav" }?.sorted()
        files?.let { short -> joined(List(5) { short }.flatten()) } ?: samples // 15 s are too few for 50 faults
    }

    private fun joined(files: List<File>): ByteArray = Python.output(
        """
        |import sys
        |from bridge.audio.files import open_audio
        |for path in sys.argv[1:]:
        |    with open_audio(path) as source:
        |        assert (source.format.sample_rate, source.format.channels) == (16000, 1), path
        |        sys.stdout.buffer.write(b"".join(source.chunks(100)))
        |        sys.stdout.buffer.write(bytes(16000))
        """.trimMargin(),
        *files.map { it.path }.toTypedArray(),
    )

    /** The samples' first seconds as Opus packets of 20 ms, as MediaCodec would give them. */
    fun opus(seconds: Int): List<ByteArray> {
        val file = File.createTempFile("speech", ".pcm").apply { writeBytes(samples.copyOf(seconds * SECOND_BYTES)) }
        val framed = Python.output(
            """
            |import sys, av, numpy as np
            |codec = av.CodecContext.create("libopus", "w")
            |codec.sample_rate, codec.layout, codec.format, codec.bit_rate = 16000, "mono", "s16", 24000
            |frames = []
            |for samples in np.fromfile(sys.argv[1], "<i2").reshape(-1, 320):
            |    frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            |    frame.sample_rate = 16000
            |    frames.append(frame)
            |for packet in [p for frame in [*frames, None] for p in codec.encode(frame)]:
            |    sys.stdout.buffer.write(len(bytes(packet)).to_bytes(2, "big") + bytes(packet))
            """.trimMargin(),
            file.path,
        )
        file.delete()
        val packets = mutableListOf<ByteArray>()
        var at = 0
        while (at < framed.size) {
            val size = (framed[at].toInt() and 0xff shl 8) or (framed[at + 1].toInt() and 0xff)
            packets += framed.copyOfRange(at + 2, at + 2 + size)
            at += 2 + size
        }
        return packets
    }

    /** So many words of the scripted engine's markers, and their transcript; see backends/markers.py. */
    fun markers(words: Int): ByteArray = Python.output(
        "import sys; from backends.markers import marker_audio; sys.stdout.buffer.write(marker_audio(int(sys.argv[1])))",
        "$words",
    )

    fun said(words: Int): String = (0 until words).joinToString(" ") { "w$it" }
}

/** A server on the scripted engine that the tests of a process have together; it ends with them. */
object Shared {
    private val server by lazy {
        BridgeServer.markers().also { Runtime.getRuntime().addShutdownHook(Thread(it::close)) }
    }

    fun <T> markers(block: (BridgeServer) -> T): T = block(server)
}
