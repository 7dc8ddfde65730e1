"""`stt-bridge worker`: works on jobs that servers take, on this machine or another one."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Callable
from typing import Any

from bridge.commands.exits import Exit, epilog
from bridge.commands.loop import run_loop


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "worker",
        help="work on jobs, without serving anybody",
        description="Work on jobs until SIGINT or SIGTERM. It needs the same STT_STORE, STT_UPLOADS and STT_BACKEND as "
        "the servers that take them.",
        epilog=epilog(Exit.OK, Exit.FAILED, Exit.USAGE),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--backend", help="the engine (STT_BACKEND)")
    parser.add_argument("--jobs", type=int, metavar="N", help="jobs at once (STT_JOB_WORKERS)")
    parser.add_argument("--host", help="address of --health-port (STT_HOST)")
    parser.add_argument(
        "--health-port", type=int, metavar="PORT", help="serve /healthz, /readyz and /metrics there; 0 for a free one"
    )
    parser.add_argument("--log-level", help="least level logged (STT_LOG_LEVEL)")
    parser.add_argument("--log-format", choices=("json", "text"), help="log style (STT_LOG_FORMAT)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Work. Returns the exit code."""
    from bridge.observe import logs
    from bridge.settings import Settings, SettingsError
    from bridge.workshop import make_workshop

    try:
        settings = Settings.load(
            backend=args.backend,
            job_workers=args.jobs,
            host=args.host,
            log_level=args.log_level,
            log_format=args.log_format,
        )
        if not settings.job_workers:
            raise SettingsError("STT_JOB_WORKERS: '0' is not allowed: it should be at least 1 for a worker")
        logs.configure(settings.log_level, settings.log_format)
        return run_loop(_work(make_workshop, settings, args.health_port))
    except SettingsError as exc:
        sys.stderr.write(f"stt-bridge: {exc}\n")
        return Exit.USAGE


async def _work(make_workshop: Callable[..., Any], settings: Any, port: int | None) -> int:
    from backends.base import BackendError
    from bridge.app import address
    from bridge.commands.serve import leave_stuck_threads
    from bridge.errors import BridgeError
    from bridge.jobs.store import StoreUnavailableError
    from bridge.transports.server import listen

    try:
        listener = None if port is None else listen(settings.host, port)
        workshop = make_workshop(settings, serves=listener is not None)
    except BackendError as exc:
        sys.stderr.write(f"stt-bridge: backend {settings.backend}: {exc}\n")
        return Exit.FAILED
    except OSError as exc:
        sys.stderr.write(f"stt-bridge: cannot listen on {settings.host} port {port}: {exc.strerror}\n")
        return Exit.FAILED
    health = None if listener is None else address(settings, listener)
    loaded = asyncio.Event()
    announcing = asyncio.create_task(_announce(settings, health, loaded), name="announce")
    try:
        await workshop.work(listener, loaded)
    except BackendError as exc:
        sys.stderr.write(f"stt-bridge: backend {settings.backend} cannot be loaded: {exc}\n")
        return Exit.FAILED
    except (StoreUnavailableError, BridgeError) as exc:
        sys.stderr.write(f"stt-bridge: STT_STORE or STT_UPLOADS cannot be opened: {exc}\n")
        return Exit.FAILED
    finally:
        announcing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await announcing
    leave_stuck_threads()
    return Exit.OK


async def _announce(settings: Any, health: str | None, loaded: asyncio.Event) -> None:
    """Say what works here, and how much of it."""
    from bridge.commands.serve import settle_memory

    await loaded.wait()
    settle_memory()
    sys.stderr.write(
        f"STT Bridge works on jobs\n"
        f"  backend   {settings.backend} ({settings.language})\n"
        f"  jobs      {settings.job_workers} at once\n" + (f"  health    {health}/readyz\n" if health else "")
    )
    sys.stderr.flush()
