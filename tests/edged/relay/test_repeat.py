"""Small pieces of a response once more, as datagrams."""

import asyncio
from types import SimpleNamespace

import pytest

from edged.quic import MESSAGE_BYTES
from edged.relay.client_flow import FlowClient
from edged.relay.client_visit import Visit
from edged.relay.repeat import AFTER_S, TRIES, Repeat, Repeats
from edged.upstream.engines import ENVIRONMENT
from edged.upstream.h3_stream import H3Stream
from policies.model import Carrier
from tests.edged.relay.edge import edge_relay_origin
from tests.edged.relay.fakes import client, flows, ok, open_flow, visit
from tests.edged.relay.live import run, until

ALWAYS = {"redundancy": {"small_streams": "always"}}


@pytest.mark.parametrize("repeat", [Repeat(0, b"", True), Repeat(1 << 33, b"abc", False)])
def test_what_is_said_is_understood(repeat):
    assert Repeat.decode(repeat.encode()) == repeat


@pytest.mark.parametrize("message", [b"", b"\0", b"\1\xc0\0"])
def test_what_is_no_repeat_is_dropped(message):
    assert Repeat.decode(message) is None


class Timers:
    """Timers that fire when told to, and what was repeated."""

    def __init__(self, flow, **options):
        self.armed = []
        self.sent = []
        self.room = self.spare = True
        self.reader = visit(flow, **options)
        self.reader.visit.repeats = Repeats(self.reader.visit, self, self.later)

    def later(self, delay_s, call):
        timer = SimpleNamespace(cancel=lambda: self.armed.remove(entry))
        entry = delay_s, call, timer
        self.armed.append(entry)
        return timer

    def message(self, data, *, spare):
        assert len(data) <= MESSAGE_BYTES
        room = self.spare if spare else self.room
        if room:
            self.sent.append(Repeat.decode(data))
        return room

    def fire(self):
        """The only timer; how long it was armed for."""
        ((delay_s, call, _),) = self.armed
        self.armed.clear()
        call()
        return delay_s


def acknowledging(**options):
    house = flows()
    flow, _ = open_flow(house, client(house), length=0, acknowledges=True, **options)
    return flow, Timers(flow)


def test_a_piece_leaves_as_a_datagram_at_once_and_once_more():
    flow, timers = acknowledging()
    flow.head(ok())
    flow.data(b"one")
    assert timers.sent == [Repeat(0, b"one", False)]
    assert timers.fire() == AFTER_S
    assert timers.sent == [Repeat(0, b"one", False)] * 2
    assert not timers.armed


def test_pieces_that_come_fast_share_datagrams():
    flow, timers = acknowledging()
    flow.head(ok())
    for word in (b"one", b"two", b"three"):
        flow.data(word)
    assert timers.sent == [Repeat(0, b"one", False)]
    timers.fire()
    timers.fire()
    assert timers.sent[1:] == [Repeat(0, b"onetwothree", False)] * 2
    assert not timers.armed


def test_what_finds_no_room_is_tried_again_but_not_for_ever():
    flow, timers = acknowledging()
    flow.head(ok())
    timers.room = False
    flow.data(b"one")
    timers.fire()
    timers.room = True
    timers.fire()
    timers.fire()
    assert timers.sent == [Repeat(0, b"one", False)] * 2
    assert not timers.armed
    timers.room = False
    flow.data(b"two")
    assert [timers.fire() for _ in range(TRIES - 1)] == [AFTER_S] * (TRIES - 1)
    assert not timers.armed


def test_a_second_datagram_leaves_only_where_there_is_room_to_spare():
    flow, timers = acknowledging()
    flow.head(ok())
    timers.spare = False
    flow.data(b"one")
    timers.fire()
    assert len(timers.sent) == 1
    timers.spare = True
    timers.fire()
    assert len(timers.sent) == 2
    assert not timers.armed


def test_a_datagram_has_the_last_pieces_only():
    flow, timers = acknowledging()
    flow.head(ok())
    for word in (b"one", b"two", b"three", b"four"):
        flow.data(word)
        timers.fire()
    assert timers.sent[-3:] == [
        Repeat(0, b"onetwothree", False),
        *[Repeat(3, b"twothreefour", False)] * 2,
    ]


def test_what_was_acknowledged_is_left_out():
    flow, timers = acknowledging()
    flow.head(ok())
    flow.data(b"one")
    flow.acknowledge(2)
    flow.data(b"two")
    timers.fire()
    assert timers.sent[-1] == Repeat(2, b"etwo", False)


def test_the_end_is_said_and_said_again():
    flow, timers = acknowledging()
    flow.head(ok())
    flow.data(b"one")
    flow.end()
    timers.fire()
    timers.fire()
    assert timers.sent == [Repeat(0, b"one", False), *[Repeat(0, b"one", True)] * 2]


def test_a_response_with_trailers_or_cut_short_is_not_said_to_be_complete():
    for end in (lambda flow: flow.end([(b"x", b"1")]), lambda flow: flow.abort()):
        flow, timers = acknowledging()
        flow.head(ok())
        flow.data(b"one")
        end(flow)
        while timers.armed:
            timers.fire()
        assert timers.sent
        assert not any(repeat.complete for repeat in timers.sent)


def test_what_is_too_much_for_a_datagram_is_not_repeated():
    flow, timers = acknowledging()
    flow.head(ok())
    flow.data(bytes(MESSAGE_BYTES))
    assert not timers.sent
    assert not timers.armed
    flow.data(b"small")
    assert timers.sent[0].data.endswith(b"\0small")


def test_nothing_is_repeated_of_a_flow_or_visit_that_is_over():
    for over in (
        lambda flow, timers: flow.flows.remove(flow),
        lambda flow, timers: timers.reader.visit.gone(),
        lambda flow, timers: timers.reader.visit.break_off(),
    ):
        flow, timers = acknowledging()
        flow.head(ok())
        flow.data(b"one")
        timers.sent.clear()
        over(flow, timers)
        if timers.armed:
            timers.fire()
        assert not timers.sent
        assert not timers.armed


def begun():
    machine = FlowClient()
    machine.ask("a")
    machine.head("a", 0)
    return machine


def test_repeats_fill_a_gap_and_the_stream_may_follow():
    machine = begun()
    assert machine.data("a", b"ab") == b"ab"
    assert machine.repeated("a", 1, b"bcd") == b"cd"
    assert machine.repeated("a", 1, b"bcd") == b""
    assert machine.repeated("a", 5, b"f") == b"", "a byte is missing in between"
    assert machine.data("a", b"cde") == b"e"
    assert not machine.finished(6)
    assert not machine.complete
    assert machine.finished(5)
    assert machine.complete
    assert machine.lines == ()


def test_repeats_before_the_head_are_of_no_use():
    machine = FlowClient()
    machine.ask("a")
    assert machine.repeated("a", 0, b"x") == b""
    assert not machine.finished(0)


@pytest.mark.sources
@pytest.mark.parametrize("engine", ["fast", "pure"])
def test_a_stream_arrives_by_repeats_alone(tmp_path, monkeypatch, engine):
    """All of the body, and its end, while the visits' streams bring nothing."""
    monkeypatch.setenv(ENVIRONMENT, engine)

    async def scenario():
        async with edge_relay_origin(tmp_path, policy=ALWAYS) as (edge, _, _):
            pools = edge.daemon.pools
            legs = [leg.path for leg in edge.client.legs.values()]
            await until(lambda: all(has_h3(pools, leg) for leg in legs))
            held_up(monkeypatch, "_body")
            held_up(monkeypatch, "_finish")
            got = await asyncio.wait_for(edge.fetch("GET", "/words/500"), 10)
            assert got[2:] == ((b"word " * 100), True)

    run(scenario())


def held_up(monkeypatch, name):
    """What a packet that was lost keeps from the streams of visits."""
    was = getattr(H3Stream, name)

    def call(self, *arguments):
        if not isinstance(self._events, Visit):
            was(self, *arguments)

    monkeypatch.setattr(H3Stream, name, call)


def has_h3(pools, leg):
    return any(c.carrier is Carrier.H3 and not c.early for c in pools.pingable(leg.name))
