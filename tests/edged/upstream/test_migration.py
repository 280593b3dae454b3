"""Connections that go on over another line, on both engines, before a scripted origin."""

import asyncio
from time import monotonic

import pytest

from policies.model import Carrier
from tests.harness.h3 import both_engines, request, until
from tests.harness.migrating import confirmed, over, run, talking, tend_soon


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    tend_soon(monkeypatch)


# Moving


@both_engines
def test_a_response_goes_on_over_another_line(engine, certificates):
    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        mobile.die("a")
        talk.say(2)  # lost on the dead line, to be sent again
        assert connection.leave()
        assert connection.path is mobile.paths["b"]
        assert connection.capacity == 0  # not proven yet
        assert attempt.log[-1] == ("moved", "b")
        assert ("moved", "b>up/e") in mobile.pool.calls
        await until(lambda: connection.capacity)
        assert mobile.pool.calls[-1] == "capacity"
        await over(talk, attempt)
        # The connection is as good as any other of its new path.
        talk.exchanges.clear()
        later = mobile.send(connection, request(path=b"/later"))
        await until(lambda: talk.exchanges)
        talk.end()
        await later.done
        assert later.failure is None
        assert len(origin.protocols) == 1
        connection.close()

    run(engine, certificates, body)


@both_engines
def test_back_and_forth_it_has_one_address_on_each_line(engine, certificates):
    """quic-go ignores a client's fourth address within 5 s."""

    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        here, there = "a", "b"
        for _ in range(5):
            mobile.die(here)
            mobile.wires[there].dead = False
            mobile.up.add(there)
            talk.say(2)
            assert connection.leave()
            await until(lambda: connection.capacity)
            here, there = there, here
        await over(talk, attempt)
        assert [len(wire._links) for wire in mobile.wires.values()] == [1, 1]
        await until(lambda: not connection.in_flight)
        connection.migration.rest()
        assert sum(sock.fileno() != -1 for sock in mobile.sockets) == 1
        connection.close()

    run(engine, certificates, body)


@both_engines
def test_requests_without_an_answer_are_not_repeated(engine, certificates):
    async def body(mobile, origin, talk):
        connection = await confirmed(mobile)
        attempts = [mobile.send(connection, request(b"POST")) for _ in range(20)]
        await until(lambda: len(exchanges) == 20)
        mobile.die("a")
        assert connection.leave()
        assert connection.in_flight == 20
        for i, exchange in enumerate(exchanges):
            exchange.answer(b"%d" % i)
        await asyncio.gather(*(attempt.done for attempt in attempts))
        assert [bytes(a.received) for a in attempts] == [b"%d" % i for i in range(20)]
        assert len(exchanges) == 20
        connection.close()

    exchanges = []
    run(engine, certificates, body, script=exchanges.append)


@both_engines
def test_a_request_sent_just_before_the_line_died(engine, certificates):
    async def body(mobile, origin, talk):
        connection = await confirmed(mobile)
        mobile.die("a")
        attempt = mobile.send(connection)
        await asyncio.sleep(0.05)  # it left, and nobody got it
        assert connection.leave()
        await until(lambda: talk.exchanges)
        await over(talk, attempt)
        connection.close()

    run(engine, certificates, body)


@both_engines
@pytest.mark.parametrize("direction", ["down", "up"])
def test_large_bodies_go_on_byte_for_byte(engine, certificates, direction):
    content = bytes(range(256)) * 8192  # 2 MiB

    async def body(mobile, origin, talk):
        connection = await confirmed(mobile)
        uploads = direction == "up"
        head = request(b"POST", body_length=len(content)) if uploads else request()
        attempt = mobile.send(connection, head, end=not uploads)
        moved = False
        if uploads:
            for i in range(0, len(content), 65536):
                await attempt.writable.wait()
                if i > len(content) // 2 and not moved:
                    moved = True
                    mobile.die("a")
                    await asyncio.sleep(0.1)
                    assert connection.leave()
                attempt.stream.send_data(content[i : i + 65536])
            attempt.stream.send_end()
            await until(lambda: exchanges[0].ended, 20)
            assert bytes(exchanges[0].body) == content
            exchanges[0].answer()
        else:
            await until(lambda: len(attempt.received) > len(content) // 4)
            mobile.die("a")
            await asyncio.sleep(0.1)
            assert connection.leave()
        await asyncio.wait_for(attempt.done, 20)
        assert attempt.failure is None
        assert direction == "up" or attempt.received == content
        connection.close()

    exchanges = []

    def script(exchange):
        exchanges.append(exchange)
        if direction == "down":
            exchange.answer(content)

    run(engine, certificates, body, script=script)


@both_engines
def test_it_moves_as_often_as_lines_die(engine, certificates):
    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        for left, taken in ("ab", "bc", "ca", "ab", "bc", "ca"):
            mobile.wires[taken].dead = False
            mobile.up.add(taken)
            mobile.die(left)
            assert connection.leave()
            assert connection.path.line.name == taken
            await until(lambda: connection.capacity)
            seen = attempt.received.count(b"\n")
            talk.say()
            await until(lambda seen=seen: attempt.received.count(b"\n") > seen)
        await over(talk, attempt)
        connection.close()

    run(engine, certificates, body, rtts_s={"a": 0.01, "b": 0.012, "c": 0.014})


@both_engines
def test_what_is_under_way_on_the_old_path_is_taken(engine, certificates):
    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        talk.say(2)  # half a round trip behind
        assert connection.leave()
        began = monotonic()
        await until(lambda: attempt.received.count(b"\n") == 5)
        assert monotonic() - began < 0.19  # no round trip over b was needed
        await over(talk, attempt)
        connection.close()

    run(engine, certificates, body, rtts_s={"a": 0.02, "b": 0.2})


@both_engines
def test_a_line_in_doubt_is_better_than_none(engine, certificates):
    async def body(mobile, origin, talk):
        mobile.suspect.add("b")
        connection, attempt = await talking(mobile, talk)
        mobile.die("a")
        assert connection.leave()
        assert connection.path is mobile.paths["c"]  # b would be quicker
        mobile.die("c")
        assert connection.leave()
        assert connection.path is mobile.paths["b"]
        await over(talk, attempt)
        connection.close()

    run(engine, certificates, body, rtts_s={"a": 0.01, "b": 0.012, "c": 0.05})


# What the pools and the table see


@both_engines
def test_a_line_that_was_dead_is_better_than_none(engine, certificates):
    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        mobile.up.discard("b")  # and is back, which nobody knows yet
        mobile.last_resorts = {"a", "b"}
        mobile.die("a")
        talk.say(2)
        assert connection.leave()
        await until(lambda: connection.capacity)
        await over(talk, attempt)
        connection.close()

    run(engine, certificates, body)


@both_engines
def test_with_every_line_dead_it_asks_them_in_turn(engine, certificates):
    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        mobile.last_resorts = {"a", "b"}
        mobile.die("a")
        mobile.die("b")
        talk.say(2)
        assert connection.leave()
        assert connection.path is mobile.paths["b"]
        await until(lambda: connection.path is mobile.paths["a"])
        mobile.wires["a"].dead = False
        await until(lambda: connection.capacity)
        assert connection.path is mobile.paths["a"]
        await over(talk, attempt)
        connection.close()

    run(engine, certificates, body)


@both_engines
def test_samples_are_of_the_path_in_use(engine, certificates, monkeypatch):
    monkeypatch.setattr("edged.upstream.h3_meter.SAMPLE_EVERY_S", 0.05)

    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        answers = []
        connection.ping(answers.append, 1)
        mobile.die("a")
        assert connection.leave()
        await until(lambda: connection.capacity)
        mobile.samples.clear()
        connection.ping(answers.append, 1)
        await until(lambda: len(answers) == 2)
        for _ in range(20):
            talk.say()
            await asyncio.sleep(0.01)
        await over(talk, attempt)
        # The PING of before was repeated on b: a sign of life, but nobody's round trip.
        assert None not in answers
        assert set(mobile.reported()) == {"b"}
        assert {s.carrier for s in mobile.samples} == {Carrier.H3}
        assert all(0.04 <= s.rtt_s < 0.2 for s in mobile.samples)
        assert not any(s.packets_lost for s in mobile.samples)
        connection.close()

    run(engine, certificates, body)
