"""All pools: streams for attempts, and what happens to connections when a path changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from edged.upstream.base import StreamEvents
from edged.upstream.carriers import Carriers
from edged.upstream.connection import Connection, Connector, Report
from edged.upstream.engines import hpack_engine
from edged.upstream.origin_pool import OriginPool
from edged.upstream.pool_types import PatienceBook, PoolLimits, PoolStats, PoolTools
from edged.upstream.tcp import TcpConnector
from edged.upstream.tls import Tls
from edged.upstream.waiting import Waiter
from policies.carriers import group_of
from policies.model import (
    Carrier,
    CarrierChange,
    Change,
    Endpoint,
    Estimate,
    Line,
    Path,
    RequestClass,
    Verdict,
)
from probes.base import Dialer

TICK_S = 1.0
CONNECT_TIMEOUT_S = 5.0


def _default_timeout(upstream: str) -> float:
    return CONNECT_TIMEOUT_S


def _tell_nobody(path: str, carrier: Carrier | None) -> None:
    """No one wants to know what is warm."""


def _know_nothing(path: str) -> Estimate | None:
    """No path was measured."""
    return None


class Pools:
    """`edged.upstream.base.Upstreams`: one object a daemon, made inside the running loop."""

    def __init__(
        self,
        dialer: Dialer,
        report: Report,
        *,
        tls: Tls | None = None,
        h3: Connector | None = None,
        connect_timeout: Callable[[str], float] = _default_timeout,
        set_warm: Callable[[str, Carrier | None], None] = _tell_nobody,
        limits: PoolLimits | None = None,
        engine: str | None = None,
        estimate: Callable[[str], Estimate | None] = _know_nothing,
    ) -> None:
        """``report`` takes passive samples, ``set_warm`` is `PathTable.set_warm`.

        ``connect_timeout`` gives the seconds for DNS, connect and TLS by upstream name,
        ``estimate`` what is known of a path by its name. Without ``h3`` no QUIC is tried.
        ``engine`` forces an HPACK engine (`edged.upstream.engines`).
        """
        self.carriers = Carriers(h3_available=h3 is not None)
        tcp = TcpConnector(dialer, report, tls or Tls(), hpack=hpack_engine(engine))
        self._tools = PoolTools(
            tcp=tcp,
            h3=h3,
            carriers=self.carriers,
            patience=PatienceBook(),
            estimate=estimate,
            paced=lambda: tcp.paced,
            limits=limits or PoolLimits(),
            connect_timeout=connect_timeout,
            set_warm=set_warm,
            adopt=self._adopt,
            emptied=self._on_emptied,
        )
        self._loop = asyncio.get_running_loop()
        self._pools: dict[str, OriginPool] = {}
        self._retired: set[OriginPool] = set()
        """Of endpoints whose address changed: they finish what is in flight."""
        self._verdicts: dict[str, Change] = {}
        self._blocked: dict[str, frozenset[Carrier]] = {}
        """By path: carriers that do not work there although others do."""
        self._empty = asyncio.Event()
        self._closed = False
        self._timer = self._loop.call_later(TICK_S, self._tick)

    def __repr__(self) -> str:
        return f"<pools {list(self._pools.values())!r}>"

    def open(
        self,
        path: Path,
        events: StreamEvents,
        *,
        early_data: bool,
        upgrade: bool = False,
        request_class: RequestClass | None = None,
    ) -> Waiter | None:
        """See `Upstreams.open`."""
        pool = self._pools.get(path.name)
        if pool is None or pool.path is not path:
            pool = self._pool(path)
        return pool.open(
            events, early_data=early_data, upgrade=upgrade, request_class=request_class
        )

    def open_apart(self, path: Path, events: StreamEvents, carrier: Carrier) -> bool:
        """A stream at once on a connection of another carrier than ``carrier``; False: none has
        room now. For a copy of what runs on that one already.
        """
        return self._pool(path).open_apart(events, carrier)

    def carrier_of(self, path: Path, request_class: RequestClass) -> Carrier | None:
        """The carrier that suits requests of that class, if a connection of it is there; else it
        may be on its way afterwards.
        """
        return self._pool(path).carrier_of(request_class)

    def answered(
        self, path: Path, carrier: Carrier, request_class: RequestClass, latency_s: float
    ) -> None:
        """A request of that class got its response head on ``carrier`` ``latency_s`` after it was
        sent: what carriers are compared by. Not every one needs to be told.
        """
        pool = self._pools.get(path.name)
        if pool is not None:
            now = self._loop.time()
            pool.choosing.observe(carrier, group_of(request_class), latency_s, now)

    def path_leaving(self, change: Change) -> None:
        """Subscribe this before whoever acts on those in flight: connections that can go on over
        another line leave a path that is DOWN, with their streams, before anybody hears of it.
        """
        if change.new is Verdict.DOWN and (pool := self._pools.get(change.path)) is not None:
            pool.leave()

    def path_changed(self, change: Change) -> None:
        """A verdict changed (`PathTable.subscribe`): act on the path's pool in this loop turn."""
        if change.new is Verdict.UP:
            self._verdicts.pop(change.path, None)
        else:
            self._verdicts[change.path] = change
        if (pool := self._pools.get(change.path)) is None:
            return
        if change.new is Verdict.DOWN:
            pool.down(change.reason)
        elif change.new is Verdict.SUSPECT:
            pool.suspect(self._loop.time())
        else:
            pool.up()
        if change.old is Verdict.DOWN:
            self._wake(pool.path.line)

    def can_spare(self, change: CarrierChange) -> bool:
        """Whether the endpoint of the path speaks any other carrier; if not, it is the path that
        does not work."""
        pool = self._pools.get(change.path)
        if pool is None:
            return True
        usable = self.carriers.usable(pool.path, self._loop.time())
        return bool(usable - frozenset(change.carriers))

    def carrier_leaving(self, change: CarrierChange) -> None:
        """A carrier stopped or began to work on a path where others work
        (`PathTable.subscribe_carriers`): from now on no request takes a blocked one. Call this
        before those in flight on it are told, and `carrier_changed` after.
        """
        carriers = frozenset(change.carriers)
        blocked = self._blocked.get(change.path, frozenset())
        blocked = blocked | carriers if change.blocked else blocked - carriers
        if blocked:
            self._blocked[change.path] = blocked
        else:
            self._blocked.pop(change.path, None)
        if Carrier.H3 in blocked:
            self.carriers.silenced.add(change.path)
        else:
            self.carriers.silenced.discard(change.path)
        if (pool := self._pools.get(change.path)) is not None:
            pool.block(blocked)
            if not change.blocked:
                self._wake(pool.path.line)

    def _wake(self, line: Line) -> None:
        """Something was heard over ``line`` that was not before."""
        for pool in self._pools.values():
            if pool.path.line == line:
                pool.wake()

    def carrier_changed(self, change: CarrierChange) -> None:
        """After `carrier_leaving`: what still runs on a blocked carrier goes on over another line,
        or ends now."""
        if change.blocked and (pool := self._pools.get(change.path)) is not None:
            pool.desert(frozenset(change.carriers), change.reason)

    def revalidate(self, line: str | None = None) -> None:
        """An address, a route or the clock changed (of one line; ``None``: of this host): every
        connection must answer before it gets a request.
        """
        for pool in self._pools.values():
            if line is None or pool.path.line.name == line:
                pool.revalidate()

    def keep_warm(self, path: Path, *, wanted: bool = True) -> None:
        """Keep one connection open on ``path``, or no longer. The path in use and the next best
        should have one, so that failover needs no handshake."""
        pool = self._pools.get(path.name)
        if pool is None or pool.path is not path:
            if not wanted:
                return
            pool = self._pool(path)
        pool.upkeep.keep_warm = wanted
        if wanted:
            pool.upkeep.warm_up(self._loop.time())

    def prepare(self, path: Path, streams: int) -> None:
        """So many requests may come to ``path`` at once, from one that is in doubt."""
        self._pool(path).prepare(streams)

    def pingable(self, path: str) -> Iterator[Connection]:
        """The path's open h3 and h2 connections, h3 first, the newest first."""
        pool = self._pools.get(path)
        return iter(()) if pool is None else pool.pingable()

    def in_use(self) -> Iterator[Connection]:
        """Connections with streams in flight, for those who watch their lines."""
        for pool in (*self._pools.values(), *self._retired):
            for connection in pool.connections:
                if connection.in_flight:
                    yield connection

    def stats(self) -> list[PoolStats]:
        """One entry per pool, for admin."""
        return [pool.stats() for pool in (*self._pools.values(), *self._retired)]

    async def drain(self, grace_s: float) -> None:
        """Finish what is in flight for at most ``grace_s``, then close everything."""
        self._closed = True
        for pool in self._pools.values():
            pool.drain()
        self._on_emptied()
        try:
            async with asyncio.timeout(grace_s):
                await self._empty.wait()
        except TimeoutError:
            pass  # what is left is cut
        self.close()

    def close(self) -> None:
        """Close everything at once."""
        self._closed = True
        self._timer.cancel()
        for pool in (*self._pools.values(), *self._retired):
            pool.close()

    def _pool(self, path: Path) -> OriginPool:
        """The pool of ``path``; a new one if the endpoint of that name is elsewhere now."""
        pool = self._pools.get(path.name)
        if pool is not None:
            if _same_place(pool.path.endpoint, path.endpoint) and pool.path.line == path.line:
                pool.path = path
                return pool
            pool.drain()
            self._retired.add(pool)
        pool = self._pools[path.name] = OriginPool(path, self._tools)
        if self._closed:
            pool.close()
        change = self._verdicts.get(path.name)
        if change is not None and change.new is Verdict.SUSPECT:
            pool.suspect(self._loop.time())
        elif change is not None:
            pool.down(change.reason)
        if blocked := self._blocked.get(path.name):
            pool.block(blocked)
        return pool

    def _adopt(self, connection: Connection, path: Path) -> OriginPool:
        pool = self._pool(path)
        pool.adopt(connection)
        return pool

    def _on_emptied(self) -> None:
        if self._closed and not any(
            pool.connections for pool in (*self._pools.values(), *self._retired)
        ):
            self._empty.set()

    def _tick(self) -> None:
        if self._closed:
            return
        self._timer = self._loop.call_later(TICK_S, self._tick)
        now = self._loop.time()
        for pool in self._pools.values():
            pool.upkeep.tick(now)
        for pool in [pool for pool in self._retired if pool.unused]:
            self._retired.discard(pool)


def _same_place(one: Endpoint, other: Endpoint) -> bool:
    return (
        one.scheme == other.scheme
        and one.host == other.host
        and one.port == other.port
        and one.address == other.address
        and one.protocols == other.protocols
    )
