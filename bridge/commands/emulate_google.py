"""`stt-bridge emulate-google`: Google's streaming recognizer on this machine, for work without an account."""

from __future__ import annotations

import argparse
import asyncio
import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bridge.commands.exits import Exit, complain
from bridge.commands.loop import run_loop

if TYPE_CHECKING:
    from bridge.emulator.server import EmulatorConfig

INSTALL: Final = "pip install 'stt-bridge[google]'"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "emulate-google",
        help="a local stand-in for Google Cloud Speech: needs no account",
        description="Serve google.cloud.speech v1 and v2 over gRPC until SIGINT or SIGTERM, with Google's limits and "
        "statuses, and faults at will. Seconds of limits are those of the emulator's clock (--speed).",
    )
    _add_server(parser.add_argument_group("server"))
    _add_recognition(parser.add_argument_group("recognition"))
    _add_limits(parser.add_argument_group("limits"))
    _add_faults(parser.add_argument_group("faults"))
    parser.set_defaults(run=run)


def _add_server(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    group.add_argument("--port", type=_port, default=8700, help="port, 0 for a free one (default: %(default)s)")
    group.add_argument("--insecure", action="store_true", help="allow a non-loopback address")
    group.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate chain (PEM); without it: plaintext")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="private key (PEM) of the certificate")
    group.add_argument("--token", metavar="SECRET", help="callers need the bearer token SECRET")
    group.add_argument("--deny", action="store_true", help="refuse every caller with PERMISSION_DENIED")
    group.add_argument("--location", help="the only location of v2 recognizers (default: any)")
    group.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="least level")
    group.add_argument("--log-format", choices=("json", "text"), default="text", help="log style")


def _add_recognition(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--mode",
        choices=("speech", "words", "echo"),
        default="speech",
        help="speech: by a backend; words: marker audio; echo: the number of bytes received (default: %(default)s)",
    )
    group.add_argument("--backend", metavar="NAME", help="the engine of mode speech (default: pocketsphinx)")


def _add_limits(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--limit-seconds", type=_above_zero, metavar="N", help="longest stream (default: v1 305, v2 300)"
    )
    group.add_argument(
        "--audio-timeout", type=_above_zero, default=10.0, metavar="N", help="longest time without audio (default: 10)"
    )
    group.add_argument(
        "--message-bytes", type=_count, default=25_600, metavar="N", help="most audio in a message (default: 25600)"
    )
    group.add_argument(
        "--pace-seconds",
        type=_from_zero,
        default=30.0,
        metavar="N",
        help="audio that may come ahead of --pace-rate; 0: any (default: 30)",
    )
    group.add_argument(
        "--pace-rate", type=_above_zero, default=3.0, metavar="X", help="seconds of audio a second (default: 3)"
    )
    group.add_argument("--max-streams", type=_count, default=300, metavar="N", help="streams at once (default: 300)")
    group.add_argument(
        "--requests-per-minute", type=_count, default=3_000, metavar="N", help="streams a minute (default: 3000)"
    )
    group.add_argument(
        "--streams-per-connection",
        type=_count,
        default=100,
        metavar="N",
        help="of one HTTP/2 connection (default: 100)",
    )
    group.add_argument(
        "--speed", type=_above_zero, default=1.0, metavar="X", help="clocks run X times faster (default: 1)"
    )


def _add_faults(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--abort-at", metavar="SECONDS[:STATUS]", help="end each stream after so much audio (default: UNAVAILABLE)"
    )
    group.add_argument(
        "--abort-every",
        type=_above_zero,
        metavar="SECONDS",
        help="end each stream at a random moment, so late in the mean",
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the random moments (default: 0)")
    group.add_argument(
        "--freeze-at", type=_from_zero, metavar="SECONDS", help="take audio and answer nothing after so much of it"
    )
    group.add_argument(
        "--lag", type=_from_zero, default=0.0, metavar="SECONDS", help="results come so much audio later (default: 0)"
    )
    group.add_argument(
        "--half-close-lag",
        type=_from_zero,
        default=0.0,
        metavar="SECONDS",
        help="time from the end of the audio to the last results (default: 0)",
    )
    group.add_argument(
        "--refuse", metavar="STATUS[:COUNT]", help="refuse all streams, or the first COUNT, after their config"
    )
    group.add_argument("--message", metavar="TEXT", help="text of these statuses instead of Google's")
    group.add_argument("--plan", type=Path, metavar="FILE", help="JSON list: the faults of the first, second, … stream")


def run(args: argparse.Namespace) -> int:
    """Serve. Returns the exit code: 0 after a signal, 1 if the server failed, 2 for wrong options."""
    from backends.base import BackendError
    from bridge.observe import logs
    from bridge.settings import SettingsError

    try:
        from bridge.emulator.faults import PlanError
        from bridge.emulator.server import check
    except ImportError as exc:
        if (exc.name or "").partition(".")[0] not in ("google", "grpc"):
            raise
        complain(f"the emulator needs the package google-cloud-speech; install it with: {INSTALL}")
        return Exit.FAILED
    try:
        config = _config(args)
        check(config, insecure=args.insecure)
        logs.configure(args.log_level, args.log_format)
        return run_loop(_serve(config))
    except (PlanError, SettingsError) as exc:
        complain(exc)
        return Exit.USAGE
    except BackendError as exc:
        complain(f"backend {config.backend}: {exc}")
        return Exit.USAGE if exc.code == "unknown_backend" else Exit.FAILED
    except OSError as exc:
        complain(exc)
        return Exit.FAILED


def _config(args: argparse.Namespace) -> EmulatorConfig:
    """What the options say. Raises `PlanError` or `SettingsError`."""
    from bridge.emulator.faults import Faults, Plan, read_plan
    from bridge.emulator.limits import Limits
    from bridge.emulator.server import EmulatorConfig
    from bridge.settings import SettingsError

    if args.backend and args.mode != "speech":
        raise SettingsError(f"--backend belongs to --mode speech, not to {args.mode}")
    abort_at, status = _seconds_and_status(args.abort_at)
    refuse, count = _status_and_count(args.refuse)
    plan = Plan(
        Faults(
            refuse=refuse,
            abort_at=abort_at,
            status=status,
            freeze_at=args.freeze_at,
            lag=args.lag,
            half_close_lag=args.half_close_lag,
            message=args.message,
        ),
        streams=read_plan(args.plan) if args.plan else (),
        refuse_first=count,
        abort_every=args.abort_every,
        seed=args.seed,
    )
    limits = Limits(
        stream_seconds=args.limit_seconds,
        audio_timeout=args.audio_timeout,
        message_bytes=args.message_bytes,
        pace_seconds=args.pace_seconds,
        pace_rate=args.pace_rate,
        max_streams=args.max_streams,
        requests_per_minute=args.requests_per_minute,
        streams_per_connection=args.streams_per_connection,
    )
    return EmulatorConfig(
        host=args.host,
        port=args.port,
        mode=args.mode,
        backend=args.backend or "pocketsphinx",
        limits=limits,
        plan=plan,
        token=args.token,
        deny=args.deny,
        location=args.location,
        speed=args.speed,
        tls_cert=args.tls_cert,
        tls_key=args.tls_key,
    )


async def _serve(config: EmulatorConfig) -> int:
    from bridge.emulator.server import emulating

    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with emulating(config) as emulator:
        _announce(config, emulator.address)
        await stopped.wait()
    return Exit.OK


def _announce(config: EmulatorConfig, address: str) -> None:
    scheme = "https" if config.tls_cert else "http"
    by = f" ({config.backend})" if config.mode == "speech" else ""
    sys.stderr.write(
        f"Google Speech emulator is ready\n"
        f"  endpoint  {address}\n"
        f"  serves    google.cloud.speech v1 and v2, {'TLS' if config.tls_cert else 'plaintext'}\n"
        f"  mode      {config.mode}{by}\n"
        f"  connect   STT_BACKEND=google STT_GOOGLE_ENDPOINT={scheme}://{address} stt-bridge serve\n"
    )
    sys.stderr.flush()


# Values of options


def _seconds_and_status(value: str | None) -> tuple[float | None, str]:
    if value is None:
        return None, "UNAVAILABLE"
    from bridge.emulator.faults import PlanError

    seconds, _, status = value.partition(":")
    try:
        return float(seconds), status.upper() or "UNAVAILABLE"
    except ValueError:
        raise PlanError(f"--abort-at: {value!r} should be SECONDS or SECONDS:STATUS") from None


def _status_and_count(value: str | None) -> tuple[str | None, int | None]:
    if value is None:
        return None, None
    from bridge.emulator.faults import PlanError

    status, colon, count = value.partition(":")
    if colon and not count.isdecimal():
        raise PlanError(f"--refuse: {value!r} should be STATUS or STATUS:COUNT")
    return status.upper(), int(count) if colon else None


def _number(text: str, good: Callable[[float], bool], wanted: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and good(value)):
        raise argparse.ArgumentTypeError(f"{text!r} should be {wanted}")
    return value


def _above_zero(text: str) -> float:
    return _number(text, lambda value: value > 0, "a number above 0")


def _from_zero(text: str) -> float:
    return _number(text, lambda value: value >= 0, "a number from 0 on")


def _count(text: str) -> int:
    return int(_number(text, lambda value: value >= 1 and value.is_integer(), "a whole number from 1 on"))


def _port(text: str) -> int:
    return int(_number(text, lambda value: 0 <= value <= 65_535 and value.is_integer(), "a port, 0 to 65535"))
