"""One exchange on an HTTP/2 connection: its queue towards the peer, its window back, its framing.

A stream that breaks the rules of HTTP (RFC 9113 section 8.1.1: malformed fields, a body that is not
as long as declared) is reset and fails alone; the connection and its other streams go on.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING

from edged.messages import Headers, RequestHead, ResponseHead
from edged.upstream.base import StreamEvents
from edged.upstream.h2_wire import (
    CANCEL,
    CODE_NAMES,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    NO_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
)
from policies.model import Carrier, Failure, Outcome

if TYPE_CHECKING:
    from edged.upstream.h2 import H2Connection

QUEUE_HIGH_BYTES = 1 << 18
QUEUE_LOW_BYTES = 1 << 16
TURN_BYTES = 1 << 16
"""What one stream sends before the next one's turn."""
WINDOW_BYTES = 1 << 20
WINDOW_MAX_BYTES = 8 << 20
_RTT_ASSUMED_S = 0.1

_CONNECTION_FIELDS = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_METHODS_WITH_BODY = frozenset((b"POST", b"PUT", b"PATCH"))
_BAD_VALUE = re.compile(rb"[\0\r\n]").search
_GOOD_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
_NAMES_MAX = 4096
_good_names: set[bytes] = set()


class MalformedError(Exception):
    """A head that no proxy may pass on; the text says why."""


def checked_fields(fields: Headers) -> Headers:
    """Plain tuples of ``fields`` without pseudo-fields. Raises `MalformedError`."""
    clean = [(name, value) for name, value in fields if name[:1] != b":"]
    for name, _ in clean:
        if name not in _good_names:
            if not _GOOD_NAME(name):
                raise MalformedError("malformed response: bad field name")
            if name in _CONNECTION_FIELDS:
                raise MalformedError("malformed response: connection-specific field")
            if len(_good_names) < _NAMES_MAX:
                _good_names.add(name)
    if _BAD_VALUE(b"".join([value for _, value in clean])):
        raise MalformedError("malformed response: bad field value")
    return clean


def status_of(fields: Headers) -> int:
    """The status code. Raises `MalformedError`."""
    for name, value in fields:
        if name == b":status" and len(value) == 3 and value.isdigit():
            return int(value)
        break
    raise MalformedError("malformed response: no status")


class H2Stream:
    """See `edged.upstream.base.Stream`."""

    __slots__ = (
        "_connection",
        "_end_queued",
        "_ended",
        "_head_request",
        "_head_seen",
        "_held",
        "_in_window",
        "_inbox",
        "_left",
        "_out_left",
        "_over",
        "_paused",
        "_queue",
        "_queued",
        "_remote_done",
        "_told_pause",
        "_trailers",
        "_trailers_out",
        "_unacked",
        "_window",
        "_window_at",
        "events",
        "id",
        "out_window",
        "reused",
    )
    carrier = Carrier.H2

    def __init__(self, connection: H2Connection, events: StreamEvents, *, reused: bool) -> None:
        self._connection = connection
        self.events = events
        self.reused = reused
        self.id = 0
        """0 until the head was sent."""
        self.out_window = 0
        """What the peer still takes on this stream."""
        self._over = False
        # Towards the peer
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._out_left: int | None = None
        self._ended = False
        self._end_queued = False
        self._trailers_out: Headers | None = None
        self._told_pause = False
        # From the peer
        self._head_request = False
        self._head_seen = False
        self._remote_done = False
        self._left: int | None = None
        self._trailers: Headers | None = None
        self._paused = False
        self._inbox: deque[tuple[bytes, int]] = deque()
        self._held = 0
        self._unacked = 0
        self._window = WINDOW_BYTES
        self._in_window = WINDOW_BYTES
        self._window_at = 0.0

    # What the attempt calls

    def send_head(self, head: RequestHead, *, end: bool) -> None:
        """Send HEADERS. What cannot be sent fails in a later turn, unprocessed."""
        if self._over or self.id:
            return
        connection = self._connection
        length = 0 if end else head.body_length
        fields = [
            (b":method", head.method),
            (b":scheme", head.scheme),
            (b":authority", head.authority),
            (b":path", head.path),
            *head.headers,
        ]
        if length or (length == 0 and head.method in _METHODS_WITH_BODY):
            fields.append((b"content-length", b"%d" % length))
        # The last place where a line break inside a value can be stopped.
        if _BAD_VALUE(b"".join([value for _, value in fields])):
            self._refuse("the request head holds a line break")
            return
        if not connection.enlist(self):
            self._refuse("the connection takes no more streams")
            return
        connection.wire.send_headers(self.id, fields, end=end)
        self._head_request = head.method == b"HEAD"
        self._out_left = length
        self._ended = end
        self._window_at = connection.heard_at
        connection.flush_soon()

    def send_data(self, data: bytes) -> None:
        """Send DATA as windows and socket allow; the rest waits in the queue."""
        if self._over or self._ended or self._end_queued or not self.id or not data:
            return
        if self._out_left is not None:
            self._out_left -= len(data)
            if self._out_left < 0:
                self._give_up(Failure(Outcome.LOCAL, "request body beyond its length"))
                return
        if not self._queue and not self._connection.blocked:
            data = self._send(data, len(data))
        if data:
            self._queue.append(data)
            self._queued += len(data)
            self._connection.waiting[self.id] = self
            if self._queued > QUEUE_HIGH_BYTES and not self._told_pause:
                self._told_pause = True
                self.events.pause_body()

    def send_end(self, trailers: Headers | None = None) -> None:
        """End the request, after what is queued."""
        if self._over or self._ended or self._end_queued or not self.id:
            return
        if self._out_left:
            self._give_up(Failure(Outcome.LOCAL, "request body short of its length"))
            return
        self._trailers_out = trailers
        if self._queue:
            self._end_queued = True
        else:
            self._send_end()

    def cancel(self) -> None:
        """RST_STREAM with CANCEL; nothing is told to the events any more."""
        if not self._over:
            self._over = True
            if self.id:
                self._connection.reset(self.id, CANCEL)
            self._drop()

    def forsake(self, failure: Failure) -> None:
        """See `Stream`."""
        self._connection.close(failure)

    def pause_reading(self) -> None:
        """Hold what arrives; the peer stops at the stream's window."""
        self._paused = True

    def resume_reading(self) -> None:
        """Hand over what was held, and read on."""
        self._paused = False
        inbox = self._inbox
        while inbox and not self._paused and not self._over:
            data, size = inbox.popleft()
            self._held -= len(data)
            self._connection.hold(-len(data))
            self._take(data, size)
        if self._remote_done and not (inbox or self._paused or self._over):
            self._finish()

    # What the connection calls

    def pump(self) -> bool:
        """Send up to one turn of the queue; whether anything moved."""
        budget = TURN_BYTES
        queue = self._queue
        while queue and budget > 0 and not self._over:
            data = queue[0]
            rest = self._send(data, budget)
            sent = len(data) - len(rest)
            budget -= sent
            self._queued -= sent
            if rest:
                queue[0] = rest
                if not sent:
                    break
            else:
                queue.popleft()
        if not queue:
            self._connection.waiting.pop(self.id, None)
            if self._end_queued and not self._ended and not self._over:
                self._send_end()
        if self._told_pause and self._queued <= QUEUE_LOW_BYTES and not self._over:
            self._told_pause = False
            self.events.resume_body()
        return budget < TURN_BYTES

    def received_fields(self, fields: Headers, *, ends: bool) -> None:
        """A head, interim or final, or the trailers."""
        if self._over:
            return
        try:
            if self._head_seen:
                if not ends:
                    raise MalformedError("malformed response: a second head")
                self._trailers = checked_fields(fields)
                return
            status = status_of(fields)
            headers = checked_fields(fields)
            if 100 <= status < 200:
                if ends or status == 101:
                    raise MalformedError("malformed response: not an interim head")
                self.events.informational(status, headers)
                return
            self._head(status, headers, ends=ends)
        except MalformedError as error:
            self.malformed(str(error))

    def _head(self, status: int, headers: Headers, *, ends: bool) -> None:
        declared = self._declared(headers)
        self._head_seen = True
        if declared is not None:
            headers = [field for field in headers if field[0] != b"content-length"]
        length: int | None = declared
        if self._head_request or status in (204, 304) or (ends and declared is None):
            length = 0
        self._left = length
        self._connection.response_begun()
        self.events.head(
            ResponseHead(
                status,
                headers,
                length,
                version=b"2",
                declared_length=declared if length == 0 else None,
            )
        )

    def received_data(self, data: bytes, size: int) -> None:
        """DATA of ``size`` flow-controlled bytes."""
        if self._over:
            return
        self._in_window -= size
        if self._in_window < 0:
            self.malformed("more data than the stream's window", FLOW_CONTROL_ERROR)
            return
        if not self._head_seen:
            self.malformed("malformed response: data before the head")
            return
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                self.malformed("response body beyond its length")
                return
        if self._paused or self._inbox:
            self._inbox.append((data, size))
            self._held += len(data)
            self._connection.hold(len(data))
        else:
            self._take(data, size)

    def received_end(self) -> None:
        """END_STREAM."""
        if self._over:
            return
        self._remote_done = True
        if not self._head_seen:
            self.malformed("malformed response: an end without a head")
        elif self._left:
            self.malformed("response body short of its length")
        elif not (self._paused or self._inbox):
            self._finish()

    def received_reset(self, code: int) -> None:
        """RST_STREAM. Only a refusal before any head proves that nothing was done (8.7)."""
        if code == REFUSED_STREAM:
            text = "the server refused the stream"
            failure = Failure(Outcome.REFUSED, text, unprocessed=not self._head_seen)
        elif code == ENHANCE_YOUR_CALM:
            failure = Failure(Outcome.BUSY, "the server asks for calm (ENHANCE_YOUR_CALM)")
        else:
            failure = Failure(
                Outcome.RESET, f"the server reset the stream ({CODE_NAMES.get(code, code)})"
            )
        self.fail(failure)

    def fail(self, failure: Failure) -> None:
        """The stream is over: the peer or the connection ended it."""
        if not self._over:
            self._over = True
            self.events.failed(failure)
            self._drop()

    # Inside

    def _send(self, data: bytes, limit: int) -> bytes:
        """Send at most ``limit`` bytes of ``data`` now; what is left."""
        connection = self._connection
        wire = connection.wire
        frame_bytes = wire.peer_frame_bytes
        size = len(data)
        room = min(self.out_window, wire.out_window, limit)
        if room >= size <= frame_bytes:
            wire.send_data(self, data)
            connection.wrote(size)
            return b""
        sent = 0
        while sent < min(room, size) and not connection.blocked and not self._over:
            part = data[sent : sent + min(frame_bytes, room - sent)]
            wire.send_data(self, part)
            sent += len(part)
            connection.wrote(len(part))
        return data[sent:] if sent else data

    def _send_end(self) -> None:
        self._ended = True
        wire = self._connection.wire
        if self._trailers_out:
            wire.send_headers(self.id, self._trailers_out, end=True)
        else:
            wire.send_data(self, b"", end=True)
        self._connection.flush_soon()

    def _take(self, data: bytes, size: int) -> None:
        """Hand ``data`` over and give its window back, doubled while it limits the stream."""
        if data:
            self.events.data(data)
        self._unacked += size
        if self._unacked < self._window // 2 or self._remote_done or self._over:
            return
        connection = self._connection
        now = connection.heard_at
        size, self._unacked = self._unacked, 0
        if self._window < WINDOW_MAX_BYTES and now - self._window_at < 2 * (
            connection.rtt_s or _RTT_ASSUMED_S
        ):
            size += self._window
            self._window *= 2
        self._window_at = now
        self._in_window += size
        connection.give_window(self.id, size)

    def _declared(self, headers: Headers) -> int | None:
        declared: int | None = None
        for name, value in headers:
            if name == b"content-length":
                if not value.isdigit() or (declared is not None and declared != int(value)):
                    raise MalformedError("malformed response: bad content-length")
                declared = int(value)
            elif name == b"alt-svc":
                self._connection.alt_svc(value)
        return declared

    def _finish(self) -> None:
        self._over = True
        if not self._ended:
            # An early answer: the peer does not want the rest of the request (section 8.1).
            self._connection.reset(self.id, NO_ERROR)
        self.events.end(self._trailers)
        self._drop()

    def malformed(self, why: str, code: int = PROTOCOL_ERROR) -> None:
        """The peer broke the rules on this stream: an error of the stream (section 5.4.2)."""
        self._connection.reset(self.id, code)
        self.fail(Failure(Outcome.PROTOCOL, why))

    def _give_up(self, failure: Failure) -> None:
        self._connection.reset(self.id, CANCEL)
        self.fail(failure)

    def _refuse(self, why: str) -> None:
        failure = Failure(Outcome.LOCAL, why, unprocessed=True)
        self._connection.loop.call_soon(self.fail, failure)

    def _drop(self) -> None:
        """Forget what is queued and held, and leave the connection."""
        self._queue.clear()
        self._inbox.clear()
        if self._held:
            self._connection.hold(-self._held)
            self._held = 0
        self._connection.release(self)
