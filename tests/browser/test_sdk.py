"""The JavaScript SDK against the real server, through a proxy that breaks connections: no word lost, none doubled.

The scripted engine reads words from the audio itself (`backends.markers`): what is lost, cut or doubled shows.
`STT_WEB_SEEDS=20 STT_WEB_FAULTS=50` runs longer.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

import jwt
import pytest
from playwright.async_api import Page

from backends.base import Word
from bench.chaos.proxy import KINDS, Proxy
from bench.chaos.supervisor import free_port
from bridge.errors import ERRORS
from bridge.transcript import FORMATS, Segment
from tests.browser.browser import Watched, launched, until
from tests.browser.tap import Tap
from tests.client.fake import RATE, FakeServer, Plan
from tests.conftest import Spawn
from tests.wire import Json, engine_env, markers, spawned

SEEDS: Final = int(os.environ.get("STT_WEB_SEEDS", "1"))
FAULTS: Final = int(os.environ.get("STT_WEB_FAULTS", "16"))

_SPEAK: Final = """async ({ options, most, pace }) => {
  const { SttClient } = await import("/sdk/index.js");
  const seen = { finals: [], numbers: [], states: [], codes: [] };
  window.seen = seen;
  window.enough = false;
  const reconnect = { baseSeconds: 0.02, mostSeconds: 0.2, ...options.reconnect };
  const client = new SttClient({ reconnect, ...options.others });
  window.client = client;
  const note = ({ detail }) => detail.seq && seen.numbers.push(detail.seq);
  const lasting = ["speech_started", "speech_ended", "final", "warning", "error", "closed"];
  for (const type of lasting) client.addEventListener(type, note);
  client.addEventListener("final", ({ detail }) => seen.finals.push(detail.text));
  client.addEventListener("state", ({ detail }) => seen.states.push(detail.state));
  client.start().catch(() => {});
  let word = 0;
  for (; word < most && !window.enough; word += 1) {
    const audio = new Int16Array(16000 * 0.6).fill(1000 + word, 0, 16000 * 0.3);
    for (let at = 0; at < audio.length; at += 1600) {
      while (!client.send(audio.subarray(at, at + 1600))) await client.room();
      if (pace) await new Promise((resolve) => setTimeout(resolve, pace));
    }
  }
  const closed = await client.stop();
  return { ...seen, words: word, closed, reconnects: client.reconnects };
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One that many tests here share."""
    with spawned(tmp_path_factory.mktemp("sdk"), engine_env()) as running:
        yield running.url
        running.assert_no_traceback()


async def begun(page: Page, *, most: int, pace: float = 0, **others: Any) -> asyncio.Task[Json]:
    """Words are being said in the page; each of 0.6 s in six frames, with `pace` milliseconds between them."""
    reconnect = others.pop("reconnect", {})
    argument = {"options": {"reconnect": reconnect, "others": others}, "most": most, "pace": pace}
    return asyncio.create_task(page.evaluate(_SPEAK, argument))


async def ended(page: Page, said: asyncio.Task[Json]) -> Json:
    """Nothing more is said, and what came of it."""
    await page.evaluate("window.enough = true")
    return await asyncio.wait_for(said, 60)


def assert_whole(outcome: Json) -> None:
    assert " ".join(outcome["finals"]).split() == markers(outcome["words"])
    assert outcome["numbers"] == list(range(1, len(outcome["numbers"]) + 1))
    assert outcome["closed"]["code"] == "stopped"
    assert outcome["closed"]["received"] == outcome["closed"]["finalized"] == outcome["words"] * 9_600


@pytest.mark.timeout(60 + 5 * FAULTS)
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_connections_that_break_in_every_way(spawn: Spawn, seed: int) -> None:
    rng = random.Random(seed)
    server = spawn(engine_env())
    port = int(server.url.rpartition(":")[2])
    async with Proxy.to("127.0.0.1", [port], rng) as proxy, launched() as browser:
        page = await (await Watched.of(browser)).page(f"http://127.0.0.1:{proxy.address[1]}/sdk/index.js")
        said = await begun(page, most=5_000, pace=10)
        for number in range(FAULTS):
            await asyncio.sleep(rng.uniform(0.05, 0.6))
            await proxy.strike(KINDS[number % len(KINDS)])
        outcome = await ended(page, said)
    print(f"seed {seed}: {outcome['words']} words, {outcome['reconnects']} resumes")  # noqa: T201 - a measurement
    assert_whole(outcome)
    assert outcome["reconnects"] >= FAULTS // 2  # some strike while it is coming back
    server.assert_no_traceback()


async def test_a_server_that_is_stopped_and_started_again(spawn: Spawn) -> None:
    port = str(free_port())
    server = spawn(engine_env(), "--port", port)
    async with launched() as browser:
        page = await (await Watched.of(browser)).page(f"{server.url}/sdk/index.js")
        said = await begun(page, most=5_000, pace=20)
        for how in (signal.SIGTERM, signal.SIGKILL):
            await asyncio.sleep(1.0)
            server.signal(how)
            await server.exited()
            server = await asyncio.to_thread(spawn, engine_env(), "--port", port)
            await until(lambda: page.evaluate("window.client.state === 'open'"))
        outcome = await ended(page, said)
    assert_whole(outcome)
    assert outcome["reconnects"] == 2


async def test_a_connection_that_is_dead_and_says_nothing(server: str) -> None:
    async with Tap.before(server) as tap, launched() as browser:
        page = await (await Watched.of(browser)).page(f"{tap.url}/sdk/index.js")
        said = await begun(page, most=5_000, pace=20, reconnect={"silenceSeconds": 1})
        await asyncio.sleep(1)
        tap.mute()
        await until(lambda: page.evaluate("window.client.reconnects === 1"))
        outcome = await ended(page, said)
    assert_whole(outcome)
    assert outcome["reconnects"] == 1


async def test_a_file_as_fast_as_the_server_takes_it(server: str) -> None:
    async with launched() as browser:
        page = await (await Watched.of(browser)).page(f"{server}/sdk/index.js")
        began = time.monotonic()
        said = await begun(page, most=1_000)  # ten minutes
        outcome = await asyncio.wait_for(said, 60)
    assert_whole(outcome)
    assert time.monotonic() - began < 60
    assert outcome["reconnects"] == 0


async def test_a_full_ring_whose_audio_had_arrived_when_the_connection_broke(server: str) -> None:
    """Nothing is left to be sent, so that no ack comes: `ready` has told."""
    fake = FakeServer(Plan(acks=False, after_audio=2 * 3_200))  # two calls; the ring does not hold three
    ports = [urlsplit(server).port or 0]
    async with fake.serving() as url, Proxy.to("127.0.0.1", ports, random.Random(0)) as proxy, launched() as browser:
        page = await (await Watched.of(browser)).page(f"http://127.0.0.1:{proxy.address[1]}/sdk/index.js")
        await page.evaluate("import('/sdk/index.js')")
        proxy.ports = [urlsplit(url).port or 0]
        said = await begun(page, most=4, start={"sample_rate": RATE}, reconnect={"ringSeconds": 0.5})
        outcome = await asyncio.wait_for(said, 20)
    assert outcome["reconnects"] == 1
    assert len(fake.audio) == outcome["words"] * 2 * 9_600
    assert outcome["finals"] == fake.texts


_IN_CHUNKS: Final = """async ({ reconnect, words, chunk }) => {
  const { SttClient } = await import("/sdk/index.js");
  const client = new SttClient({ reconnect });
  let heard = "";
  client.addEventListener("final", ({ detail }) => (heard += ` ${detail.text}`));
  client.start().catch(() => {});
  const audio = new Int16Array(words * 9600);
  for (let word = 0; word < words; word += 1) audio.fill(1000 + word, word * 9600, word * 9600 + 4800);
  for (let at = 0; at < audio.length; at += chunk) {
    while (!client.send(audio.subarray(at, at + chunk))) await client.room();
  }
  await client.stop();
  return heard;
}"""


@pytest.mark.parametrize(
    ("reconnect", "words", "chunk"),
    [
        ({"ringSeconds": 1}, 10, 9_600),  # more than half of what is kept, which a client must not spin for
        ({"ringSeconds": 1}, 10, 24_000),  # more than all of it
        (False, 50, 1_600),  # nothing is kept: room comes of sending
    ],
)
async def test_room_for_chunks_of_any_size(server: str, reconnect: Any, words: int, chunk: int) -> None:
    async with launched() as browser:
        page = await (await Watched.of(browser)).page(f"{server}/sdk/index.js")
        asked = {"reconnect": reconnect, "words": words, "chunk": chunk}
        heard = await asyncio.wait_for(page.evaluate(_IN_CHUNKS, asked), 20)
    assert heard.split() == markers(words)


async def test_a_receiver_whose_connection_breaks(server: str) -> None:
    async with Tap.before(server) as tap, launched() as browser:
        watched = await Watched.of(browser)
        page = await watched.page(f"{server}/sdk/index.js")
        screen = await watched.page(f"{tap.url}/sdk/index.js")
        name = "a-meeting-that-nobody-guesses"
        heard = asyncio.create_task(
            screen.evaluate(
                """async (session) => {
                  const { SttReceiver } = await import("/sdk/index.js");
                  const finals = [];
                  const receiver = new SttReceiver({ session, reconnect: { baseSeconds: 0.02, mostSeconds: 0.2 } });
                  receiver.addEventListener("final", ({ detail }) => finals.push(detail.text));
                  const joined = await receiver.start();
                  const closed = await receiver.done;
                  return { finals, joined, closed, reconnects: receiver.reconnects };
                }""",
                name,
            )
        )
        said = await begun(page, most=40, pace=10, start={"session_id": name})
        for _ in range(4):
            await asyncio.sleep(0.4)
            tap.cut()
        outcome, received = await asyncio.wait_for(asyncio.gather(said, heard), 60)
    assert_whole(outcome)
    assert received["finals"] == outcome["finals"]
    assert received["closed"]["code"] == "stopped"
    assert received["reconnects"] >= 3


async def test_a_token_is_renewed(spawn: Spawn) -> None:
    secret = "a secret of thirty-two characters or more"
    server = spawn(engine_env() | {"STT_JWT_SECRET": secret})

    def token(seconds: float) -> str:
        return jwt.encode({"scope": "send", "exp": int(time.time() + seconds)}, secret, algorithm="HS256")

    async with launched() as browser:
        page = await (await Watched.of(browser)).page(f"{server.url}/sdk/index.js")
        outcome: Json = await page.evaluate(
            """async ([expired, good]) => {
              const { SttClient } = await import("/sdk/index.js");
              const reasons = [];
              const token = async (reason) => {
                reasons.push(reason);
                return reason === "unauthorized" ? good : expired;
              };
              const client = new SttClient({ token });
              await client.start();
              const closed = await client.stop();
              let tries = 0; // a service that is away for a moment
              const flaky = async () => {
                tries += 1;
                if (tries < 3) throw new TypeError("Failed to fetch");
                return good;
              };
              const patient = new SttClient({ token: flaky });
              await patient.start();
              await patient.stop();
              const refused = await new SttClient({ token: expired }).start().catch((error) => error.code);
              const nowhere = await new SttClient({ server: "http://[" }).start().catch((error) => error.message);
              const unused = await new SttClient({ token: good }).stop();
              return { reasons, code: closed.code, refused, tries, nowhere, unused };
            }""",
            [token(-60), token(60)],
        )
    assert outcome.pop("nowhere").startswith("http://[: ")
    assert outcome == {
        "reasons": ["connect", "unauthorized"],
        "code": "stopped",
        "refused": "unauthorized",
        "tries": 3,
        "unused": None,
    }


async def test_a_key_that_is_no_subprotocol(spawn: Spawn) -> None:
    server = spawn(engine_env() | {"STT_API_KEYS": "a+b/c=="})
    async with launched() as browser:
        page = await (await Watched.of(browser)).page(f"{server.url}/sdk/index.js")
        code = await page.evaluate(
            """async () => {
              const { SttClient } = await import("/sdk/index.js");
              const client = new SttClient({ token: "a+b/c==" });
              await client.start();
              return (await client.stop()).code;
            }"""
        )
    assert code == "stopped"
    assert "a+b/c" not in server.log


async def test_what_is_retryable_is_what_the_server_says(server: str) -> None:
    async with launched() as browser:
        page = await (await Watched.of(browser)).page(f"{server}/sdk/index.js")
        retryable, final = await page.evaluate(
            """async () => {
              const { FINAL, LOCAL, RETRYABLE } = await import("/sdk/errors.js");
              return [RETRYABLE, FINAL].map((codes) => [...codes].filter((code) => !LOCAL.includes(code)));
            }"""
        )
    assert set(retryable) == {code for code, row in ERRORS.items() if row.retryable}
    assert set(final) == {code for code, row in ERRORS.items() if not row.retryable}


SEGMENTS: Final[list[Json]] = [
    {"text": "short", "start": 0.0005, "end": 1.0015},
    {"text": "  white\tspace \x1c and\x00control ", "start": 1.0, "end": 2.5},
    {"text": "", "start": 3.0, "end": 4.0},
    {"text": "<b>tags</b> & {\\an8} --> 😀 " + "Donaudampfschifffahrtsgesellschaft" * 3, "start": 5.0, "end": 9.5},
    {
        "text": "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen",
        "start": 3600.25,
        "end": 3615.125,
    },
    {
        "text": "timed words",
        "start": 10.0,
        "end": 11.0,
        "confidence": 0.5,
        "words": [
            {"text": "timed", "start": 10.0, "end": 10.4, "confidence": 0.25},
            {"text": "words", "start": 10.5, "end": 11.0, "speaker": "a"},
        ],
    },
]


async def test_transcripts_are_written_as_the_server_writes_them(server: str) -> None:
    segments = [Segment(**s | {"words": tuple(Word(**word) for word in s.get("words", ()))}) for s in SEGMENTS]
    async with launched() as browser:
        page = await (await Watched.of(browser)).page(f"{server}/sdk/index.js")
        for ours, name in (("txt", "text"), ("srt", "srt"), ("vtt", "vtt")):
            text = await page.evaluate(
                """async ([segments, format]) => (await import("/sdk/index.js")).writeTranscript(segments, format)""",
                [SEGMENTS, ours],
            )
            assert text == FORMATS[name](segments), ours


_TONES: Final = """async ({ rates, tones }) => {
  const { Resampler } = await import("/sdk/worklet.js");
  const found = [];
  for (const rate of rates) {
    for (const hertz of tones.filter((hertz) => hertz < 0.42 * rate)) {
      const tone = Float32Array.from({ length: rate }, (_, i) => Math.sin((2 * Math.PI * hertz * i) / rate));
      const result = [];
      const write = (sample) => result.push(sample);
      const resampler = new Resampler(rate, 16000);
      for (let at = 0; at < rate; at += 128) resampler.push(tone.subarray(at, at + 128), write);
      let squares = 0;
      for (let i = 400; i < 15000; i += 1) {
        const expected = hertz < 8000 ? Math.sin((2 * Math.PI * hertz * i) / 16000) : 0;
        squares += (result[i] - expected) ** 2;
      }
      found.push([rate, hertz, 10 * Math.log10((2 * squares) / 14600 + 1e-20)]);
    }
  }
  return found;
}"""


async def test_the_low_pass(server: str) -> None:
    """Tones below 6.8 kHz come through as they were; what a lower rate cannot hold is 60 dB down, not folded back."""
    rates = [8_000, 16_000, 22_050, 44_100, 48_000, 96_000]
    tones = [100, 1_000, 3_400, 6_800, 8_300, 11_000, 20_000]
    async with launched() as browser:
        page = await (await Watched.of(browser)).page(f"{server}/sdk/index.js")
        found = await page.evaluate(_TONES, {"rates": rates, "tones": tones})
    assert len(found) == sum(hertz < 0.42 * rate for rate in rates for hertz in tones)
    for rate, hertz, decibels in found:
        assert decibels < (-45 if hertz < 8_000 else -60), (rate, hertz)
