"""Whether a certificate can be served, asked before anything listens."""

from __future__ import annotations

import ssl
from pathlib import Path


def unusable(certificate: Path, key: Path) -> str | None:
    """Why these files (PEM) hold no certificate chain with its key; None: they do."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as exc:  # ssl.SSLError is one
        return exc.strerror or str(exc)
    return None
