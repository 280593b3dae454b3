"""What one pool keeps open, and for how long: idle expiry and the warm standby."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from edged.upstream.connection import Connection
from edged.upstream.dialing import Dialing
from edged.upstream.pool_types import PoolTools
from edged.upstream.shelf import Shelf
from edged.upstream.waiting import Waiting
from policies.model import Carrier


class Kept(Protocol):
    """What a pool shows to its upkeep."""

    connections: OrderedDict[Connection, bool]
    shelves: dict[Carrier, Shelf]
    waiting: Waiting
    dialing: Dialing


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

    def tick(self, now: float) -> None:
        """Idle expiry, waits that lasted too long, warm standby."""
        pool, limits = self._pool, self._limits
        for oldest in list(pool.shelves[Carrier.H1].free):
            if now - (oldest.idle_since or now) < limits.h1_idle_s or self._last(oldest):
                break
            oldest.close()
        for carrier in (Carrier.H2, Carrier.H3):
            for connection in list(pool.shelves[carrier]):
                idle_since = connection.idle_since
                if (
                    idle_since is not None
                    and now - idle_since >= limits.multiplexed_idle_s
                    and not self._last(connection)
                ):
                    connection.close()
        pool.waiting.expire(now)
        if self.keep_warm:
            self.warm_up(now)

    def warm_up(self, now: float) -> None:
        """See that one connection is open or being opened; not too often, and not while DOWN."""
        pool = self._pool
        if (
            now >= self._warm_dial_at
            and not (self.down or pool.connections or pool.dialing)
            and pool.dialing.one_more()
        ):
            self._warm_dial_at = now + self._limits.warm_retry_s

    def path_up(self) -> None:
        """The path is well again: the standby need not wait."""
        self.down = False
        self._warm_dial_at = 0.0

    def _last(self, connection: Connection) -> bool:
        """Whether it is the one that keeps the path warm."""
        return self.keep_warm and len(self._pool.connections) == 1
