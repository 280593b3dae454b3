"""An HTTP/3 client for tests of edged's server side, on either engine, with its hands free.

Each request is a `Reply` that fills up as events come; bodies can be sent piece by piece.
"""

import asyncio
import contextlib
import importlib
import ssl


class Reply:
    """One request as the client sees it."""

    def __init__(self, connection, stream_id):
        self.connection, self.id = connection, stream_id
        self.interim = []
        self.status = None
        self.headers = {}
        self.body = b""
        self.trailers = None
        self.ended = None
        """``end``, or the code of a reset, or ``gone``."""

    def send(self, data, end=False):
        self.connection.http.send_data(self.id, data, end)
        self.connection.transmit()

    def raw(self, data, end=False):
        self.connection._quic.send_stream_data(self.id, data, end)
        self.connection.transmit()

    def trail(self, headers):
        self.connection.http.send_headers(self.id, headers, True)
        self.connection.transmit()

    def reset(self, code=0x10C):
        self.connection._quic.reset_stream(self.id, code)
        self.connection._quic.stop_stream(self.id, code)
        self.connection.transmit()

    async def until(self, condition=lambda reply: reply.ended is not None, timeout_s=15):
        async with asyncio.timeout(timeout_s):
            while not condition(self):
                self.connection.changed.clear()
                await self.connection.changed.wait()
        return self


def _connection_class(engine):
    protocol = importlib.import_module(f"{engine}.asyncio.protocol").QuicConnectionProtocol
    h3 = importlib.import_module(f"{engine}.h3.connection")
    h3_events = importlib.import_module(f"{engine}.h3.events")
    events = importlib.import_module(f"{engine}.quic.events")

    class Connection(protocol):
        def __init__(self, *args, **named):
            super().__init__(*args, **named)
            self.http = None
            self.replies = {}
            self.changed = asyncio.Event()
            self.closed = None

        def open(self):
            if self.http is None:
                self.http = h3.H3Connection(self._quic)

        def request(
            self, method="GET", path="/", headers=(), body=None, *, end=True, authority="a"
        ):
            """Send a request; ``end=False`` leaves it open for more of the body."""
            self.open()
            stream_id = self._quic.get_next_available_stream_id()
            reply = self.replies[stream_id] = Reply(self, stream_id)
            fields = [
                (b":method", method.encode()),
                (b":scheme", b"https"),
                (b":authority", b"a"),
                (b":path", path.encode()),
                *((n.encode(), v.encode()) for n, v in headers),
            ]
            self.http.send_headers(stream_id, fields, end and not body)
            if body:
                self.http.send_data(stream_id, body, end)
            self.transmit()
            return reply

        def quic_event_received(self, event):
            self.open()
            if isinstance(event, events.ConnectionTerminated):
                self.closed = event.error_code
                for reply in self.replies.values():
                    reply.ended = reply.ended or "gone"
            elif isinstance(event, events.StreamReset) and event.stream_id in self.replies:
                self.replies[event.stream_id].ended = event.error_code
            for happened in self.http.handle_event(event):
                reply = self.replies.get(getattr(happened, "stream_id", None))
                if reply is not None:
                    self.tell(reply, happened)
            self.changed.set()

        def tell(self, reply, happened):
            if isinstance(happened, h3_events.DataReceived):
                reply.body += happened.data
            elif isinstance(happened, h3_events.HeadersReceived):
                fields = dict(happened.headers)
                status = int(fields.get(b":status", b"0"))
                if reply.status is not None:
                    reply.trailers = fields
                elif status < 200:
                    reply.interim.append(status)
                else:
                    reply.status, reply.headers = status, fields
            elif hasattr(happened, "headers"):
                reply.interim.append(int(dict(happened.headers)[b":status"]))
            if getattr(happened, "stream_ended", False):
                reply.ended = reply.ended or "end"

    return Connection


@contextlib.asynccontextmanager
async def connect(
    port,
    *,
    host="127.0.0.1",
    ca=None,
    engine="aioquic",
    ticket=None,
    on_ticket=None,
    **options,
):
    """A connection to ``host``, ``port``. With ``ticket`` it may be used before the handshake."""
    configuration_class = importlib.import_module(f"{engine}.quic.configuration").QuicConfiguration
    client = importlib.import_module(f"{engine}.asyncio.client")
    configuration = configuration_class(
        is_client=True,
        alpn_protocols=["h3"],
        server_name="localhost",
        max_datagram_frame_size=65536,
        session_ticket=ticket,
        **options,
    )
    if ca is None:
        configuration.verify_mode = ssl.CERT_NONE
    else:
        configuration.load_verify_locations(ca)
    async with client.connect(
        host,
        port,
        configuration=configuration,
        create_protocol=_connection_class(engine),
        session_ticket_handler=on_ticket,
        wait_connected=ticket is None,
    ) as connection:
        connection.open()
        yield connection
