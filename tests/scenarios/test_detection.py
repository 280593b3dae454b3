"""How fast a death is found: the real clockwork, watch and table over simulated packets."""

from __future__ import annotations

import random

import pytest

from policies.model import Carrier, Kind, Verdict
from tests.scenarios.linenet import CLASS, Net, SimEndpoint, SimLine, two_lines

H1, H2, H3 = Carrier.H1, Carrier.H2, Carrier.H3


def world(seed, carrier=H2, *, lines=None, icmp=True, think_s=0.0, per_s=20.0, until=30.0):
    """Two lines, one endpoint, traffic; 12 s old."""
    net = Net(seed, lines or two_lines(), {"e1": SimEndpoint(carrier, icmp=icmp, think_s=think_s)})
    net.run(2.0)
    if per_s:
        net.traffic(per_s, until)
    net.run(12.0 + random.Random(seed).random())
    assert not [c for c in net.changes if c.new is Verdict.DOWN and c.at > 3.0]
    return net


def down_after(net, died, line="a"):
    at = net.first(Verdict.DOWN, line, died)
    return None if at is None else at - died


@pytest.mark.parametrize("icmp", [True, False], ids=["icmp", "mute"])
@pytest.mark.parametrize("carrier", [H1, H2, H3])
@pytest.mark.parametrize("hole", ["both", "up", "down"])
def test_a_line_that_dies_under_traffic_is_down_in_half_a_second(carrier, hole, icmp):
    net = world(7, carrier, icmp=icmp)
    died = net.now
    net.lines["a"].hole = hole
    net.run(died + 2.0)
    assert down_after(net, died) < 0.6
    assert net.line_down("a")
    assert net.first(Verdict.DOWN, "b", died) is None
    assert all(r.ended for r in net.requests if r.begun < died + 0.9)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("carrier", "icmp"), [(H2, True), (H1, True), (H1, False)])
def test_with_little_traffic_the_verdict_is_there_before_the_next_request(seed, carrier, icmp):
    net = world(seed, carrier, icmp=icmp, per_s=0.2, until=40.0)
    died = net.now
    net.lines["a"].hole = "both"
    net.run(died + 7.0)
    assert down_after(net, died) < 1.0
    for request in net.requests:
        if request.begun > died + 1.0:
            assert all(path.startswith("b>") for _, path, _ in request.starts)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("carrier", "icmp"), [(H1, True), (H1, False), (H2, False), (H3, True)])
def test_a_line_that_dies_while_a_model_thinks_is_found_as_fast(seed, carrier, icmp):
    net = world(seed, carrier, icmp=icmp, per_s=0)
    asked = net.request(think_s=60.0)
    net.run(net.now + 6.0)
    assert not asked.moves
    assert not [c for c in net.changes if c.new is Verdict.DOWN and c.at > 3.0]
    died = net.now
    net.lines["a"].hole = "both"
    net.run(died + 2.0)
    assert asked.moves[0] - died < 0.75


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("lines", [two_lines(), {"a": SimLine(0.060, 0.001)}], ids=["two", "one"])
def test_where_datagrams_vanish_h3_is_blocked_and_the_line_is_not_down(seed, lines):
    net = world(seed, H3, lines={n: SimLine(it.rtt_s, it.loss) for n, it in lines.items()})
    died = net.now
    net.lines["a"].udp_hole = "both"
    net.run(died + 6.0)
    (change,) = [c for c in net.carrier_changes if c.path.startswith("a>")]
    assert (change.carriers, change.blocked) == ((H3,), True)
    assert change.at - died < 1.0
    assert net.first(Verdict.DOWN, "a", died) is None
    assert all(r.ended - r.begun < 1.2 for r in net.requests if died - 1 < r.begun < died + 4)
    paths = net.table.snapshot.paths
    assert paths["a>u/e1"].verdict is Verdict.UP, "TCP carries it"
    net.lines["a"].udp_hole = ""
    net.table.observe(net.sample("a>u/e1", Kind.QUIC, 0.06, carrier=H3), net.now)
    assert net.carrier_changes[-1][:3] == ("a>u/e1", (H3,), False)


@pytest.mark.parametrize("carrier", [H1, H2])
@pytest.mark.parametrize(("up", "down"), [(3000, 600), (400, 6000)], ids=["uploads", "downloads"])
def test_where_large_packets_vanish_what_is_stuck_moves(carrier, up, down):
    net = Net(3, two_lines(), {"e1": SimEndpoint(carrier)})
    net.run(2.0)
    net.traffic(20, 20.0, up=up, down=down)
    net.run(12.0)
    died = net.now
    net.lines["a"].mtu = 1000
    net.run(died + 2.5)
    moves = [at - died for r in net.requests for at in r.moves]
    assert moves
    assert min(moves) < 1.2
    assert net.table.ranking("u", CLASS).paths[0].line.name == "b"
    assert net.table.snapshot.paths["a>u/e1"].verdict is not Verdict.UP


@pytest.mark.parametrize("carrier", [H1, H2, H3])
@pytest.mark.parametrize("loss", [0.01, 0.05])
def test_loss_alone_convicts_nobody(carrier, loss):
    lines = {"a": SimLine(0.15, loss), "b": SimLine(0.2, loss)}
    net = Net(5, lines, {"e1": SimEndpoint(carrier)})
    net.run(2.0)
    net.traffic(20, 60.0)
    net.run(60.0)
    assert not [c for c in net.changes if c.new is Verdict.DOWN and c.at > 3.0]
    suspects = [c for c in net.changes if (c.old, c.new) == (Verdict.UP, Verdict.SUSPECT)]
    assert len([c for c in suspects if c.at > 3.0]) <= 5
    assert not net.carrier_changes


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("carrier", [H1, H2, H3])
def test_a_brown_out_moves_requests_within_two_seconds_and_is_no_death(seed, carrier):
    net = world(seed, carrier)
    net.choices.clear()
    began = net.now
    net.lines["a"].rtt_s, net.lines["a"].loss = 0.36, 0.1
    net.run(began + 10.0)
    assert not [c for c in net.changes if c.new is Verdict.DOWN and c.at > began]
    assert not any(r.moves for r in net.requests), "nothing is executed again"
    for request in net.requests:
        if request.begun > began + 2.0:
            assert all(path.startswith("b>") for _, path, _ in request.starts)
    assert len(net.choices) <= 5


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("carrier", "icmp"), [(H1, True), (H2, True), (H3, True), (H2, False)])
def test_an_idle_line_with_loss_costs_less_than_10_mb_a_day(seed, carrier, icmp):
    lines = {"a": SimLine(0.060, 0.001), "b": SimLine(0.150, 0.01), "c": SimLine(0.150, 0.03)}
    net = Net(seed, lines, {"e1": SimEndpoint(carrier, icmp=icmp)})
    net.run(2.0)
    net.request()
    net.run(30.0)
    before, down = dict(net.probe_bytes), len(net.changes)
    net.run(30.0 + 1800.0)
    for line in lines:
        assert (net.probe_bytes[line] - before[line]) * 86_400 / 1800 < 10e6
    assert not [c for c in net.changes[down:] if c.new is Verdict.DOWN]


@pytest.mark.parametrize(("icmp", "within_s"), [(True, 7.0), (False, 15.0)], ids=["icmp", "mute"])
@pytest.mark.parametrize("carrier", [H1, H2, H3])
def test_an_idle_line_that_dies_is_down_in_some_seconds_and_back_when_it_heals(
    carrier, icmp, within_s
):
    net = Net(1, two_lines(), {"e1": SimEndpoint(carrier, icmp=icmp)})
    net.run(2.0)
    net.request()
    net.run(60.0)
    net.lines["a"].hole = "both"
    net.run(60.0 + within_s)
    assert net.table.snapshot.paths["a>u/e1"].verdict is Verdict.DOWN
    spent = net.probe_bytes["a"]
    net.run(600.0)
    assert net.probe_bytes["a"] - spent < 12_000 + 540 * 116
    net.lines["a"].hole = ""
    net.run(630.0)
    assert net.table.snapshot.paths["a>u/e1"].verdict is Verdict.UP


def test_a_flood_of_bytes_with_late_answers_is_not_death():
    """A queue of half a second builds up within a second while a stream keeps coming."""
    net = world(1, H2, per_s=0)
    net.request(pieces=200)
    began = net.now
    for step in range(10):
        net.at(began + 0.1 * step, setattr, net.lines["a"], "extra_s", 0.025 * (step + 1))
    net.run(began + 4.0)
    assert net.first(Verdict.DOWN, "a", began) is None


def test_a_line_that_comes_back_is_heard_of_within_two_seconds():
    net = world(2, H2)
    died = net.now
    net.lines["a"].hole = "both"
    net.run(died + 8.0)
    net.lines["a"].hole = ""
    healed = net.now
    net.run(healed + 2.0)
    assert net.table.line_verdict("a") is Verdict.UP
    assert net.table.snapshot.paths["a>u/e1"].verdict is Verdict.UP
