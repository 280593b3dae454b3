"""Writing HTTP/1.1 responses (RFC 9112): heads as bytes, and one exchange's `Responder`."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from edged.downstream.base import RequestSink
from edged.messages import Headers, ResponseHead, header

if TYPE_CHECKING:
    from edged.downstream.h1 import H1Connection
    from edged.downstream.raw import RawConnection

_REASONS = {s.value: s.phrase.encode() for s in HTTPStatus}
_WITH_BODY = frozenset(range(200, 1000)) - {204, 304}
_STATUS_LINES = {s: b"HTTP/1.1 %d %b\r\n" % (s, r) for s, r in _REASONS.items()}
_HARMLESS = bytes(set(range(256)) - set(b"\r\n\0"))
_LARGE = 32768
_HUGE = 1 << 62


class UnsafeHead(ValueError):
    """A field would break the framing of the head (a CR, LF or NUL in it)."""


def status_line(status: int, reason: bytes = b"") -> bytes:
    """The first line of a response. A reason with control characters is replaced."""
    if not reason or reason == _REASONS.get(status):
        line = _STATUS_LINES.get(status)
        return line if line is not None else b"HTTP/1.1 %d \r\n" % status
    if min(reason) < 32:
        return b"HTTP/1.1 %d \r\n" % status
    return b"HTTP/1.1 %d %b\r\n" % (status, reason)


def field_lines(headers: Headers) -> bytes:
    """Field lines as bytes. Raises `UnsafeHead`."""
    block = b"".join([b"%b: %b\r\n" % field for field in headers])
    if block.translate(None, _HARMLESS) != b"\r\n" * len(headers):
        raise UnsafeHead("a response field holds a CR, LF or NUL")
    return block


class H1Exchange:
    """One request on an HTTP/1.1 connection: the `Responder` given to the handler.

    Invariant: only the connection's current exchange writes; once ``done`` every call is ignored,
    so that a late handler can't touch the response after its own.
    """

    __slots__ = (
        "awaits_continue",
        "chunked",
        "connection",
        "done",
        "http10",
        "left",
        "method",
        "plain",
        "sink",
        "started",
        "tunnel",
        "upgrade",
    )

    def __init__(
        self, connection: H1Connection, method: bytes, *, http10: bool, upgrade: bytes | None
    ) -> None:
        self.connection = connection
        self.method = method
        self.http10 = http10
        self.upgrade = upgrade
        """What the client offered to switch to."""
        self.plain = not (http10 or upgrade or method in (b"HEAD", b"CONNECT"))
        """Nothing but the response's own status and length decides how it is framed."""
        self.awaits_continue = False
        self.sink: RequestSink | None = None
        self.started = False
        self.done = False
        self.chunked = False
        self.left = 0
        """Body bytes still owed; `_HUGE` where the end is marked otherwise."""
        self.tunnel: RawConnection | None = None

    @property
    def client(self) -> str:
        """The client's address and port."""
        return self.connection.client

    def informational(self, status: int, headers: Headers) -> None:
        """Write a 1xx head, unless the client speaks HTTP/1.0, which has none."""
        if self.done or self.started or self.http10 or not 100 <= status < 200 or status == 101:
            return
        if status == 100:
            self.awaits_continue = False
        try:
            self.connection.write_now(status_line(status) + field_lines(headers) + b"\r\n")
        except UnsafeHead:
            self.abort()

    def head(self, head: ResponseHead) -> None:
        """Queue the final head; it leaves with the first body bytes or at the end of this turn."""
        if self.done or self.started:
            return
        connection = self.connection
        status = head.status
        length = head.body_length
        try:
            block = field_lines(head.headers)
        except UnsafeHead:
            self.abort()
            return
        self.started = True
        plain = self.plain and not self.awaits_continue and status in _WITH_BODY
        if plain and length is not None and connection.may_stay():
            self.left = length
            line = status_line(status, head.reason)
            connection.hold(b"%b%bcontent-length: %d\r\n\r\n" % (line, block, length))
            return
        if (status == 101 and self.upgrade is not None) or (
            self.method == b"CONNECT" and 200 <= status < 300
        ):
            connection.write_now(status_line(status, head.reason) + block + self._switch(head))
            self.tunnel = connection.become_raw(self)
            return
        if status < 200:  # a switch that nobody asked for
            self.abort()
            return
        framing = self._framing(status, length, head.declared_length)
        keep = connection.keep_alive_after(self)
        if not keep:
            framing += b"connection: close\r\n\r\n"
        elif self.http10:
            framing += b"connection: keep-alive\r\n\r\n"
        else:
            framing += b"\r\n"
        connection.hold(status_line(status, head.reason) + block + framing)

    def _switch(self, head: ResponseHead) -> bytes:
        """The end of a head that switches; the protocol is named unless the origin did."""
        if head.status != 101:
            return b"\r\n"
        if header(head.headers, b"upgrade") is not None:
            return b"connection: upgrade\r\n\r\n"
        return b"connection: upgrade\r\nupgrade: %b\r\n\r\n" % (self.upgrade or b"")

    def _framing(self, status: int, length: int | None, declared: int | None) -> bytes:
        """RFC 9112 section 6: how this response's body ends, and the fields that say so."""
        if self.method == b"HEAD" or status == 304:
            if declared is None:
                declared = length or None
            return b"" if declared is None else b"content-length: %d\r\n" % declared
        if status == 204:
            return b""
        if length is not None:
            self.left = length
            return b"content-length: %d\r\n" % length
        self.left = _HUGE
        if self.http10:
            self.connection.keep_alive = False
            return b""
        self.chunked = True
        return b"transfer-encoding: chunked\r\n"

    def data(self, data: bytes) -> None:
        """Write body bytes; with the head, if that still waits."""
        if self.done or not data:
            return
        left = self.left
        if not self.chunked:
            if self.tunnel is not None:
                self.tunnel.write(data)
                return
            if len(data) > left:
                if self.method != b"HEAD":
                    self.abort()
                return
            if left != _HUGE:
                self.left = left - len(data)
            self.connection.write_now(data)
        elif len(data) < _LARGE:
            self.connection.write_now(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self.connection.write_many((b"%x\r\n" % len(data), data, b"\r\n"))

    def end(self, trailers: Headers | None = None) -> None:
        """End the body; in raw mode close this direction. A body cut short is an abort."""
        if self.done:
            return
        if not self.started or 0 < self.left < _HUGE:
            self.abort()
            return
        if self.tunnel is not None:
            self.tunnel.half_close()
            return
        connection = self.connection
        if self.chunked:
            try:
                fields = field_lines(trailers) if trailers else b""
            except UnsafeHead:
                self.abort()
                return
            connection.hold(b"0\r\n" + fields + b"\r\n")
        self.over()
        connection.response_done(self)

    def abort(self) -> None:
        """Cut the connection so that the response can't be taken for complete."""
        if self.done:
            return
        self.over()
        if self.tunnel is not None:
            self.tunnel.cut()
        else:
            self.connection.cut(self, hard=self.left == _HUGE and not self.chunked)

    def over(self) -> None:
        """Nothing follows: let go of the sink, which holds this as its responder."""
        self.done = True
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
        (self.tunnel or self.connection).resume_body()
