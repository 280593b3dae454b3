"""A short answer is passed on once it is whole, so that the death of its line need not break it."""

from __future__ import annotations

import asyncio

from edged.exchange import ANSWER_HELD_BYTES, ANSWER_HELD_S
from policies.model import Outcome, Replay
from policies.schema import Policy
from tests.edged.test_exchange import down
from tests.harness.scripted import Stage, staged

CN2 = "cn2>up/e1"


def answered(stage, length=4, method=b"POST"):
    """A client, and the stream on which the head of its answer and half of its body came."""
    client = stage.request(method)
    client.sink.body_end(None)
    stream = stage.streams[-1]
    stream.answer(200, (), length)
    stream.events.data(b"ab")
    return client, stream


@staged
async def test_when_its_line_dies_another_is_asked():
    stage = Stage(policy=Policy(replay=Replay.LINE_DOWN))
    client, first = answered(stage)
    assert client.status is None
    down(stage, CN2)
    assert first.cancelled
    _, second = stage.streams
    second.answer(200, (), 4, b"1234")
    assert (client.status, client.over, bytes(client.body)) == (200, "end", b"1234")
    assert stage.counters.double_executions == 1
    assert stage.idle()


@staged
async def test_when_its_connection_ends_with_the_line_another_is_asked():
    stage = Stage()
    client, first = answered(stage, method=b"GET")
    first.fail(Outcome.TIMEOUT, "the line is down", path_down=True)
    stage.streams[1].answer(200, (), 4, b"1234")
    assert (client.over, bytes(client.body)) == ("end", b"1234")


@staged
async def test_it_is_whole_or_nothing_of_it_was_seen():
    stage = Stage()
    client, stream = answered(stage)
    assert (client.status, client.over) == (None, None)
    stream.events.data(b"cd")
    stream.events.end([(b"x-sum", b"5")])
    assert (client.status, client.over, bytes(client.body)) == (200, "end", b"abcd")
    assert client.trailers == [(b"x-sum", b"5")]
    assert stage.idle()


@staged
async def test_who_must_not_be_repeated_gets_what_there_is():
    stage = Stage(policy=Policy(replay=Replay.NEVER))
    client, stream = answered(stage)
    assert (client.status, bytes(client.body)) == (200, b"ab")
    stream.fail(Outcome.TIMEOUT, "the line is down", path_down=True)
    assert client.over == "abort"
    assert len(stage.streams) == 1


@staged
async def test_what_the_endpoint_breaks_off_is_broken():
    stage = Stage()
    client, stream = answered(stage, method=b"GET")
    stream.fail(Outcome.RESET, "reset in the middle")
    assert (client.status, client.over, bytes(client.body)) == (200, "abort", b"ab")
    assert len(stage.streams) == 1
    assert stage.idle()


@staged
async def test_what_is_long_or_may_be_a_stream_is_passed_on_at_once():
    for length in (None, ANSWER_HELD_BYTES + 1):
        client, _ = answered(Stage(), length)
        assert (client.status, bytes(client.body)) == (200, b"ab")


@staged
async def test_what_comes_before_the_request_is_whole_is_passed_on_at_once():
    stage = Stage()
    client = stage.request(b"POST", length=None)
    client.sink.body(b"x")
    stage.streams[0].answer(413, (), 4)
    assert client.status == 413


@staged
async def test_nobody_waits_long_for_a_head():
    stage = Stage()
    client, stream = answered(stage)
    now = asyncio.get_running_loop().time()
    stage.exchanges.tick(now + ANSWER_HELD_S / 2)
    assert client.status is None
    stage.exchanges.tick(now + ANSWER_HELD_S + 0.1)
    assert (client.status, client.over, bytes(client.body)) == (200, None, b"ab")
    stream.events.data(b"cd")
    assert bytes(client.body) == b"abcd"
    stream.events.end(None)
    assert client.over == "end"
    assert stage.idle()


@staged
async def test_a_client_that_leaves_meanwhile_leaves_nothing():
    stage = Stage()
    client, stream = answered(stage)
    client.sink.gone()
    assert stream.cancelled
    assert stage.idle()


@staged
async def test_with_every_line_down_it_is_an_error_and_no_answer():
    stage = Stage()
    client, _ = answered(stage)
    down(stage, CN2)
    stage.table.order(stage.paths, 2)
    for stream in stage.streams[1:]:
        stream.fail(Outcome.TIMEOUT, "the line is down", path_down=True)
    stage.exchanges.tick(asyncio.get_running_loop().time() + ANSWER_HELD_S + 0.1)
    assert client.status is None  # until a path comes back, or patience ends
    client.sink.gone()
    assert stage.idle()
