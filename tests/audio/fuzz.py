"""Damaged, truncated and hostile audio through the decoder, many times.

`python -m tests.audio.fuzz [CASES] [SEED] [FILE]` prints a line for each fault, with the case that shows it, and one at
the end. It is a process of its own because what it looks for may end the interpreter; FILE then holds the last case.
Damage is random: bits, runs, parts that are cut out, doubled or swapped, sizes that are set to extremes, one
container's head with another's body; so are the cutting into messages and what is declared.

What must hold: no exception but `BridgeError`, no turn longer than `LONGEST_TURN`, no piece longer than a second, and
little more memory at the end than after the first cases.
"""

from __future__ import annotations

import faulthandler
import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path

from bridge.audio.decode import StreamDecoder
from bridge.audio.formats import AudioFormat, Encoding
from bridge.errors import BridgeError
from tests.audio import encoding as samples

RATE = 16_000
SECONDS = 0.3
"""Of sound in each case."""
LONGEST_TURN = 0.1
"""Seconds of the processor: other programs run on the machine, too."""
MOST_TURNS = 2_000
"""For one message: a few kilobytes may hold hours."""
MOST_GROWTH = 40
"""Megabytes."""
EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\1", b"\xff\0\xff\0")


def corpus() -> list[tuple[Encoding, list[bytes]]]:
    """Whole streams, as messages: containers are one, packets many."""
    found: list[tuple[Encoding, list[bytes]]] = []
    for kind in samples.CONTAINERS:
        found += [
            (kind, [samples.contained(kind, rate, SECONDS, channels)]) for rate, channels in ((16_000, 1), (48_000, 2))
        ]
    found.append((Encoding.OGG, [samples.contained(Encoding.OGG, 44_100, SECONDS, 2, "vorbis")]))
    found.append((Encoding.OGG, [samples.ogg_flac(samples.speech(16_000, SECONDS), 16_000)]))
    found.append((Encoding.WEBM, [samples.contained(Encoding.WEBM, 44_100, SECONDS, 2, "vorbis")]))
    found.append((Encoding.OPUS, samples.opus_packets(samples.speech(48_000, SECONDS))))
    found.append((Encoding.AMR_NB, [samples.amr_nb(samples.speech(8_000, SECONDS))]))
    found.append((Encoding.G722, [samples.g722(samples.speech(16_000, SECONDS))]))
    return found


def damaged(data: bytes, other: bytes, random_: random.Random) -> bytes:
    """The data with one to four kinds of damage."""
    body = bytearray(data)
    for _ in range(random_.randint(1, 4)):
        if not body:
            break
        # Half of it near the start, where the headers are.
        reach = len(body) if random_.random() < 0.5 else min(len(body), 400)
        at = random_.randrange(reach)
        size = min(len(body) - at, random_.choice((1, 4, 30, 500, 5_000)))
        match random_.randrange(9):
            case 0:
                body[at] ^= 1 << random_.randrange(8)
            case 1:
                body[at : at + size] = random_.randbytes(size)
            case 2:
                del body[at : at + size]
            case 3:
                body[at:at] = body[at : at + size]
            case 4:
                del body[at:]
            case 5:
                body[at : at + 4] = random_.choice(EXTREMES)
            case 6:
                body[at : at + size] = bytes(size)
            case 7:
                body[at:at] = other[: random_.randrange(2_000)]
            case 8:
                body[at:] = other[random_.randrange(len(other)) :]
    return bytes(body)


def run_case(declared: Encoding, messages: list[bytes], channels: int, rate: int) -> tuple[str, float]:
    """How it ended, and its longest turn in seconds."""
    decoder = StreamDecoder(AudioFormat(declared, rate, channels), RATE, lanes=1)
    longest = 0.0
    try:
        for index in range(len(messages) + 1):
            if index < len(messages):
                decoder.push(messages[index])
            else:
                decoder.finish()
            turns = 0
            while True:
                begun = time.thread_time()
                lanes = decoder.read()
                longest = max(longest, time.thread_time() - begun)
                if lanes is None:
                    break
                turns += 1
                assert len(lanes[0]) <= 2 * RATE, f"a piece of {len(lanes[0])} bytes"
                if turns > MOST_TURNS:
                    return "endless", longest
    except BridgeError as exc:
        return exc.code, longest
    finally:
        if random.random() < 0.8:  # the others are only forgotten
            decoder.close()
    return "heard" if decoder.frames else "silent", longest


def megabytes() -> float:
    """Resident memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def say(line: str) -> None:
    """On standard output, at once: the next case may be the last."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run the cases; the exit status says whether all went well."""
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(2**32)
    faulthandler.enable()
    say(f"seed {seed}")
    streams = corpus()
    last = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    endings: Counter[str] = Counter()
    faults = 0
    longest = 0.0
    memory = 0.0
    begun = time.monotonic()
    for number in range(cases):
        # Each case can be run alone.
        random_ = random.Random(seed * 1_000_003 + number)
        kind, whole = random_.choice(streams)
        other = random_.choice(streams)[1][0]
        if len(whole) > 1:
            messages = [damaged(m, other, random_) if random_.random() < 0.1 else m for m in whole]
        else:
            data = damaged(whole[0], other, random_) if random_.random() < 0.97 else random_.randbytes(3_000)
            size = random_.choice((7, 100, 1_000, 10_000, len(data) or 1))
            messages = [data[at : at + size] for at in range(0, len(data), size)]
        declared = random_.choice((kind, kind, kind, Encoding.AUTO, random_.choice(list(Encoding))))
        channels, rate = random_.choice((1, 1, 2, 8)), random_.choice((8_000, 16_000, 44_100, 192_000))
        if last is not None:
            last.write_text(f"{number} {declared}\n")
        try:
            ending, turn = run_case(declared, messages, channels, rate)
        except Exception as exc:  # noqa: BLE001 - this is what is looked for
            ending, turn = "fault", 0.0
            faults += 1
            say(f"case {number}: {declared} of {kind}: {type(exc).__name__}: {exc}")
        if turn > LONGEST_TURN:
            faults += 1
            say(f"case {number}: {declared} of {kind}: a turn of {turn:.2f} s")
        endings[ending] += 1
        longest = max(longest, turn)
        if number == cases // 5:
            memory = megabytes()
    seconds = time.monotonic() - begun
    grown = megabytes() - memory
    said = ", ".join(f"{count} {ending}" for ending, count in endings.most_common())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024
    say(
        f"{cases} cases in {seconds:.0f} s: {said}; longest turn {longest * 1e3:.0f} ms; "
        f"{grown:+.0f} MB since a fifth of them, at most {peak:.0f} MB; {faults} faults"
    )
    return 1 if faults or grown > MOST_GROWTH else 0


if __name__ == "__main__":
    sys.exit(main())
