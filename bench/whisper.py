"""How many live sessions the engine `whisper` carries, against a loop behind a lock on the same machine.

- `python -m bench.whisper --gpu`: models of the true size of large-v3-turbo and small, with weights of chance, which
  are made first. Needs `pip install -e '.[whisper,cuda]'` and nine minutes.
- `python -m bench.whisper --cpu MODEL`: a small model on this machine's cores; whether texts are the same batched and
  alone, then the sessions of both contenders.
- `python -m bench.whisper --encoder-windows MODEL`: what shorter encoder windows save, and cost in accuracy.

Sessions are carried when the 95th percentile of their finals comes within a second (`bench.whisper_load`), and, with
`--least-partials`, when there are so many partials: an engine could save itself all of them. The number
is searched for by runs in processes of their own, in the time of `--minutes`. Results are printed as they come, and
written as JSON into `--results`.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

from bench.machine import machine
from bench.whisper_contender import CONTENDERS, add_options
from bench.whisper_load import PROMISE_SECONDS, SAMPLES, Gpu
from bench.whisper_models import SIZES, make
from bench.whisper_texts import same_texts
from bench.whisper_windows import print_windows, windows

GPU_SIZES: Final = ("large-v3-turbo", "small")
MOST_SESSIONS: Final = 600
PRECISION: Final = 0.08
"""Of the number that is found."""
STEP: Final = 1.5
"""Factor on the number of sessions while it is not known how many are too many."""
START_SECONDS: Final = 90.0
"""A run may take so much longer than its sessions speak: its model is loaded, its last finals are waited for."""
PARTIALS_PER_SECOND: Final = 1.2
FINALS_PER_SECOND: Final = 0.18
"""Of a session, pauses counted in: for a first guess."""
_PACKAGES: Final = ("ctranslate2", "faster-whisper", "numpy", "onnxruntime", "uvloop")

Report = dict[str, Any]
Play = Callable[[str, int], Report]
"""A run of a contender with so many sessions."""


def main() -> int:
    """Measure and print; the exit code is 1 where texts were not the same."""
    args = _arguments()
    report: Report = {"command": " ".join(sys.argv[1:]), "machine": surroundings()}
    save = saver(report, args.results)
    deadline = time.monotonic() + 60 * args.minutes
    if args.encoder_windows is not None:
        report["encoder_windows"] = windows(args.encoder_windows, args)
        print_windows(report["encoder_windows"])
    elif args.gpu:
        measure_gpu(args, report, deadline, save)
    else:
        measure_cpu(args, report, deadline, save)
    save()
    texts = report.get("texts")
    return 1 if texts is not None and texts["different"] else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.whisper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--gpu", action="store_true")
    what.add_argument("--cpu", type=Path, metavar="MODEL")
    what.add_argument("--encoder-windows", type=Path, metavar="MODEL")
    parser.add_argument("--minutes", type=float, default=8.5, help="for all of it (default: 8.5)")
    parser.add_argument("--seconds", type=float, default=0.0, help="of each run (default: 20 with --gpu, else 40)")
    parser.add_argument("--sizes", nargs="+", default=GPU_SIZES, choices=SIZES, help="of the random models")
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS, choices=CONTENDERS)
    parser.add_argument("--models", type=Path, help="folder in which random models are kept (default: a temporary one)")
    parser.add_argument("--results", type=Path, help="folder for the JSON")
    add_options(parser)
    args = parser.parse_args()
    args.seconds = args.seconds or (20.0 if args.gpu else 40.0)
    model: Path | None = args.cpu or args.encoder_windows
    if args.speech == SAMPLES and model is not None and (model.parent / "utterances").is_dir():
        args.speech = model.parent / "utterances"  # the test model's: it knows no other words
    return args


# What is measured


def measure_gpu(args: argparse.Namespace, report: Report, deadline: float, save: Callable[[], None]) -> None:
    """The random models on the GPU."""
    args.random = True
    if args.device == "auto":
        args.device = "cuda"
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.models or Path(temporary)
        folders = made(args.sizes, folder)
        for number, (size, model) in enumerate(folders.items()):
            left = deadline - time.monotonic()
            until = time.monotonic() + left / (len(folders) - number)
            compare(report, size, model, args, until, save)
    print_summary(report["models"])


def measure_cpu(args: argparse.Namespace, report: Report, deadline: float, save: Callable[[], None]) -> None:
    """A model on the CPU."""
    args.device = "cpu"
    report["texts"] = texts = asyncio.run(same_texts(args.cpu, args))
    print(
        f"texts: {texts['windows']} windows in batches of {texts['batch']} and {texts['streams']} streams at once, "
        f"against each alone: {texts['different']} differ",
        flush=True,
    )
    compare(report, args.cpu.name, args.cpu, args, deadline, save)
    print_summary(report["models"])


def compare(
    report: Report, name: str, model: Path, args: argparse.Namespace, deadline: float, save: Callable[[], None]
) -> None:
    """Both contenders with one model; the report has it run by run."""
    found: Report = {"costs": child("bench.whisper_costs", [str(model), *_options(args)], 300), "runs": []}
    report.setdefault("models", {})[name] = found
    print_costs(name, found["costs"])

    def play(contender: str, sessions: int) -> Report:
        options = [contender, str(model), f"--sessions={sessions}", f"--seconds={args.seconds}", *_options(args)]
        run = child("bench.whisper_contender", options, args.seconds + START_SECONDS)
        print_run(name, run)
        found["runs"].append(run)
        save()
        return run

    found |= search(play, {contender: guess(contender, found["costs"]) for contender in args.contenders}, deadline)
    for contender in args.contenders:
        print(f"{name}, {contender}: carries {found[contender]['carried']} sessions", flush=True)
    if all(found.get(contender, {}).get("carried") for contender in CONTENDERS):
        found["ratio"] = round(found["ours"]["carried"] / found["loop"]["carried"], 2)
        print(f"{name}: ours carries {found['ratio']} times the sessions of the loop", flush=True)
    save()


def guess(contender: str, costs: Report) -> int:
    """Sessions to begin with, from what windows cost."""
    if contender == "loop":
        partial, final, workers = costs["loop"]["partial"], costs["loop"]["final"], 1
    else:
        size = str(costs["plan"]["max_batch"])
        workers = costs["plan"]["workers"] if costs["device"] == "cpu" else 1
        partial, final = (costs[kind].get(size, min(costs[kind].values())) for kind in ("partial", "final"))
    busy: float = (PARTIALS_PER_SECOND * partial + FINALS_PER_SECOND * final) / 1e3 / workers
    return max(1, min(MOST_SESSIONS, round(1 / busy)))


class Search:
    """For the greatest number of sessions that is carried. `sessions` is the next to try; None: it is found."""

    def __init__(self, first: int) -> None:
        self.sessions: int | None = first
        self.carried = 0
        self.best: Report | None = None
        self._failed = MOST_SESSIONS + 1

    @property
    def too_many(self) -> int | None:
        """The least number that was not carried; None: none was tried."""
        return self._failed if self._failed <= MOST_SESSIONS else None

    def take(self, run: Report) -> None:
        """The run with `sessions` sessions."""
        assert self.sessions is not None  # noqa: S101 - whoever has a run has asked for one
        if run.get("carried"):
            self.carried, self.best = self.sessions, run
        else:
            self._failed = self.sessions
        found = self._failed - self.carried <= max(1, PRECISION * self.carried)
        self.sessions = None if found else self._next()

    def _next(self) -> int:
        if self.too_many is None:
            return min(MOST_SESSIONS, max(self.carried + 1, int(STEP * self.carried)))
        if not self.carried:
            return max(1, self._failed // 2)
        return max(self.carried + 1, min(self._failed - 1, round(math.sqrt(self.carried * self._failed))))


def search(play: Play, first: dict[str, int], deadline: float) -> dict[str, Report]:
    """What each contender carries, as closely as the time allows.

    They take turns, so that what else the machine does hits both.
    """
    searches = {contender: Search(sessions) for contender, sessions in first.items()}
    longest, turn = 0.0, 0
    while any(each.sessions for each in searches.values()):
        for contender, each in searches.items():
            if each.sessions is None or (turn and time.monotonic() + longest > deadline):
                continue
            began = time.monotonic()
            each.take(play(contender, each.sessions))
            longest = max(longest, time.monotonic() - began)
        turn += 1
        if time.monotonic() + longest > deadline:
            break
    return {
        contender: {"carried": each.carried, "too_many": each.too_many, "best": each.best}
        for contender, each in searches.items()
    }


def made(sizes: list[str], folder: Path) -> dict[str, Path]:
    """The random models of these sizes, those made that are not there yet."""
    folders = {size: folder / size for size in sizes}
    missing = [size for size in sizes if not (folders[size] / "config.json").exists()]
    began = time.monotonic()
    with ProcessPoolExecutor(max_workers=max(1, len(missing))) as pool:
        list(pool.map(make, [SIZES[size] for size in missing], [folders[size] for size in missing]))
    if missing:
        print(f"made {' and '.join(missing)} of random weights in {time.monotonic() - began:.0f} s", flush=True)
    return folders


# Processes


def child(module: str, options: list[str], limit_seconds: float) -> Report:
    """The JSON that a module prints; a run that breaks or hangs has carried nothing, and says why."""
    try:
        result = subprocess.run(
            [sys.executable, "-m", module, *options],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            timeout=limit_seconds,
        )
    except subprocess.TimeoutExpired:
        return {"carried": False, "error": f"no answer in {limit_seconds:.0f} s"}
    if result.returncode or not result.stdout:
        if module != "bench.whisper_contender":
            raise SystemExit(f"{module} failed (exit code {result.returncode})")
        return {"carried": False, "error": f"exit code {result.returncode}"}
    report: Report = json.loads(result.stdout.splitlines()[-1])
    return report


def _options(args: argparse.Namespace) -> list[str]:
    options = [f"--device={args.device}", f"--compute-type={args.compute_type}", f"--speech={args.speech}"]
    options += [f"--batch-size={args.batch_size}", f"--workers={args.workers}"]
    options.append(f"--least-partials={args.least_partials}")
    return [*options, "--random"] if args.random else options


def surroundings() -> Report:
    """Where the figures come from."""
    gpu = Gpu.first()
    date = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    return {"date": date, "gpu": None if gpu is None else gpu.name} | machine(_PACKAGES)


def saver(report: Report, folder: Path | None) -> Callable[[], None]:
    """Writes the report as it is into a file that is named after this moment; nowhere without a folder."""
    if folder is None:
        return lambda: None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"whisper-{dt.datetime.now(dt.UTC):%Y-%m-%d-%H%M%S}.json"
    print(f"results go to {path}")

    def save() -> None:
        path.write_text(json.dumps(report, indent=1))

    return save


# For people


def print_costs(name: str, costs: Report) -> None:
    """Milliseconds of a window."""
    print(f"{name} on {costs['device']}, {costs['compute_type']}; first use took {costs['first_use_seconds']} s")
    print(f"  plan: {costs['plan']['reason']}")
    print(f"  features {costs['prepare']} ms; alone through transcribe: partial {costs['loop']['partial']} ms, "
          f"final {costs['loop']['final']} ms")  # fmt: skip
    for kind in ("partial", "final"):
        each = ", ".join(f"{size}: {milliseconds}" for size, milliseconds in costs[kind].items())
        print(f"  {kind}, ms of each window by size of the batch: {each}", flush=True)


def print_summary(models: dict[str, Report]) -> None:
    """What is carried, as docs/performance.md shows it."""
    print("| model | contender | sessions carried | too many | final p50 / p95 | partial p50 / p95 | partials |")
    print("|---|---|---|---|---|---|---|")
    for name, found in models.items():
        for contender in CONTENDERS:
            if contender not in found:
                continue
            most, too_many = found[contender]["carried"], found[contender]["too_many"] or "not reached"
            best = found[contender]["best"]
            if best is None:
                print(f"| {name} | {contender} | {most} | {too_many} | | | |")
                continue
            final, partial = best["final_ms"], best["partial_ms"]
            print(
                f"| {name} | {contender} | {most} | {too_many} | "
                f"{final.get('p50', 0):.0f} / {final.get('p95', 0):.0f} ms | "
                f"{partial.get('p50', 0):.0f} / {partial.get('p95', 0):.0f} ms | {best['partials_per_second']:.2f}/s |"
            )
    print(flush=True)


def print_run(name: str, run: Report) -> None:
    """One line."""
    if "error" in run:
        print(f"{name}: a run failed: {run['error']}", flush=True)
        return
    final, partial = run["final_ms"], run["partial_ms"]
    verdict = "carried" if run["carried"] else "stopped" if run["stopped"] else "too many"
    words = "" if run["word_error_rate"] is None else f", word error rate {run['word_error_rate']:.1%}"
    gpu = "" if run["gpu_percent"] is None else f", GPU {run['gpu_percent']:.0f} % {run['gpu_memory_mb']:.0f} MB"
    print(
        f"{name:16} {run['contender']:5} {run['sessions']:4} sessions: {verdict:8} "
        f"final p50 {final.get('p50', 0):5.0f} p95 {final.get('p95', 0):5.0f} ms "
        f"({run['finals']} finals, {run['late']} later than {PROMISE_SECONDS:g} s, {run['failures']} failures{words}), "
        f"partial p50 {partial.get('p50', 0):5.0f} p95 {partial.get('p95', 0):5.0f} ms, "
        f"{run['partials_per_second']:.2f} a second of speech; CPU {run['cpu_percent']:.0f} %{gpu}, "
        f"another session refused {run['refused']:.0%} of the time, "
        f"lag p95 {run['lag_ms'].get('p95', 0):.0f} ms, load {run['load_average']:.1f}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
