"""How many exchanges an endpoint carries at once before they queue: its concurrency limit L.

Little's law makes a queue of a latency: what exceeds the latency without a queue, times the
answers per second, is the number that wait, ``q = X * (t - t0)``. So ``n - q`` of the ``n`` in
flight were being served, and that is L: also where a stream stays in flight long after its first
byte, and whatever the round trip (times here are times to first byte less R).

t0 is the latency with less in flight, which is remembered by levels of in-flight for ten minutes.
That latency rises is no evidence: prompts become harder, a model thinks for longer, and then more
is in flight *because* each takes longer. L is therefore unknown until latency rose together with
in-flight, in two windows running, by more than chance and half of t0. Then it is tried: the limit
is halved for a window (as BBR's ProbeRTT and Envoy's minRTT window do), and if the latency does
not follow, there was no queue, and all is forgotten. The same is repeated every 20 s while L is
known and in use. Where nothing can be diverted, as with one endpoint, a trial tells nothing and L
is without effect.

| in a window | L |
| --- | --- |
| more in flight than 1.1 L | goes half way to n - q |
| L in use, q above n / 4 | 10% less |
| L in use, q below n / 10 | 10% more; 20%, 40%, 80% while it stays so, n being near L |
| BUSY answers (429, 503, 529) | at most 80% of what was in flight, once a window |
| nothing of it for 10 minutes | unknown |

A window has at least 20 answers, and is a second and twice t0 long: what is in it felt the limit of
its time. References: TCP Vegas (Brakmo and Peterson 1995), Netflix concurrency-limits, Envoy's
adaptive concurrency filter, BBR.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log, sqrt
from typing import Final

WINDOW_S: Final = 1.0
WINDOW_ANSWERS: Final = 20
WINDOW_LATENCIES: Final = 10.0
TRIAL_S: Final = 20.0
TRIAL_LATENCIES: Final = 100.0
"""Time between trials, at least."""
TTL_S: Final = 600.0
"""What was learnt is forgotten after so long."""
LEAST_EXCESS_S: Final = 0.005
"""Less queueing than this concerns nobody."""
_SURE: Final = 3.0
_LIKELY: Final = 2.0
"""Standard errors by which latency must have risen: for a limit to be made, to be changed."""
_SIGNS: Final = 2
_IN_USE: Final = 0.4
_CAREFUL: Final = 8
"""Windows after BUSY in which L grows slowly."""
_LEVELS: Final = 1 / log(1.25)
_APART: Final = 2
"""Levels between which latency is compared: there is at least a quarter more in flight."""
_KNOWN_ANSWERS: Final = 200
"""Answers that a level, or t0, stands on at most."""


Answer = tuple[float, int]
"""An exchange that was answered well: its time to first byte, and how many were in flight at the
endpoint when it began, itself included."""


class _Times:
    """What is known of latencies: their mean, and the mean and variance of their logarithms.

    Thinking makes long tails, whose means say little; the logarithms say what is chance.
    """

    __slots__ = ("answers", "log", "log_variance", "mean_s")

    def __init__(self, answers: int, mean_s: float, log: float, log_variance: float) -> None:
        self.answers = answers
        self.mean_s = mean_s
        self.log = log
        self.log_variance = log_variance

    def add(self, other: _Times) -> None:
        """Take more latencies; of more than `_KNOWN_ANSWERS` the newest weigh most."""
        total = self.answers + other.answers
        self.answers = min(total, _KNOWN_ANSWERS)
        share = min(1.0, other.answers / self.answers)
        self.mean_s += share * (other.mean_s - self.mean_s)
        self.log += share * (other.log - self.log)
        self.log_variance += share * (other.log_variance - self.log_variance)

    def longer(self, than: _Times, sure: float) -> bool:
        """Whether these are longer than others by more than ``sure`` standard errors."""
        error = sqrt(self.log_variance / self.answers + than.log_variance / than.answers)
        return self.log - than.log > sure * error

    def exceeds_s(self, base: _Times, sure: float) -> float:
        """By how much their mean exceeds that of ``base``; 0 if by little, or by chance."""
        excess_s = self.mean_s - base.mean_s
        return excess_s if excess_s > LEAST_EXCESS_S and self.longer(base, sure) else 0.0


class _Span:
    """Answers that are being counted."""

    __slots__ = ("answers", "busy", "found_sum", "log_square_sum", "log_sum", "since", "sum_s")

    def __init__(self, since: float) -> None:
        self.since = since
        self.answers = 0
        self.sum_s = 0.0
        self.log_sum = 0.0
        self.log_square_sum = 0.0
        self.found_sum = 0
        self.busy = False


class _Window:
    """A span that is complete."""

    __slots__ = ("busy", "drain_s", "in_flight", "rate", "times")

    def __init__(self, span: _Span, in_flight: int, now: float) -> None:
        n = span.answers
        log = span.log_sum / n
        variance = max(0.0, span.log_square_sum / n - log * log)
        self.times = _Times(n, span.sum_s / n, log, variance)
        self.in_flight = max(1.0, span.found_sum / n)
        """What the exchanges found on average."""
        self.rate = n / (now - span.since)
        """X, per second."""
        self.drain_s = in_flight / self.rate
        """Until all that is in flight now is answered (Little)."""
        self.busy = span.busy


class _Profile:
    """Latency by level of in-flight, as far as it was seen lately."""

    __slots__ = ("_levels",)

    def __init__(self) -> None:
        self._levels: dict[int, tuple[float, _Times]] = {}
        """When it was last seen, and what."""

    def learn(self, window: _Window, now: float) -> None:
        """Remember a window. With less in flight it takes no longer: what says so is outdated."""
        level, times = _level(window.in_flight), window.times
        kept = {
            n: (at, known)
            for n, (at, known) in self._levels.items()
            if now - at < TTL_S and not (n < level and known.longer(times, _LIKELY))
        }
        _, known = kept.get(level, (now, _Times(0, 0.0, 0.0, 0.0)))
        known.add(times)
        kept[level] = (now, known)
        self._levels = kept

    def base(self, in_flight: float) -> _Times | None:
        """t0 for ``in_flight``: latency where least was in flight, of 200 answers if there are
        so many. ``None``: nothing is known of clearly less in flight.
        """
        base = None
        for n in sorted(self._levels):
            if n > _level(in_flight) - _APART or (base and base.answers >= _KNOWN_ANSWERS):
                break
            known = self._levels[n][1]
            if base is None:
                base = _Times(known.answers, known.mean_s, known.log, known.log_variance)
            else:
                base.add(known)
        return base


def _level(in_flight: float) -> int:
    return int(log(in_flight) * _LEVELS)


class ConcurrencyLimit:
    """L of one endpoint; see the module. `answered` is cheap and meant for batches."""

    __slots__ = (
        "_calm",
        "_evidence_at",
        "_latency_s",
        "_limit",
        "_profile",
        "_signs",
        "_span",
        "_trial",
        "_try_at",
    )

    def __init__(self) -> None:
        self._limit: float | None = None
        self._profile = _Profile()
        self._span: _Span | None = None
        self._latency_s = 0.0
        """The newest t0."""
        self._signs = 0
        """Windows in a row in which latency rose with in-flight."""
        self._calm = 0
        """Windows in a row with L in use and no queue; negative after BUSY."""
        self._evidence_at = float("-inf")
        self._trial: _Window | None = None
        """The window before the trial that is under way."""
        self._try_at = float("-inf")
        """When the next trial is due."""

    @property
    def limit(self) -> float | None:
        """L, halved during a trial; ``None``: unknown, no limit."""
        if self._limit is None or self._trial is None:
            return self._limit
        return max(1.0, self._trial.in_flight / 2)

    def answered(self, answers: Sequence[Answer], rtt_s: float, in_flight: int, now: float) -> None:
        """Exchanges were answered over a path whose round trip is ``rtt_s``; ``in_flight`` are in
        flight at the endpoint now.
        """
        span = self._span
        if span is None or now - span.since > TTL_S:
            span = self._span = _Span(now)
        elif now < span.since:
            return  # a trial has begun, and this was sent before
        for ttfb_s, found in answers:
            time_s = max(LEAST_EXCESS_S, ttfb_s - rtt_s)
            logarithm = log(time_s)
            span.sum_s += time_s
            span.log_sum += logarithm
            span.log_square_sum += logarithm * logarithm
            span.found_sum += found
        span.answers += len(answers)
        if span.answers >= WINDOW_ANSWERS and now - span.since >= self._least_span_s():
            self._span = _Span(now)
            self._judge(_Window(span, in_flight, now), now)

    def busy(self, in_flight: int, now: float) -> None:
        """The endpoint said that it has too much to do."""
        span = self._span
        if span is None:
            span = self._span = _Span(now)
        if span.busy:
            return
        span.busy = True
        self._calm = -_CAREFUL
        most = 0.8 * in_flight
        if self._limit is None:
            self._try_at = now + TRIAL_S  # it said so itself
            self._set(most, now)
        else:
            self._set(min(self._limit, most), now)

    # -- parts -------------------------------------------------------------------------------

    def _least_span_s(self) -> float:
        if self._trial is not None:
            return max(WINDOW_S, self._trial.times.mean_s)
        return max(WINDOW_S, WINDOW_LATENCIES * self._latency_s)

    def _judge(self, window: _Window, now: float) -> None:
        if now - self._evidence_at > TTL_S:
            self._limit = self._trial = None
        base = self._profile.base(window.in_flight)
        if self._trial is None:
            self._latency_s = (base or window.times).mean_s
        if self._trial is not None:
            self._end_trial(self._trial, window, now)
        elif self._limit is not None:
            self._adjust(self._limit, base, window, now)
        elif base is not None:
            self._watch(base, window, now)
        self._profile.learn(window, now)

    def _watch(self, base: _Times, window: _Window, now: float) -> None:
        """L is unknown: does latency rise with in-flight?"""
        excess_s = window.times.exceeds_s(base, _SURE)
        self._signs = self._signs + 1 if excess_s > 0.5 * base.mean_s else 0
        if self._signs >= _SIGNS:
            self._set(window.in_flight - window.rate * excess_s, now)
            self._begin_trial(window, now)

    def _adjust(self, limit: float, base: _Times | None, window: _Window, now: float) -> None:
        """L is known: does it hold?"""
        in_flight = window.in_flight
        if in_flight < _IN_USE * limit:
            return
        queued = 0.0 if base is None else window.rate * window.times.exceeds_s(base, _LIKELY)
        if queued > 0.1 * in_flight:
            self._evidence_at = now
            self._calm = min(self._calm, 0)
        elif not window.busy:
            self._calm += 1
        if in_flight > 1.1 * limit:
            self._set(limit + 0.5 * (in_flight - queued - limit), now)
        elif queued > 0.25 * in_flight:
            self._set(0.9 * limit, now)
        elif queued <= 0.1 * in_flight and not window.busy:
            faster = 2 ** min(max(self._calm - 1, 0), 3) if in_flight > 0.8 * limit else 1
            self._limit = limit + max(1.0, 0.1 * limit * faster)
        if now >= self._try_at:
            self._begin_trial(window, now)

    def _set(self, limit: float, now: float) -> None:
        """Take a limit that there is evidence for."""
        self._limit = max(1.0, limit)
        self._evidence_at = now
        self._signs = 0

    def _begin_trial(self, window: _Window, now: float) -> None:
        self._trial = window
        # By then what is in flight is answered, and as much that was sent behind it.
        self._span = _Span(now + 2 * window.drain_s)

    def _end_trial(self, before: _Window, window: _Window, now: float) -> None:
        """Half the limit was in force."""
        self._trial = None
        self._try_at = now + TRIAL_S
        less = window.in_flight / before.in_flight
        if less > 0.75 or self._limit is None:
            return  # nothing could be diverted
        self._try_at = now + max(TRIAL_S, TRIAL_LATENCIES * self._latency_s)
        base = self._profile.base(before.in_flight)
        queued_s = 0.0 if base is None else before.times.exceeds_s(base, _LIKELY)
        if base is None or queued_s < 0.5 * base.mean_s:
            return
        # The latency of a queue follows in-flight in proportion, any other not at all.
        expected = max(less, base.mean_s / before.times.mean_s)
        followed = before.times.longer(window.times, _SURE)
        if not followed or window.times.log - before.times.log > log((1 + expected) / 2):
            self._limit = None
            self._profile = _Profile()
            return
        excess_s = window.times.exceeds_s(base, _LIKELY)
        self._set(min(self._limit, window.in_flight - window.rate * excess_s), now)
