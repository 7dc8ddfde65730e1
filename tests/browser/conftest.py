"""Without playwright there is nothing here to run; `make test-web` installs it, and fails where there is no browser."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("playwright") else ["*.py"]
