"""Connections that do not go on over another line: they may not, or the server does not follow."""

import asyncio
from time import monotonic

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.connection import QuicConnectionId
from aioquic.quic.events import ConnectionIdIssued
from aioquic.quic.packet import (
    QuicPreferredAddress,
    pull_quic_transport_parameters,
    push_quic_transport_parameters,
)

from edged.upstream import migration
from policies.model import Outcome
from tests.harness.h3 import both_engines, request, until
from tests.harness.migrating import Talk, over, run, talking, tend_soon


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    tend_soon(monkeypatch)
    monkeypatch.setattr(migration, "FAIR_S", 1.2)
    monkeypatch.setattr(migration, "LAST_S", 2.5)


# When it does not move


@both_engines
def test_an_idle_connection_does_not_move(engine, certificates):
    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        await over(talk, attempt)
        assert not connection.leave()
        assert connection.path is mobile.paths["a"]
        connection.close()

    run(engine, certificates, body)


@both_engines
def test_nowhere_to_go(engine, certificates):
    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        mobile.die("a")
        mobile.die("b")
        assert not connection.leave()
        connection.close()
        await attempt.done

    run(engine, certificates, body)


def telling(**parameters):
    """An origin with these transport parameters."""

    def tweak(origin):
        protocol = origin._protocol

        def tweaked(quic, stream_handler=None):
            serialize = quic._serialize_transport_parameters

            def changed():
                found = pull_quic_transport_parameters(Buffer(data=serialize()))
                for name, value in parameters.items():
                    setattr(found, name, value)
                out = Buffer(capacity=1024)
                push_quic_transport_parameters(out, found)
                return out.data

            quic._serialize_transport_parameters = changed
            if "preferred_address" in parameters:
                given = parameters["preferred_address"]
                cid = QuicConnectionId(given.connection_id, 1, given.stateless_reset_token)
                cid.was_sent = True
                quic._host_cids.append(cid)
                quic._host_cid_seq = 2
                quic._events.append(ConnectionIdIssued(connection_id=given.connection_id))
            return protocol(quic, stream_handler)

        origin._protocol = tweaked

    return tweak


@both_engines
def test_a_server_that_forbids_it(engine, certificates):
    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        mobile.die("a")
        await asyncio.sleep(0.1)
        assert not connection.leave()
        assert not mobile.opened
        connection.close()
        await attempt.done

    run(engine, certificates, body, tweak=telling(disable_active_migration=True))


@both_engines
@pytest.mark.parametrize("forbidden", [False, True])
def test_a_preferred_address_is_where_it_moves(engine, certificates, forbidden):
    preferred = QuicPreferredAddress(("127.0.0.9", 4433), None, b"preferre", bytes(16))

    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        mobile.die("a")
        # The server binds the address of the handshake only (RFC 9000 section 18.2), but one of
        # the engines cannot tell one address from another.
        moves = not (forbidden and engine == "fast")
        assert connection.leave() == moves
        if moves:
            assert mobile.opened == [("b", "127.0.0.9", 4433)]
            await over(talk, attempt)
        connection.close()
        await attempt.done

    tweak = telling(preferred_address=preferred, disable_active_migration=forbidden)
    run(engine, certificates, body, tweak=tweak)


# Servers that do not follow


@both_engines
def test_a_server_that_does_not_follow_is_remembered(engine, certificates):
    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        mobile.die("a")
        mobile.wires["b"].dead = True  # yet UP for all that is known
        assert connection.leave()
        failure = await asyncio.wait_for(attempt.done, 5)
        assert failure.path_down
        assert failure.outcome is Outcome.TIMEOUT
        assert failure.detail == "the server did not follow to line b"
        assert attempt.log[-2:] == ["stalled", "failed"]  # it was told before that
        assert not mobile.refusals.allowed(mobile.paths["b"], monotonic())
        assert mobile.pool.ended == [failure]

    run(engine, certificates, body)


@both_engines
def test_it_goes_on_to_the_next_line_if_one_does_not_answer(engine, certificates):
    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        mobile.die("a")
        mobile.wires["b"].dead = True
        assert connection.leave()
        await until(lambda: connection.path is mobile.paths["c"])
        await over(talk, attempt)
        connection.close()

    run(engine, certificates, body, rtts_s={"a": 0.01, "b": 0.012, "c": 0.014})


@both_engines
def test_a_line_that_dies_meanwhile_says_nothing_of_the_server(engine, certificates):
    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        mobile.die("a")
        mobile.wires["b"].dead = True
        assert connection.leave()
        mobile.die("b")
        assert (await asyncio.wait_for(attempt.done, 5)).path_down
        assert mobile.refusals.allowed(mobile.paths["b"], monotonic())

    run(engine, certificates, body)


@both_engines
def test_a_stateless_reset_ends_it(engine, certificates):
    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        mobile.die("a")
        mobile.wires["b"].deaf = True
        tokens = {cid.stateless_reset_token for cid in origin.protocols[0]._quic._host_cids}
        assert connection.leave()
        await until(lambda: mobile.wires["b"].up)
        client = next(iter(mobile.wires["b"]._links))
        for token in tokens:
            mobile.wires["b"]._front.sendto(b"\x40" + bytes(30) + token, client)
        failure = await asyncio.wait_for(attempt.done, 5)
        assert failure.outcome is Outcome.RESET
        assert failure.path_down
        assert not mobile.refusals.allowed(mobile.paths["b"], monotonic())

    run(engine, certificates, body)


class OnlyFirst(Talk):
    """Answers one request, and thinks about the others."""

    thinking = 0

    def __call__(self, exchange):
        if self.exchanges:
            self.thinking += 1
        else:
            super().__call__(exchange)


@both_engines
def test_a_response_that_has_begun_outlasts_a_time_without_any_line(engine, certificates):
    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        waiting = mobile.send(connection, request(b"POST"))
        await until(lambda: talk.thinking)
        mobile.die("a")
        mobile.die("b")
        mobile.last_resorts.add("b")
        assert connection.leave()
        # What waits for its response can have it elsewhere, and is told so first.
        failure = await asyncio.wait_for(waiting.done, 5)
        assert failure.path_down
        assert not attempt.done.done()
        mobile.wires["b"].dead = False
        mobile.up.add("b")
        await until(lambda: connection.capacity)
        await over(talk, attempt)
        connection.close()

    run(engine, certificates, body, script=OnlyFirst())


@both_engines
def test_a_connection_that_is_closed_with_its_last_request_asks_no_more(
    engine, certificates, monkeypatch
):
    asked = []
    challenge = migration.Migration._challenge
    monkeypatch.setattr(
        migration.Migration,
        "_challenge",
        lambda self, way: (asked.append(self._connection._closed), challenge(self, way)),
    )

    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        await over(talk, attempt)
        waiting = mobile.send(connection, request(b"POST"))
        waiting.stalled = lambda reason: waiting.stream.cancel()  # it is asked elsewhere
        await until(lambda: talk.thinking)
        connection.drain()
        mobile.die("a")
        mobile.die("b")
        mobile.last_resorts.add("b")
        assert connection.leave()
        await until(lambda: mobile.pool.ended)
        assert asked
        assert not any(asked)

    run(engine, certificates, body, script=OnlyFirst())


@both_engines
def test_one_that_followed_before_gets_another_chance(engine, certificates):
    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        mobile.die("a")
        assert connection.leave()
        await until(lambda: connection.capacity)
        mobile.wires["c"].dead = True  # yet UP for all that is known
        mobile.die("b")
        assert connection.leave()
        assert (await asyncio.wait_for(attempt.done, 5)).path_down
        assert mobile.refusals.allowed(mobile.paths["c"], monotonic())

    run(engine, certificates, body, rtts_s={"a": 0.01, "b": 0.012, "c": 0.014})
