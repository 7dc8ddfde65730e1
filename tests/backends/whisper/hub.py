"""A Hugging Face Hub of the tests' own, on localhost, and `python -m tests.backends.whisper.hub`: who asks it.

huggingface_hub reads the address when it is imported, so the models are looked for in a process of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

COMMIT: Final = "a" * 40
FILES: Final = ("config.json", "preprocessor_config.json", "model.bin", "tokenizer.json", "vocabulary.json")
OTHER: Final = "onnx/model.onnx"
"""What no Whisper of CTranslate2 needs: it must not be asked for."""
STATUSES: Final = {"nobody/there": (404, "RepoNotFound"), "not/public": (401, "GatedRepo"), "out/of-order": (501, "")}


class Hub:
    """Serves the files of a folder as every repository that has no status of its own."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        """Paths of all requests."""
        self.breaks_off = False
        """Whether the answer with the model ends in its middle."""
        self._closed = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def _answer(self, *, body: bool) -> None:
                if hub._closed:  # a connection that was kept alive
                    self.close_connection = True
                    return
                path = self.path.split("?")[0]
                hub.asked.append(path)
                for repository, (status, code) in STATUSES.items():
                    if repository in path:
                        self._send(status, b"{}", {"X-Error-Code": code}, body=body)
                        return
                if "/resolve/" in path:
                    data = (folder / path.rsplit("/", 1)[1]).read_bytes()
                    digest = hashlib.sha1(data, usedforsecurity=False).hexdigest()
                    headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT}
                    self._send(200, data, headers, body=body, breaks_off=hub.breaks_off and "model.bin" in path)
                elif path.startswith("/api/models/"):
                    listed = [{"rfilename": name, "size": (folder / name).stat().st_size} for name in FILES]
                    tree = [
                        {"type": "file", "path": each["rfilename"], "size": each["size"], "oid": "0" * 40}
                        for each in listed
                    ]
                    info = {"id": "o/m", "sha": COMMIT, "siblings": [*listed, {"rfilename": OTHER, "size": 1}]}
                    answer = json.dumps(tree if "/tree/" in path else info).encode()
                    self._send(200, answer, {"Content-Type": "application/json"}, body=body)
                else:
                    self._send(404, b"", {}, body=body)

            def _send(
                self, status: int, data: bytes, headers: dict[str, str], *, body: bool, breaks_off: bool = False
            ) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if body:
                    self.wfile.write(data[: len(data) // 2] if breaks_off else data)
                if breaks_off:
                    self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """From now on nobody answers there."""
        self._closed = True
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def hub(folder: Path) -> Iterator[Hub]:
    """One that runs in a thread."""
    made = Hub(folder)
    thread = threading.Thread(target=made._server.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.close()
        thread.join()


def main() -> None:
    """Looks for one model after another: a JSON object a line in, with `find`'s arguments, one out."""
    from backends.base import BackendError
    from backends.whisper import store

    for line in sys.stdin:
        asked = json.loads(line)
        said: list[str] = []
        answer: dict[str, Any] = {"said": said}
        try:
            found = store.find(asked["name"], Path(asked["folder"]), said.append, offline=asked["offline"])
            answer |= {"found": str(found), "size": store.size(found)}
        except BackendError as exc:
            answer |= {"code": exc.code, "fault": exc.fault.value, "message": str(exc)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
