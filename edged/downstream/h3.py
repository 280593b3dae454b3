"""HTTP/3 on a client connection (RFC 9114): what h2 is on TCP, on an engine of QUIC.

It stands between a listener (datagrams, time) and its `H3Exchange`s. Rules:

* ``_streams`` holds exactly the exchanges that are not done.
* What the engine has to send leaves at the end of the loop turn (`Port.touch`).
* A connection ends once, through `_die`: every exchange is lost, then the hub and the port hear.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from edged.downstream.fields import BadMessage
from edged.downstream.h2_fields import Malformed, request_head, trailers
from edged.downstream.h2_floods import Floods
from edged.downstream.h3_stream import H3Exchange
from edged.downstream.hub import NEVER, Hub
from edged.downstream.quic_engines import Engine
from edged.downstream.quic_source import Source
from edged.headers import answer
from edged.messages import Headers, RequestHead
from edged.quic import Address
from edged.upstream import h3_frames as h3

_GOAWAY, _MAX_PUSH_ID = 0x7, 0xD
_FIELD_OVERHEAD = 32  # RFC 9114 section 4.2.2


class Port(Protocol):
    """What a connection needs of its listener."""

    def touch(self, connection: H3Connection) -> None:
        """It has something to send: flush it at the end of this loop turn."""

    def add(self, cid: bytes, connection: H3Connection) -> None:
        """Datagrams with this connection id are its."""

    def remove(self, cid: bytes) -> None:
        """They are not any more."""

    def closed(self, connection: H3Connection) -> None:
        """It is over, but for what its engine wants to say last."""


class _Session(h3.Session):
    """The server's end of the control streams: clients speak of pushes there, which there are
    none of.
    """

    def _control_frame(self, kind: int, payload: bytes) -> None:
        if not (self._settings_seen and kind in (_GOAWAY, _MAX_PUSH_ID)):
            super()._control_frame(kind, payload)


class H3Connection:
    """One client connection. Also the `Sink` of its engine, and what the hub looks after."""

    def __init__(self, hub: Hub, port: Port, engine: Engine, address: Address) -> None:
        self.engine = engine
        self.exact_credit = engine.exact_credit
        self.timer: asyncio.TimerHandle | None = None
        """The port's: when the engine wants to be woken."""
        self.timer_at = 0.0
        self.address = address
        """Where the client's last datagram came from."""
        self.source: Source = ()
        """Where it was sent to, as answers are sent from there."""
        self.cids: set[bytes] = set()
        self.deadline = hub.now + hub.limits.header_time_s
        self.shaken = False
        """The handshake is complete."""
        self._hub = hub
        self._port = port
        self._session: h3.Session | None = None
        self._control_id = 0
        self._streams: dict[int, H3Exchange] = {}
        self._slow: set[H3Exchange] = set()
        self._stalling: set[H3Exchange] = set()
        self._floods = Floods(hub)
        self._next_request = 0
        """Above the highest stream id of a request seen, for GOAWAY."""
        self._overtaken: set[int] = set()
        """Ids below it that were not seen yet; bounded by the streams that the client may open."""
        self._goaway_sent = False
        self._closed = False

    # -- what the engine tells (Sink) -------------------------------------------------------------

    def handshake_done(self, alpn: str | None) -> None:
        """Requests are no replays from here on."""
        self.shaken = True
        if alpn != "h3":
            self._die(h3.GENERAL_PROTOCOL_ERROR)
        elif not self._streams:
            self.deadline = self._hub.now + self._hub.limits.idle_s
        self._open_session()

    def cid_issued(self, cid: bytes) -> None:
        """The client may use another connection id."""
        self._port.add(cid, self)

    def cid_retired(self, cid: bytes) -> None:
        """It will not use this one any more."""
        self._port.remove(cid)

    def stream_data(self, stream_id: int, data: bytes, fin: bool) -> None:
        """Bytes of a stream, in order."""
        if self._closed:
            return
        try:
            if stream_id & 3 == 0:
                exchange = self._streams.get(stream_id)
                if exchange is None:
                    exchange = self._new(stream_id)
                if exchange is not None:
                    exchange.received(data, fin)
            elif stream_id & 3 == 2:
                self._open_session().receive(stream_id, data, fin)
        except h3.ConnectionBroken as broken:
            self.broken(broken)

    def stream_reset(self, stream_id: int, code: int) -> None:
        """The client gives a request up, or breaks a stream of its own."""
        if stream_id & 3 == 0:
            self._is_new(stream_id)
        if stream_id & 3 == 2 and self._session is not None:
            try:
                self._session.reset(stream_id)
            except h3.ConnectionBroken as broken:
                self.broken(broken)
        self._given_up(stream_id)

    def stop_sending(self, stream_id: int, code: int) -> None:
        """The client wants no more of a response."""
        self._given_up(stream_id)

    def terminated(self) -> None:
        """The connection is over."""
        self._die(None)

    def _given_up(self, stream_id: int) -> None:
        if self._floods.reset():
            self._die(h3.EXCESSIVE_LOAD)
            return
        exchange = self._streams.get(stream_id)
        if exchange is not None:
            self.lose(exchange, h3.REQUEST_CANCELLED)

    # -- what the session calls -------------------------------------------------------------------

    def send_on(self, stream_id: int, data: bytes) -> None:
        """Bytes of one of our unidirectional streams."""
        self.engine.send(stream_id, data, False)

    def goaway(self, last_id: int) -> None:
        """A client's GOAWAY is about pushes."""

    def _open_session(self) -> h3.Session:
        session = self._session
        if session is None:
            ids = []
            for _ in range(3):
                stream_id = self.engine.next_stream_id()
                ids.append(stream_id)
                self.engine.send(stream_id, b"", False)
            self._control_id = ids[0]
            # Without a table: a section of strangers must not unpack to a thousand times its size.
            session = self._session = _Session(
                self,
                (ids[0], ids[1], ids[2]),
                table_bytes=0,
                head_bytes=self._hub.limits.header_bytes,
                datagrams=True,
            )
            self._port.touch(self)
        return session

    # -- requests ---------------------------------------------------------------------------------

    def _new(self, stream_id: int) -> H3Exchange | None:
        if not self._is_new(stream_id):
            return None  # of an exchange that is done
        if self._goaway_sent or len(self._streams) >= self._hub.limits.h2_streams:
            self.engine.reset(stream_id, h3.REQUEST_REJECTED)
            self.engine.stop(stream_id, h3.REQUEST_REJECTED)
            self._port.touch(self)
            return None
        if not self._streams:
            self.deadline = self._hub.now + self._hub.limits.body_stall_s
        exchange = self._streams[stream_id] = H3Exchange(self, stream_id)
        self._hub.requests_open += 1
        return exchange

    def _is_new(self, stream_id: int) -> bool:
        """Whether this is the first that is heard of a request's stream."""
        if stream_id >= self._next_request:
            self._overtaken.update(range(self._next_request, stream_id, 4))
            self._next_request = stream_id + 4
            return True
        if stream_id in self._overtaken:
            self._overtaken.discard(stream_id)
            return True
        return False

    def decode(self, exchange: H3Exchange, section: bytes) -> Headers | None:
        """The fields of a section; ``None``: too large, and answered. Raises `ConnectionBroken`."""
        limit = self._hub.limits.header_bytes
        if len(section) <= limit:
            fields = self._open_session().decode(exchange.id, section)
            if sum(len(n) + len(v) + _FIELD_OVERHEAD for n, v in fields) <= limit:
                return fields
        if exchange.method:
            self.lose(exchange, h3.MESSAGE_ERROR)
        else:
            self._refuse(exchange, BadMessage(431, "header_too_large", "The head is too large."))
        return None

    def request_head(
        self, exchange: H3Exchange, fields: Headers, *, ended: bool
    ) -> RequestHead | None:
        """The head of a request; ``None``: it is refused, and that is done."""
        try:
            head = request_head(fields, self._hub.limits, ended=ended)
        except Malformed:
            self._hub.requests_bad += 1
            self.lose(exchange, h3.MESSAGE_ERROR)
            return None
        except BadMessage as error:
            self._refuse(exchange, error)
            return None
        head.version = b"3"
        head.early = not self.shaken
        return head

    def call_handler(self, exchange: H3Exchange, head: RequestHead) -> None:
        """Let the request be handled."""
        self._hub.requests_total += 1
        sink = self._hub.handler(head, exchange)
        if not exchange.done:
            exchange.sink = sink
            if exchange.slow:
                sink.pause_response()

    def trailers(self, exchange: H3Exchange, fields: Headers) -> Headers | None:
        """A request's trailers; if they are malformed the exchange is lost."""
        try:
            return trailers(fields, self._hub.limits) or None
        except Malformed:
            self._hub.requests_bad += 1
            self.lose(exchange, h3.MESSAGE_ERROR)
            return None

    def _refuse(self, exchange: H3Exchange, error: BadMessage) -> None:
        """Answer a request that is well-formed but refused; the handler isn't asked."""
        self._hub.requests_bad += 1
        answer(exchange, self._hub.refusal(error, "Send a smaller or plainer request."))

    # -- what an exchange asks for ----------------------------------------------------------------

    @property
    def client(self) -> str:
        """The client's address and port, as it would stand in a URL."""
        host, port = self.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def busy(self) -> bool:
        """Other exchanges share the connection."""
        return len(self._streams) > 1

    def call_soon(self, call: Callable[[], None]) -> None:
        """Call in the next loop turn."""
        self._hub.loop.call_soon(call)

    def send_head(self, exchange: H3Exchange, fields: Headers, *, end: bool) -> None:
        """Send a field section."""
        self.engine.send(exchange.id, self._open_session().encode(exchange.id, fields), end)
        self._port.touch(self)

    def send(self, exchange: H3Exchange, data: bytes) -> None:
        """Queue bytes; the handler is paused above the high watermark."""
        engine = self.engine
        engine.send(exchange.id, data, False)
        self._port.touch(self)
        if not exchange.slow and engine.unsent(exchange.id) > self._hub.limits.write_high_bytes:
            exchange.slow = True
            self._slow.add(exchange)
            if exchange.sink is not None:
                exchange.sink.pause_response()

    def message(self, exchange: H3Exchange, data: bytes, *, spare: bool) -> bool:
        """Send an HTTP datagram (RFC 9297) about an exchange, which may be over; False: there is no
        room, or for ``spare`` too little.
        """
        if self._closed:
            return False
        waiting = self.engine.unsent(exchange.id)
        frame = h3.varint(exchange.id // 4) + data
        if not self.engine.message(frame, waiting=waiting, spare=spare):
            return False
        self._port.touch(self)
        return True

    def send_end(self, exchange: H3Exchange, fields: Headers | None) -> None:
        """End the stream, perhaps with trailers."""
        last = self._open_session().encode(exchange.id, fields) if fields else b""
        self.engine.send(exchange.id, last, True)
        self._port.touch(self)

    def break_off(self, exchange: H3Exchange, code: int) -> None:
        """Reset both directions; the handler knows."""
        self.engine.reset(exchange.id, code)
        self._stop(exchange, code)
        self._remove(exchange)

    def lose(self, exchange: H3Exchange, code: int) -> None:
        """Reset both directions, and tell the handler."""
        sink = exchange.sink
        self.break_off(exchange, code)
        if sink is not None:
            sink.gone()

    def finished(self, exchange: H3Exchange) -> None:
        """The response is complete; a client that still sends is told to stop."""
        self._stop(exchange, h3.NO_ERROR)
        self._remove(exchange)

    def hold(self, exchange: H3Exchange, held: bool) -> None:
        """Give the stream no further credit."""
        self.engine.hold(exchange.id, held)
        if not held:
            self._port.touch(self)

    def stall(self, exchange: H3Exchange, stalled: bool) -> None:
        """A paused stream has piled up too much (or no longer): stop giving credit."""
        if stalled == (exchange in self._stalling):
            return
        if stalled:
            self._stalling.add(exchange)
        else:
            self._stalling.discard(exchange)
        engine = self.engine
        if engine.stalled != bool(self._stalling):
            engine.stalled = bool(self._stalling)
            if not engine.stalled and not self._closed:
                self.call_soon(self._unstalled)

    def broken(self, broken: h3.ConnectionBroken) -> None:
        """The client broke the protocol."""
        self._hub.requests_bad += 1
        self._die(broken.code)

    def _unstalled(self) -> None:
        if not (self._closed or self.engine.stalled):
            self.engine.pump(self)
            self._port.touch(self)

    def _stop(self, exchange: H3Exchange, code: int) -> None:
        if not exchange.request_ended:
            self.engine.stop(exchange.id, code)
        self._port.touch(self)

    def _remove(self, exchange: H3Exchange) -> None:
        if exchange.done:
            return
        exchange.over()
        del self._streams[exchange.id]
        self._slow.discard(exchange)
        self.stall(exchange, False)
        if exchange.paused:
            self.engine.hold(exchange.id, False)
        self._hub.requests_open -= 1
        if not self._streams:
            limits = self._hub.limits
            # Closing at once would drop what was not acknowledged yet.
            self.deadline = self._hub.now + (
                limits.linger_s if self._goaway_sent else limits.idle_s
            )

    # -- the port's side --------------------------------------------------------------------------

    def flushed(self) -> None:
        """What may be sent now was sent: buffers may have room again."""
        if self._slow:
            low, unsent = self._hub.limits.write_high_bytes // 4, self.engine.unsent
            for exchange in [e for e in self._slow if unsent(e.id) <= low]:
                self._slow.discard(exchange)
                exchange.relaxed()

    # -- the hub's side ---------------------------------------------------------------------------

    def expired(self, now: float) -> None:
        """Look after handshakes that take too long, idle connections and stalled bodies."""
        limits = self._hub.limits
        if not self._streams:
            self._die(h3.NO_ERROR)
            return
        self.deadline = now + limits.body_stall_s
        for exchange in list(self._streams.values()):
            if exchange.stalled(limits):
                self._time_out(exchange)

    def _time_out(self, exchange: H3Exchange) -> None:
        if exchange.started:
            self.lose(exchange, h3.REQUEST_CANCELLED)
            return
        sink, exchange.sink = exchange.sink, None
        if sink is not None:
            sink.gone()
        self._refuse(exchange, BadMessage(408, "body_timeout", "The request body stalled."))

    def drain(self) -> None:
        """Take no new streams; close when the last one has ended."""
        if not self._goaway_sent:
            self._goaway_sent = True
            if self._session is not None:
                payload = h3.varint(self._next_request)
                frame = bytes((_GOAWAY,)) + h3.varint(len(payload)) + payload
                self.engine.send(self._control_id, frame, False)
                self._port.touch(self)
        if not self._streams:
            self._die(h3.NO_ERROR)

    def kill(self) -> None:
        """Close at once."""
        self._die(h3.NO_ERROR)

    def _die(self, code: int | None) -> None:
        """The end. ``code`` is what the client is told, if it can be."""
        if self._closed:
            return
        self._closed = True
        self.deadline = NEVER
        for exchange in list(self._streams.values()):
            sink = exchange.sink
            exchange.over()
            self._hub.requests_open -= 1
            if sink is not None:
                sink.gone()
        self._streams.clear()
        self._slow.clear()
        if code is not None:
            self.engine.close(code)
        self._port.closed(self)
        self._hub.leave(self)
