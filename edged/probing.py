"""The probes of a daemon: which there are, and their wiring to pools and table."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Protocol

from edged.table import PathTable
from edged.upstream.pool import Pools
from policies.model import Carrier, Kind, Path, Sample
from policies.schema import Policy
from probes.base import Dialer, Probe
from probes.http import HttpProbe
from probes.icmp import IcmpProbe
from probes.quic import QuicProbe
from probes.schedule import Report, Scheduler
from probes.tcp import TcpProbe
from probes.watch import ConnectionWatch, Live

_PINGED = (Carrier.H3, Carrier.H2)


class Tunnel(Protocol):
    """A connected tunnel (`edged.tunnel.Leg`)."""

    @property
    def path_name(self) -> str:
        """The path it runs on."""

    def fileno(self) -> int | None:
        """Its socket; ``None`` when closed."""


class PingProbe:
    """PING on a warm h2 or h3 connection; where there is none, nothing is sent or reported."""

    kind = Kind.PING
    cost_bytes = 2 * (17 + 22 + 52)
    """A PING frame (RFC 9113, 6.7) in a TLS record, TCP and IP, both ways."""

    def __init__(self, pools: Pools, table: PathTable, clock: Callable[[], float]) -> None:
        self._pools = pools
        self._table = table
        self._clock = clock

    def start(self, path: Path, *, timeout_s: float, report: Report) -> None:
        """Ask now; the connection itself reports the sample."""
        if self._pools.ping(path.name, timeout_s):
            self._table.sent(path.name, Kind.PING, self._clock(), self._table.warm(path.name))

    async def run(self, path: Path, *, timeout_s: float) -> Sequence[Sample]:
        """As `start`: there is nothing to wait for."""
        self._pools.ping(path.name, timeout_s)
        return ()


class InUse:
    """Tells the table what the connections with work in flight show."""

    def __init__(
        self,
        pools: Pools,
        table: PathTable,
        tunnels: Callable[[], Iterable[Tunnel]],
        report: Report,
    ) -> None:
        self._pools = pools
        self._table = table
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

    def _live(self) -> Iterator[Live]:
        for connection in self._pools.in_use():
            yield Live(
                connection.path.name, connection.fileno(), connection.carrier, connection.heard_at
            )
        for tunnel in self._tunnels():
            yield Live(tunnel.path_name, tunnel.fileno(), None, 0.0)


class Probing:
    """All probes and their clockwork. `run` it as one task; `close` it afterwards."""

    def __init__(
        self,
        dialer: Dialer,
        pools: Pools,
        table: PathTable,
        report: Report,
        *,
        ca_file: str | None,
        rng: Random,
        tunnels: Callable[[], Iterable[Tunnel]] = tuple,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises OSError when ``ca_file`` is unreadable."""
        self._table = table
        self._icmp = IcmpProbe(dialer, sent=table.sent)
        self._http = HttpProbe(
            dialer,
            ca_file=ca_file,
            target=lambda path: table.policy(path.endpoint.upstream).cadence.http_path,
        )
        self.bytes: defaultdict[str, int] = defaultdict(int)
        """Line name to what its probes have cost so far, by the probes' own estimate."""
        probes: Mapping[Kind, Probe] = {
            Kind.ICMP: self._icmp,
            Kind.TCP: TcpProbe(dialer, sent=table.sent),
            Kind.HTTP: self._http,
            Kind.QUIC: QuicProbe(dialer, ca_file=ca_file),
            Kind.PING: PingProbe(pools, table, clock),
        }
        self._costs = {kind: probe.cost_bytes for kind, probe in probes.items()}
        self._lines: dict[str, str] = {}
        self._report = report
        self.scheduler = Scheduler(
            probes,
            table,
            self._take,
            estimate=lambda name: (
                state.estimate if (state := table.snapshot.paths.get(name)) else None
            ),
            watch=InUse(pools, table, tunnels, report),
            lacks=self._lacks,
            clock=clock,
            rng=rng,
        )

    async def reload(self, paths: Sequence[Path], policies: Mapping[str, Policy]) -> None:
        """Probe these paths from now on."""
        self._lines = {path.name: path.line.name for path in paths}
        self.scheduler.reload(paths, lambda upstream: policies[upstream].cadence)
        self._icmp.retain(paths)
        await self._http.retain(paths)

    async def run(self) -> None:
        """Run until cancelled."""
        try:
            await self.scheduler.run()
        finally:
            with suppress(OSError):
                await self._icmp.close()
            await self._http.close()

    def _lacks(self, path: str) -> frozenset[Kind]:
        """Which of ICMP and PING say nothing of a path."""
        lacks = set()
        if self._table.mute(path):
            lacks.add(Kind.ICMP)
        if self._table.warm(path) not in _PINGED:
            lacks.add(Kind.PING)
        return frozenset(lacks)

    def _take(self, sample: Sample) -> None:
        line = self._lines.get(sample.path)
        if line is not None:
            self.bytes[line] += self._costs.get(sample.kind, 0)
        self._report(sample)
