"""`bench.whisper` in short: what it plays, how it counts, how it searches, and both contenders on a model of chance."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest

from backends.base import AsyncBackend, BackendError, Capabilities, RecognitionConfig, Result
from backends.whisper.model import Prepared
from backends.whisper.options import WhisperOptions
from backends.whisper.window import RATE, Hypothesis
from bench import whisper, whisper_load
from bench.whisper_contender import LockedLoop, SpokenModel, contender
from bench.whisper_load import Load, Run, Utterance, turns, utterances
from bench.whisper_models import Size, make
from bench.whisper_texts import same_texts
from bench.whisper_windows import windows
from tests.models.fixture import MODEL

MINUTE = Size(64, 2, 2, 2, text_tokens=1_500)
SAID = [Utterance(bytes(2 * RATE), 0.5, "one")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "minute"
    make(MINUTE, path)
    return path


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a few seconds."""
    monkeypatch.setattr(whisper_load, "SPREAD_SECONDS", 0.5)
    monkeypatch.setattr(whisper_load, "PAUSE_SECONDS", (0.1, 0.2))


# The load


@pytest.mark.parametrize("folder", [whisper_load.SAMPLES, MODEL.parent / "utterances"], ids=["samples", "fixture"])
def test_recordings_are_utterances_with_the_silence_that_ends_them(folder: Path) -> None:
    said = utterances(folder)
    assert len(said) > 20
    for utterance in said:
        assert utterance.text
        assert utterance.seconds == pytest.approx(
            whisper_load.EDGE_SECONDS + utterance.speech_seconds + whisper_load.SILENCE_SECONDS, abs=0.01
        )
        assert abs(utterance.samples[-RATE // 2 :]).max() < 0.01 < abs(utterance.samples).max()


def test_sessions_speak_in_turns_begin_one_after_the_other_and_say_the_same_again() -> None:
    said = utterances()
    spoken = [turns(said, number, 4, 40.0) for number in range(4)]
    assert [each[0].start for each in spoken] == [0.0, 1.5, 3.0, 4.5]
    assert all(one.flush < two.start for each in spoken for one, two in pairwise(each))
    assert all(each[-1].flush <= 40.0 for each in spoken)
    assert spoken == [turns(said, number, 4, 40.0) for number in range(4)]


class Answering(AsyncBackend):
    """Answers each flush after so many seconds; or the first with what `instead` says: `failure`, `end`, `nothing`."""

    name = "answering"

    def __init__(self, seconds: float, *, instead: str = "") -> None:
        super().__init__()
        self._seconds = seconds
        self._instead = instead

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(flush=True)

    async def recognize(self, config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        heard = 0
        async for chunk in audio:
            heard += len(chunk)
            if chunk:
                yield Result("so", False, 0.0, heard / 2 / RATE)
                continue
            await asyncio.sleep(self._seconds)
            if self._instead == "failure":
                raise BackendError("no")
            if self._instead == "end":
                return
            if self._instead == "nothing":
                continue
            yield Result("so", True, 0.0, heard / 2 / RATE)


async def test_finals_are_timed_from_when_they_could_be_asked_for(brisk: None) -> None:
    load = Load("answering", SAID, 2, 3.0)
    await load.play(Answering(0.2))
    run = load.run
    assert (run.carried, run.late, run.failures, run.empty, run.stopped) == (True, 0, 0, 0, False)
    assert run.finals >= 4
    assert 200 <= run.final_ms["p50"] < 600
    assert run.partial_ms["p50"] < 300
    assert run.word_error_rate == 1.0  # it says "so" for "one"


async def test_sessions_without_their_partials_are_not_carried(brisk: None) -> None:
    load = Load("answering", SAID, 1, 2.0, least_partials=30.0)
    await load.play(Answering(0.0))
    assert load.run.late == load.run.failures == 0
    assert 10 < load.run.partials_per_second < 30  # one for each of ten chunks, and half a second of speech in them
    assert not load.run.carried


async def test_a_run_that_cannot_be_saved_any_more_is_cut_short(brisk: None) -> None:
    load = Load("answering", SAID, 8, 30.0)
    await asyncio.wait_for(load.play(Answering(3_600.0)), 20.0)
    assert load.run.stopped
    assert not load.run.carried
    assert load.run.late >= 2
    assert load.run.final_ms["max"] >= 1_000


@pytest.mark.parametrize("instead", ["failure", "end"])
async def test_a_contender_that_fails_carries_nothing(instead: str, brisk: None) -> None:
    load = Load("answering", SAID, 1, 2.0)
    await asyncio.wait_for(load.play(Answering(0.0, instead=instead)), 15.0)
    assert load.run.failures == 1
    assert not load.run.carried


async def test_a_final_that_never_comes_is_late(brisk: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whisper_load, "LAST_SECONDS", 0.2)
    load = Load("answering", SAID, 1, 1.0)
    await load.play(Answering(0.0, instead="nothing"))
    assert (load.run.finals, load.run.late, load.run.stopped) == (1, 1, False)
    assert not load.run.carried


# The search

COSTS = {
    "device": "cuda",
    "compute_type": "float16",
    "first_use_seconds": 1.0,
    "plan": {"max_batch": 16, "workers": 2, "reason": "so"},
    "prepare": 1.0,
    "loop": {"partial": 25.0, "final": 60.0},
    "partial": {"1": 25.0, "16": 5.0},
    "final": {"1": 60.0, "16": 12.0},
}
OPTIONS = argparse.Namespace(
    device="cpu", compute_type="int8", batch_size=0, workers=1, speech=whisper_load.SAMPLES, random=True
)


@pytest.mark.parametrize("truth", [0, 1, 2, 7, 40, 133])
@pytest.mark.parametrize("first", [1, 9, 60])
def test_the_search_finds_the_greatest_number(truth: int, first: int) -> None:
    runs = []

    def play(contender: str, sessions: int) -> dict[str, object]:
        runs.append(sessions)
        return {"sessions": sessions, "carried": sessions <= truth}

    found = whisper.search(play, {"ours": first}, float("inf"))["ours"]
    assert truth - max(1, whisper.PRECISION * truth) <= found["carried"] <= truth
    assert found["too_many"] > truth
    assert len(runs) == len(set(runs)) < 20
    assert (found["best"] or {"sessions": 0})["sessions"] == found["carried"]


def test_contenders_take_turns_until_both_are_known() -> None:
    truth, runs = {"ours": 9, "loop": 2}, []

    def play(contender: str, sessions: int) -> dict[str, object]:
        runs.append(contender)
        return {"carried": sessions <= truth[contender]}

    found = whisper.search(play, {"ours": 2, "loop": 2}, float("inf"))
    assert {contender: each["carried"] for contender, each in found.items()} == truth
    assert runs[:4] == ["ours", "loop"] * 2
    assert runs[-1] == "ours"


def test_the_search_ends_with_its_time_after_a_run_of_each() -> None:
    found = whisper.search(lambda _, n: {"carried": True}, {"ours": 5, "loop": 3}, 0.0)
    assert found["ours"] == {"carried": 5, "too_many": None, "best": {"carried": True}}
    assert found["loop"]["carried"] == 3


def test_a_cheaper_window_lets_the_search_begin_with_more() -> None:
    assert whisper.guess("ours", COSTS) == pytest.approx(5 * whisper.guess("loop", COSTS), abs=5)


def test_a_child_that_breaks_carries_nothing(tmp_path: Path) -> None:
    broken = whisper.child("bench.whisper_contender", ["loop", str(tmp_path / "none")], 60)
    assert broken["carried"] is False
    assert "exit code" in broken["error"]


def test_a_comparison_is_kept_run_by_run_and_summed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    carries = {"ours": 20, "loop": 5}
    kept: list[int] = []

    def child(module: str, options: list[str], limit_seconds: float) -> dict[str, object]:
        if module == "bench.whisper_costs":
            return COSTS
        sessions = int(options[2].removeprefix("--sessions="))
        kept.extend(len(json.loads(path.read_text())["models"]["minute"]["runs"]) for path in tmp_path.iterdir())
        return asdict(Run(options[0], sessions, 1.0, carried=sessions <= carries[options[0]], final_ms={"p95": 900.0}))

    monkeypatch.setattr(whisper, "child", child)
    report: dict[str, object] = {}
    args = argparse.Namespace(**vars(OPTIONS), seconds=1.0, contenders=("ours", "loop"), least_partials=0.0)
    save = whisper.saver(report, tmp_path)
    whisper.compare(report, "minute", tmp_path, args, float("inf"), save)
    assert kept == list(range(1, len(kept) + 1))  # what ended before is on the disk when the next run begins
    [path] = tmp_path.iterdir()
    found = json.loads(path.read_text())["models"]["minute"]
    assert found["loop"]["carried"] == 5
    assert 18 <= found["ours"]["carried"] <= 20
    whisper.print_summary({"minute": found})
    assert "| minute | loop | 5 | 6 | 0 / 900 ms |" in capsys.readouterr().out


# Contenders


@pytest.mark.parametrize("name", ["ours", "loop"])
async def test_contenders_answer_every_flush(name: str, folder: Path, brisk: None) -> None:
    backend = contender(name, WhisperOptions(model=str(folder), offline=True, device="cpu"), random=True)
    await backend.load()
    load = Load(name, utterances()[:4], 1, 4.0)
    try:
        await load.play(backend)
    finally:
        await backend.close()
    assert load.run.finals >= 1
    assert (load.run.failures, load.run.empty) == (0, 0)
    assert load.run.partial_ms


async def test_the_loop_decodes_one_window_at_a_time_and_no_partial_that_is_over(folder: Path) -> None:
    loop = LockedLoop(folder, WhisperOptions(model=str(folder), offline=True, device="cpu"), random=True)
    asked: list[tuple[float, bool]] = []
    inside = 0

    def transcribe(pcm: bytes, *, final: bool) -> str:
        nonlocal inside
        inside += 1
        assert inside == 1
        asked.append((len(pcm) / 2 / RATE, final))
        inside -= 1
        return "so"

    loop.transcribe = transcribe  # type: ignore[method-assign]
    loud = utterances()[0].pcm[: 2 * 2 * RATE]

    async def audio() -> AsyncIterator[bytes]:
        for _ in range(2):
            for start in range(0, len(loud), 6_400):
                yield loud[start : start + 6_400]
            yield b""

    results = [result async for result in loop.recognize(RecognitionConfig(), audio())]
    assert [result.end for result in results if result.is_final] == [2.0, 4.0]
    assert [seconds for seconds, final in asked if final] == [2.0, 2.0]
    # The audio came at once: a partial had no turn before its utterance was over.
    assert len(asked) <= 4


async def test_texts_are_the_same_in_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BATCH": 3, "STREAMS": 3, "EACH": 1}.items():
        monkeypatch.setattr(f"bench.whisper_texts.{name}", value)
    found = await same_texts(folder, OPTIONS)
    assert (found["windows"], found["streams"], found["different"]) == (18, 3, 0)


async def test_another_text_in_company_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BATCH": 2, "STREAMS": 1, "EACH": 1}.items():
        monkeypatch.setattr(f"bench.whisper_texts.{name}", value)
    decode = SpokenModel.decode

    def worse(self: SpokenModel, batch: Sequence[Prepared]) -> list[Hypothesis]:
        heard = decode(self, batch)
        return [replace(one, pieces=one.pieces[:-1]) for one in heard] if len(batch) > 1 else heard

    monkeypatch.setattr(SpokenModel, "decode", worse)
    found = await same_texts(folder, OPTIONS)
    assert found["different"] == found["windows"] == 12


def test_encoder_windows_have_their_costs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.whisper_windows.STRETCHES", 2)
    monkeypatch.setattr("bench.whisper_windows.WINDOWS", (5, 10))
    found = windows(folder, OPTIONS)
    assert [(row["speech"], row["window"]) for row in found[::2]] == [(5, 5), (5, 10), (10, 10)]
    assert [row["kind"] for row in found] == ["partial", "final"] * 3
    assert all(row["stretches"] == 2 and row["words"] > 0 and row["milliseconds"] > 0 for row in found)
