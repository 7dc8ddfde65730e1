"""`stt-bridge serve`: the server, in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from bridge.commands.loop import run_loop

if TYPE_CHECKING:
    from bridge.processes.member import Member

GC_THRESHOLDS: Final = (10_000, 50, 50)
"""Allocations between collections of the youngest generation, and collections before the next older one's."""
LARGE_BYTES: Final = 1_048_576
"""Of a block that is the system's own, and given back once it is free; smaller ones lie in the heap."""
KEPT_BYTES: Final = 8 * 1_048_576
"""At the end of the heap that are not given back."""
_M_TRIM_THRESHOLD: Final = -1  # mallopt(3)
_M_MMAP_THRESHOLD: Final = -3


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "serve",
        help="serve live transcription over WebSocket",
        description="Serve until SIGINT or SIGTERM. Options win over STT_* variables, and those over .env.",
    )
    parser.add_argument("--backend", help="the engine (STT_BACKEND)")
    parser.add_argument("--host", help="address to listen on (STT_HOST)")
    parser.add_argument("--port", type=int, help="port to listen on, 0 for a free one (STT_PORT)")
    parser.add_argument("--processes", type=int, metavar="N", help="processes that serve it together (STT_PROCESSES)")
    parser.add_argument("--member", type=int, help=argparse.SUPPRESS)  # one of these, as the first one starts it
    parser.add_argument(
        "--insecure", action="store_const", const=True, help="allow a non-loopback address without an API key"
    )
    parser.add_argument("--log-level", help="least level logged (STT_LOG_LEVEL)")
    parser.add_argument("--log-format", choices=("json", "text"), help="log style (STT_LOG_FORMAT)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve. Returns the exit code: 0 after an orderly stop, 1 if the server failed, 2 for bad settings."""
    from bridge.observe import logs
    from bridge.settings import Settings, SettingsError

    try:
        if args.member is not None:
            return run_loop(_serve_with_others(_maker(), args.member))
        settings = Settings.load(
            backend=args.backend,
            host=args.host,
            port=args.port,
            processes=args.processes,
            insecure=args.insecure,
            log_level=args.log_level,
            log_format=args.log_format,
        )
        logs.configure(settings.log_level, settings.log_format)
        return run_loop(_serve(_maker(), settings) if settings.processes == 1 else _have_served(settings))
    except SettingsError as exc:
        sys.stderr.write(f"stt-bridge: {exc}\n")
        return 2


def _maker() -> Callable[..., Any]:
    """What makes a server; all of it is imported before the loop runs."""
    from bridge.app import make_bridge

    return make_bridge


async def _have_served(settings: Any) -> int:
    """Have several processes serve, and watch them: nothing of what serves is loaded here."""
    from bridge.processes.parent import Parent, reserve
    from bridge.settings import environment

    try:
        holder = reserve(settings.host, settings.port)
    except OSError as exc:
        sys.stderr.write(f"stt-bridge: cannot listen on {settings.host} port {settings.port}: {exc.strerror}\n")
        return 1
    with holder:
        settings = settings.model_copy(update={"port": holder.getsockname()[1]})
        return await Parent(settings, environment(), lambda url: _announce(settings, url)).run()


async def _serve_with_others(make_bridge: Callable[..., Any], number: int) -> int:
    """Serve as one of several processes."""
    from bridge.observe import logs
    from bridge.processes.member import Member

    async with Member.joined(number) as member:
        logs.configure(member.settings.log_level, member.settings.log_format, number)
        return await _serve(make_bridge, member.settings, member)


async def _serve(make_bridge: Callable[..., Any], settings: Any, member: Member | None = None) -> int:
    from backends.base import BackendError
    from bridge.app import address, raise_file_limit
    from bridge.errors import BridgeError
    from bridge.jobs.store import StoreUnavailableError
    from bridge.session.eventlog.base import LogUnavailableError
    from bridge.transports.server import listen

    raise_file_limit(settings.max_connections + 1_024)
    try:
        bridge = make_bridge(settings) if member is None else make_bridge(settings, member.env, member)
        listener = listen(settings.host, settings.port, shared=member is not None)
    except BackendError as exc:
        sys.stderr.write(f"stt-bridge: backend {settings.backend}: {exc}\n")
        return 1
    except OSError as exc:
        sys.stderr.write(f"stt-bridge: cannot listen on {settings.host} port {settings.port}: {exc.strerror}\n")
        return 1
    if member is not None:
        member.when_told_to_stop(lambda at_once: bridge.server.stop() if at_once else bridge.server.finish())
    url = address(settings, listener)
    loaded = asyncio.Event()
    announcing = asyncio.create_task(_tell(settings, url, loaded, member), name="announce")
    try:
        await bridge.serve(listener, loaded)
    except BackendError as exc:
        sys.stderr.write(f"stt-bridge: backend {settings.backend} cannot be loaded: {exc}\n")
        return 1
    except LogUnavailableError as exc:
        sys.stderr.write(f"stt-bridge: STT_EVENT_LOG cannot be opened: {exc}\n")
        return 1
    except (StoreUnavailableError, BridgeError) as exc:
        sys.stderr.write(f"stt-bridge: STT_STORE or STT_UPLOADS cannot be opened: {exc}\n")
        return 1
    finally:
        announcing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await announcing
    leave_stuck_threads()
    return 0


async def _tell(settings: Any, url: str, loaded: asyncio.Event, member: Member | None) -> None:
    """Say that this process serves, once it does."""
    await loaded.wait()
    settle_memory()
    if member is None:
        _announce(settings, url)
    else:
        member.serves(url)


def _announce(settings: Any, url: str) -> None:
    """Say what is served, where, by what, and how to try it."""
    stream = url.replace("http", "ws", 1) + "/v1/stream"
    key = " --api-key KEY" if settings.guarded else ""
    note = (
        "  note      the embedded engine makes a good first run; for accuracy: make run BACKEND=whisper\n"
        if settings.backend == "pocketsphinx"
        else ""
    )
    sys.stderr.write(
        f"STT Bridge is ready\n"
        f"  captions  {url}/\n"
        f"  stream    {stream}\n"
        f"  http      {url}/docs\n"
        f"  backend   {settings.backend} ({settings.language})\n"
        f"{note}"
        f"  try       stt-bridge stream samples/hello.flac --url {stream}{key}\n"
    )
    sys.stderr.flush()


def settle_memory() -> None:
    """What is loaded now stays: the collector need not walk it again and again while it holds up every session.

    Frames come and go by reference counts alone; cycles are left by sessions and requests that ended, so that the
    collector may run seldom. With 1,000 sessions this took the 99th percentile of the added latency
    from 89 ms to 12.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Have glibc keep a few megabytes that are free: the next body or file needs them at once.

    By default it gives back what lies at the end of the heap as soon as that is more than twice the largest block of
    late, so that each file of a few seconds is paid for again page by page: 40 of them, a tenth of a request's time.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def leave_stuck_threads() -> None:
    """A thread that is stuck inside a blocking engine must not keep the process: everything else has ended."""
    stuck = [t for t in threading.enumerate() if t.name.startswith("stt-") and t.is_alive()]
    if any(_still_alive(t) for t in stuck):
        sys.stderr.flush()
        os._exit(0)


def _still_alive(thread: threading.Thread) -> bool:
    thread.join(timeout=1)
    return thread.is_alive()
