"""The chunked transfer coding (RFC 9112 section 7.1), strict: bytes in, body and trailers out."""

from __future__ import annotations

import re
from typing import Final

from edged.downstream.fields import BadMessage, parse_trailers
from edged.downstream.limits import Limits
from edged.messages import Headers

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_SIZE_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[ \t]*%b(?:[ \t]*=[ \t]*(?:%b|%b))?)*"
    % (_TOKEN, _TOKEN, _QUOTED)
)
_PLAIN_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")
_LINE_BYTES: Final = 1024
_OVERHEAD_BYTES: Final = 65536

_REMEMBERED: Final = 4096

_SIZE: Final = 0
_DATA: Final = 1
_DATA_END: Final = 2
_TRAILERS: Final = 3
_DONE: Final = 4


class _Sizes(dict[bytes, int]):
    """Chunk sizes by their plain size lines; 0 for any other line."""

    def __missing__(self, line: bytes) -> int:
        if not _PLAIN_SIZE.fullmatch(line):
            return 0
        size = int(line, 16)
        if len(self) < _REMEMBERED:
            self[line] = size
        return size


_size_of: Final = _Sizes().__getitem__


class ChunkedDecoder:
    """Decodes one body. ``failed`` is set at the first defect; what came before it stands.

    The result does not depend on how the input was cut. Framing may exceed the body it carries by
    64 KiB at most (a one-byte chunk with a long extension is an attack, CVE-2023-39326).
    """

    __slots__ = (
        "_left",
        "_limits",
        "_line",
        "_overhead",
        "_state",
        "_trailer_lines",
        "done",
        "failed",
        "trailers",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._state = _SIZE
        self._left = 0
        self._line = b""
        self._overhead = 0
        self._trailer_lines: list[bytes] = []
        self.done = False
        """The last chunk and the trailer section are complete."""
        self.failed: BadMessage | None = None
        self.trailers: Headers | None = None

    def whole(self, data: bytes) -> bytes:
        """The body bytes of ``data`` if it is exactly one more chunk, as events of a stream are.

        Otherwise nothing, and nothing has happened: `feed` it.
        """
        if self._state != _SIZE or self._line or self._overhead:
            return b""
        end = data.find(b"\r\n", 0, 10)
        if _size_of(data[:end]) != len(data) - end - 4 or not data.endswith(b"\r\n"):
            return b""
        return data[end + 2 : -2]

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Body bytes, and what follows the body once it is `done`."""
        if self._state == _DATA and self._left > len(data):
            self._left -= len(data)
            return data, b""
        if self._line:
            data = self._line + data
            self._line = b""
        pieces: list[bytes] = []
        pos = 0
        if self._state == _SIZE:
            pos = self._take_whole(data, pieces)
            if pos == len(data):
                return pieces[0] if len(pieces) == 1 else b"".join(pieces), b""
        try:
            while self._state != _DONE:
                ahead = self._step(data, pos, pieces)
                if ahead < 0:
                    self._line = data[pos:]
                    return b"".join(pieces), b""
                pos = ahead
        except BadMessage as error:
            self.failed = error
            return b"".join(pieces), b""
        return b"".join(pieces), data[pos:]

    def _take_whole(self, data: bytes, pieces: list[bytes]) -> int:
        """Take the complete chunks with plain size lines that ``data`` begins with.

        The short way of `_step`, which reads what is left and finds every defect.
        """
        pos = 0
        while (end := data.find(b"\r\n", pos, pos + 10)) > 0 and (size := _size_of(data[pos:end])):
            stop = end + 2 + size
            if data[stop : stop + 2] != b"\r\n":
                break
            pieces.append(data[end + 2 : stop])
            if self._overhead:
                self._overhead = max(0, self._overhead + end - pos - 12 - 2 * size)
            pos = stop + 2
        return pos

    def _step(self, data: bytes, pos: int, pieces: list[bytes]) -> int:
        """Take one element from ``pos``; the new position, or -1 when it is not complete."""
        if self._state == _SIZE:
            return self._take_size(data, pos)
        if self._state == _DATA:
            end = min(pos + self._left, len(data))
            if end == pos:
                return -1
            pieces.append(data[pos:end])
            self._left -= end - pos
            if not self._left:
                self._state = _DATA_END
            return end
        if self._state == _DATA_END:
            if not b"\r\n".startswith(data[pos : pos + 2]):
                raise BadMessage(400, "bad_chunk", "A chunk does not end where its size says.")
            if len(data) < pos + 2:
                return -1
            self._state = _SIZE
            return pos + 2
        return self._take_trailers(data, pos)

    def _take_size(self, data: bytes, pos: int) -> int:
        end = data.find(b"\n", pos, pos + _LINE_BYTES)
        if end < 0:
            if len(data) - pos >= _LINE_BYTES:
                raise BadMessage(400, "bad_chunk", "A chunk size line is too long.")
            return -1
        match = _SIZE_LINE.fullmatch(data, pos, end - 1) if end > pos else None
        if match is None or data[end - 1] != 13:
            raise BadMessage(400, "bad_chunk", "A chunk size line is not valid.")
        size = int(match[1], 16)
        self._overhead = max(0, self._overhead + end + 3 - pos - 16 - 2 * size)
        if self._overhead > _OVERHEAD_BYTES:
            raise BadMessage(400, "bad_chunk", "The body consists of chunk framing.")
        self._left = size
        self._state = _DATA if size else _TRAILERS
        return end + 1

    def _take_trailers(self, data: bytes, pos: int) -> int:
        limit = self._limits.header_bytes
        end = data.find(b"\n", pos)
        size = self._left + (len(data) if end < 0 else end) - pos
        if size >= limit:
            raise BadMessage(431, "headers_too_large", "The trailer section is too large.")
        if end < 0:
            return -1
        if end == pos or data[end - 1] != 13:
            raise BadMessage(400, "bad_control", "A trailer has a bare LF.")
        self._left = size + 1
        if end - pos > 1:
            self._trailer_lines.append(data[pos : end - 1])
        else:
            if self._trailer_lines:
                block = b"\r\n".join(self._trailer_lines)
                self.trailers = parse_trailers(block, self._limits) or None
            self._state = _DONE
            self.done = True
        return end + 1
