"""Pools: who gets which connection when, and what happens when a path or a peer goes."""

from __future__ import annotations

import asyncio
import gc
import socket

import pytest
import uvloop
from hyperframe.frame import SettingsFrame

from edged.upstream import carriers
from edged.upstream.dial import Dial
from edged.upstream.pool_types import PoolLimits
from policies.model import (
    Carrier,
    Failure,
    Kind,
    Outcome,
    RequestClass,
    Verdict,
)
from probes.base import DialError
from tests.edged.upstream.h2_peer import Peer
from tests.edged.upstream.pooling import (
    H3_PATH,
    OK,
    FakeH3,
    change,
    gated,
    only_connection,
    only_pool,
    polite,
    polite_h2,
    pooling,
    silent_after,
)
from tests.edged.upstream.support import Events, eventually, get, path_to, server, setup

H1, H2, H3 = Carrier.H1, Carrier.H2, Carrier.H3


@pooling(polite)
async def test_a_stream_on_a_pooled_connection_is_ready_inside_the_call(pools, port):
    path = path_to(port)
    first = pools.open(path, get())
    assert first.pending is not None
    assert first.calls == []
    await first.done()
    second = pools.open(path, get())
    assert second.pending is None
    assert second.calls == ["ready"]
    await second.done()
    assert second.stream.reused
    assert pools.dialer.dials == 1


def test_the_line_is_the_one_dialled_from():
    seen = []

    async def handler(reader, writer):
        seen.append(writer.get_extra_info("peername")[0])
        await polite(reader, writer)

    async def main():
        async with server(handler) as port, setup() as pools:
            await pools.fetch(path_to(port), get())

    asyncio.run(main())
    assert seen == ["127.0.0.2"]


def test_h1_waiters_are_served_in_order_within_the_bound():
    async def main():
        gate = asyncio.Event()
        limits = PoolLimits(h1_connections=3)
        async with server(gated(gate)) as port, setup(limits=limits) as pools:
            path = path_to(port)
            events = [pools.open(path, get()) for _ in range(10)]
            await eventually(lambda: pools.stat(path).in_flight == 3)
            assert pools.stat(path).waiting == 7
            assert [e.stream is not None for e in events] == [True] * 3 + [False] * 7
            gate.set()
            order = []
            for e in events:
                await e.until(lambda e: e.stream)
                order.append(e)
            for e in events:
                await e.done()
            assert pools.dialer.dials == 3
            assert pools.stat(path).streams_total == 10

    asyncio.run(main())


def test_a_cancelled_wait_gets_nothing():
    async def main():
        gate = asyncio.Event()
        limits = PoolLimits(h1_connections=1)
        async with server(gated(gate)) as port, setup(limits=limits) as pools:
            path = path_to(port)
            first, second, third = (pools.open(path, get()) for _ in range(3))
            await eventually(lambda: pools.stat(path).in_flight == 1)
            second.pending.cancel()
            gate.set()
            await third.done()
            await first.done()
            assert second.calls == []

    asyncio.run(main())


@pooling(
    gated(asyncio.Event()),
    limits=PoolLimits(h1_connections=1, wait_s=0.05),
    connect_timeout=lambda name: 0.5,
)
async def test_a_wait_for_a_busy_pool_ends(pools, port):
    path = path_to(port)
    pools.open(path, get())
    late = pools.open(path, get())
    await late.done()
    assert late.failure.outcome is Outcome.LOCAL
    assert late.failure.unprocessed


@pooling(polite_h2)
async def test_h2_carries_all_on_one_connection_that_is_dialled_once(pools, port):
    path = path_to(port, protocols=(H2,))
    events = [pools.open(path, get()) for _ in range(50)]
    for e in events:
        await e.done()
    assert pools.dialer.dials == 1
    assert all(e.stream.carrier is H2 for e in events)


def test_a_failed_dial_fails_those_who_wait_unprocessed_and_later():
    async def main():
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            async with setup() as pools:
                path = path_to(unused.getsockname()[1], protocols=(H2,))
                events = [pools.open(path, get()) for _ in range(3)]
                assert all(not e.over for e in events)
                for e in events:
                    await e.done()
                assert {e.failure.outcome for e in events} == {Outcome.REFUSED}
                assert all(e.failure.unprocessed for e in events)
                assert pools.dialer.dials == 1
                assert pools.stat(path).dial_failures_total == 1
                (sample,) = pools.samples
                assert sample.kind is Kind.TCP
                assert sample.outcome is Outcome.REFUSED
                assert sample.rtt_s is None

    asyncio.run(main())


@pooling(gated(asyncio.Event()))
async def test_each_failed_h1_dial_fails_one_waiter(pools, port):
    path = path_to(port)
    pools.open(path, get())
    await eventually(lambda: pools.stat(path).in_flight == 1)
    pools.dialer.refuse = DialError(Outcome.UNREACHABLE, "no route")
    second, third = pools.open(path, get()), pools.open(path, get())
    await second.done()
    await third.done()
    assert pools.dialer.dials == 3
    assert pools.stat(path).in_flight == 1


@pooling(polite)
async def test_connect_times_are_samples(pools, port):
    path = path_to(port)
    await pools.fetch(path, get())
    (sample,) = pools.samples
    assert (sample.path, sample.kind, sample.outcome) == (path.name, Kind.TCP, Outcome.OK)
    assert 0 < sample.rtt_s < 5


@pooling(polite)
async def test_connections_with_streams_in_flight_are_listed(pools, port):
    path = path_to(port)
    await pools.fetch(path, get())
    connection = only_connection(pools)
    assert list(pools.pools.in_use()) == []
    stream = connection.open_stream(Events())
    assert list(pools.pools.in_use()) == [connection]
    assert connection.path is path
    with socket.socket(fileno=socket.dup(connection.fileno())) as sock:
        assert sock.getpeername() == ("127.0.0.1", port)
    stream.cancel()
    assert list(pools.pools.in_use()) == []


@pooling(polite)
async def test_what_is_warm_is_told(pools, port):
    path = path_to(port)
    await pools.fetch(path, get())
    await pools.fetch(path, get())
    only_connection(pools).close()
    assert pools.warm == [(path.name, H1), (path.name, None)]


@pooling(gated(asyncio.Event()), limits=PoolLimits(h1_connections=2))
async def test_down_fails_everything_on_the_path_in_the_same_turn(pools, port):
    path = path_to(port)
    events = [pools.open(path, get()) for _ in range(4)]
    await eventually(lambda: pools.stat(path).in_flight == 2)
    pools.pools.path_changed(change(path, Verdict.DOWN))
    assert all(e.failure.path_down for e in events)
    assert [e.failure.unprocessed for e in events] == [False, False, True, True]
    assert {e.failure.outcome for e in events} == {Outcome.TIMEOUT}
    assert "is silent" in events[0].failure.detail
    assert pools.stat(path).connections == {}
    assert pools.stat(path).waiting == 0
    assert pools.warm[-1] == (path.name, None)


def test_down_stops_dials():
    async def main():
        with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
            async with setup() as pools:
                path = path_to(listener.getsockname()[1], scheme="https")
                events = pools.open(path, get(scheme=b"https"))
                await eventually(lambda: any(s.kind is Kind.TCP for s in pools.samples))
                pools.pools.path_changed(change(path, Verdict.DOWN))
                assert events.failure.path_down
                assert pools.stat(path).dialing == 0
                await asyncio.sleep(0)
                await asyncio.sleep(0)

    asyncio.run(main())


@pooling(polite)
async def test_other_paths_are_left_alone_by_a_verdict(pools, port):
    one, other = path_to(port), path_to(port, name="p")
    await pools.fetch(one, get())
    await pools.fetch(other, get())
    pools.pools.path_changed(change(one, Verdict.DOWN))
    assert pools.stat(other).connections == {"h1": 1}


@pooling(polite)
async def test_a_down_path_can_still_be_tried_as_the_last_resort(pools, port):
    path = path_to(port)
    pools.pools.path_changed(change(path, Verdict.DOWN))
    assert (await pools.fetch(path, get())).ended


@pytest.mark.parametrize("repeatable", [True, False])
@pooling(polite_h2, limits=PoolLimits(trust_s=0.0))
async def test_an_idle_h2_connection_answers_a_ping_first(pools, port, repeatable):
    path = path_to(port, protocols=(H2,))
    await pools.fetch(path, get())
    await asyncio.sleep(0.01)
    events = pools.open(path, get(), early_data=repeatable)
    assert (events.pending is None) is repeatable
    await events.done()
    assert events.stream.reused
    await eventually(lambda: any(s.kind is Kind.PING for s in pools.samples))
    assert pools.dialer.dials == 1


@pooling(silent_after(1), limits=PoolLimits(trust_s=0.0, ping_timeout_s=0.2, backup_dial_s=0.02))
async def test_a_dead_idle_h2_connection_costs_a_dial_and_not_the_request(pools, port):
    path = path_to(port, protocols=(H2,))
    await pools.fetch(path, get())
    dead = only_connection(pools)
    await asyncio.sleep(0.01)
    events = await pools.fetch(path, get(method=b"POST"))
    assert events.ended
    assert not events.stream.reused
    assert pools.dialer.dials == 2
    await eventually(lambda: dead not in only_pool(pools).connections)


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_failed_dial_leaves_nothing_to_the_garbage_collector(cancelled):
    """TLS buffers in cycles are megabytes by the time that it looks for them."""

    async def mute(reader, writer):
        while await reader.read(65536):
            pass

    async def main():
        options = {"connect_timeout": lambda _: 0.1}
        async with server(mute) as port, setup(**options) as pools:
            waiting = pools.open(path_to(port, scheme="https"), get())
            await asyncio.sleep(0.03)
            assert _alive(Dial)
            if cancelled:
                waiting.pending.cancel()
            else:
                await waiting.until(lambda e: e.failure)
            await eventually(lambda: not _alive(Dial))

    gc.collect()
    gc.disable()
    try:
        uvloop.run(main())
    finally:
        gc.enable()


def _alive(kind):
    return [thing for thing in gc.get_objects() if type(thing) is kind]


@pooling(silent_after(1), limits=PoolLimits(trust_s=0.0, ping_timeout_s=5.0))
async def test_a_large_request_beside_the_ping_does_not_make_the_connection_trusted(pools, port):
    """It used to stand among those with room while it was asked; who looked next never ended."""
    path = path_to(port, protocols=(H2,))
    await pools.fetch(path, get())
    asked = only_connection(pools)
    await asyncio.sleep(0.01)
    large = pools.open(path, get(), request_class=RequestClass.of(1 << 20))
    assert large.stream is not None, "it may be repeated"
    pool = only_pool(pools)
    assert asked in pool.trust.verifying
    assert asked not in pool.shelves[H2]
    pools.pools.path_changed(change(path, Verdict.SUSPECT))
    assert pools.open(path, get()).stream is None


@pooling(silent_after(0), limits=PoolLimits(trust_s=0.0))
async def test_a_busy_silent_connection_is_not_doubted(pools, port):
    """A thinking model is not a dead line."""
    path = path_to(port, protocols=(H2,))
    first = pools.open(path, get())
    await first.until(lambda e: e.stream)
    await asyncio.sleep(0.01)
    second = pools.open(path, get(method=b"POST"))
    assert second.pending is None
    assert not any(s.kind is Kind.PING for s in pools.samples)


@pooling(polite, limits=PoolLimits(h1_trust_s=0.0))
async def test_an_old_idle_h1_connection_carries_only_what_may_be_repeated(pools, port):
    path = path_to(port)
    await pools.fetch(path, get())
    await asyncio.sleep(0.01)
    assert not (await pools.fetch(path, get(method=b"POST"))).stream.reused
    await asyncio.sleep(0.01)
    assert (await pools.fetch(path, get())).stream.reused


@pooling(silent_after(1))
async def test_suspect_trusts_only_what_was_heard_since(pools, port):
    path = path_to(port, protocols=(H2,))
    await pools.fetch(path, get())
    await asyncio.sleep(0.01)
    pools.pools.path_changed(change(path, Verdict.SUSPECT))
    events = await pools.fetch(path, get())
    assert not events.stream.reused
    assert pools.dialer.dials == 2
    pools.pools.path_changed(change(path, Verdict.UP, Verdict.SUSPECT))
    assert only_pool(pools).trust.suspect_since is None


@pooling(polite)
async def test_suspect_and_up_again_for_an_idle_h1_connection(pools, port):
    path = path_to(port, protocols=(H1,))
    await pools.fetch(path, get())
    await asyncio.sleep(0.01)
    pools.pools.path_changed(change(path, Verdict.SUSPECT))
    assert not (await pools.fetch(path, get())).stream.reused
    pools.pools.path_changed(change(path, Verdict.UP, Verdict.SUSPECT))
    assert (await pools.fetch(path, get(method=b"POST"))).stream.reused
    assert pools.dialer.dials == 2


def test_an_idle_h1_connection_is_not_preferred_to_h2():
    async def main():
        async def both(reader, writer):
            if (await reader.readexactly(3)) != b"PRI":
                await reader.readuntil(b"\r\n\r\n")
                writer.write(OK)
                await polite(reader, writer)
            peer = Peer(reader, writer)
            await reader.readexactly(21)
            peer.send(SettingsFrame(0))
            while True:
                stream_id, _ = await peer.request()
                peer.send(peer.headers(stream_id, end=True))

        async with server(both) as port, setup() as pools:
            path = path_to(port, protocols=(H2,))
            refused = pools.open(path, get(upgrade=b"websocket"), upgrade=True)
            await refused.done()
            for reused in (False, True):
                events = pools.open(path, get(), early_data=False)
                await events.done()
                carrier = H2 if reused else H1
                assert events.stream.carrier is carrier
                if not reused:  # h1 was all there was
                    held = pools.open(path, early_data=True)
                    await held.until(lambda e: e.stream)
                    other = await pools.fetch(path, get())
                    assert other.stream.carrier is H2
                    held.stream.cancel()
            assert pools.stat(path).connections == {"h1": 1, "h2": 1}
            again = pools.open(path, get(upgrade=b"websocket"), upgrade=True)
            assert again.stream.carrier is H1
            await again.done()

    asyncio.run(main())


def test_idle_connections_expire():
    async def main():
        limits = PoolLimits(h1_idle_s=0.0, multiplexed_idle_s=0.0)
        async with server(polite) as one, server(polite_h2) as two, setup(limits=limits) as pools:
            paths = [path_to(one), path_to(two, protocols=(H2,), name="p")]
            for path in paths:
                await pools.fetch(path, get())
            await eventually(lambda: all(not pools.stat(path).connections for path in paths))

    asyncio.run(main())


def test_what_a_burst_opened_goes_sooner_but_for_a_few():
    async def main():
        gate = asyncio.Event()
        limits = PoolLimits(h1_spare=2, h1_surplus_idle_s=0.0)
        async with server(gated(gate)) as port, setup(limits=limits) as pools:
            path = path_to(port)
            burst = [pools.open(path, get()) for _ in range(5)]
            await eventually(lambda: pools.stat(path).connections == {"h1": 5})
            gate.set()
            for one in burst:
                await one.done()
            only_pool(pools).upkeep.tick(asyncio.get_running_loop().time())
            assert pools.stat(path).connections == {"h1": 2}
            only_pool(pools).upkeep.tick(asyncio.get_running_loop().time())
            assert pools.stat(path).connections == {"h1": 2}

    asyncio.run(main())


@pooling(polite, limits=PoolLimits(h1_idle_s=0.0, warm_retry_s=0.0))
async def test_a_standby_is_opened_kept_and_opened_again(pools, port):
    path = path_to(port)
    pools.pools.keep_warm(path)
    await eventually(lambda: pools.warm == [(path.name, H1)])
    only_pool(pools).upkeep.tick(asyncio.get_running_loop().time())
    assert pools.stat(path).connections == {"h1": 1}
    only_connection(pools).close()
    only_pool(pools).upkeep.tick(asyncio.get_running_loop().time())
    await eventually(lambda: pools.stat(path).connections == {"h1": 1})
    first = pools.open(path, get())
    assert first.pending is None, "failover needs no handshake"
    await first.done()
    pools.pools.keep_warm(path, wanted=False)
    only_pool(pools).upkeep.tick(asyncio.get_running_loop().time())
    assert pools.stat(path).connections == {}


@pooling(polite, limits=PoolLimits(warm_retry_s=0.0))
async def test_a_standby_waits_while_its_path_is_down(pools, port):
    path = path_to(port)
    pools.pools.keep_warm(path)
    pools.pools.path_changed(change(path, Verdict.DOWN))
    pools.pools.keep_warm(path)
    only_pool(pools).upkeep.tick(asyncio.get_running_loop().time())
    assert pools.stat(path).dialing == 0
    pools.pools.path_changed(change(path, Verdict.UP, Verdict.DOWN))
    pools.pools.keep_warm(path)
    await eventually(lambda: pools.stat(path).connections == {"h1": 1})


@pytest.mark.parametrize("verdict", [Verdict.SUSPECT, Verdict.UP])
@pooling(polite)
async def test_who_waits_on_a_dead_path_is_dialled_for_anew_when_it_is_back(pools, port, verdict):
    path = path_to(port)
    pools.pools.path_changed(change(path, Verdict.DOWN))
    connect, lost = pools.dialer.connect_tcp, []

    async def into_the_void(*args, **options):
        lost.append(args)
        await asyncio.sleep(60)

    pools.dialer.connect_tcp = into_the_void
    events = pools.open(path, get())
    await eventually(lambda: lost)
    pools.dialer.connect_tcp = connect
    pools.pools.path_changed(change(path, verdict, Verdict.DOWN))
    await events.done()
    assert pools.stat(path).dialing == 0


def test_upgrades_have_the_bound_of_h1_and_leave_h2_its_own():
    async def main():
        async def both(reader, writer):
            if (await reader.readexactly(3)) == b"PRI":
                peer = Peer(reader, writer)
                await reader.readexactly(21)
                peer.send(SettingsFrame(0))
                while True:
                    stream_id, _ = await peer.request()
                    peer.send(peer.headers(stream_id, end=True))
            await reader.read()

        limits = PoolLimits(multiplexed_connections=1)
        async with server(both) as port, setup(limits=limits) as pools:
            path = path_to(port, protocols=(H2,))
            head = get(upgrade=b"websocket")
            sockets = [pools.open(path, head, upgrade=True) for _ in range(5)]
            for events in sockets:
                await events.until(lambda e: e.stream)
            assert pools.stat(path).connections == {"h1": 5}
            assert (await pools.fetch(path, get())).stream.carrier is H2

    asyncio.run(main())


def test_a_connection_lost_while_others_wait_is_replaced():
    async def main():
        async def once(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))

        limits = PoolLimits(h1_connections=1)
        async with server(once) as port, setup(limits=limits) as pools:
            path = path_to(port)
            events = [pools.open(path, get()) for _ in range(4)]
            for e in events:
                await e.done()
            assert all(e.ended for e in events)
            assert pools.dialer.dials == 4

    asyncio.run(main())


@pytest.mark.parametrize("busy", [1, 3])
@pytest.mark.parametrize("carrier", [H1, H2])
def test_who_fails_with_a_connection_may_ask_again_in_the_same_turn(carrier, busy):
    class Again(Events):
        """Asks the same path once more as soon as it has failed."""

        def failed(self, failure):
            super().failed(failure)
            again.append(pools.open(path, get()))

    async def main():
        nonlocal pools, path
        arrived = []

        async def handler(reader, writer):
            if len(arrived) >= busy:
                await (polite if carrier is H1 else polite_h2)(reader, writer)
            if carrier is H1:
                arrived.append(await reader.readuntil(b"\r\n\r\n"))
            else:
                peer = await Peer(reader, writer).start()
                for _ in range(busy):
                    arrived.append(await peer.request())
            while len(arrived) < busy:
                await asyncio.sleep(0.001)
            writer.transport.abort()

        async with server(handler) as port, setup() as pools:
            path = path_to(port, protocols=(carrier,))
            for _ in range(busy):
                first = Again(get())
                pools.pools.open(path, first, early_data=True)
            await eventually(lambda: len(again) == busy)
            for events in again:
                await events.done()
                assert events.ended

    pools = path = None
    again = []
    asyncio.run(main())


def test_an_endpoint_that_moved_gets_a_new_pool_and_the_old_one_finishes():
    async def main():
        gate = asyncio.Event()
        async with server(gated(gate)) as old, server(polite) as new, setup() as pools:
            first = pools.open(path_to(old), get())
            await first.until(lambda e: e.stream)
            second = await pools.fetch(path_to(new), get())
            assert second.ended
            gate.set()
            await first.done()
            assert first.ended
            await eventually(lambda: len(pools.pools.stats()) == 1)

    asyncio.run(main())


@pooling(polite)
async def test_an_equal_path_object_keeps_the_pool(pools, port):
    await pools.fetch(path_to(port), get())
    assert (await pools.fetch(path_to(port), get())).stream.reused


def test_drain_finishes_what_is_in_flight():
    async def main():
        gate = asyncio.Event()
        async with server(gated(gate)) as port, setup() as pools:
            path = path_to(port)
            events = pools.open(path, get())
            await events.until(lambda e: e.stream)
            draining = asyncio.create_task(pools.pools.drain(5))
            await asyncio.sleep(0)
            gate.set()
            await draining
            assert events.ended
            assert pools.stat(path).connections == {}

    asyncio.run(main())


@pooling(gated(asyncio.Event()))
async def test_drain_cuts_what_takes_too_long(pools, port):
    events = pools.open(path_to(port), get())
    await events.until(lambda e: e.stream)
    await pools.pools.drain(0.02)
    assert events.failure.outcome is Outcome.LOCAL
    assert not events.failure.unprocessed


@pooling(polite)
async def test_a_closed_pool_takes_nothing_new(pools, port):
    path = path_to(port)
    await pools.pools.drain(0)
    events = pools.open(path, get())
    await events.done()
    assert events.failure.outcome is Outcome.LOCAL
    assert events.failure.unprocessed


def test_alt_svc_is_learnt_from_a_response():
    async def main():
        async def handler(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(
                b'HTTP/1.1 200 OK\r\nalt-svc: h3=":%d"\r\ncontent-length: 0\r\n\r\n' % port
            )
            await reader.read()

        async with server(handler) as port, setup() as pools:
            path = path_to(port)
            await pools.fetch(path, get())
            assert not pools.pools.carriers.speaks_h3(path, 0), "plain http has no alternatives"

    asyncio.run(main())


@pooling(polite, h3=FakeH3())
async def test_h3_wins_the_race_when_it_answers_in_its_head_start(pools, port):
    events = pools.open(path_to(port, **H3_PATH), get())
    await events.until(lambda e: e.stream)
    assert events.stream.carrier is H3
    assert pools.dialer.dials == 0


def test_a_bug_in_a_dial_is_told_and_holds_nobody_up():
    class Buggy(FakeH3):
        async def connect(self, *arguments, **options):
            raise ValueError("a bug")

    async def main():
        told = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, what: told.append(what))
        async with setup(h3=Buggy()) as pools:
            events = await pools.fetch(path_to(1, scheme="https", protocols=(H3,)), get())
            assert events.failure.outcome is Outcome.LOCAL
            assert events.failure.unprocessed
            assert [str(what["exception"]) for what in told] == ["a bug"]

    asyncio.run(main())


def test_tcp_serves_when_h3_is_silent_and_h3_is_held_back():
    async def main():
        # TLS is not the point here: a refused certificate is a TCP leg's end like any other.
        h3 = FakeH3(after_s=60)
        options = {"h3": h3, "connect_timeout": lambda name: 0.3}
        async with server(polite) as port, setup(**options) as pools:
            path = path_to(port, **H3_PATH)
            events = await pools.fetch(path, get())
            assert events.failure.unprocessed
            assert pools.dialer.dials == 1
            now = asyncio.get_running_loop().time()
            assert not pools.pools.carriers.plan(path, now).h3
            await pools.fetch(path, get())
            assert len(h3.asked) == 1

    asyncio.run(main())


def test_tcp_starts_at_once_when_h3_fails_early(monkeypatch):
    monkeypatch.setattr(carriers, "HEAD_START_MAX_S", 60.0)

    async def main():
        h3 = FakeH3(error=Outcome.REFUSED)
        async with server(polite) as port, setup(h3=h3) as pools:
            pools.pools.carriers.h3_worked(path := path_to(port, **H3_PATH), 60.0)
            pools.open(path, get())
            await eventually(lambda: pools.dialer.dials)

    asyncio.run(main())


@pytest.mark.sources
@pooling(polite_h2, h3=FakeH3(after_s=0.3))
async def test_an_h3_connection_that_comes_late_is_kept(pools, port):
    # h2 without TLS, so that the TCP leg succeeds; only the pool's plan is of interest.
    pool_path = path_to(port, protocols=(H2,))
    pools.pools.carriers.plan = lambda path, now, **options: _both()
    first = await pools.fetch(pool_path, get())
    assert first.stream.carrier is H2
    await eventually(lambda: pools.stat(pool_path).connections == {"h2": 1, "h3": 1})
    second = pools.open(pool_path, get())
    assert second.stream.carrier is H3, "preferred among open connections"
    assert pools.warm[-1] == (pool_path.name, H3)


def _both():
    from edged.upstream.carriers import Plan

    return Plan(tcp=True, h3=True, head_start_s=0.01)


def test_early_data_only_for_those_who_may():
    async def main():
        h3 = FakeH3(early=True)
        async with setup(h3=h3) as pools:
            path = path_to(1, scheme="https", protocols=(H3,))
            safe = pools.open(path, get())
            unsafe = pools.open(path, get(method=b"POST"))
            await safe.until(lambda e: e.stream)
            assert h3.asked == [True]
            assert unsafe.stream is None
            connection = only_connection(pools)
            connection.early = False
            connection.owner.capacity_changed(connection)
            assert unsafe.stream is not None

    asyncio.run(main())


@pytest.mark.parametrize("shaken", [True, False])
def test_early_data_that_leads_to_no_handshake_speaks_against_h3(shaken):
    async def main():
        async with setup(h3=FakeH3(early=True)) as pools:
            path = path_to(1, scheme="https", protocols=(H3, H2))
            pools.pools.carriers.h3_worked(path, 0.05)
            safe = pools.open(path, get())
            await safe.until(lambda e: e.stream)
            connection = only_connection(pools)
            if shaken:
                connection.early = False
                connection.owner.capacity_changed(connection)
            connection.owner.closed(connection, Failure(Outcome.TIMEOUT, "no handshake"))
            plan = pools.pools.carriers.plan(path, asyncio.get_running_loop().time())
            assert plan.h3 is shaken

    asyncio.run(main())


@pooling(polite)
async def test_stats_and_repr_speak_of_what_is(pools, port):
    path = path_to(port)
    await pools.fetch(path, get())
    stats = pools.stat(path)
    assert stats.origin == f"http://localhost:{port}"
    assert stats.opened_total == stats.streams_total == 1
    assert path.name in repr(pools.pools)


@pooling(polite)
async def test_a_verdict_before_the_first_request_counts(pools, port):
    path = path_to(port)
    pools.pools.path_changed(change(path, Verdict.SUSPECT))
    await pools.fetch(path, get())
    assert only_pool(pools).trust.suspect_since is not None


@pooling(gated(asyncio.Event()))
async def test_closing_tells_each_waiter_once(pools, port):
    events = pools.open(path_to(port), get())
    waiting = Events(get())
    await events.until(lambda e: e.stream)
    pools.pools.open(path_to(port), waiting, early_data=False)
    pools.pools.close()
    assert waiting.failure == Failure(Outcome.LOCAL, "edged is shutting down", True)
    assert not events.failure.unprocessed
