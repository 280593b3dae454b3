"""The table of flows in virtual time: deadlines, limits, rates, and nothing left behind."""

import gc

from edged.relay.flow import Flow
from edged.relay.flows import TooMany

from .fakes import Clock, client, flows, ok, open_flow, visit


def test_a_flow_without_a_line_is_kept_for_a_while_and_then_cancelled():
    clock = Clock()
    house = flows(clock, linger_s=30)
    ledger = client(house)
    flow, sink = open_flow(house, ledger)
    reader = visit(flow)
    flow.head(ok())
    clock.now += 3600
    house.tick(clock.now)
    assert not sink.left
    reader.visit.gone()
    clock.now += 29
    house.tick(clock.now)
    again = visit(flow)
    clock.now += 29
    house.tick(clock.now)
    assert not sink.left
    again.visit.gone()
    clock.now += 29
    house.touch(flow)
    house.tick(clock.now)
    clock.now += 29
    house.tick(clock.now)
    assert not sink.left
    clock.now += 1.1
    house.tick(clock.now)
    assert sink.left
    assert ledger.flows == {}
    assert house.count == 0
    assert house.used(ledger, flow.id)
    clock.now += 121
    house.tick(clock.now)
    assert not house.used(ledger, flow.id)


def test_a_client_whose_pulses_are_silent_has_lost_its_flows_whatever_its_connections_say():
    clock = Clock()
    house = flows(clock, linger_s=30)
    ledger = client(house)
    flow, sink = open_flow(house, ledger, acknowledges=True)
    other, stays = open_flow(house, ledger, number=2)
    readers = [visit(flow), visit(other)]
    upload = visit(flow, offset=None, at=0)
    clock.now += 100
    house.tick(clock.now)
    assert not sink.left, "it never had a pulse"
    ledger.heard_at = clock.now
    clock.now += 20
    upload.visit.body(b"x")
    clock.now += 29
    house.tick(clock.now)
    assert not sink.left
    clock.now += 1.1
    house.tick(clock.now)
    assert sink.left
    assert readers[0].ended == "abort"
    assert not stays.left, "of somebody who acknowledges nothing, as curl"
    assert list(ledger.flows.values()) == [other]


def test_a_flow_given_up_breaks_off_for_all():
    house = flows()
    ledger = client(house)
    flow, sink = open_flow(house, ledger, acknowledges=True)
    reader, sender = visit(flow), visit(flow, offset=None, at=0)
    flow.head(ok())
    flow.data(b"abc")
    house.remove(flow)
    assert sink.left
    assert (reader.ended, sender.ended) == ("abort", "abort")
    assert house.account.used_bytes == 0
    house.remove(flow)


def test_a_dismissed_client_loses_its_flows_and_no_other():
    house = flows()
    mine, theirs = client(house, "mine"), client(house, "theirs")
    gone, sink = open_flow(house, mine, 7)
    stays, other = open_flow(house, theirs, 7)
    house.dismiss("mine")
    assert sink.left
    assert not other.left
    assert theirs.flows == {stays.id: stays}
    assert gone.id == stays.id


def test_ten_thousand_half_open_flows_are_bounded():
    clock = Clock()
    house = flows(clock, flows=3000)
    ledger, other = client(house, flows=1000), client(house, "other", flows=5000)
    refused = 0
    for number in range(10_000):
        try:
            house.admit(ledger)
        except TooMany as error:
            refused += error.status == 429
        else:
            open_flow(house, ledger, number)
    assert (len(ledger.flows), refused) == (1000, 9000)
    for number in range(10_000):
        try:
            house.admit(other)
        except TooMany as error:
            refused += error.status == 503
            break
        open_flow(house, other, number)
    assert (house.count, refused) == (3000, 9001)
    clock.now += 31
    house.tick(clock.now)
    assert house.count == 0


def test_finished_flows_give_way_to_new_ones():
    house = flows()
    ledger = client(house, flows=3)
    done = [open_flow(house, ledger, n, length=0)[0] for n in range(3)]
    for flow in done:
        flow.head(ok())
        flow.end()
    live = visit(done[0])
    assert live.ended == "end"
    house.admit(ledger)
    assert list(ledger.flows.values()) == [done[0], done[2]]


def test_used_ids_are_bounded():
    house = flows(gone=10)
    ledger = client(house)
    for number in range(100):
        house.bury(ledger, number.to_bytes(16, "big"))
    assert sum(house.used(ledger, n.to_bytes(16, "big")) for n in range(100)) == 10
    assert house.used(ledger, (99).to_bytes(16, "big"))


def test_a_client_beyond_its_rate_is_slowed_both_ways():
    clock = Clock()
    house = flows(clock)
    ledger = client(house, bytes_per_s=1000.0)
    flow, sink = open_flow(house, ledger)
    both = visit(flow, at=0)
    flow.head(ok())
    flow.data(b"x" * 2000)
    assert not sink.paused
    flow.data(b"x" * 500)
    assert sink.paused
    assert both.paused
    clock.now += 0.4
    house.tick(clock.now)
    assert sink.paused
    clock.now += 0.2
    house.tick(clock.now)
    assert not sink.paused
    assert not both.paused
    both.visit.body(b"y" * 1000)
    assert both.paused
    assert sink.paused
    house.remove(flow)
    clock.now += 10
    house.tick(clock.now)


def test_requests_beyond_the_rate_are_refused():
    clock = Clock()
    house = flows(clock)
    ledger = client(house, requests_per_s=10.0)
    assert sum(ledger.ask(clock.now) for _ in range(100)) == 20
    clock.now += 1
    assert sum(ledger.ask(clock.now) for _ in range(100)) == 10
    assert ledger.refused == 170


def test_nothing_keeps_a_flow_that_is_over():
    house = flows()
    ledger = client(house)
    flow, sink = open_flow(house, ledger, length=0)
    sink.flow = flow  # as an exchange holds its responder
    reader = visit(flow)
    flow.head(ok())
    flow.end()
    house.remove(flow)
    flow_id = id(flow)
    gc.disable()
    try:
        del flow, sink, reader.visit
        assert not [o for o in gc.get_objects() if id(o) == flow_id and isinstance(o, Flow)]
    finally:
        gc.enable()
