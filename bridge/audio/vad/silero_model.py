"""Silero's model, as faster-whisper carries it, made to judge many streams at once.

The graph in the file takes the frames of one stream as a sequence: what it calls `seq_len` is time for its recurrent
layer (LSTM). A server has the next frame of each of many streams instead. Two transpositions put frames where the
recurrent layer looks for its batch; then dimension 0 is the batch, and each stream has its own row of the state.
Everything else in the graph treats the frames one by one anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bridge.audio.vad.detector import VoiceDetectionError

FRAME_SAMPLES: Final = 512
"""32 ms at 16 kHz."""
CONTEXT: Final = 64
"""Samples before the frame that it wants to hear again."""

Float32 = npt.NDArray[np.float32]
Memory = Float32
"""What the model remembers of streams: (2, streams, 128), its hidden and its cell state."""

_FILE: Final = Path("assets", "silero_vad_v6.onnx")
_STATES: Final = ("h", "c", "hn", "cn")
_TRANSPOSED: Final = {  # by node: (in the file, frames as a batch)
    "/Transpose": ([0, 2, 1], [2, 0, 1]),  # frame, feature, 1 → time, batch, feature
    "/decoder/Transpose": ([1, 2, 0], [0, 2, 1]),  # time, batch, feature → as the convolution wants it
}


def missing() -> list[str]:
    """The packages that would have to be installed. Imports none of them: faster-whisper's own import is heavy."""
    names = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    path = _path()
    return names if path is not None and path.exists() else ["faster-whisper>=1.2", *names]


def fresh_memory() -> Memory:
    """What the model remembers of one stream before its first frame."""
    return np.zeros((2, 1, 128), np.float32)


class SileroModel:
    """The model, loaded: it takes half a second and blocks.

    Raises:
        VoiceDetectionError: the file holds another model than the one that is known here.
    """

    def __init__(self) -> None:
        path = _path()
        if path is None:
            raise VoiceDetectionError("faster-whisper is not installed")
        original = path.read_bytes()
        try:
            self._session = _session(_batched(original))
            self._check(_session(original))
        except Exception as error:
            raise VoiceDetectionError(
                f"the voice detector silero does not know the model of this faster-whisper ({error}); "
                "install another version of faster-whisper, or choose the voice detector webrtc"
            ) from error

    def judge(self, frames: Sequence[bytes], memory: Memory) -> tuple[Float32, Memory]:
        """The probability that the next frame of each stream is speech, and what to remember of the streams.

        A frame is PCM16: `CONTEXT` samples of the one before, then `FRAME_SAMPLES`.
        """
        samples = np.frombuffer(b"".join(frames), "<i2").reshape(len(frames), CONTEXT + FRAME_SAMPLES)
        return _run(self._session, samples * np.float32(1 / 32_768), memory)

    def _check(self, original: Any) -> None:
        """Two streams at once must be judged as each of them is alone by the graph in the file."""
        audio = np.random.default_rng(0).normal(0, 0.1, (2, 3, CONTEXT + FRAME_SAMPLES)).astype(np.float32)
        memory = np.concatenate([fresh_memory(), fresh_memory()], axis=1)
        together = []
        for frames in audio.swapaxes(0, 1):
            probabilities, memory = _run(self._session, frames, memory)
            together.append(probabilities)
        alone = [_run(original, stream, fresh_memory())[0] for stream in audio]
        if not np.allclose(np.array(together).T, alone, atol=1e-4):
            raise ValueError("streams judged together influence each other")


def _path() -> Path | None:
    package = find_spec("faster_whisper")
    places = package.submodule_search_locations if package else None
    return Path(places[0]) / _FILE if places else None


def _batched(original: bytes) -> bytes:
    """The graph with the two transpositions changed, and the states' dimension for streams set free."""
    import onnx  # noqa: PLC0415 - optional, and slow to import

    model = onnx.load_from_string(original)
    nodes = {node.name: node for node in model.graph.node}
    for name, (before, after) in _TRANSPOSED.items():
        if name not in nodes or list(nodes[name].attribute[0].ints) != before:
            raise ValueError(f"its node {name} is not as expected")
        nodes[name].attribute[0].ints[:] = after
    for value in (*model.graph.input, *model.graph.output):
        if value.name in _STATES:
            value.type.tensor_type.shape.dim[1].dim_param = "streams"
    return bytes(model.SerializeToString())


def _session(model: bytes) -> Any:
    import onnxruntime  # type: ignore[import-untyped]  # noqa: PLC0415 - optional, and slow to import

    options = onnxruntime.SessionOptions()
    # More threads cost more than they gain in so small a model, and would take the engine's.
    options.inter_op_num_threads = options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors: warnings would go to standard error by themselves
    return onnxruntime.InferenceSession(model, sess_options=options, providers=["CPUExecutionProvider"])


def _run(session: Any, frames: Float32, memory: Memory) -> tuple[Float32, Memory]:
    inputs = {"input": frames, "h": memory[:1], "c": memory[1:]}
    probabilities, hidden, cell = session.run(("speech_probs", "hn", "cn"), inputs)
    return probabilities, np.concatenate([hidden, cell])
