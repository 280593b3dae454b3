"""Playbooks of clients that wait for 100 (Continue) before they send their body."""

import asyncio

import pytest

from edged.expectation import LONGEST_WAIT_S, SLACK_S, Expectation
from policies.model import Endpoint, Line, Outcome, Path, Relay
from policies.schema import Compression, Hedge, Limits, Policy
from tests.harness.scripted import Stage, make_path, staged

EXPECT = (b"expect", b"100-continue")


def put(stage, length=None, **kw):
    return stage.request(b"PUT", length=length, expects_continue=True, **kw)


async def told(client):
    """Wait until the client is told to go ahead."""
    async with asyncio.timeout(5):
        while "resume" not in client.log:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("length", [None, 5, 50_000_000])
def test_the_head_goes_up_with_the_expectation_and_the_upstreams_100_comes_back(length):
    @staged
    async def play():
        stage = Stage()
        client = put(stage, length)
        (stream,) = stage.streams
        assert EXPECT in stream.head.headers
        assert (stream.head.body_length, stream.body, stream.ended) == (length, b"", False)
        assert client.log == []
        stream.events.informational(100, [])
        stream.events.informational(100, [])
        assert client.log == ["resume"]
        assert client.interim == []  # the connection says 100 where it reads on
        client.sink.body(b"hello")
        assert bytes(stream.body) == b"hello"

    play()


@staged
async def test_a_final_answer_to_the_head_is_passed_on_and_no_body_asked_for():
    stage = Stage()
    client = put(stage, 50_000_000)
    (stream,) = stage.streams
    stream.answer(413, (), 3, b"big")
    assert (client.status, bytes(client.body), client.over) == (413, b"big", "end")
    assert client.log == []
    assert stream.cancelled
    assert stream.body == b""
    (record,) = stage.records
    assert (record.status, record.bytes_up, record.error) == (413, 0, None)
    assert stage.idle()


@staged
async def test_whoever_hears_nothing_is_told_to_go_ahead_after_a_while():
    stage = Stage(rtt_s=0.0)
    client = put(stage)
    await told(client)
    client.sink.body(b"x")
    client.sink.body_end(None)
    (stream,) = stage.streams
    assert (bytes(stream.body), stream.ended) == (b"x", True)
    stream.events.informational(100, [])
    assert client.log == ["resume"]


@pytest.mark.parametrize(
    ("rtt_s", "wait_s"), [(None, LONGEST_WAIT_S), (0.1, 0.2 + SLACK_S), (0.8, LONGEST_WAIT_S)]
)
def test_the_wait_is_a_round_trip_and_some_and_no_longer_than_clients_wait(rtt_s, wait_s):
    class Loop:
        def call_later(self, delay_s, call):
            self.delay_s = delay_s

    loop = Loop()
    Expectation(loop, print).asked(rtt_s)
    assert loop.delay_s == pytest.approx(wait_s)


@staged
async def test_an_attempt_that_fails_before_the_body_is_repeated_with_the_expectation():
    stage = Stage()
    client = put(stage)
    stage.streams[0].fail(Outcome.REFUSED, unprocessed=True)
    second = stage.streams[1]
    assert EXPECT in second.head.headers
    assert client.log == []
    second.events.informational(100, [])
    assert client.log == ["resume"]


@pytest.mark.parametrize("patient", [True, False])
def test_once_the_body_has_begun_attempts_go_without(patient):
    @staged
    async def play():
        stage = Stage()
        client = put(stage)
        if patient:
            stage.streams[0].events.informational(100, [])
        client.sink.body(b"hello")
        stage.streams[0].fail(Outcome.REFUSED, unprocessed=True)
        second = stage.streams[1]
        assert EXPECT not in second.head.headers
        assert bytes(second.body) == b"hello"
        client.sink.body_end(None)
        second.answer(200, (), 2, b"ok")
        assert (client.status, client.over) == (200, "end")
        assert client.log == ["resume"] * patient
        assert stage.idle()

    play()


@staged
async def test_a_hedge_of_a_waiting_client_expects_too():
    stage = Stage(policy=Policy(hedge=Hedge(when="always"), replay="always"))
    client = put(stage, headers=[(b"idempotency-key", b"1")])
    stage.exchanges.services["up"].hedges.earn()
    (stream,) = stage.streams
    exchange = next(iter(stage.exchanges.live))
    exchange.path_suspect(type("Doubt", (), {"path": stream.path.name, "reason": "silence"})())
    assert all(EXPECT in s.head.headers for s in stage.streams)
    stage.streams[-1].events.informational(100, [])
    client.sink.body(b"x")
    assert all(bytes(s.body) == b"x" for s in stage.streams)


@staged
async def test_a_server_that_refuses_expectations_is_asked_without():
    stage = Stage()
    client = put(stage)
    stage.streams[0].answer(417)
    first, second = stage.streams
    assert first.cancelled
    assert EXPECT not in second.head.headers
    assert second.path == first.path
    assert client.log == ["resume"]
    client.sink.body(b"hello")
    client.sink.body_end(None)
    assert bytes(second.body) == b"hello"
    second.answer(417, (), 0, b"")
    assert (client.status, client.over) == (417, "end")
    assert stage.idle()


@staged
async def test_a_417_to_a_client_without_expectation_is_its_own():
    stage = Stage()
    client = stage.request()
    stage.streams[0].answer(417, (), 0, b"")
    assert (client.status, len(stage.streams)) == (417, 1)


@staged
async def test_a_length_beyond_the_policys_is_refused_without_the_body():
    stage = Stage(policy=Policy(limits=Limits(body_bytes=1000)))
    client = put(stage, 1001)
    assert (client.status, client.over) == (413, "end")
    assert not stage.streams
    assert client.log == []
    assert stage.idle()


@staged
async def test_no_path_is_said_without_the_body():
    stage = Stage()
    client = put(stage, 50_000_000)
    for _ in range(4):
        if client.status is None:
            stage.streams[-1].fail()
    assert client.status == 502
    assert client.log == []
    assert stage.idle()


@staged
async def test_a_coded_body_waits_as_well():
    path = make_path("cn2", accepts_encoding=("gzip",))
    stage = Stage([path], policy=Policy(compression=Compression(min_bytes=1)))
    client = put(stage, 5, headers=[(b"content-type", b"application/json")])
    (stream,) = stage.streams
    assert {EXPECT, (b"content-encoding", b"gzip")} <= set(stream.head.headers)
    assert stream.body == b""
    stream.events.informational(100, [])
    client.sink.body(b"hello")
    client.sink.body_end(None)
    assert stream.ended


@staged
async def test_a_relay_is_not_asked():
    endpoint = Endpoint("up", "e1", scheme="https", host="e1.example", port=443)
    path = Path(Line("cn2"), endpoint, Relay("hk", None))
    stage = Stage([path])
    client = put(stage)
    (stream,) = stage.streams
    assert EXPECT not in stream.head.headers
    assert client.log == ["resume"]


@staged
async def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind():
    stage = Stage(rtt_s=0.0)
    client = put(stage)
    client.sink.gone()
    await asyncio.sleep(SLACK_S + 0.05)
    assert client.log == []
    assert stage.idle()
