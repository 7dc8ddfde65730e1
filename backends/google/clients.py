"""Credentials, and the SDK's clients: each on a channel of its own."""

from __future__ import annotations

import warnings
from typing import Any, Final

import google.auth
import google.auth.exceptions
import grpc
import grpc.aio
from google.auth.credentials import AnonymousCredentials

from backends.base import BackendError, Fault
from backends.google.api import API
from backends.google.channels import channel_options
from backends.google.options import GoogleOptions

_SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)
_HELP: Final = (
    "run `gcloud auth application-default login`, or name a credentials file in GOOGLE_APPLICATION_CREDENTIALS or "
    "STT_GOOGLE_CREDENTIALS; to try it without an account, run `stt-bridge emulate-google` and set STT_GOOGLE_ENDPOINT"
)
_MESSAGES: Final = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


class Account:
    """Who calls the API, and for which project. Looking for credentials may wait for the network: not on the loop."""

    def __init__(self, options: GoogleOptions) -> None:
        """Find the credentials.

        Raises:
            BackendError: there are none, or no project is known; the text says what would help.
        """
        self.credentials: Any
        found: str | None = None
        if options.address.loopback:
            # No token leaves in clear text, and an emulator wants none.
            self.credentials = AnonymousCredentials()  # type: ignore[no-untyped-call]
        else:
            self.credentials, found = _find(options)
        project = options.project or options.recognizer_project or found
        if project is None and options.address.loopback:
            project = "local"
        if project is None and options.api == "v2":
            raise BackendError(
                "the credentials name no project: set STT_GOOGLE_PROJECT", code="misconfigured", fault=Fault.OPERATOR
            )
        self.project = project or ""


def async_client(options: GoogleOptions, account: Account, index: int) -> Any:
    """A client for the event loop that runs, on the channel with this index."""
    api, address = API[options.api], options.address
    extra = channel_options(index, loopback=address.loopback)
    if address.plaintext:
        channel = grpc.aio.insecure_channel(address.target, [*_MESSAGES, *extra])
        return api.async_client(transport=api.async_transport(channel=channel))

    def secure(host: str, **arguments: Any) -> Any:
        return api.async_transport.create_channel(host, **arguments | {"options": [*arguments["options"], *extra]})

    transport = api.async_transport(host=address.target, credentials=account.credentials, channel=secure)
    return api.async_client(transport=transport)


def blocking_client(options: GoogleOptions, account: Account, index: int) -> Any:
    """A client for threads, on the channel with this index."""
    api, address = API[options.api], options.address
    extra = channel_options(index, loopback=address.loopback)
    if address.plaintext:
        channel = grpc.insecure_channel(address.target, [*_MESSAGES, *extra])
        return api.client(transport=api.transport(channel=channel))

    def secure(host: str, **arguments: Any) -> Any:
        return api.transport.create_channel(host, **arguments | {"options": [*arguments["options"], *extra]})

    return api.client(transport=api.transport(host=address.target, credentials=account.credentials, channel=secure))


def _find(options: GoogleOptions) -> tuple[Any, str | None]:
    try:
        if options.credentials is None:
            credentials, project = google.auth.default(scopes=_SCOPES)
            return credentials, project
        with warnings.catch_warnings():
            # It warns of credentials files from strangers; this one is the operator's own.
            warnings.simplefilter("ignore", DeprecationWarning)
            credentials, project = google.auth.load_credentials_from_file(  # type: ignore[no-untyped-call]
                str(options.credentials), scopes=_SCOPES
            )
            return credentials, project
    except google.auth.exceptions.DefaultCredentialsError as exc:
        what = (
            "no Google credentials were found"
            if options.credentials is None
            else "STT_GOOGLE_CREDENTIALS: " + str(exc.args[0] if exc.args else "cannot be read")
        )
        raise BackendError(f"{what}: {_HELP}", code="unauthenticated", fault=Fault.OPERATOR) from exc
    except (google.auth.exceptions.GoogleAuthError, OSError) as exc:
        raise BackendError(
            f"the Google credentials cannot be used ({type(exc).__name__}): {_HELP}",
            code="unauthenticated",
            fault=Fault.OPERATOR,
        ) from exc
