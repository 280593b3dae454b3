"""The cohort rule: which endpoints of an upstream are excluded, for how long, how many at once.

Remote failures are the endpoint's, whatever line they came over, so endpoints are ejected, with all
their paths; a line is never ejected, its verdict is the detector's. An endpoint is ejected

* after five remote failures in a row over all its lines (Envoy's outlier detector), or
* when ``P(success < best - 10 points) > 95%`` over at least 20 samples (`clearly_worse`),

for 1 s x 2^n, at most 30 s, +-20%. When its time is over it is back at once, on probation: one more
remote failure ejects it again, for longer; three good answers end the probation. At most half of
an upstream's endpoints are out at once, and never the last.

BUSY (429, or 503 with Retry-After) blames nobody: the endpoint rests for what it asked, at most 30
s, outside the cap but never the last one, and without growing.
"""

from __future__ import annotations

import math
import random

from policies.breaker import Backoff

BAD_TO_EJECT = 5
GOOD_TO_CLEAR = 3
CAP_SHARE = 0.5
BUSY_DEFAULT_S = 1.0
BUSY_MAX_S = 30.0
MIN_SAMPLES = 20.0
MARGIN = 0.10
CONFIDENCE_Z = 1.6449
"""One-sided 95% of the normal distribution."""
HALF_LIFE_S = 60.0


class SuccessRate:
    """Share of good attempts, with a half-life of 60 s, as a Beta posterior (uniform prior)."""

    __slots__ = ("_at", "_bad", "_good")

    def __init__(self) -> None:
        self._good = 0.0
        self._bad = 0.0
        self._at = 0.0

    def add(self, good: bool, now: float, count: int = 1) -> None:
        """Count ``count`` attempts."""
        decay = self._decay(now)
        self._good = self._good * decay + (count if good else 0)
        self._bad = self._bad * decay + (0 if good else count)
        self._at = max(self._at, now)

    def samples(self, now: float) -> float:
        """How many samples it stands on."""
        return (self._good + self._bad) * self._decay(now)

    @property
    def mean(self) -> float:
        """Posterior mean."""
        return (self._good + 1) / (self._good + self._bad + 2)

    @property
    def deviation(self) -> float:
        """Posterior standard deviation."""
        total = self._good + self._bad + 2
        return math.sqrt(self.mean * (1 - self.mean) / (total + 1))

    def _decay(self, now: float) -> float:
        return math.exp2(-max(0.0, now - self._at) / HALF_LIFE_S)


def clearly_worse(rate: SuccessRate, best: SuccessRate, now: float) -> bool:
    """``P(success < best - 10 points) > 95%`` over at least 20 samples of both.

    The Beta posterior is taken as normal, and ``best`` counts with its mean.
    """
    if rate.samples(now) < MIN_SAMPLES or best.samples(now) < MIN_SAMPLES:
        return False
    return rate.mean + CONFIDENCE_Z * rate.deviation < best.mean - MARGIN


class _Member:
    """What the cohort remembers of one endpoint."""

    __slots__ = ("backoff", "bad", "busy_until", "good", "probation", "rate", "reason", "until")

    def __init__(self) -> None:
        self.backoff = Backoff()
        self.rate = SuccessRate()
        self.bad = 0
        self.good = 0
        self.probation = False
        self.until: float | None = None
        self.busy_until: float | None = None
        self.reason = ""

    def out_until(self, now: float) -> float | None:
        until = max(self.until or 0.0, self.busy_until or 0.0)
        return until if until > now else None


class Cohort:
    """The endpoints of one upstream. `bad` and `busy` say whether an exclusion began."""

    __slots__ = ("_members",)

    def __init__(self) -> None:
        self._members: dict[str, _Member] = {}

    def set_members(self, endpoints: list[str]) -> None:
        """Take a new configuration; known endpoints keep their state."""
        self._members = {e: self._members.get(e) or _Member() for e in endpoints}

    def good(self, endpoint: str, now: float, count: int = 1) -> None:
        """It answered ``count`` times, over any line."""
        member = self._members[endpoint]
        member.rate.add(True, now, count)
        member.bad = 0
        member.good += count
        if member.good >= GOOD_TO_CLEAR:
            member.probation = False

    def bad(self, endpoint: str, reason: str, now: float, rng: random.Random) -> bool:
        """A remote failure, over any line."""
        member = self._members[endpoint]
        member.rate.add(False, now)
        member.bad += 1
        member.good = 0
        if member.out_until(now) is not None:
            return False
        if member.probation:
            return self._eject(member, f"failed again on probation: {reason}", now, rng)
        if member.bad >= BAD_TO_EJECT:
            return self._eject(member, f"{member.bad} failures in a row: {reason}", now, rng)
        best = max((m.rate for m in self._members.values()), key=lambda rate: rate.mean)
        if clearly_worse(member.rate, best, now):
            share = f"{member.rate.mean:.0%} against {best.mean:.0%}"
            return self._eject(member, f"answers far less often than the best: {share}", now, rng)
        return False

    def busy(self, endpoint: str, retry_after_s: float | None, now: float) -> bool:
        """It said that it has too much to do."""
        member = self._members[endpoint]
        others = (m for m in self._members.values() if m is not member)
        if not any(m.out_until(now) is None for m in others):
            return False
        rest_s = BUSY_DEFAULT_S if retry_after_s is None else retry_after_s
        member.busy_until = max(member.busy_until or 0.0, now + min(rest_s, BUSY_MAX_S))
        member.reason = "busy, as it said itself"
        return True

    def out_until(self, endpoint: str, now: float) -> float | None:
        """Until when it is excluded; `None`: it is not."""
        member = self._members.get(endpoint)
        return None if member is None else member.out_until(now)

    def reason(self, endpoint: str) -> str:
        """Why it was last excluded, for people."""
        return self._members[endpoint].reason

    def _eject(self, member: _Member, reason: str, now: float, rng: random.Random) -> bool:
        members = self._members.values()
        out = sum(m.out_until(now) is not None for m in members)
        if out + 1 > CAP_SHARE * len(members) or out + 1 >= len(members):
            return False
        member.until = member.backoff.next(now, rng)
        member.reason = reason
        member.probation = True
        member.bad = 0
        return True
