"""The probes of a daemon: which there are, and their wiring to pools and table."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from random import Random

from edged.inuse import Activity, InUse, PingProbe, Tunnel
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

_EMPTY: frozenset[Kind] = frozenset()


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
        self._ping = PingProbe(pools, table, clock)
        probes: Mapping[Kind, Probe] = {
            Kind.ICMP: self._icmp,
            Kind.TCP: TcpProbe(dialer, sent=table.sent),
            Kind.HTTP: self._http,
            Kind.QUIC: QuicProbe(dialer, ca_file=ca_file),
            Kind.PING: self._ping,
        }
        self._costs = {kind: probe.cost_bytes for kind, probe in probes.items()}
        self._paths: dict[str, Path] = {}
        self._report = report
        self.scheduler = Scheduler(
            probes,
            Activity(table, tunnels, clock),
            self._take,
            estimate=lambda name: (
                state.estimate if (state := table.snapshot.paths.get(name)) else None
            ),
            watch=InUse(pools, table, self._ping.asked, tunnels, report),
            lacks=self._lacks,
            clock=clock,
            rng=rng,
        )

    async def reload(self, paths: Sequence[Path], policies: Mapping[str, Policy]) -> None:
        """Probe these paths from now on."""
        self._paths = {path.name: path for path in paths}
        self._ping.manners.retain(frozenset(path.endpoint.key for path in paths))
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
        """Which of ICMP, PING and TCP_INFO say nothing of a path."""
        known = self._paths.get(path)
        if known is None:
            return _EMPTY
        lacks = set()
        if self._table.mute(path):
            lacks.add(Kind.ICMP)
        speaking = self._ping.speaks(path, known.endpoint.key)
        if not speaking:
            lacks.add(Kind.PING)
        elif Carrier.H3 in speaking:
            lacks.add(Kind.KERNEL)
        return frozenset(lacks)

    def _take(self, sample: Sample) -> None:
        path = self._paths.get(sample.path)
        if path is not None:
            self.bytes[path.line.name] += self._costs.get(sample.kind, 0)
        self._report(sample)
