"""Times to first byte by class of request and endpoint: when a hedge is due.

Kept apart from the endpoint's own latency (`policies.window.EndpointLatency` in the table), which
the score needs: one that lists models in 50 ms and thinks for 20 s about a prompt has two tails.
"""

from __future__ import annotations

from collections import defaultdict

from policies.window import EndpointLatency


class Tails:
    """Of one upstream and class of request."""

    __slots__ = ("_latencies", "fresh")

    def __init__(self) -> None:
        self.fresh: defaultdict[str, list[float]] = defaultdict(list)
        """By endpoint name: what came since the last `flush`; of many answers one in 20 ms."""
        self._latencies: defaultdict[str, EndpointLatency] = defaultdict(EndpointLatency)

    def flush(self, now: float) -> None:
        """Count what is fresh."""
        for endpoint, ttfbs_s in self.fresh.items():
            latency = self._latencies[endpoint]
            for ttfb_s in ttfbs_s:
                latency.observe(ttfb_s, now)
            ttfbs_s.clear()

    def p95_s(self, endpoint: str, now: float) -> float | None:
        """95th percentile of the last five minutes; ``None`` where too few were answered."""
        latency = self._latencies.get(endpoint)
        return None if latency is None else latency.p95_s(now)
