"""HTTP/2 on a client connection (RFC 9113), with prior knowledge: many requests at once.

Flow control both ways: what a paused handler has not taken keeps its stream's window closed (the
connection's window is given back at once, so that one slow stream stalls no other); what the
client's windows or its socket refuse waits in the stream's queue, and its handler is paused.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any, cast

from edged.downstream.fields import BadMessage
from edged.downstream.h2_fields import Malformed, request_head, response_fields, trailers
from edged.downstream.h2_floods import Floods
from edged.downstream.h2_output import H2Output
from edged.downstream.h2_stream import H2Exchange
from edged.downstream.hub import NEVER, Hub
from edged.downstream.sockets import client_address, client_certificate
from edged.headers import answer
from edged.messages import Headers, RequestHead
from edged.upstream.engines import h2_engine

PREFACE_HEAD = b"PRI * HTTP/2.0\r\n\r\n"
"""What the client connection preface (RFC 9113 section 3.4) looks like to an HTTP/1.1 parser."""


class H2Connection(H2Output):
    """One client connection from its preface to its end.

    Invariant: ``_streams`` holds exactly the exchanges that are not done.
    """

    __slots__ = (
        "_client",
        "_codes",
        "_events",
        "_floods",
        "_goaway_sent",
        "_highest",
        "_protocol_error",
        "_written",
        "deadline",
    )

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        engine = h2_engine()
        self._codes = engine.ErrorCodes
        self._protocol_error = engine.ProtocolError
        events = engine.events
        self._events: dict[type, Callable[[Any], None]] = {
            events.RequestReceived: self._request_received,
            events.DataReceived: self._data_received,
            events.TrailersReceived: self._trailers_received,
            events.StreamEnded: self._stream_ended,
            events.StreamReset: self._stream_reset,
            events.WindowUpdated: self._window_updated,
            events.RemoteSettingsChanged: self._settings_changed,
            events.PingReceived: self._control_received,
            events.PriorityUpdated: self._control_received,
            events.UnknownFrameReceived: self._control_received,
        }
        self._highest = 0
        self._goaway_sent = False
        self._floods = Floods(hub)
        self._written = -1
        self._client: str | None = None
        self.deadline = hub.now + hub.limits.header_time_s

    # The transport's side.

    def adopt(self, transport: asyncio.BaseTransport, data: bytes) -> None:
        """Take over a connection that turned out to speak HTTP/2; ``data`` begins its preface."""
        self._transport = cast(asyncio.Transport, transport)
        self.data_received(data)

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        self._corked = True
        try:
            handlers = self._events
            for event in self._engine.receive_data(data):
                handle = handlers.get(event.__class__)
                if handle is not None:
                    handle(event)
                if self._transport.is_closing():
                    return
        except self._protocol_error:
            self._hub.requests_bad += 1
            self._lose_all()
            self._close()
            return
        finally:
            self._corked = False
            self._flush()

    def eof_received(self) -> bool:
        """HTTP/2 has no half-open connections: the client is gone."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed, by whomever."""
        self._hub.leave(self)
        self._lose_all()

    # Events of the engine.

    def _request_received(self, event: Any) -> None:
        stream_id = event.stream_id
        hub = self._hub
        self._highest = max(self._highest, stream_id)
        if self._goaway_sent or len(self._streams) >= hub.limits.h2_streams:
            self._reset_stream(stream_id, self._codes.REFUSED_STREAM)
            return
        ended = event.stream_ended is not None
        try:
            head = request_head(event.headers, hub.limits, ended=ended)
        except Malformed:
            hub.requests_bad += 1
            self._reset_stream(stream_id, self._codes.PROTOCOL_ERROR)
            return
        except BadMessage as error:
            self._refuse(stream_id, error)
            return
        exchange = H2Exchange(self, stream_id, head)
        exchange.request_ended = ended
        if not self._streams:
            self.deadline = hub.now + hub.limits.body_stall_s
        self._streams[stream_id] = exchange
        hub.requests_total += 1
        hub.requests_open += 1
        sink = hub.handler(head, exchange)
        if not exchange.done:
            exchange.sink = sink
            if exchange.slow:
                sink.pause_response()

    def _data_received(self, event: Any) -> None:
        size = event.flow_controlled_length
        self._return_connection_window(size)
        data = event.data
        if not data and event.stream_ended is None:
            self._control_received(event)
        exchange = self._streams.get(event.stream_id)
        if exchange is None:
            return
        exchange.progress += len(data)
        exchange.awaits_continue = False
        expected = exchange.expected
        if expected is not None and exchange.method != b"CONNECT":
            expected -= len(data)
            exchange.expected = expected
            if expected < 0 or (expected > 0 and event.stream_ended is not None):
                self._fail(exchange)
                return
        if data and exchange.sink is not None:
            exchange.sink.body(bytes(data))
        self.return_window(exchange, size)

    def _trailers_received(self, event: Any) -> None:
        exchange = self._streams.get(event.stream_id)
        if exchange is None:
            return
        try:
            fields = trailers(event.headers, self._hub.limits)
        except Malformed:
            self._fail(exchange)
            return
        if event.stream_ended is None or (exchange.expected or 0) > 0:
            self._fail(exchange)
            return
        self._end_request(exchange, fields or None)

    def _stream_ended(self, event: Any) -> None:
        exchange = self._streams.get(event.stream_id)
        if exchange is not None and not exchange.request_ended:
            self._end_request(exchange, None)

    def _end_request(self, exchange: H2Exchange, fields: Headers | None) -> None:
        if (exchange.expected or 0) > 0:
            self._fail(exchange)
            return
        exchange.request_ended = True
        if exchange.sink is not None:
            exchange.sink.body_end(fields)
        self._settle(exchange)

    def _stream_reset(self, event: Any) -> None:
        if self._floods.reset():
            self._end_all(self._codes.ENHANCE_YOUR_CALM)
            return
        exchange = self._streams.get(event.stream_id)
        if exchange is not None:
            self._lose(exchange)

    def _window_updated(self, event: Any) -> None:
        if event.stream_id:
            exchange = self._streams.get(event.stream_id)
            if exchange is not None and exchange.queued:
                self._pump(exchange)
        else:
            self._pump_all()

    def _settings_changed(self, event: Any) -> None:
        self._control_received(event)
        self._pump_all()

    def _control_received(self, event: Any) -> None:
        if self._floods.control():
            self._end_all(self._codes.ENHANCE_YOUR_CALM)

    # What an exchange asks for.

    @property
    def client(self) -> str:
        """The client's address and port, as it would stand in a URL."""
        if self._client is None:
            self._client = client_address(self._transport)
        return self._client

    @property
    def certificate(self) -> bytes | None:
        """The client's certificate."""
        return client_certificate(self._transport)

    def reset(self, exchange: H2Exchange) -> None:
        """Break the response."""
        self._remove(exchange)
        self._reset_stream(exchange.stream_id, self._codes.INTERNAL_ERROR)

    # Ends.

    def _finish(self, exchange: H2Exchange) -> None:
        """Everything is sent: end the stream, and tell a client that still sends to stop."""
        stream_id = exchange.stream_id
        if not exchange.ended_by_head:
            if not self._is_open(stream_id):
                return  # its reset is told next
            fields = response_fields(200, exchange.trailers, None) if exchange.trailers else None
            if fields is not None:
                self._engine.send_headers(stream_id, fields[1:], end_stream=True)
            else:
                self._engine.end_stream(stream_id)
        if exchange.tunnel:
            self._settle(exchange)
        else:
            self._remove(exchange)
            if not exchange.request_ended:
                self._reset_stream(stream_id, self._codes.NO_ERROR)
        self._flush_soon()

    def _settle(self, exchange: H2Exchange) -> None:
        """A tunnel is over when both directions are."""
        if exchange.tunnel and exchange.ended and exchange.request_ended and not exchange.queued:
            self._remove(exchange)

    def _remove(self, exchange: H2Exchange) -> None:
        if not exchange.done:
            exchange.done = True
            exchange.sink = None  # it holds the exchange as its responder
            exchange.queue.clear()
            exchange.queued = 0
            del self._streams[exchange.stream_id]
            self._hub.requests_open -= 1
            if not self._streams:
                self.deadline = self._hub.now + self._hub.limits.idle_s
                if self._goaway_sent:
                    self._close()

    def _lose(self, exchange: H2Exchange) -> None:
        sink = exchange.sink
        self._remove(exchange)
        if sink is not None:
            sink.gone()

    def _lose_all(self) -> None:
        for exchange in list(self._streams.values()):
            self._lose(exchange)

    def _fail(self, exchange: H2Exchange) -> None:
        """The request turned out malformed after its head (RFC 9113 section 8.1.1)."""
        self._hub.requests_bad += 1
        self._lose(exchange)
        self._reset_stream(exchange.stream_id, self._codes.PROTOCOL_ERROR)

    def _refuse(self, stream_id: int, error: BadMessage) -> None:
        """Answer a request that is well-formed but refused; the handler isn't asked."""
        hub = self._hub
        hub.requests_bad += 1
        hub.requests_open += 1
        exchange = H2Exchange(self, stream_id, RequestHead(b"", b"", b"", b"", []))
        self._streams[stream_id] = exchange
        answer(exchange, hub.refusal(error, "Send a smaller or plainer request."))

    def _end_all(self, code: Any) -> None:
        """GOAWAY with an error: the connection is over."""
        self._hub.requests_bad += 1
        self._engine.close_connection(error_code=code, last_stream_id=self._highest)
        self._lose_all()
        self._close()

    def _close(self) -> None:
        if not self._transport.is_closing():
            self._flush()
            self.deadline = self._hub.now + self._hub.limits.linger_s
            self._written = -1
            self._transport.close()

    # The hub's side.

    def expired(self, now: float) -> None:
        """Look after idle connections, stalled bodies and clients that don't read."""
        limits = self._hub.limits
        if self._transport.is_closing():
            self.deadline = NEVER
            self._transport.abort()
            return
        if not self._streams:
            self._say_goaway()
            self._close()
            return
        if self._write_paused:
            queued = self._transport.get_write_buffer_size()
            if queued == self._written:
                self.kill()
                return
            self._written = queued
        self.deadline = now + (limits.write_stall_s if self._write_paused else limits.body_stall_s)
        for exchange in list(self._streams.values()):
            if exchange.stalled(limits):
                self._time_out(exchange)
        self._flush()

    def _time_out(self, exchange: H2Exchange) -> None:
        stream_id, started = exchange.stream_id, exchange.started
        self._lose(exchange)
        if started:
            self._reset_stream(stream_id, self._codes.CANCEL)
        else:
            self._refuse(stream_id, BadMessage(408, "body_timeout", "The request body stalled."))

    def _say_goaway(self) -> None:
        """GOAWAY by hand: the engines would take no further step on streams still in flight."""
        if not self._goaway_sent:
            self._goaway_sent = True
            self._flush()
            frame = b"\x00\x00\x08\x07\x00" + struct.pack(">III", 0, self._highest, 0)
            self._transport.write(frame)

    def drain(self) -> None:
        """Take no new streams; close when the last one has ended."""
        self._say_goaway()
        if not self._streams:
            self._close()

    def kill(self) -> None:
        """Close at once."""
        self._lose_all()
        self._transport.abort()
