"""Carries out `policies.carriers` for one pool: whose shelf a request takes from, and what else
should be open.

What is measured comes from real requests (`observe`) and from the path's estimate; the choice is
made anew once a second and whenever a carrier comes or goes.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from edged.upstream.carriers import PREFERENCE
from edged.upstream.connection import Connection
from edged.upstream.pool_types import PoolTools
from edged.upstream.shelf import UNLIMITED, Shelf
from policies.carriers import (
    EXPLORE_EVERY,
    GROUPS,
    H1_CONNECTIONS_MAX,
    H2_CONNECTIONS_MAX,
    Choice,
    Chooser,
    Facts,
    Load,
)
from policies.model import Carrier, Path

LOSSY = 0.002
"""Loss from which it is worth a packet more to learn of it sooner."""
_H1_ALONE = frozenset((Carrier.H1,))
_PEAK_KEPT = 0.95
"""Of the greatest concurrency, from one second to the next."""


class Chosen(Protocol):
    """What a pool shows to its choosing."""

    path: Path
    connections: OrderedDict[Connection, bool]
    live: dict[Carrier, int]
    shelves: dict[Carrier, Shelf]


class Choosing:
    """See the module."""

    def __init__(self, pool: Chosen, tools: PoolTools) -> None:
        self._pool = pool
        self._tools = tools
        self._chooser = Chooser(PREFERENCE)
        self._peak = 0.0
        self._turn = 0
        self._usable: frozenset[Carrier] = frozenset()
        self.blocked: frozenset[Carrier] = frozenset()
        """Carriers that do not work on this path although others do."""
        every = tuple(pool.shelves.values())
        self.orders: tuple[tuple[Shelf, ...], ...] = (every,) * GROUPS
        """By group: the shelves to take from, best first."""
        self.choice: Choice
        self.rtt_s = 0.0
        """Of the path; 0 while it is not known."""
        self.lossy = False
        """Packets are lost there."""

    def refresh(self, now: float) -> None:
        """Choose anew."""
        pool, tools = self._pool, self._tools
        open_now = {carrier for carrier, count in pool.live.items() if count}
        known = tools.carriers.usable(pool.path, now) | open_now
        usable = known - self.blocked or known  # the last one is never given up
        facts = self._facts()
        self.rtt_s = 0.0 if facts is None else facts.rtt_s
        if usable == _H1_ALONE == self._usable:
            return  # nothing to choose, and nothing to share
        self._usable = usable
        in_flight = sum(connection.in_flight for connection in pool.connections)
        self._peak = max(float(in_flight), self._peak * _PEAK_KEPT)
        paced = tools.paced()
        beside = max(0.0, self._peak / H2_CONNECTIONS_MAX - 1)
        loads = {
            Carrier.H3: Load(paced=False),
            Carrier.H2: Load(beside, paced=paced),
            Carrier.H1: Load(paced=paced),
        }
        self._expect_loss(facts is not None and facts.loss >= LOSSY)
        self.choice = choice = self._chooser.choose(facts, usable, loads, now)
        shelves = pool.shelves
        self.orders = tuple(tuple(shelves[carrier] for carrier in order) for order in choice.orders)
        streams = choice.streams
        shelves[Carrier.H2].set_limit(UNLIMITED if streams is None else streams)

    def _expect_loss(self, lossy: bool) -> None:
        if lossy is not self.lossy:
            self.lossy = lossy
            for connection in self._pool.connections:
                connection.expect_loss(expected=lossy)

    def _facts(self) -> Facts | None:
        estimate = self._tools.estimate(self._pool.path.name)
        if estimate is None or estimate.rtt_s is None:
            return None
        rttvar_s = estimate.rttvar_s
        return Facts(
            estimate.rtt_s,
            estimate.rtt_s / 8 if rttvar_s is None else rttvar_s,
            estimate.loss_least or 0.0,
            estimate.goodput_bps,
        )

    def order(self, group: int) -> tuple[Shelf, ...]:
        """Where a request of ``group`` looks for its connection; now and then elsewhere."""
        self._turn += 1
        if self._turn >= EXPLORE_EVERY:
            self._turn = 0
            for carrier in self.choice.explore[group]:
                shelf = self._pool.shelves[carrier]
                if shelf.free:
                    return (shelf, *self.orders[group])
        return self.orders[group]

    def first(self, group: int = 0) -> Carrier | None:
        """The carrier that requests of ``group`` take; ``None``: none is usable."""
        order = self.choice.orders[group]
        return order[0] if order else None

    def connections_max(self, carrier: Carrier) -> int:
        """How many connections of ``carrier`` are opened before anybody has to wait for one."""
        if carrier is Carrier.H2:
            return H2_CONNECTIONS_MAX
        if carrier is Carrier.H1 and self.first() is Carrier.H1 and len(self.choice.costs) > 1:
            return H1_CONNECTIONS_MAX
        return 1

    def observe(self, carrier: Carrier, group: int, latency_s: float, now: float) -> None:
        """A request was answered ``latency_s`` after it was sent."""
        self._chooser.observe(carrier, group, latency_s, now)

    def block(self, carriers: frozenset[Carrier], now: float) -> None:
        """These do not work on the path from now on, all others do."""
        for carrier in self.blocked - carriers:
            self._chooser.forget(carrier)
        self.blocked = carriers
        self.refresh(now)
