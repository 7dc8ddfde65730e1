"""OpenAI's own clients against this server: every format, errors, streams. And what a form may ask for."""

from __future__ import annotations

import asyncio
import io
import json
import wave
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
import srt
import webvtt
from openai import AsyncOpenAI, OpenAI

from backends.base import Word
from backends.scripted import marker_audio
from bridge.api.forms import Form
from bridge.api.hearing import Heard
from bridge.api.models import Models
from bridge.api.openai import parse
from bridge.api.openai_errors import BadFieldError
from bridge.api.openai_formats import FORMATS, OpenAINarrator, written
from bridge.errors import BridgeError
from bridge.session.batch import Batch
from bridge.session.failover import EnginePool
from bridge.transcript import Segment
from tests.session.pools import scripted
from tests.speech import SAMPLES, manifest
from tests.wire import engine_env, markers, serve, spawned

PATH = "/v1/audio/transcriptions"
WORDS = markers(12)


def wav(pcm: bytes, rate: int = 16_000) -> bytes:
    """As a WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm)
    return buffer.getvalue()


FILE = ("talk.wav", wav(marker_audio(len(WORDS))))
SECONDS = (len(FILE[1]) - 44) / 32_000


def client(url: str, key: str = "none") -> AsyncOpenAI:
    """OpenAI's, pointed here; no proxy of the machine's between."""
    http = openai.DefaultAsyncHttpxClient(trust_env=False)
    return AsyncOpenAI(base_url=f"{url}/v1", api_key=key, http_client=http, max_retries=0)


@pytest.fixture(scope="module")
def pocketsphinx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server in a process of its own, that really recognizes."""
    pytest.importorskip("pocketsphinx")
    with spawned(tmp_path_factory.mktemp("server"), {"STT_BACKEND": "pocketsphinx"}) as server:
        yield server.url
        server.assert_no_traceback()


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with serve() as address:
        yield address


def test_the_synchronous_client_on_real_speech(pocketsphinx: str) -> None:
    said, seconds = "stop the music", manifest()["short.flac"]["seconds"]
    path = SAMPLES / "short.flac"
    with openai.DefaultHttpxClient(trust_env=False) as http:
        api = OpenAI(base_url=f"{pocketsphinx}/v1", api_key="none", http_client=http)
        create = api.audio.transcriptions.create
        with path.open("rb") as file:
            plain = create(model="whisper-1", file=file, language="en")
        assert plain.text == said
        assert plain.usage is not None
        assert plain.usage.type == "duration"
        assert plain.usage.seconds == 2

        subtitles = list(srt.parse(create(model="gpt-4o-transcribe", file=path, response_format="srt")))
        assert [cue.content for cue in subtitles] == [said]

        verbose = create(
            model="pocketsphinx",
            file=path,
            response_format="verbose_json",
            timestamp_granularities=["word", "segment"],
        )
        assert verbose.text == said
        assert verbose.language == "english"
        assert verbose.duration == pytest.approx(seconds, abs=0.05)
        assert verbose.words is not None
        assert [word.word for word in verbose.words] == said.split()
        assert all(0 <= word.start < word.end <= seconds for word in verbose.words)

        streamed = list(create(model="whisper-1", file=path, stream=True))
        deltas = [event.delta for event in streamed if event.type == "transcript.text.delta"]
        assert "".join(deltas) == said
        assert streamed[-1].type == "transcript.text.done"


async def test_the_asynchronous_client(url: str) -> None:
    async with client(url) as api:
        create = api.audio.transcriptions.create
        answers = await asyncio.gather(*(create(model="whisper-1", file=FILE) for _ in range(8)))
        assert {answer.text for answer in answers} == {" ".join(WORDS)}
        verbose = await create(
            model="scripted", file=FILE, response_format="verbose_json", timestamp_granularities=["word"]
        )
        assert verbose.duration == pytest.approx(SECONDS, abs=0.001)
        assert verbose.words is not None
        assert [word.word for word in verbose.words] == WORDS
        text = " ".join(WORDS)
        assert await create(model="scripted", file=FILE, response_format="text") == text + "\n"
        subtitles = list(srt.parse(await create(model="scripted", file=FILE, response_format="srt")))
        assert " ".join(" ".join(cue.content.split()) for cue in subtitles) == text
        captions = webvtt.from_string(await create(model="scripted", file=FILE, response_format="vtt")).captions
        assert " ".join(" ".join(cue.text.split()) for cue in captions) == text
        without = await create(model="scripted", file=FILE, response_format="verbose_json")
        assert without.words is None
        assert without.segments


async def test_a_stream_only_ever_appends(url: str) -> None:
    async with client(url) as api:
        stream = await api.audio.transcriptions.create(model="whisper-1", file=FILE, stream=True)
        events = [event async for event in stream]
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert len(deltas) > 1
    done = events[-1]
    assert done.type == "transcript.text.done"
    assert "".join(deltas) == done.text == " ".join(WORDS)
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens


async def test_models(url: str) -> None:
    async with client(url) as api:
        assert [model.id async for model in api.models.list()] == ["scripted"]
        for name in ("scripted", "whisper-1"):
            assert (await api.models.retrieve(name)).id == name
        with pytest.raises(openai.NotFoundError) as missing:
            await api.models.retrieve("gpt-9")
        assert missing.value.code == "model_not_found"


async def test_the_model_that_is_named_does_the_work() -> None:
    env = engine_env() | engine_env(backend="scripted-threads")
    named = {"scripted-threads": "scripted-threads", "whisper-1": "scripted", "": "scripted"}
    async with (
        serve(env, backend="scripted,scripted-threads") as url,
        httpx.AsyncClient(trust_env=False, base_url=url) as http,
    ):
        for name, backend in named.items():
            answer = await http.post("/v1/transcribe", params={"model": name}, content=FILE[1])
            assert answer.json()["backend"] == backend
            metrics = (await http.get("/metrics")).text
            assert f'stt_backend_audio_seconds_total{{backend="{backend}"}}' in metrics


async def test_errors_are_what_the_client_expects() -> None:
    async with serve(api_keys=("key",), max_file_bytes=1_000_000) as url:
        async with client(url, "wrong") as api:
            with pytest.raises(openai.AuthenticationError) as refused:
                await api.audio.transcriptions.create(model="whisper-1", file=FILE)
            assert refused.value.code == "invalid_api_key"
            with pytest.raises(openai.AuthenticationError):
                await api.models.list()
        async with client(url, "key") as api:
            create = api.audio.transcriptions.create
            with pytest.raises(openai.NotFoundError) as unknown:
                await create(model="gpt-9", file=FILE)
            assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
            assert unknown.value.type == "invalid_request_error"
            with pytest.raises(openai.BadRequestError) as junk:
                await create(model="whisper-1", file=("talk.mp3", b"junk" * 1_000))
            assert junk.value.param == "file"
            with pytest.raises(openai.BadRequestError) as diarized:
                await create(model="whisper-1", file=FILE, response_format="diarized_json")
            assert diarized.value.param == "response_format"
            with pytest.raises(openai.APIStatusError) as large:
                await create(model="whisper-1", file=("talk.wav", bytes(1_100_000)))
            assert large.value.status_code == 413
            stream = await create(model="whisper-1", file=FILE, response_format="diarized_json", stream=True)
            with pytest.raises(openai.APIError, match="speakers"):
                async for _ in stream:
                    pass


async def test_every_refusal_of_these_routes_has_openais_shape(url: str) -> None:
    async with httpx.AsyncClient(trust_env=False, base_url=url) as http:
        answers = [
            await http.get(PATH),
            await http.options(PATH),
            await http.post("/v1/models"),
            await http.get("/v1/models/a/b"),
            await http.post(PATH, content=b"no form"),
            await http.post(PATH, data={"model": "whisper-1"}),
        ]
        elsewhere = await http.get("/v1/nothing")
    assert [answer.status_code for answer in answers] == [405, 405, 405, 404, 400, 400]
    assert {answer.headers["allow"] for answer in answers[:2]} == {"POST"}
    for answer in answers:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answers[-1].json()["error"]["param"] == "file"
    assert set(elsewhere.json()["error"]) == {"code", "message"}


# What a form asks for


@pytest.fixture(scope="module")
def models() -> Models:
    return Models(EnginePool(scripted("preferred"), scripted("other")))


def asked(models: Models, *fields: tuple[str, str], file: bool = True) -> Any:
    files: Any = {"file": object()} if file else {}
    return parse(Form(fields, files), models)


async def test_a_bug_is_answered_in_each_route_s_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("what somebody said")

    monkeypatch.setattr(Batch, "whole", broken)
    async with serve() as url, httpx.AsyncClient(base_url=url, trust_env=False) as http:
        theirs = await http.post("/v1/audio/transcriptions", files={"file": FILE})
        ours = await http.post("/v1/transcribe", content=FILE[1])
    assert (theirs.status_code, ours.status_code) == (500, 500)
    error = theirs.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("server_error", "internal", None)
    assert ours.json()["error"] == {"code": "internal", "message": error["message"]}
    assert "somebody" not in theirs.text + ours.text


def test_what_is_not_said_has_a_default(models: Models) -> None:
    found = asked(models)
    assert (found.response_format, found.temperature, found.words, found.stream) == ("json", 0, False, False)
    assert found.wanted.backend is None
    assert found.wanted.start.language is None
    assert not found.wanted.start.words


def test_what_is_said(models: Models) -> None:
    found = asked(
        models,
        ("model", "other"),
        ("language", "German"),
        ("prompt", "Kubernetes, STT Bridge;\nThis is a whole sentence that nobody would ever call a phrase. PyAV."),
        ("keywords[]", "soxr"),
        ("response_format", "verbose_json"),
        ("temperature", "0.4"),
        ("timestamp_granularities[]", "segment"),
        ("timestamp_granularities[]", "word"),
        ("stream", "True"),
        ("chunking_strategy", "auto"),
        ("include[]", "logprobs"),
        ("never_heard_of", "x"),
    )
    assert found.wanted.backend == "other"
    assert found.wanted.start.language == "de"
    assert found.wanted.start.phrases == ("soxr", "Kubernetes", "STT Bridge", "PyAV")
    assert found.wanted.start.words
    assert (found.response_format, found.temperature, found.words, found.stream) == ("verbose_json", 0.4, True, True)


def test_granularities_without_brackets_and_times_for_subtitles(models: Models) -> None:
    verbose = ("response_format", "verbose_json")
    assert asked(models, verbose, ("timestamp_granularities", "word")).words
    assert asked(models, ("response_format", "srt")).wanted.start.words
    assert not asked(models, ("timestamp_granularities[]", "word")).words


def test_a_prompt_is_bounded(models: Models) -> None:
    many = ",".join(f"word {i}" for i in range(1_000))
    assert len(asked(models, ("prompt", many)).wanted.start.phrases) == 100
    assert asked(models, ("prompt", "x" * 101)).wanted.start.phrases == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("response_format", "xml"),
        ("timestamp_granularities[]", "letter"),
        ("temperature", "warm"),
        ("temperature", "1.5"),
        ("temperature", "nan"),
        ("stream", "maybe"),
    ],
)
def test_what_is_wrong_names_its_field(models: Models, field: str, value: str) -> None:
    with pytest.raises(BadFieldError) as caught:
        asked(models, (field, value))
    assert caught.value.param == field.removesuffix("[]")
    assert caught.value.row.status == 400


def test_a_form_without_a_file_or_with_an_unknown_model(models: Models) -> None:
    with pytest.raises(BadFieldError, match="file name"):
        asked(models, file=False)
    with pytest.raises(BridgeError, match="does not exist"):
        asked(models, ("model", "gpt-9"))


# How transcripts are written

TALK = Heard(
    [
        Segment("one  two", 0.0, 1.0, (Word("one", 0.0, 0.4, 0.9, "A"), Word("two", 0.5, 1.0, 0.9, "B")), 0.5),
        Segment(" ", 1.0, 1.5),
        Segment("three.", 2.0, 2.5, (Word("three", 2.0, 2.5, None, "A"),)),
    ],
    3.2,
    "de-CH",
    "scripted",
)


def document(heard: Heard, response_format: str, *, words: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(written(heard, response_format, words=words, temperature=0.2))
    return found


def test_plain_answers() -> None:
    assert document(TALK, "json") == {"text": "one two three.", "usage": {"type": "duration", "seconds": 4}}
    assert written(TALK, "text", words=False, temperature=0) == "one two three.\n"
    assert len(list(srt.parse(written(TALK, "srt", words=False, temperature=0)))) == 2
    assert len(webvtt.from_string(written(TALK, "vtt", words=False, temperature=0)).captions) == 2


def test_verbose_answers_hold_no_nulls() -> None:
    found = document(TALK, "verbose_json", words=True)
    assert (found["language"], found["duration"], found["task"]) == ("german", 3.2, "transcribe")
    assert [word["word"] for word in found["words"]] == ["one", "two", "three"]
    first, second = found["segments"]
    assert (first["avg_logprob"], second["avg_logprob"]) == (-0.6931, 0.0)
    assert (second["id"], second["seek"], second["start"], second["end"]) == (1, 200, 2.0, 2.5)
    assert first["temperature"] == 0.2
    assert None not in first.values()
    assert "words" not in document(TALK, "verbose_json")


def test_who_said_what() -> None:
    turns = document(TALK, "diarized_json")["segments"]
    assert [(turn["id"], turn["speaker"], turn["text"]) for turn in turns] == [
        ("seg_0", "A", "one"),
        ("seg_1", "B", "two"),
        ("seg_2", "A", "three."),
    ]
    nobody = Heard([Segment("one", 0, 1, (Word("one", 0, 1),))], 1, "en", "scripted")
    with pytest.raises(BadFieldError):
        document(nobody, "diarized_json")


def test_a_stream_of_turns() -> None:
    narrator = OpenAINarrator(diarized=True)
    events = [event for segment in TALK.segments for event in narrator.final(segment)] + [*narrator.done(TALK)]
    assert events[-1].data == "[DONE]"
    found = [json.loads(event.data) for event in events[:-1]]
    assert [event["speaker"] for event in found if event["type"] == "transcript.text.segment"] == ["A", "B", "A"]
    deltas = [event["delta"] for event in found if event["type"] == "transcript.text.delta"]
    assert "".join(deltas) == found[-1]["text"]


def test_silence_in_every_format() -> None:
    silence = Heard([], 2.0, "en-US", "scripted")
    for name in FORMATS:
        assert written(silence, name, words=True, temperature=0) is not None
    assert document(silence, "verbose_json", words=True)["words"] == []
    assert document(silence, "diarized_json")["text"] == ""
