"""What a list of durations comes to."""

from __future__ import annotations


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p95, p99 and the maximum of seconds, in milliseconds; sorts the list."""
    if not values:
        return {}
    values.sort()
    at = {f"p{p}": round(1e3 * values[min(len(values) - 1, len(values) * p // 100)], 2) for p in (50, 95, 99)}
    return at | {"max": round(1e3 * values[-1], 2)}
