"""The dials of one pool: as many as those who wait need and the limits allow.

A dial is *promised* to as many waiters as the newest connection carries streams, so that a burst
of requests to an h2 server makes one connection and not many.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Protocol

from edged.upstream.choosing import Choosing
from edged.upstream.connection import Connection, Owner
from edged.upstream.dial import Dial
from edged.upstream.pool_types import PoolTools, may_multiplex
from edged.upstream.waiting import Waiting
from policies.model import Carrier, Failure, Outcome, Path
from probes.base import DialError

PREPARED_MAX = 32
"""Connections that are opened for requests that may come."""
PREPARED_SPARE = 8
"""One more for so many: a handshake is five packets, and who waits for one to be sent again takes a
spare connection instead."""
STALE_S = 0.25
"""An answer to a dial that began later may still be under way."""
_SILENT = 0.9
"""A dial that took so much of its time was not answered."""
MULTIPLEXED = 100
"""Streams hoped for on a connection not made yet that may turn out to be h2 or h3."""


class DialOwner(Owner, Protocol):
    """What a pool offers to its dialing."""

    path: Path
    live: dict[Carrier, int]
    """Connections that are not draining."""
    choosing: Choosing

    @property
    def in_doubt(self) -> bool:
        """The path is not known to work."""

    def accept(self, connection: Connection) -> None:
        """A connection is ready."""


class Dialing:
    """See the module. It is the `Dials` of its dials."""

    def __init__(self, pool: DialOwner, waiting: Waiting, tools: PoolTools) -> None:
        self.failures_total = 0
        self.closed = False
        """Nothing is dialled any more."""
        self._pool = pool
        self._waiting = waiting
        self._tools = tools
        self._limits = tools.limits
        self._loop = asyncio.get_running_loop()
        self._dials: OrderedDict[Dial, None] = OrderedDict()
        self._promised = 0
        """Sum of ``expected`` over the dials that are not for upgrades."""
        self._room = MULTIPLEXED if may_multiplex(pool.path.endpoint) else 1
        """Streams that a new connection is expected to carry: as many as the newest does."""
        self._newest: Connection | None = None
        self._backup: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._dials)

    # What the pool orders

    def for_waiters(self) -> None:
        """Start what those who wait still miss."""
        waiting = self._waiting
        missing = len(waiting.plain) - self._promised
        while missing > 0 and self._may_dial(single=self._room == 1):
            first = next(iter(waiting.plain))
            missing -= self._start(early_data=first.early_data, upgrade=False)
        if waiting.upgrades:
            coming = sum(dial.upgrade for dial in self._dials)
            for _ in range(len(waiting.upgrades) - coming):
                if self._may_dial(single=True):
                    self._start(early_data=False, upgrade=True)

    def one_more(self, only: Carrier | None = None) -> bool:
        """Start a dial for nobody in particular; False if the limits forbid it.

        One for a certain carrier is promised to nobody, and nobody fails when it does.
        """
        if not self._may_dial(single=only is Carrier.H1):
            return False
        self._start(early_data=False, upgrade=False, only=only)
        return True

    def prepare(self, missing: int) -> None:
        """Connections for ``missing`` requests that may come at once, beyond those on their way."""
        if self._room == 1:
            missing = min(missing + -(-missing // PREPARED_SPARE), PREPARED_MAX)
        missing -= self._promised - len(self._waiting.plain)
        while missing > 0 and self._may_dial(single=self._room == 1):
            missing -= self._start(early_data=False, upgrade=False)

    def coming(self, carrier: Carrier) -> int:
        """Dials for this carrier and no other."""
        return sum(dial.only is carrier for dial in self._dials)

    def back_up(self) -> None:
        """Dial beside a PING if its answer is late."""
        if self._backup is None:
            self._backup = self._loop.call_later(self._limits.backup_dial_s, self._backup_due)

    def again(self) -> None:
        """Whatever is being dialled may be going nowhere: begin anew."""
        self.cancel()
        self.for_waiters()

    def wake(self) -> None:
        """Begin anew, unless all was dialled just now."""
        stale_at = self._loop.time() - STALE_S
        if any(dial.began_at <= stale_at for dial in self._dials):
            self.again()

    def cancel(self) -> None:
        """Give up every dial."""
        dials = list(self._dials)
        self._dials.clear()
        self._promised = 0
        for dial in dials:
            dial.cancel()
        if self._backup is not None:
            self._backup.cancel()
            self._backup = None

    def forget(self, connection: Connection) -> None:
        """``connection`` takes nothing new: it is no measure for others."""
        if connection is self._newest:
            self._newest = None

    # What dials tell (`Dials`)

    def connected(self, dial: Dial, connection: Connection) -> None:
        """A dial brought a connection."""
        self._forget_dial(dial)
        if connection.draining or self.closed:
            connection.close()
            text = "the connection was closed right after the handshake"
            self._fail_uncovered(Failure(Outcome.RESET, text, unprocessed=True))
            return
        if not dial.upgrade and dial.only is None:
            self._newest = connection
            self._room = max(connection.capacity, 1)
        self._pool.accept(connection)
        self.for_waiters()

    def dial_failed(self, dial: Dial, error: DialError) -> None:
        """A dial brought nothing: those whom no other dial serves fail."""
        self._forget_dial(dial)
        self.failures_total += 1
        if dial.only is not None:
            return
        failure = Failure(error.outcome, error.detail, unprocessed=True)
        if dial.upgrade:
            self._waiting.fail_first(failure, upgrade=True)
        now = self._loop.time()
        if error.outcome is Outcome.TIMEOUT and now - dial.began_at >= _SILENT * dial.timeout_s:
            # Silence says nothing to who came later: a packet sent now may be answered.
            self._waiting.expire(now, failure)
            self.for_waiters()
        else:
            self._fail_uncovered(failure)

    # Inside

    def _may_dial(self, *, single: bool) -> bool:
        """Whether a connection for one stream (h1), or for many, is within the limits."""
        limits, live, dialing = self._limits, self._pool.live, len(self._dials)
        if single:
            within = live[Carrier.H1] + dialing < limits.h1_connections
        else:
            many = live[Carrier.H2] + live[Carrier.H3]
            within = many + dialing < limits.multiplexed_connections
        return within and dialing < limits.dials and not self.closed

    def _start(self, *, early_data: bool, upgrade: bool, only: Carrier | None = None) -> int:
        tools, path = self._tools, self._pool.path
        if self._newest is not None:
            self._room = max(self._newest.capacity + self._newest.in_flight, 1)
        dial = Dial(
            self,
            self._pool,
            path,
            tcp=tools.tcp,
            h3=tools.h3,
            carriers=tools.carriers,
            timeout_s=tools.connect_timeout(path.endpoint.upstream),
            expected=0 if upgrade or only else self._room,
            early_data=early_data and not self._pool.in_doubt,
            upgrade=upgrade,
            only=only,
            first=self._pool.choosing.first(),
            hurried=self._pool.in_doubt,
        )
        self._dials[dial] = None
        self._promised += dial.expected
        dial.start()
        return max(dial.expected, 1)

    def _forget_dial(self, dial: Dial) -> None:
        if dial in self._dials:
            del self._dials[dial]
            self._promised -= dial.expected

    def _fail_uncovered(self, failure: Failure) -> None:
        for _ in range(len(self._waiting.plain) - self._promised):
            self._waiting.fail_first(failure)

    def _backup_due(self) -> None:
        self._backup = None
        self.for_waiters()
