"""How long one exchange waits while nothing of it is under way, and while no path can be reached.

Under way is what was handed to a connection and has not ended.

| state | event | state |
| --- | --- | --- |
| under way | it ends without an answer | waiting |
| waiting, dawn | every path is DOWN | dark |
| dark | a path can be reached again | dawn |
| any | something is sent | under way |

Who waits is bound by the connects themselves: each fails in time. After ``patience_s`` nothing is
begun again where it failed before. In the dark, where nothing may fail, ``patience_s`` is all there
is: from when it began to wait, but `LEAST_LEFT` of it from nightfall. A half more is added at the
first dawn, for what was begun then, and never again: lines that flap prolong nothing.
"""

from __future__ import annotations

LEAST_LEFT = 0.2


class Wait:
    """See the module. Time is an argument."""

    __slots__ = ("_dawned", "_patience_s", "dark", "end_at", "since")

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self.since: float | None = None
        """Since when nothing is under way; ``None``: something is."""
        self.dark = False
        """Every path is DOWN."""
        self._dawned = False
        self.end_at: float | None = None
        """When it is over; ``None``: there was always a path while it lasted."""

    def begin(self, since: float) -> None:
        """Nothing is under way any more, and nothing of use was since then."""
        if self.since is None:
            self.since = since

    def sent(self) -> None:
        """Something is under way."""
        self.since = self.end_at = None
        self.dark = self._dawned = False

    def darken(self, now: float) -> None:
        """Every path is DOWN."""
        if self.since is None or self.dark:
            return
        self.dark = True
        if self.end_at is None:
            self.end_at = max(self.since + self._patience_s, now + LEAST_LEFT * self._patience_s)

    def dawn(self) -> None:
        """A path can be reached again."""
        self.dark = False
        if self.end_at is not None and not self._dawned:
            self._dawned = True
            self.end_at += self._patience_s / 2

    def is_over(self, now: float) -> bool:
        """Whether ``end_at`` has come."""
        return self.end_at is not None and now >= self.end_at

    def worn_out(self, now: float) -> bool:
        """Whether it has lasted so long that nothing is tried again."""
        return self.since is not None and now - self.since >= self._patience_s
