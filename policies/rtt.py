"""Round-trip time: srtt, rttvar, a windowed minimum, and the rule that yields a path's R.

One `RttEstimator` per kind of sample, because layers measure different things. The rule:

* A lower layer can only look too short: a transparent TCP accelerator (or the loopback lab)
  answers SYNs and acknowledges data locally, while TLS, QUIC and PING go end to end. So R is the
  *greatest* srtt among the transport kinds (`TRANSPORT`) that have fresh data. One sample counts.
* PING and PULSE go end to end, often, and cost the peer nothing. Fresh and with `SETTLED` samples
  they alone count: a handshake is rare and slow on a busy host, and would stand for `FRESH_S`.
* ICMP is often handled by another box or at another priority: only when no transport kind is fresh.
* HTTP and TTFB contain the server's thinking: only when nothing else was ever measured.
* A kind without a sample for `FRESH_S` is stale and does not count while a kind of its rank is
  fresh. When all are stale the newest of the best rank is still better than nothing.
"""

from __future__ import annotations

from typing import Final

from policies.model import Kind

TRANSPORT: Final = frozenset((Kind.PING, Kind.QUIC, Kind.TLS, Kind.TCP, Kind.KERNEL, Kind.PULSE))
"""Kinds whose ``rtt_s`` is a round trip without thinking."""

FRESH_S: Final = 45.0
"""Age from which a kind is stale: one and a half periods of the slowest default probe."""

FORGET_S: Final = 120.0
"""A gap after which an estimator starts anew instead of smoothing over the pause."""

MIN_WINDOW_S: Final = 10
"""Span of the windowed minimum, in slots of one second."""

SETTLED: Final = 3
"""Samples from which a PING's srtt outranks all others."""

_END_TO_END: Final = frozenset((Kind.PING, Kind.PULSE))
_RANK: Final = {
    **dict.fromkeys(TRANSPORT, 0),
    Kind.ICMP: 1,
    Kind.HTTP: 2,
    Kind.TTFB: 3,
}


class RttEstimator:
    """srtt (1/8), rttvar (1/4) and jitter of one kind of sample (RFC 9002 section 5.3).

    Jitter is the smoothed difference of consecutive samples (1/16; RFC 3550 section 6.4.1).
    """

    __slots__ = ("_minima", "count", "jitter_s", "last_at", "latest_s", "rttvar_s", "srtt_s")

    def __init__(self, rtt_s: float, at: float) -> None:
        self.count = 0
        self.last_at = at
        self._start(rtt_s, at)

    def _start(self, rtt_s: float, at: float) -> None:
        self.srtt_s = rtt_s
        self.rttvar_s = rtt_s / 2
        self.jitter_s: float | None = None
        self.latest_s = rtt_s
        self.last_at = at
        self.count += 1
        self._minima: dict[int, float] = {int(at): rtt_s}

    def observe(self, rtt_s: float, at: float) -> None:
        """Take one sample that arrived at ``at`` (monotonic; never earlier than the last)."""
        if at - self.last_at > FORGET_S:
            self._start(rtt_s, at)
            return
        deviation = self.srtt_s - rtt_s
        self.rttvar_s += ((deviation if deviation >= 0 else -deviation) - self.rttvar_s) / 4
        self.srtt_s -= deviation / 8
        step = abs(rtt_s - self.latest_s)
        self.jitter_s = (
            step if self.jitter_s is None else self.jitter_s + (step - self.jitter_s) / 16
        )
        self.latest_s = rtt_s
        self.last_at = at
        self.count += 1
        slot = int(at)
        minima = self._minima
        known = minima.get(slot)
        if known is None:
            minima[slot] = rtt_s
            if len(minima) > MIN_WINDOW_S:
                oldest = slot - MIN_WINDOW_S
                self._minima = {s: m for s, m in minima.items() if s > oldest}
        elif rtt_s < known:
            minima[slot] = rtt_s

    @property
    def min_s(self) -> float:
        """The least sample of the 10 s that end with the latest sample."""
        oldest = int(self.last_at) - MIN_WINDOW_S
        return min(m for s, m in self._minima.items() if s > oldest)


class PathRtt:
    """The estimators of one path, by kind."""

    __slots__ = ("_kinds",)

    def __init__(self) -> None:
        self._kinds: dict[Kind, RttEstimator] = {}

    def observe(self, kind: Kind, rtt_s: float, at: float) -> None:
        """Take one sample of ``kind`` that arrived at ``at``."""
        estimator = self._kinds.get(kind)
        if estimator is None:
            self._kinds[kind] = RttEstimator(rtt_s, at)
        else:
            estimator.observe(rtt_s, at)

    def of(self, kind: Kind) -> RttEstimator | None:
        """The estimator of ``kind``, or ``None`` without a sample."""
        return self._kinds.get(kind)

    def governing(self, now: float) -> tuple[Kind, RttEstimator] | None:
        """The kind that yields R at ``now`` by the rule in the module's head, or ``None``."""
        best: tuple[Kind, RttEstimator] | None = None
        best_key: tuple[bool, int, int, float] | None = None
        for kind, estimator in self._kinds.items():
            fresh = now - estimator.last_at <= FRESH_S
            rank = _RANK[kind]
            key = (
                fresh and kind in _END_TO_END and estimator.count >= SETTLED,
                -1 if rank > 1 else fresh,
                -rank,
                estimator.srtt_s if fresh else estimator.last_at,
            )
            if best_key is None or key > best_key:
                best, best_key = (kind, estimator), key
        return best
