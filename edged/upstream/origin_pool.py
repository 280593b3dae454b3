"""The connections of one (path, origin), of all carriers, and who waits for them.

Invariants: every live connection is in ``connections``; it is in ``_ready`` of its carrier exactly
if it has room, is not draining, early or being verified. Nobody waits while a fitting connection is
ready. Everything is decided synchronously and in O(1); only the coarse `tick` looks at many.

Trust: a connection that was silent while idle may be dead without a sign. h2 and h3 are asked
with a PING first, and one request that may be repeated goes at once beside the PING; a dial starts
when the answer is late. h1 has no PING, so that old idle ones are not given a request that must
not be repeated.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace

from edged.upstream.base import StreamEvents
from edged.upstream.carriers import PREFERENCE
from edged.upstream.connection import Connection
from edged.upstream.dial import Dial
from edged.upstream.pool_types import PoolStats, PoolTools, Waiter, may_multiplex
from policies.model import Carrier, Failure, Outcome, Path
from probes.base import DialError

_CLOSED = Failure(Outcome.LOCAL, "edged is shutting down")
MULTIPLEXED = 100
"""Streams hoped for on a connection not made yet that may turn out to be h2 or h3."""


class OriginPool:
    """See the module. It is the `Owner` of its connections and the `Dials` of its dials."""

    def __init__(self, path: Path, tools: PoolTools) -> None:
        self.path = path
        self.connections: OrderedDict[Connection, bool] = OrderedDict()
        """All that are open, oldest first; whether it counts in ``_live``."""
        self.keep_warm = False
        self.suspect_since: float | None = None
        self._tools = tools
        self._limits = tools.limits
        self._loop = asyncio.get_running_loop()
        self._ready: dict[Carrier, OrderedDict[Connection, None]] = {
            carrier: OrderedDict() for carrier in PREFERENCE
        }
        self._preferred = tuple(self._ready.values())
        self._idle_h1 = self._ready[Carrier.H1]
        self._plain = True
        """Nothing but h1 is live and nothing is suspect: requests take the short way."""
        self._live = dict.fromkeys(PREFERENCE, 0)
        """Connections that are not draining."""
        self._early: OrderedDict[Connection, None] = OrderedDict()
        self._verifying: set[Connection] = set()
        self._waiters: OrderedDict[Waiter, None] = OrderedDict()
        self._upgrades: OrderedDict[Waiter, None] = OrderedDict()
        self._dials: OrderedDict[Dial, None] = OrderedDict()
        self._promised = 0
        """Sum of ``expected`` over the dials that are not for upgrades."""
        self._room = MULTIPLEXED if may_multiplex(path.endpoint) else 1
        """Streams that a new connection is expected to carry: as many as the newest does."""
        self._newest: Connection | None = None
        self._backup: asyncio.TimerHandle | None = None
        self._warm: Carrier | None = None
        self._warm_dial_at = 0.0
        self._down = False
        self._closed = False
        self._opened_total = 0
        self._dial_failures_total = 0
        self._streams_total = 0

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"<pool {stats.path} {stats.connections} in_flight={stats.in_flight} "
            f"waiting={stats.waiting} dialing={stats.dialing}>"
        )

    # Requests

    def open(self, events: StreamEvents, *, early_data: bool, upgrade: bool) -> Waiter | None:
        """A stream now (``None``), or a wait; see `Upstreams.open`."""
        if self._plain and (idle := self._idle_h1) and (early_data or self._fresh(idle)):
            connection, _ = idle.popitem()
            self._streams_total += 1
            events.stream_ready(connection.open_stream(events))
            return None
        return self._open(events, early_data=early_data, upgrade=upgrade)

    def _fresh(self, idle: OrderedDict[Connection, None]) -> bool:
        """Whether the newest of ``idle`` may be given any request; only while ``_plain``."""
        since = next(reversed(idle)).idle_since
        return since is None or self._loop.time() - since <= self._limits.h1_trust_s

    def _open(self, events: StreamEvents, *, early_data: bool, upgrade: bool) -> Waiter | None:
        """The long way of `open`: several carriers, doubts, or nothing ready."""
        connection = self._pick(early_data=early_data, upgrade=upgrade)
        if connection is not None:
            self._assign(connection, events)
            return None
        queue = self._upgrades if upgrade else self._waiters
        tools = self._tools
        wait_s = tools.connect_timeout(self.path.endpoint.upstream) + tools.limits.wait_s
        waiter = Waiter(events, queue, self._loop.time() + wait_s, early_data=early_data)
        queue[waiter] = None
        if self._closed:
            self._loop.call_soon(self._stop_waiting, _CLOSED)
        elif self._verifying and self.suspect_since is None and not upgrade:
            self._back_up()
        else:
            self._dial_for_waiters()
        return waiter

    def _pick(self, *, early_data: bool, upgrade: bool) -> Connection | None:
        """A connection that may carry the request now."""
        candidates = (self._idle_h1,) if upgrade else self._preferred
        for ready in candidates:
            while ready:
                connection = next(reversed(ready))
                if not self._doubtful(connection):
                    return connection
                if connection.carrier is Carrier.H1:
                    if early_data and self.suspect_since is None:
                        return connection
                    break  # those before it are older
                self._verify(connection)
                if early_data and self.suspect_since is None:
                    return connection
        if early_data and self._early and not upgrade:
            return next(reversed(self._early))
        return None

    def _doubtful(self, connection: Connection) -> bool:
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

    def _verify(self, connection: Connection) -> None:
        """Take it aside until it answers a PING."""

        def answered(rtt_s: float | None) -> None:
            self._verified(connection, alive=rtt_s is not None)

        del self._ready[connection.carrier][connection]
        self._verifying.add(connection)
        connection.ping(answered, self._limits.ping_timeout_s)

    def _verified(self, connection: Connection, *, alive: bool) -> None:
        self._verifying.discard(connection)
        if connection not in self.connections:
            return
        if alive:
            self.capacity_changed(connection)
        elif connection.in_flight and self.suspect_since is None:
            connection.drain()  # a long answer may still come; nothing new goes there
        else:
            text = "the connection did not answer a PING"
            connection.close(Failure(Outcome.TIMEOUT, text))

    def _assign(self, connection: Connection, events: StreamEvents) -> None:
        stream = connection.open_stream(events)
        if not connection.capacity:
            self._ready[connection.carrier].pop(connection, None)
            self._early.pop(connection, None)
        self._streams_total += 1
        events.stream_ready(stream)

    def _serve(self) -> None:
        """Give what is ready to those who wait, first come first served."""
        idle_h1 = self._idle_h1
        while self._upgrades and idle_h1:
            waiter, _ = self._upgrades.popitem(last=False)
            self._assign(next(reversed(idle_h1)), waiter.events)
        while self._waiters:
            for ready in self._preferred:
                if ready:
                    break
            else:
                break
            waiter, _ = self._waiters.popitem(last=False)
            self._assign(next(reversed(ready)), waiter.events)
        if self._early and self._waiters:
            for waiter in [w for w in self._waiters if w.early_data]:
                if not self._early:
                    break
                del self._waiters[waiter]
                self._assign(next(reversed(self._early)), waiter.events)

    # Dials

    def _dial_for_waiters(self) -> None:
        """Start as many dials as those who wait need and the limits allow."""
        missing = len(self._waiters) - self._promised
        while missing > 0 and self._may_dial(single=self._room == 1):
            first = next(iter(self._waiters))
            missing -= self._start_dial(early_data=first.early_data, upgrade=False)
        if self._upgrades:
            coming = sum(dial.upgrade for dial in self._dials)
            for _ in range(len(self._upgrades) - coming):
                if self._may_dial(single=True):
                    self._start_dial(early_data=False, upgrade=True)

    def _may_dial(self, *, single: bool) -> bool:
        """Whether a connection for one stream (h1), or for many, is within the limits."""
        limits, live, dialing = self._limits, self._live, len(self._dials)
        if single:
            within = live[Carrier.H1] + dialing < limits.h1_connections
        else:
            many = live[Carrier.H2] + live[Carrier.H3]
            within = many + dialing < limits.multiplexed_connections
        return within and dialing < limits.dials and not self._closed

    def _start_dial(self, *, early_data: bool, upgrade: bool) -> int:
        tools = self._tools
        if self._newest is not None:
            self._room = max(self._newest.capacity + self._newest.in_flight, 1)
        dial = Dial(
            self,
            self.path,
            tcp=tools.tcp,
            h3=tools.h3,
            carriers=tools.carriers,
            timeout_s=tools.connect_timeout(self.path.endpoint.upstream),
            expected=0 if upgrade else self._room,
            early_data=early_data,
            upgrade=upgrade,
        )
        self._dials[dial] = None
        self._promised += dial.expected
        dial.start()
        return max(dial.expected, 1)

    def _forget_dial(self, dial: Dial) -> None:
        if dial in self._dials:
            del self._dials[dial]
            self._promised -= dial.expected

    def connected(self, dial: Dial, connection: Connection) -> None:
        """A dial brought a connection."""
        self._forget_dial(dial)
        if connection.draining or self._closed:
            connection.close()
            text = "the connection was closed right after the handshake"
            self._fail_uncovered(Failure(Outcome.RESET, text, unprocessed=True))
            return
        self._opened_total += 1
        self.connections[connection] = True
        self._live[connection.carrier] += 1
        if not dial.upgrade:
            self._newest = connection
            self._room = max(connection.capacity, 1)
        self._update_warm()
        self.capacity_changed(connection)
        self._dial_for_waiters()

    def dial_failed(self, dial: Dial, error: DialError) -> None:
        """A dial brought nothing: those whom no other dial serves fail."""
        self._forget_dial(dial)
        self._dial_failures_total += 1
        failure = Failure(error.outcome, error.detail, unprocessed=True)
        if dial.upgrade and self._upgrades:
            waiter, _ = self._upgrades.popitem(last=False)
            waiter.events.failed(failure)
        self._fail_uncovered(failure)

    def _fail_uncovered(self, failure: Failure) -> None:
        for _ in range(len(self._waiters) - self._promised):
            if not self._waiters:
                break
            waiter, _ = self._waiters.popitem(last=False)
            waiter.events.failed(failure)

    def _back_up(self) -> None:
        """Dial beside a PING if its answer is late."""
        if self._backup is None:
            self._backup = self._loop.call_later(self._limits.backup_dial_s, self._backup_due)

    def _backup_due(self) -> None:
        self._backup = None
        self._dial_for_waiters()

    # What connections tell (`Owner`)

    def capacity_changed(self, connection: Connection) -> None:
        """A stream ended, a limit changed, or early became confirmed."""
        if connection not in self.connections:
            return
        if self._plain and connection.capacity:
            self._idle_h1[connection] = None
            if self._waiters or self._upgrades:
                self._serve()
            return
        ready = self._ready[connection.carrier]
        if connection.capacity <= 0:
            ready.pop(connection, None)
            self._early.pop(connection, None)
            return
        if connection.early:
            self._early[connection] = None
        else:
            if self._early and connection in self._early:
                del self._early[connection]
                self._tools.carriers.h3_worked(self.path)
            if self._verifying and connection in self._verifying:
                return
            ready[connection] = None
        if self._waiters or self._upgrades:
            self._serve()

    def draining(self, connection: Connection) -> None:
        """It takes nothing new."""
        if self.connections.get(connection):
            self.connections[connection] = False
            self._live[connection.carrier] -= 1
        if connection is self._newest:
            self._newest = None
        self._ready[connection.carrier].pop(connection, None)
        self._early.pop(connection, None)
        self._update_warm()

    def closed(self, connection: Connection, failure: Failure | None) -> None:
        """It is gone."""
        if connection.early and failure is not None and _is_silence(failure):
            # 0-RTT was sent and no handshake came of it.
            self._tools.carriers.h3_failed(self.path, self._loop.time())
        self._ready[connection.carrier].pop(connection, None)
        self._early.pop(connection, None)
        self._verifying.discard(connection)
        if connection is self._newest:
            self._newest = None
        counted = self.connections.pop(connection, None)
        if counted is None:
            return
        self._live[connection.carrier] -= counted
        self._update_warm()
        if self._waiters or self._upgrades:
            self._dial_for_waiters()
        if not self.connections:
            self._tools.emptied()

    def alt_svc(self, connection: Connection, value: bytes) -> None:
        """The origin advertised alternatives."""
        if self.path.endpoint.scheme == "https":
            self._tools.carriers.learned(self.path, value, self._loop.time())

    # The path and the clock

    def suspect(self, now: float) -> None:
        """Silence on the path: trust nothing that was not heard since."""
        self._down = False
        self.suspect_since = now
        self._plain = False

    def up(self) -> None:
        """The path is well again."""
        self.suspect_since = None
        self._down = False
        self._warm_dial_at = 0.0
        self._update_plain()

    def down(self, reason: str) -> None:
        """The path is DOWN: all that is on it fails now, in this loop turn."""
        self._down = True
        self._fail_all(Failure(Outcome.TIMEOUT, reason, path_down=True))

    def close(self) -> None:
        """Shut down at once."""
        self._closed = True
        self._fail_all(_CLOSED)

    def drain(self) -> None:
        """Take nothing new; those who wait for a connection fail."""
        self._closed = True
        self._stop_waiting(_CLOSED)
        for connection in list(self.connections):
            connection.drain()

    def _fail_all(self, failure: Failure) -> None:
        self._stop_waiting(failure)
        for connection in list(self.connections):
            connection.close(failure)

    def _stop_waiting(self, failure: Failure) -> None:
        dials = list(self._dials)
        self._dials.clear()
        self._promised = 0
        for dial in dials:
            dial.cancel()
        if self._backup is not None:
            self._backup.cancel()
            self._backup = None
        told = replace(failure, unprocessed=True)
        for queue in (self._waiters, self._upgrades):
            waiters = list(queue)
            queue.clear()
            for waiter in waiters:
                waiter.events.failed(told)

    def tick(self, now: float) -> None:
        """Once a second or so: idle expiry, waits that lasted too long, warm standby."""
        limits = self._limits
        for oldest in list(self._idle_h1):
            if now - (oldest.idle_since or now) < limits.h1_idle_s or self._last(oldest):
                break
            oldest.close()
        for carrier in (Carrier.H2, Carrier.H3):
            for connection in list(self._ready[carrier]):
                idle_since = connection.idle_since
                if (
                    idle_since is not None
                    and now - idle_since >= limits.multiplexed_idle_s
                    and not self._last(connection)
                ):
                    connection.close()
        text = "all connections to the upstream are in use"
        for queue in (self._waiters, self._upgrades):
            while queue and next(iter(queue)).deadline <= now:
                waiter, _ = queue.popitem(last=False)
                waiter.events.failed(Failure(Outcome.LOCAL, text, unprocessed=True))
        if self.keep_warm:
            self.warm_up(now)

    def _last(self, connection: Connection) -> bool:
        """Whether it is the one that keeps the path warm."""
        return self.keep_warm and len(self.connections) == 1

    def warm_up(self, now: float) -> None:
        """See that one connection is open or being opened; not too often, and not while DOWN."""
        if (
            now >= self._warm_dial_at
            and not (self._down or self.connections or self._dials)
            and self._may_dial(single=False)
        ):
            self._warm_dial_at = now + self._limits.warm_retry_s
            self._start_dial(early_data=False, upgrade=False)

    @property
    def unused(self) -> bool:
        """Nothing open, nothing wanted: the pool can be forgotten."""
        return not (self.connections or self._dials or self._waiters or self._upgrades)

    # What others ask

    def ping(self, timeout_s: float) -> bool:
        """PING a warm connection; the sample is reported by it. False if there is none."""
        for carrier in (Carrier.H3, Carrier.H2):
            for connection in reversed(self.connections) if self._live[carrier] else ():
                if connection.carrier is carrier and not connection.draining:
                    return connection.ping(_ignore, timeout_s)
        return False

    def sockets(self) -> Iterator[int]:
        """Descriptors of the live TCP sockets."""
        for connection in self.connections:
            if (number := connection.fileno()) is not None:
                yield number

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
            len(self._waiters) + len(self._upgrades),
            len(self._dials),
            self._opened_total,
            self._dial_failures_total,
            self._streams_total,
        )

    def _update_plain(self) -> None:
        live = self._live
        many = live[Carrier.H2] or live[Carrier.H3]
        self._plain = self.suspect_since is None and not many

    def _update_warm(self) -> None:
        """After every change of ``_live``."""
        self._update_plain()
        warm = next((carrier for carrier, count in self._live.items() if count), None)
        if warm is not self._warm:
            self._warm = warm
            self._tools.set_warm(self.path.name, warm)


def _is_silence(failure: Failure) -> bool:
    return failure.outcome is Outcome.TIMEOUT and not failure.path_down


def _ignore(rtt_s: float | None) -> None:
    """The sample says it all."""
