"""Which connections of one pool may have died unseen, and what is asked of them first.

A connection that was silent while idle may be dead without a sign. h2 and h3 are asked with a
PING first, and one request that may be repeated goes at once beside the PING; a dial starts when
the answer is late. h1 has no PING, so that old idle ones are not given a request that must not be
repeated.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from edged.upstream.connection import Connection
from edged.upstream.pool_types import PoolLimits
from policies.model import Carrier, Failure, Outcome


class Trusting(Protocol):
    """What a pool offers to its trust."""

    def set_aside(self, connection: Connection) -> None:
        """``connection`` takes nothing for now."""

    def capacity_changed(self, connection: Connection) -> None:
        """It may take streams again."""


class Trust:
    """See the module."""

    def __init__(self, pool: Trusting, limits: PoolLimits) -> None:
        self.suspect_since: float | None = None
        """Since when the path is SUSPECT: only what was heard later is trusted."""
        self.verifying: set[Connection] = set()
        """Those that are being asked; they take nothing."""
        self._pool = pool
        self._limits = limits
        self._loop = asyncio.get_running_loop()

    def doubtful(self, connection: Connection) -> bool:
        """Whether it may have died unseen."""
        since = self.suspect_since
        if since is not None and connection.heard_at < since:
            return True
        if (idle_since := connection.idle_since) is None:
            return False
        now = self._loop.time()
        if connection.carrier is Carrier.H1:
            return now - idle_since > self._limits.h1_trust_s
        return now - connection.heard_at > self._limits.trust_s

    def rested(self, connection: Connection) -> bool:
        """Whether an h1 connection that nothing speaks against may be given any request."""
        since = connection.idle_since
        return since is None or self._loop.time() - since <= self._limits.h1_trust_s

    def verify(self, connection: Connection) -> None:
        """Set it aside until it answers a PING."""

        def answered(rtt_s: float | None) -> None:
            self._answered(connection, alive=rtt_s is not None)

        self._pool.set_aside(connection)
        self.verifying.add(connection)
        connection.ping(answered, self._limits.ping_timeout_s)

    def forget(self, connection: Connection) -> None:
        """It is gone."""
        self.verifying.discard(connection)

    def _answered(self, connection: Connection, *, alive: bool) -> None:
        if connection not in self.verifying:
            return
        self.verifying.discard(connection)
        if alive:
            self._pool.capacity_changed(connection)
        elif connection.in_flight and self.suspect_since is None:
            connection.drain()  # a long answer may still come; nothing new goes there
        else:
            connection.close(Failure(Outcome.TIMEOUT, "the connection did not answer a PING"))
