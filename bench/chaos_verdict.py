"""What became of each request of `bench/chaos.py`, held against what the network let happen.

`Timeline` knows what every line, server and DNS was worth at any time; `judge` says what a request
came to. docs/chaos.md says in words what counts.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from bench.chaos_schedule import Health
from bench.wan_traffic import Shot

GOOD_S, POOR_S = 3.0, 12.0
"""A line worked long enough for a request that had it for so long at a stretch: unharmed, or slow
and lossy (a handshake may take that long at 10% loss each way)."""
ALONE_S = 8.0
"""Without any line an answer is due after so long: 5 s for a line to come back, and what it takes
to find out that none is there."""
AFTERMATH_S = 3.0
"""A death is found out and acted upon at most so long after it."""
SAID_S = 6.0
"""That a server has forgotten a connection, with a line that works: it is asked for as long as one
takes that only missed a packet of it."""
_GATEWAY_ERRORS = (502, 503, 504)


class Verdict(StrEnum):
    """What a request came to. Those marked with ! are edged's fault."""

    OK = "ok"
    DARK = "no line"
    """No line worked long enough, and that was said in time."""
    BROKEN_DEAD = "broken: line died"
    """A response that had begun, by the replay table."""
    BROKEN_RESTART = "broken: server restarted"
    BROKEN_POOR = "broken: line worse"
    """The line lost and delayed packets, and was taken for dead."""
    BROKEN_RIGHTLY = "broken by the origin"
    """It broke the response off, and the client could tell."""
    REFUSED = "not repeatable"
    """The server went away with a request that may have been carried out, and must not be repeated
    by the replay table."""
    FAILED = "failed!"
    """A line worked long enough."""
    BROKEN = "broken for nothing!"
    HUNG = "no answer in time!"
    BARE = "an error that says nothing!"
    """Not 502, 503 or 504 with Proxy-Status."""
    SHORT = "wrong but looks whole!"


@dataclass(slots=True)
class Asked:
    """A request and what it should get."""

    shot: Shot
    kind: str
    udp_only: bool
    """Its upstream speaks h3 alone."""
    repeatable: bool
    limit_s: float
    length: int | None = None
    sha256: str | None = None
    tokens: int | None = None
    got: tuple[int, str] = (0, "")
    """Length and SHA-256 of the body that came."""
    log: dict[str, Any] = field(default_factory=dict)
    """What edged wrote of it."""

    @property
    def right(self) -> bool:
        """Whether what came is all that should."""
        if self.tokens is not None:
            return self.shot.lost_and_doubled(self.tokens) == (0, 0)
        return (self.length is None or self.got[0] == self.length) and (
            self.sha256 is None or self.got[1] == self.sha256
        )

    @property
    def carrier(self) -> str | None:
        """Of the response."""
        return self.log.get("carrier")

    @property
    def line(self) -> str | None:
        """That it came over, the last one."""
        path: str | None = self.log.get("path")
        return path.split(">")[0] if path else None

    @property
    def server(self) -> str | None:
        """That gave it."""
        path: str | None = self.log.get("path")
        return path.rpartition("/")[2] if path else None


class Timeline:
    """What was the matter when, as it took effect (`time.monotonic`)."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines: dict[str, list[tuple[float, Health]]] = {
            line: [(-math.inf, Health.GOOD)] for line in lines
        }
        self.restarts: list[tuple[float, float, str]] = []
        """From when a server was told to go until it listened again, and which."""

    def line(self, name: str, at: float, health: Health) -> None:
        """A line is worth this from now on."""
        self._lines[name].append((at, health))

    def worked(self, begin: float, end: float, *, least: Health, udp: bool) -> float:
        """The longest that one line was at least so good without a pause; ``udp``: UDP, too."""
        return max(self._stretch(line, begin, end, least, udp) for line in self._lines.values())

    def worst(self, line: str, begin: float, end: float) -> Health:
        """The least that a line was worth."""
        return min(health for _, _, health in _spans(self._lines[line], begin, end))

    def last(self, begin: float, end: float, *, udp: bool) -> float:
        """When any line last was of use; ``begin`` if none was."""
        found = begin
        for changes in self._lines.values():
            for _, until, health in _spans(changes, begin, end):
                if _worth(health, udp) > Health.DEAD:
                    found = max(found, until)
        return found

    def restarted(self, begin: float, end: float, server: str | None = None) -> bool:
        """Whether a server, or that one, was away."""
        return any(
            at <= end and begin <= until
            for at, until, name in self.restarts
            if server in (None, name)
        )

    def server_back(self, begin: float, end: float, server: str | None) -> float | None:
        """When that server last listened again after it had been away."""
        backs = [b for at, b, name in self.restarts if name == server and begin < at < end]
        return max(backs, default=None)

    def _stretch(
        self,
        changes: Sequence[tuple[float, Health]],
        begin: float,
        end: float,
        least: Health,
        udp: bool,
    ) -> float:
        longest = now = 0.0
        for at, until, health in _spans(changes, begin, end):
            now = now + until - at if _worth(health, udp) >= least else 0.0
            longest = max(longest, now)
        return longest


def _worth(health: Health, udp: bool) -> Health:
    if health is Health.NO_UDP:
        return Health.DEAD if udp else Health.GOOD
    return health


def _spans(
    changes: Sequence[tuple[float, Health]], begin: float, end: float
) -> Iterable[tuple[float, float, Health]]:
    first = bisect_right([at for at, _ in changes], begin) - 1
    for number in range(first, len(changes)):
        at, health = changes[number]
        if at > end:
            return
        until = changes[number + 1][0] if number + 1 < len(changes) else math.inf
        yield max(at, begin), min(until, end), health


def judge(asked: Asked, timeline: Timeline) -> Verdict:
    """What a request that is over came to."""
    shot = asked.shot
    assert shot.ended is not None
    if shot.error is None and shot.status == 200:
        return Verdict.OK if asked.right else Verdict.SHORT
    if shot.error == "timeout":
        return Verdict.HUNG
    if shot.error is not None:
        return _broken(asked, timeline) if shot.status == 200 else Verdict.BARE
    if shot.status not in _GATEWAY_ERRORS or "error=" not in (shot.proxy_status or ""):
        return Verdict.BARE
    if not worked_long_enough(asked, timeline):
        alone_s = shot.ended - timeline.last(shot.due, shot.ended, udp=asked.udp_only)
        return Verdict.DARK if alone_s <= ALONE_S else Verdict.HUNG
    if not asked.repeatable and timeline.restarted(shot.due, shot.ended):
        return Verdict.REFUSED
    return Verdict.FAILED


def worked_long_enough(asked: Asked, timeline: Timeline) -> bool:
    """Whether any line did, from when the request was due until it ended, or would have had to
    wait for one that had worked on."""
    shot = asked.shot
    assert shot.ended is not None
    for least, need_s in ((Health.GOOD, GOOD_S), (Health.POOR, POOR_S)):
        end = max(shot.ended, shot.due + need_s)
        if timeline.worked(shot.due, end, least=least, udp=asked.udp_only) >= need_s:
            return True
    return False


def _broken(asked: Asked, timeline: Timeline) -> Verdict:
    """A response that had begun: over h3 it has to go on over any line that works."""
    if asked.kind == "cut":
        return Verdict.BROKEN_RIGHTLY
    end = asked.shot.ended
    assert end is not None
    begin = max(asked.shot.due, end - AFTERMATH_S)
    if timeline.restarted(begin, end, asked.server):
        return Verdict.BROKEN_RESTART
    answered = asked.shot.answered if asked.shot.answered is not None else asked.shot.due
    back = timeline.server_back(answered, end, asked.server)
    if back is not None:
        # The server that comes back does not know the connection. It shows once a line works.
        unsaid_s = timeline.worked(min(back, end), end, least=Health.GOOD, udp=True)
        return Verdict.BROKEN_RESTART if unsaid_s <= SAID_S else Verdict.BROKEN
    if asked.carrier == "h3":
        need_s = min(AFTERMATH_S, end - begin)
        if timeline.worked(begin, end, least=Health.GOOD, udp=True) >= need_s:
            return Verdict.BROKEN
        poor = timeline.worked(begin, end, least=Health.POOR, udp=True) >= need_s
        return Verdict.BROKEN_POOR if poor else Verdict.BROKEN_DEAD
    health = timeline.worst(asked.line, begin, end) if asked.line else Health.GOOD
    if health is Health.DEAD:
        return Verdict.BROKEN_DEAD
    return Verdict.BROKEN_POOR if health is Health.POOR else Verdict.BROKEN
