"""Quantiles of the recent past with 1% relative error.

A DDSketch (Masson, Rim, Lee: "DDSketch", VLDB 2019) counts values in logarithmic buckets, so that
every quantile is off by at most 1% of its value. `SlidingSketch` keeps one per slot of 10 s and
forgets whole slots. Observing is one increment; quantiles are computed when asked for.
"""

from __future__ import annotations

from math import ceil, log
from typing import Final

RELATIVE_ERROR: Final = 0.01
SLOT_S: Final = 10.0
_GAMMA: Final = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_PER_LOG: Final = 1 / log(_GAMMA)
_LEAST: Final = 1e-6
_GREATEST: Final = 1e5


class SlidingSketch:
    """Quantiles over the last ``slots`` x 10 s, the current slot included.

    At most 1,267 buckets (1 us to 10^5 s) per slot whatever is observed.
    """

    __slots__ = ("_current", "_ends_at", "_older", "_slots", "_total")

    def __init__(self, slots: int = 6) -> None:
        self._slots = slots
        self._current: dict[int, int] = {}
        self._ends_at = float("-inf")
        self._older: list[tuple[float, dict[int, int]]] = []
        self._total: dict[int, int] = {}
        """Sum of ``_older``: the current slot is added when asked."""

    def observe(self, value: float, at: float) -> None:
        """Count ``value`` (seconds, clamped to 1 us .. 10^5 s) at time ``at``."""
        if at >= self._ends_at:
            self._rotate(at)
        if value < _LEAST:
            value = _LEAST
        elif value > _GREATEST:
            value = _GREATEST
        bucket = ceil(log(value) * _PER_LOG)
        current = self._current
        current[bucket] = current.get(bucket, 0) + 1

    def count(self, now: float) -> int:
        """Values in the window."""
        self._rotate(now)
        return sum(self._total.values()) + sum(self._current.values())

    def quantiles(self, now: float, *qs: float) -> tuple[float | None, ...]:
        """The quantiles ``qs`` (ascending, 0..1) of the window; ``None`` each when it is empty."""
        self._rotate(now)
        merged = dict(self._total)
        for bucket, n in self._current.items():
            merged[bucket] = merged.get(bucket, 0) + n
        if not merged:
            return (None,) * len(qs)
        count = sum(merged.values())
        out: list[float | None] = []
        wanted = iter(qs)
        rank = next(wanted, None)
        seen = 0
        for bucket in sorted(merged):
            seen += merged[bucket]
            while rank is not None and seen > rank * (count - 1):
                out.append(2 * _GAMMA**bucket / (_GAMMA + 1))
                rank = next(wanted, None)
        return tuple(out)

    def _rotate(self, now: float) -> None:
        if now < self._ends_at:
            return
        if self._current:
            self._older.append((self._ends_at, self._current))
            for bucket, n in self._current.items():
                self._total[bucket] = self._total.get(bucket, 0) + n
            self._current = {}
        self._ends_at = (now // SLOT_S + 1) * SLOT_S
        oldest = self._ends_at - self._slots * SLOT_S
        while self._older and self._older[0][0] <= oldest:
            _, counts = self._older.pop(0)
            for bucket, n in counts.items():
                left = self._total[bucket] - n
                if left:
                    self._total[bucket] = left
                else:
                    del self._total[bucket]
