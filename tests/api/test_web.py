"""The page and the SDK as they are served: whole, safe and never stale."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final
from urllib.parse import urljoin

import pytest

from bridge.api import web
from tests.speech import ROOT
from tests.wire import Wire, get

WEB: Final = ROOT / "bridge" / "web"
REFERENCES: Final = (
    re.compile(r"""(?:src|href)="(/[^"?#]*)"""),
    re.compile(r"""\bfrom\s+"([^"]+)\""""),
    re.compile(r"""new URL\("([^"]+)\", import"""),
)


async def test_the_page(plain: str) -> None:
    page = await get(f"{plain}/")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.body == (WEB / "index.html").read_bytes()
    policy = dict(part.strip().partition(" ")[::2] for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "microphone=(self)" in page.headers["permissions-policy"]


async def test_it_needs_no_key(keyed: str) -> None:
    assert (await get(f"{keyed}/")).status == 200
    assert (await get(f"{keyed}/sdk/index.js")).status == 200


async def test_everything_that_it_asks_for_is_there(plain: str) -> None:
    """Whatever a file names is served, from `/` on, and of a type that browsers take."""
    found: set[str] = set()
    wanted = {"/"}
    while wanted - found:
        path = (wanted - found).pop()
        answer = await get(plain + path)
        assert answer.status == 200, path
        assert answer.headers["cache-control"] == "no-cache"
        found.add(path)
        text = answer.body.decode()
        wanted |= {urljoin(path, name) for pattern in REFERENCES for name in pattern.findall(text)}
    scripts = {f"/{path.relative_to(WEB)}" for path in WEB.rglob("*.js")}
    assert scripts <= found


async def test_nothing_is_written_into_the_markup() -> None:
    """The policy would stop it, and the page be broken."""
    text = (WEB / "index.html").read_text()
    assert not re.search(r"\sstyle=|\son\w+=|<style|javascript:", text)
    assert not re.search(r"<script(?![^>]*\ssrc=)", text)
    for script in WEB.rglob("*.js"):
        assert not re.search(r"(inn|out)erHTML|insertAdjacentHTML|\beval\(|new Function|console\.", script.read_text())


async def test_what_a_browser_has_is_not_sent_again(plain: str) -> None:
    for path in ("/", "/sdk/worklet.js"):
        first = await get(plain + path)
        for tag in (first.headers["etag"], f"W/{first.headers['etag']}", f'"other", {first.headers["etag"]}'):
            again = await get(plain + path, {"If-None-Match": tag})
            assert (again.status, again.body) == (304, b"")
            assert again.headers["etag"] == first.headers["etag"]
        assert (await get(plain + path, {"If-None-Match": '"other"'})).status == 200


async def test_other_methods(plain: str) -> None:
    head = await get(f"{plain}/", method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["content-length"]) == len((WEB / "index.html").read_bytes())
    assert (await get(f"{plain}/", method="POST", body=b"")).status == 405


@pytest.mark.parametrize(
    "path",
    [
        "/sdk",
        "/sdk/",
        "/sdk/../../app.py",
        "/sdk/%2e%2e/%2e%2e/app.py",
        "/sdk/..%2f..%2fapp.py",
        "/index.html",
    ],
)
async def test_nothing_else_is_served(plain: str, path: str) -> None:
    async with Wire.open(plain) as wire:
        await wire.send(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        assert (await wire.response()).status == 404


async def test_an_address_written_otherwise(plain: str) -> None:
    assert (await get(f"{plain}/%73dk/index.js")).status == 200


async def test_modules_for_pages_of_an_allowed_origin(plain: str) -> None:
    answer = await get(f"{plain}/sdk/index.js", {"Origin": "https://app.example"})
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert (
        "access-control-allow-origin"
        not in (await get(f"{plain}/sdk/index.js", {"Origin": "https://x.example"})).headers
    )


@pytest.mark.slow
def test_the_wheel_has_all_of_it(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    if subprocess.run([sys.executable, "-c", "import hatchling"], check=False, capture_output=True).returncode:
        pytest.skip("hatchling is not installed, and would have to be downloaded")
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"bridge/web{path if path != '/' else '/index.html'}" for path in web.load()} <= names
