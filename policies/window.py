"""The recent samples of a path and the estimates made from them.

`Window.observe` only counts (real traffic calls it thousands of times a second); every derived
number is computed when `Window.estimate` is asked, and kept for a while.

| number | from |
| --- | --- |
| R, rttvar, minimum, jitter | the kind that governs by the rule in `policies.rtt` |
| p50, p95 | that kind's samples of the last minute, 1% relative error |
| loss | 95% interval (`policies.loss`) of packets: one each of TCP, PING, PULSE and ICMP, what \
KERNEL and QUIC report; none of TLS, HTTP and TTFB, for TCP hides the loss below an exchange |
| goodput | greatest acknowledged rate of the last minute, else the last one known |

An outage is no property of the path's packets: the score has a part of its own for it (hazard).
`Window.mark` is called when doubt begins and `Window.rewind` when the path came back from DOWN.

Time to first byte is kept per endpoint in `EndpointLatency`, apart from RTT: a model thinks for
seconds, and that is no line's fault.
"""

from __future__ import annotations

import copy
from typing import Final

from policies.loss import LossEstimate
from policies.model import Estimate, Kind, Outcome, Sample
from policies.rtt import PathRtt, RttEstimator
from policies.sketch import SLOT_S, SlidingSketch

ESTIMATE_TTL_S: Final = 0.5
"""An estimate is recomputed when a sample came, or after this long (decay)."""

SYN_RTO_S: Final = 1.0
"""Initial retransmission timeout of a SYN (RFC 6298 section 2.1)."""

HEDGE_MIN_SAMPLES: Final = 20
"""Fewer exchanges than this say nothing about a 95th percentile."""

_THINKING: Final = frozenset((Kind.HTTP, Kind.TTFB))
_EXPIRED: Final = float("-inf")
_REPLY_ROUND_TRIPS: Final = {Kind.TLS: 3.0, Kind.QUIC: 2.0, Kind.HTTP: 2.0}
_FIRST_REPLY_S: Final = 1.0
_LEAST_SLACK_S: Final = 0.025
_EMPTY: Final = Estimate()


class Window:
    """Everything measured of one path, as far as it still counts."""

    __slots__ = (
        "_estimate",
        "_expires_at",
        "_goodput",
        "_loss",
        "_mark",
        "_measured",
        "_rtt",
        "_sketches",
    )

    def __init__(self) -> None:
        self._rtt = PathRtt()
        self._loss = LossEstimate()
        self._goodput = MaxFilter()
        self._sketches: dict[Kind, SlidingSketch] = {}
        self._estimate = _EMPTY
        self._expires_at = _EXPIRED
        self._mark: tuple[PathRtt, LossEstimate] | None = None
        self._measured = False
        """Whether any kind without thinking gave a round trip: then exchanges give none."""

    def observe(self, sample: Sample, now: float) -> None:
        """Take one sample of this path, arrived at ``now``."""
        kind = sample.kind
        rtt_s = sample.rtt_s
        if sample.goodput_bps is not None:
            self._goodput.observe(sample.goodput_bps, now)
            self._expires_at = _EXPIRED
        if kind in _THINKING:
            if rtt_s is not None and not self._measured:
                self._rtt.observe(kind, rtt_s, now)
                self._expires_at = _EXPIRED
            return
        self._expires_at = _EXPIRED
        if kind is not Kind.TLS:
            rtt_s = self._count_packets(sample, now)
        if rtt_s is not None:
            self._measured = True
            self._rtt.observe(kind, rtt_s, now)
            self._sketch(kind).observe(rtt_s, now)

    def _count_packets(self, sample: Sample, now: float) -> float | None:
        """Count the sample's packets; returns the round trip it measured, if it did."""
        kind, rtt_s = sample.kind, sample.rtt_s
        sent, lost = sample.packets_sent, sample.packets_lost
        if sent == 1 and not lost and not sample.outcome.ok:
            lost = 1
        if rtt_s is not None and kind is Kind.TCP and self._retransmitted(rtt_s):
            sent, lost, rtt_s = 2, 1, None
        if sent > 0:
            self._loss.add(min(lost, sent), sent, now, icmp=kind is Kind.ICMP)
        return rtt_s

    def _retransmitted(self, rtt_s: float) -> bool:
        """Whether a connect that took this long needed a second SYN: Karn's rule, no RTT sample."""
        if rtt_s < SYN_RTO_S:
            return False
        known = self._rtt.of(Kind.TCP)
        return known is not None and rtt_s >= known.srtt_s + 0.9 * SYN_RTO_S

    def _sketch(self, kind: Kind) -> SlidingSketch:
        sketch = self._sketches.get(kind)
        if sketch is None:
            sketch = self._sketches[kind] = SlidingSketch()
        return sketch

    def estimate(self, now: float) -> Estimate:
        """What the window says at ``now``; every sample so far counts."""
        if now >= self._expires_at:
            self._estimate = self._compute(now)
            self._expires_at = now + ESTIMATE_TTL_S
        return self._estimate

    def _compute(self, now: float) -> Estimate:
        bounds = self._loss.bounds(now)
        loss_least, loss = (None, None) if bounds is None else bounds
        goodput = self._goodput.value(now)
        governing = self._rtt.governing(now)
        if governing is None:
            return Estimate(loss=loss, loss_least=loss_least, goodput_bps=goodput)
        kind, rtt = governing
        least = rtt.min_s
        p50 = p95 = None
        if (sketch := self._sketches.get(kind)) is not None:
            p50, p95 = sketch.quantiles(now, 0.5, 0.95)
        return Estimate(
            rtt_s=least if kind in _THINKING else rtt.srtt_s,
            rttvar_s=rtt.rttvar_s,
            rtt_min_s=least,
            loss=loss,
            loss_least=loss_least,
            jitter_s=rtt.jitter_s,
            p50_s=p50,
            p95_s=p95,
            goodput_bps=goodput,
            samples=rtt.count,
        )

    def mark(self) -> None:
        """Doubt begins: what is known so far may have to be returned to."""
        self._mark = (copy.deepcopy(self._rtt), copy.deepcopy(self._loss))

    def rewind(self) -> None:
        """The path was DOWN and is back: what was counted since `mark` was the outage."""
        # The mark stays: the path may go DOWN again before it is trusted.
        self._rtt, self._loss = copy.deepcopy(self._mark) or (PathRtt(), LossEstimate())
        self._expires_at = _EXPIRED

    def reply_times(self, kind: Kind, now: float) -> tuple[float, float]:
        """(rtt_s, slack_s): when a probe of ``kind`` expects its reply, and how late it may be.

        The kind's own srtt and max(4 rttvar, 25 ms), times the round trips that a run of it makes;
        the 25 ms keep a hiccup of the event loop from looking like silence. Before its first reply
        1 s, or three times the path's R where that is more.
        """
        own = self._rtt.of(kind)
        if own is None:
            governing = self._rtt.governing(now)
            return max(_FIRST_REPLY_S, 0.0 if governing is None else 3 * governing[1].srtt_s), 0.0
        trips = _REPLY_ROUND_TRIPS.get(kind, 1.0)
        return trips * own.srtt_s, max(trips * 4 * own.rttvar_s, _LEAST_SLACK_S)

    def kind(self, kind: Kind) -> RttEstimator | None:
        """One kind's own estimator, for `why` and the history."""
        return self._rtt.of(kind)


class MaxFilter:
    """Greatest value of the last ``slots`` x 10 s; when they are empty, the last one known."""

    __slots__ = ("_last", "_maxima", "_slots")

    def __init__(self, slots: int = 6) -> None:
        self._slots = slots
        self._maxima: dict[int, float] = {}
        self._last: float | None = None

    def observe(self, value: float, at: float) -> None:
        """Take one value."""
        slot = int(at // SLOT_S)
        maxima = self._maxima
        known = maxima.get(slot)
        if known is None:
            maxima[slot] = value
            if len(maxima) > self._slots:
                oldest = slot - self._slots
                self._maxima = {s: v for s, v in maxima.items() if s > oldest}
        elif value > known:
            maxima[slot] = value
        self._last = value

    def value(self, now: float) -> float | None:
        """The filtered value at ``now``, or ``None`` before the first."""
        oldest = int(now // SLOT_S) - self._slots
        recent = [v for s, v in self._maxima.items() if s > oldest]
        return max(recent) if recent else self._last


class EndpointLatency:
    """Time to first byte of one endpoint's real exchanges over the last five minutes."""

    __slots__ = ("_computed", "_expires_at", "_sketch")

    def __init__(self) -> None:
        self._sketch = SlidingSketch(slots=30)
        self._computed: tuple[float | None, float | None, int] = (None, None, 0)
        self._expires_at = float("-inf")

    def observe(self, ttfb_s: float, now: float) -> None:
        """Take the TTFB of one exchange that got a response (not those that failed)."""
        self._sketch.observe(ttfb_s, now)

    def p50_s(self, now: float) -> float | None:
        """Median, or ``None`` without an exchange in the window: S of the score."""
        return self._read(now)[0]

    def p95_s(self, now: float) -> float | None:
        """95th percentile for hedging; ``None`` below `HEDGE_MIN_SAMPLES` exchanges."""
        _, p95, count = self._read(now)
        return p95 if count >= HEDGE_MIN_SAMPLES else None

    def count(self, now: float) -> int:
        """Exchanges in the window."""
        return self._read(now)[2]

    def _read(self, now: float) -> tuple[float | None, float | None, int]:
        """Computed at most twice a second."""
        if now >= self._expires_at:
            p50, p95 = self._sketch.quantiles(now, 0.5, 0.95)
            self._computed = (p50, p95, self._sketch.count(now))
            self._expires_at = now + ESTIMATE_TTL_S
        return self._computed


def is_exchange(sample: Sample) -> bool:
    """Whether the sample belongs in `EndpointLatency` too."""
    return (
        sample.kind is Kind.TTFB
        and sample.rtt_s is not None
        and (sample.outcome is Outcome.OK or sample.outcome is Outcome.HTTP_ERROR)
    )
