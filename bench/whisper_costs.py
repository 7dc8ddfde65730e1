"""What a window costs: alone through `transcribe`, and in batches of several sizes through the engine's own model.

Prints JSON, milliseconds of each window: `prepare` its features, `partial` and `final` by the size of the batch, and
the `loop`'s two. A child of `bench.whisper`, which guesses from this how many sessions to begin with.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from backends.whisper import hardware, store
from backends.whisper.model import Model, Request
from backends.whisper.window import RATE, Kind
from bench.whisper_contender import LockedLoop, SpokenModel, add_options, options_of
from bench.whisper_load import Utterance, floats, utterances

BATCHES: Final = (1, 2, 4, 8, 16, 32)
SECONDS: Final = {Kind.PARTIAL: 2.0, Kind.FINAL: 4.0}
"""Of audio: partials hear half of an utterance in the mean."""
BUDGET_SECONDS: Final = 1.5
"""For each figure."""
FEWEST: Final = 3


def costs(args: argparse.Namespace) -> dict[str, Any]:
    """All of it."""
    options = options_of(args.model, args)
    chosen = hardware.choose(options)
    pcm = _talk(utterances(args.speech))
    found: dict[str, Any] = {"device": chosen.device, "compute_type": chosen.compute_type}
    found |= _of_loop(LockedLoop(args.model, options, random=args.random), pcm)
    if chosen.device == "cpu":
        hardware.keep_memory()
    model = (SpokenModel if args.random else Model)(
        "model", args.model, chosen, threads=hardware.cpu_threads(options, store.size(args.model))
    )
    plan = hardware.plan(options, chosen, store.size(args.model))
    found["plan"] = {"workers": plan.workers, "max_batch": plan.max_batch, "reason": plan.reason}
    for kind in Kind:
        request = Request(kind, floats(_first(pcm, SECONDS[kind])), "en")
        found.setdefault("prepare", _milliseconds(partial(model.prepare, request)))
        prepared = model.prepare(request)
        found[kind.name.lower()] = {
            size: round(_milliseconds(partial(model.decode, [prepared] * size)) / size, 2)
            for size in BATCHES
            if size <= max(4, 2 * plan.max_batch)
        }
    return found


def _of_loop(loop: LockedLoop, pcm: bytes) -> dict[str, Any]:
    began = time.perf_counter()
    loop.transcribe(_first(pcm, 1.0), final=True)  # on a new GPU the driver compiles for it now
    first = round(time.perf_counter() - began, 1)
    each = {
        kind.name.lower(): _milliseconds(partial(loop.transcribe, _first(pcm, SECONDS[kind]), final=kind is Kind.FINAL))
        for kind in Kind
    }
    return {"first_use_seconds": first, "loop": each}


def _first(pcm: bytes, seconds: float) -> bytes:
    return pcm[: 2 * round(seconds * RATE)]


def _talk(said: list[Utterance]) -> bytes:
    """As long as the longest window."""
    return _first(b"".join(utterance.pcm for utterance in said), max(SECONDS.values()))


def _milliseconds(work: Callable[[], object]) -> float:
    """The median."""
    work()
    taken: list[float] = []
    while len(taken) < FEWEST or sum(taken) < BUDGET_SECONDS:
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
        if sum(taken) > 4 * BUDGET_SECONDS:
            break
    return round(1e3 * statistics.median(taken), 2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.whisper_costs", description=__doc__)
    parser.add_argument("model", type=Path, help="folder")
    add_options(parser)
    print(json.dumps(costs(parser.parse_args())), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
