#!/usr/bin/env python3
"""Make the sample recordings: flite speaks, numpy adds room and noise, pydub writes the files.

    python samples/make.py                    # all of them, beside this script, with manifest.json
    python samples/make.py --out DIR NAME...  # only these, into DIR

The same script makes the same audio samples every time: the noise is seeded, and nothing is dithered on the
way to the file. Only another flite (its version and machine are in the manifest) may speak differently.
Every utterance is placed at a time this script chose, so the manifest can say when speech starts and ends.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import wave
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

Signal = NDArray[np.float64]  # one channel, in 16-bit steps: full scale is 32768

SPEECH_RATE = 16_000  # what every voice used here speaks at
FRAME = SPEECH_RATE // 100  # 10 ms: the resolution of the speech times
AUDIBLE_DBFS = -50.0  # a frame above this level is speech
BEFORE, AFTER = 8, 12  # frames of flite's own near-silence kept around an utterance, for its soft edges
LEAD = 0.4  # seconds of quiet before the first utterance and after the last
ROOM_DBFS = -62.0  # the noise floor of a quiet room
LINE_DBFS = -55.0  # and of a telephone line


@dataclass(frozen=True, slots=True)
class Sample:
    """One recording, as it is to be made; all times are seconds."""

    file: str
    about: str
    lines: tuple[str, ...]
    voice: str = "rms"
    rate: int = SPEECH_RATE
    gaps: tuple[float, ...] = (0.8,)  # quiet between utterances, used in turn
    channels: str = "mono"  # mono; both: the same speech twice; left: nothing at all on the right
    snr_db: float | None = None  # fan noise this far below the speech, instead of a quiet room
    telephone: bool = False  # 300-3400 Hz only
    codec: str | None = None  # ffmpeg's name of the encoding, where it is not the container's plain one


LONG = (
    "hello and welcome to the program",
    "the storm moved out to sea during the night",
    "the wind is strong today but it should be calm by the evening",
    "it will rain in the morning and the sun will come out later in the day",
    "the temperature will be about seventy degrees",
    "the president will speak to the nation on television tonight",
    "the government said on monday that prices will not go up this year",
    "the police said that nobody was hurt in the accident",
    "the flight to chicago has been delayed because of the weather",
    "there were more than a thousand people in the park",
    "the game was over and everybody went home",
    "students at the university are learning how to write computer programs",
    "the computer can now understand what people say",
    "nobody knows what will happen in the future",
    "my father used to tell us stories about the war",
    "one day a young woman came to his door and asked for a glass of water",
    "he gave her some bread and a cup of tea",
    "the old man listened and said nothing for a long time",
    "then he opened the window and looked out at the garden",
    "the people of the village came out to see what had happened",
    "he said that he would come back in the spring",
    "the road to the village was long and narrow",
    "they walked along the beach until the sun went down",
    "the boys were looking for their dog in the woods",
    "the water in the lake was cold and clear",
    "the birds come back to the lake every spring",
    "it was the best day of my life",
    "we are going to visit our friends in california next summer",
)

SAMPLES = (
    Sample("hello.flac", "the first try", ("hello there it is good to hear your voice today",)),
    Sample(
        "demo.flac",
        "the demonstration: several sentences on one subject",
        (
            "my brother lives in a small town near the river",
            "the bridge over the river was built a hundred years ago",
            "the town has a new school and a new hospital",
            "there is a good restaurant on the corner of the street",
            "the house at the end of the street is for sale",
        ),
    ),
    Sample("short.flac", "one short command", ("stop the music",)),
    Sample(
        "commands.flac",
        "short commands, each its own utterance",
        (
            "what time is it in new york",
            "set the alarm for six thirty in the morning",
            "play some music in the kitchen",
            "turn off the music in the living room",
        ),
    ),
    Sample(
        "digits.flac",
        "digits, for grammars and exact checks",
        (
            "one two three four five",
            "six seven eight nine ten",
            "my phone number is five five five eight three two one",
        ),
    ),
    Sample(
        "weather.flac",
        "two longer sentences",
        (
            "the wind is strong today but it should be calm by the evening",
            "tomorrow there will be snow in the mountains and rain along the coast",
        ),
    ),
    Sample(
        "train.flac",
        "two announcements",
        (
            "the next train to new york leaves in twenty minutes",
            "please stand clear of the closing doors",
        ),
    ),
    Sample(
        "meeting.flac",
        "office talk",
        (
            "we will meet in the small room on the second floor",
            "please send the report to everyone before the end of the week",
        ),
    ),
    Sample(
        "voice-slt.flac",
        "another voice: a woman, American",
        (
            "good morning and thank you for coming",
            "we need more time to finish the work on the new building",
        ),
        voice="slt",
    ),
    Sample(
        "voice-awb.flac",
        "another voice: a man, Scottish",
        (
            "please have your tickets ready before you board the train",
            "we will meet in the small room on the second floor",
        ),
        voice="awb",
    ),
    Sample(
        "voice-kal16.flac",
        "another voice: a man, audibly a machine",
        (
            "he said that he would come back in the spring",
            "the answer is forty two",
        ),
        voice="kal16",
    ),
    Sample(
        "rate-22k.flac",
        "resampling from 22.05 kHz",
        ("the children were playing in the garden behind the house",),
        rate=22_050,
    ),
    Sample(
        "rate-44k.flac",
        "resampling from 44.1 kHz",
        ("i would like a cup of coffee and a piece of cake",),
        rate=44_100,
    ),
    Sample(
        "stereo-48k.flac",
        "48 kHz stereo, the same speech in both channels",
        ("can you tell me how to get to the station",),
        rate=48_000,
        channels="both",
    ),
    Sample(
        "stereo-left.flac",
        "stereo with speech on the left and digital silence on the right",
        ("the bus stops in front of the post office",),
        channels="left",
    ),
    Sample(
        "noisy.flac",
        "fan noise 15 dB below the speech",
        (
            "the first item on our list is the budget for next year",
            "he has been working for the same company for twenty years",
        ),
        snr_db=15.0,
    ),
    Sample(
        "telephone.flac",
        "a telephone line: 300-3400 Hz at 8 kHz",
        ("hello and welcome to the program", "your call is important to us"),
        rate=8_000,
        telephone=True,
    ),
    Sample(
        "telephone-mulaw.wav",
        "the same call as G.711 mu-law in a WAV file",
        ("hello and welcome to the program", "your call is important to us"),
        rate=8_000,
        telephone=True,
        codec="pcm_mulaw",
    ),
    Sample(
        "pause.flac",
        "ten seconds of quiet between two utterances",
        ("i think that is a very good idea", "it is always a pleasure to work with you"),
        gaps=(10.0,),
    ),
    Sample("long.flac", "two minutes with pauses of different lengths", LONG, gaps=(0.9, 1.4, 0.8, 2.0)),
)


@cache
def speak(voice: str, text: str) -> tuple[Signal, int, int]:
    """One utterance as flite says it, with the first and last frame (exclusive) in which it is audible."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "utterance.wav"
        subprocess.run(["flite", "-voice", voice, "-t", text, "-o", str(path)], check=True)
        with wave.open(str(path)) as spoken:
            # Asked for a voice it lacks, flite speaks with kal, and that one has 8 kHz.
            if spoken.getframerate() != SPEECH_RATE:
                sys.exit(f"this flite has no voice {voice}: `flite -lv` lists its voices")
            raw = spoken.readframes(spoken.getnframes())
    signal = np.frombuffer(raw, "<i2").astype(np.float64)
    frames = signal[: len(signal) // FRAME * FRAME].reshape(-1, FRAME)
    audible = np.flatnonzero(np.sqrt((frames**2).mean(axis=1)) > amplitude(AUDIBLE_DBFS))
    return signal, int(audible[0]), int(audible[-1]) + 1


def amplitude(dbfs: float) -> float:
    """The RMS, in 16-bit steps, of a level below full scale."""
    return float(32768 * 10 ** (dbfs / 20))


def noise(length: int, seed: int) -> Signal:
    """Nearly Gaussian noise of RMS 1.

    Sums of RandomState's uniform numbers: numpy promises that stream never changes, and adding needs no
    function that one platform rounds otherwise than another.
    """
    uniform = np.random.RandomState(seed).random_sample((6, length))
    return np.asarray((uniform.sum(axis=0) - 3.0) * np.sqrt(2.0), np.float64)


def shaped(signal: Signal, gain: Any) -> Signal:
    """The signal with each frequency (Hz) multiplied by gain(frequencies)."""
    spectrum = np.fft.rfft(signal)
    return np.fft.irfft(spectrum * gain(np.fft.rfftfreq(len(signal), 1 / SPEECH_RATE)), len(signal))


def fan(hertz: Signal) -> Signal:
    """6 dB less with every octave above 100 Hz, flat below it."""
    return np.asarray(1 / np.maximum(hertz, 100.0))


def telephone_band(hertz: Signal) -> Signal:
    """300-3400 Hz, with edges 100 Hz wide."""
    return np.interp(hertz, [250.0, 350.0, 3350.0, 3450.0], [0.0, 1.0, 1.0, 0.0])


def place(sample: Sample) -> tuple[Signal, list[dict[str, Any]]]:
    """The utterances at their times, in otherwise perfect silence at SPEECH_RATE, and those times."""
    at = round(LEAD * SPEECH_RATE)
    pieces: list[tuple[int, Signal]] = []
    utterances: list[dict[str, Any]] = []
    for index, text in enumerate(sample.lines):
        if index:
            at += round(sample.gaps[(index - 1) % len(sample.gaps)] * SPEECH_RATE)
        spoken, first, last = speak(sample.voice, text)
        kept = max(first - BEFORE, 0)
        pieces.append((at - (first - kept) * FRAME, spoken[kept * FRAME : (last + AFTER) * FRAME]))
        start, at = at, at + (last - first) * FRAME
        utterances.append({"start": start / SPEECH_RATE, "end": at / SPEECH_RATE, "text": text})
    whole = np.zeros(at + round(LEAD * SPEECH_RATE))
    for begin, piece in pieces:
        whole[begin : begin + len(piece)] += piece
    return whole, utterances


def speech_rms(signal: Signal, utterances: list[dict[str, Any]]) -> float:
    """The RMS over the utterances alone."""
    parts = [signal[round(u["start"] * SPEECH_RATE) : round(u["end"] * SPEECH_RATE)] for u in utterances]
    return float(np.sqrt((np.concatenate(parts) ** 2).mean()))


def render(sample: Sample) -> tuple[NDArray[np.int16], list[dict[str, Any]]]:
    """The recording's audio, one column a channel, and its utterances."""
    signal, utterances = place(sample)
    background = noise(len(signal), seed=zlib.crc32(sample.file.encode()))
    if sample.snr_db is None:
        background *= amplitude(ROOM_DBFS)
    else:
        background = shaped(background, fan)
        wanted = speech_rms(signal, utterances) * 10 ** (-sample.snr_db / 20)
        background *= wanted / np.sqrt((background**2).mean())
    signal = signal + background
    if sample.telephone:
        # The line has a noise of its own: no receiver ever sees a spectrum that is empty beside the band.
        line = noise(len(signal), seed=zlib.crc32(b"line"))
        signal = shaped(signal, telephone_band) + amplitude(LINE_DBFS) * line
    if sample.rate != SPEECH_RATE:
        signal = soxr.resample(signal, SPEECH_RATE, sample.rate, quality="VHQ")
    pcm = np.clip(np.rint(signal), -32768, 32767).astype("<i2")
    columns = {"mono": [pcm], "both": [pcm, pcm], "left": [pcm, np.zeros_like(pcm)]}[sample.channels]
    return np.stack(columns, axis=1), utterances


def write(sample: Sample, pcm: NDArray[np.int16], folder: Path) -> None:
    """Encode with ffmpeg, leaving out what would differ from one ffmpeg to the next."""
    segment = AudioSegment(data=pcm.tobytes(), sample_width=2, frame_rate=sample.rate, channels=pcm.shape[1])
    plain = ["-map_metadata", "-1", "-fflags", "+bitexact", "-flags:a", "+bitexact"]
    tight = ["-compression_level", "12"] if sample.file.endswith(".flac") else []
    target = folder / sample.file
    segment.export(str(target), format=target.suffix[1:], codec=sample.codec, parameters=plain + tight).close()


def describe(sample: Sample, pcm: NDArray[np.int16], utterances: list[dict[str, Any]]) -> dict[str, Any]:
    """The recording's entry in the manifest."""
    return {
        "file": sample.file,
        "about": sample.about,
        "transcript": " ".join(sample.lines),
        "voice": sample.voice,
        "sample_rate": sample.rate,
        "channels": pcm.shape[1],
        "encoding": sample.codec or "flac",
        "seconds": round(len(pcm) / sample.rate, 3),
        "utterances": utterances,
    }


def flite_version() -> str:
    """What `flite --version` calls itself."""
    told = subprocess.run(["flite", "--version"], check=False, capture_output=True, text=True).stdout
    lines = [line.strip() for line in told.splitlines()]
    return next((line.removeprefix("version: ").split(" (")[0] for line in lines if "version:" in line), "?")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the sample recordings.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    parser.add_argument("names", nargs="*", metavar="NAME", help="files to make (default: all)")
    options = parser.parse_args()
    known = {sample.file: sample for sample in SAMPLES}
    if unknown := sorted(set(options.names) - set(known)):
        parser.error(f"no such sample: {', '.join(unknown)} (there are: {', '.join(known)})")
    options.out.mkdir(parents=True, exist_ok=True)
    entries = []
    for sample in [known[name] for name in options.names] or SAMPLES:
        pcm, utterances = render(sample)
        write(sample, pcm, options.out)
        entries.append(describe(sample, pcm, utterances))
        print(f"{sample.file:22} {len(pcm) / sample.rate:6.1f} s")
    manifest = {"made_with": {"flite": flite_version(), "machine": platform.machine()}, "samples": entries}
    # A part of the samples must not pass for all of them.
    if not options.names:
        (options.out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")


if missing := [tool for tool in ("flite", "ffmpeg") if shutil.which(tool) is None]:
    sys.exit(f"make.py needs {' and '.join(missing)} on PATH. On Debian or Ubuntu: sudo apt-get install flite ffmpeg")
try:
    from pydub import AudioSegment
except ImportError as error:
    sys.exit(f"make.py needs pydub ({error}): pip install 'stt-bridge[samples]'")

if __name__ == "__main__":
    main()
