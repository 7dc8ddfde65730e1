"""The page listens: real speech from a fake microphone, through the real server, onto the screen."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.async_api import Page

from tests.browser.browser import RATE, Watched, launched, lines, played, reached, recorded, state, until
from tests.browser.fidelity import correlations
from tests.browser.tap import Tap
from tests.speech import manifest, pcm, recording, word_error_rate
from tests.wire import Wire, http_get, spawned

SAID = [utterance["text"] for utterance in manifest()["demo.flac"]["utterances"]]
READ = {
    "0870": "and mister john dashwood had then leisure to consider how much there might be prudently "
    "in his power to do for them",
    "0880": "he was not an ill disposed young man",
    "0890": "unless to be rather cold hearted and rather selfish is to be ill disposed",
}
"""What is said in the recordings `librivox-*.wav`."""

_OBSERVE = """() => {
  window.seen = [];
  const note = () => window.seen.push([
    document.querySelectorAll("#finals .said").length,
    document.getElementById("partial").textContent,
  ]);
  for (const id of ["finals", "partial"]) {
    new MutationObserver(note).observe(document.getElementById(id), { childList: true, subtree: true });
  }
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with spawned(tmp_path_factory.mktemp("live"), {"STT_BACKEND": "pocketsphinx"}) as running:
        yield running.url
        running.assert_no_traceback()


async def heard(page: Page, finals: int, limit: float = 60) -> None:
    """Wait until so many finals are shown."""

    async def shown() -> bool:
        assert await state(page) != "failed", await page.inner_text("#notes")
        return len(await lines(page)) >= finals

    await until(shown, limit)


async def stopped(page: Page) -> None:
    await page.click("#record")
    await reached(page, "idle", 30)


def assert_partials_before_finals(seen: list[tuple[int, str]], finals: list[str]) -> None:
    """Each final was said word by word before it stood there."""
    for number, final in enumerate(finals):
        partials = [text for count, text in seen if count == number and text]
        assert len(set(partials)) >= 3, final
        assert partials[-1].split()[:1] == final.split()[:1]


async def saved(page: Page, kind: str) -> str:
    async with page.expect_download() as download:
        await page.click(f"[data-format={kind}]")
    return str((await (await download.value).path()).read_text())


async def test_words_fidelity_and_a_second_screen(server: str, tmp_path: Path) -> None:
    path = recorded(tmp_path)
    async with Tap.before(server) as tap, launched(path) as browser:
        watched = await Watched.of(browser)
        page = await watched.page(tap.url)
        await page.evaluate(_OBSERVE)
        await page.click("#record")
        await reached(page, "open")
        link = await page.get_attribute("#screen", "href")
        assert link is not None
        screen = await watched.page(tap.url + link)
        await heard(page, len(SAID))
        await stopped(page)
        assert await lines(page) == SAID
        assert_partials_before_finals(await page.evaluate("window.seen"), SAID)
        await screen.wait_for_selector("#hall-status[data-state=idle]")
        assert await lines(screen, "#hall") == SAID
        session = link.partition("session=")[2].partition("&")[0]
        for kind in ("txt", "srt", "vtt"):
            address = f"{server}/v1/sessions/{session}/transcript?format={kind}"
            assert await saved(page, kind) == (await asyncio.to_thread(http_get, address)).body.decode(), kind
        await watched.assert_content()
    alike = correlations(pcm(path), bytes(tap.audio[0]))
    print("correlation of each second:", " ".join(f"{value:.4f}" for value in alike))  # noqa: T201 - a measurement
    assert len(alike) >= 15
    assert np.mean([value >= 0.97 for value in alike]) >= 0.9  # one slip of a busy machine is not ours
    assert np.median(alike) >= 0.99


async def test_strangers_are_heard_as_well_as_without_a_browser(server: str, tmp_path: Path) -> None:
    """Real recordings, where they lie beside the project: as many words are wrong as when the file is sent itself."""
    audio = b"".join(recording(f"librivox-{name}.wav") + bytes(2 * RATE) for name in READ)
    path = played(tmp_path / "read.wav", audio)
    async with Wire.stream(server, start={"encoding": "pcm_s16le"}) as wire:
        await wire.audio(pcm(path))
        await wire.say({"type": "stop"})
        direct = " ".join((await wire.finish(60)).words)
    async with Tap.before(server) as tap, launched(path) as browser:
        page = await (await Watched.of(browser)).page(tap.url)
        await page.click("#record")
        await reached(page, "open")
        await asyncio.sleep(len(pcm(path)) / 2 / RATE)
        await stopped(page)
        shown = " ".join(await lines(page))
    alike = correlations(pcm(path), bytes(tap.audio[0]))
    said = " ".join(READ.values())
    errors = word_error_rate(said, shown), word_error_rate(said, direct)
    print(f"word error rate {errors[0]:.3f}, without a browser {errors[1]:.3f}; least correlation {min(alike):.4f}")  # noqa: T201
    assert errors[0] <= errors[1] + 0.05
    assert np.mean([value >= 0.97 for value in alike]) >= 0.9


async def test_a_socket_that_is_cut_in_mid_sentence(server: str, tmp_path: Path) -> None:
    async with Tap.before(server) as tap, launched(recorded(tmp_path)) as browser:
        watched = await Watched.of(browser)
        page = await watched.page(tap.url)
        await page.evaluate(
            """() => {
              window.states = [];
              const line = document.getElementById("status");
              new MutationObserver(() => window.states.push(line.dataset.state)).observe(line, { attributes: true });
            }"""
        )
        await page.click("#record")
        for count in range(1, 4):  # while the second, third and fourth sentence are said

            async def speaking(count: int = count) -> bool:
                return len(await lines(page)) >= count and len((await page.inner_text("#partial")).split()) >= 4

            await until(speaking, 30)
            tap.open.clear()
            assert tap.cut() == 1
            await reached(page, "reconnecting")
            assert await page.inner_text("#partial") == ""
            await asyncio.sleep(1.5 if count == 2 else 0.1)
            tap.open.set()
            await reached(page, "open")
        await heard(page, len(SAID))
        await stopped(page)
        assert await lines(page) == SAID
        states: list[str] = await page.evaluate("window.states")
    assert states.count("reconnecting") >= 3
    assert len(tap.audio) >= 4
    assert all("WebSocket" in complaint for complaint in watched.complaints)


async def test_what_is_said_before_the_server_is_ready(server: str, tmp_path: Path) -> None:
    async with Tap.before(server) as tap, launched(recorded(tmp_path, "hello.flac")) as browser:
        watched = await Watched.of(browser)
        page = await watched.page(tap.url)
        tap.open.clear()
        await page.click("#record")
        await asyncio.sleep(4)  # all of it is said by now
        assert await state(page) == "connecting"
        tap.open.set()
        await heard(page, 1)
        await stopped(page)
        assert await lines(page) == [manifest()["hello.flac"]["transcript"]]
        await watched.assert_content()


async def test_two_sessions_are_one_transcript(server: str, tmp_path: Path) -> None:
    async with launched(recorded(tmp_path, "hello.flac")) as browser:
        watched = await Watched.of(browser)
        page = await watched.page(server)
        for count in (1, 2):
            await page.click("#record")
            await heard(page, count)
            await stopped(page)
        assert await lines(page) == [manifest()["hello.flac"]["transcript"]] * 2
        stamps: list[Any] = await page.eval_on_selector_all("#finals .stamp", "all => all.map((one) => one.innerText)")
        assert stamps[0] < stamps[1]
        await page.click("#clear")
        assert await lines(page) == []
        await watched.assert_content()
