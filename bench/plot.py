"""One figure of a few runs: how late, how wrong, how many. `python -m bench.plot RUN.json… --out FILE.svg`.

A run is a file that `stt-bridge bench --json` wrote. The same runs make the same bytes, as far as matplotlib does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.load.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INSTALL: Final = "pip install 'stt-bridge[bench]'"
FORMATS: Final = (".svg", ".png")
PERCENTILES: Final = ("p50", "p95", "p99")
COLOURS: Final = ("#9ecae1", "#4292c6", "#084594")
"""Of the percentiles: light to dark, and told apart in grey."""
MEASURES: Final = {
    "latency_ms": "audio → partial",
    "speech_end_ms": "speech end → final",
    "final_latency_ms": "audio → final",
}
MAX_RUNS: Final = 12
SALT: Final = "stt-bridge"
"""For the names inside of an SVG, which are random otherwise."""


class PlotError(Exception):
    """There will be no figure; the text says why."""


def check(path: Path) -> None:
    """Whether a figure can be written under this name.

    Raises:
        PlotError: it cannot.
    """
    if path.suffix.lower() not in FORMATS:
        raise PlotError(f"a figure's name ends in {' or '.join(FORMATS)}, not {path.name}")
    if find_spec("matplotlib") is None:
        raise PlotError(f"figures need a package that is not installed: {INSTALL}")


def plot(reports: Sequence[Report], path: Path, names: Sequence[str] = ()) -> None:
    """Draw the runs side by side. `names` stand below them; by default what they were of.

    Raises:
        PlotError: no or too many runs, or see `check`.
    """
    check(path)
    if not 1 <= len(reports) <= MAX_RUNS:
        raise PlotError(f"1 to {MAX_RUNS} runs make a figure, not {len(reports)}")
    import matplotlib as mpl  # noqa: PLC0415 - a large package that only figures need
    from matplotlib.figure import Figure  # noqa: PLC0415

    labels = list(names) or [_name(report) for report in reports]
    measures = [name for name in MEASURES if any(report[name] for report in reports)]
    with mpl.rc_context({"svg.hashsalt": SALT, "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(3.2 * (len(measures) + 2) + len(reports) / 2, 4.2), layout="constrained")
        axes = list(figure.subplots(1, len(measures) + 2, squeeze=False)[0])
        for axis, measure in zip(axes, measures, strict=False):
            _latencies(axis, [report[measure] for report in reports], MEASURES[measure])
        _errors(axes[-2], reports)
        _sessions(axes[-1], reports)
        for axis in axes:
            axis.set_xticks(range(len(labels)), labels, rotation=20 if len(labels) > 2 else 0)
            axis.set_xlim(-0.6, len(labels) - 0.4)
            axis.spines[["top", "right"]].set_visible(False)
        figure.supxlabel(_machine(reports), fontsize=6.5, color="#555555")
        # Without a date the same runs are the same file.
        figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None, dpi=144)


def _latencies(axis: Axes, runs: Sequence[dict[str, float]], title: str) -> None:
    width = 0.8 / len(PERCENTILES)
    for number, (percentile, colour) in enumerate(zip(PERCENTILES, COLOURS, strict=True)):
        places = [at + (number - 1) * width for at in range(len(runs))]
        bars = axis.bar(places, [run.get(percentile, 0.0) for run in runs], width, label=percentile, color=colour)
        axis.bar_label(bars, [_number(run.get(percentile)) for run in runs], fontsize=7, padding=1)
    axis.set_title(title)
    axis.set_ylabel("ms")
    axis.legend(frameon=False, fontsize=7)
    axis.margins(y=0.15)


def _errors(axis: Axes, reports: Sequence[Report]) -> None:
    rates = [report["word_error_rate"] for report in reports]
    bars = axis.bar(range(len(rates)), [100 * (rate or 0) for rate in rates], 0.5, color="#888888")
    axis.bar_label(bars, ["not measured" if rate is None else f"{rate:.1%}" for rate in rates], fontsize=7, padding=1)
    axis.set_title("word error rate")
    axis.set_ylabel("%")
    axis.set_ylim(0, max([5.0, *(115 * (rate or 0) for rate in rates)]))


def _sessions(axis: Axes, reports: Sequence[Report]) -> None:
    below = [0] * len(reports)
    for name, colour in (("completed", "#41ab5d"), ("refused", "#fdae6b"), ("dropped", "#cb181d")):
        counts = [int(report[name]) for report in reports]
        bars = axis.bar(range(len(counts)), counts, 0.5, bottom=below, label=name, color=colour)
        axis.bar_label(bars, [str(count or "") for count in counts], label_type="center", fontsize=7)
        below = [under + count for under, count in zip(below, counts, strict=True)]
    axis.set_title("sessions")
    axis.legend(frameon=False, fontsize=7)
    axis.set_ylim(0, 1.25 * max([1, *below]))


def _name(report: Report) -> str:
    who = ", ".join(report["backends"]) or report["protocol"]
    return f"{who}\n{report['sessions']} of {report['seconds']:g} s"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _machine(reports: Sequence[Report]) -> str:
    """Where each of them was measured, once."""
    found: dict[str, None] = {}  # in their order
    for report in reports:
        if here := report.get("machine"):
            where = f"{here['processor'] or here['system']}, {here['cpus']} CPUs, Python {here['python']}"
            versions = ", ".join(f"{name} {number}" for name, number in here["versions"].items())
            found["; ".join((where, versions, *([f"commit {here['commit']}"] if here["commit"] else [])))] = None
    return "\n".join(found)


def main() -> int:
    """Read the runs, draw them."""
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.json")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="ends in .svg or .png")
    parser.add_argument("--names", nargs="*", default=(), metavar="NAME", help="of the runs, in their order")
    args = parser.parse_args()
    if args.names and len(args.names) != len(args.runs):
        parser.error("as many names as runs")
    try:
        plot([json.loads(run.read_text(encoding="utf-8")) for run in args.runs], args.out, args.names)
    except (PlotError, OSError, ValueError) as exc:
        parser.error(str(exc))
    return 0


if __name__ == "__main__":
    sys.exit(main())
