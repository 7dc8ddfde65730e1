"""What a listener gets: word error rate and latency of live streams, one at a time, in real time.

`python -m bench.accuracy [FILE…] [--offline]` streams each file (default: every sample of the project, and the real
recordings beside the project if they are there) through a server of its own on the embedded engine and prints, for
each, the word error rate of the live finals, with `--offline` that of the same engine decoding the whole file at
once, and the latencies: words after their end to the first partial that shows them rightly, finals after the end of
their last word.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bridge.app import serving
from bridge.audio.decode import StreamDecoder
from bridge.audio.files import open_audio
from bridge.audio.formats import AudioFormat
from bridge.client import connect
from bridge.commands.latency import Latencies
from bridge.commands.stream import Sender, converse, stream_url
from bridge.protocols.native import FinalMessage, ServerMessage, StartMessage
from bridge.settings import Settings
from bridge.transcript import word_errors

ROOT: Final = Path(__file__).resolve().parent.parent
RECORDINGS: Final = ROOT.parent / "shared" / "recordings"


STAGGER: Final = 0.7
"""Seconds between the starts of streams: people do not begin to speak all at once."""


@dataclass
class Outcome:
    """One file's figures; latencies in seconds."""

    name: str
    words: int
    live_errors: int
    offline_errors: int | None
    latencies: Latencies = field(default_factory=Latencies)


def known_files() -> Iterator[tuple[Path, str]]:
    """The project's samples, and the recordings beside the project, each with what is said."""
    for sample in json.loads((ROOT / "samples" / "manifest.json").read_text())["samples"]:
        yield ROOT / "samples" / sample["file"], sample["transcript"]
    readme = RECORDINGS / "README.md"
    if readme.exists():
        for name, said in re.findall(r"^\| (\S+\.wav) \| \d+ kHz \| ([a-z' /]+) \|$", readme.read_text(), re.MULTILINE):
            yield RECORDINGS / name, said.replace("/", " ")


async def stream(url: str, path: Path, total: Latencies, *, paced: bool, after: float = 0.0) -> str:
    """One file through the server, begun after so many seconds; its finals."""
    await asyncio.sleep(after)
    finals: list[str] = []
    latencies = Latencies()
    source = open_audio(str(path))
    start = StartMessage(sample_rate=source.format.sample_rate, channels=source.format.channels)
    async with connect(url, start) as client:
        sender = Sender(client, source, milliseconds=100, paced=paced)

        def take(message: ServerMessage) -> None:
            if sender.origin is not None:
                latencies.take(message, asyncio.get_running_loop().time() - sender.origin)
            if isinstance(message, FinalMessage):
                finals.append(message.text)

        await converse(client, sender, take)
    total.partials += latencies.partials
    total.finals += latencies.finals
    total.unseen += latencies.unseen
    return " ".join(finals)


def offline(path: Path) -> str:
    """The same engine and model, given the whole file as one utterance."""
    with open_audio(str(path)) as source:
        pcm = decoded(source.format, source.chunks(1_000))
    return recognized(pcm)


def decoded(audio: AudioFormat, messages: Iterable[bytes]) -> bytes:
    """All of it as PCM16 mono at the engine's rate."""
    decoder = StreamDecoder(audio, 16_000)
    pcm: list[bytes] = []
    for message in messages:
        decoder.push(message)
        pcm += (piece for (piece,) in iter(decoder.read, None))
    decoder.finish()
    pcm += (piece for (piece,) in iter(decoder.read, None))
    return b"".join(pcm)


def recognized(pcm: bytes) -> str:
    """What the embedded engine hears in the whole as one utterance."""
    import pocketsphinx  # noqa: PLC0415 - only with --offline

    engine = pocketsphinx.Decoder(loglevel="FATAL")
    engine.start_utt()
    engine.process_raw(pcm, full_utt=True)
    engine.end_utt()
    hypothesis = engine.hyp()
    return hypothesis.hypstr if hypothesis else ""


def milliseconds(values: list[float]) -> str:
    """Median and 95th percentile."""
    if not values:
        return "-"
    return f"{statistics.median(values) * 1e3:.0f} / {sorted(values)[len(values) * 95 // 100] * 1e3:.0f}"


def show(outcomes: list[Outcome]) -> None:
    """A table, and everything together."""
    print(f"{'file':26} {'words':>5} {'live':>7} {'offline':>7}   partial p50/p95 ms   final p50/p95 ms")
    total = Outcome("all", 0, 0, 0 if any(o.offline_errors is not None for o in outcomes) else None)
    for outcome in outcomes:
        total.words += outcome.words
        total.live_errors += outcome.live_errors
        if total.offline_errors is not None:
            total.offline_errors += outcome.offline_errors or 0
        total.latencies.partials += outcome.latencies.partials
        total.latencies.finals += outcome.latencies.finals
        total.latencies.unseen += outcome.latencies.unseen
    for o in [*outcomes, total]:
        whole = "" if o.offline_errors is None else f"{o.offline_errors / max(1, o.words):7.1%}"
        print(
            f"{o.name:26} {o.words:5} {o.live_errors / max(1, o.words):7.1%} {whole:>7}   "
            f"{milliseconds(o.latencies.partials):>18}   {milliseconds(o.latencies.finals):>16}"
        )
    print(f"words first seen in their final: {total.latencies.unseen}")


async def run(files: list[tuple[Path, str]], *, paced: bool, compare: bool, streams: int) -> list[Outcome]:
    """Every file, one after the other, each by so many clients at once."""
    outcomes = []
    env = {"STT_POCKETSPHINX_STREAMS": str(streams)} if streams > 1 else {}
    async with serving(Settings.load({}, None, port=0), env) as url:
        for path, said in files:
            latencies = Latencies()
            one = (stream(stream_url(url), path, latencies, paced=paced, after=i * STAGGER) for i in range(streams))
            errors = words = 0
            for heard in await asyncio.gather(*one):
                wrong, count = word_errors(said, heard)
                errors, words = errors + wrong, words + count
            if errors:
                print(f"{path.name}: {heard}", file=sys.stderr)
            whole = streams * word_errors(said, offline(path))[0] if compare else None
            outcomes.append(Outcome(path.name, words, errors, whole, latencies))
    return outcomes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy", description=__doc__)
    parser.add_argument("files", nargs="*", help="only files whose name holds one of these")
    parser.add_argument("--fast", action="store_true", help="not in real time; latencies mean nothing then")
    parser.add_argument("--offline", action="store_true", help="decode each whole file at once too")
    parser.add_argument("--streams", type=int, default=1, help="clients that stream each file at once")
    args = parser.parse_args()
    files = [f for f in known_files() if not args.files or any(part in f[0].name for part in args.files)]
    show(asyncio.run(run(files, paced=not args.fast, compare=args.offline, streams=args.streams)))


if __name__ == "__main__":
    main()
