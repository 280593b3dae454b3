"""Whose fault: forty random cases under the real clockwork, watch and table."""

from __future__ import annotations

import random

from policies.model import Blame, Carrier, Verdict
from tests.scenarios.linenet import CLASS, Net, SimEndpoint, SimLine

H1, H2, H3 = Carrier.H1, Carrier.H2, Carrier.H3


def random_case(seed):
    """Two lines, three endpoints, any carriers and any amount of traffic; something dies."""
    rng = random.Random(seed)
    lines = {
        "a": SimLine(rng.uniform(0.02, 0.25), rng.choice([0.001, 0.01, 0.05])),
        "b": SimLine(rng.uniform(0.02, 0.25), rng.choice([0.001, 0.01])),
    }
    carrier, icmp = rng.choice([H1, H2, H3]), rng.random() < 0.7
    endpoints = {
        f"e{i}": SimEndpoint(carrier if rng.random() < 0.7 else rng.choice([H1, H2, H3]), icmp=icmp)
        for i in (1, 2, 3)
    }
    net = Net(seed, lines, endpoints)
    net.run(2.0)
    net.traffic(rng.choice([0.2, 1, 5]), 30.0)
    net.run(7.0 + 3 * rng.random())
    used = net.table.ranking("u", CLASS).paths[0]
    what = rng.choice(["line", "line", "up", "down", "endpoint", "endpoint"])
    if what == "endpoint":
        victim = rng.choice([used.endpoint.name, "e1", "e2", "e3"])
        net.endpoints[victim].dead = True
    else:
        victim = rng.choice([used.line.name, "a", "b"])
        net.lines[victim].hole = "both" if what == "line" else what
    net.run(net.now + 7.0)
    return net, what, victim


def test_of_forty_random_cases_at_least_39_are_blamed_on_the_right_one():
    wrong = []
    for seed in range(40):
        net, what, victim = random_case(seed)
        of_endpoint = what == "endpoint"
        guilty = {
            path
            for path in net.table.snapshot.paths
            if (path.endswith("/" + victim) if of_endpoint else path.startswith(victim + ">"))
        }
        states = net.table.snapshot.paths
        dead = {path for path, state in states.items() if state.verdict is Verdict.DOWN}
        blame = Blame.ENDPOINT if of_endpoint else Blame.LINE
        blames = {c.blame for c in net.changes if c.path in dead and c.new is Verdict.DOWN}
        down = [line for line in net.lines if net.line_down(line)]
        right = dead == guilty and down == ([] if of_endpoint else [victim]) and blame in blames
        if not right:
            wrong.append((seed, what, victim, dead ^ guilty, down, blames))
        if of_endpoint:
            assert not down, "no healthy line is ejected"
        else:
            assert set(down) <= {victim}, "no healthy line is ejected"
    assert len(wrong) <= 1, wrong
