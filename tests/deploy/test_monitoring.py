"""The dashboard and the alerts ask for what the server has: metrics, labels, codes. Prometheus checks the rest."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from bridge.errors import ERRORS
from bridge.observe.metrics import Metrics
from tests import docs

DEPLOY: Final = Path(__file__).parent.parent.parent / "deploy"
ALERTS: Final = DEPLOY / "prometheus" / "alerts.yml"
SUFFIXES: Final = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
SCRAPED: Final = frozenset({"instance", "job"})
"""Labels that the scraper adds."""


@cache
def series() -> dict[str, frozenset[str]]:
    """Every series of a server, and its labels."""
    found = {}
    for collector in Metrics().registry._collector_to_names:
        labels = frozenset(getattr(collector, "_labelnames", ())) | SCRAPED
        for family in collector.collect():
            for suffix in SUFFIXES[family.type]:
                found[family.name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    return found


@cache
def alerts() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((DEPLOY / "grafana" / "stt-bridge.json").read_text())
    return read


def panels() -> Iterator[dict[str, Any]]:
    for panel in dashboard()["panels"]:
        yield panel
        yield from panel.get("panels", ())


def drawn() -> list[tuple[str, str, str]]:
    """Title, expression and legend of whatever the dashboard draws."""
    return [(p["title"], t["expr"], t["legendFormat"]) for p in panels() for t in p.get("targets", ())]


def check(expression: str) -> None:
    """Whether the server has what is asked for. An expression over nothing is no error to Prometheus: it is silent."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    assert bare.count("(") == bare.count(")")
    named = re.findall(r"\b(?:stt_\w+|up)\b", bare)
    assert named
    assert {name for name in named if name != "up"} <= set(series()), expression
    for name, selector in re.findall(r"\b(stt_\w+)(?:\s*\{([^}]*)\})?", bare):
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector):
            assert label in series()[name], (name, label)
        assert not name.endswith(("_bucket", "_total", "_sum", "_count")) or re.search(
            rf"\b(?:rate|increase)\s*\(\s*{name}\b", bare
        ), f"{name} only ever rises"
    everywhere = frozenset().union(*(series()[name] for name in named if name != "up"), SCRAPED)
    for labels in re.findall(r"\bby\s*\(([^)]*)\)", bare):
        assert {label.strip() for label in labels.split(",")} <= everywhere, expression
    if "histogram_quantile" in bare:
        assert all("le" in labels for labels in re.findall(r"\bby\s*\(([^)]*)\)", bare))
        assert all(name.endswith("_bucket") for name in named)
    for codes in re.findall(r'\bcode=~?"([^"]*)"', expression):
        assert set(codes.split("|")) <= set(ERRORS)


@pytest.mark.parametrize("alert", [pytest.param(rule, id=rule["alert"]) for rule in alerts()])
def test_an_alert_asks_for_what_there_is(alert: dict[str, Any]) -> None:
    check(alert["expr"])
    assert re.fullmatch(r"\d+m", alert.get("for", "0m"))
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert alert["annotations"]["summary"]
    known = set(re.findall(r"\bby\s*\(([^)]*)\)", alert["expr"])) or {"instance, job, backend"}
    shown = set(re.findall(r"\$labels\.(\w+)", str(alert["annotations"])))
    assert shown <= {label.strip() for labels in known for label in labels.split(",")}


def test_every_alert_is_explained() -> None:
    (rows,) = docs.tables(docs.section(docs.page("operations.md"), "Alerts and a dashboard"))
    assert [docs.code(row["Alert"]) for row in rows] == [rule["alert"] for rule in alerts()]


def test_the_thresholds_that_were_promised() -> None:
    by_name = {rule["alert"]: rule["expr"] for rule in alerts()}
    for name in ("SttPartialsSlow", "SttHttpSlow"):
        assert "histogram_quantile(0.99," in by_name[name]
        assert by_name[name].rstrip().endswith("> 0.5")
    for name in ("SttHttpErrors", "SttSessionErrors"):
        assert by_name[name].rstrip().endswith("> 0.01")


@pytest.mark.parametrize("metric", ["stt_partial_latency_seconds", "stt_http_request_seconds"])
def test_half_a_second_is_the_bound_of_a_bucket(metric: str) -> None:
    """Else Prometheus guesses where in a bucket the threshold lies."""
    metrics = Metrics()
    metrics.partial_seconds.labels("x").observe(0)
    metrics.http.request("x", "GET", 200, 0)
    samples = [s for f in metrics.registry.collect() if f.name == metric for s in f.samples]
    assert "0.5" in {sample.labels.get("le") for sample in samples}


def test_the_faults_of_this_side() -> None:
    """What ends a session by a fault of the server or the backend, and is no matter of its coming and going."""
    (expression,) = (rule["expr"] for rule in alerts() if rule["alert"] == "SttSessionErrors")
    (codes,) = re.findall(r'code=~"([^"]*)"', expression)
    passing = {"at_capacity", "not_ready", "shutting_down", "log_unavailable", "store_unavailable"}
    faults = {row.name for row in ERRORS.values() if row.fault in ("server", "engine") and row.fatal} - passing
    assert set(codes.split("|")) <= faults


@pytest.mark.parametrize(("title", "expression", "legend"), [pytest.param(*d, id=d[0]) for d in drawn()])
def test_the_dashboard_draws_what_there_is(title: str, expression: str, legend: str) -> None:
    check(expression.replace("$__rate_interval", "5m"))
    assert 'instance=~"$instance"' in expression
    grouped = {label.strip() for labels in re.findall(r"\bby\s*\(([^)]*)\)", expression) for label in labels.split(",")}
    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= grouped


def test_the_dashboard_can_be_imported() -> None:
    read = dashboard()
    assert read["uid"] == "stt-bridge"
    assert [variable["name"] for variable in read["templating"]["list"]] == ["datasource", "instance"]
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert cells.isdisjoint(taken), f"{panel['title']} lies over another"
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["targets"]


def test_every_metric_is_drawn() -> None:
    drawn_names = set(re.findall(r"\bstt_\w+", " ".join(expression for _, expression, _ in drawn())))
    assert {family.name for family in Metrics().registry.collect()} == {
        re.sub(r"_(total|bucket|sum|count)$", "", name) for name in drawn_names
    }


def promtool(*args: str) -> None:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed: it comes with Prometheus")
    done = subprocess.run([tool, *args], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_its_files() -> None:
    promtool("check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))


def test_each_alert_fires_and_is_silent() -> None:
    cases = (DEPLOY / "prometheus" / "alerts_test.yml").read_text()
    for rule in alerts():
        assert f'alertname="{rule["alert"]}"' in cases
    promtool("test", "rules", str(DEPLOY / "prometheus" / "alerts_test.yml"))


def test_prometheus_understands_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"drawn:{number}", "expr": expression.replace("$__rate_interval", "5m").replace("$instance", ".*")}
        for number, (_, expression, _) in enumerate(drawn())
    ]
    file = tmp_path / "drawn.yml"
    file.write_text(importlib.import_module("yaml").safe_dump({"groups": [{"name": "drawn", "rules": rules}]}))
    promtool("check", "rules", str(file))
