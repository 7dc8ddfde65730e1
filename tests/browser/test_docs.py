"""The page of docs/clients.md, as somebody copies it: on an origin of its own, with a server elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path

from tests.browser.browser import Watched, launched, recorded, until
from tests.conftest import Spawn
from tests.docs import blocks, page, section
from tests.speech import manifest


@contextlib.asynccontextmanager
async def served(body: list[str]) -> AsyncGenerator[str]:
    """The address of a page, whose text may be put into the list later."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        found = asked.startswith(b"GET / ")
        text = (body[0] if found else "").encode()
        status = "200 OK" if found else "204 No Content"
        head = f"HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(text)}\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode() + text)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://localhost:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_a_page_of_another_origin(spawn: Spawn, tmp_path: Path) -> None:
    (text,) = blocks(section(page("clients.md"), "In a web page"), "html")
    body = [""]
    async with served(body) as origin, launched(recorded(tmp_path, "hello.flac")) as browser:
        server = spawn({"STT_BACKEND": "pocketsphinx", "STT_ALLOWED_ORIGINS": origin})
        body[0] = text.replace("http://127.0.0.1:8000", server.url)
        watched = await Watched.of(browser)
        shown = await watched.page(origin)
        await shown.click("#talk")
        await until(lambda: shown.inner_text("#partial"))
        await until(lambda: shown.inner_text("#finals"))
        await shown.click("#talk")
        await shown.wait_for_selector("#talk[title=ended]")
        assert (await shown.inner_text("#finals")).strip() == manifest()["hello.flac"]["transcript"]
        await watched.assert_content()
