"""What every HTTP answer says to browsers: what they may do with it, and which web pages may read it.

A plain ASGI layer: it adds to the head of an answer, and costs a few microseconds. WebSockets do not come through it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from bridge.security.entrance import HEADERS

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

PREFLIGHT_SECONDS: Final = 600
"""For which a browser need not ask again; some take two hours, and a key's page would wait so long for a change."""

ALWAYS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),  # an address may hold a key (`?token=`) or a session's name
    (b"cross-origin-resource-policy", b"same-origin"),
    # Answers are for who asked. What may be kept says so itself.
    (b"cache-control", b"no-store"),
)
_DATA_POLICY: Final = b"default-src 'none'; frame-ancestors 'none'"
"""Nothing here is a page; what is opened as one can do nothing."""
_DOCS_POLICY: Final = (
    b"default-src 'none'; connect-src 'self'; img-src 'self' data: https://fastapi.tiangolo.com; "
    # The page has one script of its own, which starts what comes from there.
    b"script-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net; "
    b"style-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'"
)
POLICIES: Final = {"/docs": _DOCS_POLICY, "/docs/oauth2-redirect": _DOCS_POLICY}

METHODS: Final = "GET, HEAD, POST, PATCH, DELETE, OPTIONS"
REQUEST_HEADERS: Final = (
    "Accept",
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "Last-Event-ID",
    "OpenAI-Beta",
    "OpenAI-Organization",
    "OpenAI-Project",
    "Traceparent",
    "Tracestate",
    "Tus-Resumable",
    "Upload-Checksum",
    "Upload-Concat",
    "Upload-Defer-Length",
    "Upload-Length",
    "Upload-Metadata",
    "Upload-Offset",
    "X-API-Key",
    "X-HTTP-Method-Override",
    "X-Request-ID",
    "X-Requested-With",
)
"""Those that clients of these routes send; a browser asks for leave for each. `X-Stainless-*` (OpenAI's) besides."""
RESPONSE_HEADERS: Final = (
    "Location",
    "RateLimit",
    "RateLimit-Limit",
    "RateLimit-Policy",
    "RateLimit-Remaining",
    "RateLimit-Reset",
    "Retry-After",
    "Server-Timing",
    "Traceparent",
    "Tus-Checksum-Algorithm",
    "Tus-Extension",
    "Tus-Max-Size",
    "Tus-Resumable",
    "Tus-Version",
    "Upload-Defer-Length",
    "Upload-Expires",
    "Upload-Job",
    "Upload-Length",
    "Upload-Metadata",
    "Upload-Offset",
    "X-Request-ID",
)
"""Those of ours that a page may read."""
_PREFIXES: Final = ("x-stainless-",)
_KNOWN: Final = frozenset(name.lower() for name in REQUEST_HEADERS)
_EXPOSED: Final = ", ".join(RESPONSE_HEADERS).encode()


class WebHeaders:
    """An application with these headers. `origins`: web origins whose pages may ask, and read the answer (CORS).

    Keys travel in headers that a page sets itself, so no cookies are allowed for.
    """

    def __init__(self, app: App, origins: Iterable[str] = ()) -> None:
        self._app = app
        self._origins = {origin.rstrip("/").lower().encode() for origin in origins}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told: list[tuple[bytes, bytes]] = []
        scope[HEADERS] = told
        policy = POLICIES.get(scope["path"], _DATA_POLICY)
        shared = self._shared(scope) if self._origins else ()
        if shared and scope["method"] == "OPTIONS" and (asked := _asked(scope)) is not None:
            await _answer_preflight(send, (*ALWAYS, *shared, *asked))
            return

        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"] = list(message.get("headers", ()))
                given = {name.lower() for name, _ in headers}
                headers += [header for header in ALWAYS if header[0] not in given]
                if b"content-security-policy" not in given:
                    headers.append((b"content-security-policy", policy))
                headers += shared
                if self._origins and not shared:
                    headers.append((b"vary", b"Origin"))
                headers += told
            await send(message)

        await self._app(scope, receive, add)

    def _shared(self, scope: Message) -> tuple[tuple[bytes, bytes], ...]:
        """What lets a page of an allowed origin read the answer."""
        origin = next((value for name, value in scope["headers"] if name == b"origin"), None)
        if origin is None or origin.rstrip(b"/").lower() not in self._origins:
            return ()
        return (
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", _EXPOSED),
            (b"vary", b"Origin"),
        )


def _asked(scope: Message) -> tuple[tuple[bytes, bytes], ...] | None:
    """The answer to what a preflight asks for; None: it is none."""
    asked = dict(scope["headers"])
    if b"access-control-request-method" not in asked:
        return None
    wanted = asked.get(b"access-control-request-headers", b"").decode("latin-1").lower().split(",")
    names = [name for name in map(str.strip, wanted) if name in _KNOWN or name.startswith(_PREFIXES)]
    return (
        (b"access-control-allow-methods", METHODS.encode()),
        (b"access-control-allow-headers", ", ".join(names).encode("latin-1")),
        (b"access-control-max-age", str(PREFLIGHT_SECONDS).encode()),
    )


async def _answer_preflight(send: Send, headers: Iterable[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": list(headers)})
    await send({"type": "http.response.body", "body": b""})
