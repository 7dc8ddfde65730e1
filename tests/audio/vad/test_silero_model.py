from __future__ import annotations

from pathlib import Path

import pytest

from bridge.audio.vad import silero_model
from bridge.audio.vad.detector import VoiceDetectionError
from bridge.audio.vad.silero_model import SileroModel, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"needs {', '.join(missing())}")


def model_file() -> Path:
    path = silero_model._path()
    assert path is not None
    return path


def test_another_graph_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(model_file())
    next(node for node in model.graph.node if node.name == "/Transpose").name = "other"
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    monkeypatch.setattr(silero_model, "_path", lambda: path)
    with pytest.raises(VoiceDetectionError, match=r"/Transpose.*choose the voice detector webrtc"):
        SileroModel()


def test_what_is_no_model_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    monkeypatch.setattr(silero_model, "_path", lambda: path)
    with pytest.raises(VoiceDetectionError, match="does not know the model"):
        SileroModel()


def test_streams_that_influence_each_other_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the graph is left as it is: frames are then one stream's, one after the other."""
    monkeypatch.setattr(silero_model, "_batched", lambda original: original)
    with pytest.raises(VoiceDetectionError):
        SileroModel()


def test_what_is_missing_is_found_without_importing_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(silero_model, "find_spec", lambda name: None)
    assert missing() == ["faster-whisper>=1.2", "onnx", "onnxruntime"]
    monkeypatch.undo()
    monkeypatch.setattr(silero_model, "_path", lambda: tmp_path / "absent.onnx")
    assert missing() == ["faster-whisper>=1.2"]
