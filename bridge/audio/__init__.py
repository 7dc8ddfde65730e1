"""Bytes of any supported format to PCM16 mono at the engine's rate."""
