"""One flow as the edge sees it: what has arrived, who is asked for more, and when to give up.

Rules, with time and the choice of lines as arguments:

1. A *visit* is one request about the flow over one line; at most one a line. The first opens the
   flow with POST. Later ones say from which byte on they read, and send.
2. Whichever visit brings the next byte, it is forwarded; what comes again is dropped. Heads of
   later visits say where their bytes begin; the first one's is the response's.
3. When a line of a visit falls silent and no visit is on a better one, the best other line is
   asked. The silent one is not given up: whoever is first has won.
4. Until the response has begun and the relay has all of the request, a visit is a POST: it opens
   the flow if the first never arrived, joins it otherwise, and executes nothing twice. Later it is
   a GET.
5. When the last visit ends before the response does, the best usable line is asked, at once the
   first time. `FRUITLESS` visits in a row that bring nothing new end the flow: it is broken where
   the relay is, and so is the response. Without a usable line it waits for `LINGER_S`, as long as
   the relay keeps it. Before the response has begun, giving up is as if the path had gone DOWN,
   unless no visit can have opened the flow.
6. A relay that does not know the flow has restarted: before the first byte of the response the
   request may be repeated as if its path had gone DOWN, after it the response is broken.
7. The response is complete when a visit ends cleanly, or the relay says so in a datagram: a relay
   ends only what it has seen the end of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from policies.model import Failure, Outcome

LINGER_S = 30.0
"""How long a relay keeps a flow that no line carries."""
FRUITLESS = 3
VISITS_MOST = 2
"""At the same time: the line in use, and another."""
PAUSE_S = 0.1
"""Before the second and later fruitless visits; doubles."""


class Ask(NamedTuple):
    """Make a visit over ``line``."""

    line: str
    opens: bool
    """With POST: it sends what the relay has not taken yet, and opens the flow if need be."""
    offset: int
    """The first response byte wanted."""
    pause_s: float = 0.0


class Give(NamedTuple):
    """The flow is over without a complete response."""

    failure: Failure


class Wait(NamedTuple):
    """No line is usable: ask again when one is, until `FlowClient.expired`."""

    until: float


Command = Ask | Give | Wait | None


class _Visit:
    __slots__ = ("at", "fruitful", "silent")

    def __init__(self) -> None:
        self.at: int | None = None
        """The offset of the next byte that comes; ``None`` before its head."""
        self.fruitful = False
        self.silent = False


class FlowClient:
    """See the module. ``lines`` are always the usable ones, best first."""

    __slots__ = (
        "_fruitless",
        "_given",
        "_harmless",
        "_visits",
        "_waits_until",
        "begun",
        "complete",
        "received",
        "uploaded",
    )

    def __init__(self) -> None:
        self.received = 0
        """Response bytes forwarded: the offset of the next."""
        self.begun = False
        """The response's head was forwarded."""
        self.uploaded = False
        """The relay has all of the request."""
        self.complete = False
        self._visits: dict[str, _Visit] = {}
        self._fruitless = 0
        self._given = False
        self._harmless = True
        """No visit that has ended can have opened the flow."""
        self._waits_until: float | None = None

    @property
    def lines(self) -> tuple[str, ...]:
        """Those with a visit, the oldest first."""
        return tuple(self._visits)

    @property
    def over(self) -> bool:
        """Nothing is asked any more."""
        return self.complete or self._given

    @property
    def waits_until(self) -> float | None:
        """When it ends if no line comes back; ``None``: it does not wait for one."""
        return self._waits_until

    # -- asking ----------------------------------------------------------------------------------

    def ask(self, line: str, pause_s: float = 0.0) -> Ask:
        """A visit over ``line`` is made."""
        self._visits[line] = _Visit()
        self._waits_until = None
        return Ask(line, not (self.begun and self.uploaded), self.received, pause_s)

    def silent(self, line: str, lines: Sequence[str]) -> Ask | None:
        """``line`` is silent for longer than it should be, and ``lines`` are not."""
        visit = self._visits.get(line)
        if visit is None or self.over:
            return None
        visit.silent = True
        if any(not v.silent for v in self._visits.values()) or len(self._visits) >= VISITS_MOST:
            return None
        other = next((name for name in lines if name not in self._visits), None)
        return None if other is None else self.ask(other)

    def second(self, lines: Sequence[str]) -> Ask | None:
        """Redundancy is wanted: the best line without a visit is asked, too. Visits over lines that
        are silent do not count.
        """
        if self.over or sum(not v.silent for v in self._visits.values()) >= VISITS_MOST:
            return None
        other = next((name for name in lines if name not in self._visits), None)
        return None if other is None else self.ask(other)

    def heard(self, line: str) -> None:
        """``line`` is not silent any more."""
        visit = self._visits.get(line)
        if visit is not None:
            visit.silent = False

    def surplus(self, best: str) -> tuple[str, ...]:
        """Visits that are not needed while ``best``'s has all that was forwarded."""
        visit = self._visits.get(best)
        if visit is None or visit.silent or (self.begun and visit.at != self.received):
            return ()
        return tuple(line for line in self._visits if line != best)

    def restart(self, lines: Sequence[str], now: float) -> Ask | Wait:
        """No visit can be relied on any more: the flow is asked for from what is missing on."""
        self._visits.clear()
        if lines:
            return self.ask(lines[0])
        self._waits_until = now + LINGER_S
        return Wait(self._waits_until)

    def drop(self, line: str) -> None:
        """The visit over ``line`` was given up."""
        self._harmless = False
        self._visits.pop(line, None)

    # -- what visits bring -----------------------------------------------------------------------

    def head(self, line: str, offset: int) -> bool:
        """A visit's head: its bytes begin at ``offset``. Whether it is the response's first."""
        visit = self._visits.get(line)
        if visit is None or self.over:
            return False
        visit.at = offset
        first, self.begun = not self.begun, True
        if first:
            visit.fruitful = True
            self._fruitless = 0
        return first

    def data(self, line: str, data: bytes) -> bytes:
        """A visit's bytes: the part that is new."""
        visit = self._visits.get(line)
        if visit is None or visit.at is None or self.over:
            return b""
        start = visit.at
        visit.at = end = start + len(data)
        if end <= self.received or start > self.received:
            return b""
        new = data if start == self.received else data[self.received - start :]
        self.received = end
        visit.fruitful = True
        self._fruitless = 0
        return new

    def repeated(self, line: str, offset: int, data: bytes) -> bytes:
        """Bytes from ``offset`` that a visit brought once more: the part that is new."""
        visit = self._visits.get(line)
        end = offset + len(data)
        if visit is None or self.over or not self.begun or not offset <= self.received < end:
            return b""
        new = data[self.received - offset :]
        self.received = end
        visit.fruitful = True
        self._fruitless = 0
        return new

    def finished(self, offset: int) -> bool:
        """The response is known to end at ``offset``: whether it is complete now."""
        if self.over or not self.begun or self.received != offset:
            return False
        self.complete = True
        self._visits.clear()
        return True

    def ended(self, line: str) -> bool:
        """A visit ended cleanly: whether the response is complete now."""
        visit = self._visits.pop(line, None)
        if visit is None or self.over or visit.at != self.received:
            return False
        self.complete = True
        return True

    def failed(self, line: str, failure: Failure, lines: Sequence[str], now: float) -> Command:
        """A visit ended otherwise."""
        visit = self._visits.pop(line, None)
        if visit is None or self.over:
            return None
        self._harmless = self._harmless and failure.unprocessed
        if self._visits:
            return None
        if not failure.path_down and not visit.fruitful:
            self._fruitless += 1
        if self._fruitless >= FRUITLESS:
            return self._give(self._failure(failure.outcome, failure.detail))
        pause_s = PAUSE_S * 2 ** (self._fruitless - 2) if self._fruitless > 1 else 0.0
        others = [name for name in lines if name != line] or list(lines)
        if others:
            return self.ask(others[0], pause_s)
        self._waits_until = now + LINGER_S
        return Wait(self._waits_until)

    def refused(self, line: str, status: int, detail: str) -> Give | None:
        """The relay's own answer to a visit: it does nothing for us."""
        self._visits.pop(line, None)
        if self.over or (self._visits and status != 404):
            return None
        if status in (404, 410):
            text = "the relay does not know the flow any more: it has ended, or was restarted"
            return self._give(Failure(Outcome.RESET, text, path_down=True))
        outcome = Outcome.BUSY if status in (429, 503) else Outcome.RESET
        return self._give(self._failure(outcome, detail))

    # -- lines and time --------------------------------------------------------------------------

    def line_back(self, lines: Sequence[str]) -> Ask | None:
        """Some line is usable again."""
        if self.over or self._visits or self._waits_until is None or not lines:
            return None
        return self.ask(lines[0])

    def expired(self, now: float) -> Give | None:
        """No line came back in time."""
        if self._waits_until is None or now < self._waits_until or self.over:
            return None
        text = f"no line to the relay came back within {LINGER_S:.0f} s"
        return self._give(Failure(Outcome.TIMEOUT, text, path_down=True))

    def _failure(self, outcome: Outcome, detail: str) -> Failure:
        """What became of the exchange: no visit proves it of another that nothing was executed."""
        unprocessed = self._harmless and not self.begun
        return Failure(outcome, detail, unprocessed, path_down=not unprocessed)

    def _give(self, failure: Failure) -> Give:
        self._given = True
        self._visits.clear()
        return Give(failure)
