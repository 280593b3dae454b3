"""How long a server keeps connections that nobody uses, learnt from what it says and does.

A server that closes an idle connection may do so while a request is on its way to it. A request
that must not be repeated therefore gets no connection that has rested longer than `SHARE` of the
server's patience less one round trip. While no patience is known, what connections have outlived
stands for it.
"""

from __future__ import annotations

from typing import Final

SHARE: Final = 0.8
"""Servers check their timers coarsely, and clocks differ."""
FORGIVEN: Final = 1.25
"""A connection still open after so many times the patience proves it wrong (a restart, a limit on
the connection's age)."""
LEAST_S: Final = 0.2
"""What is closed sooner was not closed for being idle."""
LOST_KEPT_S: Final = 600.0
"""How long a lost request is remembered: that nothing is heard of such a connection proves nothing,
so only time can tell."""
UNPROVEN_S: Final = 4.0
"""Trusted before anything is known: many servers wait for 5 s."""


class Patience:
    """What is known of one server. Times in s since the last exchange on a connection ended."""

    __slots__ = ("_announced_s", "_closed_s", "_lost", "_outlived_s")

    def __init__(self) -> None:
        self._announced_s: float | None = None
        self._closed_s: float | None = None
        self._lost: tuple[float, float] | None = None
        """After what rest, and until when that counts."""
        self._outlived_s = 0.0

    def announced(self, seconds: float) -> None:
        """The server said how long it waits (``Keep-Alive: timeout=N``)."""
        self._announced_s = seconds

    def closed(self, idle_s: float) -> None:
        """It closed a connection that had rested for ``idle_s``."""
        if idle_s >= LEAST_S and (self._closed_s is None or idle_s < self._closed_s):
            self._closed_s = idle_s
            self._outlived_s = min(self._outlived_s, idle_s)

    def lost(self, idle_s: float, now: float) -> None:
        """A request given to a connection that had rested for ``idle_s`` was lost with it: the
        server, or something on the way, had dropped it without a word."""
        if idle_s >= LEAST_S:
            known = self._lost_s(now)
            self._lost = (idle_s if known is None else min(known, idle_s), now + LOST_KEPT_S)

    def outlived(self, idle_s: float) -> None:
        """A connection that has rested for ``idle_s`` was not closed."""
        self._outlived_s = max(self._outlived_s, idle_s)
        if self._closed_s is not None and idle_s > FORGIVEN * self._closed_s:
            self._closed_s = None

    def known_s(self, now: float) -> float | None:
        """The patience; ``None`` while nothing is known."""
        times = (self._announced_s, self._closed_s, self._lost_s(now))
        return min((seconds for seconds in times if seconds is not None), default=None)

    def trusted_s(self, rtt_s: float, now: float) -> float:
        """How long a connection may rest and be given any request."""
        seconds = self.known_s(now)
        if seconds is None:
            return max(0.0, max(UNPROVEN_S, SHARE * self._outlived_s) - rtt_s)
        return max(0.0, SHARE * seconds - rtt_s)

    def _lost_s(self, now: float) -> float | None:
        return self._lost[0] if self._lost is not None and now < self._lost[1] else None
