"""A local stand-in for Google's streaming recognizer: a real gRPC server for google.cloud.speech v1 and v2.

It enforces the real limits and message order and answers with the real status texts, so that a client can be written
and tested without an account. `server.emulating` runs one in this process, `stt-bridge emulate-google` from a shell.
"""
