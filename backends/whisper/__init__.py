"""Whisper on this machine, by faster-whisper: streaming, guarded, batched over sessions. See docs/backends.md."""
