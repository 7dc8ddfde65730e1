package dev.sttbridge.client

import java.io.File
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertNotNull

/** CI builds with Maven what others build with Gradle: at least the numbers are the same. */
class BuildsTest {
    private val folder = File(Python.root, "clients/android")
    private val pom = File(folder, "pom.xml").readText()
    private val catalogue = File(folder, "gradle/libs.versions.toml").readText()

    @Test
    fun `Maven and Gradle take the same versions`() {
        for (name in listOf("kotlin", "stdlib", "coroutines", "serialization", "okhttp")) {
            val maven = assertNotNull(Regex("<$name\\.version>(.+)</").find(pom), name).groupValues[1]
            val gradle = assertNotNull(Regex("(?m)^$name = \"(.+)\"$").find(catalogue), name).groupValues[1]
            assertEquals(maven, gradle, name)
        }
        val version = Regex("<artifactId>stt-bridge-clients</artifactId>\\s*<version>(.+)</").find(pom)!!.groupValues[1]
        assertEquals(version, Regex("(?m)^stt-bridge = \"(.+)\"$").find(catalogue)!!.groupValues[1])
        assertEquals(version, Regex("__version__ = \"(.+)\"").find(File(Python.root, "bridge/__init__.py").readText())!!.groupValues[1])
        assertEquals(version, Regex("stt-bridge-android:(.+)\"\\)").find(File(folder, "README.md").readText())!!.groupValues[1])
    }
}
