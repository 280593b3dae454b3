from __future__ import annotations

import random

import pytest

from edged.lab.lines import Impairment, Lines, LineSpec, Wire


def wire(**members):
    return Wire(Impairment(**members), random.Random(1))


def test_a_rate_books_the_transmitter():
    it = wire(rate_bps=8000)
    assert it.sent(500, 10.0) == pytest.approx(10.5)
    assert it.sent(500, 10.0) == pytest.approx(11.0)
    assert it.sent(500, 20.0) == pytest.approx(20.5)


def test_without_a_rate_bytes_leave_at_once():
    assert wire().sent(1 << 30, 3.0) == 3.0


def test_datagrams_are_lost_at_the_set_share_and_by_a_full_queue():
    lossy = wire(loss=0.2)
    lost = sum(lossy.drops(0.0) for _ in range(10_000))
    assert 1800 < lost < 2200
    full = wire(rate_bps=8000, queue_s=0.1)
    full.sent(200, 5.0)
    assert full.drops(5.0)
    assert not full.drops(5.15)


def test_silence_and_blocked_udp_drop_every_datagram():
    assert wire(blackhole=True).drops(0.0)
    assert wire(udp_blocked=True).drops(0.0)


def test_jitter_varies_around_the_delay_and_never_below_zero():
    transits = [wire(delay_s=0.001, jitter_s=0.01).transit_s() for _ in range(3)]
    assert min(transits) >= 0
    it = wire(delay_s=0.05, jitter_s=0.01)
    values = [it.transit_s() for _ in range(1000)]
    assert 0.04 <= min(values) < 0.043
    assert 0.057 < max(values) <= 0.06


def test_a_lost_packet_costs_an_rto_or_a_round_trip_when_more_follow():
    it = wire(loss=1.0)
    assert it.repair_s(100, 0.05) == 0.2
    assert it.repair_s(100, 0.3) == 0.3
    assert it.repair_s(100_000, 0.05) == 0.05
    assert wire().repair_s(100, 0.05) == 0.0


def test_lines_are_told_apart_by_source_address_and_others_pass_unimpaired():
    lines = Lines([LineSpec("a", "127.71.1.2"), LineSpec("b", "127.71.2.2")])
    assert lines.of("127.71.2.2") is lines["b"]
    assert lines.of("127.0.0.1").name == "open"


def test_blackhole_touches_one_flag_and_restore_brings_the_spec_back():
    lines = Lines([LineSpec.symmetric("a", "127.71.1.2", rtt_s=0.1, loss=0.1)])
    seen = []
    lines.subscribe(lambda line: seen.append(line.up.impairment.blackhole))
    lines.blackhole("a")
    assert lines["a"].up.impairment == Impairment(delay_s=0.05, loss=0.1, blackhole=True)
    assert lines["a"].down.impairment.blackhole
    lines.blackhole("a", False, direction="up")
    assert not lines["a"].up.impairment.blackhole
    assert lines["a"].down.impairment.blackhole
    lines.restore("a")
    assert not lines["a"].down.impairment.blackhole
    assert seen == [True, False, False]


def test_two_lines_cannot_share_a_source():
    with pytest.raises(ValueError, match="same name or source"):
        Lines([LineSpec("a", "127.71.1.2"), LineSpec("b", "127.71.1.2")])
