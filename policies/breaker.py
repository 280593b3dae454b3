"""One path's gate: may I use it now?

The transition table, stated first. *Good* and *bad* are samples of connections and exchanges that
are the path's own doing (`local_failure`); an error status is the endpoint's and is no bad sample.

=========  ==========================================  =========  ================================
state      event                                       next       with
=========  ==========================================  =========  ================================
CLOSED     third bad in a row                          OPEN       for the next pause of `Backoff`
CLOSED     `outlier`: clearly worse than its siblings  OPEN       the same
OPEN       good, bad during the pause                  OPEN       ignored
OPEN       bad after the pause                         OPEN       for the next pause, longer
OPEN       good after the pause                        HALF_OPEN
OPEN       no sample for 30 s after the pause          HALF_OPEN  else it stayed shut for ever
HALF_OPEN  bad                                         OPEN       for the next pause, longer
HALF_OPEN  third good in a row since the pause         CLOSED
=========  ==========================================  =========  ================================

What fails together fails once: while CLOSED only an attempt that was made after the last failure
was known counts again. (One lost packet holds up every PING behind it on a connection.)

Bad samples of a path that is DOWN are not shown to its breaker: the verdict already holds it back,
and the length of an outage must not prolong the way back.

`Damping` is route-flap damping (RFC 2439) with the figures of DESIGN 4, and holds a path that came
back until it has stayed. One doubt that nothing came of holds nothing: false alarms must be free.
"""

from __future__ import annotations

import math
import random

from policies.model import Breaker, Kind, Outcome, Verdict

BAD_TO_OPEN = 3
GOOD_TO_CLOSE = 3
PAUSE_S = 1.0
PAUSE_MAX_S = 30.0
PAUSE_JITTER = 0.2
FORGET_S = 30.0
"""Each span of this length without another pause makes the next one half as long."""
UNTESTED_S = 30.0

FLAP_PENALTY = 1000.0
DOUBT_PENALTY = 200.0
"""A fall to SUSPECT alone."""
FREE_PENALTY = 500.0
"""So much holds nothing back."""
FLAP_SUPPRESS = 3000.0
FLAP_REUSE = 750.0
FLAP_HALF_LIFE_S = 30.0
FLAP_MAX = 12_000.0
"""Bounds suppression to four half-lives after the last flap."""
HOLD_S = 14.0
"""How long a path that fell must have been back before it is preferred, times the square of the
thousands of penalty beyond the free: 3.5 s after one outage, longer than it takes to see that a
line which flaps every 2 s is dead again, and 23 s after the second in 10 s."""
HOLD_MAX_S = 30.0

_OTHERS = frozenset(
    {Outcome.OK, Outcome.HTTP_ERROR, Outcome.BUSY, Outcome.LOCAL, Outcome.FORBIDDEN}
)
_EVIDENCE = frozenset({Kind.TCP, Kind.TLS, Kind.HTTP, Kind.QUIC, Kind.PING, Kind.TTFB, Kind.PULSE})


def is_evidence(kind: Kind) -> bool:
    """Whether samples of this kind speak of the path's use. ICMP is dropped by many, and TCP_INFO
    only exists where a connection stands."""
    return kind in _EVIDENCE


def local_failure(outcome: Outcome) -> bool:
    """Whether the attempt failed before the endpoint could speak HTTP, and not for want of this
    process's own means."""
    return outcome not in _OTHERS


class Backoff:
    """Pauses of 1 s x 2^n, at most 30 s, +-20%; shorter again with time."""

    __slots__ = ("_exponent", "_until")

    def __init__(self) -> None:
        self._exponent = -1
        self._until = 0.0

    def next(self, now: float, rng: random.Random) -> float:
        """When the pause that begins ``now`` ends."""
        if self._exponent >= 0:
            rested = int(max(0.0, now - self._until) / FORGET_S)
            self._exponent = max(-1, self._exponent - rested)
        self._exponent = min(self._exponent + 1, 5)
        pause_s = min(PAUSE_S * 2.0**self._exponent, PAUSE_MAX_S)
        self._until = now + pause_s * rng.uniform(1 - PAUSE_JITTER, 1 + PAUSE_JITTER)
        return self._until


class Gate:
    """The breaker of one path. Every method says whether `state` changed."""

    __slots__ = (
        "_backoff",
        "_bad",
        "_bad_at",
        "_good",
        "_tested_at",
        "open_until",
        "reason",
        "state",
    )

    def __init__(self) -> None:
        self.state = Breaker.CLOSED
        self.open_until: float | None = None
        """End of the pause while OPEN."""
        self.reason = ""
        """Why it is not CLOSED, for people."""
        self._backoff = Backoff()
        self._bad = 0
        self._bad_at = float("-inf")
        self._good = 0
        self._tested_at = 0.0

    def good(self, now: float) -> bool:
        """An attempt or a probe got its answer."""
        self._bad = 0
        if self.state is Breaker.CLOSED:
            return False
        if self.open_until is not None and now < self.open_until:
            return False
        self._tested_at = now
        self._good += 1
        if self._good >= GOOD_TO_CLOSE:
            return self._close()
        return self._half_open()

    def bad(
        self, outcome: Outcome, now: float, rng: random.Random, *, sent_at: float | None = None
    ) -> bool:
        """An attempt or a probe, made at ``sent_at``, failed by the path's own doing."""
        self._good = 0
        if self.state is Breaker.CLOSED:
            if sent_at is not None and sent_at < self._bad_at:
                return False
            self._bad_at = now
            self._bad += 1
            if self._bad < BAD_TO_OPEN:
                return False
            return self._open(f"{self._bad} failures in a row, the last: {outcome.value}", now, rng)
        if self.open_until is not None and now < self.open_until:
            return False
        return self._open(f"failed again after the pause: {outcome.value}", now, rng)

    def outlier(self, reason: str, now: float, rng: random.Random) -> bool:
        """The cohort rule found it clearly worse than the best path of its upstream."""
        return self.state is Breaker.CLOSED and self._open(reason, now, rng)

    def tick(self, now: float) -> bool:
        """Time passed."""
        due = self.deadline()
        return due is not None and now >= due and self._half_open()

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        if self.state is not Breaker.OPEN or self.open_until is None:
            return None
        return max(self.open_until, self._tested_at) + UNTESTED_S

    def _open(self, reason: str, now: float, rng: random.Random) -> bool:
        changed = self.state is not Breaker.OPEN
        self.state = Breaker.OPEN
        self.open_until = self._backoff.next(now, rng)
        self.reason = reason
        self._bad = self._good = 0
        return changed

    def _half_open(self) -> bool:
        changed = self.state is not Breaker.HALF_OPEN
        self.state = Breaker.HALF_OPEN
        self.open_until = None
        return changed

    def _close(self) -> bool:
        self.state = Breaker.CLOSED
        self.open_until = None
        self.reason = ""
        self._good = 0
        return True


class Damping:
    """Flap damping of one path. A flap is one fall from UP."""

    __slots__ = ("_at", "_back_since", "_penalty", "_suppressed")

    def __init__(self) -> None:
        self._penalty = 0.0
        self._at = 0.0
        self._suppressed = False
        self._back_since: float | None = None

    def penalty(self, now: float) -> float:
        """The decayed penalty."""
        return self._penalty * math.exp2(-max(0.0, now - self._at) / FLAP_HALF_LIFE_S)

    def fell(self, old: Verdict, new: Verdict, now: float) -> None:
        """The verdict became worse. A fall by way of SUSPECT costs as much as one at once. A
        relapse before it was UP again is the same outage, which only counts from now on."""
        cost = FLAP_PENALTY if new is Verdict.DOWN else DOUBT_PENALTY
        if old is Verdict.SUSPECT:
            relapse = self._back_since is not None
            cost = max(0.0, cost - self.penalty(now)) if relapse else cost - DOUBT_PENALTY
        self._penalty = min(FLAP_MAX, self.penalty(now) + cost)
        self._at = now
        self._back_since = None
        if self._penalty >= FLAP_SUPPRESS:
            self._suppressed = True

    def came_back(self, now: float) -> None:
        """The first sign of life: DOWN became SUSPECT, or SUSPECT became UP."""
        self._back_since = now

    @property
    def fallen(self) -> bool:
        """Whether it fell and has not come back since."""
        return self._penalty > 0 and self._back_since is None

    def held_until(self, now: float) -> float | None:
        """Until when the path must not be preferred; `None`: it may be, or it is not UP anyway."""
        if self._suppressed:
            until = self._at + FLAP_HALF_LIFE_S * math.log2(self._penalty / FLAP_REUSE)
            if now < until:
                return until
            self._suppressed = False
        if self._back_since is None:
            return None
        until = self._back_since + self._hold_s
        return until if now < until else None

    def holds(self, now: float) -> bool:
        """Whether the path must not be preferred, or would not be if it came back now."""
        return self.held_until(now) is not None or (self.fallen and self._hold_s > 0)

    @property
    def _hold_s(self) -> float:
        """Fixed by the last fall, so that it ends when it said it would."""
        excess = max(0.0, self._penalty - FREE_PENALTY) / FLAP_PENALTY
        return min(HOLD_S * excess * excess, HOLD_MAX_S)

    @property
    def suppressed(self) -> bool:
        """Whether the last `held_until` found it suppressed for flapping."""
        return self._suppressed
