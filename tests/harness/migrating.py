"""A client connection with several lines to one origin: a forwarder each, told apart by port."""

import asyncio
import contextlib
import socket

from edged.upstream import h3_tending
from edged.upstream.h3 import H3Connector
from edged.upstream.migration import MigrationTools
from policies.model import (
    Breaker,
    Carrier,
    Endpoint,
    Estimate,
    Kind,
    Line,
    Path,
    PathState,
    Verdict,
)
from policies.refusals import Refusals
from probes.base import Dialed, DialError, Outcome
from tests.harness.h3 import Attempt, Forwarder, Origin, Pool, request, strictly, until


def state_of(path, rtt_s=None, verdict=Verdict.UP):
    """What a snapshot says of ``path``."""
    estimate = Estimate(rtt_s=rtt_s)
    return PathState(path, verdict, Breaker.CLOSED, None, estimate, None, None, None, 0, None)


def tend_soon(monkeypatch):
    """Connections prepare a move, and show signs of life, within fractions of a second."""
    monkeypatch.setattr(h3_tending, "TEND_S", 0.02)
    monkeypatch.setattr(h3_tending, "KEEPALIVE_S", 0.05)


class Wire(Forwarder):
    """A forwarder that remembers the datagrams of clients, and may lose only one direction."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.up = []
        self.deaf = False
        """What the origin sends does not arrive."""

    def datagram_received(self, data, client):
        self.up.append(data)
        super().datagram_received(data, client)

    def _back(self, link, client):
        if self.deaf:
            with contextlib.suppress(OSError):
                while link.recv(65535):
                    pass
            return
        super()._back(link, client)

    def ids(self, length=8):
        """The destination connection ids in the short headers seen so far."""
        return {data[1 : 1 + length] for data in self.up if not data[0] & 0x80}


class Mobile:
    """``async with Mobile(engine, certificates, port, a=0.02, b=0.05) as mobile``: a connector
    over lines with these round trips; `connect` takes the first, and the others are alternatives.
    """

    def __init__(self, engine, certificates, port, **rtts_s):
        self.rtts_s = rtts_s
        self.wires = {name: Wire(port, rtt_s / 2) for name, rtt_s in rtts_s.items()}
        endpoint = Endpoint("up", "e", "https", "localhost", port, protocols=(Carrier.H3,))
        self.paths = {name: Path(Line(name), endpoint) for name in rtts_s}
        self.up = set(rtts_s)
        """Lines that are not DOWN."""
        self.suspect = set()
        """Of these, lines that are SUSPECT."""
        self.last_resorts = set()
        """Lines that are DOWN, and told all the same."""
        self.opened = []
        """(line, address, port) of each socket for a move."""
        self.samples = []
        self.sockets = []
        self.refusals = Refusals()
        self.pool = Pool()
        self.connector = H3Connector(
            self,
            self.samples.append,
            ca_file=certificates and certificates.ca,
            engine=engine,
            migration=MigrationTools(
                self.alternatives, self.open_udp, self._verdict, self.refusals
            ),
        )

    async def __aenter__(self):
        self._stack = contextlib.AsyncExitStack()
        for wire in self.wires.values():
            await self._stack.enter_async_context(wire)
        return self

    async def __aexit__(self, kind, *_):
        await self._stack.aclose()
        assert kind or all(sock.fileno() == -1 for sock in self.sockets)

    def alternatives(self, path):
        return [
            state_of(other, self.rtts_s[name], self._verdict(name))
            for name, other in self.paths.items()
            if name in self.up | self.last_resorts and name != path.line.name
        ]

    def _verdict(self, name):
        if name not in self.up:
            return Verdict.DOWN
        return Verdict.SUSPECT if name in self.suspect else Verdict.UP

    def open_udp(self, line, host, address, port):
        if line.name not in self.up | self.last_resorts:
            raise DialError(Outcome.UNREACHABLE, "no such line")
        self.opened.append((line.name, address, port))
        return self._socket(line)

    async def connect_udp(self, line, host, port, *, address=None, timeout_s):
        return Dialed(self._socket(line), ("127.0.0.1", port), 0.0, 0.0)

    def _socket(self, line):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect(("127.0.0.1", self.wires[line.name].port))
        self.sockets.append(sock)
        return sock

    async def connect(self, **options):
        options.setdefault("timeout_s", 5)
        first = next(iter(self.paths.values()))
        return await self.connector.connect(first, self.pool, **options)

    def send(self, connection, head=None, end=True, **hooks):
        attempt = Attempt(**hooks)
        stream = connection.open_stream(attempt)
        attempt.stream_ready(stream)
        stream.send_head(head or request(), end=end)
        return attempt

    def die(self, name):
        """Silence a line, and say that it is DOWN."""
        self.wires[name].dead = True
        self.up.discard(name)

    def reported(self, kind=None):
        """The names of the lines that samples came from."""
        return [s.path.partition(">")[0] for s in self.samples if kind in (None, s.kind)]


class Talk:
    """The origin's script: each request is answered piece by piece, as the test says."""

    def __init__(self):
        self.exchanges = []
        self.said = 0

    def __call__(self, exchange):
        self.exchanges.append(exchange)
        exchange.head()

    def say(self, count=1):
        for _ in range(count):
            for exchange in self.exchanges:
                exchange.data(b"token %d\n" % self.said)
            self.said += 1

    def end(self):
        for exchange in self.exchanges:
            exchange.data(b"", end=True)

    @property
    def text(self):
        return b"".join(b"token %d\n" % i for i in range(self.said))


def run(engine, certificates, body, script=None, rtts_s=None, tweak=None, **origin_options):
    async def main():
        talk = script or Talk()
        origin = Origin(certificates, talk, **origin_options)
        if tweak is not None:
            tweak(origin)
        async with origin:
            rtts = rtts_s or {"a": 0.02, "b": 0.04}
            async with Mobile(engine, certificates, origin.port, **rtts) as mobile:
                await body(mobile, origin, talk)

    asyncio.run(strictly(main()))


async def confirmed(mobile):
    """A connection that may migrate (RFC 9000 section 9: not during the handshake)."""
    connection = await mobile.connect()
    await until(connection.engine.may_migrate)
    return connection


async def talking(mobile, talk):
    """A connection whose one response has begun."""
    connection = await mobile.connect()
    attempt = mobile.send(connection)
    await until(lambda: talk.exchanges)
    talk.say(3)
    await until(lambda: attempt.received.count(b"\n") == 3)
    return connection, attempt


async def prepared(mobile):
    """Wait for the standby to be validated."""
    await until(lambda: "b" in mobile.reported(Kind.PING))


async def over(talk, attempt):
    """The rest of the response arrived, once and in order."""
    talk.say(3)
    await until(lambda: attempt.received.count(b"\n") == talk.said)
    talk.end()
    await attempt.done
    assert attempt.failure is None
    assert attempt.received == talk.text
