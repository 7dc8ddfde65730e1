"""The official clients of both APIs, behind one face: what is asked, the messages, what was heard, how it ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from google.api_core.exceptions import GoogleAPICallError
from google.cloud import speech_v1, speech_v2
from google.cloud.speech_v1.services.speech import transports as transports_v1
from google.cloud.speech_v2.services.speech import transports as transports_v2

LIMIT: Final = 30.0
"""Seconds that no call may take longer than."""
CHUNK: Final = 3_200
"""100 ms at 16 kHz."""
RECOGNIZER: Final = "projects/p/locations/global/recognizers/_"


@dataclass
class Heard:
    """The answers to one call (proto-plus), and its status."""

    responses: list[Any] = field(default_factory=list)
    code: grpc.StatusCode = grpc.StatusCode.OK
    text: str = ""

    @property
    def results(self) -> list[Any]:
        """All results, in order."""
        return [result for response in self.responses for result in response.results]

    @property
    def finals(self) -> list[Any]:
        """The final ones."""
        return [result for result in self.results if result.is_final]

    @property
    def words(self) -> list[str]:
        """The transcript."""
        return [word for result in self.finals for word in result.alternatives[0].transcript.split()]

    def end(self, exc: GoogleAPICallError) -> None:
        """Note the status that an exception stands for."""
        assert exc.grpc_status_code is not None
        self.code, self.text = exc.grpc_status_code, exc.message

    @property
    def status(self) -> tuple[str, str]:
        """Name and text."""
        return self.code.name, self.text


class Call:
    """One call of an asynchronous client."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.heard = Heard()

    async def send(self, *messages: Any) -> None:
        """Write messages, one after another."""
        async with asyncio.timeout(LIMIT):
            for message in messages:
                await self.call.write(message)

    async def read(self) -> Any:
        """The next response; None at the end."""
        async with asyncio.timeout(LIMIT):
            try:
                response = await self.call.read()
            except GoogleAPICallError as exc:
                self.heard.end(exc)
                return None
        if response is grpc.aio.EOF:
            self.heard.code, self.heard.text = await self.call.code(), await self.call.details()
            return None
        self.heard.responses.append(response)
        return response

    async def rest(self) -> Heard:
        """Read to the end."""
        while await self.read() is not None:
            pass
        return self.heard

    async def finish(self) -> Heard:
        """Say that no audio will follow, and read to the end."""
        await self.call.done_writing()
        return await self.rest()


@dataclass(frozen=True)
class Client:
    """One API's official clients."""

    name: str
    module: Any
    transports: Any
    end: str
    """Field of a result's end."""
    start_of_word: str
    end_of_word: str
    event_time: str

    def config(self, *, recognizer: str = RECOGNIZER, **asked: Any) -> Any:
        """The first message; what can be asked for stands below."""
        return self._config_v1(**asked) if self.name == "v1" else self._config_v2(recognizer, **asked)

    def _config_v1(self, **asked: Any) -> Any:
        config = {
            "encoding": asked.get("encoding", "LINEAR16"),
            "sample_rate_hertz": asked.get("rate", 16_000),
            "language_code": asked.get("language", "en-US"),
            "audio_channel_count": asked.get("channels", 0),
            "enable_word_time_offsets": asked.get("words", False),
            "enable_word_confidence": asked.get("word_confidence", False),
            "speech_contexts": [{"phrases": asked["phrases"]}] if "phrases" in asked else [],
        }
        streaming = {
            "config": config,
            "interim_results": asked.get("interim", True),
            "enable_voice_activity_events": asked.get("events", False),
            "single_utterance": asked.get("single", False),
        }
        return speech_v1.StreamingRecognizeRequest(streaming_config=streaming)

    def _config_v2(self, recognizer: str, **asked: Any) -> Any:
        languages = asked.get("languages", [asked.get("language", "en-US")])
        config = {
            "explicit_decoding_config": {
                "encoding": asked.get("encoding", "LINEAR16"),
                "sample_rate_hertz": asked.get("rate", 16_000),
                "audio_channel_count": asked.get("channels", 1),
            },
            "model": asked.get("model", "latest_short" if asked.get("single") else "long"),
            "language_codes": [language for language in languages if language],
            "features": {
                "enable_word_time_offsets": asked.get("words", False),
                "enable_word_confidence": asked.get("word_confidence", False),
            },
        }
        features = {
            "interim_results": asked.get("interim", True),
            "enable_voice_activity_events": asked.get("events", False),
        }
        return speech_v2.StreamingRecognizeRequest(
            recognizer=recognizer, streaming_config={"config": config, "streaming_features": features}
        )

    def audio(self, pcm: bytes, size: int = CHUNK) -> list[Any]:
        """Audio in messages of so many bytes."""
        field = "audio_content" if self.name == "v1" else "audio"
        return [self.module.StreamingRecognizeRequest({field: pcm[at : at + size]}) for at in range(0, len(pcm), size)]

    @property
    def empty(self) -> Any:
        """A message with nothing in it."""
        return self.module.StreamingRecognizeRequest()

    def asynchronous(self, channel: grpc.aio.Channel) -> Any:
        """The SpeechAsyncClient."""
        return self.module.SpeechAsyncClient(transport=self.transports.SpeechGrpcAsyncIOTransport(channel=channel))

    @contextlib.asynccontextmanager
    async def call(
        self, where: str | grpc.aio.Channel, metadata: Sequence[tuple[str, str]] = ()
    ) -> AsyncIterator[Call]:
        """A call, on a connection of its own unless given a channel; cancelled in the end."""
        channel = open_channel(where) if isinstance(where, str) else where
        call = None
        try:
            client = self.asynchronous(channel)
            call = await client.streaming_recognize(retry=None, timeout=LIMIT, metadata=metadata)
            yield Call(call)
        finally:
            if call is not None:
                call.cancel()
            if isinstance(where, str):
                await channel.close()

    async def converse(
        self, where: str | grpc.aio.Channel, messages: Iterable[Any], metadata: Sequence[tuple[str, str]] = ()
    ) -> Heard:
        """A whole call: the messages, the end of the audio, the answers. Only for calls that end well."""
        async with self.call(where, metadata) as call:
            await call.send(*messages)
            return await call.finish()

    async def refused(self, where: str, *messages: Any, metadata: Sequence[tuple[str, str]] = ()) -> tuple[str, str]:
        """The status of a call that these messages end. Nothing is on its way then, which would hide the status."""
        try:
            async with self.call(where, metadata) as call:
                await call.send(*messages)
                return (await call.rest()).status
        except GoogleAPICallError as exc:  # refused before it was open
            heard = Heard()
            heard.end(exc)
            return heard.status

    def blocking(self, channel: grpc.Channel, messages: Sequence[Any]) -> Heard:
        """A whole call of the blocking client. Not for the event loop's thread."""
        heard = Heard()
        client = self.module.SpeechClient(transport=self.transports.SpeechGrpcTransport(channel=channel))
        try:
            if self.name == "v1":
                config, *audio = messages
                answers = client.streaming_recognize(config.streaming_config, iter(audio), retry=None, timeout=LIMIT)
            else:
                answers = client.streaming_recognize(requests=iter(messages), retry=None, timeout=LIMIT)
            heard.responses.extend(answers)
        except GoogleAPICallError as exc:
            heard.end(exc)
        return heard


V1: Final = Client("v1", speech_v1, transports_v1, "result_end_time", "start_time", "end_time", "speech_event_time")
V2: Final = Client(
    "v2", speech_v2, transports_v2, "result_end_offset", "start_offset", "end_offset", "speech_event_offset"
)


def open_channel(address: str, number: int = 0) -> grpc.aio.Channel:
    """A connection of its own for each number: channels with the same arguments share one."""
    return grpc.aio.insecure_channel(address, options=[("app.number", number)])


@contextlib.contextmanager
def blocking_channel(address: str, credentials: grpc.ChannelCredentials | None = None) -> Iterator[grpc.Channel]:
    """A blocking connection, closed in the end."""
    with (
        grpc.insecure_channel(address) if credentials is None else grpc.secure_channel(address, credentials)
    ) as channel:
        yield channel
