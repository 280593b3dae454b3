"""Runs the probes when they are due and hands their samples on.

`probes.cadence.Planner` decides when; this driver looks at the clock, starts what is due and never
waits for it. Probes that can be started by a plain call (`Startable`) cost no task.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from typing import Protocol, runtime_checkable

from policies.model import Estimate, Kind, Path, Sample
from policies.schema import Cadence
from probes.base import Probe
from probes.cadence import Job, Planner
from probes.kernel import HasFileno, KernelSampler, Reading

log = logging.getLogger(__name__)

POLL_S = 0.1
"""How often the lines are asked whether they are busy; `Scheduler.nudge` is faster."""
KERNEL_S = 0.25

_LONGEST_S = {Kind.ICMP: 1.0, Kind.PING: 1.0, Kind.TCP: 2.0, Kind.QUIC: 3.0, Kind.HTTP: 10.0}
_SHORTEST_S = {Kind.ICMP: 0.25, Kind.PING: 0.25, Kind.TCP: 0.5, Kind.QUIC: 1.0, Kind.HTTP: 5.0}
_ROUND_TRIPS = {Kind.ICMP: 1, Kind.PING: 1, Kind.TCP: 2, Kind.QUIC: 4, Kind.HTTP: 8}

Report = Callable[[Sample], None]


@runtime_checkable
class Startable(Protocol):
    """A probe that needs no task: it sends now and reports later."""

    def start(self, path: Path, *, timeout_s: float, report: Report) -> None:
        """Begin one measurement; its sample goes to ``report``, in this call or later."""


class Activity(Protocol):
    """What makes a line watched more closely (`PathTable`)."""

    def waiting(self, line: str) -> bool:
        """An exchange waits for an answer over it."""

    def suspected(self, line: str) -> bool:
        """Its verdict is in doubt."""


def timeout_s(kind: Kind, estimate: Estimate | None) -> float:
    """How long a probe waits for its answer: what the path is known to need, with margin.

    Early enough that a silence is evidence soon, late enough that a slow answer is not loss:
    round trips + 4 rttvar (as a PTO, RFC 9002, 6.2.1) + 0.1 s, within bounds for each kind.
    """
    longest = _LONGEST_S.get(kind, 1.0)
    if estimate is None or estimate.rtt_s is None:
        return longest
    needed = _ROUND_TRIPS.get(kind, 1) * estimate.rtt_s + 4 * (estimate.rttvar_s or 0.0) + 0.1
    return min(longest, max(_SHORTEST_S.get(kind, 0.25), needed))


class Scheduler:
    """The clockwork of all probes. `run` it as one task; everything else is a plain call."""

    def __init__(
        self,
        probes: Mapping[Kind, Probe],
        activity: Activity,
        report: Report,
        *,
        estimate: Callable[[str], Estimate | None] = lambda _: None,
        sockets: Callable[[], Iterable[tuple[str, int | HasFileno]]] | None = None,
        readings: Callable[[Iterable[Reading]], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: Random | None = None,
    ) -> None:
        """``estimate(path)`` bounds how long a probe waits. ``sockets`` gives the live TCP sockets
        as ``(path name, socket)`` for TCP_INFO, looked at every 250 ms, and ``readings`` gets
        what they say of unanswered bytes."""
        self._probes = dict(probes)
        # Looked at once: isinstance with a protocol costs more than a probe's own work.
        self._startable = {k: p for k, p in self._probes.items() if isinstance(p, Startable)}
        self._activity = activity
        self._report = report
        self._estimate = estimate
        self._sockets = sockets
        self._readings = readings
        self._clock = clock
        self._kernel = KernelSampler()
        self._kernel_at = 0.0
        self._planner = Planner(
            {kind: probe.cost_bytes for kind, probe in self._probes.items()}, rng or Random()
        )
        self._lines: tuple[str, ...] = ()
        self._running: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._nudged = False
        self._stopped: asyncio.Future[None] | None = None

    def reload(self, paths: Sequence[Path], cadence: Callable[[str], Cadence]) -> None:
        """Probe these paths from now on, by the cadence of each upstream's policy."""
        self._lines = tuple(dict.fromkeys(path.line.name for path in paths))
        self._planner.reload(paths, cadence, self._clock())
        self.nudge()

    def nudge(self) -> None:
        """An exchange began to wait, or a doubt arose: look at once instead of at the next poll."""
        if self._stopped is not None and not self._nudged:
            self._nudged = True
            self._stopped.get_loop().call_soon(self._turn)

    def interval_s(self, path: str, kind: Kind) -> float | None:
        """The present time between two runs of a probe of a path; ``None``: it is not run."""
        return self._planner.interval_s(path, kind)

    async def run(self) -> None:
        """Run until cancelled; then nothing of it is left."""
        loop = asyncio.get_running_loop()
        self._stopped = loop.create_future()
        self._turn()
        try:
            await self._stopped
        finally:
            self._stopped = None
            if self._timer is not None:
                self._timer.cancel()
            running = list(self._running)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    # --- one turn ---------------------------------------------------------------------------

    def _turn(self) -> None:
        if self._stopped is None or self._stopped.done():
            return
        self._nudged = False
        if self._timer is not None:
            self._timer.cancel()
        now = self._clock()
        try:
            for line in self._lines:
                self._planner.set_activity(
                    line,
                    self._activity.waiting(line),
                    now,
                    doubted=self._activity.suspected(line),
                )
            for job in self._planner.due(now):
                self._start(job)
            self._look_at_sockets(now)
        except Exception as error:  # noqa: BLE001 - not swallowed: `run` raises it
            self._stopped.set_exception(error)
            return
        deadline = self._planner.next_deadline()
        wait_s = POLL_S if deadline is None else min(POLL_S, max(0.001, deadline - now))
        self._timer = self._stopped.get_loop().call_later(wait_s, self._turn)

    def _start(self, job: Job) -> None:
        wait_s = timeout_s(job.kind, self._estimate(job.path.name))
        startable = self._startable.get(job.kind)
        if startable is not None:
            startable.start(job.path, timeout_s=wait_s, report=self._report)
            return
        probe = self._probes[job.kind]
        task = asyncio.get_running_loop().create_task(self._run_one(probe, job.path, wait_s))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run_one(self, probe: Probe, path: Path, wait_s: float) -> None:
        try:
            samples = await probe.run(path, timeout_s=wait_s)
        except Exception as error:
            log.error("probe %s of %s broke: %r", probe.kind, path.name, error)
            log.debug("the broken probe's traceback", exc_info=error)
            return
        for sample in samples:
            self._report(sample)

    def _look_at_sockets(self, now: float) -> None:
        if self._sockets is None or now < self._kernel_at:
            return
        self._kernel_at = now + KERNEL_S
        for sample in self._kernel.sample(self._sockets(), now):
            self._report(sample)
        if self._readings is not None:
            self._readings(self._kernel.readings.values())
