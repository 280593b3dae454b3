"""What is done ahead of a move, on the engine that can validate a path without using it."""

import asyncio
from time import monotonic

import pytest

from edged.upstream import h3_tending, migration
from policies.model import Kind
from tests.harness.h3 import until
from tests.harness.migrating import over, prepared, run, talking, tend_soon


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    tend_soon(monkeypatch)
    monkeypatch.setattr(migration, "PROBE_GAP_S", 0.0)


def test_a_standby_is_validated_while_all_is_well(certificates, monkeypatch):
    monkeypatch.setattr(migration, "PROBE_EVERY_S", 0.1)

    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        await until(lambda: mobile.reported(Kind.PING).count("b") >= 3)
        assert len(mobile.opened) == 1
        assert all(len(data) == 1200 for data in mobile.wires["b"].up)
        assert not mobile.wires["a"].ids() & mobile.wires["b"].ids()
        assert connection.path is mobile.paths["a"]
        rtts = [s.rtt_s for s in mobile.samples if s.kind is Kind.PING]
        assert all(0.04 <= rtt_s < 0.2 for rtt_s in rtts)
        # Nothing of it was taken for a round trip, or for a loss, of the path in use.
        assert connection.engine.counters().srtt_s < 0.04
        assert connection.engine.counters().packets_lost == 0
        await over(talk, attempt)
        # Without streams there is nothing to stand by for.
        await until(lambda: mobile.sockets[-1].fileno() == -1)
        connection.close()

    run("pure", certificates, body)


def test_all_connections_together_validate_one_standby_in_half_a_second(monkeypatch):
    monkeypatch.undo()
    pace = migration.Pace()
    taken = [i / 100 for i in range(1000) if pace.take(i / 100)]
    assert len(taken) == 10 / migration.PROBE_GAP_S
    assert 2400 * 8 / migration.PROBE_GAP_S < 64_000


def test_short_requests_have_no_standby(certificates, monkeypatch):
    monkeypatch.setattr(h3_tending, "TEND_S", 1.0)
    monkeypatch.setattr(h3_tending, "KEEPALIVE_S", 10.0)

    async def body(mobile, origin, talk):
        connection = await mobile.connect()
        for _ in range(5):
            attempt = mobile.send(connection)
            await attempt.done
        await asyncio.sleep(0.1)
        assert not mobile.opened
        connection.close()

    run("pure", certificates, body, script=lambda e: e.answer())


def test_a_prepared_path_is_used_as_it_is(certificates):
    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        await prepared(mobile)
        await until(lambda: origin.protocols[0]._quic._network_paths[1].is_validated)
        sent = len(mobile.wires["b"].up)
        mobile.die("a")
        assert connection.leave()
        await until(lambda: connection.capacity)
        assert len(mobile.opened) == 1
        assert all(len(data) < 1200 for data in mobile.wires["b"].up[sent:])  # no challenge
        await over(talk, attempt)
        connection.close()

    run("pure", certificates, body)


def test_the_standby_goes_with_its_line(certificates):
    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        await prepared(mobile)
        mobile.die("b")
        await until(lambda: [line for line, *_ in mobile.opened] == ["b", "c"])
        await until(lambda: "c" in mobile.reported(Kind.PING))
        ids = [mobile.wires[name].ids() for name in "abc"]
        assert len(ids[0] | ids[1] | ids[2]) == sum(map(len, ids))
        mobile.die("a")
        assert connection.leave()
        assert connection.path is mobile.paths["c"]
        await over(talk, attempt)
        connection.close()

    run("pure", certificates, body, rtts_s={"a": 0.01, "b": 0.02, "c": 0.03})


def test_a_standby_that_does_not_answer_tells_of_the_server(certificates):
    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        mobile.wires["b"].deaf = True
        b = mobile.paths["b"]

        def refused():
            talk.say()  # the server is well
            return not mobile.refusals.allowed(b, monotonic())

        await until(refused)
        assert not connection.leave()
        await over(talk, attempt)
        connection.close()

    run("pure", certificates, body)


def test_a_reset_on_the_standby_does_not_end_the_connection(certificates):
    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        mobile.wires["b"].deaf = True
        await until(lambda: mobile.wires["b"].up)
        client = next(iter(mobile.wires["b"]._links))
        for cid in origin.protocols[0]._quic._host_cids:
            datagram = b"\x40" + bytes(30) + cid.stateless_reset_token
            mobile.wires["b"]._front.sendto(datagram, client)
        await asyncio.sleep(0.1)
        await over(talk, attempt)
        connection.close()

    run("pure", certificates, body)


@pytest.mark.parametrize("is_prepared", [True, False])
def test_suspect_moves_when_the_standby_answers_first(certificates, is_prepared):
    async def body(mobile, origin, talk):
        if not is_prepared:
            mobile.up.discard("b")
        connection, attempt = await talking(mobile, talk)
        await until(connection.engine.may_migrate)
        if is_prepared:
            await prepared(mobile)
        mobile.up.add("b")
        mobile.wires["a"].dead = True
        talk.say(2)

        def moved():
            # A datagram that came before the line died may be read only now, and ends a doubt.
            connection.doubt()
            return connection.path is mobile.paths["b"]

        await until(moved)
        await over(talk, attempt)
        connection.close()

    run("pure", certificates, body)


def test_a_line_in_doubt_is_nobodys_standby(certificates):
    async def body(mobile, origin, talk):
        mobile.suspect.add("b")
        connection, attempt = await talking(mobile, talk)
        connection.doubt()
        await asyncio.sleep(0.2)
        assert not mobile.opened
        await over(talk, attempt)
        connection.close()

    run("pure", certificates, body)


def test_suspect_stays_when_the_old_path_answers(certificates):
    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        await prepared(mobile)
        connection.doubt()
        await asyncio.sleep(0.3)
        assert connection.path is mobile.paths["a"]
        connection.doubt()  # and once more
        await asyncio.sleep(0.3)
        assert connection.path is mobile.paths["a"]
        await over(talk, attempt)
        connection.close()

    # b is quicker, but a gets its time.
    run("pure", certificates, body, rtts_s={"a": 0.1, "b": 0.02})
