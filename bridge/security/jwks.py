"""The public keys of who signs tokens (JWKS, RFC 7517): read from a file or by https, kept, and read again.

Many keys with names (`kid`), so that they can be exchanged while tokens of both are in use.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jwt

from bridge.errors import BridgeError
from bridge.security.auth import UnknownKeyError, is_loopback
from bridge.security.tokens import Key, KeyFileError, algorithm_of

if TYPE_CHECKING:
    from httpx import URL

AGAIN_SECONDS: Final = 30.0
"""Between two readings at least: a stranger's tokens may name a key that there is not, as often as they like."""
FRESH_SECONDS: Final = 600.0
"""After which keys are read again, so that one that was withdrawn is forgotten."""
READ_SECONDS: Final = 5.0
MOST_BYTES: Final = 262_144
MOST_KEYS: Final = 100

_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
"""What an RSA key may say that it is for; the others have one algorithm each."""

log = logging.getLogger(__name__)


class KeySet:
    """`source`: a file's path, or an https URL (http for this machine). `clock`: seconds, never going back.

    A file is read at once, and a server elsewhere when the first token comes, or at `freshen`. While that does not
    answer, the keys that are known stay good.

    Raises:
        KeyFileError: it is no such URL, or the file holds no keys; a sentence that begins with what it should be.
    """

    def __init__(self, source: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._url = _url(source)
        self._clock = clock
        self._keys: dict[str | None, Key] | None = None
        self._read = self._tried = -float("inf")
        self._reading: asyncio.Task[None] | None = None
        self._told = False
        if self._url is None:
            try:
                self._take(_file(source))
            except OSError as exc:
                raise KeyFileError(f"should be a file that can be read, or an https URL ({exc.strerror})") from None

    def of(self, token: str) -> Key:
        """The key that the token names. One that names none means the only key.

        Raises:
            BridgeError: `unauthorized`: it is no token.
            UnknownKeyError: there is none of this name, as far as is known.
        """
        try:
            kid = jwt.get_unverified_header(token).get("kid")
        except (jwt.PyJWTError, RecursionError, UnicodeEncodeError):
            raise BridgeError("unauthorized", "the token is wrong") from None
        keys = self._keys or {}
        if kid is None and len(keys) == 1:
            return next(iter(keys.values()))
        if kid is None or (key := keys.get(kid)) is None:
            raise UnknownKeyError
        return key

    async def refresh(self) -> None:
        """Read them again, unless that was just done. May be cancelled: who else waits is not hurt.

        Raises:
            BridgeError: `not_ready`: no keys are known yet.
        """
        if self._reading is None and self._clock() - self._tried >= AGAIN_SECONDS:
            self._begin()
        if self._reading is not None:
            await asyncio.shield(self._reading)
        if self._keys is None:
            wait = max(1.0, AGAIN_SECONDS - (self._clock() - self._tried))
            sentence = "the keys of who signs tokens cannot be had at the moment"
            raise BridgeError("not_ready", sentence, retry_after=wait)

    def freshen(self) -> None:
        """Read them again if they are old, and do not wait for that."""
        now = self._clock()
        if self._reading is None and now - self._read >= FRESH_SECONDS and now - self._tried >= AGAIN_SECONDS:
            self._begin()

    def _begin(self) -> None:
        self._tried = self._clock()
        self._reading = asyncio.get_running_loop().create_task(self._read_again(), name="jwks")

    async def _read_again(self) -> None:
        try:
            async with asyncio.timeout(READ_SECONDS):
                if self._url is None:
                    self._take(await asyncio.to_thread(_file, self._source))
                else:
                    self._take(await _fetched(self._url))
        except (KeyFileError, OSError, TimeoutError, _fetching_errors()) as exc:
            if not self._told:
                log.warning("the keys of who signs tokens cannot be read (%s): %s", type(exc).__name__, exc)
            self._told = True
        else:
            if self._told:
                log.info("the keys of who signs tokens can be read again")
            self._told = False
        finally:
            self._reading = None

    def _take(self, document: bytes) -> None:
        self._keys = _parsed(document)
        self._read = self._tried = self._clock()

    async def close(self) -> None:
        """Read no more."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)


def _url(source: str) -> URL | None:
    if "://" not in source:
        return None
    import httpx  # noqa: PLC0415 - half of those who use tokens have no keys elsewhere

    try:
        url = httpx.URL(source)
    except httpx.InvalidURL:
        raise KeyFileError("should be a file, or an https URL") from None
    if not url.host or not (url.scheme == "https" or (url.scheme == "http" and is_loopback(url.host))):
        raise KeyFileError("should be a file, or an https URL: whoever can change what comes by http makes tokens")
    return url


def _fetching_errors() -> type[Exception]:
    import httpx  # noqa: PLC0415 - as above

    return httpx.HTTPError


def _file(path: str) -> bytes:
    with Path(path).open("rb") as file:
        document = file.read(MOST_BYTES + 1)
    return _bounded(document)


async def _fetched(url: URL) -> bytes:
    """Raises `httpx.HTTPError` or `KeyFileError`."""
    import httpx  # noqa: PLC0415 - as above

    document = bytearray()
    async with (
        httpx.AsyncClient(timeout=READ_SECONDS) as client,
        client.stream("GET", url, headers={"accept": "application/json"}) as response,
    ):
        if response.status_code != 200:
            raise KeyFileError(f"should be answered with 200, not {response.status_code}")
        async for chunk in response.aiter_bytes():
            document += chunk
            _bounded(document)
    return bytes(document)


def _bounded(document: bytes | bytearray) -> bytes:
    if len(document) > MOST_BYTES:
        raise KeyFileError(f"should have at most {MOST_BYTES} bytes")
    return bytes(document)


def _parsed(document: bytes) -> dict[str | None, Key]:
    """The keys that can be used, by their names.

    Raises:
        KeyFileError: there is none.
    """
    try:
        entries = json.loads(document)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise KeyFileError('should hold a set of keys: {"keys": [...]}') from None
    if not isinstance(entries, list):
        raise KeyFileError('should hold a set of keys: {"keys": [...]}')
    keys: dict[str | None, Key] = {}
    for entry in entries[:MOST_KEYS]:
        try:
            kid, key = _key(entry)
        except KeyFileError as exc:
            log.info("a key of those who sign tokens is left out: it %s", exc)
        else:
            keys.setdefault(kid, key)
    if not keys:
        raise KeyFileError("should hold a public key for signatures: RSA, P-256, P-384, P-521 or Ed25519")
    return keys


def _key(entry: Any) -> tuple[str | None, Key]:
    """Raises `KeyFileError` with why it is none."""
    if not isinstance(entry, Mapping):
        raise KeyFileError("should be an object")
    kid = entry.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise KeyFileError("should have a string as its `kid`")
    if entry.get("use", "sig") != "sig":
        raise KeyFileError("should be for signatures")
    if entry.get("kty") == "oct" or "d" in entry:
        raise KeyFileError("should be a public key: what is published is no secret")
    try:
        key = jwt.PyJWK(dict(entry)).key
    except Exception as exc:  # noqa: BLE001 - PyJWT's own, and whatever it stumbles over in a stranger's document
        raise KeyFileError(f"cannot be read ({type(exc).__name__})") from None
    algorithm = algorithm_of(key)
    named = entry.get("alg", algorithm)
    if named != algorithm and not (algorithm == "RS256" and named in _RSA):
        raise KeyFileError("should be for the algorithm of its kind")
    return kid, Key(key, named)
