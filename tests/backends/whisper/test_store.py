"""Models on this machine and from the hub: what is downloaded, how far that is, and what is said when it fails."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.base import BackendError
from backends.whisper import store
from tests.backends.whisper.hub import OTHER, Hub, hub
from tests.models import fixture
from tests.speech import ROOT

Json = dict[str, Any]


class Finder:
    """The process that looks for models."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder

    def find(self, name: str, *, offline: bool = False) -> Json:
        """See `hub.main`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"name": name, "folder": str(self._folder), "offline": offline}) + "\n")
        self._process.stdin.flush()
        answer: Json = json.loads(self._process.stdout.readline())
        return answer


@pytest.fixture(scope="module")
def there() -> Iterator[Hub]:
    with hub(fixture.MODEL) as running:
        yield running


@pytest.fixture(scope="module")
def finder(there: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finder]:
    yield from finding(there.url, tmp_path_factory.mktemp("models"))


def finding(url: str, folder: Path) -> Iterator[Finder]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.backends.whisper.hub"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            yield Finder(process, folder / "cache")
        finally:
            process.kill()


# From the hub


def test_a_model_is_downloaded_once(finder: Finder, there: Hub) -> None:
    answer = finder.find("owner/words")
    assert answer["size"] == (fixture.MODEL / "model.bin").stat().st_size
    found = Path(answer["found"])
    assert {file.name for file in found.iterdir()} == {file.name for file in fixture.MODEL.iterdir()} & {
        "config.json", "preprocessor_config.json", "model.bin", "tokenizer.json", "vocabulary.json",
    }  # fmt: skip
    assert (found / "model.bin").read_bytes() == (fixture.MODEL / "model.bin").read_bytes()
    assert not [path for path in there.asked if OTHER in path]
    asked = len(there.asked)
    again = finder.find("owner/words")
    assert (again["found"], again["said"]) == (answer["found"], [])
    assert len(there.asked) == asked
    assert finder.find("owner/words", offline=True)["found"] == answer["found"]


def test_a_download_says_how_far_it_is(finder: Finder) -> None:
    """That it does not go back is below: how much is wanted becomes known as the files come."""
    said = finder.find("owner/progress")["said"]
    told = [re.fullmatch(r"downloading the model owner/progress: (\d+) % of (\d+) MB", line) for line in said]
    assert all(told)
    assert said[-1].endswith(" 100 % of 3 MB")


def test_news_that_are_old_are_not_told() -> None:
    said: list[str] = []
    meter = store._Meter("m", said.append)
    for done, total in (
        (500, 500),
        (10, 100e6),
        (2e6, 100e6),
        (1e6, 100e6),
        (2.5e6, 100e6),
        (3e6, 200e6),
        (3e6, 100e6),
    ):
        meter.tell(done, total)
    assert [line.removeprefix("downloading the model m: ") for line in said] == [
        "0 % of 100 MB", "2 % of 100 MB", "1 % of 200 MB",
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "status"), [("nobody/there", 404), ("not/public", 401)])
def test_a_repository_that_does_not_exist(finder: Finder, name: str, status: int) -> None:
    answer = finder.find(name)
    assert answer["code"] == "unknown_model"
    assert name in answer["message"]
    assert str(status) in answer["message"]


def test_a_hub_that_is_out_of_order(finder: Finder) -> None:
    answer = finder.find("out/of-order")
    assert (answer["code"], answer["fault"]) == ("model_unavailable", "operator")
    assert "out/of-order" in answer["message"]


def test_a_name_that_is_none(finder: Finder) -> None:
    for name in ("a/b/c", "owner/a name", "owner/..", "-/-"):
        assert finder.find(name)["code"] == "unknown_model", name


def test_offline_nothing_is_downloaded(finder: Finder, there: Hub) -> None:
    asked = len(there.asked)
    answer = finder.find("owner/never-seen", offline=True)
    assert answer["code"] == "model_unavailable"
    assert "STT_WHISPER_OFFLINE" in answer["message"]
    assert len(there.asked) == asked


@pytest.mark.slow
def test_a_download_that_breaks_off_and_the_next_try(tmp_path: Path) -> None:
    with hub(fixture.MODEL) as flaky:
        flaky.breaks_off = True
        for finder in finding(flaky.url, tmp_path):
            assert finder.find("owner/words")["code"] == "model_unavailable"
            flaky.breaks_off = False
            answer = finder.find("owner/words")
            assert answer["size"] == (fixture.MODEL / "model.bin").stat().st_size


def test_no_network(finder: Finder, there: Hub) -> None:
    """The last test of this module: the hub is gone after it. What is here serves on."""
    finder.find("owner/words")
    there.close()
    answer = finder.find("owner/elsewhere")
    assert (answer["code"], answer["fault"]) == ("model_unavailable", "operator")
    assert "without a network" in answer["message"]
    assert "found" in finder.find("owner/words")


# On this machine


def nothing(sentence: str) -> None:
    raise AssertionError(sentence)


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.find(str(fixture.MODEL), None, nothing) == fixture.MODEL
    monkeypatch.setenv("HOME", str(fixture.MODEL.parent))
    assert store.find(f"~/{fixture.MODEL.name}", None, nothing, offline=True) == fixture.MODEL
    (tmp_path / "owner" / "words").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackendError, match=r"config\.json, model\.bin, tokenizer\.json are missing") as caught:
        store.find("owner/words", None, nothing)  # a folder goes before a repository of that name
    assert caught.value.code == "bad_model"


def test_a_folder_that_lacks_one_file(tmp_path: Path) -> None:
    for name in ("config.json", "model.bin"):
        (tmp_path / name).touch()
    with pytest.raises(BackendError, match=r"tokenizer.json is missing"):
        store.check(tmp_path)


@pytest.mark.parametrize("name", ["smal", "large-v9", "../up", "/nowhere/at-all"])
def test_a_name_that_nobody_knows(name: str) -> None:
    with pytest.raises(BackendError) as caught:
        store.find(name, None, nothing)
    assert caught.value.code == "unknown_model"
    assert "large-v3-turbo" in str(caught.value)
