"""Options of Whisper: what the variables mean, and what is refused at start-up, in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.whisper.options import WhisperOptions
from bridge.settings import SettingsError, read_options


def read(**variables: str) -> WhisperOptions:
    options = read_options("whisper", WhisperOptions, {f"STT_WHISPER_{k}": v for k, v in variables.items()})
    assert options is not None
    return options


def test_the_defaults_are_allowed() -> None:
    assert read() == WhisperOptions()


def test_what_the_variables_mean() -> None:
    options = read(
        MODEL="large-v3-turbo", DOWNLOAD_FOLDER="/models", OFFLINE="true", TEMPERATURES="0,0.5", WORKERS="3",
        SCHEDULE="07:00=small,22:00=tiny", TIMEZONE="Europe/Berlin", PARTIAL_WINDOW="fit", CONDITION="no",
    )  # fmt: skip
    assert options == WhisperOptions(
        model="large-v3-turbo", download_folder=Path("/models"), offline=True, temperatures=(0.0, 0.5), workers=3,
        schedule="07:00=small,22:00=tiny", timezone="Europe/Berlin", partial_window="fit", condition=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"WINDOW_SECONDS": "28.1"}, "STT_WHISPER_WINDOW_SECONDS: at most 28 s fit into Whisper's window"),
        ({"WINDOW_SECONDS": "3"}, "STT_WHISPER_WINDOW_SECONDS: '3.0' is not allowed: it should be at least 4"),
        ({"TEMPERATURES": "0,1.5"}, "STT_WHISPER_TEMPERATURES: one or more numbers from 0 to 1"),
        ({"TEMPERATURES": ","}, "STT_WHISPER_TEMPERATURES: one or more numbers from 0 to 1"),
        ({"SPEECH_THRESHOLD": "1"}, "STT_WHISPER_SPEECH_THRESHOLD: more than 0 and less than 1"),
        ({"SCHEDULE": "25:00=small"}, "STT_WHISPER_SCHEDULE"),
        ({"SCHEDULE": "07:00=small", "TIMEZONE": "Mars/North"}, "STT_WHISPER_TIMEZONE"),
        ({"COMPUTE_TYPE": "int4"}, "STT_WHISPER_COMPUTE_TYPE"),
        ({"DEVICE": "gpu"}, "STT_WHISPER_DEVICE"),
        ({"BEAM_SIZE": "0"}, "STT_WHISPER_BEAM_SIZE"),
        ({"WORKERS": "-1"}, "STT_WHISPER_WORKERS"),
    ],
)
def test_refused(variables: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(**variables)
    assert sentence in str(caught.value)


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="WINDOW_SECONDS") as caught:
        WhisperOptions(window_seconds=40, temperatures=(), speech_threshold=0)
    assert len(str(caught.value).splitlines()) == 3
