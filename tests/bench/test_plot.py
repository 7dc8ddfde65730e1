"""Figures of runs."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench import plot as plots
from bench.load.plan import Plan
from bench.load.report import Report, report
from bench.load.results import Seen
from bench.plot import MAX_RUNS, PlotError, check, main, plot

MACHINE = {
    "python": "3.12.1", "system": "Linux x86_64", "processor": "A Processor", "cpus": 8, "load_average": 0.5,
    "versions": {"stt-bridge": "0.1.0", "uvloop": "0.21"}, "commit": "abcdef123456",
}  # fmt: skip


def of(backend: str, milliseconds: float, *, errors: int | None = None) -> Report:
    seen = Seen(completed=40, refused=2, dropped=1, frames=400, backends=[backend])
    if errors is not None:
        seen.word_errors, seen.words_said = errors, 200
    for number in range(100):
        seen.partial.add(milliseconds / 1_000 * (1 + number / 100))
        seen.speech_end.add(0.5)
    return report(Plan(url="ws://127.0.0.1:1/", sessions=43), seen) | {"machine": MACHINE}


def texts(path: Path) -> list[str]:
    """All that is written in an SVG."""
    return ["".join(node.itertext()) for node in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_runs_side_by_side(tmp_path: Path) -> None:
    plot([of("whisper", 120, errors=9), of("scripted", 1.5)], tmp_path / "two.svg")
    found = texts(tmp_path / "two.svg")
    assert {"audio → partial", "speech end → final", "word error rate", "sessions", "p99", "refused"} <= {*found}
    assert "audio → final" not in found  # neither run measured it
    assert "4.5%" in found
    assert found.count("not measured") == 1
    assert found.count("40") >= 2  # an axis may say so, too
    assert [text for text in found if "A Processor" in text and "abcdef123456" in text]  # once: it is the same


def test_names_of_one_s_own(tmp_path: Path) -> None:
    plot([of("scripted", 1)], tmp_path / "one.svg", ["the bridge"])
    assert "the bridge" in texts(tmp_path / "one.svg")


def test_the_same_runs_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        plot([of("whisper", 120, errors=9)], tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_run_in_which_nobody_got_in(tmp_path: Path) -> None:
    nobody = report(Plan(url="ws://127.0.0.1:1/"), Seen(refused=1))
    plot([nobody], tmp_path / "none.svg")
    assert "not measured" in texts(tmp_path / "none.svg")


def test_a_picture_of_points(tmp_path: Path) -> None:
    plot([of("scripted", 1)], tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_a_name_says_the_format() -> None:
    with pytest.raises(PlotError, match=r"\.svg or \.png, not run\.pdf"):
        check(Path("run.pdf"))


@pytest.mark.parametrize("count", [0, MAX_RUNS + 1])
def test_so_many_runs_make_no_figure(tmp_path: Path, count: int) -> None:
    with pytest.raises(PlotError, match=f"not {count}"):
        plot([of("scripted", 1)] * count, tmp_path / "x.svg")


def test_without_the_package_there_is_the_command_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda _: None)
    with pytest.raises(PlotError, match=r"pip install 'stt-bridge\[bench\]'"):
        check(Path("run.svg"))


def test_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for number in (1, 2):
        runs.append(str(tmp_path / f"{number}.json"))
        Path(runs[-1]).write_text(json.dumps(of("scripted", number)))
    out = tmp_path / "out.svg"
    monkeypatch.setattr("sys.argv", ["plot", *runs, "--out", str(out), "--names", "before", "after"])
    assert main() == 0
    assert {"before", "after"} <= {*texts(out)}


@pytest.mark.parametrize("text", [None, "{"])
def test_a_run_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    run = tmp_path / "run.json"
    if text is not None:
        run.write_text(text)
    monkeypatch.setattr("sys.argv", ["plot", str(run), "--out", str(tmp_path / "out.svg")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
