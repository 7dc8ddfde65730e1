"""The contract between the bridge and an engine: audio iterator in, result iterator out.

An engine is one class with one generator. There are two kinds, and the bridge gives both the same face:

- `AsyncBackend.recognize(config, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]`
- `BlockingBackend.recognize(config, audio: Iterator[bytes]) -> Iterator[Result]`, run on a bounded thread pool.

What a stream may rely on, and what it owes:

- `audio` yields PCM16 little-endian mono at `config.sample_rate`, in chunks of any whole number of samples. Long
  silences may be left out; the bridge knows where, and moves the times of results.
- The end of the iterator is the end of the audio. The engine then yields what is left, final, and returns;
  a return means "every word of what I was given has been finalized".
- `FLUSH`, the empty chunk, means "finalize what you have, the stream goes on". Only engines that declare
  `Capabilities.flush` ever see it, and they answer it with a final that reaches up to that point, with
  empty text where nothing was said. For the others the bridge ends the stream there and opens the next.
- A partial replaces the partial before it. A final closes its stretch of time and is never taken back:
  the bridge forgets the audio up to `Result.end`, so `end` must not lie behind a word still to come.
- A final with empty text says that its stretch holds no speech. An engine that hears its own endpoints
  sends one every few seconds of silence, so that the bridge need not keep that audio for a replay.
- A partial with empty text says that speech has begun at `start`, before its words are known.
- What a partial calls `committed` stays: what the stream says later begins with it, in partials and finals. A final
  may close a part of it; the next result then begins with the rest.
- Closing the generator (`aclose()`, `close()`) or cancelling the task ends the stream at once; engines
  release what the stream held in `finally`.
- Anything raised to the bridge is a `BackendError`. No SDK's exception leaves its engine's file.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

FLUSH: Final = b""
"""The mark in the audio that asks for a final of everything so far. Test for it with `if not chunk`."""

DETECT: Final = "auto"
"""As the language of a stream: whichever is spoken. Only engines that declare `detects_language` ever see it."""


@dataclass(frozen=True, slots=True)
class RecognitionConfig:
    """What one backend stream is asked for.

    `language` is a BCP 47 tag, or `DETECT`. `phrases` are words or short phrases that are likely to be said. `start` is
    the session time, in seconds, of the stream's first sample and `attempt` counts the streams that the
    session opened before this one: both are 0 unless the session re-opened its backend. Result times are
    seconds from the stream's own first sample all the same. `silence_seconds` is the silence that the session wants
    to end an utterance (None: the engine's own choice); the bridge flushes there, whether the engine heeds it or not.

    The rest is for engines that pass the audio on to another server. `store`: whether what is said may be kept there.
    `credential`: the key or token that the caller came with (None: with none, or who asked is gone, as after a job was
    accepted); never to be logged or kept, and to be sent nowhere unless the operator says so. `traceparent`: the
    trace that the session belongs to, as W3C Trace Context writes it.
    """

    sample_rate: int = 16_000
    language: str = "en-US"
    partials: bool = True
    words: bool = True
    phrases: tuple[str, ...] = ()
    session_id: str = ""
    start: float = 0.0
    attempt: int = 0
    silence_seconds: float | None = None
    store: bool = True
    credential: str | None = field(default=None, repr=False)
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Word:
    """One recognized word; times in seconds from the stream's first sample, confidence 0 to 1."""

    text: str
    start: float
    end: float
    confidence: float | None = None
    speaker: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """A hypothesis for the stretch of audio from `start` to `end` (seconds from the stream's first sample).

    `stability` (0 to 1, partials only) says how likely the text is to stay, `confidence` (0 to 1, finals
    only) how likely it is to be right; None where the engine cannot say. `committed` (partials only) is how many
    characters of the text, from its beginning, no later result of the stream changes; None where the engine makes no
    such promise. `language` is a BCP 47 tag, in particular where the engine detected it.
    """

    text: str
    is_final: bool
    start: float
    end: float
    words: tuple[Word, ...] = ()
    stability: float | None = None
    confidence: float | None = None
    language: str | None = None
    committed: int | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do, as data: the bridge reads this and never asks which engine it holds.

    `languages` are BCP 47 tags, empty for "any"; `detects_language`: it also takes `DETECT`, and says in each final
    which language it was; `sample_rates` in Hz, the preferred one first;
    `max_stream_seconds` is the longest that one stream lasts, of audio or by the clock (None: no limit);
    `max_streams` is how many streams the loaded engine carries at once in real time (None: no limit of its own).

    `idle_seconds`: a stream that gets no audio for so long is ended, and the next one asked for when there is
    audio again (None: an open stream costs nothing). `answer_seconds`: a healthy stream leaves neither speech nor
    the end of its audio without any result for longer (None: it may); one that does is ended, then replaced.
    `metered`: audio costs money or scarce time whether somebody speaks or not, so it should be given only speech.
    """

    partials: bool = True
    word_times: bool = False
    confidences: bool = False
    phrases: bool = False
    flush: bool = False
    languages: tuple[str, ...] = ()
    sample_rates: tuple[int, ...] = (16_000,)
    max_stream_seconds: float | None = None
    max_streams: int | None = None
    idle_seconds: float | None = None
    answer_seconds: float | None = None
    metered: bool = False
    detects_language: bool = False


class Fault(enum.Enum):
    """Who has to act for an error to go away."""

    CLIENT = "client"
    """The request: another language, another format."""
    OPERATOR = "operator"
    """The installation: a package, a model, a key."""
    ENGINE = "engine"
    """The engine itself: it broke, is overloaded or unreachable."""


class BackendError(Exception):
    """The one exception that leaves an engine.

    `code` is a short, stable name (`unavailable`, `overloaded`, `rejected`, `failed`, `not_installed`,
    `stream_limit`, …), `retryable` says that another stream, opened with the same configuration, may do
    better: the session then opens one and replays what no final has covered. Two codes mean more to it: after
    `overloaded` it waits longer, and after `stream_limit` it ends the next streams before they last so long.
    """

    def __init__(
        self, message: str, *, code: str = "failed", fault: Fault = Fault.ENGINE, retryable: bool = False
    ) -> None:
        super().__init__(message)
        self.code = code
        self.fault = fault
        self.retryable = retryable


class Backend(ABC):
    """What both kinds of engine share. Subclass `AsyncBackend` or `BlockingBackend`.

    `Options` is a frozen dataclass whose fields become settings: field `model` of the engine `whisper` is read
    from `STT_WHISPER_MODEL`, checked against the field's type, and handed to the constructor. A field's
    `metadata["help"]` is its line in the documentation, `metadata["secret"]` keeps its value out of messages,
    `metadata["min"]` is the least number allowed.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Any] | None] = None

    def __init__(self, options: Any = None) -> None:
        self.options = options

    @classmethod
    def settings_name(cls) -> str:
        """Whose variables it reads: its own, unless it shares them with another engine (`google-threads`)."""
        return cls.name

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Known before `load`, except for what only the loaded engine can tell."""

    def refusal(self) -> str | None:
        """Why a new session is not welcome just now, as a quota that is nearly used up; None: it is.

        Asked on the event loop, beside `Capabilities.max_streams`, before a session opens; must not wait.
        """
        return None

    @property
    def collectors(self) -> Sequence[Any]:
        """Prometheus collectors (`prometheus_client.registry.Collector`) to show beside the bridge's own metrics.

        Asked once, before `load`. Register them nowhere (`registry=None`); their names begin with `stt_` and the
        engine's name. `collect` runs on the event loop at each scrape and must not wait long. One that fails, and a
        metric whose name is taken, is left out of the scrape.
        """
        return ()

    @property
    def model(self) -> str | None:
        """The model that serves now; None where there is none to name. Asked on the event loop; must not wait."""
        return None

    @property
    def progress(self) -> str | None:
        """What loading has come to, such as `downloading small: 43 %`; None while nothing loads.

        People read it in the log and at `/readyz`: it must hold no secret. Asked on the event loop; must not wait.
        """
        return None


class AsyncBackend(Backend):
    """An engine that works on the event loop."""

    async def load(self) -> None:
        """Load models and check credentials, once, before the server says that it is ready."""

    async def close(self) -> None:
        """Release everything; no stream is open any more."""

    async def use_model(self, name: str) -> None:  # noqa: ARG002 - the default has no use for it
        """Have another model serve, without a break: the one before it serves until the new one is loaded.

        Streams that are open go on, with either model. The bridge calls it once at a time; a schedule of the engine's
        own may want it meanwhile. Cancelling it leaves the model before.

        Raises:
            BackendError: the model before serves on. `not_supported`: this engine has no choice; `unknown_model`: none
                is called so; any other: it cannot be loaded, and the text says why.
        """
        raise BackendError(f"the backend {self.name} has no other models", code="not_supported", fault=Fault.CLIENT)

    @abstractmethod
    def recognize(self, config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        """Recognize one stream. An asynchronous generator; see the module's text for the duties."""


class BlockingBackend(Backend):
    """An engine that blocks: the bridge runs each stream on a thread of a bounded pool.

    `audio` blocks until there is audio and raises `StreamCancelled` when the session is gone: let it pass. An engine
    that waits elsewhere as well can be freed there, too: the bridge's iterator has `on_cancel(callback)`, whose
    callback is called once the session is gone, at once if it is already, on whichever thread notices; it must not
    wait.
    """

    def load(self) -> None:
        """Load models and check credentials, once, before the server says that it is ready."""

    def close(self) -> None:
        """Release everything; no stream is open any more."""

    @abstractmethod
    def recognize(self, config: RecognitionConfig, audio: Iterator[bytes]) -> Iterator[Result]:
        """Recognize one stream. A generator; see the module's text for the duties."""


class StreamCancelled(Exception):  # noqa: N818 - an end like asyncio's CancelledError, not an error
    """Raised out of a blocking engine's audio iterator when nobody wants its results any more."""
