"""What is done before an idle connection gets a request: patience learnt, addresses changed."""

from __future__ import annotations

import asyncio
import shutil

import pytest
import uvloop

from edged.upstream.pool_types import PoolLimits
from policies.model import Carrier, Estimate, Outcome, Verdict
from tests.edged.upstream.h2_peer import Peer
from tests.edged.upstream.pooling import (
    OK,
    change,
    gated,
    only_connection,
    only_pool,
    polite,
    pooling,
    silent_after,
)
from tests.edged.upstream.real_servers import nginx
from tests.edged.upstream.support import eventually, get, path_to, server, setup

H1, H2 = Carrier.H1, Carrier.H2
POST = get(method=b"POST")
needs_nginx = pytest.mark.skipif(not shutil.which("nginx"), reason="no nginx here")


def tick(pools):
    only_pool(pools).upkeep.tick(asyncio.get_running_loop().time())


def patience(pools, path, carrier=H1):
    """What is known of the server's patience, in s."""
    now = asyncio.get_running_loop().time()
    return only_pool(pools)._tools.patience.of(path.endpoint, carrier).known_s(now)


def closes_after(idle_s, *, farewell=b""):
    """h1: answers, and closes when nothing came for ``idle_s``."""

    async def handler(reader, writer):
        while True:
            try:
                async with asyncio.timeout(idle_s):
                    await reader.readuntil(b"\r\n\r\n")
            except TimeoutError:
                writer.write(farewell)
                return
            writer.write(OK)

    return handler


def drops_what_comes_late(idle_s, late):
    """h1: a server that closes after ``idle_s`` just as the next request is on its way."""

    async def handler(reader, writer):
        loop = asyncio.get_running_loop()
        answered_at = loop.time()
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if loop.time() - answered_at > idle_s:
                late.append(head.split()[0])
                return
            writer.write(OK)
            answered_at = loop.time()

    return handler


def test_a_post_gets_no_connection_that_the_server_may_be_closing():
    async def main():
        async with server(closes_after(0.5)) as port, setup() as pools:
            path = path_to(port, protocols=(H1,))
            await pools.fetch(path, get())
            await eventually(lambda: not pools.stat(path).connections)
            assert patience(pools, path) == pytest.approx(0.5, abs=0.1)
            await pools.fetch(path, get())
            await asyncio.sleep(0.45)
            assert len(pools.stat(path).connections) == 1, "still open"
            late = pools.open(path, POST)
            assert late.pending is not None, "a fresh one is dialled"
            assert pools.open(path, get()).stream.reused, "what may be repeated may try it"
            await late.done()
            assert late.ended

    asyncio.run(main())


def test_a_young_connection_serves_posts():
    async def main():
        async with server(closes_after(0.5)) as port, setup() as pools:
            path = path_to(port, protocols=(H1,))
            await pools.fetch(path, get())
            await eventually(lambda: not pools.stat(path).connections)
            await pools.fetch(path, get())
            assert (await pools.fetch(path, POST)).stream.reused

    asyncio.run(main())


def test_a_request_lost_to_a_closing_server_teaches_its_patience():
    async def main():
        late = []
        async with server(drops_what_comes_late(0.3, late)) as port, setup() as pools:
            path = path_to(port, protocols=(H1,))
            await pools.fetch(path, get())
            await asyncio.sleep(0.35)
            lost = await pools.fetch(path, POST)
            assert lost.failure.outcome is Outcome.RESET
            assert not lost.failure.unprocessed
            for _ in range(3):
                assert (await pools.fetch(path, POST)).ended
                await asyncio.sleep(0.35)
            assert late == [b"POST"], "it happened once"

    asyncio.run(main())


def test_what_the_server_announces_is_believed():
    async def main():
        async def handler(reader, writer):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(OK.replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=1, max=9\r\n\r\n"))

        async with server(handler) as port, setup() as pools:
            path = path_to(port, protocols=(H1,))
            await pools.fetch(path, get())
            tick(pools)
            assert patience(pools, path) == 1.0
            await asyncio.sleep(0.85)
            assert not (await pools.fetch(path, POST)).stream.reused

    asyncio.run(main())


def test_a_round_trip_is_taken_off_the_patience():
    """The server closes while the request is on its way to it."""

    async def main():
        estimate = Estimate()
        options = {"estimate": lambda path: estimate}
        async with server(polite) as port, setup(**options) as pools:
            path = path_to(port, protocols=(H1,))
            await pools.fetch(path, get())
            trust = only_pool(pools).trust
            tick(pools)
            before_s = trust._h1_rest_s
            estimate = Estimate(rtt_s=0.3)
            tick(pools)
            assert trust._h1_rest_s == pytest.approx(before_s - 0.3, abs=0.01)

    asyncio.run(main())


def test_patience_is_the_servers_on_every_line():
    async def main():
        async with server(closes_after(0.5)) as port, setup() as pools:
            path, other = path_to(port), path_to(port, name="p")
            await pools.fetch(path, get())
            await eventually(lambda: not pools.stat(path).connections)
            await pools.fetch(other, get())
            pool = pools.pools._pools[other.name]
            pool.upkeep.tick(asyncio.get_running_loop().time())
            await asyncio.sleep(0.45)
            assert pools.open(other, POST).pending is not None

    asyncio.run(main())


@pooling(polite, limits=PoolLimits(h1_idle_s=0.0))
async def test_connections_that_edged_closes_teach_nothing(pools, port):
    path = path_to(port)
    await pools.fetch(path, get())
    await asyncio.sleep(0.25)
    tick(pools)
    await eventually(lambda: not pools.stat(path).connections)
    assert patience(pools, path) is None


def test_goaway_to_an_idle_h2_connection_teaches_patience():
    async def main():
        async def handler(reader, writer):
            peer = await Peer(reader, writer).start()
            stream_id, _ = await peer.request()
            peer.send(peer.headers(stream_id, end=True))
            await asyncio.sleep(0.3)
            peer.send(peer.goaway(stream_id))
            while True:
                await peer.read()

        async with server(handler) as port, setup() as pools:
            path = path_to(port, protocols=(H2,))
            await pools.fetch(path, get())
            await eventually(lambda: patience(pools, path, H2))
            assert patience(pools, path, H2) == pytest.approx(0.3, abs=0.1)

    asyncio.run(main())


@needs_nginx
@pytest.mark.parametrize("carrier", [H1, H2])
def test_posts_to_an_impatient_nginx_never_meet_a_closing_connection(carrier, tmp_path):
    """Around its keepalive_timeout of 1 s nginx closes connections; no POST may be lost to that."""
    location = "location / { return 200 ok; }"
    with nginx(tmp_path, None, location, h2=carrier is H2, patience_s=1) as port:

        async def main():
            async with setup() as pools:
                path = path_to(port, protocols=(carrier,))
                await pools.fetch(path, get())
                await eventually(lambda: not pools.stat(path).connections)
                assert 0.9 < patience(pools, path, carrier) < 1.5
                for rest_s in (0.97, 1.0, 1.03, 0.99, 0.5):
                    events = await pools.fetch(path, POST)
                    if events.failure is not None:
                        assert carrier is H2, "h1 has no word for it"
                        assert events.failure.unprocessed, "GOAWAY says that it may be repeated"
                    await asyncio.sleep(rest_s)
                assert (await pools.fetch(path, POST)).stream.reused

        uvloop.run(main())


def test_after_a_change_of_address_h2_must_answer_first():
    async def main():
        gate, pinged = asyncio.Event(), []

        async def handler(reader, writer):
            peer = await Peer(reader, writer).start()
            stream_id, _ = await peer.request()
            peer.send(peer.headers(stream_id, end=True))
            pinged.append(True)
            await gate.wait()
            stream_id, _ = await peer.request()  # answers the PING on its way
            peer.send(peer.headers(stream_id, end=True))
            await reader.read()

        limits = PoolLimits(backup_dial_s=5.0)
        async with server(handler) as port, setup(limits=limits) as pools:
            path = path_to(port, protocols=(H2,))
            await pools.fetch(path, get())
            pools.pools.revalidate()
            waiting = pools.open(path, get())
            assert waiting.pending is not None, "even what may be repeated waits for the answer"
            gate.set()
            await waiting.done()
            assert waiting.stream.reused
            assert pools.dialer.dials == 1

    asyncio.run(main())


def test_after_a_change_of_address_the_dead_are_replaced():
    async def main():
        async def mute(reader, writer):
            peer = await Peer(reader, writer).start()
            stream_id, _ = await peer.request()
            peer.send(peer.headers(stream_id, end=True))
            await reader.read()

        limits = PoolLimits(ping_timeout_s=0.1, backup_dial_s=0.02)
        async with server(mute) as port, setup(limits=limits) as pools:
            path = path_to(port, protocols=(H2,))
            await pools.fetch(path, get())
            dead = only_connection(pools)
            pools.pools.revalidate(path.line.name)
            fresh = await pools.fetch(path, POST)
            assert fresh.ended
            assert not fresh.stream.reused
            await eventually(lambda: dead not in only_pool(pools).connections)

    asyncio.run(main())


def test_after_a_change_of_address_idle_h1_connections_go_and_busy_ones_finish():
    async def main():
        gate = asyncio.Event()
        gate.set()
        async with server(gated(gate)) as port, setup() as pools:
            path = path_to(port, protocols=(H1,))
            both = [pools.open(path, get()) for _ in range(2)]
            for events in both:
                await events.done()
            gate.clear()
            busy = pools.open(path, get())
            pools.pools.revalidate()
            assert pools.stat(path).connections == {"h1": 1}
            gate.set()
            await busy.done()
            assert (await pools.fetch(path, POST)).stream is not None
            assert pools.dialer.dials == 2, "the busy one answered, and is trusted"

    asyncio.run(main())


@pooling(silent_after(0), limits=PoolLimits(ping_timeout_s=0.05, backup_dial_s=0.02))
async def test_what_is_on_a_mute_connection_waits_for_the_verdict_on_its_path(pools, port):
    """The path is SUSPECT: were it to end now, a POST could not be repeated that may be in a
    moment, when the path is DOWN; and a response that may move to another line would break."""
    path = path_to(port, protocols=(H2,))
    sent = pools.open(path, POST)
    await sent.until(lambda e: e.stream)
    mute = only_connection(pools)
    pools.pools.path_changed(change(path, Verdict.SUSPECT))
    pools.open(path, get())
    await eventually(lambda: mute.draining)
    await asyncio.sleep(0.05)
    assert sent.failure is None
    pools.pools.path_changed(change(path, Verdict.DOWN, Verdict.SUSPECT))
    assert sent.failure.path_down


@pooling(polite)
async def test_a_change_of_one_line_leaves_others_alone(pools, port):
    path = path_to(port)
    await pools.fetch(path, get())
    pools.pools.revalidate("another line")
    assert pools.stat(path).connections == {"h1": 1}


@pooling(polite)
async def test_dials_under_way_begin_anew_after_a_change_of_address(pools, port):
    path = path_to(port)
    events = pools.open(path, get())
    dials = pools.dialer.dials
    await asyncio.sleep(0)
    pools.pools.revalidate()
    await events.done()
    assert events.ended
    assert pools.dialer.dials > dials


@pooling(polite)
async def test_suspect_and_down_end_trust_in_the_same_turn(pools, port):
    path = path_to(port, protocols=(H1,))
    await pools.fetch(path, get())
    await asyncio.sleep(0.01)
    pools.pools.path_changed(change(path, Verdict.SUSPECT))
    assert pools.open(path, get()).pending is not None
    pools.pools.path_changed(change(path, Verdict.DOWN))
    assert pools.stat(path).connections == {}
