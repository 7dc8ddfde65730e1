"""A short run of `bench.chaos_jobs`: processes are killed, and each job has one result."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from bench.chaos_jobs import Plan, Run

CLUSTER = importlib.util.find_spec("taskiq_redis") is not None and shutil.which("redis-server") is not None


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "redis",
    [False, pytest.param(True, marks=pytest.mark.skipif(not CLUSTER, reason="no redis-server, or no taskiq-redis"))],
)
async def test_each_job_has_one_result(redis: bool, tmp_path: Path) -> None:
    plan = Plan(jobs=8, kills=1, workers=1, redis=redis, least_words=100, pause=(0.2, 0.6))
    report = await Run(plan).make(tmp_path)
    assert report.problems == []
    assert report.states == {"succeeded": 8}
    assert sum(report.kills.values()) == 1
