"""What one pool keeps open beyond what requests need at once, and for how long.

* A warm standby, where it is wanted.
* As many connections of a carrier as its streams should be spread over, opened before the last
  free one is taken, so that no request pays for a handshake.
* While the path is used, or wanted warm: a connection over TCP beside h3, to fall back to when
  datagrams stop, and h3 beside TCP where it may be had, to see what it would be worth. h3 that
  failed is tried again here and nowhere else: no request waits for it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from edged.upstream.choosing import Choosing
from edged.upstream.connection import Connection
from edged.upstream.dialing import Dialing
from edged.upstream.pool_types import PoolTools
from edged.upstream.shelf import Shelf
from edged.upstream.trust import Trust
from edged.upstream.waiting import Waiting
from policies.model import Carrier, Failure, Outcome

_OVER_TCP = (Carrier.H2, Carrier.H1)
_ALL_IN_USE = Failure(Outcome.LOCAL, "all connections to the upstream are in use")
_NO_CONNECTION = Failure(Outcome.TIMEOUT, "no connection could be made in time")


class Kept(Protocol):
    """What a pool shows to its upkeep."""

    connections: OrderedDict[Connection, bool]
    live: dict[Carrier, int]
    shelves: dict[Carrier, Shelf]
    waiting: Waiting
    dialing: Dialing
    choosing: Choosing
    trust: Trust
    streams_total: int


class Upkeep:
    """See the module; `tick` is called about once a second."""

    def __init__(self, pool: Kept, tools: PoolTools) -> None:
        self.keep_warm = False
        """One connection is to be open."""
        self.down = False
        """The path is DOWN: nothing is dialled for nobody."""
        self._pool = pool
        self._limits = tools.limits
        self._warm_dial_at = 0.0
        self._beside_at = 0.0
        self._streams = 0
        self._used_at = float("-inf")

    def tick(self, now: float) -> None:
        """Choose anew, expire what is idle and who waited too long, open what is missing."""
        pool = self._pool
        pool.choosing.refresh(now)
        pool.trust.refresh(pool.choosing.rtt_s, now)
        self._expire(now)
        self._expire_waiting(now)
        if pool.streams_total != self._streams:
            self._streams, self._used_at = pool.streams_total, now
        if self.keep_warm:
            self.warm_up(now)
        if self.keep_warm or now - self._used_at < self._limits.used_s:
            self.open_beside(now)

    def warm_up(self, now: float) -> None:
        """See that one connection is open or being opened; not too often, and not while DOWN."""
        pool = self._pool
        if (
            now >= self._warm_dial_at
            and not (self.down or pool.connections or pool.dialing)
            and pool.dialing.one_more()
        ):
            self._warm_dial_at = now + self._limits.warm_retry_s

    def short(self, carrier: Carrier) -> None:
        """The last free connection of ``carrier`` was taken."""
        pool = self._pool
        if self.down or pool.trust.suspect_since is not None:
            return
        dialing = pool.dialing
        if pool.live[carrier] + dialing.coming(carrier) < pool.choosing.connections_max(carrier):
            dialing.one_more(carrier)

    def path_up(self) -> None:
        """The path is well again: the standby need not wait."""
        self.down = False
        self._warm_dial_at = 0.0

    def open_beside(self, now: float) -> None:
        """The carrier that would be taken if the one in use could not."""
        pool = self._pool
        if now < self._beside_at or self.down or pool.trust.suspect_since is not None:
            return
        order = pool.choosing.choice.orders[0]
        if Carrier.H3 not in order or len(order) < 2:
            return
        missing: Carrier | None = None
        if not any(pool.live[carrier] for carrier in _OVER_TCP):
            missing = next(carrier for carrier in order if carrier is not Carrier.H3)
        elif not pool.live[Carrier.H3]:
            missing = Carrier.H3
        if missing is not None and not pool.dialing.coming(missing):
            self._beside_at = now + self._limits.warm_retry_s
            pool.dialing.one_more(missing)

    def _expire_waiting(self, now: float) -> None:
        """Who waits for a connection that is open and busy may do so for a while longer."""
        pool = self._pool
        if any(not (one.early or one.draining) for one in pool.connections):
            pool.waiting.expire(now - self._limits.wait_s, _ALL_IN_USE)
        elif pool.waiting:
            pool.waiting.expire(now, _NO_CONNECTION)

    def _expire(self, now: float) -> None:
        """Close what nobody used for long."""
        pool, limits = self._pool, self._limits
        idle = pool.shelves[Carrier.H1].free
        for oldest in list(idle):
            surplus = len(idle) > limits.h1_spare
            limit_s = limits.h1_surplus_idle_s if surplus else limits.h1_idle_s
            if now - (oldest.idle_since or now) < limit_s or self._last(oldest):
                break
            oldest.close()
        for carrier in (Carrier.H2, Carrier.H3):
            for connection in list(pool.shelves[carrier]):
                surplus = pool.live[carrier] > 1
                limit_s = limits.surplus_idle_s if surplus else limits.multiplexed_idle_s
                idle_since = connection.idle_since
                if (
                    idle_since is not None
                    and now - idle_since >= limit_s
                    and not self._last(connection)
                ):
                    connection.close()

    def _last(self, connection: Connection) -> bool:
        """Whether it is the one that keeps the path warm."""
        return self.keep_warm and len(self._pool.connections) == 1
