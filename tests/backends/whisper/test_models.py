"""Another model while streams go on: nobody loses or doubles a word, and what is not used is released."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from backends.base import FLUSH, BackendError, Fault, RecognitionConfig
from backends.whisper import hardware, models
from backends.whisper.backend import WhisperBackend
from backends.whisper.model import Model, Prepared
from backends.whisper.models import Loaded
from backends.whisper.options import WhisperOptions
from backends.whisper.window import Hypothesis
from tests.backends.whisper.harness import Heard, cut, heard, loaded, paced, played, said, silence, sound
from tests.models import fixture
from tests.speech import SECOND


def copied(folder: Path) -> Path:
    """The fixture's model in another folder."""
    folder.mkdir()
    for file in fixture.MODEL.iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file)
    return folder


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another model."""
    return copied(tmp_path / "other")


def now(backend: WhisperBackend) -> Loaded:
    current = backend._models.loaded
    assert current is not None
    return current


async def released(one: Loaded, limit: float = 10) -> None:
    """Wait until its memory was given back."""
    async with asyncio.timeout(limit):
        while one.model._whisper.model.model_is_loaded:
            await asyncio.sleep(0.01)


async def after(seconds: float, act: Callable[[], Awaitable[object]]) -> None:
    await asyncio.sleep(seconds)
    await act()


# While streams go on


async def test_four_speak_while_the_model_is_switched(other: Path) -> None:
    """Twice, at moments that are in the middle of an utterance for some."""
    recordings = fixture.certain()
    sessions = [
        said([recordings[(3 * i + k) % len(recordings)] for k in range(3)], pause=1.0 + i / 8) for i in range(4)
    ]
    async with loaded() as backend:
        first = now(backend)
        streams = [asyncio.create_task(heard(backend, paced(audio, 3))) for audio, _ in sessions]
        await after(0.5, lambda: backend.use_model(str(other)))
        second = now(backend)
        assert second is not first
        assert backend.model == str(other)
        await after(0.7, lambda: backend.use_model(str(fixture.MODEL)))
        third = now(backend)
        results = await asyncio.gather(*streams)
        assert [result.text for result in results] == [text for _, text in sessions]
        await released(first)
        await released(second)
        assert third.model._whisper.model.model_is_loaded


async def test_an_utterance_keeps_its_model_and_the_next_has_the_new_one(
    other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    decode = Model.decode

    def noted(model: Model, batch: Sequence[Prepared]) -> list[Hypothesis]:
        used.append(model.name)
        return decode(model, batch)

    monkeypatch.setattr(Model, "decode", noted)
    one, two = fixture.certain(words=3)[:2]
    switched, said_more = asyncio.Event(), asyncio.Event()

    async def audio() -> AsyncIterator[bytes]:
        for chunk in cut(sound(one.path)):  # of its end only 0.35 s are silent: it goes on
            yield chunk
        said_more.set()
        await switched.wait()
        yield silence(1.5)
        for chunk in cut(sound(two.path)):
            yield chunk

    async with loaded() as backend:
        first = now(backend)
        stream = asyncio.create_task(heard(backend, audio()))
        await said_more.wait()
        async with asyncio.timeout(10):
            while not first._users:
                await asyncio.sleep(0.01)
        used.clear()
        await backend.use_model(str(other))
        loading = used.count(str(other))  # while it was tried
        assert not first.idle.is_set()
        switched.set()
        result = await stream
        assert result.utterances == [one.text, two.text]
        first_final = [name for name in used if name == str(fixture.MODEL)]
        assert first_final
        assert used[-1] == str(other)
        assert used.count(str(other)) > loading
        await released(first)


async def test_a_stream_that_is_silent_holds_no_model(other: Path) -> None:
    one = fixture.certain()[0]
    over = asyncio.Event()
    ended = asyncio.Event()

    async def audio() -> AsyncIterator[bytes]:
        for chunk in [*cut(sound(one.path)), FLUSH, *cut(silence(1.0))]:
            yield chunk
        ended.set()
        await over.wait()

    async with loaded() as backend:
        first = now(backend)
        result = Heard()

        async def listen() -> None:
            async for each in backend.recognize(RecognitionConfig(), audio()):
                result.take(each)

        stream = asyncio.create_task(listen())
        async with asyncio.timeout(10):
            while not result.text:
                await asyncio.sleep(0.01)
        await ended.wait()
        assert first._users  # it keeps its place in the queue
        await backend.use_model(str(other))
        await released(first)
        assert not stream.done()
        over.set()
        await stream
        assert result.text == one.text


async def test_a_stream_that_is_closed_lets_go(other: Path) -> None:
    async with loaded() as backend:
        first = now(backend)
        one = fixture.certain(words=3)[0]
        stream = backend.recognize(
            RecognitionConfig(), played(cut(sound(one.path)), then=asyncio.get_running_loop().create_future())
        )
        async with contextlib.aclosing(stream):  # type: ignore[type-var]
            async for result in stream:
                if result.text:
                    break
            await backend.use_model(str(other))
            assert not first.idle.is_set()
        await released(first)


# What cannot be loaded


def corrupt(folder: Path) -> None:
    (folder / "model.bin").unlink()
    (folder / "model.bin").write_bytes(b"no model" * 1_000)


def cut_off(folder: Path) -> None:
    (folder / "model.bin").unlink()
    (folder / "model.bin").write_bytes((fixture.MODEL / "model.bin").read_bytes()[:500_000])


def without_numbers(folder: Path) -> None:
    (folder / "model.bin").unlink()


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").write_text("{}")


def no_heads(folder: Path) -> None:
    """As some converters leave them out: it decodes, and cannot say when a word was spoken."""
    config = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(config.replace("alignment_heads", "other_heads"), encoding="utf-8")


async def test_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    """The one before serves on, also those who speak."""
    audio, text = said(fixture.certain(words=2)[:2])
    async with loaded() as backend:
        first = now(backend)
        stream = asyncio.create_task(heard(backend, paced(audio, 3)))
        await asyncio.sleep(0.3)
        for spoil in (corrupt, cut_off, without_numbers, no_tokenizer, no_heads):
            folder = copied(tmp_path / spoil.__name__)
            spoil(folder)
            with pytest.raises(BackendError) as caught:
                await backend.use_model(str(folder))
            assert (caught.value.code, caught.value.fault) == ("bad_model", Fault.OPERATOR), spoil
            assert str(folder) in str(caught.value)
            assert now(backend) is first
            assert backend.progress is None
        assert (await stream).text == text
        assert backend.model == str(fixture.MODEL)


async def test_a_model_that_does_not_exist() -> None:
    async with loaded() as backend:
        for name in ("no-such-model", "/no/such/folder", "./no-such-folder", "~/no-such-folder"):
            with pytest.raises(BackendError) as caught:
                await backend.use_model(name)
            assert (caught.value.code, caught.value.fault) == ("unknown_model", Fault.CLIENT), name
            assert "large-v3-turbo" in str(caught.value)  # those that exist are named
        assert (await heard(backend, sound(fixture.certain()[0].path))).text


async def test_closing_the_engine_releases_the_models_that_were_left_behind_too(other: Path) -> None:
    """Although a stream that never ended still holds one."""

    def threads() -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each.name.startswith(("whisper-d", "whisper-f"))]

    one = fixture.certain(words=3)[0]
    before = threads()
    async with loaded() as backend:
        first = now(backend)
        over = asyncio.get_running_loop().create_future()
        stream = asyncio.create_task(heard(backend, played(cut(sound(one.path)[: -SECOND // 4]), then=over)))
        async with asyncio.timeout(10):
            while not first._users:
                await asyncio.sleep(0.01)
        await backend.use_model(str(other))
        assert first.model._whisper.model.model_is_loaded
    assert not first.model._whisper.model.model_is_loaded
    assert threads() == before
    over.set_result(None)
    with pytest.raises(BackendError):
        await stream


async def test_audio_that_comes_once_the_engine_is_closed_is_refused_as_any_other_trouble() -> None:
    """Its threads are gone: that is nothing that a session may see as a fault of the program."""
    one = fixture.certain(words=3)[0]
    taken, closed = asyncio.Event(), asyncio.Event()

    async def audio() -> AsyncIterator[bytes]:
        for chunk in cut(sound(one.path)):
            yield chunk
        taken.set()
        await closed.wait()
        yield silence(1.5)

    async with loaded() as backend:
        # Without partials nothing is being decoded as the engine closes, which would have ended the stream by itself.
        stream = asyncio.create_task(heard(backend, audio(), partials=False))
        async with asyncio.timeout(10):
            await taken.wait()
    closed.set()
    with pytest.raises(BackendError) as caught:
        async with asyncio.timeout(5):
            await stream
    assert (caught.value.code, caught.value.retryable) == ("unavailable", True)


async def test_an_engine_that_was_closed_keeps_nobody_waiting() -> None:
    async with loaded() as backend:
        pass
    with pytest.raises(BackendError) as caught:
        async with asyncio.timeout(1):
            await heard(backend, sound(fixture.certain()[0].path))
    assert (caught.value.code, caught.value.retryable) == ("unavailable", True)


async def test_a_first_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    backend = WhisperBackend(WhisperOptions(model=str(tmp_path)))
    with pytest.raises(BackendError) as caught:
        await backend.load()
    assert caught.value.code == "bad_model"
    assert "config.json, model.bin, tokenizer.json are missing" in str(caught.value)
    await backend.close()


async def test_loading_that_is_given_up(other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the server, or of its patience: what was being loaded never serves."""
    async with loaded() as backend:
        first = now(backend)
        switching = asyncio.create_task(backend.use_model(str(other)))
        await asyncio.sleep(0)
        switching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await switching
        assert now(backend) is first
        assert backend.progress is None
        await backend.use_model(str(other))
        assert backend.model == str(other)


# Where two models do not fit


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little memory is free while a model is loaded."""
    monkeypatch.setattr(hardware, "free_memory", lambda chosen: 1_000)


def test_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = hardware.Hardware("cpu", 0, "int8", "")
    for free, expected in ((None, True), (1_400, False), (1_600, True)):
        monkeypatch.setattr(hardware, "free_memory", lambda _, free=free: free)
        assert models.fits(1_000, chosen) is expected


@pytest.mark.usefixtures("narrow")
async def test_the_old_one_goes_first_once_its_utterances_are_over(other: Path) -> None:
    audio, text = said(fixture.certain(words=3)[:2], pause=1.5)
    at_once: list[bool] = []
    async with loaded() as backend:
        first = now(backend)
        streams = [asyncio.create_task(heard(backend, paced(audio, 3))) for _ in range(2)]
        await asyncio.sleep(0.5)
        at_once.append(first.idle.is_set())
        await backend.use_model(str(other))
        assert not first.model._whisper.model.model_is_loaded
        assert [(await stream).text for stream in streams] == [text, text]
        assert backend.model == str(other)
    assert at_once == [False]


@pytest.mark.usefixtures("narrow")
async def test_streams_wait_while_there_is_no_model(other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said meanwhile is not lost, nor is a session that begins."""
    one, two = fixture.certain(words=3)[:2]
    async with loaded() as backend:
        gone, go_on = asyncio.Event(), asyncio.Event()
        load = backend._models._load

        async def slowly(name: str, folder: Path) -> Loaded:
            gone.set()
            await go_on.wait()
            return await load(name, folder)

        monkeypatch.setattr(backend._models, "_load", slowly)
        switching = asyncio.create_task(backend.use_model(str(other)))
        await gone.wait()
        assert backend._models.loaded is None
        streams = [asyncio.create_task(heard(backend, sound(each.path))) for each in (one, two)]
        await asyncio.sleep(0.2)
        assert not any(stream.done() for stream in streams)
        assert backend.capabilities.sample_rates
        go_on.set()
        await switching
        assert [(await stream).text for stream in streams] == [one.text, two.text]


@pytest.mark.usefixtures("narrow")
async def test_the_old_one_comes_back_if_the_new_one_fails(other: Path) -> None:
    corrupt(other)
    one = fixture.certain(words=3)[0]
    async with loaded() as backend:
        first = now(backend)
        with pytest.raises(BackendError) as caught:
            await backend.use_model(str(other))
        assert caught.value.code == "bad_model"
        assert backend.model == str(fixture.MODEL)
        assert now(backend) is not first
        assert (await heard(backend, sound(one.path))).text == one.text


@pytest.mark.usefixtures("narrow")
async def test_somebody_who_never_pauses_keeps_the_old_one(other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "HANDOVER_SECONDS", 0.3)
    one = fixture.certain(words=3)[0]
    async with loaded() as backend:
        first = now(backend)
        over = asyncio.get_running_loop().create_future()
        stream = asyncio.create_task(heard(backend, played(cut(sound(one.path)[: -SECOND // 4]), then=over)))
        async with asyncio.timeout(10):
            while not first._users:
                await asyncio.sleep(0.01)
        with pytest.raises(BackendError) as caught:
            await backend.use_model(str(other))
        assert (caught.value.code, caught.value.retryable) == ("no_memory", True)
        assert now(backend) is first
        over.set_result(None)
        assert (await stream).text == one.text
        assert (await heard(backend, sound(one.path))).text == one.text


async def test_a_model_that_does_not_fit_at_all(other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Huge(Model):
        def __init__(self, name: str, *args: object, **options: object) -> None:
            if name == str(other):
                raise RuntimeError("CUDA failed with error out of memory")
            super().__init__(name, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(models, "Model", Huge)
    async with loaded() as backend:
        with pytest.raises(BackendError) as caught:
            await backend.use_model(str(other))
        assert caught.value.code == "no_memory"
        assert backend.model == str(fixture.MODEL)


# Around it


async def test_loading_says_how_far_it_is(other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said_so: list[str | None] = []
    async with loaded() as backend:
        make = backend._models._make

        def noted(name: str, folder: Path, chosen: hardware.Hardware, workers: int) -> Model:
            said_so.append(backend.progress)
            return make(name, folder, chosen, workers)

        monkeypatch.setattr(backend._models, "_make", noted)
        await backend.use_model(str(other))
        assert said_so == [f"loading the model {other} (3 MB) for the cpu"]
        assert backend.progress is None


async def test_one_after_the_other(other: Path) -> None:
    """A schedule and an operator may want models at the same time."""
    async with loaded() as backend:
        first = now(backend)
        await asyncio.gather(backend.use_model(str(other)), backend.use_model(str(fixture.MODEL)))
        assert backend.model == str(fixture.MODEL)
        assert now(backend) is not first
        await released(first)


async def test_the_schedule_chooses_the_first_model(other: Path) -> None:
    options = WhisperOptions(model="no-such-model", schedule=f"00:00={other}", timezone="UTC")
    backend = WhisperBackend(options)
    await backend.load()
    assert backend.model == str(other)
    await backend.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("whisper")]


async def test_the_log_names_models_and_no_words(other: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = fixture.certain(words=3)[0]
    with caplog.at_level(logging.DEBUG):
        async with loaded() as backend:
            first = now(backend)
            await heard(backend, sound(one.path))
            await backend.use_model(str(other))
            await released(first)
            await asyncio.sleep(0.05)
    own = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("backends."))
    assert f"the model {other} was loaded" in own
    assert f"the model {fixture.MODEL} is no longer used" in own
    assert one.text not in caplog.text
