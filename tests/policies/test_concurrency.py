"""The concurrency limit against simulated servers: c at work, the others in a queue."""

import heapq
import math
import random
from collections import deque
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.concurrency import TTL_S, ConcurrencyLimit

UNLIMITED = 10**9


class Server:
    """``slots`` work at once; an exchange takes ``service(now)`` and a round trip of ``rtt_s``."""

    def __init__(self, slots, service, rtt_s):
        self.slots, self.service, self.rtt_s = slots, service, rtt_s
        self.limit = ConcurrencyLimit()
        self.queue = deque()
        self.working = self.in_flight = 0
        self.latencies = []


class Sim:
    """Requests prefer the first server that is below its limit. ``rate(now)`` per second."""

    def __init__(self, servers, rate, seed):
        self.servers, self.rate = servers, rate
        self.rng = random.Random(seed)
        self.events, self.order = [], count()
        self.now = 0.0
        self.at(0.0, self.request)

    def at(self, time, action, *args):
        heapq.heappush(self.events, (time, next(self.order), action, args))

    def run(self, until):
        while self.events[0][0] <= until:
            self.now, _, action, args = heapq.heappop(self.events)
            action(*args)

    def request(self):
        self.at(self.now + self.rng.expovariate(self.rate(self.now)), self.request)
        server = min(self.servers, key=self.fullness)
        server.in_flight += 1
        self.at(self.now + server.rtt_s / 2, self.arrived, server, self.now, server.in_flight)

    def fullness(self, server):
        limit = server.limit.limit
        if limit is None or server.in_flight < limit:
            return 0, 0.0
        return 1, server.in_flight / limit

    def arrived(self, server, *exchange):
        server.queue.append(exchange)
        self.work(server)

    def work(self, server):
        while server.queue and server.working < server.slots:
            server.working += 1
            done_at = self.now + server.service(self.now)
            self.at(done_at, self.done, server, *server.queue.popleft())

    def done(self, server, *exchange):
        server.working -= 1
        self.work(server)
        self.at(self.now + server.rtt_s / 2, self.answered, server, *exchange)

    def answered(self, server, began_at, found):
        latency_s = self.now - began_at
        server.latencies.append((self.now, latency_s))
        server.limit.answered([(latency_s, found)], server.rtt_s, server.in_flight, self.now)
        server.in_flight -= 1


def exponential(rng, mean_s):
    return lambda now: rng.expovariate(1 / mean_s)


def pair(seed, slots, service, rate):
    """A near server and a distant one that never fills."""
    near, far = Server(slots, service, 0.060), Server(UNLIMITED, service, 0.150)
    return near, far, Sim([near, far], rate, seed)


@pytest.mark.parametrize("seed", range(3))
def test_it_converges_near_the_capacity_and_the_rest_goes_elsewhere(seed):
    rng = random.Random(seed)
    near, far, sim = pair(seed, 16, exponential(rng, 0.1), lambda now: 80 if now < 20 else 240)
    sim.run(19)
    assert near.limit.limit is None  # at half load nothing is known, and nothing limited
    assert not far.latencies
    sim.run(40)
    limits = []
    for second in range(40, 120):
        sim.run(second)
        limits.append(near.limit.limit)
    capacity = 160 * 0.160  # answers per second times how long one is in flight
    assert 0.85 * capacity < sorted(limits)[len(limits) // 2] < 1.4 * capacity
    late = sorted(latency_s for at, latency_s in near.latencies if at > 40)
    assert len(late) > 0.88 * 160 * 80  # trials and caution cost a tenth at most
    assert late[int(0.95 * len(late))] < 0.6  # unlimited it grows by half a second each second


def thinking(rng, mean_s):
    """Log-normal: most answers are quick, some take ten times as long."""
    sigma = 1.2
    median_s = mean_s / math.exp(sigma * sigma / 2)
    return lambda now: median_s * math.exp(sigma * rng.gauss(0, 1))


def mixed(rng):
    """Nine in ten answer at once, the tenth thinks for half a minute."""
    return lambda now: rng.expovariate(1 / 30) if rng.random() < 0.1 else rng.expovariate(2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["thinking", "mixed"])
def test_a_thinking_endpoint_is_not_strangled(kind, seed):
    rng = random.Random(seed)
    service = thinking(rng, 5.0) if kind == "thinking" else mixed(rng)
    near, far, sim = pair(seed, UNLIMITED, service, lambda now: 3 + 2 * math.sin(now / 100))
    sim.run(1800)
    assert len(far.latencies) < 0.03 * len(near.latencies)


@pytest.mark.parametrize("seed", range(4))
def test_prompts_that_become_harder_are_no_queue(seed):
    rng = random.Random(seed)
    easy, hard = thinking(rng, 5.0), thinking(rng, 20.0)
    near, far, sim = pair(
        seed,
        UNLIMITED,
        lambda now: (easy if now < 600 else hard)(now),
        lambda now: 3.0,
    )
    sim.run(1800)
    assert near.limit.limit is None
    assert len(far.latencies) < 0.10 * len(near.latencies)  # it was tried, and given up


def test_capacity_that_shrinks_and_returns_is_followed():
    rng = random.Random(5)
    near, far, sim = pair(5, 32, exponential(rng, 0.1), lambda now: 200)
    sim.run(60)
    assert near.limit.limit is None
    near.slots = 8
    sim.run(90)
    begun = len(near.latencies), len(far.latencies)
    sim.run(180)
    served = len(near.latencies) - begun[0]
    assert served > 0.8 * 80 * 90
    assert len(far.latencies) - begun[1] > 0.9 * 120 * 90
    near.slots = 32
    sim.run(200)
    diverted = len(far.latencies)
    sim.run(260)
    assert len(far.latencies) - diverted < 0.05 * 200 * 60


@pytest.mark.parametrize("seed", range(3))
def test_a_single_server_keeps_all_its_traffic(seed):
    rng = random.Random(seed)
    server = Server(16, exponential(rng, 0.1), 0.060)
    sim = Sim([server], lambda now: 200 if 20 < now < 40 else 100, seed)
    sim.run(120)
    assert len(server.latencies) > 0.97 * (100 * 100 + 200 * 20)


def test_busy_lowers_it_once_a_window_and_calm_raises_it():
    limit = ConcurrencyLimit()
    limit.busy(20, 0.0)
    assert limit.limit == 16
    limit.busy(10, 0.1)  # the same burst
    assert limit.limit == 16
    for step in range(1, 30):
        limit.answered([(0.1, 12)], 0.06, 12, step * 0.1)
    assert limit.limit == 16  # the window in which it was busy does not raise it
    limit.busy(10, 3.0)
    assert limit.limit == 8
    now = 3.0
    while limit.limit < 16:
        now += 0.05
        limit.answered([(0.1, 8)], 0.06, 8, now)
        assert now < 60
    assert now > 8


def test_it_is_forgotten():
    limit = ConcurrencyLimit()
    limit.busy(20, 0.0)
    for step in range(30):
        limit.answered([(0.1, 2)], 0.06, 2, step * 0.1)
    assert limit.limit is not None
    for step in range(30):
        limit.answered([(0.1, 2)], 0.06, 2, TTL_S + 10 + step * 0.1)
    assert limit.limit is None


def test_a_longer_line_is_no_queue():
    limit = ConcurrencyLimit()
    now = 0.0
    for rtt_s, found in ((0.06, 10), (0.30, 40)):
        for _ in range(4000):
            now += 0.005
            limit.answered([(rtt_s + 0.1, found)], rtt_s, found, now)
    assert limit.limit is None


EVENT = st.tuples(
    st.sampled_from(["answered", "answered", "answered", "busy"]),
    st.floats(0, 100),
    st.integers(1, 1000),
    st.floats(0, 5),
    st.integers(1, 40),
)


@given(st.lists(EVENT, max_size=300))
def test_whatever_happens_the_limit_is_none_or_at_least_one(events):
    limit = ConcurrencyLimit()
    now = 0.0
    for what, time_s, found, wait_s, times in events:
        now += wait_s
        if what == "busy":
            limit.busy(found, now)
        else:
            limit.answered([(time_s, found)] * times, 0.05, found, now)
        assert limit.limit is None or 1 <= limit.limit < math.inf
