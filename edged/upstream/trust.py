"""Which connections of one pool may have died unseen, and what is asked of them first.

A connection that was silent while idle may be dead without a sign, and a server that closes idle
ones may be doing so while a request is on its way. h2 and h3 are asked with a PING first, and one
request that may be repeated goes at once beside the PING; a dial starts when the answer is late.
h1 has no PING, so that old idle ones are not given a request that must not be repeated. What is
old is learnt from the server (`policies.patience`).

While the path is SUSPECT, and after this host's address or route changed, nothing is trusted that
was not heard since, whatever the request.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Protocol

from edged.upstream.connection import Connection
from edged.upstream.pool_types import PoolTools
from policies.model import Carrier, Failure, Outcome, Path


class Trusting(Protocol):
    """What a pool offers to its trust."""

    path: Path
    connections: OrderedDict[Connection, bool]

    def set_aside(self, connection: Connection) -> None:
        """``connection`` takes nothing for now."""

    def capacity_changed(self, connection: Connection) -> None:
        """It may take streams again."""


class Trust:
    """See the module."""

    def __init__(self, pool: Trusting, tools: PoolTools) -> None:
        self.suspect_since: float | None = None
        """Since when the path is SUSPECT: only what was heard later is trusted."""
        self.verifying: set[Connection] = set()
        """Those that are being asked; they take nothing."""
        self._pool = pool
        self._tools = tools
        self._limits = tools.limits
        self._loop = asyncio.get_running_loop()
        self._rtt_s = 0.0
        self._h1_rest_s = tools.limits.h1_trust_s
        self._h2_rest_s = tools.limits.trust_s

    def doubtful(self, connection: Connection) -> bool:
        """Whether it may have died unseen."""
        since = self.suspect_since
        if since is not None and connection.heard_at < since:
            return True
        if (idle_since := connection.idle_since) is None:
            return False
        now = self._loop.time()
        if connection.carrier is Carrier.H1:
            return now - idle_since > self._h1_rest_s
        return now - connection.heard_at > self._h2_rest_s

    def rested(self, connection: Connection) -> bool:
        """Whether an h1 connection that nothing speaks against may be given any request."""
        since = connection.idle_since
        return since is None or self._loop.time() - since <= self._h1_rest_s

    def verify(self, connection: Connection) -> None:
        """Set it aside until it answers a PING."""
        self._pool.set_aside(connection)  # whoever looks for another must not find it again
        if connection in self.verifying:
            return

        def answered(rtt_s: float | None) -> None:
            self._answered(connection, alive=rtt_s is not None)

        self.verifying.add(connection)
        connection.ping(answered, self._limits.ping_timeout_s)

    def revalidate(self) -> None:
        """Every connection must prove itself anew: idle h1 ones cannot, and go."""
        for connection in list(self._pool.connections):
            if connection.early:
                continue  # its handshake is the question and the answer
            if connection.carrier is not Carrier.H1:
                connection.doubt()
                self.verify(connection)
            elif connection.idle_since is not None:
                connection.close()

    def forget(self, connection: Connection) -> None:
        """It is gone."""
        self.verifying.discard(connection)

    def ended(self, connection: Connection) -> None:
        """It takes nothing new, or is gone: how long it had rested may be the server's patience."""
        rest = connection.rest
        if rest is not None and connection.carrier is not Carrier.H3:
            now = self._loop.time()
            patience = self._tools.patience.of(self._pool.path.endpoint, connection.carrier)
            if rest.lost:
                patience.lost(rest.seconds, now)
            else:
                patience.closed(rest.seconds)
            self.refresh(self._rtt_s, now)

    def refresh(self, rtt_s: float, now: float) -> None:
        """Take what was learnt meanwhile, here and on other lines."""
        self._rtt_s = rtt_s
        endpoint, book, limits = self._pool.path.endpoint, self._tools.patience, self._limits
        h1, h2 = book.of(endpoint, Carrier.H1), book.of(endpoint, Carrier.H2)
        for connection in self._pool.connections:
            if connection.carrier is Carrier.H3:
                continue
            patience = h1 if connection.carrier is Carrier.H1 else h2
            if connection.announced_s is not None:
                patience.announced(connection.announced_s)
            if connection.idle_since is not None:
                patience.outlived(now - connection.idle_since)
        self._h1_rest_s = min(h1.trusted_s(rtt_s, now), limits.h1_trust_s)
        self._h2_rest_s = limits.trust_s
        if h2.known_s(now) is not None:  # else there is no hurry: GOAWAY comes before a close
            self._h2_rest_s = min(h2.trusted_s(rtt_s, now), limits.trust_s)

    def _answered(self, connection: Connection, *, alive: bool) -> None:
        if connection not in self.verifying:
            return
        self.verifying.discard(connection)
        if alive:
            self._pool.capacity_changed(connection)
        elif connection.in_flight:
            # A long answer may still come, and whether the path is DOWN others find out: then what
            # is on it may be repeated, or moves. Nothing new goes there.
            connection.drain()
        else:
            connection.close(Failure(Outcome.TIMEOUT, "the connection did not answer a PING"))
