"""Writing HTTP/1.1 responses (RFC 9112): heads as bytes, and one exchange's `Responder`."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from edged.downstream.base import RequestSink
from edged.downstream.sockets import client_certificate
from edged.messages import Headers, RequestHead, ResponseHead, header

if TYPE_CHECKING:
    from edged.downstream.h1 import H1Connection
    from edged.downstream.raw import RawConnection

_REASONS = {s.value: s.phrase.encode() for s in HTTPStatus}
_STATUS_LINES = {s: b"HTTP/1.1 %d %b" % (s, r) for s, r in _REASONS.items()}
_WITH_BODY = [s for s in _REASONS if s >= 200 and s not in (204, 304)]
_PLAIN_LINES: Final = {(s, r): _STATUS_LINES[s] for s in _WITH_BODY for r in (b"", _REASONS[s])}
"""Status lines by status and reason, of responses whose length alone says how they end."""
_HARMLESS: Final = bytes(set(range(256)) - set(b"\r\n\0"))
_field_line: Final = b": ".join
_join_lines: Final = b"\r\n".join
_LARGE: Final = 32768

_UNSTARTED: Final = -5
_OVER: Final = -4
_CHUNKED: Final = -3
_UNTIL_CLOSE: Final = -2
_RAW: Final = -1
"""What stands in `H1Exchange.left` where no number of bytes is owed."""

_NO_REQUEST = RequestHead(b"", b"", b"", b"", [])


class UnsafeHead(ValueError):
    """A field would break the framing of the head (a CR, LF or NUL in it)."""


def status_line(status: int, reason: bytes = b"") -> bytes:
    """The first line of a response. A reason with control characters is replaced."""
    if not reason or reason == _REASONS.get(status):
        line = _STATUS_LINES.get(status)
        return line if line is not None else b"HTTP/1.1 %d " % status
    if min(reason) < 32:
        return b"HTTP/1.1 %d " % status
    return b"HTTP/1.1 %d %b" % (status, reason)


def section(line: bytes, headers: Headers, *more: bytes) -> bytes:
    """A head or trailer: ``line``, the fields, ``more`` field lines. Raises `UnsafeHead`."""
    lines = [line, *map(_field_line, headers), *more, b"", b""]
    block = _join_lines(lines)
    if block.translate(None, _HARMLESS) != b"\r\n" * (len(lines) - 1):
        raise UnsafeHead("a response field holds a CR, LF or NUL")
    return block


class H1Exchange:
    """One request on an HTTP/1.1 connection: the `Responder` given to the handler.

    Invariant: only the connection's current exchange writes; once ``done`` every call is ignored,
    so that a late handler can't touch the response after its own.
    """

    __slots__ = (
        "awaits_continue",
        "client",
        "connection",
        "done",
        "left",
        "plain",
        "request",
        "sink",
        "started",
        "tunnel",
    )

    def __init__(
        self, connection: H1Connection, request: RequestHead = _NO_REQUEST, plain: bool = False
    ) -> None:
        self.connection = connection
        self.client = connection.client
        self.request = request
        self.plain = plain
        """Nothing but the response's own status and length decides how it is framed."""
        self.awaits_continue = False
        self.sink: RequestSink | None = None
        self.started = False
        self.done = False
        self.left = _UNSTARTED
        """Body bytes still owed, or where this is no number of bytes, a negative constant."""
        self.tunnel: RawConnection | None = None

    @property
    def certificate(self) -> bytes | None:
        """The client's certificate."""
        return client_certificate(self.connection.transport)

    def informational(self, status: int, headers: Headers) -> None:
        """Write a 1xx head, unless the client speaks HTTP/1.0, which has none."""
        if self.done or self.started or not 100 <= status < 200 or status == 101:
            return
        if self.request.version == b"1.0":
            return
        if status == 100:
            self.awaits_continue = False
        try:
            self.connection.write_now(section(status_line(status), headers))
        except UnsafeHead:
            self.abort()

    def head(self, head: ResponseHead) -> None:
        """Queue the final head; it leaves with the first body bytes or at the end of this turn."""
        if self.left != _UNSTARTED:
            return
        length = head.body_length
        connection = self.connection
        if self.plain and length is not None and connection.keep_alive:
            line = _PLAIN_LINES.get((head.status, head.reason))
            if line is not None:
                headers = head.headers
                last = b"content-length: %d\r\n\r\n" % length
                block = _join_lines([line, *map(_field_line, headers), last])
                if block.translate(None, _HARMLESS) != b"\r\n" * (len(headers) + 3):
                    self.abort()
                    return
                self.started = True
                self.left = length
                connection.hold(block)
                return
        try:
            self._head(head)
        except UnsafeHead:
            self.abort()

    def _head(self, head: ResponseHead) -> None:
        """`head` where more than status and length is to be minded. Raises `UnsafeHead`."""
        connection, request, status = self.connection, self.request, head.status
        line = status_line(status, head.reason)
        if (status == 101 and request.upgrade is not None) or (
            request.method == b"CONNECT" and 200 <= status < 300
        ):
            block = section(line, head.headers, *self._switch(head))
            self.started = True
            self.left = _RAW
            connection.write_now(block)
            self.tunnel = connection.become_raw(self)
            return
        left, last = self._framing(status, head.body_length, head.declared_length)
        if not connection.keep_alive_after(self):
            last.append(b"connection: close")
        elif request.version == b"1.0":
            last.append(b"connection: keep-alive")
        block = section(line, head.headers, *last)
        self.started = True
        self.left = left
        if status < 200:  # a switch that nobody asked for
            self.abort()
        else:
            connection.hold(block)

    def _switch(self, head: ResponseHead) -> list[bytes]:
        """The last lines of a head that switches; the protocol is named unless the origin did."""
        if head.status != 101:
            return []
        lines = [b"connection: upgrade"]
        if header(head.headers, b"upgrade") is None:
            lines.append(b"upgrade: %b" % (self.request.upgrade or b""))
        return lines

    def _framing(
        self, status: int, length: int | None, declared: int | None
    ) -> tuple[int, list[bytes]]:
        """RFC 9112 section 6: how this response's body ends, and the field that says so."""
        if self.request.method == b"HEAD" or status == 304:
            if declared is None:
                declared = length or None
            return 0, [] if declared is None else [b"content-length: %d" % declared]
        if status == 204:
            return 0, []
        if length is not None:
            return length, [b"content-length: %d" % length]
        if self.request.version == b"1.0":
            self.connection.keep_alive = False
            return _UNTIL_CLOSE, []
        return _CHUNKED, [b"transfer-encoding: chunked"]

    def data(self, data: bytes) -> None:
        """Write body bytes; with the head, if that still waits."""
        size = len(data)
        left = self.left - size
        if left >= 0 and size:
            self.left = left
            self.connection.write_now(data)
        elif self.left == _CHUNKED and 0 < size < _LARGE:
            self.connection.write_now(b"%x\r\n%b\r\n" % (size, data))
        else:
            self._data(data)

    def _data(self, data: bytes) -> None:
        """`data` where it is large, not owed, or ends otherwise than by number."""
        left = self.left
        if left == _OVER or not data:
            return
        if left == _CHUNKED:
            self.connection.write_many((b"%x\r\n" % len(data), data, b"\r\n"))
        elif left == _UNTIL_CLOSE:
            self.connection.write_now(data)
        elif self.tunnel is not None:
            self.tunnel.write(data)
        elif self.request.method != b"HEAD":
            self.abort()

    def end(self, trailers: Headers | None = None) -> None:
        """End the body; in raw mode close this direction. A body cut short is an abort."""
        if self.left:
            self._end(trailers)
            return
        self.done = True
        self.left = _OVER
        self.sink = None
        self.connection.response_done()

    def _end(self, trailers: Headers | None) -> None:
        """`end` where the end isn't marked by the number of bytes."""
        left = self.left
        if left == _OVER:
            return
        if self.tunnel is not None:
            self.tunnel.half_close()
            return
        if left == _CHUNKED:
            try:
                self.connection.hold(section(b"0", trailers or []))
            except UnsafeHead:
                self.abort()
                return
        elif left != _UNTIL_CLOSE:
            self.abort()
            return
        self.over()
        self.connection.response_done()

    def abort(self) -> None:
        """Cut the connection so that the response can't be taken for complete.

        One whose every byte was written is complete, whatever its origin was still to say: the
        client may have sent its next request on the connection already.
        """
        if self.done:
            return
        if self.started and self.left == 0:
            self.end()
            return
        hard = self.left == _UNTIL_CLOSE
        self.over()
        if self.tunnel is not None:
            self.tunnel.cut()
        else:
            self.connection.cut(self, hard=hard)

    def over(self) -> None:
        """Nothing follows: let go of the sink, which holds this as its responder."""
        self.done = True
        self.left = _OVER
        self.sink = None

    def pause_body(self) -> None:
        """Stop reading from the client."""
        if not self.done:
            (self.tunnel or self.connection).pause_body()

    def resume_body(self) -> None:
        """Read on; the first time, tell a client that waits to go ahead."""
        if self.done:
            return
        if self.awaits_continue and not self.started:
            self.informational(100, [])
            self.connection.open_window()
        (self.tunnel or self.connection).resume_body()
