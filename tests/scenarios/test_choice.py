"""When the choice of a line moves, under the real probes: false alarms, flaps, returns."""

from __future__ import annotations

import itertools

import pytest

from policies.model import Verdict
from tests.scenarios.linenet import CLASS, Net, two_lines

BEGIN_S = 20.0


def warm(seed, per_s, until):
    """A net that has run for 20 s, with traffic until ``until``."""
    net = Net(seed, two_lines())
    net.run(5.0)
    net.traffic(per_s, until)
    net.run(BEGIN_S)
    assert choice(net) == "a"
    return net


def choice(net):
    return net.table.peek("u", CLASS).order[0].state.path.line.name


def moves(net, since=BEGIN_S):
    """When requests began to take another line than those before, and which."""
    lines = [(r.begun, r.starts[-1][1][0]) for r in net.requests if r.starts]
    pairs = itertools.pairwise(lines)
    return [(at, line) for (_, before), (at, line) in pairs if line != before and at >= since]


@pytest.mark.parametrize("seed", range(2))
def test_a_false_alarm_costs_nothing_visible(seed):
    net = warm(seed, 20, 35.0)
    net.lines["a"].rtt_s += 0.1
    net.run(BEGIN_S + 1.0)
    net.lines["a"].rtt_s -= 0.1
    net.run(40.0)
    assert all(c.new is not Verdict.DOWN for c in net.changes if c.at > BEGIN_S)
    away = [r for r in net.requests if r.begun > BEGIN_S and r.starts[0][1].startswith("b>")]
    assert len(away) <= 10, "half a second of stepping aside at most"
    assert choice(net) == "a"


@pytest.mark.parametrize("per_s", [20, 1])
def test_a_clearly_better_line_is_returned_to_soon_after_one_outage(per_s):
    net = warm(1, per_s, 50.0)
    net.lines["a"].hole = "both"
    net.run(30.0)
    assert choice(net) == "b"
    net.lines["a"].hole = ""
    net.run(32.0)
    assert choice(net) == "b", "not before it has stayed"
    net.run(36.0)
    assert choice(net) == "a"
    net.run(50.0)
    assert moves(net)[0][1] == "b"
    assert moves(net, since=36.0) == [], "it is settled, whatever doubt of b was stepped around"


@pytest.mark.parametrize("per_s", [20, 0.5])
def test_a_line_that_flaps_every_two_seconds_is_left_once(per_s):
    net = warm(1, per_s, 140.0)
    for number in range(30):
        net.at(BEGIN_S + 4 * number, setattr, net.lines["a"], "hole", "both")
        net.at(BEGIN_S + 4 * number + 2, setattr, net.lines["a"], "hole", "")
    net.run(140.0)
    by_minute = [sum(60 * m <= at - BEGIN_S < 60 * (m + 1) for at, _ in moves(net)) for m in (0, 1)]
    assert all(count <= 2 for count in by_minute)
