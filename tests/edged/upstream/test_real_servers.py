"""h1 and h2 against servers that nobody here wrote: Caddy, nginx, HAProxy."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from contextlib import contextmanager

import psutil
import pytest
import uvloop

from edged.upstream.tls import Tls
from policies.model import Carrier, Kind
from tests.edged.upstream.real_servers import CADDY, Certificate, caddy, haproxy, nginx
from tests.edged.upstream.support import Events, eventually, get, path_to, server, setup

H1, H2 = Carrier.H1, Carrier.H2
SMALL, LARGE = 4_000_000, 32_000_000
CARRIERS = [
    pytest.param(H1, "fast", id="h1"),
    pytest.param(H2, "fast", id="h2-fast"),
    pytest.param(H2, "pure", id="h2-pure"),
]
SERVERS = [
    pytest.param(
        "caddy", marks=pytest.mark.skipif(not CADDY.exists(), reason="caddy is not installed")
    ),
    *(
        pytest.param(
            name, marks=pytest.mark.skipif(not shutil.which(name), reason=f"no {name} here")
        )
        for name in ("nginx", "haproxy")
    ),
]


class Memory:
    """The most that this process held beyond what it held at first."""

    def __init__(self):
        self.process = psutil.Process()
        self.first = self.process.memory_info().rss
        self.grown = 0

    def look(self):
        self.grown = max(self.grown, self.process.memory_info().rss - self.first)


class Sink(Events):
    """Hashes what arrives instead of keeping it."""

    def __init__(self, memory, *args):
        super().__init__(*args)
        self.memory = memory
        self.hash = hashlib.sha256()
        self.size = 0

    def data(self, data):
        self.hash.update(data)
        self.size += len(data)
        self.memory.look()


def origin(size_down):
    """Plain h1: GET gives so many bytes, PUT the SHA-256 of its body."""

    async def handler(reader, writer):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"PUT"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size_down)
            if head.startswith(b"HEAD"):
                continue
            if head.startswith(b"GET"):
                for start in range(0, size_down, 100_000):
                    writer.write(block(start))
                    await writer.drain()
                continue
            fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:-2])
            digest = hashlib.sha256()
            if b"content-length" in fields:
                left = int(fields[b"content-length"])
                while left:
                    data = await reader.read(min(left, 1 << 16))
                    left -= len(data)
                    digest.update(data)
            else:
                while size := int(await reader.readline(), 16):
                    digest.update(await reader.readexactly(size))
                    await reader.readline()
                await reader.readline()
            text = digest.hexdigest().encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 64\r\n\r\n" + text)

    return handler


def block(start):
    return (b"%010d" % start) * 10_000


def expected(size):
    digest = hashlib.sha256()
    for start in range(0, size, 100_000):
        digest.update(block(start))
    return digest.hexdigest()


@contextmanager
def front(name, directory, certificate, backend):
    if name == "caddy":
        routes = f"reverse_proxy 127.0.0.1:{backend}"
        with caddy(directory, certificate, routes, protocols="h1 h2") as port:
            yield port
    elif name == "nginx":
        location = (
            f"location / {{ proxy_pass http://127.0.0.1:{backend}; proxy_http_version 1.1;"
            ' proxy_set_header connection ""; proxy_request_buffering off; }'
        )
        with nginx(directory, certificate, location, h2=True) as port:
            yield port
    else:
        with haproxy(directory, certificate, backend) as port:
            yield port


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize(("carrier", "engine"), CARRIERS)
def test_requests_downloads_and_uploads(name, carrier, engine, tmp_path):
    exchange_with(name, carrier, engine, tmp_path, SMALL)


@pytest.mark.skipif(not shutil.which("nginx"), reason="no nginx here")
@pytest.mark.parametrize(("carrier", "engine"), CARRIERS[:2])
def test_memory_stays_flat(carrier, engine, tmp_path):
    # The origin shares this process: its buffers are in the figure as well.
    grown = exchange_with("nginx", carrier, engine, tmp_path, LARGE)
    assert grown < 24_000_000


def exchange_with(name, carrier, engine, directory, size):
    certificate = Certificate.make(directory)
    memory = Memory()

    async def main():
        async with server(origin(size)) as backend:
            context = front(name, directory, certificate, backend)
            port = await asyncio.to_thread(context.__enter__)
            try:
                async with setup(tls=Tls(certificate.ca_file), engine=engine) as pools:
                    await scenario(pools, path_to(port, scheme="https", protocols=(carrier,)))
            finally:
                await asyncio.to_thread(context.__exit__, None, None, None)

    async def scenario(pools, path):
        down = Sink(memory, get(scheme=b"https"))
        pools.pools.open(path, down, early_data=True)
        await down.done(30)
        assert down.failure is None
        assert (down.size, down.hash.hexdigest()) == (size, expected(size))
        assert down.stream.carrier is carrier
        for length in (size, None):
            up = await upload(pools, path, size, length, memory)
            assert up.content.decode() == expected(size)
        small = [pools.open(path, get(b"/", method=b"HEAD", scheme=b"https")) for _ in range(20)]
        for e in small:
            await e.done()
            assert e.ended
        connections = list(pools.pools.pingable(path.name))
        assert all(connection.carrier is H2 for connection in connections)
        if carrier is H2:
            assert connections[0].ping(lambda rtt_s: None, 5)
            await eventually(lambda: any(s.kind is Kind.PING and s.rtt_s for s in pools.samples))

    uvloop.run(main())
    return memory.grown


async def upload(pools, path, size, length, memory):
    events = pools.open(path)
    await events.until(lambda e: e.stream)
    events.stream.send_head(get(method=b"PUT", scheme=b"https", length=length), end=False)
    for start in range(0, size, 100_000):
        events.stream.send_data(block(start))
        if events.pauses > events.resumes:
            await events.until(lambda e: e.pauses == e.resumes, 30)
        memory.look()
    events.stream.send_end()
    await events.done(30)
    assert events.failure is None
    return events


@pytest.mark.skipif(not shutil.which("nginx"), reason="no nginx here")
@pytest.mark.parametrize("engine", ["fast", "pure"])
def test_nginx_ends_its_connections_with_goaway_and_no_request_notices(engine, tmp_path):
    location = "keepalive_requests 10; location / { return 200 ok; }"
    with nginx(tmp_path, None, location, h2=True) as port:

        async def main():
            async with setup(engine=engine) as pools:
                path = path_to(port, protocols=(H2,))
                for _ in range(10):
                    events = [pools.open(path, get()) for _ in range(7)]
                    for e in events:
                        await e.done()
                        if e.failure is not None:
                            assert e.failure.unprocessed, e.failure
                assert pools.dialer.dials >= 5

        uvloop.run(main())


@pytest.mark.skipif(not CADDY.exists(), reason="caddy is not installed")
def test_caddy_says_that_it_speaks_h3(tmp_path):
    certificate = Certificate.make(tmp_path)
    with caddy(tmp_path, certificate, "respond ok", protocols="h1 h2 h3") as port:

        async def main():
            async with setup(tls=Tls(certificate.ca_file)) as pools:
                path = path_to(port, scheme="https")
                assert (await pools.fetch(path, get(scheme=b"https"))).ended
                now = asyncio.get_running_loop().time()
                assert pools.pools.carriers.speaks_h3(path, now)

        uvloop.run(main())
