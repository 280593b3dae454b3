"""One HTTP/1.1 connection to an upstream (RFC 9112): one exchange at a time, kept alive.

A short body is never a clean end: a body that only the close delimits ends with an orderly close,
over TLS only with close_notify (RFC 9112 section 9.8). A connection serves again only if both
messages are complete, the peer keeps it alive and not one byte more than the response arrived.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from edged.messages import Headers, RequestHead
from edged.upstream.base import StreamEvents
from edged.upstream.connection import Owner, Rest
from edged.upstream.h1_reader import Progress, ResponseReader
from edged.upstream.sockets import describe, outcome_of
from policies.model import Carrier, Failure, Outcome, Path

WRITE_HIGH_BYTES: Final = 1 << 18
_JOIN_BELOW_BYTES: Final = 1 << 14
_METHODS_WITH_BODY: Final = frozenset((b"POST", b"PUT", b"PATCH"))
_PLAIN_METHODS: Final = frozenset((b"GET", b"DELETE", b"OPTIONS"))
_FIELD: Final = b": ".join
_KEEP_ALIVE = re.compile(rb"(?i)keep-alive:.*\btimeout=(\d{1,6})").match
_COMPLETE: Final = Progress.COMPLETE
_MORE: Final = Progress.MORE
_SHUTDOWN: Final = Failure(Outcome.LOCAL, "the connection was closed by this host")


class H1Stream(ResponseReader):
    """One exchange on an `H1Connection`: writes the request, and reads the response."""

    carrier = Carrier.H1
    sent = False
    """A byte of the request was given to the transport: no proof of being unprocessed."""
    request_done = False
    _chunked = False
    _head = b""
    """Waits for what follows it, until the end of the loop turn."""
    _left: int | None = None

    def __init__(self, connection: H1Connection, events: StreamEvents, reused: bool) -> None:
        self._connection = connection
        self.events = events
        self.reused = reused

    def send_head(self, head: RequestHead, *, end: bool) -> None:
        """Write the request line and fields; framing follows ``body_length`` and ``end``."""
        connection = self._connection
        if connection.stream is not self:
            return
        fields = head.headers
        if end and head.method in _PLAIN_METHODS and head.upgrade is None:
            self.request_done = True
            last = b"\r\n"
        else:
            fields, last = self._frame(head, end=end)
        first = b"%b %b HTTP/1.1\r\nhost: %b" % (head.method, head.path, head.authority)
        block = b"\r\n".join((first, *map(_FIELD, fields), last))
        # A line break inside a value would be a second field or request; parsers refuse it on the
        # way in, and this is the last place where it can be stopped.
        if block.count(b"\n") != len(fields) + 2 + last.count(b"\n"):
            connection.refuse(self, "the request head holds a line break")
            return
        self.sent = True
        if self.request_done or head.upgrade is not None:
            connection.transport.write(block)
        else:
            self._head = block
            connection.soon(self._flush)

    def _frame(self, head: RequestHead, *, end: bool) -> tuple[Headers, bytes]:
        """The field lines, and what ends them, of a request that is more than a plain GET."""
        self.request_done = end
        self.head_request = head.method == b"HEAD"
        fields = head.headers
        if head.upgrade is not None:
            self.upgrade = True
            fields = [(b"connection", b"upgrade"), (b"upgrade", head.upgrade), *fields]
        self._left = length = 0 if end else head.body_length
        if length is None:
            self._chunked = True
            return fields, b"transfer-encoding: chunked\r\n\r\n"
        if length or not end or head.method in _METHODS_WITH_BODY:
            return fields, b"content-length: %d\r\n\r\n" % length
        return fields, b"\r\n"

    def advertised(self, value: bytes) -> None:
        """An Alt-Svc value came."""
        self._connection.advertised(value)

    def introduced(self, lines: list[bytes]) -> None:
        """What the server says of its patience, it says in its first response."""
        for line in lines:
            if found := _KEEP_ALIVE(line):
                self._connection.announced_s = float(found[1])

    def send_data(self, data: bytes) -> None:
        """Write body bytes, or raw bytes after a switch of protocols."""
        connection = self._connection
        if connection.stream is not self or not data:
            return
        if connection.raw:
            connection.transport.write(data)
        elif self.request_done:
            return
        elif self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                connection.close(Failure(Outcome.LOCAL, "request body beyond its length"))
                return
            self._write(b"", data, b"")
        else:
            self._write(b"%x\r\n" % len(data), data, b"\r\n")

    def _write(self, before: bytes, data: bytes, after: bytes) -> None:
        """Write a piece of the body; what is small leaves with the head, as one packet.

        Of two packets the second would be alone if it was lost: nothing follows it to tell.
        """
        if self._head:
            before, self._head = self._head + before, b""
        transport = self._connection.transport
        if not (before or after):
            transport.write(data)
        elif len(data) < _JOIN_BELOW_BYTES:
            transport.write(b"%b%b%b" % (before, data, after))
        else:
            transport.writelines((before, data, after))

    def _flush(self) -> None:
        """Nothing followed the head in its turn."""
        if self._head and self._connection.stream is self:
            self._write(b"", b"", b"")

    def send_end(self, trailers: Headers | None = None) -> None:
        """End the request; a body shorter than declared breaks the connection instead."""
        connection = self._connection
        if connection.stream is not self:
            return
        if connection.raw:
            connection.transport.close()  # neither TLS nor WebSocket knows a half-close
            return
        if self.request_done:
            return
        if self._chunked:
            fields = b"".join(n + b": " + v + b"\r\n" for n, v in trailers) if trailers else b""
            self._write(b"", b"0\r\n" + fields, b"\r\n")
        elif self._left:
            connection.close(Failure(Outcome.LOCAL, "request body short of its length"))
            return
        self.request_done = True

    def cancel(self) -> None:
        """Give up. The connection is closed, or free again if nothing was sent."""
        self._connection.cancelled(self)

    def forsake(self, failure: Failure) -> None:
        """See `Stream`."""
        self._connection.close(failure)

    def pause_reading(self) -> None:
        """Stop reading the socket."""
        self._connection.read(self, wanted=False)

    def resume_reading(self) -> None:
        """Read on."""
        self._connection.read(self, wanted=True)


class H1Connection(asyncio.Protocol):
    """One TCP or TLS connection speaking HTTP/1.1. See `edged.upstream.connection`."""

    carrier = Carrier.H1
    early = False
    settled = True

    def __init__(
        self,
        path: Path,
        owner: Owner,
        *,
        loop: asyncio.AbstractEventLoop,
        closed_cleanly: Callable[[], bool] | None = None,
        settled: Callable[[], None] | None = None,
    ) -> None:
        """``closed_cleanly`` tells, over TLS, whether close_notify came before the end.

        ``settled`` is called once, after the first complete response (session tickets are there).
        """
        self.path = path
        self.capacity = 1
        self.in_flight = 0
        self.served = 0
        self.heard_at = loop.time()
        self.idle_since: float | None = self.heard_at
        self.draining = False
        self.transport: asyncio.Transport
        self.stream: H1Stream | None = None
        self.raw = False
        """The protocol was switched: bytes go both ways as they are."""
        self._alt_svc = b""
        self.rest: Rest | None = None
        self.announced_s: float | None = None
        self._owner = owner
        self._loop = loop
        self._closed_cleanly = closed_cleanly
        self._settled = settled
        self._closed = False
        self._reading = True

    # What the pool calls

    def open_stream(self, events: StreamEvents) -> H1Stream:
        """The stream of the next exchange; only while ``capacity`` is 1."""
        assert self.capacity
        self.capacity = 0
        self.in_flight = 1
        self.idle_since = None
        served = self.served
        self.served = served + 1
        self.stream = stream = H1Stream(self, events, served > 0)
        return stream

    def ping(self, done: Callable[[float | None], None], timeout_s: float) -> bool:
        """HTTP/1.1 has none."""
        return False

    def drain(self) -> None:
        """Close now if idle, else after the exchange."""
        if self.draining or self._closed:
            return
        self.draining = True
        self.capacity = 0
        self._owner.draining(self)
        if self.stream is None:
            self._end(None, abort=False)

    def close(self, failure: Failure | None = None) -> None:
        """Close at once; a stream in flight fails with ``failure``."""
        self._end(failure, abort=True)

    def expect_loss(self, *, expected: bool) -> None:
        """Nothing may follow a request before its response."""

    def doubt(self) -> None:
        """TCP cannot run on another path."""

    def leave(self) -> bool:
        """Nor go on there."""
        return False

    def fileno(self) -> int | None:
        """The socket's descriptor."""
        if self._closed or (sock := self.transport.get_extra_info("socket")) is None:
            return None
        number: int = sock.fileno()
        return number if number >= 0 else None

    # What the stream calls

    def cancelled(self, stream: H1Stream) -> None:
        """Drop ``stream`` without a word to its events."""
        if self.stream is not stream:
            return
        self.stream = None
        stream.stopped = True
        if stream.sent:
            self._end(None, abort=True)
        else:
            self.served -= 1
            self._free()

    def soon(self, callback: Callable[[], None]) -> None:
        """Call it after this loop turn."""
        self._loop.call_soon(callback)

    def advertised(self, value: bytes) -> None:
        """An Alt-Svc value came: tell the owner once."""
        if value != self._alt_svc:
            self._alt_svc = value
            self._owner.alt_svc(self, value)

    def refuse(self, stream: H1Stream, why: str) -> None:
        """Fail ``stream`` before anything of it was sent; the connection stays good."""
        self.stream = None
        self.served -= 1
        failure = Failure(Outcome.LOCAL, why, unprocessed=True)
        self._loop.call_soon(stream.events.failed, failure)
        self._loop.call_soon(self._free)

    def read(self, stream: H1Stream, *, wanted: bool) -> None:
        """Start or stop reading the socket for ``stream``."""
        if self.stream is stream and wanted is not self._reading and not self._closed:
            self._set_reading(wanted)

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected (and its TLS handshake is complete)."""
        self.transport = transport  # type: ignore[assignment]  # uvloop's are no subclasses
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)

    def data_received(self, data: bytes) -> None:
        """Bytes of the response, in the turn in which they arrived."""
        self.heard_at = self._loop.time()
        stream = self.stream
        if stream is None or not stream.sent:
            # Unasked bytes (often 408 before a close) belong to no request, and must not be
            # taken for the next one's response.
            self._end(Failure(Outcome.RESET, "the server spoke unasked"), abort=True)
            return
        try:
            progress = stream.feed(data)
        except BaseException:
            self.close(Failure(Outcome.PROTOCOL, "internal error while reading the response"))
            raise
        if self.stream is stream:
            if progress is _COMPLETE:
                self._finish(stream)
            elif progress is not _MORE:
                self._leave_http(stream, progress)

    def eof_received(self) -> bool:
        """The peer ended its side; the transport closes after this."""
        self._ended(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        self._ended(exc)

    def pause_writing(self) -> None:
        """The write buffer is above its high watermark."""
        if self.stream is not None:
            self.stream.events.pause_body()

    def resume_writing(self) -> None:
        """It drained."""
        if self.stream is not None:
            self.stream.events.resume_body()

    # Inside

    def _leave_http(self, stream: H1Stream, progress: Progress) -> None:
        if progress is Progress.BROKEN:
            self._end(Failure(Outcome.PROTOCOL, stream.fault), abort=True)
            return
        self.raw = True
        if stream.rest:
            stream.events.data(stream.rest)

    def _finish(self, stream: H1Stream) -> None:
        """The response is complete: end it, then serve again or close."""
        self.stream = None
        stream.events.end(stream.trailers)
        if self._settled is not None:
            self._settled()
            self._settled = None
        if not stream.reusable or not stream.request_done:
            self._end(None, abort=not stream.request_done)
        elif self.draining or not self._reading:
            self._free()
        else:
            self.in_flight = 0
            self.idle_since = self.heard_at
            self.capacity = 1
            self._owner.capacity_changed(self)

    def _free(self) -> None:
        """Ready for the next exchange, or closed if it was draining."""
        if self._closed:
            return
        self.in_flight = 0
        self.idle_since = self._loop.time()
        if self.draining:
            self._end(None, abort=False)
            return
        if not self._reading:
            self._set_reading(True)
        self.capacity = 1
        self._owner.capacity_changed(self)

    def _set_reading(self, wanted: bool) -> None:
        self._reading = wanted
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def _ended(self, exc: Exception | None) -> None:
        """The peer's side or the whole transport ended."""
        stream = self.stream
        if self._closed:
            return
        if stream is None or (stream.reused and not stream.head_done):
            # After ``heard_at`` nothing came: it is when the last exchange ended.
            self.rest = Rest(self._loop.time() - self.heard_at, lost=stream is not None)
        if stream is None:
            self._end(None, abort=False)
        elif exc is None and (self.raw or (stream.until_close and self._orderly())):
            self.stream = None
            stream.events.end(None)
            self._end(None, abort=False)
        else:
            when = "in the middle of the response" if stream.head_done else "before a response"
            self._end(Failure(outcome_of(exc), f"{describe(exc)} {when}"), abort=True)

    def _orderly(self) -> bool:
        return self._closed_cleanly is None or self._closed_cleanly()

    def _end(self, failure: Failure | None, *, abort: bool) -> None:
        """The one way out: transport, stream, owner, in this order, once."""
        if self._closed:
            return
        self._closed = True
        self.draining = True
        self.capacity = 0
        self.in_flight = 0
        if abort:
            self.transport.abort()
        else:
            self.transport.close()
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.stopped = True
            stream.events.failed(replace(failure or _SHUTDOWN, unprocessed=not stream.sent))
        self._owner.closed(self, failure)
