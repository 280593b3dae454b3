"""Pools carry out the choice of carriers: streams spread, standbys beside, blocked carriers go."""

from __future__ import annotations

import asyncio

import pytest
from hyperframe.frame import PingFrame

from edged.upstream.carriers import Plan
from edged.upstream.pool_types import PoolLimits
from policies.carriers import EXPLORE_EVERY, H2_CONNECTIONS_MAX, TAIL_S
from policies.model import Carrier, CarrierChange, Estimate, Kind, Outcome, RequestClass
from probes.base import DialError
from tests.edged.upstream.h2_peer import Peer
from tests.edged.upstream.pooling import H3_PATH, FakeH3, only_pool, polite_h2, pooling
from tests.edged.upstream.support import eventually, get, path_to, server, setup

H1, H2, H3 = Carrier.H1, Carrier.H2, Carrier.H3
CLEAN = Estimate(rtt_s=0.15, rttvar_s=0.004, loss_least=0.0)
LOSSY = Estimate(rtt_s=0.15, rttvar_s=0.004, loss=0.03, loss_least=0.02)
UPLOAD = RequestClass.of(200_000)


def loses(path):
    return LOSSY


def loses_nothing(path):
    return CLEAN


def never_answers(seen=None):
    """h2: takes requests and answers none; PINGs are answered."""

    async def handler(reader, writer):
        peer = await Peer(reader, writer).start()
        if seen is not None:
            seen.append(peer)
        peer.requests = 0
        while True:
            await peer.request()
            peer.requests += 1

    return handler


def h2_path(port):
    return path_to(port, protocols=(H2,))


def in_flight(pools):
    return sorted(c.in_flight for c in only_pool(pools).connections)


def test_on_a_clean_path_one_h2_connection_carries_all():
    async def main():
        async with server(never_answers()) as port, setup(estimate=loses_nothing) as pools:
            for _ in range(10):
                await pools.open(h2_path(port), get()).until(lambda e: e.stream)
            assert in_flight(pools) == [10]

    asyncio.run(main())


def test_where_packets_are_lost_streams_spread_over_connections_opened_in_time():
    async def main():
        async with server(never_answers()) as port, setup(estimate=loses) as pools:
            path = h2_path(port)
            await pools.open(path, get()).until(lambda e: e.stream)
            for wanted in range(2, H2_CONNECTIONS_MAX + 1):
                await eventually(lambda wanted=wanted: len(in_flight(pools)) == wanted)
                events = pools.open(path, get())
                assert events.stream is not None, "no request waits for a handshake"
            assert in_flight(pools) == [1] * H2_CONNECTIONS_MAX
            more = [pools.open(path, get()) for _ in range(H2_CONNECTIONS_MAX)]
            assert all(e.stream is not None for e in more)
            assert in_flight(pools) == [2] * H2_CONNECTIONS_MAX, "in turn"
            assert pools.dialer.dials == H2_CONNECTIONS_MAX

    asyncio.run(main())


def test_loss_that_appears_later_counts_from_the_next_tick():
    async def main():
        estimate = CLEAN
        options = {"estimate": lambda path: estimate}
        async with server(never_answers()) as port, setup(**options) as pools:
            path = h2_path(port)
            for _ in range(3):
                await pools.open(path, get()).until(lambda e: e.stream)
            estimate = LOSSY
            only_pool(pools).upkeep.tick(asyncio.get_running_loop().time())
            pools.open(path, get())
            await eventually(lambda: len(in_flight(pools)) == 2)
            pools.open(path, get())
            assert in_flight(pools) == [1, 4]

    asyncio.run(main())


@pooling(polite_h2, estimate=loses, limits=PoolLimits(surplus_idle_s=0.0))
async def test_connections_beyond_the_first_go_when_they_are_not_needed(pools, port):
    path = h2_path(port)
    for _ in range(4):
        await pools.fetch(path, get())
    await eventually(lambda: len(in_flight(pools)) > 1)
    await eventually(lambda: not pools.stat(path).dialing)
    only_pool(pools).upkeep.tick(asyncio.get_running_loop().time())
    assert in_flight(pools) == [0]


def test_a_refused_second_connection_fails_nobody():
    async def main():
        async with server(never_answers()) as port, setup(estimate=loses) as pools:
            path = h2_path(port)
            first = await pools.open(path, get()).until(lambda e: e.stream)
            pools.dialer.refuse = DialError(Outcome.REFUSED, "one is enough")
            others = [pools.open(path, get()) for _ in range(4)]
            await eventually(lambda: pools.stat(path).dial_failures_total)
            assert first.failure is None
            assert all(e.stream is not None and e.failure is None for e in others)

    asyncio.run(main())


def test_a_large_body_gets_a_connection_of_its_own():
    async def main():
        async with server(never_answers()) as port, setup(estimate=loses_nothing) as pools:
            path = h2_path(port)
            large = await pools.open(path, request_class=UPLOAD).until(lambda e: e.stream)
            await eventually(lambda: len(in_flight(pools)) == 2)
            small = pools.open(path, get())
            assert in_flight(pools) == [1, 1]
            large.stream.cancel()
            small.stream.cancel()

    asyncio.run(main())


def test_a_large_body_shares_the_carrier_that_suits_it_rather_than_take_another():
    async def main():
        options = {"estimate": loses, "h3": FakeH3(0.05)}
        async with server(never_answers()) as port, setup(**options) as pools:
            path = h2_path(port)
            await both(pools, path)
            only_pool(pools).choosing.refresh(asyncio.get_running_loop().time())
            for _ in range(5):  # more than there are connections
                large = pools.open(path, request_class=RequestClass.of(4 << 20))
                assert large.stream.carrier is H2
            assert pools.open(path, get()).stream.carrier is H3

    asyncio.run(main())


@pytest.mark.parametrize("estimate", [LOSSY, CLEAN])
def test_a_ping_follows_a_small_request_where_packets_are_lost(estimate):
    async def main():
        peers = []
        options = {"estimate": lambda path: estimate}
        async with server(never_answers(peers)) as port, setup(**options) as pools:
            await pools.open(h2_path(port), get()).until(lambda e: e.stream)
            await eventually(lambda: peers and peers[0].requests)
            frames = peers[0].frames
            connection = next(c for c in only_pool(pools).connections if c.in_flight)
            if estimate is LOSSY:
                await eventually(lambda: any(isinstance(f, PingFrame) for f in frames))
                await eventually(lambda: connection.settled)
            else:
                await asyncio.sleep(2 * TAIL_S)
                assert not any(isinstance(f, PingFrame) for f in frames)
            assert not any(s.kind is Kind.PING for s in pools.samples), "nobody's sample"

    asyncio.run(main())


def test_a_connection_whose_ping_is_unanswered_is_the_last_to_be_taken():
    async def main():
        async def mute(reader, writer):
            await Peer(reader, writer).start()
            await reader.read()

        async with server(mute) as port, setup(estimate=loses) as pools:
            path = h2_path(port)
            first = await pools.open(path, get()).until(lambda e: e.stream)
            connection = next(iter(only_pool(pools).connections))
            await eventually(lambda: not connection.settled)
            first.stream.cancel()
            await eventually(lambda: len(in_flight(pools)) == 2)
            pools.open(path, get())
            assert connection.in_flight == 0

    asyncio.run(main())


def test_h3_gets_a_connection_over_tcp_beside_it():
    async def main():
        h3 = FakeH3()
        async with server(polite_h2) as port, setup(h3=h3, estimate=loses_nothing) as pools:
            path = path_to(port, **H3_PATH)
            await pools.open(path, get()).until(lambda e: e.stream)
            assert pools.dialer.dials == 0
            only_pool(pools).upkeep.tick(asyncio.get_running_loop().time())
            await eventually(lambda: pools.dialer.dials == 1)

    asyncio.run(main())


def test_a_pool_that_nobody_uses_opens_nothing_beside():
    async def main():
        limits = PoolLimits(used_s=0.0)
        h3 = FakeH3()
        async with server(polite_h2) as port, setup(h3=h3, limits=limits) as pools:
            path = path_to(port, **H3_PATH)
            await pools.open(path, get()).until(lambda e: e.stream)
            only_pool(pools).upkeep.tick(asyncio.get_running_loop().time())
            await asyncio.sleep(0.01)
            assert pools.dialer.dials == 0

    asyncio.run(main())


def block(pools, path, *carriers, yes=True):
    change = CarrierChange(path.name, carriers, yes, "datagrams vanish", 0.0)
    pools.pools.carrier_leaving(change)
    pools.pools.carrier_changed(change)
    return pools.pools.can_spare(change)


async def both(pools, path):
    """An h3 and an h2 connection on a path where TLS is not the point."""
    pools.pools.carriers.plan = lambda path, now, **options: _both(options)
    first = await pools.open(path, get()).until(lambda e: e.stream)
    first.stream.cancel()  # it went over whichever was open sooner, and must not take a place there
    await eventually(lambda: len(pools.stat(path).connections) == 2)


def _both(options):
    if options.get("only") is H3:
        return Plan(tcp=False, h3=True, head_start_s=0.0)
    return Plan(tcp=True, h3=options.get("only") is None, head_start_s=0.0)


@pooling(polite_h2, h3=FakeH3(0.05))
async def test_a_blocked_carrier_ends_at_once_and_requests_take_another(pools, port):
    path = h2_path(port)
    await both(pools, path)
    on_h3 = pools.open(path, get())
    assert on_h3.stream.carrier is H3
    connection = next(c for c in only_pool(pools).connections if c.carrier is H3)
    block(pools, path, H3)
    assert connection.failure.carrier_down
    assert not connection.failure.path_down
    assert pools.stat(path).connections == {"h2": 1}
    after = pools.open(path, get())
    assert after.stream.carrier is H2, "in the same loop turn"
    await after.done()
    only_pool(pools).upkeep.tick(asyncio.get_running_loop().time())
    await asyncio.sleep(0.1)
    assert pools.stat(path).connections == {"h2": 1}, "nobody tries it meanwhile"


@pooling(polite_h2, h3=FakeH3(0.01))
async def test_a_carrier_that_is_back_is_opened_in_the_background(pools, port):
    path = h2_path(port)
    await both(pools, path)
    block(pools, path, H3)
    block(pools, path, H3, yes=False)
    pools.pools.carriers.usable = lambda path, now: frozenset((H3, H2))
    first = pools.open(path, get())
    assert first.stream.carrier is H2, "no request is the first to try it"
    only_pool(pools).upkeep.tick(asyncio.get_running_loop().time())
    await eventually(lambda: pools.stat(path).connections.get("h3") == 1)


def test_the_only_carrier_of_an_endpoint_is_never_given_up():
    async def main():
        async with setup(h3=FakeH3()) as pools:
            path = path_to(1, scheme="https", protocols=(H3,))
            await pools.open(path, get()).until(lambda e: e.stream)
            change = CarrierChange(path.name, (H3,), True, "datagrams vanish", 0.0)
            assert not pools.pools.can_spare(change)
            pools.pools.carrier_leaving(change)
            assert pools.open(path, get()).stream.carrier is H3
            only_pool(pools).upkeep.tick(asyncio.get_running_loop().time())
            assert pools.open(path, get()).stream.carrier is H3

    asyncio.run(main())


@pooling(polite_h2, h3=FakeH3())
async def test_what_was_blocked_before_the_first_request_counts(pools, port):
    path = path_to(port, **H3_PATH)
    block(pools, path, H3)
    await pools.fetch(path, get())
    assert not only_pool(pools)._tools.h3.asked
    assert pools.dialer.dials == 1


@pooling(polite_h2, h3=FakeH3(0.01), estimate=loses)
async def test_a_carrier_that_answers_sooner_is_taken(pools, port):
    path = h2_path(port)
    await both(pools, path)
    one = pools.open(path, get())
    assert one.stream.carrier is H3
    for _ in range(200):
        pools.pools.answered(path, H3, RequestClass.of(0), 0.3)
        pools.pools.answered(path, H2, RequestClass.of(0), 0.2)
    only_pool(pools).upkeep.tick(asyncio.get_running_loop().time())
    assert pools.open(path, get()).stream.carrier is H2


@pooling(polite_h2, h3=FakeH3(0.01), estimate=loses_nothing)
async def test_one_request_in_many_looks_at_the_other_carrier(pools, port):
    path = h2_path(port)
    await both(pools, path)
    taken = [pools.open(path, get()).stream.carrier for _ in range(EXPLORE_EVERY)]
    assert taken.count(H2) == 1


def test_an_origin_without_h2_is_remembered():
    async def main():
        async with setup() as pools:
            path = path_to(1, scheme="https")
            carriers = pools.pools.carriers
            assert carriers.usable(path, 0.0) == {H2, H1}
            carriers.agreed(path, H1, 0.0)
            assert carriers.usable(path, 1.0) == {H1}
            assert carriers.usable(path, 1e5) == {H2, H1}
            carriers.agreed(path, H2, 2.0)
            assert carriers.usable(path, 3.0) == {H2, H1}

    asyncio.run(main())
