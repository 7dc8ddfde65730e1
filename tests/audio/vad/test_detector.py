from __future__ import annotations

import pytest

from bridge.audio.vad import silero
from bridge.audio.vad.detector import VoiceDetectionError, make_voice_detection


def test_auto_is_silero_where_it_is_installed_and_webrtc_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silero, "missing", list)
    assert make_voice_detection("auto").name == "silero"
    monkeypatch.setattr(silero, "missing", lambda: ["onnx"])
    assert make_voice_detection("auto").name == "webrtc"


def test_webrtc_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silero, "missing", lambda: ["onnx"])
    assert make_voice_detection("webrtc").name == "webrtc"


def test_silero_without_its_packages_says_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silero, "missing", lambda: ["onnx", "onnxruntime"])
    with pytest.raises(VoiceDetectionError, match=r"onnx, onnxruntime: pip install 'stt-bridge\[silero\]'"):
        make_voice_detection("silero")
