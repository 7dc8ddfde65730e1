"""How much one caller may ask for: rates for each key and each address, and quotas."""

from __future__ import annotations


class Guards:
    """Counts what callers do."""

    async def hit(self, subject: str, address: str) -> None:
        """Count one request or connection.

        Raises:
            BridgeError: `rate_limited`, with `retry_after`.
        """
