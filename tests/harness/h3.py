"""Both sides of HTTP/3 for tests: scripted origin, UDP forwarder with faults, recording client.

The origin is `aioquic`'s server; a test's script drives it frame by frame where it must misbehave.
"""

import asyncio
import contextlib
import importlib.util
import random
import socket
import tempfile
from pathlib import Path as FilePath

import pytest
import trustme
from aioquic.asyncio import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer
from aioquic.h3.connection import H3Connection as EngineH3
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import StopSendingReceived, StreamReset

from edged.messages import RequestHead
from edged.upstream.h3 import H3Connector
from policies.model import Carrier, Endpoint, Line, Path
from probes.base import Dialed

LINE = Line("loop")
FAST = pytest.param(
    "fast",
    marks=pytest.mark.skipif(
        not (importlib.util.find_spec("qh3") and importlib.util.find_spec("jh2")),
        reason="the extra [fast] is not installed",
    ),
)
both_engines = pytest.mark.parametrize("engine", [FAST, "pure"])


class Certificates:
    """A CA and a certificate for localhost, as files."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory()
        folder = FilePath(self._folder.name)
        ca = trustme.CA()
        cert = ca.issue_cert("localhost", "127.0.0.1")
        self.ca, self.cert, self.key = (
            str(folder / name) for name in ("ca.pem", "cert.pem", "key.pem")
        )
        ca.cert_pem.write_to_path(self.ca)
        cert.private_key_pem.write_to_path(self.key)
        FilePath(self.cert).write_bytes(b"".join(b.bytes() for b in cert.cert_chain_pems))


class Exchange:
    """One request as the origin sees it, and the means to answer it well or badly."""

    def __init__(self, protocol, stream_id, headers):
        self.protocol, self.id, self.headers = protocol, stream_id, dict(headers)
        self.body = bytearray()
        self.ended = False
        self.reset_code = None
        self.stop_code = None

    @property
    def path(self):
        return self.headers[b":path"]

    def head(self, status=200, headers=(), end=False):
        fields = [(b":status", b"%d" % status), *headers]
        self.protocol.http.send_headers(self.id, fields, end)
        self.protocol.transmit()

    def data(self, data, end=False):
        self.protocol.http.send_data(self.id, data, end)
        self.protocol.transmit()

    def trailers(self, headers):
        self.protocol.http.send_headers(self.id, headers, True)
        self.protocol.transmit()

    def answer(self, body=b"ok", status=200, headers=()):
        self.head(status, [(b"content-length", b"%d" % len(body)), *headers])
        self.data(body, end=True)

    def raw(self, data, end=False):
        self.protocol._quic.send_stream_data(self.id, data, end)
        self.protocol.transmit()

    def reset(self, code):
        self.protocol._quic.reset_stream(self.id, code)
        self.protocol.transmit()

    def stop(self, code):
        self.protocol._quic.stop_stream(self.id, code)
        self.protocol.transmit()

    def goaway(self, last_id):
        self.control(b"\x07\x02" + (last_id | 0x4000).to_bytes(2, "big"))

    def control(self, data):
        self.protocol._quic.send_stream_data(
            self.protocol.http._local_control_stream_id, data, False
        )
        self.protocol.transmit()

    def close(self, code=0x100):
        self.protocol._quic.close(error_code=code)
        self.protocol.transmit()


class Origin:
    """Calls ``script(exchange)`` when a request's head came and ``script.ended`` never: poll it."""

    def __init__(self, certificates, script, alpn=("h3",), streams=None, retry=False):
        self.certificates, self.script, self.streams = certificates, script, streams
        self.retry = retry
        self.exchanges = []
        self.protocols = []
        self.tickets = {}
        self.configuration = QuicConfiguration(is_client=False, alpn_protocols=list(alpn))
        self.configuration.load_cert_chain(certificates.cert, certificates.key)

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        transport, self._server = await loop.create_datagram_endpoint(
            lambda: QuicServer(
                configuration=self.configuration,
                create_protocol=self._protocol,
                session_ticket_fetcher=self.tickets.get,
                session_ticket_handler=lambda t: self.tickets.__setitem__(t.ticket, t),
                retry=self.retry,
            ),
            local_addr=("127.0.0.1", 0),
        )
        self.port = transport.get_extra_info("sockname")[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()

    def _protocol(self, quic, stream_handler=None):
        origin = self

        class Protocol(QuicConnectionProtocol):
            http = None

            def quic_event_received(self, event):
                if self.http is None:
                    self.http = EngineH3(self._quic)
                if isinstance(event, StreamReset | StopSendingReceived):
                    for exchange in origin.exchanges:
                        if exchange.protocol is self and exchange.id == event.stream_id:
                            kind = "reset_code" if isinstance(event, StreamReset) else "stop_code"
                            setattr(exchange, kind, event.error_code)
                for item in self.http.handle_event(event):
                    self.http_event(item)

            def http_event(self, event):
                if isinstance(event, HeadersReceived):
                    exchange = Exchange(self, event.stream_id, event.headers)
                    origin.exchanges.append(exchange)
                    exchange.ended = event.stream_ended
                    origin.script(exchange)
                elif isinstance(event, DataReceived):
                    for exchange in origin.exchanges:
                        if exchange.protocol is self and exchange.id == event.stream_id:
                            exchange.body += event.data
                            exchange.ended = event.stream_ended

        if self.streams is not None:
            quic._local_max_streams_bidi.value = self.streams
            quic._local_max_streams_bidi.sent = self.streams
        protocol = Protocol(quic)
        self.protocols.append(protocol)
        return protocol


class Forwarder:
    """Datagrams from any client to one port and back, with delay, seeded loss and blackholes."""

    def __init__(self, port, delay_s=0.0, loss=0.0, seed=1):
        self.target = ("127.0.0.1", port)
        self.delay_s, self.loss = delay_s, loss
        self.dead = False
        self.random = random.Random(seed)
        self.forwarded = self.lost = 0
        self._links = {}
        self._answers = None

    async def __aenter__(self):
        self._loop = asyncio.get_running_loop()
        self._front, _ = await self._loop.create_datagram_endpoint(
            lambda: self, local_addr=("127.0.0.1", 0)
        )
        self.port = self._front.get_extra_info("sockname")[1]
        return self

    async def __aexit__(self, *_):
        self.dead = True
        self._front.close()
        for link in self._links.values():
            self._loop.remove_reader(link)
            link.close()

    def connection_made(self, transport):
        raw = transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)

    def connection_lost(self, error): ...
    def error_received(self, error): ...
    def pause_writing(self): ...
    def resume_writing(self): ...

    def datagram_received(self, data, client):
        link = self._links.get(client)
        if link is None:
            link = self._links[client] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            link.connect(self.target)
            link.setblocking(False)
            self._loop.add_reader(link, self._back, link, client)
        self._pass(link.send, data)

    def mute(self, answers):
        """Let so many more datagrams of the origin through, and no others; ``None``: all."""
        self._answers = answers

    def _back(self, link, client):
        for _ in range(64):
            try:
                data = link.recv(65535)
            except OSError:
                return
            if self._answers is not None:
                if not self._answers:
                    self.lost += 1
                    continue
                self._answers -= 1
            self._pass(lambda d: self._front.sendto(d, client), data)

    def _pass(self, send, data):
        if self.dead or (self.loss and self.random.random() < self.loss):
            self.lost += 1
            return
        self.forwarded += 1
        if self.delay_s:
            self._loop.call_later(self.delay_s, self._late, send, data)
        else:
            self._late(send, data)

    def _late(self, send, data):
        if not self.dead:
            with contextlib.suppress(OSError):
                send(data)


class LoopbackDialer:
    """Connected UDP sockets to 127.0.0.1; remembers them."""

    def __init__(self):
        self.sockets = []

    async def connect_udp(self, line, host, port, *, address=None, timeout_s):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect(("127.0.0.1", port))
        self.sockets.append(sock)
        return Dialed(sock, ("127.0.0.1", port), 0.0, 0.0)

    def all_closed(self):
        return all(sock.fileno() == -1 for sock in self.sockets)


class Pool:
    """Records what a connection tells its owner."""

    def __init__(self):
        self.calls = []
        self.capacities = []

    def capacity_changed(self, connection):
        self.calls.append("capacity")
        self.capacities.append(connection.capacity)

    def draining(self, connection):
        self.calls.append("draining")

    def closed(self, connection, failure):
        self.calls.append(("closed", failure))

    def alt_svc(self, connection, value):
        self.calls.append(("alt_svc", value))

    def moved(self, connection, path):
        self.calls.append(("moved", path.name))
        return self

    @property
    def ended(self):
        return [call[1] for call in self.calls if call[0] == "closed"]


class Attempt:
    """Records what a stream tells its attempt, in order, and can be waited for."""

    def __init__(self, on_data=None, on_head=None, on_pause=None):
        self.log = []
        self.received = bytearray()
        self.response = None
        self.trailers = None
        self.failure = None
        self.body_pauses = self.body_resumes = 0
        self.done = asyncio.get_running_loop().create_future()
        self.stream = None
        self.on_data, self.on_head = on_data, on_head
        self.writable = asyncio.Event()
        self.writable.set()

    def stream_ready(self, stream):
        self.stream = stream

    def informational(self, status, headers):
        self.log.append((status, headers))

    def head(self, head):
        self.log.append("head")
        self.response = head
        if self.on_head:
            self.on_head(self)

    def data(self, data):
        self.log.append(len(data))
        self.received += data
        if self.on_data:
            self.on_data(self)

    def end(self, trailers):
        self.log.append("end")
        self.trailers = trailers
        self.done.set_result(None)

    def failed(self, failure):
        self.log.append("failed")
        self.failure = failure
        self.done.set_result(failure)

    def moved(self, path):
        self.log.append(("moved", path.line.name))

    def stalled(self, reason):
        self.log.append("stalled")

    def pause_body(self):
        self.body_pauses += 1
        self.writable.clear()

    def resume_body(self):
        self.body_resumes += 1
        self.writable.set()


def request(method=b"GET", path=b"/", headers=(), body_length=0):
    return RequestHead(method, b"https", b"localhost", path, list(headers), body_length)


class Client:
    """A connector on one engine, with its samples, to a port."""

    def __init__(self, engine, certificates, port, host="localhost"):
        self.samples = []
        self.dialer = LoopbackDialer()
        self.connector = H3Connector(
            self.dialer,
            self.samples.append,
            ca_file=certificates and certificates.ca,
            engine=engine,
        )
        self.pool = Pool()
        self.path = self.path_to(port, host)

    @staticmethod
    def path_to(port, host="localhost"):
        return Path(LINE, Endpoint("up", "e", "https", host, port, protocols=(Carrier.H3,)))

    async def connect(self, **options):
        options.setdefault("timeout_s", 5)
        return await self.connector.connect(self.path, self.pool, **options)

    def send(self, connection, head=None, end=True, **hooks):
        attempt = Attempt(**hooks)
        stream = connection.open_stream(attempt)
        attempt.stream_ready(stream)
        stream.send_head(head or request(), end=end)
        return attempt

    async def get(self, connection, path=b"/", **hooks):
        attempt = self.send(connection, request(path=path), **hooks)
        await asyncio.wait_for(attempt.done, 20)
        return attempt


async def until(condition, timeout_s=10):
    """Wait for ``condition()`` to hold."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


def run(engine, certificates, script, body, *, through=None, host="localhost", **origin_options):
    """Run ``body(client, origin[, forwarder])``; then no socket of the client may be open."""

    async def main():
        async with Origin(certificates, script, **origin_options) as origin:
            if through is None:
                client = Client(engine, certificates, origin.port, host)
                await body(client, origin)
            else:
                async with Forwarder(origin.port, **through) as forwarder:
                    client = Client(engine, certificates, forwarder.port, host)
                    await body(client, origin, forwarder)
            assert client.dialer.all_closed()

    asyncio.run(strictly(main()))


async def strictly(scenario):
    """``scenario`` within 30 s, and nothing that the loop would only log."""
    logged = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: logged.append(context))
    await asyncio.wait_for(scenario, 30)
    assert not logged, logged


def answering(exchange):
    """The plainest script."""
    exchange.answer(b"hello", headers=[(b"x-path", exchange.path)])
