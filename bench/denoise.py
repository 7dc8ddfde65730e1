"""Does noise suppression help the recognizer? Word error rates with and without it, in noise of several levels.

`python -m bench.denoise [--noises white,fan] [--levels 20,10,0] [--files NAME…]` mixes noise into recordings of known
text, lets each suppressor that is installed work on them, and prints the word error rate of the embedded engine, which
decodes each file as one utterance; then what each suppressor costs and how much cleaner it makes speech in white noise.
With the defaults it takes half an hour on two cores: a recognizer works hard on noise. WebRTC's is what the server
uses; RNNoise (package pyrnnoise) and FFmpeg's `afftdn` are the rivals it was chosen over.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import av
import numpy as np
import numpy.typing as npt
import soxr

from bench.accuracy import decoded, known_files, recognized
from bench.noises import NOISES, RATE, Signal, to_pcm16
from bridge.audio.denoise import make_denoiser
from bridge.audio.files import open_audio
from bridge.transcript import word_errors

Suppressor = Callable[[bytes], bytes]
"""PCM16 to PCM16 of the same length, not shifted."""

FILES: Final = (
    "librivox-0870.wav",
    "librivox-0880.wav",
    "librivox-0890.wav",
    "cards-001.wav",
    "cards-005.wav",
    "digits-16k.wav",
    "weather.flac",
    "voice-slt.flac",
)
"""People, and two synthetic voices: as many as half an hour allows."""
KINDS: Final = ("white", "fan", "hum 50 Hz", "babble")
LEVELS: Final = (20, 10, 0)
"""Decibels by which speech, while there is some, is above the noise."""
CLEAN: Final = "clean"
BABBLERS: Final = 6
MESSAGE: Final = 3_200
"""Bytes given to a suppressor at once: 100 ms."""


def webrtc(pcm: bytes) -> bytes:
    """What the server does."""
    denoiser = make_denoiser(RATE)
    return b"".join(denoiser.process(pcm[i : i + MESSAGE]) for i in range(0, len(pcm), MESSAGE)) + denoiser.finish()


def rnnoise(pcm: bytes) -> bytes:
    """A recurrent network at 48 kHz, two frames late. Of pyrnnoise, only the binding to the library is loaded."""
    package = find_spec("pyrnnoise")
    folder = Path(package.origin or "").parent if package else Path()
    library = ctypes.CDLL(str(next(folder.glob("*rnnoise.[sd]*"))))
    library.rnnoise_create.restype = ctypes.c_void_p
    state, frame = ctypes.c_void_p(library.rnnoise_create(None)), library.rnnoise_get_frame_size()
    samples = soxr.resample(np.frombuffer(pcm, "<i2").astype(np.float32), RATE, 48_000)
    noisy = np.pad(samples, (0, 2 * frame + -len(samples) % frame))
    clean = np.empty_like(noisy)
    floats = ctypes.POINTER(ctypes.c_float)
    for at in range(0, len(noisy), frame):
        library.rnnoise_process_frame(
            state, clean[at:].ctypes.data_as(floats), noisy[at : at + frame].ctypes.data_as(floats)
        )
    library.rnnoise_destroy(state)
    back = soxr.resample(clean[2 * frame :], 48_000, RATE)[: len(pcm) // 2]
    return to_pcm16(back / 32_768)


def afftdn(pcm: bytes) -> bytes:
    """FFmpeg's suppressor, which subtracts a spectrum that it tracks; half of its window, 25 ms, late."""
    late = 800
    graph = av.filter.Graph()
    source = graph.add_abuffer(format="s16", sample_rate=RATE, layout="mono", time_base=Fraction(1, RATE))
    nodes = [source, graph.add("afftdn", "tn=1"), graph.add("aformat", "sample_fmts=s16"), graph.add("abuffersink")]
    for before, after in itertools.pairwise(nodes):
        before.link_to(after)
    graph.configure()
    samples = np.frombuffer(pcm + bytes(late), "<i2").reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
    frame.sample_rate, frame.pts = RATE, 0
    graph.push(frame)
    graph.push(None)
    clean = b""
    while True:
        try:
            clean += graph.pull().to_ndarray().tobytes()
        except (av.BlockingIOError, av.EOFError):
            return clean[late : late + len(pcm)]


def suppressors() -> Mapping[str, Suppressor]:
    """Those that can be had here, `none` first."""
    found: dict[str, Suppressor] = {"none": lambda pcm: pcm}
    if find_spec("webrtc_noise_gain"):
        found["WebRTC"] = webrtc
    if find_spec("pyrnnoise"):
        found["RNNoise"] = rnnoise
    if "afftdn" in av.filter.filters_available:
        found["afftdn"] = afftdn
    return found


@cache
def speech(files: tuple[str, ...]) -> tuple[tuple[str, Signal], ...]:
    """What is said in each file that is here, and its audio."""
    found = []
    for path, said in known_files():
        if path.name in files and path.exists():
            with open_audio(str(path)) as source:
                pcm = decoded(source.format, source.chunks(1_000))
            found.append((said, np.frombuffer(pcm, "<i2") / 32_768))
    return tuple(found)


def babble(chance: np.random.Generator, samples: int, voices: tuple[Signal, ...]) -> Signal:
    """Several people who talk at once."""
    talk = sum(
        np.roll(np.resize(voices[i] / voices[i].std(), samples), chance.integers(samples))
        for i in chance.integers(len(voices), size=BABBLERS)
    )
    return np.asarray(talk / np.std(talk))


def mixed(voice: Signal, noise: Signal, decibels: float) -> Signal:
    """Speech over noise of RMS 1; its level is that of its loud parts, since pauses are not what is understood."""
    frames = voice[: len(voice) // 320 * 320].reshape(-1, 320)
    power = np.mean(frames**2, axis=1)
    loud = np.sqrt(np.mean(power[power > power.max() / 1000]))
    both = voice + noise * loud * 10 ** (-decibels / 20)
    return np.asarray(both * min(1.0, 0.9 / float(np.abs(both).max())))


def word_error_rate(job: tuple[tuple[str, ...], str, int, str]) -> float:
    """Of all files, with one noise at one level and one suppressor."""
    files, kind, level, name = job
    errors = words = 0
    suppress = suppressors()[name]
    voices = tuple(voice for _, voice in speech(files))
    for i, (said, voice) in enumerate(speech(files)):
        chance = np.random.default_rng(i)
        if kind == CLEAN:
            audio = voice
        else:
            noise = babble(chance, len(voice), voices) if kind == "babble" else NOISES[kind](chance, len(voice))
            audio = mixed(voice, noise, level)
        wrong, count = word_errors(said, recognized(suppress(to_pcm16(audio))))
        errors, words = errors + wrong, words + count
    return errors / max(1, words)


def cleaner(suppress: Suppressor, files: tuple[str, ...]) -> tuple[float, float]:
    """CPU milliseconds for a second of audio, and how many decibels noise falls in the pauses of speech at 10 dB."""
    seconds = spent = 0.0
    fallen: list[float] = []
    for i, (_, voice) in enumerate(speech(files)):
        pcm = to_pcm16(mixed(voice, NOISES["white"](np.random.default_rng(i), len(voice)), 10))
        begun = time.process_time()
        clean = suppress(pcm)
        spent += time.process_time() - begun
        seconds += len(voice) / RATE
        before, after = (_frames(np.frombuffer(audio, "<i2").astype(np.float64)) for audio in (pcm, clean))
        quiet = np.argsort(_frames(voice))[: len(before) // 10]
        fallen.append(float(10 * np.log10(before[quiet].mean() / (after[quiet].mean() + 1e-9))))
    return spent / seconds * 1e3, sum(fallen) / len(fallen)


def _frames(signal: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Power in each 20 ms."""
    return np.asarray(np.mean(signal[: len(signal) // 320 * 320].reshape(-1, 320) ** 2, axis=1))


def conditions(kinds: list[str], levels: list[int]) -> Iterator[tuple[str, int]]:
    """Clean speech, then every noise at every level."""
    yield CLEAN, 0
    yield from itertools.product(kinds, levels)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.denoise", description=__doc__)
    parser.add_argument("--noises", default=",".join(KINDS), help=f"of {', '.join(NOISES)}, babble")
    parser.add_argument("--levels", default=",".join(map(str, LEVELS)), help="decibels of speech above noise")
    parser.add_argument("--files", nargs="*", default=FILES, help="names of samples and recordings")
    parser.add_argument("--processes", type=int, help="at once; default: as many as there are cores")
    args = parser.parse_args()
    files = tuple(args.files)
    names = list(suppressors())
    print(f"{len(speech(files))} files, {sum(len(said.split()) for said, _ in speech(files))} words")
    rows = list(conditions(args.noises.split(","), [int(level) for level in args.levels.split(",")]))
    jobs = [(files, kind, level, name) for kind, level in rows for name in names]
    print(f"{'noise':>12} {'dB':>4} " + " ".join(f"{name:>9}" for name in names))
    with ProcessPoolExecutor(args.processes) as pool:
        rates = pool.map(word_error_rate, jobs)
        for kind, level in rows:
            row = " ".join(f"{next(rates):9.1%}" for _ in names)
            print(f"{kind:>12} {'' if kind == CLEAN else level:>4} {row}", flush=True)
    for name, suppress in suppressors().items():
        if name != "none":
            milliseconds, decibels = cleaner(suppress, files)
            print(f"{name}: {milliseconds:.1f} ms of CPU a second of audio, {decibels:.0f} dB less noise in pauses")


if __name__ == "__main__":
    main()
