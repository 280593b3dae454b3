"""Prometheus metrics. A collector reads the live objects when it is scraped; nothing is counted
twice and the hot path only bumps plain ints.

Labels are bounded: paths of hosts that no upstream lists share the upstream ``*`` in the request
counters and have no per-path series.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from time import monotonic
from typing import TypeVar

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from edged.admin.views import Live
from edged.counters import BUCKETS_S, Histogram
from edged.version import VERSION
from policies.model import Breaker, Candidate


class Metrics:
    """The registry and its exposition."""

    def __init__(self, live: Live) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._registry.register(LiveCollector(live))

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition that ``accept`` asks for, and its Content-Type."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self._registry), content_type


class LiveCollector(Collector):
    """Reads `Live` at scrape time."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def collect(self) -> Iterable[Metric]:
        """Every family, fresh."""
        yield from self._daemon()
        yield from self._paths()
        yield from self._upstreams()
        yield from self._pools()
        for part in self._live.parts:
            yield from part.metrics()

    def _daemon(self) -> Iterator[Metric]:
        live = self._live
        yield InfoMetricFamily(
            "edged_build",
            "Version and node name.",
            value={"version": VERSION, "node": live.config.node_name},
        )
        yield _gauge("edged_uptime_seconds", "Time since start.", monotonic() - live.started_at)
        yield _gauge("edged_ready", "1 if requests should come here.", live.not_ready() is None)
        lag = _gauge("edged_loop_lag_seconds", "Lateness of the event loop, last 10 s.", None, "of")
        for word, value in (("p99", live.lag.p99_s), ("max", live.lag.max_s)):
            lag.add_metric((word,), value)
        yield lag
        yield _gauge("edged_tasks", "Tasks of the event loop.", len(asyncio.all_tasks()))
        yield _gauge("edged_config_last_reload_success", "1 if it was taken.", live.reload.ok)
        yield _gauge(
            "edged_config_last_reload_timestamp_seconds", "When it was tried.", live.reload.at
        )
        clients = live.clients
        yield _gauge(
            "edged_client_connections_open", "Open client connections.", len(clients.connections)
        )
        yield _gauge("edged_client_requests_open", "Requests in progress.", clients.requests_open)
        for name, text, value in (
            ("connections", "Client connections.", clients.connections_total),
            ("connections_refused", "Client connections beyond the limit.",
             clients.connections_refused),
            ("requests", "Requests read from clients.", clients.requests_total),
            ("requests_bad", "Requests refused as malformed.", clients.requests_bad),
        ):  # fmt: skip
            yield CounterMetricFamily(f"edged_client_{name}", text, value)
        dropped = live.access_log.dropped if live.access_log else 0
        yield CounterMetricFamily("edged_access_log_dropped", "Lines not written.", dropped)
        drilled = _gauge("edged_drill_silenced", "1 while a drill silences it.", None, "line")
        drill = live.drills.current
        for line in live.config.topology.lines:
            is_it = drill is not None and drill.silent and drill.line == line.name
            drilled.add_metric((line.name,), is_it)
        yield drilled
        yield CounterMetricFamily("edged_drills", "Drills begun.", live.drills.count)
        probes = CounterMetricFamily(
            "edged_probe_bytes", "Bytes of probes, both ways.", labels=("line",)
        )
        stale = _gauge(
            "edged_dns_stale", "1 while old answers serve for want of new.", None, "line"
        )
        for line in live.config.topology.lines:
            probes.add_metric((line.name,), live.probe_bytes.get(line.name, 0))
            stale.add_metric((line.name,), live.dns_problem(line.name) is not None)
        yield from (probes, stale)

    # -- paths ------------------------------------------------------------------------------------

    def _paths(self) -> Iterator[Metric]:
        table, classes = self._live.table, self._live.shown_classes()
        rankings = [table.peek(upstream, cls) for upstream, cls in classes.items()]
        candidates = [candidate for ranking in rankings for candidate in ranking.order]
        yield from _estimates(candidates)
        yield from _gates(candidates, monotonic())
        cost = _path_gauge("score_ms", "Expected cost of the usual request; lower wins.")
        parts = _path_gauge("score_part_ms", "The parts of it.", "part")
        chosen = _path_gauge("chosen", "1 if the usual request takes this path now.")
        usual = _gauge(
            "edged_usual_request_bytes",
            "Greatest body of the class that most requests had lately: whose scores are shown.",
            None,
            "upstream",
        )
        for ranking in rankings:
            usual.add_metric((ranking.upstream,), ranking.request_class.up_bytes)
            for place, candidate in enumerate(ranking.order):
                labels = _labels(candidate)
                chosen.add_metric(labels, place == 0)
                cost.add_metric(labels, candidate.cost_ms)
                for part in candidate.parts:
                    parts.add_metric((*labels, part.name), part.ms)
        yield from (usual, cost, parts, chosen)

    # -- upstreams --------------------------------------------------------------------------------

    def _upstreams(self) -> Iterator[Metric]:
        services = self._live.services
        for name, text in _COUNTERS:
            family = CounterMetricFamily(f"edged_{name}", text, labels=("upstream",))
            for upstream, service in services.items():
                family.add_metric((upstream,), getattr(service.counters, name))
            yield family
        in_flight = _gauge("edged_exchanges_in_flight", "Exchanges not over.", None, "upstream")
        statuses = CounterMetricFamily(
            "edged_responses", "Responses to clients by status.", labels=("upstream", "status")
        )
        errors = CounterMetricFamily(
            "edged_errors",
            "Answers that edged made itself, by Proxy-Status error.",
            labels=("upstream", "reason"),
        )
        ttfb = HistogramMetricFamily(
            "edged_ttfb_seconds", "Request head in to response head in.", labels=("upstream",)
        )
        total = HistogramMetricFamily(
            "edged_exchange_seconds", "Request head in to response end.", labels=("upstream",)
        )
        for upstream, service in services.items():
            counters = service.counters
            in_flight.add_metric((upstream,), counters.in_flight)
            for status, count in counters.statuses.items():
                statuses.add_metric((upstream, str(status)), count)
            for reason, count in counters.errors.items():
                errors.add_metric((upstream, reason), count)
            ttfb.add_metric((upstream,), _buckets(counters.ttfb), counters.ttfb.sum_s)
            total.add_metric((upstream,), _buckets(counters.total), counters.total.sum_s)
        yield from (in_flight, statuses, errors, ttfb, total)

    def _pools(self) -> Iterator[Metric]:
        connections = GaugeMetricFamily(
            "edged_pool_connections",
            "Open upstream connections.",
            labels=("path", "origin", "carrier"),
        )
        gauges = [_pool(GaugeMetricFamily, *item) for item in _POOL_GAUGES]
        counters = [_pool(CounterMetricFamily, *item) for item in _POOL_COUNTERS]
        for stats in self._live.pools():
            labels = (stats.path, stats.origin)
            for carrier, count in stats.connections.items():
                connections.add_metric((*labels, carrier), count)
            for gauge, (name, _) in zip(gauges, _POOL_GAUGES, strict=True):
                gauge.add_metric(labels, getattr(stats, name))
            for counter, (name, _) in zip(counters, _POOL_COUNTERS, strict=True):
                counter.add_metric(labels, getattr(stats, f"{name}_total"))
        yield from (connections, *gauges, *counters)


_POOL_GAUGES = (
    ("in_flight", "Streams in use."),
    ("waiting", "Exchanges that wait for a stream."),
    ("dialing", "Connections being made."),
)
_POOL_COUNTERS = (
    ("opened", "Upstream connections made."),
    ("dial_failures", "Dials that brought no connection."),
    ("streams", "Streams opened."),
)
_COUNTERS = (
    ("requests", "Exchanges begun."),
    ("aborted", "Responses broken after they had begun."),
    ("client_gone", "Exchanges whose client left."),
    ("retries", "Attempts after a failure."),
    ("hedges", "Second attempts before a failure."),
    ("migrations", "Requests that went on over another line, unrepeated."),
    ("failovers", "Retries on another path because the first failed or went DOWN."),
    ("double_executions", "Requests sent again that may have been executed before."),
    ("bytes_up", "Request body bytes from clients."),
    ("bytes_up_wire", "Request body bytes to upstreams, compressed, with repetitions."),
    ("bytes_down", "Response body bytes to clients."),
    ("bytes_down_wire", "Response body bytes from upstreams, before decoding."),
)
_PATH_LABELS = ("path", "line", "upstream", "endpoint")


def _estimates(candidates: Sequence[Candidate]) -> Iterator[Metric]:
    for name, text, attribute in (
        ("rtt_seconds", "Smoothed round trip.", "rtt_s"),
        ("rtt_min_seconds", "Least round trip of the last 10 s.", "rtt_min_s"),
        ("rtt_p95_seconds", "95th percentile of the round trip.", "p95_s"),
        ("jitter_seconds", "Variation of the round trip.", "jitter_s"),
        ("loss_ratio", "Upper 95% bound of packet loss.", "loss"),
        ("goodput_bps", "Acknowledged bits per second at best.", "goodput_bps"),
    ):
        family = _path_gauge(name, text)
        for candidate in candidates:
            value = getattr(candidate.state.estimate, attribute)
            if value is not None:  # no data is no series
                family.add_metric(_labels(candidate), value)
        yield family


def _gates(candidates: Sequence[Candidate], now: float) -> Iterator[Metric]:
    verdict = _path_gauge("verdict", "0 UP, 1 SUSPECT, 2 DOWN.")
    breaker = _path_gauge("breaker", "0 closed, 1 half open, 2 open.")
    ejected = _path_gauge("ejected_seconds", "Time until it is let in again; 0: it is in.")
    in_flight = _path_gauge("in_flight", "Attempts in flight.")
    limit = _path_gauge("limit", "Concurrency limit of its endpoint, over all lines, if known.")
    for candidate in candidates:
        labels, state = _labels(candidate), candidate.state
        verdict.add_metric(labels, state.verdict)
        breaker.add_metric(labels, _BREAKER[state.breaker])
        until = state.ejected_until
        ejected.add_metric(labels, 0.0 if until is None else max(0.0, until - now))
        in_flight.add_metric(labels, state.in_flight)
        if state.limit is not None:
            limit.add_metric(labels, state.limit)
    yield from (verdict, breaker, ejected, in_flight, limit)


_BREAKER = {Breaker.CLOSED: 0, Breaker.HALF_OPEN: 1, Breaker.OPEN: 2}


def _labels(candidate: Candidate) -> tuple[str, str, str, str]:
    path = candidate.state.path
    return (path.name, path.line.name, path.endpoint.upstream, path.endpoint.name)


def _path_gauge(name: str, text: str, *more: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"edged_path_{name}", text, labels=(*_PATH_LABELS, *more))


F = TypeVar("F", GaugeMetricFamily, CounterMetricFamily)


def _pool(family: type[F], name: str, text: str) -> F:
    return family(f"edged_pool_{name}", text, labels=("path", "origin"))


def _gauge(name: str, text: str, value: float | None, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value, labels=labels or None)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Cumulative counts by upper bound, as the exposition wants them."""
    bounds = (*(str(bound) for bound in BUCKETS_S), "+Inf")
    return list(zip(bounds, accumulate(histogram.counts), strict=True))
