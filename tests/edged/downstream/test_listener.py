"""Binding, limits, draining, counters."""

import asyncio
import contextlib
import errno
import socket

import pytest

from edged.downstream.limits import Limits
from edged.downstream.listener import Listener
from edged.messages import ResponseHead
from tests.harness.clients import Recorder, Served, ok, run, serving, turns
from tests.harness.user import unprivileged

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@serving(ok)
async def test_port_in_use_is_said_plainly(served):
    with pytest.raises(OSError, match=r"127\.0\.0\.1:\d+ is in use by another") as raised:
        await Listener(ok).start(*served.address)
    assert raised.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize(
    ("host", "text"), [("192.0.2.1", "no address of this host"), ("not-an-ip", "can't listen on")]
)
def test_address_that_is_not_ours(host, text):
    async def scenario():
        with pytest.raises(OSError, match=text):
            await Listener(ok).start(host, 0)

    run(scenario)


def test_no_permission():
    async def scenario():
        with unprivileged(), pytest.raises(OSError, match="CAP_NET_BIND_SERVICE"):
            await Listener(ok).start("127.0.0.1", 1)

    run(scenario)


@serving(ok)
async def test_several_addresses_share_limits_and_counters(served):
    second = await served.listener.start("::1", 0)
    one = await served.connect(GET)
    await one.response()
    reader, writer = await asyncio.open_connection(*second)
    writer.write(GET)
    assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"
    assert len(served.listener.addresses) == 2
    assert served.hub.connections_total == 2
    assert served.hub.requests_total == 2
    writer.close()


@serving(ok, limits=Limits(connections=2))
async def test_connections_beyond_the_limit_are_closed_and_counted(served):
    kept = [await served.connect(GET) for _ in range(2)]
    for client in kept:
        await client.response()
    refused = await served.connect(GET)
    assert await refused.rest() == b""
    assert served.hub.connections_refused == 1
    kept[0].close()
    await turns()
    again = await served.connect(GET)
    await again.response()


@serving(ok)
async def test_limits_can_be_changed_while_it_runs(served):
    client = await served.connect(GET)
    await client.response()
    served.listener.reconfigure(Limits(uri_bytes=10))
    client.send(b"GET /12345678901 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await client.rest()).startswith(b"HTTP/1.1 414 ")


@serving()
async def test_drain_lets_the_answer_in_flight_finish_and_closes_idle_clients(served, recorder):
    busy = await served.connect(GET)
    request = await recorder.number(1)
    idle = await served.connect()
    await turns()
    draining = asyncio.ensure_future(served.listener.drain(10))
    assert await idle.rest() == b""
    with pytest.raises(OSError):
        await asyncio.open_connection(*served.address)
    request.answer(body=b"last words")
    answer = await busy.rest()
    assert b"connection: close\r\n" in answer
    assert answer.endswith(b"last words")
    assert await draining == 0


@serving()
async def test_drain_cuts_what_outlives_its_deadline(served):
    client, request = await served.ask(GET)
    request.responder.head(ResponseHead(200, [], None))
    request.responder.data(b"abc")
    await client.head()
    assert await served.listener.drain(0.05) == 1
    assert request.is_gone
    assert b"0\r\n\r\n" not in await client.rest()
    assert not served.hub.connections
    assert served.hub.requests_open == 0


def test_a_sweep_runs_by_itself():
    async def scenario():
        async with Served(Recorder(ok), Limits(idle_s=0.01), sweeps=True) as served:
            client = await served.connect()
            assert await client.rest() == b""

    run(scenario)


def test_ipv6_listener_leaves_ipv4_alone():
    async def scenario():
        for _ in range(20):  # another process may have the number on IPv4 just now
            async with Served(Recorder(ok), host="::1") as served:
                with socket.socket() as sock, contextlib.suppress(OSError):
                    sock.bind(("127.0.0.1", served.address[1]))
                    return
        raise AssertionError("no port of IPv4 was free beside a listener on IPv6")

    run(scenario)


def test_closing_waits_for_no_client_that_does_not_read():
    def cut_short(request):
        request.responder.head(ResponseHead(200, []))
        request.responder.data(bytes(8 << 20))  # more than the socket takes
        request.responder.abort()

    async def scenario():
        async with Served(Recorder(cut_short)) as served:
            client = await served.connect(GET)
            client.writer.transport.pause_reading()
            while not served.hub.requests_total or served.hub.requests_open:
                await asyncio.sleep(0.001)
            assert served.hub.connections
            await asyncio.wait_for(served.listener.close(), 5)

    run(scenario)
