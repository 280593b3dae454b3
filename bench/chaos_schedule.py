"""What happens in `bench/chaos.py`, and when: drawn from a seed, before anything runs.

Kinds are dealt from a deck that is shuffled anew when it is empty, so that two minutes have one of
each. A line suffers from one thing at a time, lines, servers and DNS independently of each other.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from tests.netns.impair import Burst

QUIET_S = 12.0
"""At the beginning, and at the end, nothing happens."""
_PAUSE_S = (1.5, 5.0)
"""Between the beginnings of two events."""
_REST_S = (2.0, 8.0)
"""What a line, a server or DNS has between two events of its own."""
ALL = "*"
DNS = "dns"


class Health(IntEnum):
    """What a line is worth while an event lasts."""

    DEAD = 0
    POOR = 1
    """It carries everything, slowly or with loss."""
    NO_UDP = 2
    GOOD = 3


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of event: how long it lasts, and what it does to which directions of a line."""

    name: str
    lasts_s: tuple[float, float]
    health: Health = Health.DEAD
    direction: str = "both"
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of `Impairment`; ``delay_s`` comes on top of the line's."""


_DEAD = {"blackhole": True}
FLAP, DARK = "flap", "all lines dead"
LINE_KINDS = (
    Kind("dead", (2, 15), changes=_DEAD),
    Kind("dead upwards", (2, 12), direction="up", changes=_DEAD),
    Kind("dead downwards", (2, 12), direction="down", changes=_DEAD),
    Kind("brown-out", (4, 15), Health.POOR, changes={"loss": 0.1, "delay_s": 0.15}),
    Kind(
        "bursts",
        (4, 15),
        Health.POOR,
        changes={"burst": Burst(0.01 / 1.8, 0.01 / 0.2, step_s=0.01)},
    ),
    Kind("UDP dead", (4, 15), Health.NO_UDP, changes={"udp_blocked": True}),
    Kind(FLAP, (8, 16), changes=_DEAD),
    Kind(DARK, (2, 12), changes=_DEAD),
)
RESTARTS = (Kind("server killed", (0.3, 4)), Kind("server restarted", (0.3, 2)))
DNS_KINDS = (Kind("DNS silent", (8, 30)), Kind("DNS killed", (8, 30)))
KINDS = {kind.name: kind for kind in (*LINE_KINDS, *RESTARTS, *DNS_KINDS)}
_DECK = [*KINDS, "dead", "brown-out"]


@dataclass(frozen=True, slots=True)
class Event:
    """From ``at_s`` until ``until_s`` of a run something is the matter with a line, a server (its
    name) or DNS."""

    at_s: float
    until_s: float
    kind: str
    target: str
    turns: tuple[float, ...] = ()
    """Of a line that flaps: when it comes back and dies again, in turn."""

    def __str__(self) -> str:
        return f"{self.at_s:7.1f} to {self.until_s:6.1f} s  {self.target:4} {self.kind}"


@dataclass(frozen=True, slots=True)
class Step:
    """A moment at which something changes: an event begins or ends, or a line that flaps turns."""

    at_s: float
    event: Event
    begins: bool


def schedule(
    seed: int, seconds: float, lines: Sequence[str] = ("a", "b"), servers: int = 2
) -> list[Event]:
    """All events of a run, by beginning; the same for the same arguments."""
    rng = random.Random(f"chaos/{seed}")
    free = dict.fromkeys([*lines, *(f"e{n}" for n in range(1, servers + 1)), DNS], QUIET_S)
    at, end, events = QUIET_S, seconds - QUIET_S, list[Event]()
    deck: list[str] = []
    while True:
        if not deck:
            deck = _DECK.copy()
            rng.shuffle(deck)
        kind = KINDS[deck.pop()]
        at += rng.uniform(*_PAUSE_S)
        begin, hit, target = _place(rng, kind, at, free, lines)
        until = min(begin + rng.uniform(*kind.lasts_s), end)
        if at >= end:
            return sorted(events, key=lambda event: event.at_s)
        if until - begin < kind.lasts_s[0] / 2:
            continue
        turns = tuple(_turns(rng, begin, until)) if kind.name == FLAP else ()
        events.append(Event(begin, until, kind.name, target, turns))
        for one in hit:
            free[one] = until + rng.uniform(*_REST_S)


def _place(
    rng: random.Random, kind: Kind, at: float, free: dict[str, float], lines: Sequence[str]
) -> tuple[float, list[str], str]:
    """When, whom, and what that is called: of those that it may hit the first that is free."""
    if kind.name == DARK:
        return max(at, *(free[line] for line in lines)), list(lines), ALL
    if kind in DNS_KINDS:
        return max(at, free[DNS]), [DNS], DNS
    if kind in RESTARTS:
        # One server at a time: there is always one.
        servers = [name for name in free if name not in lines and name != DNS]
        return max(at, *(free[name] for name in servers)), servers, rng.choice(servers)
    wanted = rng.sample(list(lines), len(lines))
    line = min(wanted, key=lambda name: max(at, free[name]))
    return max(at, free[line]), [line], line


def _turns(rng: random.Random, at: float, until: float) -> Iterator[float]:
    while (at := at + rng.uniform(0.7, 3.0)) < until:
        yield at


def steps(events: Sequence[Event]) -> list[Step]:
    """All moments, in order; what ends comes before what begins."""
    found = []
    for event in events:
        begins = True
        for at_s in (event.at_s, *event.turns):
            found.append(Step(at_s, event, begins))
            begins = not begins
        found.append(Step(event.until_s, event, False))
    return sorted(found, key=lambda step: (step.at_s, step.begins))
