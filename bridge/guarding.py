"""Who may connect and how much each may use, as the settings say: one half of the composition root."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.observe.metrics import Metrics
from bridge.security.addresses import Proxies
from bridge.security.auth import Gatekeeper
from bridge.security.entrance import Entrance
from bridge.security.guards import Guards
from bridge.security.quotas import Quotas
from bridge.security.rates import Counts, Rate, SharedCounts, parse_rates
from bridge.settings import Settings, SettingsError

if TYPE_CHECKING:
    from bridge.security.jwks import KeySet
    from bridge.security.tokens import TokenVerifier


@dataclass(frozen=True, slots=True)
class Protection:
    """Where everybody comes in, and what each may use."""

    entrance: Entrance
    quotas: Quotas | None
    counts: Counts
    keys: KeySet | None

    def open(self) -> None:
        """Begin to fetch what the first caller would wait for; in the event loop."""
        if self.keys is not None:
            self.keys.freshen()

    async def close(self) -> None:
        """Write what was counted, let go of Redis."""
        if self.quotas is not None:
            await self.quotas.close()
        await self.counts.close()
        if self.keys is not None:
            await self.keys.close()


def make_protection(settings: Settings, metrics: Metrics) -> Protection:
    """All of it.

    Raises:
        SettingsError: keys for tokens that cannot be used, or the package for shared counts is missing.
    """
    counts = make_counts(settings)
    keys = make_keys(settings)
    guards = Guards(
        counts,
        rates=_rates(settings.rate_limit),
        address_rates=_rates(settings.address_rate_limit),
        failure_rates=_rates(settings.failure_rate_limit),
        refused=lambda by: metrics.rate_limited.labels(by).inc(),
    )
    entrance = Entrance(make_gatekeeper(settings, keys), guards, Proxies(settings.trusted_proxies), keys)
    return Protection(entrance, make_quotas(settings, counts), counts, keys)


def make_counts(settings: Settings) -> Counts:
    """What rates and minutes are counted in: shared by all servers where they share a store.

    Raises:
        SettingsError: the package for that is missing.
    """
    counted = (settings.rate_limit, settings.address_rate_limit, settings.key_audio_minutes)
    if settings.store.startswith("sqlite:") or not any(counted):
        return Counts()
    try:
        return Counts(SharedCounts(settings.store))
    except ImportError as exc:
        raise SettingsError(f"STT_STORE needs a package ({exc}): pip install 'stt-bridge[cluster]'") from None


def make_quotas(settings: Settings, counts: Counts) -> Quotas | None:
    """None: everybody may use as much as they like."""
    if settings.key_sessions is None and settings.key_audio_minutes is None:
        return None
    return Quotas(settings.key_sessions, settings.key_audio_minutes, counts)


def make_keys(settings: Settings) -> KeySet | None:
    """The keys of who signs tokens, where they are published.

    Raises:
        SettingsError: they cannot be used.
    """
    if settings.jwt_jwks is None:
        return None
    # Imported only where tokens are used: PyJWT takes 20 MB of cryptography with it, where that is installed.
    from bridge.security.jwks import KeySet  # noqa: PLC0415
    from bridge.security.tokens import KeyFileError  # noqa: PLC0415

    try:
        return KeySet(settings.jwt_jwks)
    except KeyFileError as exc:
        raise SettingsError(f"STT_JWT_JWKS: the value given {exc}") from None


def make_gatekeeper(settings: Settings, keys: KeySet | None = None) -> Gatekeeper:
    """Who may connect.

    Raises:
        SettingsError: a key for tokens that cannot be used.
    """
    by_token = settings.jwt_secret is not None or settings.jwt_key_file is not None or keys is not None
    return Gatekeeper(
        settings.api_keys,
        settings.allowed_origins,
        settings.admin_keys,
        scoped_keys=settings.scoped_keys,
        tokens=_make_verifier(settings, keys) if by_token else None,
    )


def _make_verifier(settings: Settings, keys: KeySet | None) -> TokenVerifier:
    from bridge.security.tokens import KeyFileError, TokenVerifier  # noqa: PLC0415 - as above

    names = (settings.jwt_audience, settings.jwt_issuer)
    if keys is not None:
        return TokenVerifier(keys.of, *names)
    try:
        if settings.jwt_key_file is not None:
            return TokenVerifier.from_pem(settings.jwt_key_file.read_bytes(), *names)
        return TokenVerifier.from_secret(settings.jwt_secret or "", *names)
    except OSError as exc:
        raise SettingsError(f"STT_JWT_KEY_FILE: {exc}") from None
    except KeyFileError as exc:
        raise SettingsError(f"STT_JWT_KEY_FILE: '{settings.jwt_key_file}' {exc}") from None


def _rates(text: str | None) -> tuple[Rate, ...]:
    return () if text is None or text == "off" else parse_rates(text)
