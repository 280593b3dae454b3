"""Pools before servers of the test's choice: the servers, what they are told, and connections that
are none."""

from __future__ import annotations

import asyncio

from edged.upstream.connection import Connection
from policies.model import Blame, Carrier, Change, Outcome, Verdict
from probes.base import DialError
from tests.edged.upstream.h2_peer import Peer
from tests.edged.upstream.support import server, setup
from tests.harness.coroutines import as_test

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
H3_PATH = {"scheme": "https", "protocols": (Carrier.H3, Carrier.H2, Carrier.H1)}


def pooling(handler, **options):
    """A decorator that makes a test of a coroutine function. If it takes ``pools``, that is a
    `Setup` with ``options``, and ``port`` where ``handler`` serves.
    """

    def play(call):
        async def main():
            async with server(handler) as port, setup(**options) as pools:
                await call(port=port, pools=pools)

        asyncio.run(main())

    return lambda scenario: as_test(scenario, ("port", "pools"), play)


async def polite(reader, writer):
    """h1: answers everything at once."""
    while True:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)


def gated(gate):
    """h1: answers when ``gate`` is open."""

    async def handler(reader, writer):
        while True:
            await reader.readuntil(b"\r\n\r\n")
            await gate.wait()
            writer.write(OK)

    return handler


async def polite_h2(reader, writer):
    peer = await Peer(reader, writer).start()
    while True:
        stream_id, _ = await peer.request()
        peer.send(peer.headers(stream_id, end=True))


def silent_after(first):
    """h2: answers ``first`` requests, then reads and says nothing more."""

    async def handler(reader, writer):
        peer = await Peer(reader, writer).start()
        for _ in range(first):
            stream_id, _ = await peer.request()
            peer.send(peer.headers(stream_id, end=True))
        while True:
            await peer.read()

    return handler


def change(path, new, old=Verdict.UP):
    return Change(path.name, old, new, Blame.LINE, f"line {path.line.name} is silent", 0.0)


def only_pool(pools) -> object:
    return next(iter(pools.pools._pools.values()))


def only_connection(pools) -> Connection:
    (connection,) = only_pool(pools).connections
    return connection


class FakeStream:
    carrier = Carrier.H3
    reused = False

    def send_head(self, head, *, end):
        pass


class FakeConnection:
    """A QUIC connection as the pool sees it."""

    carrier = Carrier.H3
    draining = False
    settled = True
    idle_since = rest = announced_s = None

    def __init__(self, path, owner, *, early=False):
        self.path = path
        self.owner = owner
        self.early = early
        self.capacity = 100
        self.in_flight = 0
        self.served = 0
        self.heard_at = asyncio.get_running_loop().time()
        self.failure = None

    def open_stream(self, events):
        self.capacity -= 1
        self.in_flight += 1
        return FakeStream()

    def ping(self, done, timeout_s):
        return False

    def fileno(self):
        return None

    def expect_loss(self, *, expected):
        pass

    def doubt(self):
        pass

    def leave(self):
        return False

    def drain(self):
        self.close()

    def close(self, failure=None):
        self.failure = failure
        self.draining, self.capacity = True, 0
        self.owner.closed(self, failure)


class FakeH3:
    """Connects, fails or stays silent after a time."""

    def __init__(self, after_s=0.0, error=None, *, early=False):
        self.after_s = after_s
        self.error = error
        self.early = early
        self.asked = []

    async def connect(self, path, owner, *, timeout_s, early_data=False, upgrade=False, only=None):
        self.asked.append(early_data)
        await asyncio.sleep(min(self.after_s, timeout_s))
        if self.error or self.after_s > timeout_s:
            raise DialError(self.error or Outcome.TIMEOUT, "h3 failed")
        return FakeConnection(path, owner, early=self.early and early_data)
