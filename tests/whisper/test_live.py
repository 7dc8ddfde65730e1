"""Speech over a real WebSocket to a server process: words, times, flushes, languages, another model in mid-speech."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from faster_whisper import WhisperModel

from bridge.api.admin import PATH
from tests import wire
from tests.backends.whisper.harness import assert_times, said, silence, sound
from tests.models import fixture
from tests.models.fixture import LongFile
from tests.speech import SECOND, word_error_rate
from tests.whisper.harness import ADMIN, finals, partials, server, spoken

WORSE = 0.02
"""Points of the word error rate that live finals may lie above offline ones."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server(tmp_path_factory.mktemp("whisper")) as process:
        yield process.url


# Words


async def test_every_word(url: str) -> None:
    recordings = fixture.certain()[::3] + fixture.certain("de")[::3]
    results = await asyncio.gather(*(spoken(url, sound(one.path), language=one.language) for one in recordings))
    assert [result.text for result in results] == [one.text for one in recordings]
    assert all(result.codes == [] for result in results)


async def test_every_word_although_stop_comes_right_behind_the_last_sample(url: str) -> None:
    recordings = [one for one in fixture.certain() if one.seen][1::3]
    ends = [2 * round(one.words[-1].end * SECOND / 2) for one in recordings]
    results = await asyncio.gather(
        *(spoken(url, sound(one.path)[:end]) for one, end in zip(recordings, ends, strict=True))
    )
    assert [result.text for result in results] == [one.text for one in recordings]


async def test_partials_commit_and_words_have_times(url: str) -> None:
    recordings = [one for one in fixture.certain() if one.seen and len(one.words) >= 4][:3]
    audio, text = said(recordings)
    heard = await spoken(url, silence(1) + audio, speed=2.5)
    assert heard.text == text
    assert max(partial.committed or 0 for partial in partials(heard)) > 0
    words = [word for final in finals(heard) for word in final.words]
    assert " ".join(word.text for word in words) == text
    assert_times(words, recordings, first=1.0)


async def test_a_flush_is_a_boundary(url: str) -> None:
    """With the last sample of the first utterance, and behind the pause after it."""
    one, two = fixture.certain(words=3)[:2]
    first = sound(one.path)[: 2 * round(one.words[-1].end * SECOND / 2)]
    audio = first + sound(two.path)
    heard = await spoken(url, audio, flushes=(len(first) / SECOND, len(audio) / SECOND - 0.2))
    assert [final.text for final in finals(heard)] == [one.text, two.text]


async def test_the_same_finals_however_the_audio_comes(url: str) -> None:
    audio, text = said(fixture.certain()[2:5])
    runs = await asyncio.gather(
        *(
            spoken(url, audio, size=size, speed=speed)
            for size, speed in ((640, 0), (3_200, 5), (100_000, 0), (9_602, 0))
        )
    )
    assert {run.text for run in runs} == {text}
    assert len({tuple(final.text for final in finals(run)) for run in runs}) == 1


# Accuracy


def offline(model: WhisperModel, file: LongFile) -> str:
    """What faster-whisper itself hears, told where each utterance is.

    In the whole recording it hears far less with this model, which was trained on short windows: half of the words.
    """
    audio = np.frombuffer(sound(file.path), "<i2").astype(np.float32) / np.float32(32_768)
    texts = []
    for span in file.utterances:
        part = audio[round(16_000 * (span.start - 0.2)) : round(16_000 * (span.end + 0.3))]
        segments, _ = model.transcribe(part, language=file.language, beam_size=5)
        texts += [segment.text.strip() for segment in segments]
    return " ".join(texts)


@pytest.mark.slow
async def test_live_is_as_good_as_offline(url: str) -> None:
    """Recordings of a minute and a half with pauses, sent eight times as fast as life, beside each other."""
    files = fixture.long_files()
    results = await asyncio.gather(
        *(spoken(url, sound(file.path), speed=8, language=file.language, limit=50) for file in files)
    )
    model = WhisperModel(str(fixture.MODEL), device="cpu", compute_type="int8", cpu_threads=2)
    rates = []
    for file, heard in zip(files, results, strict=True):
        reference = await asyncio.to_thread(offline, model, file)
        rates.append((word_error_rate(file.text, heard.text), word_error_rate(file.text, reference)))
        assert heard.codes == []
    # Of a hundred words each; where pauses are short, live has two utterances in a window, and offline never.
    assert sum(live for live, _ in rates) <= sum(alone for _, alone in rates) + len(rates) * WORSE, rates
    assert max(live for live, _ in rates) < 0.1, rates


# Languages


async def test_a_language_that_is_detected(url: str) -> None:
    recordings = [next(one for one in fixture.certain(language) if len(one.words) >= 4) for language in ("en", "de")]
    results = await asyncio.gather(*(spoken(url, sound(one.path), language="auto") for one in recordings))
    assert [result.text for result in results] == [one.text for one in recordings]
    assert [[final.language for final in finals(result)] for result in results] == [["en"], ["de"]]


async def test_a_language_that_whisper_does_not_know(url: str) -> None:
    async with wire.Wire.stream(url, start={"language": "tlh"}) as session:
        outcome = await session.finish()
    assert outcome.codes == ["unsupported_language"]


# Another model


async def post(url: str, model: Path | str) -> wire.Answer:
    return await wire.get(url + PATH, ADMIN, method="POST", body=json.dumps({"model": str(model)}).encode())


async def test_another_model_while_four_speak(url: str, tmp_path: Path) -> None:
    other = shutil.copytree(fixture.MODEL, tmp_path / "other")
    broken = shutil.copytree(fixture.MODEL, tmp_path / "broken")
    (broken / "model.bin").write_bytes(bytes(10_000))
    recordings = fixture.certain()
    sessions = [said([recordings[(4 * i + k) % len(recordings)] for k in range(3)], 0.9 + i / 8) for i in range(4)]
    speaking = [asyncio.create_task(spoken(url, audio, speed=2)) for audio, _ in sessions]
    await asyncio.sleep(1.2)
    answer = await post(url, other)
    assert (answer.status, answer.json["model"]) == (200, str(other))
    answer = await post(url, broken)
    assert (answer.status, answer.json["error"]["code"]) == (502, "model_failed")
    answer = await post(url, "no-such-model")
    assert (answer.status, answer.json["error"]["code"]) == (422, "unknown_model")
    assert (await wire.get(url + PATH, ADMIN)).json["model"] == str(other)
    results = await asyncio.gather(*speaking)
    assert [result.text for result in results] == [text for _, text in sessions]
    assert all(result.codes == [] for result in results)


# Around it


async def test_what_operators_see(url: str) -> None:
    await spoken(url, sound(fixture.certain()[0].path))
    body = (await wire.get(url + "/metrics")).body
    assert wire.metric(body, "stt_whisper_decode_seconds_count", kind="final") >= 1
    assert wire.metric(body, "stt_whisper_decoded_audio_seconds_total", kind="final") > 0
    assert wire.metric(body, "stt_whisper_worker_deaths_total") == 0
    assert (await wire.get(url + "/readyz")).json["ready"]
