"""One request on an HTTP/3 connection: the `Responder` given to the handler, and its body."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edged.downstream.h2_fields import response_fields
from edged.downstream.stream import StreamExchange
from edged.messages import Headers
from edged.upstream import h3_frames as h3
from edged.upstream.h3_held import Held

if TYPE_CHECKING:
    from edged.downstream.h3 import H3Connection

_JOIN_BYTES = 16 << 10
"""Up to here copying body bytes behind their frame header is cheaper than a second call."""


class H3Exchange(StreamExchange):
    """A stream: its response, and the reader of its request."""

    __slots__ = ("_fields", "_held", "_reader", "_resuming", "connection", "id")

    def __init__(self, connection: H3Connection, stream_id: int) -> None:
        super().__init__()  # ``method`` stays empty until the head is read
        self.connection = connection
        self.id = stream_id
        self._reader = h3.Reader(self._section, self._body)
        self._fields: Headers | None = None
        """The last field section read: the head until it is acted upon, then the trailers."""
        self._held = Held()
        self._resuming = False

    # -- what the handler calls (Responder) -------------------------------------------------------

    @property
    def client(self) -> str:
        """The client's address and port."""
        return self.connection.client

    @property
    def certificate(self) -> None:
        """Neither engine asks clients for certificates."""
        return None

    def _send_head(self, fields: Headers, *, end: bool) -> None:
        self.connection.send_head(self, fields, end=end)

    def _send_data(self, data: bytes) -> None:
        prefix = h3.data_frame_header(len(data))
        if len(data) <= _JOIN_BYTES:
            self.connection.send(self, prefix + data)
        else:
            self.connection.send(self, prefix)
            self.connection.send(self, data)

    def _send_end(self, trailers: Headers | None) -> None:
        if not self.ended_by_head:
            fields = response_fields(200, trailers, None) if trailers else None
            self.connection.send_end(self, None if fields is None else fields[1:])
        self._settle()

    def message(self, data: bytes, *, spare: bool = False) -> bool:
        """Send a datagram of at most `edged.quic.MESSAGE_BYTES`; also after the end. False: there
        is no room, or for ``spare`` too little.
        """
        return self.connection.message(self, data, spare=spare)

    def abort(self) -> None:
        """Reset the stream."""
        if not self.done:
            self.connection.break_off(self, h3.INTERNAL_ERROR)

    def pause_body(self) -> None:
        """Keep the window closed from here on."""
        if not self.paused and not self.done:
            self.paused = self._reader.stopped = True
            self.connection.hold(self, True)

    def resume_body(self) -> None:
        """Open it again; the first time, tell a client that waits to go ahead."""
        if self.done:
            return
        if self.awaits_continue and not self.started:
            self.informational(100, [])
        if self.paused:
            self.paused = self._reader.stopped = False
            self.progress = 0
            self.connection.hold(self, False)
            if self._held and not self._resuming:
                # Not from inside this call: whoever resumes is not ready to be called back.
                self._resuming = True
                self.connection.call_soon(self._take_held)

    # -- what the connection calls ----------------------------------------------------------------

    def received(self, data: bytes, fin: bool) -> None:
        """The stream's next bytes. Raises `h3_frames.ConnectionBroken`."""
        if not (self._held or self._reader.stopped):
            self._take(data, fin)
            return
        connection = self.connection
        if connection.exact_credit:
            self._held.append(data, fin, spill=False)
            return
        try:
            # Alone, the flow is stopped; with others on the connection the disk takes it first.
            self._held.append(data, fin, spill=connection.busy)
        except OSError:
            connection.lose(self, h3.INTERNAL_ERROR)
            return
        if self._held.full:
            connection.stall(self, True)

    def over(self) -> None:
        """Let go of the sink, which holds this as its responder, and of what is held."""
        self.done = True
        self.sink = None
        self._reader.stopped = True
        self._held.clear()

    def relaxed(self) -> None:
        """The engine has sent what was queued."""
        if self.slow:
            self.slow = False
            if self.sink is not None:
                self.sink.resume_response()

    # -- reading ----------------------------------------------------------------------------------

    def _take_held(self) -> None:
        self._resuming = False
        held = self._held
        try:
            while held and not (self.done or self._reader.stopped):
                data, fin = held.take()
                self._take(data, fin)
        except h3.ConnectionBroken as broken:
            self.connection.broken(broken)
        if held.relaxed:
            self.connection.stall(self, False)

    def _take(self, data: bytes, fin: bool) -> None:
        self.progress += len(data)
        try:
            rest = self._reader.feed(data)
        except h3.StreamBroken as broken:
            self.connection.lose(self, broken.code)
            return
        if self.done:
            return
        if rest:
            self._held.put_back(rest, fin)
        elif fin and self._reader.mid_frame:
            self.connection.lose(self, h3.REQUEST_INCOMPLETE)
        elif not self.method:
            if self._fields is not None:
                self._act(ended=fin)
            elif fin:
                self.connection.lose(self, h3.REQUEST_INCOMPLETE)
        elif fin:
            self._end_request()

    def _section(self, section: bytes) -> None:
        """A field section: the head, or the trailers."""
        connection = self.connection
        if self.method and self._fields is not None:
            raise h3.StreamBroken(h3.FRAME_UNEXPECTED, "a field section follows the trailers")
        if not self.method and self._fields is not None:
            self._act(ended=False)
        fields = connection.decode(self, section)
        if fields is None:
            self._reader.stopped = True
        else:
            self._fields = fields

    def _act(self, *, ended: bool) -> None:
        """The head is complete, and it is known whether a body follows."""
        fields, self._fields = self._fields, None
        assert fields is not None
        head = self.connection.request_head(self, fields, ended=ended)
        if head is None:
            return
        self.method = head.method
        self.expected = head.body_length
        self.awaits_continue = head.expects_continue
        self.request_ended = ended
        self.connection.call_handler(self, head)

    def _body(self, data: bytes) -> None:
        if not self.method:
            if self._fields is None:
                raise h3.StreamBroken(h3.FRAME_UNEXPECTED, "body bytes before the head")
            self._act(ended=False)
        elif self._fields is not None:
            raise h3.StreamBroken(h3.FRAME_UNEXPECTED, "body bytes after the trailers")
        if self.done:
            return
        self.awaits_continue = False
        if self.expected is not None and self.method != b"CONNECT":
            self.expected -= len(data)
            if self.expected < 0:
                raise h3.StreamBroken(h3.MESSAGE_ERROR, "more than its content-length")
        if self.sink is not None:
            self.sink.body(data)

    def _end_request(self) -> None:
        if self.expected and self.method != b"CONNECT":
            self.connection.lose(self, h3.MESSAGE_ERROR)
            return
        if self.request_ended:
            return
        self.request_ended = True
        trailers = None
        if self._fields is not None:
            trailers = self.connection.trailers(self, self._fields)
            if self.done:
                return
        if self.sink is not None:
            self.sink.body_end(trailers)
        if not self.done:
            self._settle()

    def _settle(self) -> None:
        """Everything is said: a tunnel is over when both directions are."""
        if self.ended and (self.request_ended or not self.tunnel):
            self.connection.finished(self)
