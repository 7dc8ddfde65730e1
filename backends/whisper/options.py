"""The settings of the engine `whisper`. Imports no SDK."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from backends.whisper.schedule import Schedule

COMPUTE_TYPES = Literal[
    "auto",
    "float32",
    "float16",
    "bfloat16",
    "int16",
    "int8",
    "int8_float32",
    "int8_float16",
    "int8_bfloat16",
]

LONGEST_WINDOW = 28.0
"""Seconds. Whisper hears 30; what is left is for the audio that comes while a window is being cut."""


@dataclass(frozen=True, slots=True)
class WhisperOptions:
    """Settings of `whisper`. Durations in seconds.

    Raises:
        ValueError: values that do not go together; one line for each, naming the variable.
    """

    model: str = field(
        default="small",
        metadata={"help": "Name (`large-v3-turbo`), repository (`owner/name`) or folder of a CTranslate2 model."},
    )
    download_folder: Path | None = field(
        default=None, metadata={"help": "Where models are kept; unset: the cache of huggingface_hub."}
    )
    offline: bool = field(default=False, metadata={"help": "Never download; use only models that are here."})
    device: Literal["auto", "cpu", "cuda"] = field(
        default="auto", metadata={"help": "`auto`: a GPU where one can be used, else the CPU."}
    )
    device_index: int = field(default=0, metadata={"help": "Which GPU.", "min": 0})
    compute_type: COMPUTE_TYPES = field(
        default="auto",
        metadata={"help": "Type of numbers; `auto`: float16 on a GPU that is fast at it, int8 on a CPU."},
    )
    workers: int = field(
        default=0, metadata={"help": "Windows or batches decoded side by side; 0: by device.", "min": 0}
    )
    threads: int = field(default=0, metadata={"help": "CPU threads of each worker; 0: by model and cores.", "min": 0})
    batch_size: int = field(
        default=0, metadata={"help": "Most windows in a batch; 0: 16 on a GPU, 1 on a CPU.", "min": 0}
    )
    batch_wait_seconds: float = field(
        default=0.01, metadata={"help": "How long a window waits for others to fill its batch.", "min": 0}
    )
    final_seconds: float = field(
        default=1.0,
        metadata={
            "help": "The promise: 95 % of finals come so soon after they are asked for. New sessions are refused while "
            "it is not kept.",
            "min": 0.05,
        },
    )
    partial_seconds: float = field(
        default=0.5, metadata={"help": "New audio between two partials; more of it under pressure.", "min": 0.1}
    )
    partial_window: Literal["full", "fit"] = field(
        default="full",
        metadata={
            "help": "What the encoder is given for partials: the 30 seconds it was trained on, or little more than the "
            "audio, which is several times faster on a CPU and costs accuracy with most models."
        },
    )
    window_seconds: float = field(
        default=20.0, metadata={"help": "Longest stretch of speech without a final.", "min": 4}
    )
    silence_seconds: float = field(
        default=0.8,
        metadata={"help": "Silence that ends an utterance, for sessions that say nothing of it.", "min": 0.1},
    )
    speech_threshold: float = field(
        default=0.2,
        metadata={"help": "Probability from which a frame counts as speech; nothing else is decoded.", "min": 0},
    )
    task: Literal["transcribe", "translate"] = field(
        default="transcribe", metadata={"help": "`translate`: into English, whatever is spoken."}
    )
    initial_prompt: str = field(
        default="", metadata={"help": "Text that the model takes for what was said before: style, names, spelling."}
    )
    condition: bool = field(
        default=True, metadata={"help": "Give the model the session's last words, so that it goes on in their way."}
    )
    beam_size: int = field(default=5, metadata={"help": "Beams for finals; partials are greedy.", "min": 1})
    temperatures: tuple[float, ...] = field(
        default=(0.0, 0.4, 0.8),
        metadata={"help": "Tried in turn for a final while the guards reject what was heard."},
    )
    no_speech_threshold: float = field(
        default=0.6,
        metadata={"help": "Guard: likelier silence than this, and improbable words, are no words.", "min": 0},
    )
    log_probability_threshold: float = field(
        default=-1.0, metadata={"help": "Guard: mean log-probability of the tokens, at least."}
    )
    compression_threshold: float = field(
        default=2.4, metadata={"help": "Guard: text that compresses better than this repeats itself.", "min": 1}
    )
    decode_limit_seconds: float = field(
        default=60.0, metadata={"help": "A decode that takes longer is given up and its worker replaced.", "min": 1}
    )
    schedule: str = field(
        default="", metadata={"help": "Models by time of day, such as `07:00=large-v3-turbo,22:00=small`."}
    )
    timezone: str = field(
        default="", metadata={"help": "Time zone of the schedule, such as `Europe/Berlin`; empty: the machine's."}
    )

    def __post_init__(self) -> None:
        refusals = []
        if self.window_seconds > LONGEST_WINDOW:
            refusals.append(f"STT_WHISPER_WINDOW_SECONDS: at most {LONGEST_WINDOW:g} s fit into Whisper's window")
        if not self.temperatures or not all(0 <= t <= 1 for t in self.temperatures):
            refusals.append("STT_WHISPER_TEMPERATURES: one or more numbers from 0 to 1")
        if not 0 < self.speech_threshold < 1:
            refusals.append("STT_WHISPER_SPEECH_THRESHOLD: more than 0 and less than 1")
        try:
            Schedule.parse(self.schedule, self.timezone)
        except ValueError as exc:
            refusals.append(str(exc))
        if refusals:
            raise ValueError("\n".join(refusals))
