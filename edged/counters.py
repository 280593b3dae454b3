"""Plain counters that the hot path bumps and `/metrics` reads at scrape time."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from functools import partial
from typing import Final

BUCKETS_S: Final = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5),
    *(0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0),
)
"""Upper bounds of the latency histograms, in seconds."""

_bucket: Final = partial(bisect_left, BUCKETS_S)


class Histogram:
    """Counts per bucket of `BUCKETS_S` (the last entry is +Inf), and the sum in seconds."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0

    def add(self, value_s: float) -> None:
        """Count one duration."""
        self.counts[_bucket(value_s)] += 1
        self.sum_s += value_s


class UpstreamCounters:
    """What happened to one upstream's exchanges since the start of the process."""

    __slots__ = (
        "aborted",
        "bytes_down",
        "bytes_down_wire",
        "bytes_up",
        "bytes_up_wire",
        "client_gone",
        "double_executions",
        "errors",
        "failovers",
        "hedges",
        "in_flight",
        "migrations",
        "requests",
        "retries",
        "statuses",
        "total",
        "ttfb",
    )

    def __init__(self) -> None:
        self.requests = 0
        self.in_flight = 0
        self.statuses: Counter[int] = Counter()
        """Final status codes passed to clients."""
        self.errors: Counter[str] = Counter()
        """Answers that edged made itself, by reason."""
        self.aborted = 0
        """Responses broken after they had begun."""
        self.client_gone = 0
        self.retries = 0
        self.hedges = 0
        self.failovers = 0
        """Retries on another path because the first one failed or went DOWN."""
        self.migrations = 0
        """Requests in flight that went on over another line, unrepeated (RFC 9000 section 9)."""
        self.double_executions = 0
        """Requests sent again although the first may have been executed (``replay`` allowed it)."""
        self.bytes_up = 0
        """Request body bytes from clients."""
        self.bytes_up_wire = 0
        """Request body bytes to upstreams, after compression and with repetitions."""
        self.bytes_down = 0
        """Response body bytes to clients."""
        self.bytes_down_wire = 0
        """Response body bytes from upstreams, before decoding."""
        self.ttfb = Histogram()
        self.total = Histogram()
