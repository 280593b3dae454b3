"""Flows under whatever happens: a model that checks every byte after every step."""

import hashlib

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edged.relay.flow import VISITS, State
from edged.relay.journal import FLOOR_BYTES

from .fakes import Clock, client, flows, ok, open_flow, visit


def body(start, size):
    """Bytes of an endless body, each told by its offset."""
    block = hashlib.sha256(b"body").digest() * 8
    first = start % 256
    return (block[first:] + block * (size // 256 + 1))[:size]


class FlowMachine(RuleBasedStateMachine):
    """Lines come, break and stall; the origin sends, takes, pauses and ends; time passes."""

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.house = flows(self.clock, flow_bytes=5000, total_bytes=8000)
        self.ledger = client(self.house)
        self.flow, self.sink = open_flow(self.house, self.ledger, acknowledges=True)
        self.other, self.other_sink = open_flow(self.house, self.ledger, 2, acknowledges=True)
        self.keeper = visit(self.flow)  # so that the flow is not forgotten
        self.readers = [(0, self.keeper)]
        self.sent = 0
        self.known = 0
        self.ended = None
        self.sender = None
        self.sender_at = 0

    @rule()
    def head(self):
        if self.flow.state is State.WAITING:
            self.flow.head(ok())

    @precondition(lambda self: self.flow.state is State.STREAMING and not self.sink.paused)
    @rule(size=st.integers(1, 1500))
    def origin_sends(self, size):
        self.flow.data(body(self.sent, size))
        self.sent += size

    @precondition(lambda self: self.other.state is State.STREAMING and not self.other_sink.paused)
    @rule(size=st.integers(1, 3000))
    def other_sends(self, size):
        self.other.data(b"o" * size)

    @rule(share=st.floats(0, 1))
    def other_acknowledges(self, share):
        if self.other.state is State.WAITING:
            self.other.head(ok())
        self.other.acknowledge(int(share * self.other.journal.end))

    @precondition(lambda self: self.ended is None and self.flow.state is State.STREAMING)
    @rule(clean=st.booleans(), seldom=st.integers(0, 9))
    def origin_ends(self, clean, seldom):
        if seldom == 0:
            self.ended = "end" if clean else "abort"
            self.flow.end() if clean else self.flow.abort()

    @rule(back=st.integers(0, 3000), room=st.sampled_from([1, 700, 1 << 60]))
    def a_line_asks(self, back, room):
        offset = max(self.known, self.flow.journal.end - back)
        if self.flow.keeps(offset) and len(self.flow._visits) < VISITS:
            self.flow.receives(offset)
            self.known = max(self.known, min(offset, self.flow.journal.end))
            self.readers.append((offset, visit(self.flow, offset=offset, room=room)))

    @rule(data=st.data())
    def a_line_has_room_again(self, data):
        _, reader = data.draw(st.sampled_from(self.readers))
        if reader.visit.slow and not reader.visit.over:
            reader.room = 900
            reader.visit.resume_response()

    @rule(data=st.data())
    def a_line_dies(self, data):
        offset, reader = data.draw(st.sampled_from(self.readers))
        if reader is not self.keeper and not reader.visit.over:
            reader.visit.gone()
            self.readers.remove((offset, reader))

    @rule(share=st.floats(0, 1))
    def client_acknowledges(self, share):
        known = int(share * self.flow.journal.end)
        self.known = max(self.known, known)
        self.flow.acknowledge(known)

    @rule(back=st.integers(0, 50), size=st.integers(0, 100))
    def client_sends(self, back, size):
        at = max(0, self.flow.upload.offset - back)
        if not self.flow.over and len(self.flow._visits) < VISITS:
            responder = visit(self.flow, offset=None, at=at, last=False)
            responder.visit.body(body(at, size))
            responder.visit.body_end(None)
            assert responder.status == 204

    @rule(seconds=st.floats(0, 40))
    def time_passes(self, seconds):
        if not self.keeper.visit.over:
            self.clock.now += seconds
            if self.other.id in self.ledger.flows:
                self.house.touch(self.other)
            self.house.tick(self.clock.now)

    @invariant()
    def each_line_has_just_its_bytes(self):
        for offset, reader in self.readers:
            assert reader.received == body(offset, len(reader.received))
            assert offset + len(reader.received) <= self.sent
            if reader.ended == "end":
                assert self.ended == "end"
                assert offset + len(reader.received) == self.sent
            elif not reader.visit.slow and not reader.visit.over:
                assert offset + len(reader.received) == self.sent
                assert self.ended is None

    @invariant()
    def the_origin_has_each_byte_once(self):
        assert self.sink.received == body(0, self.flow.upload.offset)

    @invariant()
    def the_journals_are_bounded(self):
        held = [flow.journal.held_bytes for flow in self.ledger.flows.values()]
        assert sum(held) == self.house.account.used_bytes
        assert self.house.account.used_bytes <= 8000 + 3000 + 2 * (FLOOR_BYTES + 3000)
        assert self.flow.journal.end - self.known <= 5000 + 1500

    @invariant()
    def whoever_is_held_has_a_reason(self):
        for flow, sink in ((self.flow, self.sink), (self.other, self.other_sink)):
            if not flow.over and sink.paused:
                told = flow._acknowledged if flow.acknowledges else flow._sent
                assert told < flow.journal.end


FlowMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestFlowMachine = FlowMachine.TestCase
