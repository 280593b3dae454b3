"""Lines that die, half-die, brown out, lose in bursts and flap, as `PathTable` and the attempt
machine meet them: whole minutes in virtual time, seeded.
"""

from __future__ import annotations

import random

import pytest

from policies.model import Verdict
from tests.scenarios.simnet import CLASS, SimLine, World, two_lines

SEEDS = range(2)


def busy(seed, *, per_s=20, until=40.0, safe=False, endpoints=("e1",), lines=None):
    """A world that has run for 25 s, with traffic until ``until``."""
    world = World(seed, lines or two_lines(), endpoints)
    world.run(5.0)
    world.traffic(per_s, until, safe=safe)
    world.run(25.0)
    return world


def first(world):
    return world.table.peek("u", CLASS).order[0].state.path


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("hole", ["both", "up", "down"])
def test_a_blackhole_in_either_direction_costs_less_than_a_second(seed, hole):
    world = busy(seed)
    assert first(world).line.name == "a"
    died = world.now
    world.lines["a"].hole = hole
    world.run(45.0)
    assert not world.failed
    assert not world.unanswered
    assert world.gap_s(died) < 1.0
    assert world.longest_s(died - 1) < 1.5  # nobody watches the connections here, as linenet does
    assert world.lines_chosen() == ["b"]
    assert world.table.line_verdict("a") is Verdict.DOWN
    assert all(c.new is not Verdict.DOWN for c in world.verdicts("b"))
    doubled = [r for r in world.requests if r.executions > 1]
    assert all(r.begun < died + 1.0 for r in doubled), "only those in flight when it died"
    if hole != "down":
        assert not doubled


@pytest.mark.parametrize("seed", SEEDS)
def test_with_little_traffic_the_dead_line_is_found_by_probes(seed):
    world = busy(seed, per_s=0.2, until=60.0)
    died = world.now
    world.lines["a"].hole = "both"
    world.run(70.0)
    assert not world.failed
    assert world.longest_s(died) < 2.0
    late = [r for r in world.requests if r.begun > died + 4.0]
    assert late
    assert all(len(r.starts) == 1 and r.path.startswith("b>") for r in late)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_line_that_comes_back_is_returned_to_once(seed):
    world = busy(seed, until=90.0)
    world.lines["a"].hole = "both"
    world.run(35.0)
    world.lines["a"].hole = ""
    world.run(45.0)
    assert world.lines_chosen() == ["b", "a"]
    world.run(100.0)
    assert not world.failed
    outage = [c for c in world.choices if c.at < 45.0]
    assert outage[1].at > 37.0, "not before it has stayed for some seconds"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_brown_out_moves_requests_within_seconds_and_kills_none(seed):
    world = busy(seed)
    began = world.now
    world.lines["a"].rtt_s += 0.3
    world.lines["a"].loss = 0.10
    world.run(50.0)
    assert world.choices[0].at - began < 2.5
    assert first(world).line.name == "b"
    assert len(world.choices) <= 3
    assert not world.failed
    assert not world.unanswered
    settled = [r.seconds for r in world.requests if r.begun > began + 5]
    assert sorted(settled)[len(settled) // 2] < 0.17


@pytest.mark.parametrize("seed", SEEDS)
def test_burst_loss_is_not_taken_for_death(seed):
    world = busy(seed, until=60.0)
    world.lines["a"].burst = (0.02, 0.3)  # 6% loss in bursts of 3.3 packets
    world.run(70.0)
    downs = [c for c in world.changes if c.new is Verdict.DOWN]
    assert len(downs) <= 2
    assert not world.failed
    assert not world.unanswered


@pytest.mark.parametrize("seed", SEEDS)
def test_a_line_that_flaps_every_two_seconds_moves_at_most_twice_a_minute(seed):
    world = busy(seed, until=85.0)
    began = world.now
    for i in range(15):
        world.at(began + 4 * i, setattr, world.lines["a"], "hole", "both")
        world.at(began + 4 * i + 2, setattr, world.lines["a"], "hole", "")
    world.run(began + 60.0)
    assert 1 <= len(world.choices) <= 2
    assert not world.failed
    assert not [r for r in world.unanswered if r.begun < world.now - 2.0]
    state = next(s for s in world.table.snapshot.paths.values() if s.path.line.name == "a")
    assert "flapping" in state.reason or "recovering" in state.reason


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("what", ["line", "endpoint"])
def test_attribution(seed, what):
    rng = random.Random(seed)
    lines = {"a": SimLine(0.06, 0.001), "b": SimLine(0.15, 0.01), "c": SimLine(0.2, 0.005)}
    world = busy(seed, until=40.0, endpoints=("e1", "e2", "e3"), lines=lines)
    line, endpoint = rng.choice("abc"), rng.choice(["e1", "e2", "e3"])
    if what == "line":
        world.lines[line].hole = "both"
    else:
        world.endpoints[endpoint].fault = "silent"
    world.run(40.0)
    dead_lines = [n for n in lines if world.table.line_verdict(n) is Verdict.DOWN]
    assert dead_lines == ([line] if what == "line" else [])
    paths = world.table.snapshot.paths.values()
    dead = {s.path.name for s in paths if s.verdict is Verdict.DOWN}
    assert dead == {
        s.path.name
        for s in paths
        if (s.path.line.name == line if what == "line" else s.path.endpoint.name == endpoint)
    }
    assert not world.failed
    assert not any(s.ejected_until for s in paths if s.path.name not in dead)


@pytest.mark.parametrize("fault", ["refuse", "error"])
def test_an_endpoint_at_fault_is_left_and_no_line_is_blamed(fault):
    world = busy(1, until=45.0, endpoints=("e1", "e2"))
    before = first(world)
    world.endpoints[before.endpoint.name].fault = fault
    world.run(45.0)
    assert world.choices[-1].new.state.path.endpoint.name != before.endpoint.name
    assert world.choices[-1].new.state.path.line == before.line
    assert all(world.table.line_verdict(line) is Verdict.UP for line in world.lines)
    errors = [r for r in world.failed if r.begun > 25.0]
    if fault == "refuse":
        assert not errors
    else:
        assert len(errors) < 0.1 * 400, "probation lets one through now and then"


@pytest.mark.parametrize("seed", SEEDS)
def test_with_all_lines_down_requests_still_have_a_last_resort_and_recover(seed):
    world = busy(seed, until=50.0)
    for line in world.lines.values():
        line.hole = "both"
    world.run(30.0)
    ranking = world.table.peek("u", CLASS)
    assert len(ranking.order) == 2
    assert "last resort" in ranking.decided_by
    world.run(35.0)
    for line in world.lines.values():
        line.hole = ""
    world.run(70.0)
    assert not [r for r in world.requests if r.begun > 36.0 and r.status != 200]
    assert first(world).line.name == "a"
    assert all(s.verdict is Verdict.UP for s in world.table.snapshot.paths.values())


def test_a_model_that_thinks_for_a_minute_is_neither_moved_nor_repeated():
    world = World(1, two_lines())
    world.endpoints["e1"].think_s = 60.0
    world.run(5.0)
    world.traffic(2, 15.0)
    world.run(100.0)
    assert not world.failed
    assert not world.unanswered
    assert all(r.executions == 1 and len(r.starts) == 1 for r in world.requests)
    assert not world.choices


def test_a_line_that_dies_while_the_model_thinks_moves_those_in_flight_within_a_second():
    world = World(1, two_lines())
    world.endpoints["e1"].think_s = 60.0
    world.run(5.0)
    world.traffic(2, 15.0)
    world.run(30.0)
    world.lines["a"].hole = "both"
    world.run(120.0)
    assert not world.failed
    assert not world.unanswered
    assert all(len(r.starts) == 2 for r in world.requests)
    assert all(30.0 < r.starts[1][0] < 31.5 for r in world.requests)
