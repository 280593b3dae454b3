"""Token buckets: the share of extra attempts, probes and hedges that is allowed.

A `Bucket` earns a share of a token with each request (``earn``) and some by time. Who wants
something extra takes a token. It is full at the start, so that the first failure of the day is not
the one that is refused.

`HedgeBudget` is the rule of hedges: a share of the requests, and none at all while more than 20 of
the last 100 requests were hedged: then it is not the tail that is slow (Dean, Barroso, "The Tail at
Scale", 2013).
"""

from __future__ import annotations

from collections import deque

from policies.schema import Hedge, Retry

RETRY_BURST_S = 10.0
"""A retry bucket holds what time earns in this many seconds, or ``RETRY_BURST`` if that is more."""
RETRY_BURST = 20.0
HEDGE_BURST = 5.0
HEDGE_WINDOW = 100
HEDGE_SHARE_OFF = 0.20


class Bucket:
    """Tokens earned by requests and by time, up to a capacity.

    ``share``: tokens per request. ``per_s``: tokens per second. ``capacity``: the most it holds.
    """

    __slots__ = ("_at", "_tokens", "capacity", "per_s", "share")

    def __init__(self, *, share: float = 0.0, per_s: float = 0.0, capacity: float = 1.0) -> None:
        if share < 0 or per_s < 0 or capacity < 0:
            raise ValueError("share, per_s and capacity must not be negative")
        self.share = share
        self.per_s = per_s
        self.capacity = capacity
        self._tokens = capacity
        self._at: float | None = None

    def earn(self) -> None:
        """A request came."""
        tokens = self._tokens + self.share
        self._tokens = tokens if tokens < self.capacity else self.capacity

    def take(self, now: float, tokens: float = 1.0, *, overdraft: float = 0.0) -> bool:
        """Take ``tokens`` if that leaves at least ``-overdraft``; says whether it did.

        An overdraft lets a cheap kind of spending go on when the dear kind must already stop.
        """
        if self.available(now) - tokens < -overdraft - 1e-9:
            return False
        self._tokens -= tokens
        return True

    def available(self, now: float) -> float:
        """Tokens at ``now``; negative while overdrawn. Time that runs backwards earns nothing."""
        if self._at is None:
            self._at = now
        elif now > self._at:
            self._tokens = min(self.capacity, self._tokens + (now - self._at) * self.per_s)
            self._at = now
        return self._tokens

    def resize(self, *, share: float, per_s: float, capacity: float) -> None:
        """Take a new policy; what was spent stays spent."""
        self.share, self.per_s, self.capacity = share, per_s, capacity
        self._tokens = min(self._tokens, capacity)


class HedgeBudget:
    """A bucket of hedges with a brake."""

    __slots__ = ("_hedged", "_requests", "answered_at", "bucket")

    def __init__(self, share: float) -> None:
        self.answered_at = float("-inf")
        """When an exchange was last answered: who waits while others are answered is the tail."""
        self.bucket = Bucket(share=share, capacity=HEDGE_BURST if share > 0 else 0.0)
        self._requests = 0
        self._hedged: deque[int] = deque()

    def earn(self) -> None:
        """A request came."""
        self._requests += 1
        self.bucket.earn()

    def take(self, now: float) -> bool:
        """Take the right to one hedge."""
        if self.braked or not self.bucket.take(now):
            return False
        self._hedged.append(self._requests)
        return True

    @property
    def braked(self) -> bool:
        """Whether more than a fifth of the last 100 requests were hedged."""
        oldest = self._requests - HEDGE_WINDOW
        hedged = self._hedged
        while hedged and hedged[0] <= oldest:
            hedged.popleft()
        return len(hedged) > HEDGE_SHARE_OFF * HEDGE_WINDOW

    def resize(self, share: float) -> None:
        """Take a new policy; what was spent stays spent."""
        self.bucket.resize(share=share, per_s=0.0, capacity=HEDGE_BURST if share > 0 else 0.0)


def retry_bucket(retry: Retry) -> Bucket:
    """The retry bucket of one upstream."""
    return Bucket(share=retry.budget, per_s=retry.min_per_s, capacity=retry_capacity(retry))


def retry_capacity(retry: Retry) -> float:
    """Tokens it holds at most; 0 when the policy allows no retry at all."""
    if retry.budget == 0 and retry.min_per_s == 0:
        return 0.0
    return max(RETRY_BURST, RETRY_BURST_S * retry.min_per_s)


def hedge_budget(hedge: Hedge) -> HedgeBudget:
    """The hedge budget of one upstream."""
    return HedgeBudget(0.0 if hedge.when == "off" else hedge.budget)
