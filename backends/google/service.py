"""What both drivers share beside the messages: the account, the pool of clients, the quota and the capabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from backends.base import Backend, BackendError, Capabilities, Fault, RecognitionConfig
from backends.google.api import API
from backends.google.channels import Pool
from backends.google.clients import Account
from backends.google.options import GoogleOptions, refused_language
from backends.google.quota import Quota
from backends.google.results import Transcript

DEADLINE_MARGIN: Final = 30.0
"""Seconds that a call may last beyond the longest stream: a last guard, if nothing else ends it."""


class Service:
    """One per backend. `make` makes a client for the account on the channel with the given index."""

    def __init__(self, options: GoogleOptions, make: Callable[[GoogleOptions, Account, int], Any]) -> None:
        self.options = options
        self.api = API[options.api]
        self.deadline = options.stream_seconds + DEADLINE_MARGIN
        self.quota = Quota(options.requests_per_minute)
        self._account: Account | None = None
        self.pool: Pool[Any] = Pool(
            lambda index: make(options, self.account, index),
            streams_per_connection=options.streams_per_connection,
            max_streams=options.max_streams,
        )

    @property
    def account(self) -> Account:
        """Who calls; known after `find_account`."""
        if self._account is None:
            raise BackendError("the backend is not loaded")
        return self._account

    def find_account(self) -> None:
        """Look for credentials. May wait for the network; see `Account` for what it raises."""
        self._account = Account(self.options)

    def open(self, config: RecognitionConfig) -> tuple[Any, Transcript]:
        """What a new stream begins with: its first message, and its transcript. Counts against the quota.

        Raises:
            BackendError: `language`, or `overloaded`.
        """
        if reason := refused_language(self.options, config.language):
            raise BackendError(reason, code="language", fault=Fault.CLIENT)
        self.quota.take()
        first = self.api.first_request(self.options, config, self.account.project)
        return first, Transcript(self.api.fields, config, diarization=self.options.diarization)


class GoogleEngine(Backend):
    """What both drivers are. `make`: see `Service`."""

    Options = GoogleOptions

    def __init__(self, options: GoogleOptions | None, make: Callable[[GoogleOptions, Account, int], Any]) -> None:
        options = options or GoogleOptions()
        super().__init__(options)
        self._service = Service(options, make)
        self._capabilities = Capabilities(
            word_times=options.word_times,
            confidences=True,
            phrases=True,
            max_stream_seconds=options.stream_seconds,
            max_streams=options.max_streams,
            idle_seconds=options.idle_seconds,
            answer_seconds=options.answer_seconds,
            metered=True,
        )

    @classmethod
    def settings_name(cls) -> str:
        """Both read the same variables."""
        return "google"

    @property
    def capabilities(self) -> Capabilities:
        """What Google can do under these options."""
        return self._capabilities

    def refusal(self) -> str | None:
        """The quota of requests, when it is nearly used up."""
        return self._service.quota.refusal()
