"""A headless Chromium whose microphone plays a file, and a watch over what its pages complain about."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import wave
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

from tests.speech import SAMPLES, pcm

RATE: Final = 16_000
LEAD_SECONDS: Final = 1.0
"""Silence before the speech: a fake microphone plays from when it is opened, some time before it is heard."""
LIMIT: Final = 30.0

_VIOLATIONS: Final = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective} ${event.blockedURI}`);
});
"""


def chromium() -> str:
    """The browser: `STT_CHROMIUM`, or the system's."""
    named = os.environ.get("STT_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.fail("there is no Chromium: apt-get install chromium, or set STT_CHROMIUM")
    return found


@contextlib.asynccontextmanager
async def launched(
    recording: Path | None = None, *arguments: str, microphone: bool = True, allowed: bool = True
) -> AsyncGenerator[Browser]:
    """A browser; its microphone plays the WAV file once, then is silent. `allowed`: pages may have it."""
    flags = []
    if allowed:
        flags += ["--use-fake-ui-for-media-stream"]
    if microphone:
        flags += ["--use-fake-device-for-media-stream"]
    if recording is not None:
        flags += [f"--use-file-for-fake-audio-capture={recording}%noloop"]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=[*flags, *arguments])
        try:
            yield browser
        finally:
            await browser.close()


class Watched:
    """A context whose pages are watched; everything that they complain about, in order."""

    def __init__(self, context: BrowserContext) -> None:
        self.context = context
        self.complaints: list[str] = []

    @classmethod
    async def of(cls, browser: Browser, **options: Any) -> Watched:
        """A new one; `options` are playwright's."""
        watched = cls(await browser.new_context(**options))
        await watched.context.add_init_script(_VIOLATIONS)
        watched.context.on("console", lambda message: watched._said(message.type, message.text))
        watched.context.on("weberror", lambda error: watched._said("error", str(error.error)))
        return watched

    async def page(self, url: str) -> Page:
        """A page that is loaded."""
        page = await self.context.new_page()
        await page.goto(url)
        return page

    async def assert_content(self) -> None:
        """No errors on the console, and nothing that the policy forbids."""
        for page in self.context.pages:
            assert await page.evaluate("window.violations") == []
        assert self.complaints == []

    def _said(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)


async def until(condition: Callable[[], Awaitable[Any]], limit: float = LIMIT) -> Any:
    """What the condition comes to, once it is true. (`wait_for_function` needs `eval`, which the policy forbids.)"""
    async with asyncio.timeout(limit):
        while not (found := await condition()):
            await asyncio.sleep(0.05)
    return found


async def state(page: Page) -> str | None:
    """Of the line that says how it stands."""
    found: str | None = await page.get_attribute("#status", "data-state")
    return found


async def reached(page: Page, wanted: str, limit: float = LIMIT) -> None:
    """Wait until that line has this state."""

    async def there() -> bool:
        return await state(page) == wanted

    await until(there, limit)


async def lines(page: Page, where: str = "#finals") -> list[str]:
    """The finals that are shown."""
    said: list[str] = await page.eval_on_selector_all(f"{where} .said", "all => all.map((one) => one.textContent)")
    return said


def recorded(folder: Path, sample: str = "demo.flac", *, tail: float = 1.0, times: int = 1) -> Path:
    """A sample of the project's as a fake microphone plays it: PCM16 at 16 kHz, with silence around."""
    silence = bytes(2 * round(RATE * tail))
    return played(folder / f"{sample}.wav", (pcm(SAMPLES / sample) + silence) * times)


def played(path: Path, audio: bytes) -> Path:
    """PCM16 at 16 kHz as a file for a fake microphone."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(bytes(2 * round(RATE * LEAD_SECONDS)) + audio)
    return path
