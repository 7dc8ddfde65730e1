"""What codecs cost: errors in the words, and the processor's time to decode them.

`python -m bench.codecs [FILE…]` codes every sample (and the real recordings beside the project, if they are there) as
clients do, decodes the stream in messages of 100 ms, and prints the word error rate of the embedded engine on each,
given the whole file as one utterance, beside that of the original. `--cost` prints instead the processor's time of
decoding and resampling, in milliseconds for a second of audio, with the messages that a live client sends.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import soxr

from bench.accuracy import decoded, known_files, recognized
from bridge.audio.decode import StreamDecoder
from bridge.audio.files import open_audio
from bridge.audio.formats import AudioFormat, Encoding
from bridge.transcript import word_errors
from tests.audio import encoding as coders

RATE: Final = 16_000
Samples = coders.Samples
Stream = tuple[AudioFormat, list[bytes]]


def at_rate(samples: Samples, rate: int) -> Samples:
    """Resampled from 16 kHz."""
    if rate == RATE:
        return samples
    resampled = soxr.resample(samples[:, 0].astype(np.float32) / 32_768, RATE, rate)
    coded: Samples = np.clip(np.rint(resampled * 32_768), -32_768, 32_767).astype("<i2")[:, np.newaxis]
    return coded


def raw(encoding: Encoding, rate: int, codec: str) -> Callable[[Samples], Stream]:
    """Samples, or G.711, in messages of 100 ms."""

    def code(samples: Samples) -> Stream:
        data = b"".join(coders.packets(codec, at_rate(samples, rate), rate))
        return AudioFormat(encoding, rate), cut(data, len(data) * RATE // 10 // max(1, len(samples)))

    return code


def contained(encoding: Encoding, rate: int, bit_rate: int) -> Callable[[Samples], Stream]:
    """A container, in messages of about 100 ms."""

    def code(samples: Samples) -> Stream:
        data = coders.contain(encoding, at_rate(samples, rate), rate, bit_rate=bit_rate)
        return AudioFormat(encoding), cut(data, len(data) * RATE // 10 // max(1, len(samples)))

    return code


def vorbis(samples: Samples) -> Stream:
    """FFmpeg's encoder knows two channels only."""
    data = coders.contain(Encoding.OGG, np.repeat(at_rate(samples, 44_100), 2, axis=1), 44_100, "vorbis")
    return AudioFormat(Encoding.OGG), cut(data, len(data) * RATE // 10 // max(1, len(samples)))


def opus(bit_rate: int) -> Callable[[Samples], Stream]:
    """Packets of 20 ms, without a container."""

    def code(samples: Samples) -> Stream:
        return AudioFormat(Encoding.OPUS), coders.opus_packets(at_rate(samples, 48_000), bit_rate=bit_rate)

    return code


def amr_nb(bit_rate: int) -> Callable[[Samples], Stream]:
    """Telephones."""
    return lambda samples: (AudioFormat(Encoding.AMR_NB), cut(coders.amr_nb(at_rate(samples, 8_000), bit_rate), 160))


def amr_wb(samples: Samples) -> Stream | None:
    """12.65 kbit/s, where there is an encoder."""
    data = coders.amr_wb(samples)
    return None if data is None else (AudioFormat(Encoding.AMR_WB), cut(data, 165))


def cut(data: bytes, size: int) -> list[bytes]:
    """In messages of this size."""
    return [data[at : at + size] for at in range(0, len(data), max(1, size))]


CODECS: Final[dict[str, Callable[[Samples], Stream | None]]] = {
    "original, 16 kHz": raw(Encoding.PCM_S16LE, 16_000, "pcm_s16le"),
    "PCM16, 48 kHz": raw(Encoding.PCM_S16LE, 48_000, "pcm_s16le"),
    "FLAC": contained(Encoding.FLAC, 16_000, 0),
    "PCM16, 8 kHz": raw(Encoding.PCM_S16LE, 8_000, "pcm_s16le"),
    "μ-law, 8 kHz": raw(Encoding.MULAW, 8_000, "pcm_mulaw"),
    "A-law, 8 kHz": raw(Encoding.ALAW, 8_000, "pcm_alaw"),
    "G.722, 64 kbit/s": lambda samples: (AudioFormat(Encoding.G722), cut(coders.g722(samples), 800)),
    "AMR-NB, 12.2 kbit/s": amr_nb(12_200),
    "AMR-NB, 4.75 kbit/s": amr_nb(4_750),
    "AMR-WB, 12.65 kbit/s": amr_wb,
    "Opus packets, 32 kbit/s": opus(32_000),
    "Opus packets, 16 kbit/s": opus(16_000),
    "Opus packets, 8 kbit/s": opus(8_000),
    "Ogg/Opus, 24 kbit/s": contained(Encoding.OGG, 48_000, 24_000),
    "WebM/Opus, 32 kbit/s": contained(Encoding.WEBM, 48_000, 32_000),
    "Ogg/Vorbis, 44.1 kHz": vorbis,
    "MP3, 64 kbit/s": contained(Encoding.MP3, 44_100, 64_000),
    "MP3, 32 kbit/s": contained(Encoding.MP3, 16_000, 32_000),
    "AAC (ADTS), 64 kbit/s": contained(Encoding.AAC, 44_100, 64_000),
    "AAC (MP4), 32 kbit/s": contained(Encoding.MP4, 16_000, 32_000),
}


def original(path: Path) -> Samples:
    """PCM16 mono at 16 kHz, a row for each frame."""
    with open_audio(str(path)) as source:
        return np.frombuffer(decoded(source.format, source.chunks(1_000)), "<i2")[:, np.newaxis]


def errors_of(path: Path, said: str) -> tuple[int, dict[str, int | None]]:
    """The words of one file, and the errors in them after each codec."""
    samples = original(path)
    errors: dict[str, int | None] = {}
    for name, code in CODECS.items():
        stream = code(samples)
        errors[name] = None if stream is None else word_errors(said, recognized(decoded(*stream)))[0]
    return word_errors(said, "")[1], errors


def accuracy(files: list[tuple[Path, str]]) -> None:
    """Every codec, samples and recordings apart."""
    groups: dict[str, list[tuple[int, dict[str, int | None]]]] = {}
    with ProcessPoolExecutor(2) as pool:
        for (path, _), found in zip(files, pool.map(errors_of, *zip(*files, strict=True)), strict=True):
            groups.setdefault("samples" if path.parent.name == "samples" else "recordings", []).append(found)
    for group, outcomes in groups.items():
        print(f"{group}: {sum(words for words, _ in outcomes)} words")
    print(f"{'codec':26}" + "".join(f"{group:>12}" for group in groups))
    for name in CODECS:
        line = f"{name:26}"
        for outcomes in groups.values():
            known = [errors for _, each in outcomes if (errors := each[name]) is not None]
            words = sum(words for words, _ in outcomes)
            line += f"{sum(known) / words:12.1%}" if known else f"{'-':>12}"
        print(line, flush=True)


COSTS: Final[dict[str, tuple[str, int]]] = {
    # Codec, and the milliseconds of a live client's messages.
    "PCM16 16 kHz, 20 ms": ("original, 16 kHz", 20),
    "PCM16 48 kHz, 20 ms": ("PCM16, 48 kHz", 20),
    "μ-law 8 kHz, 20 ms": ("μ-law, 8 kHz", 20),
    "Opus packets, 20 ms": ("Opus packets, 32 kbit/s", 20),
    "Ogg/Opus, 100 ms": ("Ogg/Opus, 24 kbit/s", 100),
    "WebM/Opus, 100 ms": ("WebM/Opus, 32 kbit/s", 100),
    "MP3, 100 ms": ("MP3, 64 kbit/s", 100),
    "AAC (ADTS), 100 ms": ("AAC (ADTS), 64 kbit/s", 100),
    "FLAC, 100 ms": ("FLAC", 100),
    "G.722, 20 ms": ("G.722, 64 kbit/s", 20),
    "AMR-NB, 20 ms": ("AMR-NB, 12.2 kbit/s", 20),
}


def costs() -> Iterator[tuple[str, float]]:
    """Milliseconds of the processor for a second of audio."""
    samples = original(Path(__file__).parent.parent / "samples" / "long.flac")
    for name, (codec, milliseconds) in COSTS.items():
        stream = CODECS[codec](samples)
        if stream is None:
            continue
        audio, messages = stream
        if audio.encoding is not Encoding.OPUS:
            data = b"".join(messages)
            messages = cut(data, round(len(data) * milliseconds / 1_000 / (len(samples) / RATE)))
        decoder = StreamDecoder(audio, RATE)
        begun = time.process_time()
        for message in messages:
            decoder.push(message)
            while decoder.read() is not None:
                pass
        spent = time.process_time() - begun
        yield name, spent * 1_000 / (decoder.frames / audio.sample_rate)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.codecs", description=__doc__)
    parser.add_argument("files", nargs="*", help="only files whose name holds one of these")
    parser.add_argument("--cost", action="store_true", help="the processor's time, not the words")
    args = parser.parse_args()
    if args.cost:
        for name, cost in costs():
            print(f"{name:24} {cost:6.2f} ms/s", flush=True)
        return
    files = [f for f in known_files() if not args.files or any(part in f[0].name for part in args.files)]
    if not files:
        sys.exit("no such file")
    accuracy(files)


if __name__ == "__main__":
    main()
