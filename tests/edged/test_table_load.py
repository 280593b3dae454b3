"""Endpoints that fill up: the table learns what they bear, and sends the rest elsewhere."""

import heapq
import random
from collections import deque
from itertools import count

import pytest

from edged.table import PathTable
from policies.model import Endpoint, Kind, Line, Outcome, RequestClass, Sample, Topology
from policies.schema import Policy

SMALL = RequestClass.of(1024)
RTT_S = {"near": 0.060, "far": 0.150}


def topology(lines=("cn2",)):
    endpoints = tuple(Endpoint("u", name, "https", f"{name}.test", 443) for name in RTT_S)
    return Topology(None, tuple(Line(name) for name in lines), endpoints)


class Load:
    """Requests through a table; ``near`` has 16 slots, ``far`` as many as come."""

    def __init__(self, rate):
        self.rng = random.Random(3)
        self.rate = rate
        self.now = 0.0
        self.table = PathTable(topology(), {"u": Policy()}, 0.0, rng=self.rng)
        self.events, self.order = [], count()
        self.working, self.queue = 0, deque()
        self.took = {"near": [], "far": []}
        self.at(0.0, self.measure)
        self.at(2.0, self.request)

    def at(self, time, action, *args):
        heapq.heappush(self.events, (time, next(self.order), action, args))

    def run(self, until):
        while self.events[0][0] <= until:
            self.now, _, action, args = heapq.heappop(self.events)
            action(*args)

    def measure(self):
        self.at(self.now + 0.05, self.measure)
        for name, rtt_s in RTT_S.items():
            sample = Sample(f"cn2>u/{name}", Kind.TCP, self.now - rtt_s, rtt_s)
            self.table.observe(sample, self.now)
        self.table.tick(self.now)

    def request(self):
        self.at(self.now + self.rng.expovariate(self.rate(self.now)), self.request)
        path = self.table.ranking("u", SMALL).paths[0]
        found = self.table.started(path.name)
        arrived = self.arrived if path.endpoint.name == "near" else self.work
        rtt_s = RTT_S[path.endpoint.name]
        self.at(self.now + rtt_s / 2, arrived, path, self.now, found)

    def arrived(self, *exchange):
        self.queue.append(exchange)
        self.work_off()

    def work_off(self):
        while self.queue and self.working < 16:
            self.working += 1
            self.work(*self.queue.popleft())

    def work(self, path, began_at, found):
        self.at(self.now + self.rng.expovariate(10), self.done, path, began_at, found)

    def done(self, path, began_at, found):
        if path.endpoint.name == "near":
            self.working -= 1
            self.work_off()
        rtt_s = RTT_S[path.endpoint.name]
        self.at(self.now + rtt_s / 2, self.answered, path, began_at, found)

    def answered(self, path, began_at, found):
        took_s = self.now - began_at
        self.took[path.endpoint.name].append((self.now, took_s))
        self.table.answered(path.name, [(took_s, found)], self.now)
        self.table.finished(path.name)


def test_an_endpoint_that_saturates_shares_its_load_with_the_next():
    load = Load(lambda now: 60 if now < 15 else 240)
    load.run(15)
    assert not load.took["far"]
    load.run(60)
    late = {name: [s for at, s in took if at > 30] for name, took in load.took.items()}
    assert len(late["near"]) > 0.75 * 160 * 30
    assert len(late["far"]) > 0.2 * 240 * 30
    both = sorted(late["near"] + late["far"])
    assert both[int(0.99 * len(both))] < 1.5
    state = load.table.snapshot.paths["cn2>u/near"]
    assert 12 < state.limit < 60
    assert load.table.snapshot.paths["cn2>u/far"].limit is None


@pytest.fixture
def table():
    table = PathTable(topology(("cn2", "bgp")), {"u": Policy()}, 0.0, rng=random.Random(1))
    for line, rtt_s in (("cn2", 0.06), ("bgp", 0.09)):
        for name in RTT_S:
            table.observe(Sample(f"{line}>u/{name}", Kind.TCP, 0.0, rtt_s), rtt_s)
    return table


def busy(table, path, now):
    table.observe(Sample(path, Kind.TTFB, now, 0.1, Outcome.BUSY, retry_after_s=0.01), now)


def test_what_is_in_flight_counts_for_the_endpoint_whatever_the_line(table):
    assert [table.started("cn2>u/near") for _ in range(5)] == [1, 2, 3, 4, 5]
    assert table.started("bgp>u/near") == 6
    assert table.started("cn2>u/far") == 1
    busy(table, "cn2>u/near", 1.0)
    paths = table.snapshot.paths
    for line, own in (("cn2", 5), ("bgp", 1)):
        state = paths[f"{line}>u/near"]
        assert (state.in_flight, state.endpoint_in_flight) == (own, 6)
        assert state.limit == pytest.approx(4.8)
    assert paths["cn2>u/far"].limit is None


def hot(table):
    order = table.ranking("u", SMALL).order
    return {c.state.path.endpoint.name for c in order if c.filtered == "hot"}


def test_the_request_that_fills_an_endpoint_is_seen_by_the_next(table):
    for _ in range(5):
        table.started("cn2>u/near")
    busy(table, "cn2>u/near", 1.0)
    assert table.snapshot.paths["cn2>u/near"].limit == 4
    for _ in range(3):
        table.finished("cn2>u/near")
    table.tick(2.0)
    assert not hot(table)
    serial = table.snapshot.serial
    table.started("cn2>u/near")
    assert table.snapshot.serial == serial
    table.started("cn2>u/near")
    assert table.snapshot.serial == serial + 1
    assert hot(table) == {"near"}
    table.started("cn2>u/near")
    assert table.snapshot.serial == serial + 1  # once


def test_a_reload_keeps_the_limit_and_forgets_what_went_with_a_line(table):
    for path in ("cn2>u/near", "cn2>u/near", "bgp>u/near"):
        table.started(path)
    busy(table, "cn2>u/near", 1.0)
    table.reload(topology(("bgp",)), 1.1)
    state = table.snapshot.paths["bgp>u/near"]
    assert state.limit == pytest.approx(2.4)
    assert state.endpoint_in_flight == 1
    table.finished("cn2>u/near")  # of a path that is gone
    table.finished("bgp>u/near")
    table.tick(3.0)
    assert table.snapshot.paths["bgp>u/near"].endpoint_in_flight == 0
