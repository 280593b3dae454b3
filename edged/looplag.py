"""How late the event loop runs: a busy daemon must not convict the network.

A timer due every `INTERVAL_S` notes how late it was called. The detector moves its deadlines by
that lag, and metrics show it.

After a long stall (a stopped process, a host without CPU) overdue timers run before the answers
that wait in the sockets are read: what they report is about this host (`LoopLag.honest`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from policies.detector import STALL_S
from policies.model import Kind, Outcome, Sample

INTERVAL_S = 0.05
WINDOW_S = 10.0
_TIMED_BY_KERNEL = frozenset((Kind.ICMP, Kind.TCP, Kind.KERNEL))


class LoopLag:
    """Measures the running loop's lag; start and stop it in that loop."""

    __slots__ = (
        "_due",
        "_handle",
        "_last_s",
        "_recent",
        "_stalled_until",
    )

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=round(WINDOW_S / INTERVAL_S))
        self._last_s = 0.0
        self._due = 0.0
        self._stalled_until = float("-inf")
        """The end of the latest long stall."""
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, in the running loop."""
        self.stop()
        self._arm(asyncio.get_running_loop(), time.monotonic())

    def stop(self) -> None:
        """End; the figures stay."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    @property
    def last_s(self) -> float:
        """The newest measured lag."""
        return self._last_s

    @property
    def max_s(self) -> float:
        """The greatest lag in the window."""
        return max(self._recent, default=0.0)

    @property
    def p99_s(self) -> float:
        """The lag that 99 of 100 measurements in the window stayed at or under."""
        ordered = sorted(self._recent)
        return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] if ordered else 0.0

    def honest(self, sample: Sample, now: float) -> Sample | None:
        """``sample`` without what this host's own stall did to it; ``None`` if nothing is left.

        A timeout that ran out meanwhile says nothing; an answer came, but nobody knows when.
        """
        self._note(now)
        if sample.sent_at >= self._stalled_until:
            return sample
        if sample.outcome is Outcome.TIMEOUT:
            return None
        if sample.rtt_s is None or sample.kind in _TIMED_BY_KERNEL:
            return sample
        return sample._replace(rtt_s=None)

    def _note(self, now: float) -> None:
        if self._handle is not None and now - self._due > STALL_S:
            self._stalled_until = now

    def _arm(self, loop: asyncio.AbstractEventLoop, now: float) -> None:
        # Not loop.time(): uvloop reads its clock once an iteration, which hides the very lag.
        self._due = now + INTERVAL_S
        self._handle = loop.call_later(INTERVAL_S, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        self._note(now)
        self._last_s = max(0.0, now - self._due)
        self._recent.append(self._last_s)
        self._arm(loop, now)
