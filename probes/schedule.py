"""Runs the probes when they are due and hands their samples on.

`probes.cadence.Planner` decides when; this driver looks at the clock, starts what is due and never
waits for it. Probes that can be started by a plain call (`Startable`) cost no task. While an
exchange waits or a line is in doubt, it also looks at the connections in use (`probes.watch`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Protocol, runtime_checkable

from policies.model import Estimate, Kind, Path, Sample
from policies.schema import Cadence
from probes.base import Probe
from probes.cadence import Job, Planner
from probes.paces import Pace

log = logging.getLogger(__name__)

POLL_S = 0.1
"""How often the lines are asked whether they are busy; `Scheduler.nudge` is faster."""
ASK_S = 0.05
"""No more often, unless there is a nudge or a look."""
LOOK_S = 0.025
"""How often connections in use are looked at; less often where that takes longer than 1/20. A look
knows of the latest transmission only: so much later may a silence be taken to have begun."""
VOICES_S = 0.5
"""How often it is asked which probes say something."""

_LONGEST_S = {Kind.ICMP: 3.0, Kind.PING: 3.0, Kind.TCP: 3.0, Kind.QUIC: 3.0, Kind.HTTP: 10.0}
_SHORTEST_S = {Kind.ICMP: 1.0, Kind.PING: 1.0, Kind.TCP: 1.0, Kind.QUIC: 1.0, Kind.HTTP: 5.0}
_UNKNOWN_S = {Kind.ICMP: 1.0, Kind.PING: 1.0, Kind.TCP: 2.0}
"""Where nothing is known of the path."""
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

    def doubted(self, line: str) -> bool:
        """Its verdict, or that of a path on it, is bad."""

    def silent(self, line: str) -> bool:
        """Something sent on it is overdue, verdict or not."""

    def dead(self, line: str) -> bool:
        """Nothing passes on it at all: there is no use in dear probes."""

    def stirred(self, line: str) -> int:
        """How often something on it fell silent, or was heard again, so far."""


class Watch(Protocol):
    """Looks at the connections in use (`edged.probing`), and tells the decider what it saw."""

    def look(self, now: float) -> None:
        """Look now."""

    def next_due(self) -> float | None:
        """When a look will tell more at the latest."""


def timeout_s(kind: Kind, estimate: Estimate | None) -> float:
    """How long a probe waits for its answer: what the path is known to need, with margin.

    Silence is judged sooner (`policies.detector`); this is when an answer would tell nothing any
    more. One that comes late, because the round trip grew, must still be heard. Round trips
    + 4 rttvar (as a PTO, RFC 9002, 6.2.1) + 0.1 s, within bounds for each kind.
    """
    longest = _LONGEST_S.get(kind, 1.0)
    if estimate is None or estimate.rtt_s is None:
        return _UNKNOWN_S.get(kind, longest)
    needed = _ROUND_TRIPS.get(kind, 1) * estimate.rtt_s + 4 * (estimate.rttvar_s or 0.0) + 0.1
    return min(longest, max(_SHORTEST_S.get(kind, 1.0), needed))


class Scheduler:
    """The clockwork of all probes. `run` it as one task; everything else is a plain call."""

    def __init__(
        self,
        probes: Mapping[Kind, Probe],
        activity: Activity,
        report: Report,
        *,
        estimate: Callable[[str], Estimate | None] = lambda _: None,
        watch: Watch | None = None,
        lacks: Callable[[str], frozenset[Kind]] = lambda _: frozenset(),
        clock: Callable[[], float] = time.monotonic,
        rng: Random | None = None,
    ) -> None:
        """``estimate(path)`` bounds how long a probe waits; ``lacks(path)`` says which of
        ICMP, PING and TCP_INFO say nothing of it."""
        self._probes = dict(probes)
        # Looked at once: isinstance with a protocol costs more than a probe's own work.
        self._startable = {k: p for k, p in self._probes.items() if isinstance(p, Startable)}
        self._activity = activity
        self._report = report
        self._estimate = estimate
        self._watch = watch
        self._lacks = lacks
        self._clock = clock
        self._ask_at = 0.0
        self._look_at = 0.0
        self._closely = False
        """Whether any line is ACTIVE, doubted or stirred."""
        self._voices_at = 0.0
        self._planner = Planner(
            {kind: probe.cost_bytes for kind, probe in self._probes.items()}, rng or Random()
        )
        self._lines: dict[str, list[str]] = {}
        """Line name to its paths' names."""
        self._stirs: dict[str, int] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._nudged = False
        self._stopped: asyncio.Future[None] | None = None

    def reload(self, paths: Sequence[Path], cadence: Callable[[str], Cadence]) -> None:
        """Probe these paths from now on, by the cadence of each upstream's policy."""
        self._lines = {}
        for path in paths:
            self._lines.setdefault(path.line.name, []).append(path.name)
        self._voices_at = 0.0
        self._planner.reload(paths, cadence, self._clock())
        self.nudge()

    def nudge(self) -> None:
        """An exchange began to wait, or a doubt arose: look at once instead of at the next poll."""
        if self._stopped is not None and not self._nudged:
            self._nudged = True
            self._stopped.get_loop().call_soon(self._turn)

    def ask(self, line: str) -> None:
        """Something happened to ``line``: ask all there is about it now."""
        self._planner.ask(line, self._clock())
        self.nudge()

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
        nudged, self._nudged = self._nudged, False
        if self._timer is not None:
            self._timer.cancel()
        now = self._clock()
        try:
            # First what is known already: it may show a line in a new light.
            looked = self._look(now) if self._watch is not None else None
            if nudged or now >= self._ask_at:
                self._ask_lines(now)
            for job in self._planner.due(now):
                self._start(job)
        except Exception as error:  # noqa: BLE001 - not swallowed: `run` raises it
            self._stopped.set_exception(error)
            return
        wait_s = POLL_S
        for deadline in (self._planner.next_deadline(), looked):
            if deadline is not None:
                wait_s = min(wait_s, max(0.001, deadline - now))
        self._timer = self._stopped.get_loop().call_later(wait_s, self._turn)

    def _ask_lines(self, now: float) -> None:
        activity, planner = self._activity, self._planner
        self._ask_at = now + ASK_S
        ask_voices = now >= self._voices_at
        if ask_voices:
            self._voices_at = now + VOICES_S
        self._closely = False
        for line, paths in self._lines.items():
            stirs = activity.stirred(line)
            if stirs != self._stirs.get(line, 0):
                self._stirs[line] = stirs
                planner.stir(line, now)
            silent = activity.silent(line)
            pace = planner.set_activity(
                line,
                activity.waiting(line),
                now,
                doubted=activity.doubted(line),
                silent=silent,
                dead=activity.dead(line),
            )
            # Looking costs no bytes: an idle line that is silent is looked at, too.
            self._closely = self._closely or silent or pace >= Pace.DOUBTED
            if ask_voices and (silent or pace is not Pace.IDLE):
                for path in paths:
                    planner.set_lacks(path, self._lacks(path), now)

    def _look(self, now: float) -> float | None:
        """Look at the connections in use, if it is time; when the next look is due."""
        watch = self._watch
        assert watch is not None
        if not (self._closely or any(map(self._activity.waiting, self._lines))):
            return None
        due = watch.next_due()
        if now >= self._look_at or (due is not None and due <= now):
            watch.look(now)
            self._ask_at = now
            self._look_at = now + max(LOOK_S, 20 * (self._clock() - now))
            due = watch.next_due()
        return self._look_at if due is None else min(due, self._look_at)

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
