"""What sessions say, and that its times are those of the recordings."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from bench.load.plan import FRAME_BYTES, FRAME_SECONDS
from bench.load.speech import Clip, Part, SpeechError, Utterance, clips, manifest, on_the_wire, part, said
from tests.commands.conftest import write_wav

ONE = Clip("one", (b"a", b"b", b"c"), (Utterance("uno", 0.25),))
TWO = Clip("two", (b"d", b"e"), (Utterance("due", 0.1), Utterance("tre", 0.2)))


def test_the_project_s_own_recordings() -> None:
    found = clips()
    assert len(found) >= 15
    for clip in found:
        assert all(len(frame) == FRAME_BYTES for frame in clip.frames)
        seconds = len(clip.frames) * FRAME_SECONDS
        ends = [u.end for u in clip.utterances]
        assert ends == sorted(ends)
        assert ends[-1] <= seconds
        assert all(u.text for u in clip.utterances)
        samples = np.frombuffer(b"".join(clip.frames), "<i2").astype(float)
        last = round(ends[-1] * 16_000)
        loud, after = samples[last - 4_800 : last], samples[last + 1_600 :]
        if clip.name != "noisy.flac":
            assert loud.std() > 3 * after.std(), clip.name  # the speech ends where the manifest says so


@pytest.mark.parametrize("seconds", [0.1, 3, 20, 120])
def test_a_part_has_its_length_and_no_clip_is_cut(seconds: float) -> None:
    found = clips()
    spoken = part(found, seconds, 1.0, random.Random(1))
    assert spoken.frames == round(seconds / FRAME_SECONDS)
    assert sum(pause + len(found[number].frames) for pause, number in spoken.clips) <= spoken.frames
    assert bool(spoken.clips) == (seconds >= 3)
    assert len(on_the_wire(b"-", [clip.frames for clip in found], spoken)) == spoken.frames


def test_all_is_said_before_anything_is_said_again() -> None:
    spoken = part([ONE, TWO], 3.0, 0.0, random.Random(1))
    numbers = [number for _, number in spoken.clips]
    assert {*numbers[:2]} == {*numbers[2:4]} == {0, 1}


def test_sessions_differ_and_each_is_the_same_again() -> None:
    found = clips()
    first = part(found, 20, 1.0, random.Random(1))
    assert first == part(found, 20, 1.0, random.Random(1))
    assert first != part(found, 20, 1.0, random.Random(2))


def test_utterances_are_on_the_part_s_clock() -> None:
    spoken = Part(((0, 0), (2, 1)), 10)
    assert [u.text for u in said([ONE, TWO], spoken)] == ["uno", "due", "tre"]
    assert [u.end for u in said([ONE, TWO], spoken)] == pytest.approx([0.25, 0.6, 0.7])
    assert on_the_wire(b"-", [ONE.frames, TWO.frames], spoken) == [
        b"a",
        b"b",
        b"c",
        *[b"-"] * 2,
        b"d",
        b"e",
        *[b"-"] * 3,
    ]


def test_speech_of_one_s_own(tmp_path: Path) -> None:
    write_wav(tmp_path / "mine.wav", 0.95)
    samples = [{"file": "mine.wav", "seconds": 0.95, "utterances": [{"text": "ah", "end": 0.9}]}]
    (tmp_path / "manifest.json").write_text(json.dumps({"samples": samples}))
    (clip,) = clips(tmp_path)
    assert (clip.name, len(clip.frames), clip.utterances) == ("mine.wav", 10, (Utterance("ah", 0.9),))


@pytest.mark.parametrize(
    ("text", "said_of_it"),
    [
        (None, "is not there"),
        ("{", "cannot be used"),
        ("{}", "cannot be used"),
        ('{"samples": []}', "names no recording"),
    ],
)
def test_a_folder_without_speech(tmp_path: Path, text: str | None, said_of_it: str) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(SpeechError, match=said_of_it):
        manifest(tmp_path)
