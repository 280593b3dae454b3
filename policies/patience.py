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
UNPROVEN_S: Final = 4.0
"""Trusted before anything is known: many servers wait for 5 s."""


class Patience:
    """What is known of one server. Times in s since the last exchange on a connection ended."""

    __slots__ = ("_announced_s", "_observed_s", "_outlived_s")

    def __init__(self) -> None:
        self._announced_s: float | None = None
        self._observed_s: float | None = None
        self._outlived_s = 0.0

    def announced(self, seconds: float) -> None:
        """The server said how long it waits (``Keep-Alive: timeout=N``)."""
        self._announced_s = seconds

    def closed(self, idle_s: float) -> None:
        """It closed a connection that had rested for ``idle_s``, or a request given to such a one
        was lost."""
        if idle_s >= LEAST_S and (self._observed_s is None or idle_s < self._observed_s):
            self._observed_s = idle_s
            self._outlived_s = min(self._outlived_s, idle_s)

    def outlived(self, idle_s: float) -> None:
        """A connection that has rested for ``idle_s`` is open."""
        self._outlived_s = max(self._outlived_s, idle_s)
        if self._observed_s is not None and idle_s > FORGIVEN * self._observed_s:
            self._observed_s = None

    @property
    def seconds(self) -> float | None:
        """The patience; ``None`` while nothing is known."""
        known = [s for s in (self._announced_s, self._observed_s) if s is not None]
        return min(known) if known else None

    def trusted_s(self, rtt_s: float) -> float:
        """How long a connection may rest and be given any request."""
        seconds = self.seconds
        if seconds is None:
            return max(0.0, max(UNPROVEN_S, SHARE * self._outlived_s) - rtt_s)
        return max(0.0, SHARE * seconds - rtt_s)
