"""The live-captions page at `/`, and the JavaScript SDK that it is made of, at `/sdk/…`.

All files are read once: nothing that a request says becomes a path. A browser asks each time whether what it has is
still good (`ETag`), which costs it no bytes; so a new version of the server is never met by an old page.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

from fastapi import APIRouter, Request, Response

TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
    "ts": "text/plain; charset=utf-8",
    "webmanifest": "application/manifest+json",
}
"""What is served, by the last part of its name; other files are for who reads the source."""

PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; manifest-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Only what this server serves runs, and it talks to this server only."""

_HEADERS: Final = {
    "cache-control": "no-cache",
    "content-security-policy": PAGE_POLICY,
    "permissions-policy": "camera=(), geolocation=(), microphone=(self)",
    "cross-origin-opener-policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file as it is served."""

    body: bytes
    media_type: str
    etag: str


def load() -> dict[str, Asset]:
    """The page's files by their addresses."""
    return dict(_files(resources.files("bridge") / "web", "/"))


def router() -> APIRouter:
    """The page, and everything that it loads. Needs no key: there is nothing in it that is anybody's."""
    assets = load()
    routes = APIRouter(include_in_schema=False)

    async def file(request: Request) -> Response:
        asset = assets[request.scope["path"]]
        headers = _HEADERS | {"etag": asset.etag}
        if asset.etag in _tags(request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=headers)
        return Response(asset.body, media_type=asset.media_type, headers=headers)

    for path in assets:
        routes.add_api_route(path, file, methods=["GET", "HEAD"], response_class=Response)
    return routes


def _files(folder: Traversable, path: str) -> Iterator[tuple[str, Asset]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry, f"{path}{entry.name}/")
        elif media_type := TYPES.get(entry.name.rpartition(".")[2]):
            body = entry.read_bytes()
            asset = Asset(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
            yield path + ("" if entry.name == "index.html" else entry.name), asset


def _tags(header: str) -> set[str]:
    """The entity tags of `If-None-Match`; a proxy that compresses makes a tag a weak one."""
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}
