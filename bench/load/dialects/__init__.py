"""What the load generator speaks: one wire protocol in each file, without I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from bench.load.dialects.base import Dialect
from bench.load.dialects.native import Native, NativeBase64
from bench.load.dialects.silent import Silent, SilentBase64
from bench.load.dialects.whisper_live import WhisperLive
from bench.load.dialects.whisperlivekit import WhisperLiveKit
from bench.load.dialects.wyoming import Wyoming

DIALECTS: Final[Mapping[str, type[Dialect]]] = {
    d.name: d for d in (Native, NativeBase64, Silent, SilentBase64, WhisperLive, WhisperLiveKit, Wyoming)
}
"""By the name that `--protocol` takes."""
