"""The committed recordings are what their manifest says, and samples/make.py still makes them."""

from __future__ import annotations

import importlib.util
import itertools
import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

SAMPLES = Path(__file__).parents[2] / "samples"
MANIFEST: dict[str, Any] = json.loads((SAMPLES / "manifest.json").read_text("utf-8"))
ENTRIES: list[dict[str, Any]] = MANIFEST["samples"]
BY_FILE = {entry["file"]: entry for entry in ENTRIES}
each = pytest.mark.parametrize("entry", ENTRIES, ids=list(BY_FILE))

# One for each thing make.py does to speech: a room, resampling and two channels, noise, a line and mu-law.
REMADE = ("hello.flac", "stereo-48k.flac", "stereo-left.flac", "noisy.flac", "telephone-mulaw.wav")


def decoded(path: Path) -> tuple[int, str, NDArray[np.int16]]:
    """The rate, the codec and the audio, one column a channel."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        channels = stream.codec_context.channels
        frames = []
        for frame in container.decode(audio=0):
            assert frame.format.name in {"s16", "s16p"}
            frames.append(frame.to_ndarray().reshape(-1, channels))
        return stream.codec_context.sample_rate, stream.codec_context.name, np.concatenate(frames)


def level(pcm: NDArray[np.int16]) -> float:
    """RMS in dB below full scale."""
    rms = np.sqrt((pcm.astype(np.float64) ** 2).mean())
    return float(20 * np.log10(rms / 32768 + 1e-9))


def test_there_are_enough_of_them_and_they_stay_small() -> None:
    files = {path.name for path in SAMPLES.iterdir() if path.suffix in {".flac", ".wav"}}
    assert files == set(BY_FILE)
    assert len(files) >= 12
    assert sum((SAMPLES / name).stat().st_size for name in files) < 6_000_000


def test_every_wanted_kind_is_there() -> None:
    assert {entry["voice"] for entry in ENTRIES} == {"rms", "slt", "awb", "kal16"}
    assert {entry["sample_rate"] for entry in ENTRIES} == {8_000, 16_000, 22_050, 44_100, 48_000}
    assert {entry["channels"] for entry in ENTRIES} == {1, 2}
    assert {entry["encoding"] for entry in ENTRIES} == {"flac", "pcm_mulaw"}
    assert max(entry["seconds"] for entry in ENTRIES) >= 115


@each
def test_file_is_what_the_manifest_says(entry: dict[str, Any]) -> None:
    rate, codec, pcm = decoded(SAMPLES / entry["file"])
    assert rate == entry["sample_rate"]
    assert codec == entry["encoding"]
    assert pcm.shape[1] == entry["channels"]
    assert len(pcm) / rate == pytest.approx(entry["seconds"], abs=0.001)


@each
def test_transcript_is_plain_words(entry: dict[str, Any]) -> None:
    assert re.fullmatch(r"[a-z']+( [a-z']+)*", entry["transcript"])
    assert entry["transcript"] == " ".join(u["text"] for u in entry["utterances"])


@each
def test_speech_is_where_the_manifest_says(entry: dict[str, Any]) -> None:
    rate, _, pcm = decoded(SAMPLES / entry["file"])
    times = [(u["start"], u["end"]) for u in entry["utterances"]]
    quiet = [(0.0, times[0][0])]
    quiet += [(end, start) for (_, end), (start, _) in itertools.pairwise(times)]
    quiet += [(times[-1][1], entry["seconds"])]
    assert all(0.3 <= end - start <= 0.5 for start, end in (quiet[0], quiet[-1]))
    assert all(end - start >= 0.7 for start, end in quiet[1:-1])
    speech = min(level(pcm[round(a * rate) : round(b * rate), 0]) for a, b in times)
    # A breath before the first sound and the last sound's decay are quiet, but not silent.
    still = max(level(pcm[round((a + 0.15) * rate) : round((b - 0.1) * rate), 0]) for a, b in quiet)
    assert speech - still > 12


@each
def test_readme_describes_it(entry: dict[str, Any]) -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (SAMPLES / "README.md").read_text("utf-8").splitlines()
        if line.startswith(f"| `{entry['file']}`")
    ]
    assert rows == [
        [
            f"`{entry['file']}`",
            entry["voice"],
            f"{entry['sample_rate'] / 1000:g} kHz",
            f"{entry['seconds']:.1f}",
            entry["about"],
        ]
    ]


def test_stereo_left_has_nothing_on_the_right() -> None:
    _, _, pcm = decoded(SAMPLES / "stereo-left.flac")
    assert pcm[:, 0].any()
    assert not pcm[:, 1].any()


def why_not_remade() -> str | None:
    """What keeps make.py from making the same audio here, if anything."""
    if absent := [tool for tool in ("flite", "ffmpeg") if shutil.which(tool) is None]:
        return f"{' and '.join(absent)} not on PATH"
    if absent := [name for name in ("pydub", "audioop") if importlib.util.find_spec(name) is None]:
        return f"{' and '.join(absent)} not installed: pip install 'stt-bridge[samples]'"
    made_with = MANIFEST["made_with"]
    if platform.machine() != made_with["machine"]:
        return f"flite speaks otherwise on {platform.machine()} than on {made_with['machine']}"
    told = subprocess.run(["flite", "--version"], check=False, capture_output=True, text=True).stdout
    if made_with["flite"] not in told:
        return f"this flite is not {made_with['flite']}"
    return None


def test_make_reproduces_the_committed_audio(tmp_path: Path) -> None:
    if reason := why_not_remade():
        pytest.skip(reason)
    make = [sys.executable, str(SAMPLES / "make.py"), "--out", str(tmp_path), *REMADE]
    subprocess.run(make, check=True, capture_output=True, timeout=50)
    for name in REMADE:
        rate, codec, remade = decoded(tmp_path / name)
        kept_rate, kept_codec, kept = decoded(SAMPLES / name)
        assert (rate, codec) == (kept_rate, kept_codec), name
        assert np.array_equal(remade, kept), f"{name}: the audio differs"
    assert not (tmp_path / "manifest.json").exists()


def test_make_says_what_to_install(tmp_path: Path) -> None:
    make = subprocess.run(
        [sys.executable, str(SAMPLES / "make.py"), "--out", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": str(tmp_path)},
        timeout=50,
    )
    assert make.returncode == 1
    assert "flite and ffmpeg" in make.stderr
    assert "apt-get install flite ffmpeg" in make.stderr


def test_make_refuses_a_name_it_does_not_know(tmp_path: Path) -> None:
    if reason := why_not_remade():
        pytest.skip(reason)
    make = subprocess.run(
        [sys.executable, str(SAMPLES / "make.py"), "--out", str(tmp_path), "nothing.flac"],
        check=False,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert make.returncode == 2
    assert "no such sample: nothing.flac" in make.stderr
