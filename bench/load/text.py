"""A report for people: the three numbers first, and what keeps them honest below."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from bench.load.report import Report

LATE_MS: Final = 20
"""A generator whose p99 is later than this may be what was measured."""
DEAF: Final = "not measured: the scripted engine does not listen"
NOBODY: Final = "not measured: no session was completed"


def lines(told: Report) -> Iterator[str]:
    """The lines."""
    heard = told["word_error_rate"] is not None
    why = DEAF if any(name.startswith("scripted") for name in told["backends"]) else NOBODY
    yield _line("sessions", _sessions(told))
    yield from (_line("", f"{count:,}: {reason}") for reason, count in sorted(told["failures"].items()))
    yield _line("audio → partial", _milliseconds(told["latency_ms"]))
    yield _line("speech end → final", _milliseconds(told["speech_end_ms"]) if heard else why)
    yield _line("word error rate", f"{told['word_error_rate']:.1%} of {told['words']:,} words" if heard else why)
    yield ""
    yield _line("audio → final", _milliseconds(told["final_latency_ms"]))
    flicker = "" if told["flicker"] is None else f"; {told['flicker']:.2f} words taken back for each word of a final"
    yield _line("partials", f"{told['partials_per_second']:g} a second of audio{flicker}")
    yield _line("opening", _milliseconds(told["opening_ms"]))
    yield _line("generator's own lag", _milliseconds(told["generator_lag_ms"]))
    if cost := told.get("server"):
        yield _line("server", _server(cost))
    if where := told.get("machine"):
        yield _line("machine", _machine(where))


def warning(told: Report) -> str | None:
    """What makes the figures doubtful."""
    late = told["generator_lag_ms"].get("p99", 0)
    if late <= LATE_MS:
        return None
    return (
        f"the generator itself was late (p99 {late:g} ms): it, not the server, may be the limit; "
        "more --processes or more cores may help"
    )


def _line(name: str, value: str) -> str:
    return f"{name:<21}{value}"


def _sessions(told: Report) -> str:
    return (
        f"{told['completed']:,} completed, {told['refused']:,} refused, {told['dropped']:,} dropped; "
        f"{told.get('open_at_once', told['sessions']):,} at once; "
        f"{told['frames']:,} frames sent, {told['lost_frames']:,} lost"
    )


def _milliseconds(of: Mapping[str, float]) -> str:
    if not of:
        return "not measured: there was none"
    return "   ".join(f"{name} {_three(of[name])} ms" for name in ("p50", "p95", "p99"))


def _three(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.3g}"


def _server(cost: Mapping[str, Any]) -> str:
    found = [f"{cost['peak_mb']:g} MB at most"]
    if cost["cpu_us_per_frame"] is not None:
        found.insert(0, f"{cost['cpu_us_per_frame']:g} µs of CPU a frame")
    if cost["kb_per_session"] is not None:
        found.append(f"{cost['kb_per_session']:g} KB a session")
    return ", ".join(found)


def _machine(of: Mapping[str, Any]) -> str:
    commit = f" at {of['commit']}" if of["commit"] else ""
    return (
        f"{of['processor'] or of['system']}, {of['cpus']} CPUs, load {of['load_average']:g}; "
        f"Python {of['python']}, stt-bridge {of['versions']['stt-bridge']}{commit}"
    )
