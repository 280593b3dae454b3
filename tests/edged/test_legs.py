"""Paths through a relay: what is known of its legs says what they are worth."""

from __future__ import annotations

import random

import pytest

from edged.table import PathTable
from policies.model import (
    Carrier,
    Endpoint,
    FarLeg,
    Kind,
    Line,
    Outcome,
    Relay,
    RequestClass,
    Sample,
    Topology,
    Verdict,
)
from policies.schema import Policy

RTT = {"cn2": 0.060, "bgp": 0.150}
LEG = "cn2>relay:hk/hk"
FAR = "cn2>hk>u/e1"


def topology(*, relays=True, direct=True):
    lines = tuple(Line(name) for name in RTT)
    door = Endpoint("relay:hk", "hk", "https", "hk.test", 443, protocols=(Carrier.H2,))
    endpoint = Endpoint("u", "e1", "https", "e1.test", 443, relays=None, direct=direct)
    return Topology(None, lines, (endpoint,), (Relay("hk", "", None, door),) if relays else ())


class Bench:
    def __init__(self):
        self.now = 100.0
        self.changes = []
        self.table = PathTable(
            topology(direct=False), {"u": Policy()}, self.now, rng=random.Random(7)
        )
        self.table.subscribe(self.changes.append)
        self.pulses()

    def pulses(self, seconds=5.0, lines=tuple(RTT)):
        until = self.now + seconds
        while self.now < until:
            self.now += 0.2
            for line in RTT:
                leg = f"{line}>relay:hk/hk"
                self.table.sent(leg, Kind.PULSE, self.now, Carrier.H2, 0.05)
                if line in lines:
                    at = self.now + RTT[line]
                    self.table.observe(Sample(leg, Kind.PULSE, self.now, RTT[line], Outcome.OK), at)
            self.table.tick(self.now + 0.19)

    def report(self, far):
        for line in RTT:
            self.table.reported(f"{line}>hk>u/e1", far, self.now)
        self.now += 0.5
        self.table.tick(self.now)

    def state(self, path):
        return self.table.snapshot.paths[path]


@pytest.fixture
def bench():
    return Bench()


def test_legs_and_paths_through_them_exist(bench):
    assert set(bench.table.snapshot.paths) == {
        *(LEG, "bgp>relay:hk/hk"),
        *(FAR, "bgp>hk>u/e1"),
    }
    assert bench.table.snapshot.upstreams["u"] == (FAR, "bgp>hk>u/e1")


def test_round_trips_and_losses_of_both_legs_add_up(bench):
    near = bench.state(LEG).estimate
    assert bench.state(FAR).estimate == near == bench.state(FAR).near
    far = FarLeg(Verdict.UP, 0.010, 0.02)
    bench.report(far)
    state = bench.state(FAR)
    assert state.far == far
    assert state.estimate.rtt_s == pytest.approx(0.070, abs=0.002)
    assert state.near.rtt_s == pytest.approx(0.060, abs=0.002)
    assert state.estimate.loss == pytest.approx(1 - (1 - state.near.loss) * 0.98)
    assert bench.table.ranking("u", RequestClass.of(0)).paths[0].name == FAR


def test_a_silent_leg_takes_its_paths_with_it(bench):
    bench.pulses(3.0, lines=("bgp",))
    assert bench.state(LEG).verdict is Verdict.DOWN
    assert bench.state(FAR).verdict is Verdict.DOWN
    assert bench.state("bgp>hk>u/e1").verdict is Verdict.UP
    of_path = [(c.old, c.new) for c in bench.changes if c.path == FAR]
    assert of_path == [(c.old, c.new) for c in bench.changes if c.path == LEG]
    assert bench.table.ranking("u", RequestClass.of(0)).paths[0].line.name == "bgp"
    bench.pulses(10.0)
    assert bench.state(FAR).verdict is Verdict.UP


def test_what_the_relay_says_of_its_own_way_counts_on_every_line(bench):
    bench.report(FarLeg(Verdict.DOWN))
    assert bench.state(FAR).verdict is Verdict.DOWN
    assert bench.state("bgp>hk>u/e1").verdict is Verdict.DOWN
    assert bench.state(LEG).verdict is Verdict.UP
    assert "the relay reports" in bench.state(FAR).reason
    bench.pulses(2.0, lines=("bgp",))
    assert [c.new for c in bench.changes if c.path == FAR] == [Verdict.DOWN]
    bench.pulses(10.0)
    bench.report(FarLeg(Verdict.UP, 0.01))
    assert bench.state(FAR).verdict is Verdict.UP


def test_relays_come_and_go_with_a_reload(bench):
    bench.table.reload(topology(relays=False), bench.now)
    assert set(bench.table.snapshot.paths) == {"cn2>u/e1", "bgp>u/e1"}
    bench.table.reload(topology(), bench.now)
    assert len(bench.table.snapshot.paths) == 6
    bench.pulses(1.0)
    assert bench.state(FAR).near is not None
