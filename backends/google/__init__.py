"""Google Cloud Speech-to-Text, v1 and v2: one asynchronous driver, one for threads, and what both share."""

import os

# gRPC's core writes lines of its own to standard error, past the server's log: each connection that is lost, by
# default. It reads the variable when it is first imported. What matters is logged by the session.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
