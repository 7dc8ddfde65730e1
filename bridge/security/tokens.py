"""Tokens (JWT, RFC 7519) that say what their bearer may do: made with one key, verified with it or its public half.

The key decides the algorithm, never the token: a public key can so not be taken for a shared secret (RFC 8725, 3.1).
Claims: `exp` (needed), `scope` (scopes, separated by spaces), `session` (a name or pattern, or a list of such; all
sessions without it), `sub` (whose it is), `aud` and `iss` (needed where the server was told of a name).
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import jwt

from bridge.errors import BridgeError
from bridge.security.rights import SCOPES, Grant, Rights

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

MIN_SECRET_BYTES: Final = 32  # RFC 7518, 3.2: as long as the hash
MIN_RSA_BITS: Final = 2_048  # RFC 7518, 3.3
LEEWAY_SECONDS: Final = 10
"""That two machines' clocks may differ by."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9._~@:|+-]{1,64}")

_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


class KeyFileError(ValueError):
    """The key cannot be used; a sentence that begins with what it should be."""


@dataclass(frozen=True, slots=True)
class Key:
    """What signatures are verified with, and the one algorithm that it is for."""

    key: Any = field(repr=False)
    algorithm: str


@dataclass(frozen=True, slots=True)
class Bearer:
    """Who has a token: what they may do, and under which name. None: the token has no `sub`."""

    rights: Rights
    subject: str | None = None


class TokenVerifier:
    """Turns tokens into rights. `key_of`: with what a token is verified; `bridge.security.jwks` has many."""

    def __init__(self, key_of: Callable[[str], Key], audience: str | None = None, issuer: str | None = None) -> None:
        self._key_of = key_of
        self._audience = audience
        self._issuer = issuer
        named = {"aud": audience, "iss": issuer}
        self._required = ["exp", *(claim for claim, wanted in named.items() if wanted is not None)]

    @classmethod
    def from_secret(cls, secret: str, audience: str | None = None, issuer: str | None = None) -> Self:
        """For tokens that whoever knows the secret may make.

        Raises:
            KeyFileError: it is too short to be one.
        """
        key = Key(_secret(secret), "HS256")
        return cls(lambda _: key, audience, issuer)

    @classmethod
    def from_pem(cls, pem: bytes, audience: str | None = None, issuer: str | None = None) -> Self:
        """For tokens of the owner of the private key to this public one (PEM).

        Raises:
            KeyFileError: it is none, or of a kind or size that is not taken; or `cryptography` is not installed.
        """
        public = _public_key(pem)
        key = Key(public, algorithm_of(public))
        return cls(lambda _: key, audience, issuer)

    def verify(self, token: str) -> Bearer:
        """What the token allows now, and whom. Scopes that are none of ours are somebody else's and grant nothing.

        Raises:
            BridgeError: `unauthorized`.
            UnknownKeyError: it may be good, once the key is known that it names.
        """
        try:
            key = self._key_of(token)
            claims = jwt.decode(
                token,
                key.key,
                [key.algorithm],
                options={"require": self._required, "verify_sub": False},
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
            )
        except jwt.PyJWTError as exc:
            raise BridgeError("unauthorized", _reason(exc)) from None
        except (RecursionError, OverflowError, UnicodeEncodeError):
            # What older PyJWT lets through: JSON nested by a stranger, read before the signature is; an endless `exp`.
            raise BridgeError("unauthorized", "the token is wrong") from None
        scope, session = claims.get("scope", ""), claims.get("session", ["*"])
        sessions = [session] if isinstance(session, str) else session
        if (
            not isinstance(scope, str)
            or not isinstance(sessions, list)
            or not all(isinstance(name, str) for name in sessions)
        ):
            raise BridgeError("unauthorized", "the token's `scope` or `session` is not what it should be")
        try:
            rights = Rights((Grant.of(set(scope.split()).intersection(SCOPES), sessions),))
            return Bearer(rights, _subject(claims.get("sub")))
        except ValueError:
            raise BridgeError("unauthorized", "the token's `session` names what cannot be a session") from None


class TokenIssuer:
    """Makes tokens. `key`: a shared secret, or a private key as `from_pem` reads it."""

    def __init__(self, key: Any, algorithm: str) -> None:
        self._key = key
        self._algorithm = algorithm

    @classmethod
    def from_secret(cls, secret: str) -> Self:
        """With the secret of the server.

        Raises:
            KeyFileError: it is too short to be one.
        """
        return cls(_secret(secret), "HS256")

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """With a private key (PEM, without a passphrase).

        Raises:
            KeyFileError: as `TokenVerifier.from_pem`.
        """
        key = _private_key(pem)
        return cls(key, algorithm_of(key.public_key()))

    def issue(
        self,
        scopes: Iterable[str],
        sessions: Sequence[str] | None = None,
        *,
        ttl_seconds: int,
        audience: str | None = None,
        issuer: str | None = None,
        subject: str | None = None,
        key_id: str | None = None,
        now: float | None = None,
    ) -> str:
        """A token for these sessions (None: all) that opens connections for so long; `subject`: whose it is.

        `key_id`: the name of the key, for servers that have several.

        Raises:
            ValueError: no scope, one that there is not, or a pattern that is none.
        """
        grant = Grant.of(scopes, ("*",) if sessions is None else sessions)
        if not grant.scopes or not grant.sessions:
            raise ValueError("should be for something")
        issued = int(time.time() if now is None else now)
        claims: dict[str, Any] = {
            "scope": " ".join(scope for scope in SCOPES if scope in grant.scopes),
            "iat": issued,
            "exp": issued + ttl_seconds,
        }
        if sessions is not None:
            claims["session"] = list(sessions)
        named = {"aud": audience, "iss": issuer, "sub": subject}
        claims |= {name: value for name, value in named.items() if value is not None}
        return jwt.encode(claims, self._key, self._algorithm, None if key_id is None else {"kid": key_id})


def _reason(exc: jwt.PyJWTError) -> str:
    """What a client is told; nothing of the token."""
    match exc:
        case jwt.ExpiredSignatureError():
            return "the token has expired"
        case jwt.ImmatureSignatureError():
            return "the token is not valid yet"
        case jwt.InvalidAudienceError():
            return "the token is meant for another server (`aud`)"
        case jwt.InvalidIssuerError():
            return "the token is of somebody else (`iss`)"
        case jwt.MissingRequiredClaimError():
            return f"the token needs the claim `{exc.claim}`"
        case _:
            return "the token is wrong"


def _subject(sub: object) -> str | None:
    """The user's name here: it goes into logs and into the names of what is kept.

    One that is long, or has other characters than names have, is known by its digest.
    """
    if sub is None or sub == "":
        return None
    text = sub if isinstance(sub, str) else repr(sub)
    if _PLAIN.fullmatch(text):
        return f"user-{text}"
    return f"user.{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def _secret(secret: str) -> str:
    if len(secret.encode()) < MIN_SECRET_BYTES:
        raise KeyFileError(f"should have at least {MIN_SECRET_BYTES} bytes")
    return secret


def _public_key(pem: bytes) -> PublicKeyTypes:
    serialization = _serialization()
    if b"PRIVATE KEY" in pem:
        raise KeyFileError("should be a public key: the private one stays with who makes the tokens")
    try:
        key: PublicKeyTypes = serialization.load_pem_public_key(pem)
    except Exception as exc:  # ValueError, TypeError, UnsupportedAlgorithm and OpenSSL's own
        raise KeyFileError("should hold a public key in PEM (`BEGIN PUBLIC KEY`)") from exc
    return key


def _private_key(pem: bytes) -> PrivateKeyTypes:
    serialization = _serialization()
    try:
        key: PrivateKeyTypes = serialization.load_pem_private_key(pem, None)
    except Exception as exc:  # as above; TypeError: it has a passphrase
        raise KeyFileError("should hold a private key in PEM, without a passphrase") from exc
    return key


def _serialization() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - only a key file needs it
    except ImportError:
        raise KeyFileError("needs a package that is not installed: pip install 'stt-bridge[jwt]'") from None
    return serialization


def algorithm_of(key: PublicKeyTypes) -> str:
    """The one signature that belongs to the kind of key.

    Raises:
        KeyFileError: none does, or the key is too small.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: PLC0415 - as above

    match key:
        case rsa.RSAPublicKey():
            if key.key_size < MIN_RSA_BITS:
                raise KeyFileError(f"should have at least {MIN_RSA_BITS} bits")
            return "RS256"
        case ec.EllipticCurvePublicKey() if key.curve.name in _CURVES:
            return _CURVES[key.curve.name]
        case ed25519.Ed25519PublicKey():
            return "EdDSA"
        case _:
            raise KeyFileError("should be a key of RSA, P-256, P-384, P-521 or Ed25519")
