"""A tiny Whisper of the project's own, the speech it is tested with, and the tool that trains it."""
