"""A seeded network in virtual time that feeds `PathTable` and carries exchanges.

Lines have a round trip, loss (independent or in bursts) and blackholes per direction; endpoints
fall silent, refuse or answer with errors. Probes run as the daemon runs them: ICMP and TCP report a
TIMEOUT when it is over, PINGs on warm paths announce themselves and may be answered late, and where
exchanges run the kernel's smoothed round trip is read four times a second. Exchanges follow
`attempts.Exchange`; the transport under them repeats lost packets with doubling timeouts, as TCP
and QUIC do, so that only the table can tell silence from thinking.
"""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field

from edged.table import PathTable
from policies.attempts import ArmTimer, Cancel, Commit, Exchange, GiveUp, Start, Traits
from policies.budget import hedge_budget, retry_bucket
from policies.model import (
    Carrier,
    Endpoint,
    Failure,
    Kind,
    Line,
    Outcome,
    Replay,
    RequestClass,
    Sample,
    Topology,
    Verdict,
)
from policies.schema import Policy
from probes.schedule import timeout_s

CLASS = RequestClass.of(1024)


@dataclass
class SimLine:
    """Changeable while running. ``hole``: "", "up", "down" or "both"."""

    rtt_s: float
    loss: float = 0.0
    jitter_s: float = 0.002
    hole: str = ""
    burst: tuple[float, float] | None = None
    """Gilbert: probability to enter and to leave the bad state, per packet; bad loses all."""
    bad: bool = False

    def passes(self, direction: str, rng: random.Random) -> bool:
        if self.burst is not None:
            enter, leave = self.burst
            self.bad = rng.random() >= leave if self.bad else rng.random() < enter
            if self.bad:
                return False
        return self.hole not in (direction, "both") and rng.random() >= self.loss


@dataclass
class SimEndpoint:
    """``fault``: "", "silent", "refuse" or "error"."""

    think_s: float = 0.0
    fault: str = ""


@dataclass
class Request:
    begun: float
    ended: float | None = None
    status: int | None = None
    path: str = ""
    executions: int = 0
    why: str = ""
    starts: list = field(default_factory=list)

    @property
    def seconds(self) -> float | None:
        return None if self.ended is None else self.ended - self.begun


@dataclass
class Kernel:
    """A path's TCP_INFO; packets since it was read."""

    srtt_s: float
    sent: int = 0
    lost: int = 0
    acks: int = 0


class _Tried:
    """One live attempt of the simulation."""

    def __init__(self, path: str, at: float) -> None:
        self.path = path
        self.sent_at = at
        self.executed = False
        self.over = False


class _Driver:
    """Carries out the commands of one exchange."""

    def __init__(self, world: World, safe: bool) -> None:
        self.world = world
        self.request = Request(world.now)
        world.requests.append(self.request)
        world.live[self] = None
        names = self.names()
        best = world.table.snapshot.paths[names[0]]
        p95_s = best.ttfb_p95_s
        self.machine = Exchange(
            names,
            Traits(safe, Replay.LINE_DOWN, True, 4),
            world.retries,
            world.hedges,
            hedge_delay_s=None if p95_s is None else max(p95_s, 0.05),
        )
        self.attempts: dict[int, _Tried] = {}
        self.timer = 0
        self.carry_out(self.machine.begin(world.now))

    def names(self):
        return [p.name for p in self.world.table.ranking("u", CLASS).paths]

    def carry_out(self, commands) -> None:
        world = self.world
        for command in commands:
            match command:
                case Start(number, path, why):
                    self.attempts[number] = tried = _Tried(path, world.now)
                    self.request.starts.append((world.now, path, why))
                    world.table.started(path)
                    self.carry_out(self.machine.sent(number, world.now))
                    self.request_leaves(number, tried, 0)
                case Cancel(number):
                    self.leave(number)
                case Commit(number):
                    tried = self.attempts[number]
                    self.request.path = tried.path
                    self.leave(number)
                    error = world.of(tried.path)[1].fault == "error"
                    self.end(500 if error else 200, "")
                case GiveUp(_, reason, status):
                    self.end(status, reason)
                case ArmTimer(at):
                    self.timer += 1
                    world.at(at, self.timer_fired, self.timer)

    def end(self, status, why) -> None:
        self.request.ended = self.world.now
        self.request.status = status
        self.request.why = why
        self.world.live.pop(self, None)

    def leave(self, number) -> None:
        tried = self.attempts.pop(number)
        tried.over = True
        self.world.table.finished(tried.path)

    def timer_fired(self, number) -> None:
        if number == self.timer:
            self.carry_out(self.machine.timer_fired(self.world.now))

    def verdict(self, change) -> None:
        if change.new is Verdict.DOWN:
            self.machine.reroute(self.names())
            self.carry_out(self.machine.path_down(change.path, self.world.now))
        elif change.new is Verdict.SUSPECT:
            self.carry_out(self.machine.path_suspect(change.path, self.world.now))

    # The transport: packets lost are sent again after a timeout that doubles.

    def request_leaves(self, number, tried, losses) -> None:
        if tried.over:
            return
        world = self.world
        line, endpoint = world.of(tried.path)
        world.transmitted(tried.path, again=losses > 0)
        if endpoint.fault == "refuse":
            world.after(line.rtt_s, self.broken, number, tried)
        elif endpoint.fault == "silent" or not line.passes("up", world.rng):
            world.after(world.rto(line, losses), self.request_leaves, number, tried, losses + 1)
        else:
            world.after(line.rtt_s / 2, self.executes, number, tried)

    def executes(self, number, tried) -> None:
        if not tried.executed:
            tried.executed = True
            self.request.executions += 1
        think_s = self.world.of(tried.path)[1].think_s
        self.world.after(think_s, self.response_leaves, number, tried, 0)

    def response_leaves(self, number, tried, losses) -> None:
        if tried.over:
            return
        world = self.world
        line, _ = world.of(tried.path)
        if line.passes("down", world.rng):
            world.after(line.rtt_s / 2 + world.jitter(line), self.head, number, tried)
        else:
            world.after(world.rto(line, losses), self.response_leaves, number, tried, losses + 1)

    def head(self, number, tried) -> None:
        if tried.over:
            return
        world = self.world
        error = world.of(tried.path)[1].fault == "error"
        outcome = Outcome.HTTP_ERROR if error else Outcome.OK
        ttfb_s = world.now - tried.sent_at
        world.acknowledged(tried.path)
        world.table.observe(
            Sample(tried.path, Kind.TTFB, tried.sent_at, ttfb_s, outcome), world.now
        )
        self.carry_out(self.machine.head_received(number, world.now))

    def broken(self, number, tried) -> None:
        if tried.over:
            return
        world = self.world
        world.table.observe(
            Sample(tried.path, Kind.TTFB, tried.sent_at, None, Outcome.REFUSED), world.now
        )
        if tried.over:
            return
        self.leave(number)
        failure = Failure(Outcome.REFUSED, "refused", unprocessed=True)
        self.carry_out(self.machine.failed(number, failure, world.now))


class World:
    """Lines, endpoints, probes, traffic and the clock."""

    def __init__(self, seed, lines, endpoints=("e1",), policy=None):
        self.rng = random.Random(seed)
        self.now = 0.0
        self.lines: dict[str, SimLine] = lines
        self.endpoints = {name: SimEndpoint() for name in endpoints}
        self.choices, self.changes, self.requests = [], [], []
        self.live: dict[_Driver, None] = {}
        self._heap, self._order = [], itertools.count()
        policy = policy or Policy()
        self.retries, self.hedges = retry_bucket(policy.retry), hedge_budget(policy.hedge)
        topology = Topology(
            None,
            tuple(Line(name) for name in lines),
            tuple(Endpoint("u", e, "https", f"{e}.test", 443) for e in endpoints),
        )
        self.table = PathTable(
            topology,
            {"u": policy},
            0.0,
            rng=random.Random(seed),
            on_choice=lambda c: self.choices.append(c),
        )
        self.table.subscribe(self._changed)
        self.kernel: dict[str, Kernel] = {}
        self.after(0.25, self._read_kernel)
        for i, path in enumerate(self.table.snapshot.paths):
            self.table.set_warm(path, Carrier.H2)
            for kind in (Kind.ICMP, Kind.TCP, Kind.PING):
                self.at(0.05 * i + self.rng.random() * 0.2, self._probe, path, kind)

    # -- clock ---------------------------------------------------------------------------------

    def at(self, when, call, *args) -> None:
        heapq.heappush(self._heap, (max(when, self.now), next(self._order), call, args))

    def after(self, seconds, call, *args) -> None:
        self.at(self.now + seconds, call, *args)

    def run(self, until) -> None:
        """Events and the table's deadlines in the order of time."""
        while True:
            due = self.table.next_deadline()
            event = self._heap[0][0] if self._heap else None
            if due is not None and due <= until and (event is None or due <= event):
                self.now = max(self.now, due)
                self.table.tick(self.now)
                assert self.table.next_deadline() != due, "a deadline must not come again"
            elif event is not None and event <= until:
                self.now, _, call, args = heapq.heappop(self._heap)
                call(*args)
            else:
                self.now = until
                return

    # -- network -------------------------------------------------------------------------------

    def of(self, path) -> tuple[SimLine, SimEndpoint]:
        line, _, rest = path.partition(">")
        return self.lines[line], self.endpoints[rest.partition("/")[2]]

    def jitter(self, line) -> float:
        return self.rng.random() * line.jitter_s

    def rto(self, line, losses) -> float:
        return max(0.2, 1.5 * line.rtt_s) * 2.0 ** min(losses, 8)

    def round_trip(self, path, kind) -> float | None:
        line, endpoint = self.of(path)
        if endpoint.fault == "silent" or not line.passes("up", self.rng):
            return None
        return line.rtt_s + self.jitter(line) if line.passes("down", self.rng) else None

    def _changed(self, change) -> None:
        self.changes.append(change)
        for driver in list(self.live):
            driver.verdict(change)

    def _probe(self, path, kind) -> None:
        line = path.partition(">")[0]
        active = self.table.waiting(line) or self.table.doubted(line)
        period = {Kind.ICMP: (1.0, 0.2), Kind.PING: (1.0, 0.2), Kind.TCP: (5.0, 5.0)}[kind][active]
        self.after(period * self.rng.uniform(0.75, 1.25), self._probe, path, kind)
        rtt_s, sent_at = self.round_trip(path, kind), self.now
        if kind is Kind.PING:
            if self.of(path)[1].fault == "refuse":
                return  # no connection, no PING
            self.table.sent(path, kind, self.now)
        known = self.table.snapshot.paths[path].estimate
        patience_s = timeout_s(kind, known)
        if kind is Kind.TCP and self.of(path)[1].fault == "refuse" and rtt_s is not None:
            self.after(rtt_s, self._report, path, kind, sent_at, None, Outcome.REFUSED)
            return
        late = rtt_s is not None and rtt_s > patience_s
        if rtt_s is None or late:
            self.after(patience_s, self._report, path, kind, sent_at, None, Outcome.TIMEOUT)
        if rtt_s is not None and (not late or kind is Kind.PING):
            self.after(rtt_s, self._report, path, kind, sent_at, rtt_s, Outcome.OK)

    def transmitted(self, path, *, again) -> None:
        known = self.kernel.setdefault(path, Kernel(self.of(path)[0].rtt_s))
        known.sent += 1
        known.lost += again

    def acknowledged(self, path) -> None:
        known = self.kernel[path]
        known.srtt_s += (self.of(path)[0].rtt_s - known.srtt_s) / 8
        known.acks += 1

    def _read_kernel(self) -> None:
        """Without an acknowledgement: a TIMEOUT if something was sent again, else nothing."""
        self.after(0.25, self._read_kernel)
        for path, known in list(self.kernel.items()):
            sent, lost, acks = known.sent, known.lost, known.acks
            known.sent = known.lost = known.acks = 0
            if acks:
                sample = Sample(path, Kind.KERNEL, self.now, known.srtt_s, Outcome.OK, sent, lost)
                self.table.observe(sample, self.now)
            elif lost:
                sample = Sample(path, Kind.KERNEL, self.now, None, Outcome.TIMEOUT, sent, lost)
                self.table.observe(sample, self.now)

    def _report(self, path, kind, sent_at, rtt_s, outcome) -> None:
        self.table.observe(Sample(path, kind, sent_at, rtt_s, outcome), self.now)

    # -- traffic -------------------------------------------------------------------------------

    def traffic(self, per_s, until, *, safe=False) -> None:
        """Requests at a steady rate from now on."""
        when = self.now
        while (when := when + 1 / per_s) < until:
            self.at(when, _Driver, self, safe)

    # -- what happened -------------------------------------------------------------------------

    @property
    def failed(self):
        return [r for r in self.requests if r.status not in (200, None)]

    @property
    def unanswered(self):
        return [r for r in self.requests if r.status is None]

    def longest_s(self, since=0.0):
        return max(r.seconds for r in self.requests if r.begun >= since and r.seconds is not None)

    def gap_s(self, after):
        """From ``after`` to the completion of the first request that began later."""
        return min(r.ended for r in self.requests if r.begun >= after and r.ended) - after

    def lines_chosen(self):
        return [c.new.state.path.line.name for c in self.choices]

    def verdicts(self, line):
        return [c for c in self.changes if c.path.startswith(line + ">")]


def two_lines():
    """The two lines of the issue: A 60 ms, 0.1% loss; B 150 ms, 1% loss."""
    return {"a": SimLine(0.060, 0.001), "b": SimLine(0.150, 0.01)}
