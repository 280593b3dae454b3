"""How many attempts one exchange may make, and which of them its upstream's budget pays for.

With ``max_attempts`` starts, races and hedges included, it is over. Those do not count that put no
load on the upstream: a race that is pending or was cancelled before it was sent, a last resort that
was not, an attempt whose path went DOWN, and the first `MORE_REFUSED` whose connection was refused
where no path is untried: who restarts is back in a second or two. Lines may die faster than that; a
multiple bounds them, too.

Free of the retry budget are attempts after a path went DOWN, after a failure that is the line's,
after one of which nothing was sent, and after silence of its connection: they put no second load on
the upstream, and a line that dies under load must not cost answers while other paths are UP. So is
a path not yet tried, after a refusal unprocessed; to ask again where it was refused takes a token
and may overdraw the bucket by its capacity. The first two repeats of a request whose connection
ended, by word or because nothing listens any more, may overdraw it by several: a server that goes
takes all of its connections at once, over whichever line. All other retries take a token or end.
"""

from __future__ import annotations

from policies.budget import Bucket
from policies.model import Blame, Failure, Outcome

MOST_STARTS = 4
"""Times ``max_attempts``, whatever the starts came to."""
MORE_REFUSED = 2
"""With the pauses before them they make 1.5 s of a refusal."""
ENDED_OVERDRAFT = 4.0
"""Times the capacity of the bucket: 80 requests more at once, where 20 tokens fit."""
_ENDS = (Outcome.RESET, Outcome.REFUSED)


class Allowance:
    """See the module. ``retries`` is the upstream's."""

    __slots__ = ("_free", "_most", "_retries", "starts")

    def __init__(self, max_attempts: int, retries: Bucket) -> None:
        self._most = max_attempts
        self._retries = retries
        self._free = 0
        """Starts that do not count."""
        self.starts = 0

    def spent(self, pending: int) -> str:
        """Why no further attempt may start, with so many pending; empty if one may."""
        most = self._most
        if self.starts - self._free - pending >= most or self.starts >= MOST_STARTS * most:
            return f"all {most} attempts are used up"
        return ""

    def dropped(self, count: int) -> None:
        """So many were cancelled before they were sent."""
        self._free += count

    def ended(self, failure: Failure, *, unsent: bool, resort: bool, untried: bool) -> None:
        """One failed. ``resort``: it was a last resort. ``untried``: another path is."""
        used, refused = self.starts - self._free, failure.outcome is Outcome.REFUSED
        one_more = refused and not untried and used == self._most > self.starts - MORE_REFUSED
        no_load = failure.path_down or failure.carrier_down
        self._free += no_load or (unsent and (resort or one_more))

    def pays(
        self, failure: Failure, now: float, *, line_failed: bool, unsent: bool, untried: bool
    ) -> bool:
        """Whether the budget bears another attempt after ``failure``; it is charged."""
        unprocessed = unsent or failure.unprocessed
        if unsent or (unprocessed and untried) or line_failed:
            return True
        if failure.outcome is Outcome.TIMEOUT or failure.blame is Blame.LINE:
            return True
        went = failure.outcome in _ENDS and self.starts - self._free <= 2
        overdraft = 1.0 if unprocessed else ENDED_OVERDRAFT * went
        return self._retries.take(now, overdraft=overdraft * self._retries.capacity)
