"""The HTTP/3 carrier on both engines, against a scripted origin over real sockets."""

import asyncio
import gc

import pytest

from edged.upstream.h3_frames import REQUEST_REJECTED
from edged.upstream.h3_stream import H3Stream
from policies.model import Failure, Kind, Outcome
from tests.harness.h3 import (
    Attempt,
    answering,
    both_engines,
    request,
    run,
    until,
)

pytestmark = both_engines


# Requests and responses


def test_a_response_arrives_whole_and_in_order(engine, certificates):
    async def body(client, origin):
        connection = await client.connect()
        attempt = await client.get(connection, b"/a?b")
        assert attempt.log == ["head", 5, "end"]
        assert attempt.response.status == 200
        assert attempt.response.version == b"3"
        assert attempt.response.body_length == attempt.response.declared_length == 5
        assert attempt.response.headers == [(b"x-path", b"/a?b")]
        assert attempt.received == b"hello"
        sent = origin.exchanges[0].headers
        assert sent[b":authority"] == b"localhost"
        assert sent[b":scheme"] == b"https"
        assert b"content-length" not in sent
        connection.close()
        assert client.pool.ended == [None]

    run(engine, certificates, answering, body)


def test_an_exchange_that_is_over_is_nobodys(engine, certificates):
    """Its request body would wait for the garbage collector, which seldom looks."""

    def alive():
        return [thing for thing in gc.get_objects() if isinstance(thing, H3Stream)]

    async def body(client, origin):
        connection = await client.connect()
        for end in (None, H3Stream.cancel):
            attempt = Attempt()
            stream = connection.open_stream(attempt)
            attempt.stream_ready(stream)
            stream.send_head(request(), end=True)
            if end is None:
                await attempt.done
            else:
                end(stream)
            attempt.stream = None  # as edged.attempt does
            del attempt, stream
        assert not alive()
        connection.close()

    gc.collect()
    gc.disable()
    try:
        run(engine, certificates, answering, body)
    finally:
        gc.enable()


def test_only_the_second_stream_of_a_connection_is_reused(engine, certificates):
    async def body(client, origin):
        connection = await client.connect()
        first, second = Attempt(), Attempt()
        assert not connection.open_stream(first).reused
        assert connection.open_stream(second).reused
        assert (connection.in_flight, connection.served) == (2, 2)
        assert connection.idle_since is None
        connection.close()

    run(engine, certificates, answering, body)


def test_interim_heads_and_trailers(engine, certificates):
    def script(exchange):
        exchange.head(103, [(b"link", b"</x>")])
        exchange.head(200, [])
        exchange.data(b"body")
        exchange.trailers([(b"x-sum", b"1")])

    async def body(client, origin):
        connection = await client.connect()
        attempt = await client.get(connection)
        assert attempt.log == [(103, [(b"link", b"</x>")]), "head", 4, "end"]
        assert attempt.response.body_length is None
        assert attempt.trailers == [(b"x-sum", b"1")]
        connection.close()

    run(engine, certificates, script, body)


def test_a_request_body_with_trailers(engine, certificates):
    async def body(client, origin):
        connection = await client.connect()
        attempt = client.send(connection, request(b"POST", body_length=20005), end=False)
        attempt.stream.send_data(b"x" * 5)
        attempt.stream.send_data(b"y" * 20000)
        attempt.stream.send_end([(b"x-sum", b"2")])
        await until(lambda: origin.exchanges and len(origin.exchanges[0].body) == 20005)
        assert origin.exchanges[0].headers[b"content-length"] == b"20005"
        origin.exchanges[0].answer()
        await attempt.done
        assert attempt.failure is None
        connection.close()

    run(engine, certificates, lambda exchange: None, body)


@pytest.mark.parametrize("method", [b"HEAD", b"GET"])
def test_a_response_without_a_body_keeps_its_declared_length(engine, certificates, method):
    def script(exchange):
        exchange.head(200 if method == b"HEAD" else 304, [(b"content-length", b"99")], end=True)

    async def body(client, origin):
        connection = await client.connect()
        attempt = client.send(connection, request(method))
        await attempt.done
        assert attempt.failure is None
        assert (attempt.response.body_length, attempt.response.declared_length) == (0, 99)
        connection.close()

    run(engine, certificates, script, body)


def test_alt_svc_is_passed_to_the_owner_once(engine, certificates):
    def script(exchange):
        exchange.answer(headers=[(b"alt-svc", b'h3=":1"')])

    async def body(client, origin):
        connection = await client.connect()
        await client.get(connection)
        await client.get(connection)
        assert [c for c in client.pool.calls if c[0] == "alt_svc"] == [("alt_svc", b'h3=":1"')]
        connection.close()

    run(engine, certificates, script, body)


def test_events_of_a_stream_arrive_one_by_one(engine, certificates):
    async def body(client, origin, forwarder):
        connection = await client.connect()
        attempt = client.send(connection)
        await until(lambda: origin.exchanges)
        exchange = origin.exchanges[0]
        exchange.head(200, [(b"content-type", b"text/event-stream")])
        for i in range(5):
            exchange.data(b"data: %d\n\n" % i)
            await until(lambda i=i: attempt.log[1:] == [9] * (i + 1))
        exchange.data(b"", end=True)
        await attempt.done
        assert attempt.log == ["head", 9, 9, 9, 9, 9, "end"]
        connection.close()

    run(engine, certificates, lambda e: None, body, through={"delay_s": 0.02})


# Ways in which a response does not end


@pytest.mark.parametrize(
    ("code", "unprocessed"), [(REQUEST_REJECTED, True), (0x10C, False), (0x102, False)]
)
def test_a_reset_stream_fails_and_a_rejected_one_says_so(engine, certificates, code, unprocessed):
    def script(exchange):
        exchange.reset(code)
        exchange.stop(code)

    async def body(client, origin):
        connection = await client.connect()
        attempt = await client.get(connection)
        assert attempt.log == ["failed"]
        assert attempt.failure.outcome is Outcome.RESET
        assert attempt.failure.unprocessed is unprocessed
        assert connection.in_flight == 0
        connection.close()

    run(engine, certificates, script, body)


@pytest.mark.parametrize(
    ("frames", "outcome"),
    [
        ("content-length 10, 5 sent", Outcome.RESET),
        ("inside a DATA frame", Outcome.RESET),
        ("without a head", Outcome.RESET),
        ("content-length 2, 5 sent", Outcome.PROTOCOL),
        ("upper-case name", Outcome.PROTOCOL),
        ("line break in a value", Outcome.PROTOCOL),
        ("body before the head", Outcome.PROTOCOL),
        ("no :status", Outcome.PROTOCOL),
        ("two lengths", Outcome.PROTOCOL),
        ("pseudo field in trailers", Outcome.PROTOCOL),
    ],
)
def test_a_broken_response_never_ends_cleanly_and_harms_no_other(
    engine, certificates, frames, outcome
):
    def fields(exchange, *pairs):
        encoder = exchange.protocol.http._encoder
        instructions, section = encoder.encode(exchange.id, list(pairs))
        assert not instructions
        return b"\x01" + bytes([len(section)]) + section

    def script(exchange):
        if exchange.path == b"/good":
            exchange.answer()
            return
        ok = (b":status", b"200")
        length = b"content-length"
        answers = {
            "content-length 10, 5 sent": lambda: (
                fields(exchange, ok, (length, b"10")) + b"\x00\x05hello"
            ),
            "inside a DATA frame": lambda: fields(exchange, ok) + b"\x00\x09hello",
            "without a head": lambda: b"",
            "content-length 2, 5 sent": lambda: (
                fields(exchange, ok, (length, b"2")) + b"\x00\x05hello"
            ),
            "upper-case name": lambda: fields(exchange, ok, (b"Bad", b"1")),
            "line break in a value": lambda: fields(exchange, ok, (b"a", b"1\r\nb: 2")),
            "body before the head": lambda: b"\x00\x05hello",
            "no :status": lambda: fields(exchange, (b"a", b"1")),
            "two lengths": lambda: fields(exchange, ok, (length, b"1"), (length, b"2")),
            "pseudo field in trailers": lambda: (
                fields(exchange, ok) + fields(exchange, (b":status", b"200"))
            ),
        }
        exchange.raw(answers[frames](), end=True)

    async def body(client, origin):
        connection = await client.connect()
        attempt = await client.get(connection, b"/bad")
        assert attempt.log[-1] == "failed"
        assert attempt.failure.outcome is outcome
        assert not attempt.failure.unprocessed
        good = await client.get(connection, b"/good")
        assert good.received == b"ok"
        connection.close()

    run(engine, certificates, script, body)


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x04\x00", 0x105),  # SETTINGS twice
        (b"\x07\x01\x03", 0x108),  # GOAWAY with a push id
        (b"\x00\x01x", 0x105),  # DATA on the control stream
    ],
)
def test_a_broken_control_stream_ends_the_connection(engine, certificates, frame, code):
    async def body(client, origin):
        connection = await client.connect()
        attempt = await client.get(connection)
        assert attempt.failure.outcome is Outcome.PROTOCOL
        assert [f.outcome for f in client.pool.ended] == [Outcome.PROTOCOL]
        server = origin.protocols[0]._quic
        await until(lambda: server._close_event is not None)
        assert server._close_event.error_code == code

    run(engine, certificates, lambda exchange: exchange.control(frame), body)


def test_the_connection_closed_by_the_server_fails_its_streams(engine, certificates):
    def script(exchange):
        exchange.head(200, [])
        exchange.close(0x102)

    async def body(client, origin):
        connection = await client.connect()
        attempt = await client.get(connection)
        assert attempt.failure.outcome is Outcome.PROTOCOL
        assert "H3_INTERNAL_ERROR" in attempt.failure.detail
        assert client.pool.calls[-1] == ("closed", client.pool.ended[0])
        assert connection.capacity == 0

    run(engine, certificates, script, body)


def test_a_connection_that_the_server_closes_idle_ends_orderly(engine, certificates):
    async def body(client, origin):
        connection = await client.connect()
        await client.get(connection)
        origin.exchanges[0].close()
        await until(lambda: client.pool.ended)
        assert client.pool.ended == [None]

    run(engine, certificates, answering, body)


# The end of the request before the response, and the other way round


def test_stop_sending_without_error_lets_the_response_come(engine, certificates):
    async def body(client, origin):
        connection = await client.connect()
        attempt = client.send(connection, request(b"POST", body_length=None), end=False)
        attempt.stream.send_data(b"part")
        await until(lambda: origin.exchanges)
        exchange = origin.exchanges[0]
        exchange.stop(0x100)
        await until(lambda: exchange.reset_code is not None)
        attempt.stream.send_data(b"nobody reads this")
        attempt.stream.send_end()
        exchange.answer(b"enough", 413)
        await attempt.done
        assert attempt.failure is None
        assert attempt.received == b"enough"
        connection.close()

    run(engine, certificates, lambda e: None, body)


def test_a_response_that_ends_first_resets_the_request(engine, certificates):
    async def body(client, origin):
        connection = await client.connect()
        attempt = client.send(connection, request(b"POST", body_length=100), end=False)
        attempt.stream.send_data(b"part")
        await attempt.done
        assert attempt.failure is None
        attempt.stream.send_data(b"more")
        await until(lambda: origin.exchanges[0].reset_code == 0x100)
        connection.close()

    run(engine, certificates, answering, body)


def test_cancel_resets_both_ways_and_says_nothing_more(engine, certificates):
    async def body(client, origin):
        connection = await client.connect()
        attempt = client.send(connection, request(b"POST", body_length=None), end=False)
        await until(lambda: origin.exchanges)
        exchange = origin.exchanges[0]
        exchange.head(200, [])
        await until(lambda: attempt.response)
        attempt.stream.cancel()
        attempt.stream.cancel()
        assert connection.in_flight == 0
        assert client.pool.calls == ["capacity"]
        await until(lambda: exchange.reset_code == exchange.stop_code == 0x10C)
        assert attempt.log == ["head"]
        assert (await client.get(connection)).received == b"hello"
        connection.close()

    def script(exchange):
        if exchange.headers[b":method"] == b"GET":
            answering(exchange)

    run(engine, certificates, script, body)


def test_cancel_before_the_head_was_sent_uses_no_stream(engine, certificates):
    async def body(client, origin):
        connection = await client.connect()
        capacity = connection.capacity
        connection.open_stream(Attempt()).cancel()
        assert (connection.capacity, connection.in_flight) == (capacity, 0)
        await client.get(connection)
        assert [e.id for e in origin.exchanges] == [0]
        connection.close()

    run(engine, certificates, answering, body)


# The connection's limits and its end


def test_stream_credit_is_waited_for(engine, certificates):
    async def body(client, origin):
        connection = await client.connect()
        assert connection.capacity == 2
        first, second = client.send(connection), client.send(connection)
        assert connection.capacity == 0
        await until(lambda: len(origin.exchanges) == 2)
        for exchange in origin.exchanges:
            exchange.answer()
        await asyncio.gather(first.done, second.done)
        await until(lambda: connection.capacity > 0)
        assert client.pool.capacities[-1] > 0
        third = client.send(connection)
        await until(lambda: len(origin.exchanges) == 3)
        origin.exchanges[2].answer()
        await third.done
        assert third.failure is None
        connection.close()

    run(engine, certificates, lambda e: None, body, streams=2)


def test_goaway_spares_what_the_server_will_answer(engine, certificates):
    async def body(client, origin):
        connection = await client.connect()
        kept, dropped = client.send(connection), client.send(connection)
        await until(lambda: len(origin.exchanges) == 2)
        first, second = origin.exchanges
        first.goaway(second.id)
        await dropped.done
        assert dropped.failure.unprocessed
        assert connection.draining
        assert connection.capacity == 0
        assert client.pool.calls.count("draining") == 1
        first.answer()
        await kept.done
        assert kept.failure is None
        assert client.pool.ended == [None]

    run(engine, certificates, lambda e: None, body)


def test_goaway_without_streams_closes(engine, certificates):
    async def body(client, origin):
        connection = await client.connect()
        await client.get(connection)
        origin.exchanges[0].goaway(4)
        await until(lambda: client.pool.ended)
        assert client.pool.ended == [None]
        assert connection.draining

    run(engine, certificates, answering, body)


def test_drain_finishes_what_is_in_flight(engine, certificates):
    async def body(client, origin):
        connection = await client.connect()
        attempt = client.send(connection)
        await until(lambda: origin.exchanges)
        connection.drain()
        connection.drain()
        assert client.pool.calls == ["draining"]
        origin.exchanges[0].answer()
        await attempt.done
        assert attempt.failure is None
        assert client.pool.calls == ["draining", "capacity", ("closed", None)]

    run(engine, certificates, lambda e: None, body)


def test_close_fails_each_stream_by_what_was_sent(engine, certificates):
    async def body(client, origin):
        connection = await client.connect()
        sent, waiting = client.send(connection), Attempt()
        connection.open_stream(waiting)
        pings = []
        assert connection.ping(pings.append, 5)
        connection.close(Failure(Outcome.TIMEOUT, "line down", path_down=True))
        assert not sent.failure.unprocessed
        assert waiting.failure.unprocessed
        assert sent.failure.path_down
        assert waiting.failure.path_down
        assert pings == [None]
        assert [f.detail for f in client.pool.ended] == ["line down"]
        assert not connection.ping(pings.append, 5)
        connection.close()
        assert len(client.pool.ended) == 1
        await until(lambda: origin.protocols[0]._quic._close_event)

    run(engine, certificates, lambda e: None, body)


def test_ping_tells_the_round_trip_or_its_loss(engine, certificates):
    async def body(client, origin, forwarder):
        connection = await client.connect()
        answers = []
        connection.ping(answers.append, 5)
        await until(lambda: answers)
        assert 0.04 <= answers[0] < 1
        forwarder.dead = True
        heard_at = connection.heard_at
        connection.ping(answers.append, 0.05)
        await until(lambda: len(answers) == 2)
        assert answers[1] is None
        assert connection.heard_at == heard_at
        pings = [s for s in client.samples if s.kind is Kind.PING]
        assert [s.outcome for s in pings] == [Outcome.OK, Outcome.TIMEOUT]
        assert pings[0].rtt_s == answers[0]
        connection.close()

    run(engine, certificates, answering, body, through={"delay_s": 0.02})
