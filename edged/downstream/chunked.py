"""The chunked transfer coding (RFC 9112 section 7.1), strict: bytes in, body and trailers out."""

from __future__ import annotations

import re

from edged.downstream.fields import BadMessage, parse_trailers
from edged.downstream.limits import Limits
from edged.messages import Headers

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_SIZE_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[ \t]*%b(?:[ \t]*=[ \t]*(?:%b|%b))?)*"
    % (_TOKEN, _TOKEN, _QUOTED)
)
_LINE_BYTES = 1024
_OVERHEAD_BYTES = 65536

_SIZE, _DATA, _DATA_END, _TRAILERS, _DONE = range(5)


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
        self.failed: BadMessage | None = None
        self.trailers: Headers | None = None

    @property
    def done(self) -> bool:
        """Whether the last chunk and the trailer section are complete."""
        return self._state == _DONE

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
        return end + 1
