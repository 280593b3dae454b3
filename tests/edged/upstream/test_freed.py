"""Connections that are over free themselves: the garbage collector comes by rarely
(`edged.heap.spare_the_collector`), and each would keep hundreds of KB until then.
"""

from __future__ import annotations

import gc
import weakref

import pytest
import trustme
import uvloop

from edged.upstream.tls import Tls
from policies.model import Carrier, Failure, Outcome
from tests.edged.upstream.pooling import polite, polite_h2
from tests.edged.upstream.support import eventually, get, path_to, server, setup
from tests.edged.upstream.test_tls import context_of
from tests.harness.h3 import Certificates, Client, answering, both_engines
from tests.harness.h3 import run as run_h3

pytestmark = pytest.mark.sources  # compiled classes do not clear weak references (docs/decisions)

GONE = Failure(Outcome.TIMEOUT, "the line died", path_down=True)


@pytest.fixture(autouse=True)
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def fetch(pools, path):
    """As an attempt does, let go of the stream when it is over."""
    events = await pools.fetch(path, get(scheme=b"https"))
    events.stream = events.pending = None
    return events.failure


def existing(*kinds):
    return sum(type(one).__name__ in kinds for one in gc.get_objects())


@pytest.mark.parametrize("end", ["line dies", "drained", "server goes"])
@pytest.mark.parametrize("carrier", [Carrier.H1, Carrier.H2])
def test_tcp_connections_free_themselves(carrier, end, tmp_path):
    ca, file = trustme.CA(), tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(file))
    h2 = carrier is Carrier.H2
    context = context_of(ca, "localhost", alpn=("h2" if h2 else "http/1.1",))
    writers = []

    async def handler(reader, writer):
        writers.append(writer)
        await (polite_h2 if h2 else polite)(reader, writer)

    async def main():
        async with server(handler, ssl=context) as port, setup(tls=Tls(str(file))) as pools:
            path = path_to(port, scheme="https", protocols=(carrier,))
            await fetch(pools, path)
            pool = pools.pools._pools[path.name]
            connection = next(iter(pool.connections))
            ref = weakref.ref(connection)
            if end == "line dies":
                pool.down("silence")
            elif end == "drained":
                connection.drain()
            else:
                writers.pop().close()
            del connection
            writers.clear()
            await eventually(lambda: not (ref() or existing("SSLProtocol")))

    uvloop.run(main())


@both_engines
def test_quic_connections_free_themselves(engine):
    certificates = Certificates()

    async def body(client: Client, origin):
        for failure in (None, GONE):
            connection = await client.connect()
            (await client.get(connection)).stream = None
            refs = [weakref.ref(connection), weakref.ref(connection.engine._quic)]
            connection.close(failure)
            client.pool.calls.clear()
            del connection
            await eventually(lambda refs=refs: not any(ref() for ref in refs))

    run_h3(engine, certificates, answering, body)


def test_what_is_dialled_in_vain_frees_itself():
    async def silent(reader, writer):
        await reader.read()

    async def main():
        options = {"connect_timeout": lambda upstream: 0.1, "tls": Tls()}
        async with server(silent) as port, setup(**options) as pools:
            path = path_to(port, scheme="https", protocols=(Carrier.H1,))
            assert (await fetch(pools, path)).outcome is Outcome.TIMEOUT
            await eventually(lambda: not existing("_Opening", "Handshake", "SSLProtocol"))

    uvloop.run(main())
