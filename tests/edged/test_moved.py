"""An exchange whose stream goes on over another line: what it says, counts and does afterwards."""

from __future__ import annotations

import pytest

from edged.accesslog import format_line
from policies.model import Blame, Change, Kind, Outcome, Replay, Verdict
from policies.schema import Policy
from tests.edged.test_exchange import down
from tests.harness.scripted import Stage, make_path, staged

CN2, BGP = "cn2>up/e1", "bgp>up/e1"


def move(stage, stream, line="bgp"):
    stream.events.moved(next(p for p in stage.paths if p.line.name == line))


@staged
async def test_a_response_that_moved_is_one_answer_of_two_legs():
    stage = Stage()
    client = stage.request()
    (stream,) = stage.streams
    stream.answer(200, (), 4)
    stream.events.data(b"ab")
    move(stage, stream)
    assert stage.table.in_flight == {CN2: 0, BGP: 1}
    down(stage, CN2)  # nobody is there any more
    assert not stream.cancelled
    stream.events.data(b"cd")
    stream.events.end(None)
    assert (client.over, client.body) == ("end", b"abcd")
    (record,) = stage.records
    assert record.path_name == BGP
    legs = [(t.path, t.why, t.moved, t.cancelled, t.failure) for t in record.tries]
    assert legs == [(CN2, "first", True, False, None), (BGP, "migration", False, False, None)]
    assert record.tries[1].reason == "the connection moved from line cn2"
    assert record.tries[0].ended_s == record.tries[1].started_s
    line = format_line(record)
    assert '"path":"bgp>up/e1"' in line
    assert '"outcome": "moved"' in line
    assert stage.counters.migrations == 1
    assert stage.counters.failovers == stage.counters.double_executions == 0
    assert stage.idle()


@staged
async def test_an_unanswered_request_that_moved_is_not_repeated():
    stage = Stage()
    client = stage.request(b"POST", length=5)
    client.sink.body(b"hello")
    client.sink.body_end(None)
    (stream,) = stage.streams
    move(stage, stream)
    down(stage, CN2)
    assert not stream.cancelled
    assert len(stage.streams) == 1
    stream.answer(200, (), 2, b"ok")
    assert client.over == "end"
    # How long the answer took says nothing of the endpoint: an outage was in it.
    (sample,) = [s for s in stage.table.samples if s.kind is Kind.TTFB]
    assert (sample.path, sample.rtt_s, sample.outcome) == (BGP, None, Outcome.OK)
    assert stage.counters.double_executions == 0
    assert stage.idle()


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    ("method", "replay"), [(b"POST", Replay.LINE_DOWN), (b"GET", Replay.NEVER)]
)
def test_off_a_dead_line_it_is_asked_for_beside_where_that_is_allowed(first, method, replay):
    @staged
    async def play():
        stage = Stage(policy=Policy(replay=replay))
        client = stage.request(method)
        stage.table.silent[CN2] = 0.0
        stage.table.order(stage.paths[::-1], last_resorts=1)
        move(stage, stage.streams[0])
        assert stage.streams[1].path.name == BGP
        assert not stage.streams[0].cancelled
        stage.streams[first].answer(200, (), 2, b"ok")
        assert stage.streams[1 - first].cancelled
        assert client.over == "end"
        assert stage.counters.double_executions == 1
        assert stage.idle()

    play()


def long(stage):
    client = stage.request(b"POST", length=100_000)
    client.sink.body(b"x" * 100_000)
    client.sink.body_end(None)


def half(stage):
    stage.request(b"POST", length=100_000).sink.body(b"x" * 70_000)


@pytest.mark.parametrize(
    ("replay", "line", "ask"),
    [
        (Replay.NEVER, "dead", lambda stage: stage.request(b"POST")),
        (Replay.ALWAYS, "in doubt", lambda stage: stage.request()),
        (Replay.ALWAYS, "dead", long),
        (Replay.ALWAYS, "dead", half),
    ],
)
def test_nobody_is_asked_beside(replay, line, ask):
    @staged
    async def play():
        stage = Stage(policy=Policy(replay=replay))
        ask(stage)
        if line == "dead":
            stage.table.silent[CN2] = 0.0
            stage.table.order(stage.paths[::-1], last_resorts=1)
        move(stage, stage.streams[0])
        assert len(stage.streams) == 1

    play()


@staged
async def test_the_death_of_the_line_that_it_came_to_is_its_own():
    stage = Stage(paths=[make_path("cn2"), make_path("bgp"), make_path("hk")])
    client = stage.request()
    (stream,) = stage.streams
    move(stage, stream)
    stage.table.order([stage.paths[2], *stage.paths[:2]], last_resorts=2)
    change = Change(BGP, Verdict.UP, Verdict.DOWN, Blame.LINE, "silence", 0.0)
    stage.exchanges.path_changed(change)
    assert stream.cancelled
    assert stage.streams[1].path.name == "hk>up/e1"
    stage.streams[1].answer(200, (), 2, b"ok")
    assert client.over == "end"
    assert [(t.path, t.why) for t in stage.records[0].tries] == [
        (CN2, "first"),
        (BGP, "migration"),
        ("hk>up/e1", "failover"),
    ]
    assert stage.idle()


@staged
async def test_a_body_in_flight_moves_with_it():
    stage = Stage()
    client = stage.request(b"POST", length=6)
    client.sink.body(b"abc")
    client.sink.body(b"def")
    client.sink.body_end(None)
    (stream,) = stage.streams
    move(stage, stream)
    assert stream.body == b"abcdef"
    stream.fail(Outcome.TIMEOUT, "the server did not follow to line bgp", path_down=True)
    # A safe end of a move that failed: the replay table decides.
    assert len(stage.streams) == 2
    stage.streams[1].answer(200, (), 2, b"ok")
    assert client.over == "end"
    assert stage.idle()


@staged
async def test_a_request_whose_connection_does_not_arrive_is_repeated_where_that_is_allowed():
    for method, replay in ((b"POST", Replay.LINE_DOWN), (b"GET", Replay.NEVER)):
        stage = Stage(policy=Policy(replay=replay))
        client = stage.request(method)
        (stream,) = stage.streams
        move(stage, stream)
        down(stage, CN2)
        stream.events.stalled("no answer over line bgp yet")
        assert stream.cancelled
        _, again = stage.streams
        assert again.path.name == BGP
        again.answer(200, (), 2, b"ok")
        assert (client.over, bytes(client.body)) == ("end", b"ok")
        assert stage.counters.double_executions == 1
        assert stage.idle()


@staged
async def test_an_upload_waits_for_its_connection():
    for sent in (b"x" * 100, b"x" * 100_000):
        stage = Stage(policy=Policy(replay=Replay.LINE_DOWN))
        client = stage.request(b"PUT", length=100_000)
        client.sink.body(sent)
        if len(sent) == 100_000:
            client.sink.body_end(None)
        (stream,) = stage.streams
        move(stage, stream)
        stream.events.stalled("no answer over line bgp yet")
        assert not stream.cancelled
        client.sink.gone()


@staged
async def test_no_other_is_taken_from_a_connection_that_may_yet_arrive():
    for replay, begun in ((Replay.NEVER, False), (Replay.LINE_DOWN, True)):
        stage = Stage(policy=Policy(replay=replay))
        client = stage.request(b"POST")
        (stream,) = stage.streams
        if begun:
            stream.answer(200)
        move(stage, stream)
        down(stage, CN2)
        stream.events.stalled("no answer over line bgp yet")
        assert not stream.cancelled
        assert len(stage.streams) == 1
        if not begun:
            stream.answer(200)
        stream.events.end(None)
        assert client.over == "end"
        assert stage.idle()
