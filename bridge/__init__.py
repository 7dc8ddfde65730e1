"""The server between a microphone and a speech recogniser."""

__version__ = "0.1.0"
