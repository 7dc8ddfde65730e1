"""What is answered: results, interims, events and the bill as Google gives them; real speech; the echo."""

from __future__ import annotations

import asyncio
import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.scripted import marker_audio
from bridge.emulator.server import EmulatorConfig, emulating
from tests.emulator.harness import V1, V2, Client, Heard, blocking_channel
from tests.speech import SAMPLES, manifest, pcm, word_error_rate

SPEECH = EmulatorConfig(mode="speech", env={})
BEGIN, END, END_OF_UTTERANCE = "SPEECH_ACTIVITY_BEGIN", "SPEECH_ACTIVITY_END", "END_OF_SINGLE_UTTERANCE"


def sentences(*lengths: int) -> bytes:
    """Utterances of so many words without a pause between them, each followed by 0.3 s of silence."""
    first = 0
    audio = b""
    for length in lengths:
        audio += marker_audio(length, pause=0, first=first) + bytes(9_600)
        first += length
    return audio


async def hear(client: Client, audio: bytes, config: EmulatorConfig | None = None, **asked: Any) -> Heard:
    async with emulating(config) as emulator:
        heard = await client.converse(emulator.address, [client.config(**asked), *client.audio(audio)])
        assert heard.status == ("OK", "")
        return heard


def seconds(client: Client, result: Any) -> float:
    end: dt.timedelta = getattr(result, client.end)
    return end.total_seconds()


def kinds(heard: Heard) -> list[str]:
    """The events, and the results in each response."""
    return [
        response.speech_event_type.name
        if response.speech_event_type
        else "".join("F" if result.is_final else "i" for result in response.results) or "bill"
        for response in heard.responses
    ]


async def test_finals_and_interims(client: Client) -> None:
    heard = await hear(client, sentences(3, 2))
    assert heard.words == ["w0", "w1", "w2", "w3", "w4"]
    assert kinds(heard) == ["i", "ii", "ii", "F", "i", "ii", "F", "bill"]
    assert [seconds(client, final) for final in heard.finals] == pytest.approx([1.1, 2.0], abs=0.11)
    for result in heard.results:
        assert (result.stability > 0) is not result.is_final
        assert (result.alternatives[0].confidence > 0) is result.is_final
        assert result.language_code == ("en-us" if client is V1 else "en-US")
        assert not result.alternatives[0].words


async def test_interims_are_the_concatenation_of_their_parts(client: Client) -> None:
    """What follows a final begins with a space in v1; parts of an interim carry the spaces between them."""
    heard = await hear(client, sentences(3, 2))
    texts = ["".join(r.alternatives[0].transcript for r in response.results) for response in heard.responses]
    space = " " if client is V1 else ""
    assert texts[:4] == ["w0", "w0 w1", "w0 w1 w2", "w0 w1 w2"]
    assert texts[4:7] == [f"{space}w3", f"{space}w3 w4", f"{space}w3 w4"]
    stabilities = [round(r.stability, 2) for r in heard.responses[2].results]
    assert stabilities == [0.9, 0.01]
    ends = [seconds(client, r) for r in heard.responses[2].results]
    assert ends == sorted(ends)


async def test_what_is_not_asked_for_is_not_given(client: Client) -> None:
    heard = await hear(client, sentences(3, 2), interim=False)
    assert kinds(heard) == ["F", "F", "bill"]


async def test_words(client: Client) -> None:
    heard = await hear(client, sentences(2), words=True, word_confidence=True)
    words = heard.finals[0].alternatives[0].words
    assert [word.word for word in words] == ["w0", "w1"]
    assert [word.confidence for word in words] == [1, 1]
    times = [
        (getattr(w, client.start_of_word).total_seconds(), getattr(w, client.end_of_word).total_seconds())
        for w in words
    ]
    assert times == [(0, 0.3), (0.3, 0.6)]
    heard = await hear(client, sentences(2), words=True)
    assert [word.confidence for word in heard.finals[0].alternatives[0].words] == [0, 0]


async def test_silence_is_not_answered(client: Client) -> None:
    heard = await hear(client, bytes(10 * 32_000), events=True)
    assert kinds(heard) == ["bill"]


async def test_voice_activity(client: Client) -> None:
    heard = await hear(client, bytes(6_400) + sentences(2), events=True, interim=False)
    assert kinds(heard) == [BEGIN, END, "F", "bill"]
    times = [getattr(response, client.event_time).total_seconds() for response in heard.responses[:2]]
    assert times == pytest.approx([0.2, 1.0], abs=0.11)


async def test_a_single_utterance(client: Client) -> None:
    """It is over after the first; what follows is not answered, and the stream ends after the audio's end."""
    heard = await hear(client, sentences(2, 2), single=True, interim=False)
    assert kinds(heard) == [END_OF_UTTERANCE, "F", "bill"]
    assert heard.words == ["w0", "w1"]


async def test_the_bill() -> None:
    heard = await hear(V1, sentences(2, 2))
    assert heard.responses[-1].total_billed_time == dt.timedelta(seconds=2)  # 1.8, rounded up
    heard = await hear(V2, sentences(2, 2))
    assert heard.responses[-1].metadata.total_billed_duration == dt.timedelta(seconds=2)


async def test_words_that_are_cut_or_twice_show(client: Client) -> None:
    audio = sentences(3)
    heard = await hear(client, audio[:9_600] + audio[:9_600] + audio[14_400:])
    assert heard.words == ["w0~", "w1~", "w2"]


async def test_samples_cut_in_two_by_messages(client: Client) -> None:
    async with emulating() as emulator:
        messages = [client.config(), *client.audio(sentences(3), 3_201)]
        assert (await client.converse(emulator.address, messages)).words == ["w0", "w1", "w2"]


async def test_the_echo(client: Client) -> None:
    heard = await hear(client, bytes(9_600), EmulatorConfig(mode="echo"))
    assert [r.alternatives[0].transcript for r in heard.results] == ["3200", "6400", "9600", "9600"]
    assert kinds(heard) == ["i", "i", "i", "F", "bill"]
    assert [seconds(client, r) for r in heard.results] == [0.1, 0.2, 0.3, 0.3]


async def test_the_blocking_client(client: Client) -> None:
    async with emulating() as emulator:
        with blocking_channel(emulator.address) as channel:
            messages = [client.config(), *client.audio(sentences(2, 2))]
            heard = await asyncio.to_thread(client.blocking, channel, messages)
            assert heard.words == ["w0", "w1", "w2", "w3"]
            heard = await asyncio.to_thread(client.blocking, channel, [client.config(rate=1)])
            assert heard.code.name == "INVALID_ARGUMENT"


# By a backend


async def test_real_speech(client: Client) -> None:
    sample = manifest()["hello.flac"]
    heard = await hear(client, pcm(SAMPLES / "hello.flac"), SPEECH, words=True)
    assert word_error_rate(sample["transcript"], " ".join(heard.words)) <= 0.2
    assert any(not result.is_final for result in heard.results)
    words = [word for final in heard.finals for word in final.alternatives[0].words]
    assert len(words) == len(heard.words)
    assert seconds(client, heard.finals[-1]) <= sample["seconds"] + 0.01


async def test_speech_at_another_rate() -> None:
    audio = np.repeat(np.frombuffer(pcm(SAMPLES / "hello.flac"), "<i2"), 2)  # 32 kHz
    heard = await hear(V2, audio.tobytes(), SPEECH, rate=32_000)
    assert word_error_rate(manifest()["hello.flac"]["transcript"], " ".join(heard.words)) <= 0.2


async def test_a_language_that_the_backend_does_not_speak(client: Client) -> None:
    async with emulating(SPEECH) as emulator:
        refused = await client.refused(emulator.address, client.config(language="de-DE"))
        assert refused == ("INVALID_ARGUMENT", "Invalid recognition 'config': bad language code.")


async def test_a_backend_that_is_full(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    config = EmulatorConfig(mode="speech", backend="scripted-threads", env={"STT_SCRIPTED_THREADS_MAX_STREAMS": "1"})
    async with emulating(config) as emulator, client.call(emulator.address) as call:
        await call.send(client.config(), *client.audio(bytes(64_000)))
        assert await call.read()
        code, _ = await client.refused(emulator.address, client.config())
        assert code == "RESOURCE_EXHAUSTED"
    assert "carries no more streams" in caplog.text


FAULTS = {
    '{"at": 0.5, "kind": "fail"}': "UNAVAILABLE",
    '{"at": 0.5, "kind": "fail", "retryable": false}': "INTERNAL",
    '{"at": 0.0, "kind": "reject"}': "INVALID_ARGUMENT",
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_backend_that_fails(tmp_path: Path, fault: str) -> None:
    script = tmp_path / "script.json"
    script.write_text(f'{{"faults": [{fault}]}}')
    config = EmulatorConfig(mode="speech", backend="scripted", env={"STT_SCRIPTED_SCRIPT": str(script)})
    async with emulating(config) as emulator:
        audio = [] if "reject" in fault else V1.audio(bytes(16_000), 16_000)
        code, _ = await V1.refused(emulator.address, V1.config(), *audio)
        assert code == FAULTS[fault]
