"""What the load generator speaks: one wire protocol in each file, without I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from bench.load.dialects.base import Dialect
from bench.load.dialects.native import Native, NativeBase64
from bench.load.dialects.silent import Silent, SilentBase64

DIALECTS: Final[Mapping[str, type[Dialect]]] = {d.name: d for d in (Native, NativeBase64, Silent, SilentBase64)}
"""By the name that `--protocol` takes."""
