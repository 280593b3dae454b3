"""One request and response on an HTTP/3 connection: the `Stream` of `edged.upstream.base`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edged.datagrams import MessageEvents
from edged.messages import Headers, RequestHead
from edged.upstream import h3_frames as h3
from edged.upstream.base import StreamEvents
from edged.upstream.h3_held import Held
from policies.model import Carrier, Failure, Outcome, Path

if TYPE_CHECKING:
    from edged.upstream.h3_connection import H3Connection

SEND_HIGH_BYTES = 256 << 10
"""Unsent request body at which `StreamEvents.pause_body` is called."""
SEND_LOW_BYTES = 64 << 10

_JOIN_BYTES = 16 << 10
"""Up to here copying a body chunk behind its frame header is cheaper than a second call."""
_TOO_EARLY = 425


class H3Stream:
    """See `edged.upstream.base.Stream`. The connection calls the methods that take its events."""

    __slots__ = (
        "_body_left",
        "_connection",
        "_early_head",
        "_events",
        "_head_seen",
        "_held",
        "_method",
        "_over",
        "_reader",
        "_resuming",
        "_send_over",
        "_trailers",
        "body_paused",
        "id",
        "reused",
    )

    carrier = Carrier.H3

    def __init__(self, connection: H3Connection, events: StreamEvents, *, reused: bool) -> None:
        self._connection = connection
        self._events = events
        self.reused = reused
        self.id: int | None = None
        """The QUIC stream; ``None`` while nothing was sent."""
        self.body_paused = False
        self._method = b""
        self._early_head: RequestHead | None = None
        """A bodiless request sent as 0-RTT data: can be sent once more after a 425."""
        self._reader = h3.Reader(self._fields, self._body)
        self._head_seen = False
        self._body_left: int | None = None
        self._trailers: Headers | None = None
        self._held = Held()
        self._resuming = False
        self._send_over = False
        self._over = False

    # What the attempt calls

    def send_head(self, head: RequestHead, *, end: bool) -> None:
        if self._over:
            return
        connection = self._connection
        self._method = head.method
        self._send_over = end
        if end and connection.early:
            self._early_head = head
        self.id = stream_id = connection.assign_id(self)
        connection.send(
            stream_id, connection.session.encode(stream_id, h3.request_fields(head)), end
        )

    def send_data(self, data: bytes) -> None:
        if self._send_over or self._over or not data or self.id is None:
            return
        connection = self._connection
        prefix = h3.data_frame_header(len(data))
        if len(data) <= _JOIN_BYTES:
            connection.send(self.id, prefix + data, False)
        else:
            connection.send(self.id, prefix, False)
            connection.send(self.id, data, False)
        if not self.body_paused and connection.engine.unsent(self.id) > SEND_HIGH_BYTES:
            self.body_paused = True
            connection.paused.add(self)
            self._events.pause_body()

    def send_end(self, trailers: Headers | None = None) -> None:
        if self._send_over or self._over or self.id is None:
            return
        self._send_over = True
        connection = self._connection
        last = connection.session.encode(self.id, trailers) if trailers else b""
        connection.send(self.id, last, True)

    def cancel(self) -> None:
        if not self._over:
            self._leave(h3.REQUEST_CANCELLED)
            self._connection.ended(self)

    def forsake(self, failure: Failure) -> None:
        self._connection.close(failure)

    def pause_reading(self) -> None:
        if not (self._over or self._reader.stopped):
            self._reader.stopped = True
            if self.id is not None:
                self._connection.engine.hold(self.id, True)

    def resume_reading(self) -> None:
        if self._over or not self._reader.stopped:
            return
        self._reader.stopped = False
        if self.id is not None:
            self._connection.engine.hold(self.id, False)
            self._connection.driver.touch()
        if self._held and not self._resuming:
            # Not from inside this call: whoever resumes is not ready to be called back.
            self._resuming = True
            self._connection.loop.call_soon(self._take_held)

    # What the connection calls

    @property
    def begun(self) -> bool:
        """Whether the head of the response came."""
        return self._head_seen

    def received(self, data: bytes, fin: bool) -> None:
        """The stream's next bytes. Raises `h3_frames.ConnectionBroken`."""
        held = self._held
        if not (held or self._reader.stopped):
            self._take(data, fin)
            return
        connection = self._connection
        if connection.engine.exact_credit:
            held.append(data, fin, spill=False)
            return
        try:
            # Alone, the flow is stopped; with others on the connection the disk takes it first.
            held.append(data, fin, spill=connection.in_flight > 1)
        except OSError as error:
            self.fail(Failure(Outcome.RESET, f"no room to hold the response: {error.strerror}"))
            return
        if held.full:
            connection.stall(self, True)

    def message(self, data: bytes) -> None:
        """An HTTP datagram (RFC 9297): for those who asked for them."""
        if not (self._over or self._reader.stopped) and isinstance(self._events, MessageEvents):
            self._events.message(data)

    def reset(self, code: int) -> None:
        """The peer reset the stream."""
        name = h3.ERROR_NAMES.get(code, f"code {code:#x}")
        self.fail(
            Failure(
                Outcome.RESET,
                f"the server reset the stream ({name})",
                unprocessed=code == h3.REQUEST_REJECTED,
            )
        )

    def sending_stopped(self) -> None:
        """The peer wants no more of the body; the response may still come (RFC 9114, 4.1)."""
        self._send_over = True
        self.window_opened()

    def window_opened(self) -> None:
        """The send buffer is below its low watermark."""
        if self.body_paused:
            self.body_paused = False
            self._connection.paused.discard(self)
            self._events.resume_body()

    def moved(self, path: Path) -> None:
        """Its connection goes on over another path."""
        if not self._over:
            self._events.moved(path)

    def stalled(self, reason: str) -> None:
        """Its connection may not arrive where it went."""
        if not self._over:
            self._events.stalled(reason)

    def fail(self, failure: Failure, code: int = h3.REQUEST_CANCELLED) -> None:
        """End without a complete response."""
        if not self._over:
            self._leave(code)
            self._events.failed(failure)
            self._connection.ended(self)

    def send_again(self) -> None:
        """Repeat a request that the server would not take as 0-RTT data (RFC 8470)."""
        head, self._early_head = self._early_head, None
        if head is not None and not self._over:
            self.send_head(head, end=True)

    # Reading

    def _take_held(self) -> None:
        self._resuming = False
        held = self._held
        try:
            while held and not (self._over or self._reader.stopped):
                data, fin = held.take()
                self._take(data, fin)
        except h3.ConnectionBroken as broken:
            self._connection.broken(broken)
        if held.relaxed:
            self._connection.stall(self, False)

    def _take(self, data: bytes, fin: bool) -> None:
        reader = self._reader
        try:
            rest = reader.feed(data)
        except h3.StreamBroken as broken:
            self.fail(Failure(Outcome.PROTOCOL, broken.detail), broken.code)
            return
        if self._over or reader is not self._reader:
            return
        if rest:
            self._held.put_back(rest, fin)
        elif fin:
            self._finish()

    def _fields(self, section: bytes) -> None:
        connection = self._connection
        assert self.id is not None  # bytes came, so a request was sent
        fields = connection.session.decode(self.id, section)
        if self._head_seen:
            if self._trailers is not None:
                raise h3.StreamBroken(h3.FRAME_UNEXPECTED, "a field section follows the trailers")
            h3.check_fields(fields)
            self._trailers = fields
            return
        head = h3.response_head(fields, self._method)
        if head.status < 200:
            if head.status == 101:
                raise h3.StreamBroken(h3.MESSAGE_ERROR, "status 101 does not exist in HTTP/3")
            self._events.informational(head.status, head.headers)
            return
        if head.status == _TOO_EARLY and self._early_head is not None:
            self._repeat_later()
            return
        self._head_seen = True
        self._body_left = head.body_length
        connection.head_seen(head.headers)
        self._events.head(head)

    def _body(self, data: bytes) -> None:
        if not self._head_seen or self._trailers is not None:
            raise h3.StreamBroken(h3.FRAME_UNEXPECTED, "body bytes outside of a response body")
        if self._body_left is not None:
            self._body_left -= len(data)
            if self._body_left < 0:
                raise h3.StreamBroken(
                    h3.MESSAGE_ERROR, "the response is longer than its content-length"
                )
        self._events.data(data)

    def _finish(self) -> None:
        if not self._head_seen:
            self.fail(Failure(Outcome.RESET, "the server ended the stream without a response"))
        elif self._reader.mid_frame or self._body_left:
            self.fail(Failure(Outcome.RESET, "the response was cut short"))
        else:
            self._leave(h3.NO_ERROR)
            self._events.end(self._trailers)
            self._connection.ended(self)

    def _repeat_later(self) -> None:
        assert self.id is not None  # a response came
        self._connection.forget(self)
        self._connection.abandon(self.id, h3.REQUEST_CANCELLED)
        self.id = None
        self._reader.stopped = True
        self._reader = h3.Reader(self._fields, self._body)
        self._connection.repeat(self)

    def _leave(self, code: int) -> None:
        """Let go of the QUIC stream; what is still open of it is reset with ``code``."""
        self._over = True
        reader = self._reader
        reader.stopped = True
        # It refers to us: a cycle would leave the whole exchange to the garbage collector.
        reader.on_fields = reader.on_body = _drop
        self._held.clear()
        connection = self._connection
        connection.paused.discard(self)
        connection.forget(self)
        connection.stall(self, False)
        if self.id is not None:
            connection.engine.hold(self.id, False)
            if not (self._send_over and code == h3.NO_ERROR):
                connection.abandon(self.id, code)


def _drop(data: bytes) -> None:
    """What comes after the end is nobody's."""
