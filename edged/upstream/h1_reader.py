"""Reads the response of one HTTP/1.1 exchange (RFC 9112 sections 4 to 7): bytes in, events out.

What ends a response: its length, its last chunk, or, without either, an orderly close. What is
ambiguous is refused (`edged.upstream.h1_head`), and so is a transfer coding other than
``chunked``. What comes out does not depend on how the input was cut.
"""

from __future__ import annotations

import enum
from typing import Final

from edged.chunked import ChunkedDecoder
from edged.downstream.limits import Limits
from edged.messages import Headers, ResponseHead
from edged.upstream.base import StreamEvents
from edged.upstream.h1_head import (
    Framing,
    Malformed,
    Special,
    StatusLine,
    field_of,
    first_defect,
    keeps_alive,
    read_line,
    read_special,
    read_status_line,
    special_of,
    without,
)

HEAD_BYTES_MAX: Final = 1 << 18
"""All heads of one response together, interim ones included."""
_TRAILER_LIMITS: Final = Limits()


class Progress(enum.Enum):
    """What `ResponseReader.feed` came to."""

    MORE = "more"
    COMPLETE = "complete"
    SWITCHED = "switched"
    """101: all that follows is raw bytes, which go on being handed over as data."""
    BROKEN = "broken"
    """``fault`` says why. Nothing may be read from the connection any more."""


_MORE: Final = Progress.MORE
_COMPLETE: Final = Progress.COMPLETE


class ResponseReader:
    """The response side of one exchange.

    The state of its beginning stands in the class: most responses arrive whole, in one piece, and
    end without having changed more of it than ``head_done``.
    """

    reused = True
    """The connection had carried an exchange before."""
    head_request = False
    """The request was HEAD: no body follows, whatever the head says."""
    upgrade = False
    """The request asked for another protocol."""
    stopped = False
    """Tell the events object nothing any more."""
    head_done = False
    """The final head was handed over."""
    until_close = False
    """Only the end of the connection ends the body."""
    reusable = True
    """The peer lets the connection serve again, and not one byte came after the response."""
    trailers: Headers | None = None
    fault = ""
    rest = b""
    """After SWITCHED: the first raw bytes."""
    _held: bytearray | None = None
    """An incomplete head."""
    _head_room = HEAD_BYTES_MAX - 4
    _missing: int | None = None
    """Body bytes to come; ``None``: chunked, until the close, or raw."""
    _chunks: ChunkedDecoder | None = None

    def __init__(self, events: StreamEvents) -> None:
        self.events = events

    def advertised(self, value: bytes) -> None:
        """The origin sent this Alt-Svc value; for those who want to know."""

    def introduced(self, lines: list[bytes]) -> None:
        """The field lines of the first head on a connection; for those who want to know."""

    def feed(self, data: bytes) -> Progress:
        """Read ``data``; events are called inside. Raises only what an events object raised.

        Not to be called again once the progress was COMPLETE or BROKEN.
        """
        while not self.head_done:
            if self._held is not None and not (data := self._gather(self._held, data)):
                return Progress.BROKEN if self.fault else _MORE
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._held = bytearray()
                continue
            lines = data[:end].split(b"\r\n")
            try:
                start = read_status_line(lines.pop(0))
                read = list(map(read_line, lines))
            except Malformed as error:
                return self._broken(str(error))
            if not self.reused:
                self.introduced(lines)
            if end > self._head_room:
                return self._broken("the head is too large")
            headers = list(filter(None, map(field_of, read)))
            special = list(filter(None, map(special_of, read)))
            data = data[end + 4 :]
            if (
                start.plain
                and len(special) == 1
                and (length := special[0][2]) > 0
                and not self.head_request
            ):
                return self._framed(start, headers, length, data)
            progress = self._respond(start, headers, special, lines)
            if progress is not _MORE:
                if data and progress is _COMPLETE:
                    self.reusable = False
                self.rest = data
                return progress
            self._head_room -= end + 4
            if not data or self.stopped:
                return _MORE
        chunks = self._chunks
        if chunks is None:
            return self._body(data)
        if body := chunks.whole(data):
            self.events.data(body)
            return _MORE
        return self._decode(chunks, data)

    def _framed(self, start: StatusLine, headers: Headers, length: int, data: bytes) -> Progress:
        """The common case: a body, as long as it is said to be, and nothing else is said."""
        status, reason, version, _ = start
        self.head_done = True
        self.events.head(ResponseHead(status, headers, length, reason=reason, version=version))
        if len(data) == length:
            if not self.stopped:
                self.events.data(data)
            return _COMPLETE
        self._missing = length
        if not data or self.stopped:
            return _MORE
        return self._body(data)

    def _gather(self, held: bytearray, data: bytes) -> bytes:
        """Add ``data`` to an incomplete head: all of it once it is complete, else nothing."""
        seen = max(len(held) - 3, 0)
        held += data
        if held.find(b"\r\n\r\n", seen) >= 0:
            self._held = None
            return bytes(held)
        defect = first_defect(held, seen)
        if not defect and len(held) - 4 > self._head_room:
            defect = "the head is too large"
        if defect:
            self._broken(defect)
        return b""

    def _broken(self, why: str) -> Progress:
        self.fault = f"malformed response: {why}"
        return Progress.BROKEN

    def _respond(
        self, start: StatusLine, headers: Headers, special: list[Special], lines: list[bytes]
    ) -> Progress:
        """Any head: decide the framing (RFC 9112 section 6.3) and hand it over."""
        try:
            framing = read_special(special)
        except Malformed as error:
            return self._broken(str(error))
        status, reason, version, _ = start
        if framing.options:
            headers = without(headers, framing.options)
        if status == 101:
            if not self._switches(framing):
                return self._broken("101 without being asked to switch protocols")
            headers.append((b"upgrade", framing.protocol or b""))
        bodyless = self.head_request or status < 200 or status in (204, 304)
        if framing.coded and not bodyless and (not framing.chunked or version == b"1.0"):
            return self._broken("a transfer coding other than chunked")
        for value in framing.alternatives:
            self.advertised(value)
        if status < 200 and status != 101:
            self.events.informational(status, headers)
            return _MORE
        self.head_done = True
        self.reusable = keeps_alive(lines) if version == b"1.0" else not framing.closes
        length = 0 if bodyless else framing.length
        if length is None:
            if framing.chunked:
                self._chunks = ChunkedDecoder(_TRAILER_LIMITS)
            self.until_close = not framing.chunked
        self._missing = length
        declared = framing.length if length == 0 else None
        self.events.head(
            ResponseHead(
                status, headers, length, reason=reason, version=version, declared_length=declared
            )
        )
        if status == 101:
            self._missing = None
            return Progress.SWITCHED
        return _COMPLETE if length == 0 else _MORE

    def _switches(self, framing: Framing) -> bool:
        """Whether a 101 is what was asked for (RFC 9110 section 7.8)."""
        return self.upgrade and framing.protocol is not None and b"upgrade" in framing.options

    def _body(self, data: bytes) -> Progress:
        """Body bytes without a transfer coding, or raw ones."""
        missing = self._missing
        if missing is None:
            self.events.data(data)
            return _MORE
        size = len(data)
        if size < missing:
            self._missing = missing - size
            self.events.data(data)
            return _MORE
        if size > missing:
            self.reusable = False
            data = data[:missing]
        self.events.data(data)
        return _COMPLETE

    def _decode(self, chunks: ChunkedDecoder, data: bytes) -> Progress:
        body, rest = chunks.feed(data)
        if body:
            self.events.data(body)
        if self.stopped:
            return _MORE
        if chunks.failed is not None:
            return self._broken("the chunked coding of the body is not valid")
        if not chunks.done:
            return _MORE
        if rest:
            self.reusable = False
        self.trailers = [f for f in chunks.trailers or () if f[0] != b"alt-svc"] or None
        return _COMPLETE
