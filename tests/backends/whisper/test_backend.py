"""The engine with a real model: words and their times, languages, silence that stays silent, many sessions."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import random
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.base import DETECT, FLUSH, BackendError, Fault, RecognitionConfig
from backends.whisper.backend import WhisperBackend
from backends.whisper.model import Model, Prepared, Request
from bench.noises import NOISES, RATE, Signal, at_level, normal, to_pcm16
from tests.backends.whisper.harness import (
    assert_times,
    breaking,
    cut,
    heard,
    loaded,
    paced,
    said,
    silence,
    sound,
    unpaused,
)
from tests.models import fixture
from tests.speech import SECOND, word_error_rate

pytestmark = pytest.mark.asyncio(loop_scope="module")


# Words


async def test_the_words_of_every_recording_that_is_certain(backend: WhisperBackend) -> None:
    recordings = [one for one in fixture.utterances() if one.certain]
    results = await asyncio.gather(*(heard(backend, sound(one.path), language=one.language) for one in recordings))
    assert [result.text for result in results] == [one.text for one in recordings]
    for one, result in zip(recordings, results, strict=True):
        result.assert_in_order(len(sound(one.path)) / SECOND)
        assert {final.language for final in result.finals if final.text} == {one.language}
        assert all(0 < (final.confidence or 0) <= 1 for final in result.finals if final.text)


async def test_the_times_of_words(backend: WhisperBackend) -> None:
    """Within a stretch of other audio, where times of the window and of the stream differ."""
    recordings = fixture.certain()[:6]
    audio, text = said(recordings)
    result = await heard(backend, silence(1.5) + audio)
    words = [word for final in result.finals for word in final.words]
    assert " ".join(word.text for word in words) == text
    assert_times(words, recordings, first=1.5)
    assert all(0 < (word.confidence or 0) <= 1 for word in words)


async def test_audio_that_ends_with_the_last_sample_of_a_word(backend: WhisperBackend) -> None:
    recordings = [one for one in fixture.utterances() if one.certain and one.seen]
    ends = [2 * round(one.words[-1].end * SECOND / 2) for one in recordings]
    results = await asyncio.gather(
        *(
            heard(backend, sound(one.path)[:end], language=one.language, partials=False)
            for one, end in zip(recordings, ends, strict=True)
        )
    )
    assert [result.text for result in results] == [one.text for one in recordings]


async def test_a_flush_finalizes_the_words_before_it(backend: WhisperBackend) -> None:
    """Nothing follows them: the flush comes with the last sample, long before the silence that ends an utterance."""
    first, second = fixture.certain(words=3)[:2]
    end = first.words[-1].end
    audio = sound(first.path)[: 2 * round(end * SECOND / 2)]
    answered = asyncio.Event()

    async def speech() -> Any:
        for chunk in [*cut(audio), FLUSH]:
            yield chunk
        await answered.wait()
        for chunk in cut(sound(second.path)):
            yield chunk

    texts = []
    async with asyncio.timeout(20):
        async for result in backend.recognize(RecognitionConfig(), speech()):
            if result.is_final and result.text:
                texts.append(result.text)
                answered.set()
    assert texts == [first.text, second.text]


@pytest.mark.parametrize("language", ["en", "de"])
async def test_the_same_finals_however_the_audio_comes(backend: WhisperBackend, language: str) -> None:
    audio, text = said(fixture.certain(language)[:3])
    runs = await asyncio.gather(
        heard(backend, audio, language=language),
        heard(backend, [audio], language=language),
        heard(backend, cut(audio, 642), language=language),
        heard(backend, cut(audio, 30_000), language=language),
        heard(backend, audio, language=language, partials=False),
    )
    live = await heard(backend, paced(audio, 3), language=language)
    assert runs[0].text == text
    for run in (*runs, live):
        assert [(final.text, final.start, final.end) for final in run.finals] == [
            (final.text, final.start, final.end) for final in runs[0].finals
        ]


# Silence


def chords(chance: np.random.Generator, samples: int) -> Signal:
    """Chords of four notes with harmonics, a new one each half second, struck and fading."""
    time = np.arange(samples) / RATE
    beat = 0.5
    signal = np.zeros(samples)
    for at in np.arange(0, samples / RATE, beat):
        part = (time >= at) & (time < at + beat)
        root = chance.choice([110.0, 130.8, 146.8, 164.8, 196.0])
        for ratio in (1, 5 / 4, 3 / 2, 2):
            for harmonic in (1, 2, 3, 4):
                tone = np.sin(2 * np.pi * root * ratio * harmonic * time[part]) / harmonic**1.5
                signal[part] += tone * np.exp(-3 * (time[part] - at))
    return normal(signal)


def melody(chance: np.random.Generator, samples: int) -> Signal:
    """Pure tones of a scale, four a second."""
    time = np.arange(samples) / RATE
    scale = 220 * 2 ** (np.array([0, 2, 4, 5, 7, 9, 11, 12]) / 12)
    notes = chance.choice(scale, size=samples // (RATE // 4) + 1)
    return normal(np.sin(2 * np.pi * np.cumsum(np.repeat(notes, RATE // 4)[:samples]) / RATE) * (time > 0))


PHANTOMS: dict[str, Callable[[np.random.Generator, int], Signal]] = {
    **{name: NOISES[name] for name in ("white", "pink", "hum 50 Hz", "clicks", "fan")},
    "chords": chords,
    "melody": melody,
    "silence": lambda _, samples: np.zeros(samples),
}


@pytest.mark.parametrize("name", PHANTOMS)
async def test_no_word_where_nobody_speaks(backend: WhisperBackend, name: str) -> None:
    """Half a minute, without a gate before it, loud and soft."""
    chance = np.random.default_rng(5)
    noise = PHANTOMS[name](chance, 30 * RATE)
    results = await asyncio.gather(
        *(heard(backend, to_pcm16(at_level(noise, level)), language=DETECT) for level in (-20, -45))
    )
    for result in results:
        assert result.text == ""
        assert not result.partials
        assert abs(result.finals[-1].end - 30) < 0.01


async def test_words_between_noises_are_heard_all_the_same(backend: WhisperBackend) -> None:
    """The guards do not keep from people what was said."""
    one = fixture.certain(words=3)[0]
    hum = to_pcm16(at_level(NOISES["hum 50 Hz"](np.random.default_rng(1), 4 * RATE), -50))
    assert (await heard(backend, hum + sound(one.path) + hum)).text == one.text


# Long speech


class Watched:
    """The windows that a model was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds: list[float] = []
        prepare = Model.prepare

        def watched(model: Model, request: Request) -> Prepared:
            self.seconds.append(request.seconds)
            return prepare(model, request)

        monkeypatch.setattr(Model, "prepare", watched)


@pytest.mark.slow
async def test_speech_without_a_pause_that_is_longer_than_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """That no word is lost where the window is cut, and none doubled, test_stream.py has shown exactly."""
    recordings = [one for one in fixture.certain() if one.seen and len(one.words) >= 3]
    audio, words = b"", ""
    while len(audio) < 40 * SECOND:
        audio += unpaused(recordings, gap=0.12)
        words += " " + " ".join(one.text for one in recordings)
    watched = Watched(monkeypatch)
    async with loaded(window_seconds=8.0) as backend:
        result = await heard(backend, paced(audio, 8), limit=50)
    assert len(result.utterances) >= 5
    result.assert_in_order(len(audio) / SECOND)
    assert max(watched.seconds) < 9
    assert word_error_rate(words, result.text) <= 0.15  # the model hears 8 s not as well as one utterance


# Sessions beside each other


async def test_eight_sessions_in_two_languages_as_each_alone(backend: WhisperBackend) -> None:
    """With prompts of their own; whose windows share a worker or a batch must not show."""

    def session(number: int) -> tuple[bytes, dict[str, Any]]:
        language = ("en", "de")[number % 2]
        recordings = fixture.certain(language)
        audio, _ = said([recordings[(number + i) % len(recordings)] for i in range(2)])
        phrases = tuple(word for one in recordings[: number % 4] for word in one.text.split())
        return audio, {"language": language, "phrases": phrases}

    sessions = [session(number) for number in range(8)]
    alone = [await heard(backend, audio, **config) for audio, config in sessions]
    together = await asyncio.gather(*(heard(backend, audio, **config) for audio, config in sessions))
    for (_, config), one, other in zip(sessions, alone, together, strict=True):
        assert other.text == one.text, config
        assert one.text


async def test_the_same_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: windows of several sessions, which have prompts of several lengths, are decoded together."""
    recordings = fixture.certain(words=3)[:2] + fixture.certain("de")[:2]
    sizes: list[int] = []
    breaking(monkeypatch, lambda batch: sizes.append(len(batch)))
    async with loaded(workers=1, batch_size=8, batch_wait_seconds=0.1) as backend:
        results = await asyncio.gather(
            *(heard(backend, sound(one.path), language=one.language, partials=False) for one in recordings)
        )
    assert [result.text for result in results] == [one.text for one in recordings]
    assert max(sizes) >= 2


# Languages


async def test_the_language_is_detected_for_each_session(backend: WhisperBackend) -> None:
    recordings = [one for one in fixture.utterances() if one.certain and len(one.words) >= 4][:6]
    german = [one for one in fixture.certain("de") if len(one.words) >= 4][:2]
    results = await asyncio.gather(
        *(heard(backend, sound(one.path), language=DETECT) for one in [*recordings, *german])
    )
    for one, result in zip([*recordings, *german], results, strict=True):
        assert result.text == one.text
        assert [final.language for final in result.finals if final.text] == [one.language]


async def test_the_clients_own_tag_comes_back(backend: WhisperBackend) -> None:
    one = fixture.certain()[0]
    result = await heard(backend, sound(one.path), language="en-GB")
    assert {final.language for final in result.finals if final.text} == {"en-GB"}


@pytest.mark.parametrize("language", ["tlh", "xx-XX"])
async def test_a_language_that_whisper_does_not_know(backend: WhisperBackend, language: str) -> None:
    with pytest.raises(BackendError) as caught:
        await heard(backend, silence(1), language=language)
    assert (caught.value.code, caught.value.fault, caught.value.retryable) == ("language", Fault.CLIENT, False)
    assert language in str(caught.value)


async def test_another_sample_rate(backend: WhisperBackend) -> None:
    with pytest.raises(BackendError) as caught:
        await heard(backend, silence(1), sample_rate=8_000)
    assert (caught.value.code, caught.value.fault) == ("rejected", Fault.CLIENT)


async def test_what_it_can(backend: WhisperBackend) -> None:
    capabilities = backend.capabilities
    assert {"en", "de", "no", "nb", "zh", "cmn"} <= set(capabilities.languages)
    assert capabilities.detects_language
    assert capabilities.flush
    assert capabilities.metered
    assert capabilities.sample_rates == (16_000,)
    assert backend.model == str(fixture.MODEL)
    assert backend.progress is None
    unloaded = WhisperBackend()
    assert unloaded.capabilities.languages == ()
    assert unloaded.model is None
    assert unloaded.refusal() is None
    await unloaded.close()


async def test_an_english_only_model(tmp_path: Path) -> None:
    """CTranslate2 tells it by its vocabulary, which has no empty word."""
    folder = Path(shutil.copytree(fixture.MODEL, tmp_path / "english"))
    file = folder / "vocabulary.json"
    words = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps([word or "<|unused|>" for word in words]), encoding="utf-8")
    async with loaded(folder) as backend:
        assert backend.capabilities.languages == ("en",)
        assert not backend.capabilities.detects_language
        with pytest.raises(BackendError) as caught:
            await heard(backend, silence(1), language="de")
        assert caught.value.code == "language"
        result = await heard(backend, sound(fixture.certain()[0].path), language=DETECT)
        assert {final.language for final in result.finals if final.text} <= {"en"}
        result.assert_in_order(len(sound(fixture.certain()[0].path)) / SECOND)


# The end


def left(backend: WhisperBackend) -> list[object]:
    """What streams hold."""
    current = backend._models.loaded
    assert current is not None
    tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith("whisper-")]
    return [*tasks, *current.scheduler._lanes, *current._users]


async def test_cancelled_at_any_moment_it_leaves_nothing(backend: WhisperBackend) -> None:
    audio, _ = said(fixture.certain()[:3])
    chance = random.Random(4)
    threads = threading.active_count()

    async def one(delay: float, *, close: bool) -> None:
        async def read() -> None:
            stream = backend.recognize(RecognitionConfig(), paced(audio, 10))
            async with contextlib.aclosing(stream) as results:  # type: ignore[type-var]
                async for _ in results:
                    if close and chance.random() < 0.4:
                        return

        reading = asyncio.create_task(read())
        await asyncio.sleep(delay)
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading

    await asyncio.gather(*(one(chance.uniform(0, 1.5), close=i % 2 == 0) for i in range(24)))
    assert left(backend) == []
    assert threading.active_count() <= threads + 2  # those that hear; they stay
    assert (await heard(backend, audio)).text


async def test_a_close_that_is_cancelled_leaves_nothing(backend: WhisperBackend) -> None:
    """Whoever closes the stream is cancelled while the audio's source is slow to let go."""
    said_something, closing, let_go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def audio() -> AsyncIterator[bytes]:
        yield sound(fixture.certain()[0].path) + silence(1)
        try:
            await asyncio.Event().wait()
        finally:
            closing.set()
            await let_go.wait()

    async def read() -> None:
        async with contextlib.aclosing(backend.recognize(RecognitionConfig(), audio())) as results:  # type: ignore[type-var]
            async for _ in results:
                said_something.set()

    reading = asyncio.create_task(read())
    async with asyncio.timeout(30):
        await said_something.wait()
        reading.cancel()
        await closing.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    current = backend._models.loaded
    assert current is not None
    assert not current.scheduler._lanes
    assert not current._users
    let_go.set()
    await asyncio.gather(*(task for task in left(backend) if isinstance(task, asyncio.Task)), return_exceptions=True)
    assert left(backend) == []


async def test_closing_the_engine_leaves_no_thread_and_no_memory() -> None:
    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("whisper-d")]

    before = threads()
    async with loaded() as backend:
        current = backend._models.loaded
        assert current is not None
        await heard(backend, sound(fixture.certain()[0].path))
        assert len(threads()) > len(before)
    assert threads() == before
    assert not current.model._whisper.model.model_is_loaded


# Failures


async def test_a_worker_that_is_killed_in_the_middle_of_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """From outside, as when the interpreter ends a thread: one stream is told, the others and the next are not."""
    one, other = fixture.certain(words=3)[:2]
    kills = [True]

    def kill(batch: Sequence[Prepared]) -> None:  # strikes at the next instruction, inside of `decode`
        if kills and batch[0].request.prompt:
            kills.clear()
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(threading.get_ident()), ctypes.py_object(SystemExit)
            )

    breaking(monkeypatch, kill)
    async with loaded() as backend:
        told, unharmed = await asyncio.gather(
            heard(backend, sound(one.path), phrases=("stop",)),
            heard(backend, sound(other.path)),
            return_exceptions=True,
        )
        assert isinstance(told, BackendError)
        assert (told.code, told.retryable) == ("worker_died", True)
        assert not isinstance(unharmed, BaseException)
        assert unharmed.text == other.text
        assert (await heard(backend, sound(one.path), phrases=("stop",))).text
        assert left(backend) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("CUDA failed with error out of memory"), "overloaded"),
        (MemoryError(), "overloaded"),
        (ValueError("Invalid shape"), "failed"),
    ],
)
async def test_a_decoder_that_fails(monkeypatch: pytest.MonkeyPatch, error: Exception, code: str) -> None:
    one, other = fixture.certain(words=3)[:2]
    breaking(monkeypatch, lambda batch: error if batch[0].request.prompt else None)
    async with loaded() as backend:
        told, unharmed = await asyncio.gather(
            heard(backend, sound(one.path), phrases=("stop",)),
            heard(backend, sound(other.path)),
            return_exceptions=True,
        )
        assert isinstance(told, BackendError)
        assert (told.code, told.fault, told.retryable) == (code, Fault.ENGINE, True)
        assert not isinstance(unharmed, BaseException)
        assert unharmed.text == other.text
        assert left(backend) == []


async def test_features_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = Model.prepare

    def broken(model: Model, request: Request) -> Prepared:
        if request.prompt:
            raise ZeroDivisionError
        return prepare(model, request)

    monkeypatch.setattr(Model, "prepare", broken)
    one = fixture.certain()[0]
    async with loaded() as backend:
        with pytest.raises(BackendError) as caught:
            await heard(backend, sound(one.path), phrases=("stop",))
        assert (caught.value.code, caught.value.retryable) == ("failed", True)
        assert (await heard(backend, sound(one.path))).text == one.text
        assert left(backend) == []
