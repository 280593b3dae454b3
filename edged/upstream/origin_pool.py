"""The connections of one (path, origin), of all carriers, and who gets a stream on which.

Invariants: every live connection is in ``connections``; it is on the shelf of its carrier exactly
if it has room, is not draining, early or being verified. Nobody waits while a fitting connection is
on a shelf. Everything is decided synchronously and in O(1); only the coarse `tick` looks at many.

What is dialled is decided in `edged.upstream.dialing`, what may be trusted in
`edged.upstream.trust`, which carrier suits in `edged.upstream.choosing`, what is kept open and for
how long in `edged.upstream.upkeep`.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator

from edged.upstream.base import StreamEvents
from edged.upstream.carriers import PREFERENCE
from edged.upstream.choosing import Choosing
from edged.upstream.connection import Connection, Owner
from edged.upstream.dialing import Dialing
from edged.upstream.pool_types import PoolStats, PoolTools
from edged.upstream.shelf import Shelf
from edged.upstream.trust import Trust
from edged.upstream.upkeep import Upkeep
from edged.upstream.waiting import Waiter, Waiting
from policies.carriers import SIZES, group_of
from policies.model import Carrier, Failure, Outcome, Path, RequestClass

_CLOSED = Failure(Outcome.LOCAL, "edged is shutting down")


class OriginPool:
    """See the module. It is the `Owner` of its connections."""

    def __init__(self, path: Path, tools: PoolTools) -> None:
        self.path = path
        self.connections: OrderedDict[Connection, bool] = OrderedDict()
        """All that are open, oldest first; whether it counts in ``live``."""
        self.live = dict.fromkeys(PREFERENCE, 0)
        """Connections that are not draining."""
        self.shelves = {carrier: Shelf() for carrier in PREFERENCE}
        self.waiting = Waiting()
        self.streams_total = 0
        self.trust = Trust(self, tools)
        self.choosing = Choosing(self, tools)
        self.dialing = Dialing(self, self.waiting, tools)
        self.upkeep = Upkeep(self, tools)
        self._tools = tools
        self._limits = tools.limits
        self._loop = asyncio.get_running_loop()
        self._idle_h1 = self.shelves[Carrier.H1].free
        self._plain = True
        """Nothing but h1 is live and nothing is suspect: requests take the short way."""
        self._early: OrderedDict[Connection, None] = OrderedDict()
        self._warm: Carrier | None = None
        self._closed = False
        self._opened_total = 0
        self.choosing.refresh(self._loop.time())

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"<pool {stats.path} {stats.connections} in_flight={stats.in_flight} "
            f"waiting={stats.waiting} dialing={stats.dialing}>"
        )

    # Requests

    def open(
        self,
        events: StreamEvents,
        *,
        early_data: bool,
        upgrade: bool,
        request_class: RequestClass | None = None,
    ) -> Waiter | None:
        """A stream now (``None``), or a wait; see `Upstreams.open`."""
        if (
            self._plain
            and (idle := self._idle_h1)
            and (early_data or self.trust.rested(next(reversed(idle))))
        ):
            connection, _ = idle.popitem()
            self.streams_total += 1
            events.stream_ready(connection.open_stream(events))
            return None
        group = 0 if request_class is None else group_of(request_class)
        return self._open(events, group, early_data=early_data, upgrade=upgrade)

    def _open(
        self, events: StreamEvents, group: int, *, early_data: bool, upgrade: bool
    ) -> Waiter | None:
        """The long way of `open`: several carriers, doubts, or nothing ready."""
        connection = self._pick(group, early_data=early_data, upgrade=upgrade)
        if connection is not None:
            self._assign(connection, events, group)
            return None
        wait_s = self._tools.connect_timeout(self.path.endpoint.upstream)
        waiter = self.waiting.add(
            events, self._loop.time() + wait_s, early_data=early_data, upgrade=upgrade, group=group
        )
        trust = self.trust
        if self._closed:
            self._loop.call_soon(self._stop_waiting, _CLOSED)
        elif trust.verifying and trust.suspect_since is None and not upgrade:
            self.dialing.back_up()
        else:
            self.dialing.for_waiters()
        return waiter

    def open_apart(self, events: StreamEvents, carrier: Carrier) -> bool:
        """See `Pools.open_apart`. If there is none, one may be on its way afterwards."""
        for shelf in self.choosing.orders[0]:
            connection = next(iter(shelf), None)
            if connection is None or connection.carrier is carrier or connection.capacity <= 0:
                continue
            if not self.trust.doubtful(connection):
                self._assign(connection, events, 0)
                return True
        self.upkeep.open_beside(self._loop.time())
        return False

    def carrier_of(self, request_class: RequestClass) -> Carrier | None:
        """See `Pools.carrier_of`."""
        carrier = self.choosing.first(group_of(request_class))
        if carrier is None or self.live[carrier]:
            return carrier
        self.upkeep.open_beside(self._loop.time())
        return None

    def _pick(self, group: int, *, early_data: bool, upgrade: bool) -> Connection | None:
        """A connection that may carry the request now."""
        shelves = (self.shelves[Carrier.H1],) if upgrade else self.choosing.order(group)
        large = group % SIZES == SIZES - 1
        if (
            large
            and shelves
            and self.path.endpoint.is_door
            and (ready := next(iter(shelves[0]), None))
        ):
            # Pulses prove the line, and a flow is asked for again: nothing is waited for, and least
            # of all does it take a carrier that does not suit it.
            return ready
        for shelf in shelves:
            if (connection := self._free(shelf, group, early_data=early_data)) is not None:
                return connection
            if large and shelf.shared:
                # A large body had rather share than take a carrier that does not suit it.
                connection = next(iter(shelf.shared))
                if not self.trust.doubtful(connection):
                    self.upkeep.short(connection.carrier)
                    return connection
        if upgrade:
            return None
        if early_data and self._early and not self.in_doubt:
            return next(reversed(self._early))
        trust = self.trust
        for shelf in shelves:
            while shelf.shared:
                connection = next(iter(shelf.shared))
                if not trust.doubtful(connection):
                    return connection
                trust.verify(connection)
        return None

    def _free(self, shelf: Shelf, group: int, *, early_data: bool) -> Connection | None:
        """A connection below its shelf's limit that may carry the request now."""
        trust, ready = self.trust, shelf.free
        while ready:
            connection = shelf.first()
            if not trust.doubtful(connection):
                if group % SIZES == 0:
                    return connection
                quiet = shelf.quietest()
                return connection if trust.doubtful(quiet) else quiet
            if connection.carrier is Carrier.H1:
                if early_data and trust.suspect_since is None:
                    return connection
                break  # those before it are older
            trust.verify(connection)
            if early_data and trust.suspect_since is None:
                return connection
        return None

    def _assign(self, connection: Connection, events: StreamEvents, group: int) -> None:
        stream = connection.open_stream(events)
        shelf = self.shelves[connection.carrier]
        if shelf.took(connection, bulky=group % SIZES > 0):
            self.upkeep.short(connection.carrier)
        if not connection.capacity:
            self._early.pop(connection, None)
        self.streams_total += 1
        events.stream_ready(stream)

    def _serve(self) -> None:
        """Give what is ready to those who wait, first come first served."""
        waiting, idle_h1 = self.waiting, self._idle_h1
        while waiting.upgrades and idle_h1:
            waiter, _ = waiting.upgrades.popitem(last=False)
            self._assign(next(reversed(idle_h1)), waiter.events, waiter.group)
        while waiting.plain:
            connection = self._ready_for(next(iter(waiting.plain)).group)
            if connection is None:
                break
            waiter, _ = waiting.plain.popitem(last=False)
            self._assign(connection, waiter.events, waiter.group)
        if self._early and waiting.plain and not self.in_doubt:
            for waiter in [w for w in waiting.plain if w.early_data]:
                if not self._early:
                    break
                del waiting.plain[waiter]
                self._assign(next(reversed(self._early)), waiter.events, waiter.group)

    def _ready_for(self, group: int) -> Connection | None:
        """Any connection on a shelf, the best first."""
        shelves = self.choosing.orders[group]
        for shelf in shelves:
            if shelf.free:
                return shelf.first()
        for shelf in shelves:
            if shelf.shared:
                return next(iter(shelf.shared))
        return None

    def accept(self, connection: Connection) -> None:
        """A dial brought ``connection``."""
        self._opened_total += 1
        self.connections[connection] = True
        self._count(connection)
        self.capacity_changed(connection)

    def set_aside(self, connection: Connection) -> None:
        """``connection`` takes nothing until `capacity_changed`."""
        self.shelves[connection.carrier].remove(connection)

    # What connections tell (`Owner`)

    def capacity_changed(self, connection: Connection) -> None:
        """A stream ended, a limit changed, or early became confirmed."""
        if connection not in self.connections:
            return
        if self._plain and connection.capacity:
            self._idle_h1[connection] = None
            if self.waiting:
                self._serve()
            return
        if connection.capacity <= 0:
            self.shelves[connection.carrier].remove(connection)
            self._early.pop(connection, None)
            return
        if connection.early:
            self._early[connection] = None
        else:
            if self._early and connection in self._early:
                del self._early[connection]
                self._tools.carriers.h3_worked(self.path)
            if connection in self.trust.verifying:
                return
            self.shelves[connection.carrier].place(connection)
        if self.waiting:
            self._serve()

    def draining(self, connection: Connection) -> None:
        """It takes nothing new."""
        self.trust.ended(connection)
        if self.connections.get(connection):
            self.connections[connection] = False
            self.live[connection.carrier] -= 1
        self._withdraw(connection)
        self._update_warm()

    def closed(self, connection: Connection, failure: Failure | None) -> None:
        """It is gone."""
        if connection.early and failure is not None and _is_silence(failure):
            # 0-RTT was sent and no handshake came of it.
            self._tools.carriers.h3_failed(self.path, self._loop.time())
        self._withdraw(connection)
        self.trust.forget(connection)
        counted = self.connections.pop(connection, None)
        if counted is None:
            return
        self.trust.ended(connection)
        self.live[connection.carrier] -= counted
        self._update_warm()
        if self.waiting:
            self.dialing.for_waiters()
        if not self.connections:
            self._tools.emptied()

    def moved(self, connection: Connection, path: Path) -> Owner:
        """It runs on another path now, and is that path's pool's."""
        self._withdraw(connection)
        self.trust.forget(connection)
        if (counted := self.connections.pop(connection, None)) is not None:
            self.live[connection.carrier] -= counted
            self._update_warm()
        return self._tools.adopt(connection, path)

    def adopt(self, connection: Connection) -> None:
        """A connection of another path came here; it takes streams once it is proven."""
        self.connections[connection] = not connection.draining
        if not connection.draining:
            self._count(connection)

    def _count(self, connection: Connection) -> None:
        """A connection more is live."""
        live, carrier = self.live, connection.carrier
        live[carrier] += 1
        if live[carrier] == 1:
            self.choosing.refresh(self._loop.time())
        connection.expect_loss(expected=self.choosing.lossy)
        self._update_warm()

    def _withdraw(self, connection: Connection) -> None:
        """No new request gets it."""
        self.shelves[connection.carrier].forget(connection)
        self._early.pop(connection, None)
        self.dialing.forget(connection)

    def alt_svc(self, connection: Connection, value: bytes) -> None:
        """The origin advertised alternatives."""
        if self.path.endpoint.scheme == "https":
            self._tools.carriers.learned(self.path, value, self._loop.time())

    def prepare(self, streams: int) -> None:
        """So many requests may come at once: open now what they would have to wait for."""
        if not (self._closed or self.upkeep.down or self.trust.suspect_since is not None):
            room = sum(connection.capacity for connection in self.connections)
            if room < streams:
                self.dialing.prepare(streams - room)

    # The path

    def suspect(self, now: float) -> None:
        """Silence on the path: trust nothing that was not heard since."""
        self.trust.suspect_since = now
        self._plain = False
        self._back()
        for connection in list(self.connections):
            connection.doubt()

    def up(self) -> None:
        """The path is well again."""
        self.trust.suspect_since = None
        self._back()
        self.upkeep.path_up()
        self._update_plain()

    def _back(self) -> None:
        """What was dialled into the void waits ever longer for its next packet."""
        if self.upkeep.down:
            self.upkeep.down = False
            self.dialing.again()

    def wake(self) -> None:
        """Something else was heard over the line: what is dialled in vain may be answered now."""
        if self.waiting and self.in_doubt:
            self.dialing.wake()

    def leave(self) -> None:
        """The path is DOWN: whoever can go on over another does."""
        for connection in list(self.connections):
            connection.leave()

    def down(self, reason: str) -> None:
        """The path is DOWN: all that is on it fails now, in this loop turn."""
        self.upkeep.down = True
        self._fail_all(Failure(Outcome.TIMEOUT, reason, path_down=True))

    def revalidate(self) -> None:
        """This host's address or route may have changed: nothing is taken for alive."""
        self.trust.revalidate()
        self.dialing.again()

    def block(self, carriers: frozenset[Carrier]) -> None:
        """These carriers do not work on the path, although others do (none: all work again)."""
        self.choosing.block(carriers, self._loop.time())

    def desert(self, carriers: frozenset[Carrier], reason: str) -> None:
        """What runs on these carriers goes on over another line, or ends now."""
        for connection in list(self.connections):
            if connection.carrier in carriers and not connection.leave():
                connection.close(Failure(Outcome.TIMEOUT, reason, carrier_down=True))
        if self.waiting:
            self.dialing.again()

    def close(self) -> None:
        """Shut down at once."""
        self._closed = self.dialing.closed = True
        self._fail_all(_CLOSED)

    def drain(self) -> None:
        """Take nothing new; those who wait for a connection fail."""
        self._closed = self.dialing.closed = True
        self._stop_waiting(_CLOSED)
        for connection in list(self.connections):
            connection.drain()

    def _fail_all(self, failure: Failure) -> None:
        self._stop_waiting(failure)
        for connection in list(self.connections):
            connection.close(failure)

    def _stop_waiting(self, failure: Failure) -> None:
        self.dialing.cancel()
        self.waiting.fail_all(failure)

    # What others ask

    @property
    def in_doubt(self) -> bool:
        """The path is not UP: what is sent may go nowhere."""
        return self.upkeep.down or self.trust.suspect_since is not None

    @property
    def unused(self) -> bool:
        """Nothing open, nothing wanted: the pool can be forgotten."""
        return not (self.connections or self.dialing or self.waiting)

    def pingable(self) -> Iterator[Connection]:
        """Open h3 and h2 connections, h3 first, the newest first."""
        for carrier in (Carrier.H3, Carrier.H2):
            for connection in tuple(reversed(self.connections)) if self.live[carrier] else ():
                if connection.carrier is carrier and not connection.draining:
                    yield connection

    def stats(self) -> PoolStats:
        """For admin; not for the hot path."""
        counts: dict[str, int] = {}
        for connection in self.connections:
            counts[connection.carrier.value] = counts.get(connection.carrier.value, 0) + 1
        endpoint = self.path.endpoint
        return PoolStats(
            self.path.name,
            f"{endpoint.scheme}://{endpoint.host}:{endpoint.port}",
            counts,
            sum(connection.in_flight for connection in self.connections),
            len(self.waiting),
            len(self.dialing),
            self._opened_total,
            self.dialing.failures_total,
            self.streams_total,
            self.choosing.choice,
        )

    def _update_plain(self) -> None:
        live = self.live
        many = live[Carrier.H2] or live[Carrier.H3]
        self._plain = self.trust.suspect_since is None and not many

    def _update_warm(self) -> None:
        """After every change of ``live``."""
        self._update_plain()
        warm = next((carrier for carrier, count in self.live.items() if count), None)
        if warm is not self._warm:
            self._warm = warm
            self._tools.set_warm(self.path.name, warm)


def _is_silence(failure: Failure) -> bool:
    return failure.outcome is Outcome.TIMEOUT and not failure.path_down
