"""Jobs to test with."""

from __future__ import annotations

import itertools
import secrets
import time

from backends.base import Word
from bridge.jobs.models import JobOptions, NewJob, Outcome, Terms
from bridge.transcript import Segment

BACKEND = "scripted"
_clock = itertools.count(1)


def name() -> str:
    return secrets.token_hex(16)


def terms(owner: str = "key-1", *, webhook: str | None = None, fingerprint: str = "", backend: str = BACKEND) -> Terms:
    """A job's, each made a little later than the one before."""
    order = NewJob(
        owner=owner,
        blob=f"files/{name()}",
        size=1_234,
        sha256="ab" * 32,
        name="talk.flac",
        options=JobOptions(language="en-US", phrases=("bridge", "gateway")),
        webhook=webhook,
        fingerprint=fingerprint,
    )
    return Terms(order=order, backend=backend, created=time.time() - 1_000 + next(_clock) / 1_000)


def spoken(text: str = "hello") -> Outcome:
    return Outcome(segments=(Segment(text, 0.0, 1.5, (Word(text, 0.25, 1.25, 0.75, None),), 0.5),))
