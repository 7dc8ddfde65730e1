"""Forms as a stream: `multipart/form-data` (RFC 7578) in small memory, its files to disk as they come."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from bridge.errors import BridgeError

if TYPE_CHECKING:
    from bridge.api.bodies import Spooled

PARTS: Final = 256
FILES: Final = 4
FIELD_BYTES: Final = 1_048_576
"""Of all fields together: they are kept in memory."""
NAME_CHARS: Final = 200
BOUNDARY_BYTES: Final = 70  # RFC 2046, 5.1.1
_USUAL: Final = re.compile(
    rb'\r\nContent-Disposition: form-data; name="([^"\\%\r\n]*)"(?:; filename="([^"\\%:\r\n]*)")?\r\n'
    rb"(?:Content-Type: ([!-~ ]*)\r\n)?\r\n",
    re.IGNORECASE,
)
"""How nearly all clients begin a part, behind the boundary: name, file name, media type; no escapes in them."""
_TEXT: Final = (b"text/", b"application/json")

# It warns of every malformed form; whoever sent it is told instead.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


class Form:
    """What a form holds. A name with `[]` behind it is the same name: both are written for lists."""

    def __init__(self, fields: Iterable[tuple[str, str]], files: Mapping[str, Spooled]) -> None:
        self._fields: dict[str, list[str]] = {}
        self._files = files
        for name, value in fields:
            self._fields.setdefault(name.removesuffix("[]"), []).append(value)

    def get(self, name: str) -> str | None:
        """The field's first value; None if it is not there."""
        return self._fields.get(name, (None,))[0]

    def all(self, name: str) -> list[str]:
        """The field's values."""
        return list(self._fields.get(name, ()))

    def file(self, name: str) -> Spooled | None:
        """The file that was sent under this name."""
        return self._files.get(name)


class FormReader:
    """Takes a multipart body chunk by chunk. `open_file` makes the place for a file of that (shown) name."""

    def __init__(self, boundary: bytes, open_file: Callable[[str], Spooled], max_file_bytes: int) -> None:
        self._open_file = open_file
        self._max_file_bytes = max_file_bytes
        self._boundary = boundary
        self._fields: list[tuple[str, str]] = []
        self._field_bytes = 0
        self._files: dict[str, Spooled] = {}
        self._ended = False
        self._parts = 0
        # The part that is being read
        self._headers: dict[bytes, bytes] = {}
        self._header = b""
        self._value = b""
        self._name = ""
        self._text: bytearray | None = None
        self._file: Spooled | None = None
        self._arrived: list[tuple[Spooled, bytes]] = []  # for files, of the chunk that was parsed last
        self._parser: MultipartParser | None = None

    async def take(self, chunk: bytes) -> None:
        """Read on.

        Raises:
            BridgeError: `bad_request`, `too_large` or `store_unavailable`.
        """
        try:
            if self._parser is not None or not self._take_whole(chunk):
                self._parser = self._parser or self._make_parser()
                self._parser.write(chunk)
        except FormParserError as exc:
            raise BridgeError("bad_request", f"the form is malformed: {exc}") from None
        for file, data in self._arrived:
            await file.write(data)
            if file.size > self._max_file_bytes:
                raise BridgeError("too_large", f"the file is larger than {self._max_file_bytes} bytes")
        self._arrived.clear()

    async def finish(self) -> Form:
        """The body has ended.

        Raises:
            BridgeError: `bad_request`: it was not whole; or `store_unavailable`.
        """
        if not self._ended:
            raise BridgeError("bad_request", "the form ends before its last boundary")
        for file in self._files.values():
            await file.finish()
        return Form(self._fields, self._files)

    def close(self) -> None:
        """Nothing more is read. The parser knows this reader: what points to each other is freed some day, not now."""
        self._parser = None

    def _make_parser(self) -> MultipartParser:
        return MultipartParser(
            self._boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._open,
                "on_part_data": self._data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def _take_whole(self, body: bytes) -> bool:
        """Whether this is all of a form, as nearly all clients write it: then it is read at once.

        The parser makes some 30 calls for such a form, which cost as much as recognizing a short file does.
        """
        parts = usual_parts(body, self._boundary) if len(self._boundary) <= BOUNDARY_BYTES else None
        if parts is None:
            return False
        for head, end in parts:
            self._begin()
            name, file_name, kind = head.groups()
            self._open_part(name, file_name, kind)
            self._data(body, head.end(), end)
            self._end_part()
        self._end()
        return True

    # What the parser tells

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > PARTS:
            raise BridgeError("bad_request", f"the form has more than {PARTS} parts")
        self._headers = {}

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _open(self) -> None:
        disposition, options = parse_options_header(self._headers.get(b"content-disposition"))
        name = options.get(b"name")
        if disposition != b"form-data" or name is None:
            raise BridgeError("bad_request", "a part of the form has no name")
        self._open_part(name, options.get(b"filename"), self._headers.get(b"content-type"))

    def _open_part(self, name: bytes, file_name: bytes | None, kind: bytes | None) -> None:
        self._name = name.decode("utf-8", "replace")
        self._text = self._file = None
        if file_name is None and (kind is None or kind.lower().startswith(_TEXT)):
            self._text = bytearray()
            return
        if self._name in self._files or len(self._files) >= FILES:
            raise BridgeError("bad_request", f"the form has too many files; a second one is called {self._name[:80]!r}")
        self._file = self._open_file(shown_name((file_name or b"").decode("utf-8", "replace")))
        self._files[self._name] = self._file

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._arrived.append((self._file, data[start:end]))
            return
        self._field_bytes += end - start
        if self._field_bytes > FIELD_BYTES:
            raise BridgeError("bad_request", f"the form's fields are larger than {FIELD_BYTES} bytes")
        if self._text is not None:
            self._text += data[start:end]

    def _end_part(self) -> None:
        if self._text is not None:
            try:
                self._fields.append((self._name, self._text.decode()))
            except UnicodeDecodeError:
                raise BridgeError("bad_request", f"the field {self._name[:80]!r} is not UTF-8") from None

    def _end(self) -> None:
        self._ended = True


def usual_parts(body: bytes, boundary: bytes) -> list[tuple[re.Match[bytes], int]] | None:
    """The head of each part and where its content ends, of a whole form that is written as usual; None of any other."""
    fence = b"--" + boundary
    parts: list[tuple[re.Match[bytes], int]] = []
    at = len(fence)
    if not body.startswith(fence):
        return None
    while head := _USUAL.match(body, at):
        end = body.find(b"\r\n" + fence, head.end())
        if end < 0 or len(parts) == PARTS:
            return None
        parts.append((head, end))
        at = end + 2 + len(fence)
    return parts if body[at:] in {b"--", b"--\r\n"} else None


def boundary_of(content_type: str) -> bytes | None:
    """The boundary of the form that a `Content-Type` announces; None of one that is `url_encoded`.

    Raises:
        BridgeError: `bad_request`: no form.
    """
    kind, options = parse_options_header(content_type)
    if kind == b"application/x-www-form-urlencoded":
        return None
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise BridgeError("bad_request", "send a form: `Content-Type: multipart/form-data; boundary=…`")
    return boundary


def url_encoded(body: bytes) -> Form:
    """A form without files, as `application/x-www-form-urlencoded` writes it.

    Raises:
        BridgeError: `bad_request`.
    """
    try:
        return Form(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=PARTS), {})
    except ValueError as exc:
        raise BridgeError("bad_request", f"the form is malformed: {exc}") from None


def shown_name(name: str) -> str:
    """A client's name for its file, for messages: without folders, bounded, without control characters."""
    name = name.replace("\\", "/").rpartition("/")[2]
    name = "".join(char for char in name if not unicodedata.category(char).startswith("C")).strip()
    return name[-NAME_CHARS:] or "audio"
