"""Packet loss as decayed counts with a bound that admits what is not known yet.

What is scored is the upper end of the 95% score interval of Wilson (1927), "Probable inference,
the law of succession": a Beta estimate that starts with z^2/2 = 1.9 packets lost and as many
delivered, in closed form. 0 of 100 lost still allows 3.7% (a uniform prior's exact posterior:
3.6%, Jeffreys's: 2.5%); 0 of 5 allows 43%.

Two memories run side by side. The long one has more data and therefore the tighter bound; it
counts until the short one contradicts it (their intervals no longer meet): then the line has
changed, and the short one counts.

ICMP is counted apart, because many hosts limit its rate. It is added to the rest while it does not
contradict it, and without any other evidence there is no loss estimate at all.
"""

from __future__ import annotations

from math import sqrt
from typing import Final

SHORT_HALF_LIFE_S: Final = 10.0
LONG_HALF_LIFE_S: Final = 120.0
_Z: Final = 1.959964
_Z2: Final = _Z * _Z


def loss_interval(lost: float, total: float) -> tuple[float, float]:
    """The 95% interval of a loss ratio after ``lost`` of ``total`` packets; (0, 1) without any."""
    if total <= 0:
        return 0.0, 1.0
    centre = lost + _Z2 / 2
    spread = _Z * sqrt(max(0.0, lost * (total - lost) / total) + _Z2 / 4)
    scale = total + _Z2
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


class DecayedCounts:
    """Packets lost and in total, each halved every ``half_life_s``."""

    __slots__ = ("_at", "_half_life_s", "_lost", "_total")

    def __init__(self, half_life_s: float) -> None:
        self._half_life_s = half_life_s
        self._at = 0.0
        self._lost = 0.0
        self._total = 0.0

    def add(self, lost: int, total: int, now: float) -> None:
        """Count ``total`` packets of which ``lost`` were lost."""
        self.read(now)
        self._lost += lost
        self._total += total

    def read(self, now: float) -> tuple[float, float]:
        """(lost, total) as they count at ``now``."""
        if now > self._at:
            if self._total:
                keep = 0.5 ** ((now - self._at) / self._half_life_s)
                self._lost *= keep
                self._total *= keep
            self._at = now
        return self._lost, self._total


class LossEstimate:
    """Loss of one path from data packets, with ICMP as a second voice."""

    __slots__ = ("_data", "_icmp")

    def __init__(self) -> None:
        self._data = (DecayedCounts(SHORT_HALF_LIFE_S), DecayedCounts(LONG_HALF_LIFE_S))
        self._icmp = (DecayedCounts(SHORT_HALF_LIFE_S), DecayedCounts(LONG_HALF_LIFE_S))

    def add(self, lost: int, total: int, now: float, *, icmp: bool = False) -> None:
        """Count ``total`` packets of which ``lost`` were lost."""
        short, long = self._icmp if icmp else self._data
        short.add(lost, total, now)
        long.add(lost, total, now)

    def bounds(self, now: float) -> tuple[float, float] | None:
        """The 95% interval of the loss ratio at ``now``, or ``None`` without enough to say one."""
        short, long = (self._pooled(i, now) for i in (0, 1))
        if long is None:
            return None
        if short is not None and (short[0] > long[1] or short[1] < long[0]):
            return short
        return long

    def _pooled(self, memory: int, now: float) -> tuple[float, float] | None:
        lost, total = self._data[memory].read(now)
        if total < 0.01:
            return None
        data = loss_interval(lost, total)
        icmp_lost, icmp_total = self._icmp[memory].read(now)
        icmp = loss_interval(icmp_lost, icmp_total)
        if icmp[0] > data[1] or icmp[1] < data[0]:
            return data
        return loss_interval(lost + icmp_lost, total + icmp_total)
