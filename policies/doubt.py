"""How much evidence a doubt may buy.

A doubt is silence that is no verdict yet, or a verdict that a sign of life may revoke. On a lossy
line every lost packet raises one, so that what follows it up must be worth its bytes. All who ask
about a line share what is left of its budget, and who waits decides how much that is:

| an exchange | a doubt buys | paid from |
| --- | --- | --- |
| waits on some line, or did a moment ago | all that can be asked, at once | the cap of the line |
| does not wait | one packet; while it is unanswered another, and another | the idle purse |

Routine probes and the purse together stay below 10 MB a day. The purse holds enough to convict a
line that died and to see it back; when it is empty, the routine goes on alone. Pure: time is an
argument.
"""

from __future__ import annotations

from typing import Final

from policies.budget import Bucket

IDLE_BYTES_S: Final = 0.9 * 10e6 / 86_400
"""What is sent on an idle line in the mean: 10 MB a day, less what connections do by themselves."""
DOUBT_BYTES_S: Final = IDLE_BYTES_S / 4
ROUTINE_BYTES_S: Final = IDLE_BYTES_S - DOUBT_BYTES_S
PURSE_BYTES: Final = 12_000.0
"""One request over a fresh connection, and some packets."""
FIRST_WAIT_S: Final = 0.4
"""The answer to the first packet ends most doubts: it is waited for."""
NEXT_WAIT_S: Final = 0.15
HEARD_WAIT_S: Final = 0.5
"""Between packets when all are answered and only a verdict is left to be revoked."""
SWIFT: Final = 8
"""So many packets follow swiftly; then the wait doubles each time, so that the purse is full again
when there is a sign of life."""
LONGEST_WAIT_S: Final = 60.0


class Inquiry:
    """The doubt about one line that nobody waits for. ``due``: when to ask next, if at all."""

    __slots__ = ("asked", "due", "purse")

    def __init__(self) -> None:
        self.purse = Bucket(per_s=DOUBT_BYTES_S, capacity=PURSE_BYTES)
        self.due: float | None = None
        self.asked = 0
        """How many packets this doubt has bought."""

    @property
    def open(self) -> bool:
        """Whether there is a doubt."""
        return self.due is not None

    def doubt(self, now: float) -> None:
        """There is reason for doubt; nothing changes if there was already."""
        if self.due is None:
            self.due, self.asked = now, 0

    def settle(self) -> None:
        """There is none any more."""
        self.due = None

    def hasten(self, now: float) -> None:
        """Something new happened: what was waited for may be asked sooner."""
        if self.due is not None:
            self.due, self.asked = now, 0

    def buy(self, cost_bytes: int, now: float, *, silent: bool = True) -> bool:
        """Pay for one question at ``due``; says whether the purse sufficed. Sets the next time.

        ``silent``: something is unanswered; else only a verdict is left.
        """
        if not self.purse.take(now, cost_bytes):
            missing = cost_bytes - self.purse.available(now)
            self.due = now + max(NEXT_WAIT_S, missing / DOUBT_BYTES_S)
            return False
        self.asked += 1
        wait_s = FIRST_WAIT_S if self.asked == 1 else NEXT_WAIT_S
        wait_s = (wait_s if silent else HEARD_WAIT_S) * 2 ** min(max(0, self.asked - SWIFT), 9)
        self.due = now + min(wait_s, LONGEST_WAIT_S)
        return True
