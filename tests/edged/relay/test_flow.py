"""Flows in virtual time: readers at offsets, uploads, backpressure, ends."""

import pytest

from edged.messages import ResponseHead
from edged.relay.flow import HISTORY, VISITS
from edged.relay.journal import BLOCK_BYTES, FLOOR_BYTES
from edged.relay.upload import Gap
from edged.relay.visit import TURN_BYTES

from .fakes import client, flows, ok, open_flow, visit

MIB = 1 << 20


def test_a_reader_gets_head_body_and_end():
    house = flows()
    flow, sink = open_flow(house, client(house), length=0)
    reader = visit(flow)
    assert reader.status is None
    flow.informational(103, [])
    flow.head(ok(5, etag="x"))
    flow.data(b"hello")
    flow.end([(b"t", b"1")])
    assert (reader.interim, reader.status, reader.length) == ([103], 200, 5)
    assert reader.headers[b"etag"] == b"x"
    assert reader.headers[b"edged-offset"] == b"0"
    assert (reader.received, reader.ended, reader.trailers) == (b"hello", "end", [(b"t", b"1")])
    assert not sink.left


def test_a_later_reader_gets_the_same_head_and_the_rest():
    house = flows()
    flow, _ = open_flow(house, client(house))
    first = visit(flow)
    flow.head(ok(10))
    flow.data(b"01234")
    first.visit.gone()
    flow.data(b"56")
    second = visit(flow, offset=3)
    assert (second.length, second.headers[b"edged-offset"]) == (7, b"3")
    assert second.received == b"3456"
    flow.data(b"789")
    flow.end()
    assert (second.received, second.ended) == (b"3456789", "end")
    third = visit(flow, offset=10)
    assert (third.length, third.received, third.ended) == (0, b"", "end")
    assert (first.received, first.ended) == (b"01234", None)


def test_a_response_cut_short_never_looks_complete():
    house = flows()
    flow, _ = open_flow(house, client(house))
    early = visit(flow)
    flow.head(ok())
    flow.data(b"half")
    flow.abort()
    flow.data(b"ignored")
    flow.end()
    late = visit(flow, offset=0)
    for reader in (early, late, visit(flow, offset=4)):
        assert reader.ended == "abort"
    assert late.received == b"half"


def test_broken_before_the_head_is_broken_too():
    house = flows()
    flow, _ = open_flow(house, client(house))
    reader = visit(flow)
    flow.abort()
    assert (reader.status, reader.ended) == (None, "abort")
    assert visit(flow).ended == "abort"


def test_a_slow_reader_holds_nobody_else_and_loses_nothing():
    house = flows()
    flow, _ = open_flow(house, client(house))
    slow, quick = visit(flow, room=3), visit(flow)
    flow.head(ok())
    flow.data(b"abc")
    flow.data(b"def")
    flow.end()
    assert (quick.received, quick.ended) == (b"abcdef", "end")
    assert (slow.received, slow.ended) == (b"abc", None)
    slow.room = 100
    slow.visit.resume_response()
    assert (slow.received, slow.ended) == (b"abcdef", "end")


def test_a_connection_is_handed_a_portion_a_turn():
    """Only after that does it say that it is full."""
    turns = []
    house = flows()
    house.soon = turns.append
    flow, _ = open_flow(house, client(house), length=0, acknowledges=True)
    flow.head(ok())
    body = bytes(range(256)) * 2048
    for at in range(0, len(body), MIB // 8):
        flow.data(body[at : at + MIB // 8])
    reader = visit(flow)
    assert len(reader.received) == TURN_BYTES
    flow.data(b"more")
    reader.visit.resume_response()
    assert (len(reader.received), len(turns)) == (TURN_BYTES, 1)
    reader.visit.pause_response()
    turns.pop()()
    assert (len(reader.received), len(turns)) == (TURN_BYTES, 0)
    reader.visit.resume_response()
    while turns:
        turns.pop()()
    flow.data(b" and more")
    assert reader.received == body + b"more and more"


def test_the_origin_is_read_until_the_journal_is_full():
    house = flows(flow_bytes=1000)
    flow, sink = open_flow(house, client(house), acknowledges=True)
    reader = visit(flow)
    flow.head(ok())
    flow.data(b"x" * 999)
    assert not sink.paused
    flow.data(b"x")
    assert sink.paused  # all of it was read, but none acknowledged
    assert len(reader.received) == 1000
    flow.acknowledge(1)
    assert not sink.paused
    flow.data(b"x" * 1)
    assert sink.paused
    flow.acknowledge(1001)
    assert not sink.paused
    assert house.account.used_bytes == 0


def test_without_acknowledgements_a_history_is_kept():
    house = flows(flow_bytes=100_000)
    flow, sink = open_flow(house, client(house))
    reader = visit(flow)
    flow.head(ok())
    for _ in range(2000):
        flow.data(b"x" * 1000)
    assert not sink.paused
    assert len(reader.received) == 2_000_000
    assert flow.keeps(2_000_000 - HISTORY * 100_000)
    assert not flow.keeps(1_999_999 - HISTORY * 100_000)
    assert house.account.used_bytes < HISTORY * 100_000 + BLOCK_BYTES
    reader.visit.gone()
    for _ in range(100):
        assert not sink.paused
        flow.data(b"y" * 1000)
    assert sink.paused
    again = visit(flow, offset=2_000_000)
    assert again.received == b"y" * 100_000
    assert not sink.paused


def test_histories_make_room_for_what_must_be_kept():
    house = flows(flow_bytes=100_000, total_bytes=1_600_000)
    ledger = client(house)
    lazy = [open_flow(house, ledger, n)[0] for n in range(100, 104)]
    for flow in lazy:
        visit(flow)
        flow.head(ok())
        for _ in range(1000):
            flow.data(b"x" * 1000)
    before = ledger.share.used_bytes
    assert before > 4 * 100_000
    strict = [open_flow(house, ledger, n, acknowledges=True) for n in range(2, 32)]
    for flow, sink in strict:
        flow.head(ok())
        while not sink.paused:
            flow.data(b"y" * 1000)
    assert min(flow.journal.held_bytes for flow, _ in strict) >= FLOOR_BYTES
    for flow in lazy:
        assert flow.keeps(1_000_000 - FLOOR_BYTES // 2)
    assert sum(flow.journal.held_bytes for flow in lazy) < before
    assert house.account.used_bytes < 1_200_000


def test_all_journals_together_are_bounded():
    house = flows(flow_bytes=100_000, total_bytes=8_000_000)
    ledger = client(house)
    pairs = [open_flow(house, ledger, n, acknowledges=True) for n in range(100)]
    for flow, _ in pairs:
        flow.head(ok())
    for _ in range(200):
        for flow, sink in pairs:
            if not sink.paused:
                flow.data(b"x" * 1000)
    assert all(sink.paused for _, sink in pairs)
    assert house.account.used_bytes <= 6_000_000
    # Who reads goes on, however much the others hold, and has about as much as each of them.
    last, sink = open_flow(house, ledger, 100, acknowledges=True)
    last.head(ok())
    for _ in range(20):
        while not sink.paused:
            last.data(b"y" * 1000)
        assert last.journal.held_bytes > max(f.journal.held_bytes for f, _ in pairs) / 2
        last.acknowledge(last.journal.end)
        assert not sink.paused


def test_a_client_that_holds_too_much_holds_up_no_other():
    house = flows(flow_bytes=100_000, total_bytes=8_000_000)
    greedy, other = client(house), client(house, name="other")
    for n in range(300):
        flow, sink = open_flow(house, greedy, n, acknowledges=True)
        flow.head(ok())
        flow.data(b"x" * 70_000)  # came before it could be stopped
    assert sink.paused
    assert greedy.share.used_bytes > house.account.limit_bytes
    flow, sink = open_flow(house, other, 1000, acknowledges=True)
    flow.head(ok())
    for _ in range(99):
        flow.data(b"y" * 1000)
    assert not sink.paused


def test_finished_flows_make_room_for_others():
    house = flows(total_bytes=64_000)
    ledger, other = client(house), client(house, name="other")
    kept, _ = open_flow(house, other, 50, length=0)
    kept.head(ok())
    kept.data(b"x" * 5000)
    kept.end()
    for number in range(9):
        flow, _ = open_flow(house, ledger, number, length=0)
        flow.head(ok())
        flow.data(b"x" * 5000)
        flow.end()
    live, sink = open_flow(house, ledger, 100, acknowledges=True)
    live.head(ok())
    live.data(b"x" * 5000)
    assert not sink.paused
    assert 2 < len(ledger.flows) < 9
    assert house.used(ledger, (0).to_bytes(16, "big"))
    assert kept in other.flows.values()


def test_uploads_are_passed_on_once_over_several_lines():
    house = flows()
    flow, sink = open_flow(house, client(house), length=10)
    first = visit(flow, at=0)
    first.visit.body(b"0123")
    first.visit.gone()
    second = visit(flow, offset=None, at=2)
    second.visit.body(b"234567")
    assert sink.received == b"01234567"
    third = visit(flow, offset=None, at=8)
    third.visit.body(b"89")
    third.visit.body_end([(b"t", b"1")])
    assert (sink.received, sink.ends, sink.trailers) == (b"0123456789", 1, [(b"t", b"1")])
    assert third.status == 204
    assert third.headers[b"upload-offset"] == b"10"
    assert third.headers[b"upload-complete"] == b"?1"
    second.visit.body(b"89")
    second.visit.body_end(None)
    assert (sink.received, sink.ends) == (b"0123456789", 1)
    assert second.status == 204


def test_two_lines_bring_the_same_request_at_once():
    house = flows()
    flow, sink = open_flow(house, client(house), length=6)
    one, two = visit(flow, at=0), visit(flow, at=0)
    one.visit.body(b"ab")
    two.visit.body(b"abcd")
    one.visit.body(b"cdef")
    one.visit.body_end(None)
    two.visit.body(b"ef")
    two.visit.body_end(None)
    assert (sink.received, sink.ends) == (b"abcdef", 1)
    flow.head(ok())
    flow.data(b"answer")
    flow.end()
    assert one.received == two.received == b"answer"


def test_parts_of_a_body_do_not_end_it():
    house = flows()
    flow, sink = open_flow(house, client(house))
    part = visit(flow, offset=None, at=0, last=False)
    part.visit.body(b"abc")
    part.visit.body_end(None)
    assert (sink.received, sink.ends) == (b"abc", 0)
    assert part.headers[b"upload-complete"] == b"?0"
    rest = visit(flow, offset=None, at=3)
    rest.visit.body_end(None)
    assert sink.ends == 1


def test_a_body_that_contradicts_itself_is_refused():
    house = flows()
    flow, sink = open_flow(house, client(house), length=4)
    reader = visit(flow)
    bad = visit(flow, offset=None, at=0)
    bad.visit.body(b"abcdef")
    assert bad.status == 400
    short = visit(flow, offset=None, at=0)
    short.visit.body(b"ab")
    short.visit.body_end(None)
    assert short.status == 400
    assert (sink.received, sink.ends) == (b"ab", 0)
    assert reader.ended is None  # its flow can still be saved


def test_gaps_are_the_callers_to_see():
    house = flows()
    flow, _ = open_flow(house, client(house))
    with pytest.raises(Gap):
        flow.upload.check(1, None, last=True)


def test_the_origins_pause_reaches_every_line_that_brings_bytes():
    house = flows()
    flow, _ = open_flow(house, client(house))
    one = visit(flow, at=0)
    reader = visit(flow)
    flow.pause_body()
    two = visit(flow, offset=None, at=0)
    assert (one.paused, two.paused, reader.paused) == (True, True, False)
    flow.resume_body()
    assert (one.paused, two.paused) == (False, False)


def test_what_was_acknowledged_over_another_line_is_not_sent_here():
    house = flows()
    flow, _ = open_flow(house, client(house), acknowledges=True)
    stuck = visit(flow, room=2)
    flow.head(ok())
    flow.data(b"ab")
    flow.data(b"cdef")
    flow.acknowledge(5)
    assert stuck.ended is None
    stuck.visit.resume_response()
    assert (stuck.received, stuck.ended) == (b"ab", "abort")
    assert not flow.keeps(4)
    assert visit(flow, offset=5).received == b"f"


def test_an_opaque_flow_ends_by_halves():
    house = flows()
    flow, sink = open_flow(house, client(house), opaque=True)
    both = visit(flow, at=0)
    flow.head(ok())
    both.visit.body(b"ping")
    flow.data(b"pong")
    flow.end()
    assert both.ended == "end"
    assert not flow.over
    more = visit(flow, offset=None, at=4)
    more.visit.body(b"!")
    more.visit.body_end(None)
    assert (sink.received, sink.ends) == (b"ping!", 1)
    assert flow.over


def test_bytes_for_another_protocol_wait_until_the_origin_agrees():
    house = flows()
    flow, sink = open_flow(house, client(house), opaque=True, switches=True)
    both = visit(flow, at=0)
    both.visit.body(b"frame")
    assert sink.received == b""
    flow.head(ResponseHead(101, [(b"upgrade", b"websocket"), (b"connection", b"x")]))
    assert sink.received == b"frame"
    assert both.status == 200
    assert both.headers[b"edged-status"] == b"101"
    assert both.headers[b"edged-upgrade"] == b"websocket"
    assert not {b"upgrade", b"connection"} & both.headers.keys()
    both.visit.body(b"more")
    both.visit.body_end(None)
    assert (sink.received, sink.ends) == (b"framemore", 1)


def test_bytes_for_another_protocol_are_nobodys_when_the_origin_refuses():
    house = flows()
    flow, sink = open_flow(house, client(house), opaque=True, switches=True)
    both = visit(flow, at=0)
    both.visit.body(b"frame")
    flow.head(ok(2))
    both.visit.body(b"frame")
    both.visit.body_end(None)
    flow.data(b"no")
    flow.end()
    assert (sink.received, sink.ends, both.received, both.ended) == (b"", 0, b"no", "end")
    assert flow.over


def test_a_visit_too_many_ends_the_oldest():
    house = flows()
    flow, _ = open_flow(house, client(house))
    readers = [visit(flow) for _ in range(VISITS + 1)]
    assert readers[0].ended == "abort"
    assert all(reader.ended is None for reader in readers[1:])
