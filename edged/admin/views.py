"""What the admin pages say, as plain data made from the live objects at the moment of asking."""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

from prometheus_client.core import Metric

from edged.accesslog import AccessLog, ExchangeRecord, attempt_json
from edged.binding import bind, families
from edged.config import Config
from edged.counters import BUCKETS_S, Histogram, UpstreamCounters
from edged.drill import Drill, Drills
from edged.looplag import LoopLag
from edged.recent import Recent
from edged.upstream.pool_types import PoolStats
from edged.version import VERSION
from policies.model import (
    Candidate,
    Line,
    PathState,
    Ranking,
    RequestClass,
    Snapshot,
)
from probes.base import DialError

Data = dict[str, Any]

SHOWN_CLASS = RequestClass.of(0)
"""Whose ranking is shown of an upstream that has had no request."""


class Table(Protocol):
    """What the views read of `edged.table.PathTable`."""

    @property
    def snapshot(self) -> Snapshot: ...
    def peek(self, upstream: str, cls: RequestClass) -> Ranking: ...


class Clients(Protocol):
    """What the views read of the proxy listener's `edged.downstream.hub.Hub`."""

    @property
    def connections(self) -> Collection[object]: ...
    @property
    def connections_total(self) -> int: ...
    @property
    def connections_refused(self) -> int: ...
    @property
    def requests_open(self) -> int: ...
    @property
    def requests_total(self) -> int: ...
    @property
    def requests_bad(self) -> int: ...


class Counted(Protocol):
    """What the views read of an `edged.exchanges.Service`."""

    @property
    def counters(self) -> UpstreamCounters: ...


@dataclass(slots=True)
class ReloadNote:
    """How the last (re)load went. Wall time."""

    at: float
    ok: bool
    by: str
    """``start``, ``SIGHUP``, ``policy file`` or ``admin``."""
    mistakes: tuple[str, ...] = ()

    def data(self) -> Data:
        """For JSON."""
        return {"at": self.at, "ok": self.ok, "by": self.by, "mistakes": list(self.mistakes)}


class Part(Protocol):
    """Something that not every kind of daemon has, and that reports of itself."""

    name: str

    def data(self) -> Data | list[Data]:
        """Its section of ``/status``."""

    def metrics(self) -> Iterable[Metric]:
        """Its families, fresh."""


@dataclass(slots=True)
class Live:
    """The live objects. The daemon fills it and changes it on reload; others read."""

    config: Config
    table: Table
    services: Mapping[str, Counted]
    clients: Clients
    pools: Callable[[], Iterable[PoolStats]]
    route: Callable[[str, str], str | None]
    """The name of the upstream that serves (host, path), or ``None`` for an unlisted host."""
    recent: Recent
    lag: LoopLag
    started_at: float
    """Monotonic."""
    reload: ReloadNote
    drills: Drills
    access_log: AccessLog | None = None
    dns_problem: Callable[[str], str | None] = lambda _: None
    """Why the name servers of a line do not answer while their old answers serve."""
    probe_bytes: Mapping[str, int] = field(default_factory=dict)
    """Line name to bytes that probes have sent and received."""
    parts: list[Part] = field(default_factory=list)
    """What this kind of daemon has besides."""
    listening: tuple[str, ...] = ()
    state: str = "starting"
    """``starting``, ``ready`` or ``draining``."""

    def shown_classes(self) -> dict[str, RequestClass]:
        """By upstream, whose ranking to show: that of the requests it gets. The choice for others
        may differ, and its hysteresis moves only with them.
        """
        usual = self.recent.usual_classes()
        return {name: usual.get(name, SHOWN_CLASS) for name in self.config.upstreams}

    def not_ready(self) -> str | None:
        """Why requests should go elsewhere; ``None``: they should not."""
        if self.state != "ready":
            return self.state
        snapshot = self.table.snapshot
        listed = [p for name in self.config.upstreams for p in snapshot.upstreams.get(name, ())]
        if listed and not any(snapshot.paths[path].usable for path in listed):
            return "no path to any upstream is usable"
        return None


def status(live: Live, now: float) -> Data:
    """``/status``. ``now`` is monotonic. Call it in the daemon's loop."""
    config = live.config
    not_ready = live.not_ready()
    return {
        "version": VERSION,
        "node": config.node_name,
        "pid": os.getpid(),
        "uptime_s": round(now - live.started_at, 1),
        "state": live.state,
        "ready": not_ready is None,
        "not_ready": not_ready,
        "listening": list(live.listening),
        "config": str(config.file),
        "reload": live.reload.data(),
        "drill": _drill(live.drills.current, now),
        "loop_lag_ms": {
            "last": _ms(live.lag.last_s),
            "p99": _ms(live.lag.p99_s),
            "max": _ms(live.lag.max_s),
        },
        "tasks": len(asyncio.all_tasks()),
        "clients": _clients(live.clients),
        "access_log_dropped": live.access_log.dropped if live.access_log else 0,
        "lines": [_line(line, live) for line in config.topology.lines],
        "upstreams": [
            _upstream(live, name, cls, now) for name, cls in live.shown_classes().items()
        ],
        "unlisted": _counters(live, "*"),
        "pools": [pool._asdict() for pool in live.pools()],
        **{part.name: part.data() for part in live.parts},
    }


def _drill(drill: Drill | None, now: float) -> Data | None:
    if drill is None:
        return None
    left_s = round(max(0.0, drill.ends_at - now), 1) if drill.silent else 0.0
    return {"line": drill.line, "kind": drill.report.kind, "silent_for_s": left_s}


def _clients(clients: Clients) -> Data:
    return {
        "connections": len(clients.connections),
        "connections_total": clients.connections_total,
        "connections_refused": clients.connections_refused,
        "requests_open": clients.requests_open,
        "requests_total": clients.requests_total,
        "requests_bad": clients.requests_bad,
    }


def _line(line: Line, live: Live) -> Data:
    states = [s for s in live.table.snapshot.paths.values() if s.path.line.name == line.name]
    return {
        "name": line.name,
        "kind": line.kind,
        "bind": bind_text(line),
        "problem": bind_problem(line),
        "dns_problem": live.dns_problem(line.name),
        "paths": len(states),
        "paths_usable": sum(state.usable for state in states),
        "probe_bytes": live.probe_bytes.get(line.name, 0),
    }


def bind_text(line: Line) -> str:
    """How a line is bound, in a word."""
    if line.source:
        return line.source
    if line.interface:
        return line.interface
    return f"mark {line.mark}" if line.mark else "system route"


def bind_problem(line: Line) -> str | None:
    """Why no socket can be bound to ``line`` now, and what to do; ``None``: one can."""
    try:
        with socket.socket(families(line)[-1], socket.SOCK_DGRAM) as sock:
            bind(sock, line)
    except DialError as error:
        return str(error)
    except OSError as error:
        return f"line {line.name}: no socket: {error.strerror}"
    return None


def _upstream(live: Live, name: str, cls: RequestClass, now: float) -> Data:
    upstream = live.config.upstreams[name]
    ranking = live.table.peek(name, cls)
    return {
        "name": name,
        "hosts": list(upstream.hosts),
        "prefix": upstream.prefix,
        "policy": upstream.policy_name,
        "class": class_data(cls),
        "decided_by": ranking.decided_by,
        **_counters(live, name),
        "paths": [candidate_data(c, now) for c in ranking.order],
    }


def _counters(live: Live, name: str) -> Data:
    service = live.services.get(name)
    if service is None:
        return {"requests": 0, "in_flight": 0, "errors": {}}
    c = service.counters
    return {
        "requests": c.requests,
        "in_flight": c.in_flight,
        "errors": dict(c.errors),
        "ttfb_ms": _times(c.ttfb),
        "total_ms": _times(c.total),
        "statuses": {str(status): n for status, n in sorted(c.statuses.items())},
        "aborted": c.aborted,
        "client_gone": c.client_gone,
        "retries": c.retries,
        "hedges": c.hedges,
        "failovers": c.failovers,
        "migrations": c.migrations,
        "double_executions": c.double_executions,
        "bytes_up": c.bytes_up,
        "bytes_up_wire": c.bytes_up_wire,
        "bytes_down": c.bytes_down,
        "bytes_down_wire": c.bytes_down_wire,
    }


def class_data(cls: RequestClass) -> Data:
    """A class of request: its body has at most so many bytes."""
    return {"up_bytes": cls.up_bytes, "streaming": cls.streaming}


def _times(histogram: Histogram) -> Data:
    """Mean, and the buckets' bounds that half and 95% of all stay below; null: none yet, or more
    than the greatest bound.
    """
    counts = histogram.counts
    total = sum(counts)
    data: Data = {"mean": _ms(histogram.sum_s / total) if total else None}
    for name, share in (("p50_below", 0.5), ("p95_below", 0.95)):
        found = (
            b for b, n in zip(BUCKETS_S, accumulate(counts), strict=False) if n >= share * total
        )
        data[name] = _ms(next(found, None)) if total else None
    return data


def candidate_data(candidate: Candidate, now: float) -> Data:
    """One path with its cost, part by part."""
    return {
        **path_data(candidate.state, now),
        "cost_ms": _finite(candidate.cost_ms),
        "parts": {part.name: _finite(part.ms) for part in candidate.parts},
        "filtered": candidate.filtered,
    }


def path_data(state: PathState, now: float) -> Data:
    """One path as measured."""
    estimate = state.estimate
    ejected = state.ejected_until
    return {
        "path": state.path.name,
        "line": state.path.line.name,
        "endpoint": state.path.endpoint.key,
        "verdict": state.verdict.name,
        "breaker": state.breaker.value,
        "ejected_for_s": None if ejected is None else round(max(0.0, ejected - now), 1),
        "usable": state.usable,
        "reason": state.reason,
        "rtt_ms": _ms(estimate.rtt_s),
        "rtt_min_ms": _ms(estimate.rtt_min_s),
        "p95_ms": _ms(estimate.p95_s),
        "jitter_ms": _ms(estimate.jitter_s),
        "loss": estimate.loss,
        "goodput_mbps": None if estimate.goodput_bps is None else estimate.goodput_bps / 1e6,
        "samples": estimate.samples,
        "distance_km": state.distance_km,
        "ttfb_p95_ms": _ms(state.ttfb_p95_s),
        "warm": state.warm,
        "in_flight": state.in_flight,
        "endpoint_in_flight": state.endpoint_in_flight,
        "limit": None if state.limit is None else round(state.limit, 1),
        "legs": _legs(state),
    }


def _legs(state: PathState) -> Data | None:
    """Of a path through a relay: what was measured, and what the relay says of the rest."""
    if state.path.relay is None:
        return None
    near, far = state.near, state.far
    return {
        "relay": state.path.relay.name,
        "near_rtt_ms": None if near is None else _ms(near.rtt_s),
        "near_loss": None if near is None else near.loss,
        "far_verdict": None if far is None else far.verdict.name,
        "far_rtt_ms": None if far is None else _ms(far.rtt_s),
        "far_loss": None if far is None else far.loss,
    }


def ranking_data(ranking: Ranking, now: float) -> Data:
    """Every candidate, best first, and the sentence that decided."""
    return {
        "upstream": ranking.upstream,
        "class": class_data(ranking.request_class),
        "decided_by": ranking.decided_by,
        "candidates": [candidate_data(candidate, now) for candidate in ranking.order],
    }


def why_record(record: ExchangeRecord, now: float) -> Data:
    """``/why/<id>``: what was decided for an exchange and what came of it."""
    r = record
    return {
        "request": {
            "id": r.request_id,
            "started": r.started,
            "method": r.method,
            "authority": r.authority,
            "target": r.path_without_query,
            "client": r.client,
            "status": r.status,
            "error": r.error,
            "path": r.path_name,
            "carrier": r.carrier,
            "ttfb_ms": _ms(r.ttfb_s),
            "total_ms": _ms(r.total_s),
            "bytes_up": r.bytes_up,
            "bytes_up_wire": r.bytes_up_wire,
            "bytes_down": r.bytes_down,
            "bytes_down_wire": r.bytes_down_wire,
            "hedged": r.hedged,
            "replayed": r.replayed,
        },
        "attempts": [attempt_json(attempt) for attempt in r.tries],
        "ranking": None if r.ranking is None else ranking_data(r.ranking, now),
    }


def why_url(
    live: Live, host: str, path: str, unlisted: str, cls: RequestClass, now: float
) -> Data | None:
    """``/why?url=``: what would be decided now. ``None``: the host is in no upstream, and has had
    no request under the name ``unlisted`` that the table gives it then.
    """
    upstream = live.route(host, path)
    try:
        ranking = live.table.peek(unlisted if upstream is None else upstream, cls)
    except KeyError:
        return None
    return {"request": None, "attempts": [], "ranking": ranking_data(ranking, now)}


def _finite(ms: float) -> float | None:
    """JSON has no infinity."""
    return round(ms, 3) if math.isfinite(ms) else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
