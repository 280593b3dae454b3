"""What connections tell of their lines: PINGs on them, and looks at those with work in flight.

PINGs go to QUIC connections as often as the cadence says, to HTTP/2 connections as far as their
server bears it (`policies.manners`). A connection with an answer outstanding is looked at as if a
stream were open: TCP may be repairing a loss, which looks like silence from above.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Protocol

from edged.table import PathTable
from edged.upstream.connection import Connection
from edged.upstream.h2 import H2Connection
from edged.upstream.pool import Pools
from policies.manners import Manners, Patience
from policies.model import Carrier, Failure, Kind, Outcome, Path, Sample
from probes.schedule import Report
from probes.watch import ConnectionWatch, Live, Stuck

TUNNEL_TIMES = 5
"""A tunnel cannot move: it is given up only after so many repetitions in vain."""


class Tunnel(Protocol):
    """A connected tunnel (`edged.tunnel.Leg`)."""

    @property
    def path_name(self) -> str:
        """The path it runs on."""

    @property
    def line_name(self) -> str:
        """The line it runs on."""

    def waits(self, now: float) -> bool:
        """Whether anybody may be waiting for its bytes."""

    def fileno(self) -> int | None:
        """Its socket; ``None`` when closed."""

    def give_up(self, detail: str) -> None:
        """It is of no use any more."""


class Activity:
    """What the table says of the lines, for `probes.schedule`; a tunnel that rests waits for
    nothing, and its line may be idle."""

    def __init__(
        self,
        table: PathTable,
        tunnels: Callable[[], Iterable[Tunnel]],
        clock: Callable[[], float],
    ) -> None:
        self._table = table
        self._tunnels = tunnels
        self._clock = clock
        self.doubted = table.doubted
        self.silent = table.silent
        self.dead = table.dead
        self.stirred = table.stirred

    def waiting(self, line: str) -> bool:
        """Whether an exchange, or a tunnel that does not rest, waits for an answer over it."""
        in_flight = self._table.in_flight(line)
        if not in_flight:
            return False
        now = self._clock()
        for tunnel in self._tunnels():
            if tunnel.line_name == line and not tunnel.waits(now):
                in_flight -= 1
                if not in_flight:
                    return False
        return True


class PingProbe:
    """PING on warm h2 and h3 connections; where there is none, nothing is sent or reported."""

    kind = Kind.PING
    cost_bytes = 2 * (17 + 22 + 52) + 52 + 120
    """A PING frame (RFC 9113, 6.7) in a TLS record, TCP and IP, both ways, the acknowledgement of
    its answer, and one of QUIC's with its own."""

    def __init__(self, pools: Pools, table: PathTable, clock: Callable[[], float]) -> None:
        self.manners = Manners()
        self.asked: dict[Connection, int] = {}
        """Connections with answers outstanding, and how many."""
        self._pools = pools
        self._table = table
        self._clock = clock

    def start(self, path: Path, *, timeout_s: float, report: Report) -> None:
        """Ask now, one connection of each carrier; the connections report the samples."""
        server = path.endpoint.key
        now = self._clock()
        patience = self.manners.patience(server, now)
        carriers = set()
        for connection in self._pools.pingable(path.name):
            carrier = connection.carrier
            if carrier in carriers or (carrier is Carrier.H2 and not _bears(connection, patience)):
                continue
            carriers.add(carrier)
            if connection.ping(partial(self._answered, server, connection), timeout_s):
                self.asked[connection] = self.asked.get(connection, 0) + 1
                self._table.sent(path.name, Kind.PING, now, carrier)

    async def run(self, path: Path, *, timeout_s: float) -> Sequence[Sample]:
        """As `start`: there is nothing to wait for."""
        self.start(path, timeout_s=timeout_s, report=lambda sample: None)
        return ()

    def speaks(self, path: str, server: str) -> frozenset[Carrier]:
        """The carriers whose PINGs can tell of ``path`` now."""
        patience = self.manners.patience(server, self._clock())
        return frozenset(
            connection.carrier
            for connection in self._pools.pingable(path)
            if connection.carrier is Carrier.H3 or _bears(connection, patience)
        )

    def _answered(self, server: str, connection: Connection, rtt_s: float | None) -> None:
        left = self.asked.get(connection, 1) - 1
        if left > 0:
            self.asked[connection] = left
        else:
            self.asked.pop(connection, None)
        if not isinstance(connection, H2Connection):
            return
        now = self._clock()
        if connection.calmed:
            self.manners.calmed(server, now)
        elif rtt_s is not None:
            self.manners.answered(server, now)
        elif connection.closed:
            self.manners.ended(server, now)


def _bears(connection: Connection, patience: Patience) -> bool:
    return patience is Patience.ANY or (patience is Patience.IDLE and not connection.in_flight)


class InUse:
    """Tells the table what the connections with work in flight show (`probes.schedule.Watch`)."""

    def __init__(
        self,
        pools: Pools,
        table: PathTable,
        asked: Iterable[Connection],
        tunnels: Callable[[], Iterable[Tunnel]],
        report: Report,
    ) -> None:
        self._pools = pools
        self._table = table
        self._asked = asked
        self._tunnels = tunnels
        self._report = report
        self._watch = ConnectionWatch()

    def next_due(self) -> float | None:
        """When something sent is overdue."""
        return self._watch.next_due()

    def look(self, now: float) -> None:
        """Look at all of them once."""
        look = self._watch.look(self._live(), now)
        if look.sent or look.seen:
            self._table.saw(look.sent, look.seen, now)
        for sample in look.samples:
            self._report(sample)
        for stuck in look.stuck:
            self._give_up(stuck, now)

    def _connections(self) -> Iterator[Connection]:
        yield from self._pools.in_use()
        yield from self._asked

    def _live(self) -> Iterator[Live]:
        for connection in self._connections():
            yield Live(
                connection.path.name, connection.fileno(), connection.carrier, connection.heard_at
            )
        for tunnel in self._tunnels():
            yield Live(tunnel.path_name, tunnel.fileno(), None, 0.0)

    def _give_up(self, stuck: Stuck, now: float) -> None:
        """Close a connection that is stuck, if that is more than loss: its exchanges move."""
        if not self._table.stuck(stuck.path, stuck.times, stuck.lost, now):
            return
        detail = (
            f"the connection is stuck for {now - stuck.since:.1f} s although {stuck.path} is not "
            "silent: do large packets vanish on the line?"
        )
        for connection in tuple(self._connections()):
            if connection.fileno() == stuck.fd:
                connection.close(Failure(Outcome.TIMEOUT, detail, path_down=True))
                return
        if stuck.times >= TUNNEL_TIMES:
            for tunnel in tuple(self._tunnels()):
                if tunnel.fileno() == stuck.fd:
                    tunnel.give_up(detail)
                    return
