"""The page as people use it: without a microphone, with a key, by keyboard, on a phone; what axe has to say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Page, WebSocketRoute

from tests.browser.browser import Watched, launched, lines, reached, recorded, until
from tests.conftest import Spawn
from tests.speech import SAMPLES, manifest
from tests.wire import engine_env, spawned

AXE: Final = (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
PHONE: Final[dict[str, Any]] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}
WORDS: Final = {"surely": 0.9, "maybe": 0.6, "hardly": 0.2}
DESK: Final[dict[str, Any]] = {"viewport": {"width": 1280, "height": 800}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with spawned(tmp_path_factory.mktemp("page"), {"STT_BACKEND": "pocketsphinx"}) as running:
        yield running.url
        running.assert_no_traceback()


async def assert_accessible(page: Page) -> None:
    await page.evaluate(AXE)
    found = await page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    said = [f"{v['id']} ({v['impact']}): {[n['target'] for n in v['nodes']]}" for v in found["violations"]]
    assert said == []


async def assert_fits(page: Page) -> None:
    """Nothing is wider than the window, and what is pressed is large enough for a finger."""
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    small = await page.evaluate(
        """[...document.querySelectorAll("button, a.button, select")].filter((one) => {
          const { width, height } = one.getBoundingClientRect();
          return width > 0 && (width < 36 || height < 36);
        }).map((one) => one.id || one.textContent)"""
    )
    assert small == []


@pytest.mark.parametrize(("device", "scheme"), [(DESK, "light"), (PHONE, "dark")], ids=["desk-light", "phone-dark"])
async def test_every_view_is_accessible(server: str, tmp_path: Path, device: dict[str, Any], scheme: Any) -> None:
    async with launched(recorded(tmp_path, "hello.flac")) as browser:
        watched = await Watched.of(browser, **device, color_scheme=scheme)
        page = await watched.page(server)
        await assert_accessible(page)
        await assert_fits(page)
        await page.click("#open-settings")
        await assert_accessible(page)
        await page.keyboard.press("Escape")
        await page.click("#record")
        await until(lambda: page.inner_text("#partial"))
        await assert_accessible(page)
        await assert_fits(page)
        link = await page.get_attribute("#screen", "href")
        await until(lambda: lines(page))
        await page.click("#record")
        await reached(page, "idle", 30)
        screen = await watched.page(f"{server}{link}")
        await until(lambda: lines(screen, "#hall"))
        await assert_accessible(screen)
        await page.click("#tab-file")
        await page.set_input_files("#file-input", SAMPLES / "hello.flac")
        await until(lambda: lines(page, "#files"), 30)
        await assert_accessible(page)
        await assert_fits(page)
        await watched.assert_content()


async def test_files(server: str, tmp_path: Path) -> None:
    """Progress, then the transcript; a file that is none is said to be so, and the next one goes on."""
    async with launched() as browser:
        watched = await Watched.of(browser)
        page = await watched.page(server)
        await page.click("#tab-file")
        (tmp_path / "notes.mp3").write_text("this is no recording")
        await page.set_input_files("#file-input", [tmp_path / "notes.mp3", SAMPLES / "hello.flac"])
        states: set[str] = set()

        async def done() -> bool:
            states.update(await page.eval_on_selector_all("#files .state", "all => all.map((one) => one.textContent)"))
            return bool(await lines(page, "#files"))

        await until(done, 60)
        assert await lines(page, "#files") == [manifest()["hello.flac"]["transcript"]]
        assert any(state.startswith(("Transcribing", "Uploading", "In the queue")) for state in states)
        assert "This is no recording that can be read." in states
        async with page.expect_download() as download:
            await page.click("#files button >> text=srt")
        assert (await download.value).suggested_filename == "hello.srt"
        # Dropped anywhere, and called off.
        await page.click("#tab-live")
        handle = await page.evaluate_handle(
            """() => {
              const transfer = new DataTransfer();
              transfer.items.add(new File([new Uint8Array(2 ** 20)], "dropped.wav"));
              return transfer;
            }"""
        )
        await page.dispatch_event("body", "dragenter", {"dataTransfer": handle})
        assert await page.is_visible("#file")
        await page.dispatch_event("body", "drop", {"dataTransfer": handle})
        assert await page.inner_text("#files .card:first-child h2") == "dropped.wav"
        complaints = [text for text in watched.complaints if "Failed to load resource" not in text]  # the refusals
        assert complaints == []


async def said(page: Page) -> str:
    """What the page says when it cannot begin."""
    await page.click("#record")
    await reached(page, "failed")
    notes: str = await page.inner_text("#notes")
    return notes


async def test_without_a_microphone(server: str) -> None:
    async with launched(microphone=False) as browser:
        page = await (await Watched.of(browser)).page(server)
        assert "There is no microphone." in await said(page)
        assert await page.get_attribute("#record", "aria-label") == "Start listening"


async def test_a_microphone_that_is_not_allowed(server: str) -> None:
    async with launched(allowed=False) as browser:
        page = await (await Watched.of(browser)).page(server)
        assert "not allowed for this page" in await said(page)


async def test_an_address_that_is_not_secure(server: str) -> None:
    """By a name that is not this machine's, browsers have no microphone to give."""
    port = urlsplit(server).port
    async with launched(None, "--host-resolver-rules=MAP captions.test 127.0.0.1") as browser:
        page = await (await Watched.of(browser)).page(f"http://captions.test:{port}/")
        assert "Browsers give a microphone to secure pages only" in await said(page)


async def test_a_key(spawn: Spawn, tmp_path: Path) -> None:
    """It is asked for, asked for again where it is wrong, kept in the tab, and never in the address."""
    server = spawn(engine_env(mode="script") | {"STT_API_KEYS": "open-sesame"})
    async with launched(recorded(tmp_path, "hello.flac")) as browser:
        watched = await Watched.of(browser)
        page = await watched.page(server.url)
        first = ("wrong", "This server asks for an API key or a token.")
        second = ("open-sesame", "This key is wrong, or it has expired.")
        for key, why in (first, second):
            await page.wait_for_selector(f"#key-dialog[open] >> text={why}")
            await page.fill("#key", key)
            await page.keyboard.press("Enter")
        await page.wait_for_selector("#key-dialog", state="hidden")
        await page.click("#open-settings")  # it is forgotten, and asked for as if there had never been one
        await page.click("#change-key")
        for key, why in (("", "Another key, or none, to forget it."), ("open-sesame", first[1])):
            await page.wait_for_selector(f"#key-dialog[open] >> text={why}")
            await page.fill("#key", key)
            await page.keyboard.press("Enter")
        await page.wait_for_selector("#key-dialog", state="hidden")
        await page.click("#record")
        await until(lambda: lines(page))
        link = await page.get_attribute("#screen", "href")
        assert "sesame" not in page.url + str(link)
        await page.click("#record")
        await reached(page, "idle")
        kept = await page.evaluate("[JSON.stringify(localStorage), sessionStorage.getItem('stt-key'), document.cookie]")
        assert "sesame" not in kept[0] + kept[2]
        assert kept[1] == "open-sesame"
        other = await (await Watched.of(browser)).page(f"{server.url}{link}")  # a screen elsewhere has its own
        await other.wait_for_selector("#key-dialog[open]")
        await other.fill("#key", "open-sesame")
        await other.keyboard.press("Enter")
        await until(lambda: lines(other, "#hall"))
    assert "sesame" not in server.log


async def test_choices(spawn: Spawn, tmp_path: Path) -> None:
    """Another engine, another language; they are remembered, and the server is asked for them."""
    server = spawn(
        engine_env(mode="script") | engine_env(mode="script", backend="scripted-threads"),
        "--backend",
        "scripted,scripted-threads",
    )
    async with launched(recorded(tmp_path, "hello.flac")) as browser:
        watched = await Watched.of(browser)
        page = await watched.page(server.url)
        await page.click("#open-settings")
        await page.select_option("#backend", "scripted-threads")
        await page.select_option("#language", "de-DE")
        await page.click("#settings-done")
        await page.reload()
        await page.click("#record")
        await reached(page, "open")
        assert await page.inner_text("#fact-backend") == "scripted-threads"
        assert await page.inner_text("#fact-language") == "German (Germany)"
        await watched.assert_content()


async def test_choices_outlive_a_server_that_is_away(server: str) -> None:
    """Looking at the settings while nobody says what there is to choose between forgets nothing."""
    chosen = {"language": "de-DE", "backend": "whisper", "microphone": "usb"}
    async with launched() as browser:
        watched = await Watched.of(browser)
        await watched.context.add_init_script(f"localStorage.setItem('stt-choices', '{json.dumps(chosen)}')")
        await watched.context.route("**/v1/backends", lambda route: route.abort())
        page = await watched.page(server)
        await until(lambda: page.inner_text("#notes"))
        await page.click("#open-settings")
        assert await page.input_value("#language") == "de-DE"
        assert await page.input_value("#backend") == "whisper"
        assert await page.input_value("#microphone") == "usb"
        await page.click("#settings-done")
        kept = json.loads(await page.evaluate("localStorage.getItem('stt-choices')"))
        assert {name: kept[name] for name in chosen} == chosen


async def test_by_keyboard_alone(server: str, tmp_path: Path) -> None:
    async with launched(recorded(tmp_path, "hello.flac")) as browser:
        watched = await Watched.of(browser)
        page = await watched.page(server)
        await page.focus("#tab-live")
        await page.keyboard.press("ArrowRight")
        assert await page.is_visible("#file")
        await page.keyboard.press("ArrowLeft")
        assert await page.is_visible("#live")
        for _ in range(12):
            if await page.evaluate("document.activeElement.id") == "record":
                break
            await page.keyboard.press("Tab")
        await page.keyboard.press("Space")
        await until(lambda: lines(page))
        await page.keyboard.press("Space")
        await reached(page, "idle", 30)
        log = await page.evaluate("(({ role, ariaLive }) => [role, ariaLive])(document.getElementById('finals'))")
        assert log == ["log", "polite"]
        await watched.assert_content()


async def test_how_sure_it_is(server: str) -> None:
    """Words that are not sure are told apart by more than a colour; the setting turns it off."""
    ready = {"type": "ready", "protocol": 1, "session_id": "s", "backend": "b", "language": "en", "resume_token": None}
    words = [{"text": text, "start": 0, "end": 1, "confidence": sure} for text, sure in WORDS.items()]
    final = {"type": "final", "seq": 1, "text": " ".join(WORDS), "start": 0, "end": 1, "words": words}

    def answer(socket: WebSocketRoute) -> None:
        def begin(message: str | bytes) -> None:
            if isinstance(message, str):  # `start`
                socket.send(json.dumps(ready))
                socket.send(json.dumps(final))

        socket.on_message(begin)

    async with launched() as browser:
        page = await (await Watched.of(browser)).context.new_page()
        await page.route_web_socket("**/v1/stream", answer)
        await page.goto(server)
        await page.click("#record")
        assert await until(lambda: lines(page)) == [" ".join(WORDS)]
        marked: list[list[str]] = await page.eval_on_selector_all(
            "#finals .word", "all => all.map((one) => [one.textContent, one.className, one.title])"
        )
        assert marked == [["maybe", "word unsure", "60 % sure"], ["hardly", "word doubtful", "20 % sure"]]
        styles = """all => all.map((one) => {
          const { textDecorationLine, textDecorationStyle, color } = getComputedStyle(one);
          return [textDecorationLine, textDecorationStyle, color];
        })"""
        unsure, doubtful = await page.eval_on_selector_all("#finals .word", styles)
        plain = await page.eval_on_selector("#finals .said", "(one) => getComputedStyle(one).color")
        assert (unsure[:2], doubtful[:2]) == (["underline", "dotted"], ["underline", "wavy"])
        assert len({unsure[2], doubtful[2], plain}) == 3
        await page.click("#open-settings")
        await page.uncheck("#colours")
        await page.click("#settings-done")
        assert await page.eval_on_selector_all("#finals .word", styles) == [["none", "solid", plain]] * 2


async def test_the_system_s_theme_until_one_is_chosen(server: str) -> None:
    async with launched() as browser:
        page = await (await Watched.of(browser, color_scheme="dark")).page(server)

        async def ground() -> str:
            return str(await page.evaluate("getComputedStyle(document.body).backgroundColor"))

        dark = await ground()
        await page.emulate_media(color_scheme="light")

        async def another() -> str | None:
            found = await ground()
            return found if found != dark else None

        light = await until(another)
        await page.click("#theme")
        assert await ground() == dark
        await page.emulate_media(color_scheme="dark")
        await page.click("#theme")
        assert await ground() == light  # chosen against the system's
        await page.reload()
        assert await ground() == light
