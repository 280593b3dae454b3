"""The HTTP/3 carrier against a server that nobody here wrote: Caddy, on both event loops."""

import asyncio
import hashlib
import os
from types import SimpleNamespace

import psutil
import pytest
import uvloop

from policies.model import Kind
from tests.edged.upstream.real_servers import CADDY, Certificate, caddy
from tests.harness.h3 import Client, both_engines, request, strictly, until

pytestmark = [
    both_engines,
    pytest.mark.skipif(not CADDY.exists(), reason="caddy is not installed"),
]
DOWN = 12_000_000
UP = 4_000_000
GROWTH = 8_000_000


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A Caddy: its port, CA file, and the content of ``/files/big``."""
    folder = tmp_path_factory.mktemp("caddy")
    files = folder / "files"
    files.mkdir()
    content = os.urandom(DOWN)
    (files / "big").write_bytes(content)
    certificate = Certificate.make(folder)
    routes = (
        f"handle_path /files/* {{\n root {files}\n file_server\n }}\n"
        "handle /hello {\n respond hello\n }\n"
        "handle /echo {\n respond {http.request.body}\n }\n"
    )
    with caddy(folder, certificate, routes, protocols="h1 h2 h3") as port:
        yield SimpleNamespace(
            port=port,
            ca=certificate.ca_file,
            digest=hashlib.sha256(content).digest(),
        )


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    return asyncio.run if request.param == "asyncio" else uvloop.run


def test_requests_0rtt_and_pings(engine, site, run):
    async def main():
        client = Client(engine, site, site.port)
        connection = await client.connect()
        attempts = [client.send(connection, request(path=b"/hello")) for _ in range(50)]
        await asyncio.gather(*(a.done for a in attempts))
        assert {bytes(a.received) for a in attempts} == {b"hello"}
        head = client.send(connection, request(b"HEAD", b"/files/big"))
        await head.done
        assert head.response.declared_length == DOWN
        rtts = []
        connection.ping(rtts.append, 5)
        await until(lambda: rtts)
        assert rtts[0] > 0
        assert any(s.kind is Kind.PING for s in client.samples)
        await until(lambda: client.connector.tickets.get(client.path))
        connection.drain()
        assert client.pool.ended == [None]
        again = await client.connect(early_data=True)
        assert again.early
        assert (await client.get(again, b"/hello")).received == b"hello"
        assert again.early_accepted
        again.close()
        assert client.dialer.all_closed()

    run(strictly(main()))


def test_large_bodies_in_flat_memory(engine, site):
    async def main():
        client = Client(engine, site, site.port)
        connection = await client.connect()
        process = psutil.Process()
        before = peak = process.memory_info().rss
        digest = hashlib.sha256()

        def on_data(attempt):
            nonlocal peak
            digest.update(attempt.received)
            attempt.received.clear()
            peak = max(peak, process.memory_info().rss)

        attempt = client.send(connection, request(path=b"/files/big"), on_data=on_data)
        await attempt.done
        assert attempt.failure is None
        assert digest.digest() == site.digest

        digest, sent = hashlib.sha256(), hashlib.sha256()
        head = request(b"POST", b"/echo", body_length=UP)
        upload = client.send(connection, head, end=False, on_data=on_data)
        for i in range(UP // 100_000):
            await upload.writable.wait()
            chunk = bytes([i]) * 100_000
            sent.update(chunk)
            upload.stream.send_data(chunk)
            peak = max(peak, process.memory_info().rss)
        upload.stream.send_end()
        await upload.done
        assert upload.failure is None
        assert upload.body_pauses
        assert digest.digest() == sent.digest()
        assert peak - before < GROWTH
        connection.close()

    uvloop.run(strictly(main()))
