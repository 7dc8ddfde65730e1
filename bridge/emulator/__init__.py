"""A local stand-in for Google's streaming recognizer: a real gRPC server for google.cloud.speech v1 and v2.

It enforces the real limits and message order and answers with the real status texts, so that a client can be written
and tested without an account. `server.emulating` runs one in this process, `stt-bridge emulate-google` from a shell.
"""

import os

# As in `backends.google`, whichever is imported first: gRPC's core writes of each lost connection otherwise.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
