"""The origin's HTTP/3 transport on aioquic, or on its relative qh3 (RFC 9114).

aioquic unless told otherwise: so that the engine edged itself prefers meets another one here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edged.lab.serving import Fields, Handler, Request, Room, StreamReply

_HIGH_WATER_BYTES = 1 << 20
_NO_ERROR, _INTERNAL_ERROR = 0x100, 0x102
_MAX_TICKETS = 1024


class H3Server:
    """The QUIC listener of one origin."""

    def __init__(self, handler: Handler, certificate: Path, key: Path, engine: str) -> None:
        self._handler = handler
        self._engine = engine
        self._tickets: dict[bytes, Any] = {}
        self._certificate = certificate
        self._key = key
        self._server: Any = None

    async def start(self, address: str, port: int) -> None:
        """Listen on UDP. Raises `OSError`."""
        configuration_module = importlib.import_module(f"{self._engine}.quic.configuration")
        server_module = importlib.import_module(f"{self._engine}.asyncio.server")
        configuration = configuration_module.QuicConfiguration(
            is_client=False,
            alpn_protocols=["h3"],
            idle_timeout=120.0,
            max_datagram_frame_size=65536,  # qh3 offers H3_DATAGRAM always, which demands it
        )
        configuration.load_cert_chain(self._certificate, self._key)
        protocol = _protocol_class(self._engine)
        self._server = await server_module.serve(
            address,
            port,
            configuration=configuration,
            create_protocol=lambda *args, **named: protocol(self._handler, *args, **named),
            session_ticket_fetcher=lambda label: self._tickets.pop(label, None),
            session_ticket_handler=self._keep_ticket,
        )

    def _keep_ticket(self, ticket: Any) -> None:
        if len(self._tickets) < _MAX_TICKETS:
            self._tickets[ticket.ticket] = ticket

    def stop(self) -> None:
        """Close the listener and all connections."""
        if self._server:
            self._server.close()
            self._server = None


def _protocol_class(engine: str) -> Any:
    """The engine's asyncio protocol, handing what happens to an `H3Connection`."""
    base = importlib.import_module(f"{engine}.asyncio.protocol").QuicConnectionProtocol

    class H3Protocol(base):  # type: ignore[misc,valid-type]  # the base is chosen at run time
        def __init__(self, handler: Handler, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            self._http = H3Connection(engine, self._quic, self._transmit_soon, handler)

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self._http.client = addr[0]
            super().datagram_received(data, addr)

        def datagrams_received(self, data: list[bytes], addr: Any) -> None:
            self._http.client = addr[0]  # qh3 hands datagrams over in batches
            super().datagrams_received(data, addr)

        def transmit(self) -> None:
            super().transmit()  # runs after every receipt, hence after acknowledgements
            self._http.breathe()

        def quic_event_received(self, event: Any) -> None:
            self._http.event(event)

    return H3Protocol


class H3Connection:
    """HTTP/3 over one QUIC connection; what both engines' classes have in common by name."""

    def __init__(
        self, engine: str, quic: Any, transmit: Callable[[], None], handler: Handler
    ) -> None:
        """``transmit`` sends soon what was written."""
        self.client = ""
        """The peer's address, which may change (RFC 9000, 9)."""
        self._quic = quic
        self._transmit = transmit
        self._handler = handler
        self._quic_events = importlib.import_module(f"{engine}.quic.events")
        self._h3_events = importlib.import_module(f"{engine}.h3.events")
        self._h3 = importlib.import_module(f"{engine}.h3.connection").H3Connection(quic)
        self._replies: dict[int, H3Reply] = {}
        self._confirmed = False

    # -- in --------------------------------------------------------------------------------------

    def event(self, event: Any) -> None:
        """An event of the QUIC connection."""
        quic = self._quic_events
        if isinstance(event, quic.HandshakeCompleted):
            self._confirmed = True
        elif isinstance(event, quic.ConnectionTerminated):
            for reply in list(self._replies.values()):
                reply.gone()
        elif isinstance(event, (quic.StreamReset, quic.StopSendingReceived)) and (
            broken := self._replies.get(event.stream_id)
        ):
            broken.gone()
        for h3_event in self._h3.handle_event(event):
            if isinstance(h3_event, self._h3_events.HeadersReceived):
                self._headers_received(h3_event)
            elif isinstance(h3_event, self._h3_events.DataReceived):
                self._data_received(h3_event)

    def breathe(self) -> None:
        """Acknowledgements may have made room."""
        for reply in list(self._replies.values()):
            reply.breathe()

    def _headers_received(self, event: Any) -> None:
        fields = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in event.headers]
        if known := self._replies.get(event.stream_id):
            known.request.body.end(fields)
            return
        pseudo = {name: value for name, value in fields if name.startswith(":")}
        request = Request(
            pseudo.get(":method", "GET"),
            pseudo.get(":path", "/"),
            pseudo.get(":authority", ""),
            [field for field in fields if not field[0].startswith(":")],
            version="3",
            client=self.client,
            early=not self._confirmed,
        )
        reply = self._replies[event.stream_id] = H3Reply(self, event.stream_id, request)
        if request.headers.get("expect", "").lower() == "100-continue":
            request.body.wanted = lambda: reply.informational(100, [])
        if event.stream_ended:
            request.body.end()
        reply.start(self._handler)

    def _data_received(self, event: Any) -> None:
        if reply := self._replies.get(event.stream_id):
            if event.data:
                reply.request.body.feed(event.data)
            if event.stream_ended:
                reply.request.body.end(reply.request.body.trailers)

    # -- out -------------------------------------------------------------------------------------

    def headers(self, stream_id: int, fields: Fields, end: bool) -> None:
        """Send a field section. Raises `ConnectionResetError` if the client gave it up."""
        encoded = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in fields]
        try:
            self._h3.send_headers(stream_id, encoded, end_stream=end)
        except (ValueError, RuntimeError) as error:
            raise ConnectionResetError(str(error)) from error
        self._transmit()

    def body(self, stream_id: int, data: bytes, end: bool) -> None:
        """Send body bytes. Raises `ConnectionResetError` if the client gave the stream up."""
        try:
            self._h3.send_data(stream_id, data, end_stream=end)
        except (ValueError, RuntimeError) as error:
            raise ConnectionResetError(str(error)) from error
        self._transmit()

    def reset(self, stream_id: int) -> None:
        """Break a stream off."""
        self._quic.reset_stream(stream_id, _INTERNAL_ERROR)
        self._transmit()

    def forget(self, stream_id: int, body_complete: bool) -> None:
        """A stream's handler is done; stop an upload that nobody reads."""
        self._replies.pop(stream_id, None)
        if not body_complete:
            self._quic.stop_stream(stream_id, _NO_ERROR)
            self._transmit()

    def buffered(self, stream_id: int) -> int:
        """Response bytes not yet acknowledged. aioquic has no public way to ask."""
        if hasattr(self._quic, "get_send_buffer_size"):
            return int(self._quic.get_send_buffer_size(stream_id))
        stream = self._quic._streams.get(stream_id)
        return len(stream.sender._buffer) if stream else 0


class H3Reply(StreamReply):
    """One stream's response."""

    def __init__(self, connection: H3Connection, stream_id: int, request: Request) -> None:
        super().__init__(request)
        self._connection = connection
        self._id = stream_id
        self._room = Room()

    def _over(self) -> None:
        self._connection.forget(self._id, self.request.body.complete)

    def breathe(self) -> None:
        """Acknowledgements may have made room."""
        if self._connection.buffered(self._id) < _HIGH_WATER_BYTES // 2:
            self._room.clear()

    def informational(self, status: int, fields: Fields) -> None:
        self._connection.headers(self._id, [(":status", str(status)), *fields], False)

    def head(self, status: int, fields: Fields, *, end: bool = False) -> None:
        end = end or self.request.method == "HEAD"
        self._ended = end
        self._connection.headers(self._id, [(":status", str(status)), *fields], end)

    async def data(self, data: bytes) -> None:
        if self._ended or not data:
            return
        self._connection.body(self._id, data, False)
        if self._connection.buffered(self._id) > _HIGH_WATER_BYTES:
            self._room.shut()
            await self._room.wait()

    def end(self, trailers: Fields | None = None) -> None:
        if self._ended:
            return
        self._ended = True
        if trailers:
            self._connection.headers(self._id, trailers, True)
        else:
            self._connection.body(self._id, b"", True)

    def abort(self) -> None:
        self._ended = True
        self._connection.reset(self._id)
