"""Moves frames between a socket, a codec and a session."""
