"""What `PathTable` remembers of each path, line and upstream; only the table touches it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edged import legs
from policies.breaker import Damping, Gate
from policies.concurrency import Answer, ConcurrencyLimit
from policies.costing import Facts, cost
from policies.ejection import Cohort, SuccessRate
from policies.geo import distance_km
from policies.ledger import Finding
from policies.model import (
    Blame,
    Breaker,
    Candidate,
    Carrier,
    FarLeg,
    Line,
    Location,
    Path,
    PathState,
    Ranking,
    RequestClass,
    Verdict,
)
from policies.ranking import FLAPPING, Chooser
from policies.schema import Policy
from policies.score import Hazard
from policies.window import EndpointLatency, Window

_SOUND = Finding(Verdict.UP, Blame.NOBODY, "")


class LineRecord:
    """One line."""

    __slots__ = ("drilled", "hazard", "in_flight", "line", "used_bps", "was_down")

    def __init__(self, line: Line, now: float) -> None:
        self.line = line
        self.hazard = Hazard(now)
        self.in_flight = 0
        self.used_bps: float | None = None
        self.was_down = False
        self.drilled = False
        """A rehearsed outage says nothing of the line."""

    @property
    def spare_bps(self) -> float | None:
        """Bandwidth left; `None`: unknown."""
        if self.line.capacity_bps is None or self.used_bps is None:
            return None
        return max(0.0, self.line.capacity_bps - self.used_bps)


class EndpointRecord:
    """One endpoint, whatever line leads to it: its latency, its load and how much it bears."""

    __slots__ = ("_concurrency", "full", "in_flight", "latency", "limit")

    def __init__(self) -> None:
        self.latency = EndpointLatency()
        """Time to first byte."""
        self.in_flight = 0
        """Over all its lines."""
        self.limit: float | None = None
        """`policies.concurrency`; ``None``: unknown, no limit."""
        self.full = False
        """Whether the last snapshot showed it at its limit."""
        self._concurrency = ConcurrencyLimit()

    def answered(self, answers: Sequence[Answer], rtt_s: float | None, now: float) -> None:
        """Exchanges were answered well over a path whose round trip is ``rtt_s``."""
        self._concurrency.answered(answers, rtt_s or 0.0, self.in_flight, now)
        self.limit = self._concurrency.limit

    def busy(self, now: float) -> None:
        """It said that it has too much to do."""
        self._concurrency.busy(self.in_flight, now)
        self.limit = self._concurrency.limit

    def settle(self) -> bool:
        """Before a snapshot: whether its paths show a limit."""
        self.full = self.limit is not None and self.in_flight >= self.limit
        return self.limit is not None


class UpstreamRecord:
    """One upstream: its policy, its endpoints and their cohort, its paths."""

    __slots__ = ("cohort", "endpoints", "listed", "name", "paths", "policy", "serial")

    def __init__(self, name: str, policy: Policy, *, listed: bool) -> None:
        self.name = name
        self.policy = policy
        self.listed = listed
        self.cohort = Cohort()
        self.endpoints: dict[str, EndpointRecord] = {}
        self.paths: list[PathRecord] = []
        self.serial = 0
        """Of the last snapshot that showed something new of it."""

    def endpoint(self, name: str) -> EndpointRecord:
        """One of its endpoints; it is remembered for as long as the upstream."""
        record = self.endpoints.get(name)
        if record is None:
            record = self.endpoints[name] = EndpointRecord()
        return record


class PathRecord:
    """One path."""

    __slots__ = (
        "damping",
        "dependents",
        "distance_km",
        "due",
        "endpoint",
        "far",
        "finding",
        "gate",
        "goods",
        "heard_until",
        "in_flight",
        "leg",
        "line",
        "path",
        "rate",
        "refreshed_at",
        "remote",
        "upstream",
        "warm",
        "window",
    )

    def __init__(self, path: Path, line: LineRecord, upstream: UpstreamRecord) -> None:
        self.window = Window()
        self.gate = Gate()
        self.damping = Damping()
        self.rate = SuccessRate()
        self.finding = _SOUND
        self.in_flight = 0
        self.warm: Carrier | None = None
        self.goods = 0
        """Good samples not yet counted in ``rate``: real traffic has thousands a second."""
        self.heard_until = float("-inf")
        self.refreshed_at = float("-inf")
        self.distance_km: float | None = None
        self.due: float | None = None
        """When a gate, an ejection or a hold ends by itself, as of the last snapshot."""
        self.leg: PathRecord | None = None
        """Of a path through a relay: its first leg, which is what is measured."""
        self.far: FarLeg | None = None
        """Of a path through a relay: the rest, by the relay's own word."""
        self.dependents: tuple[PathRecord, ...] = ()
        """Of a leg: the paths that begin with it."""
        self.place(path, line, upstream)

    def place(self, path: Path, line: LineRecord, upstream: UpstreamRecord) -> None:
        """Take a new configuration of the same name."""
        self.path = path
        self.line = line
        self.upstream = upstream
        self.endpoint = path.endpoint.name
        self.remote = upstream.endpoint(self.endpoint)

    def locate(self, node: Location | None) -> None:
        """Work out the distance."""
        there = self.path.endpoint.location
        self.distance_km = None if node is None or there is None else distance_km(node, there)

    def siblings(self) -> list[PathRecord]:
        """All paths to its endpoint, itself included."""
        return [record for record in self.upstream.paths if record.endpoint == self.endpoint]

    def settle(self, now: float) -> None:
        """Count the good samples since the last time."""
        if self.goods:
            self.rate.add(True, now, self.goods)
            self.upstream.cohort.good(self.endpoint, now, self.goods)
            self.goods = 0

    def relayed_finding(self) -> Finding:
        """The worse of its two legs. Only of a path through a relay."""
        assert self.leg is not None
        return legs.finding(self.leg.finding, self.far, self.path.endpoint.key)

    def state(self, now: float) -> PathState:
        """The path as a snapshot shows it."""
        self.refreshed_at = now
        leg, far, near = self.leg, self.far, None
        estimate = (self if leg is None else leg).window.estimate(now)
        if leg is not None:
            near, estimate = estimate, legs.joined(estimate, far)
        return PathState(
            self.path,
            self.finding.verdict,
            self.gate.state,
            self.upstream.cohort.out_until(self.endpoint, now),
            estimate,
            self.distance_km,
            self.remote.latency.p95_s(now),
            self.warm if leg is None else leg.warm,
            self.in_flight,
            self.remote.limit,
            self._reason(now),
            self.remote.in_flight,
            near,
            far,
        )

    def facts(self, state: PathState, now: float) -> Facts:
        """What the scores need beyond ``state``."""
        return Facts(
            state,
            self.remote.latency.p50_s(now),
            self.line.hazard.rate(now),
            failure=1 - self.rate.mean if self.rate.samples(now) >= 1 else None,
            held=self._held(now),
            spare_bps=self.line.spare_bps,
        )

    def restless(self, now: float) -> bool:
        """Works out ``due``; whether a gate, an ejection or a hold is in force."""
        times = [
            self.gate.deadline(),
            self.upstream.cohort.out_until(self.endpoint, now),
            self.damping.held_until(now),
        ]
        self.due = min((t for t in times if t is not None), default=None)
        return self.due is not None or self.gate.state is not Breaker.CLOSED

    def _held(self, now: float) -> str:
        if not self.damping.holds(now):
            return ""
        return FLAPPING if self.damping.suppressed else "recovering"

    def _reason(self, now: float) -> str:
        """The sentence that explains verdict and gates."""
        reasons = []
        if self.finding.verdict is not Verdict.UP:
            reasons.append(self.finding.reason)
        if self.gate.state is not Breaker.CLOSED:
            reasons.append(f"breaker {self.gate.state.value}: {self.gate.reason}")
        if (until := self.upstream.cohort.out_until(self.endpoint, now)) is not None:
            why = self.upstream.cohort.reason(self.endpoint)
            reasons.append(f"ejected for {until - now:.1f} s: {why}")
        if (until := self.damping.held_until(now)) is not None:
            reasons.append(f"{self._held(now)} for {until - now:.1f} s")
        return "; ".join(reasons)


class Choice(NamedTuple):
    """The first path for a class of request changed."""

    upstream: str
    request_class: RequestClass
    old: Candidate
    new: Candidate
    decided_by: str
    at: float

    def __str__(self) -> str:
        """One line for the log: old, new, and the parts of both scores."""
        return (
            f"{self.upstream}: {_costed(self.old)} -> {_costed(self.new)}: {self.decided_by} "
            f"(body {self.request_class.up_bytes} B"
            f"{', streaming' if self.request_class.streaming else ''})"
        )


def _costed(candidate: Candidate) -> str:
    parts = ", ".join(f"{p.name} {p.ms:.1f}" for p in candidate.parts if p.ms)
    return f"{candidate.state.path.name} {candidate.cost_ms:.1f} ({parts})"


class Entry:
    """The memoised ranking of one upstream and class."""

    __slots__ = ("chooser", "ranking", "request_class", "requests", "serial", "upstream")

    def __init__(self, upstream: UpstreamRecord, request_class: RequestClass) -> None:
        self.upstream = upstream
        self.request_class = request_class
        self.chooser = Chooser()
        self.requests = 0
        """Since the last ranking: they feel the regret."""
        self.serial = -1
        self.ranking: Ranking | None = None

    def rank(self, states: Mapping[str, PathState], now: float) -> tuple[Ranking, Choice | None]:
        """Order the paths, which are in ``states``, anew; the change of choice, if it is one."""
        upstream = self.upstream
        facts = [record.facts(states[record.path.name], now) for record in upstream.paths]
        ranking = self.chooser.rank(
            upstream.name,
            self.request_class,
            cost(facts, self.request_class, upstream.policy),
            upstream.policy.failover,
            requests=self.requests,
            now=now,
        )
        self.requests = 0
        self.serial = upstream.serial
        choice = self._choice(ranking, now)
        self.ranking = ranking
        return ranking, choice

    def _choice(self, ranking: Ranking, at: float) -> Choice | None:
        before = self.ranking
        if before is None or not before.order or not ranking.order:
            return None
        left, new = before.order[0], ranking.order[0]
        if left.state.path.name == new.state.path.name:
            return None
        old = next((c for c in ranking.order if c.state.path.name == left.state.path.name), left)
        return Choice(self.upstream.name, self.request_class, old, new, ranking.decided_by, at)
