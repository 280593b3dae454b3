"""When each probe of each path is due. Pure: time and randomness are arguments.

Rules:
1. A (path, kind) runs on a grid ``(n + phase) * period`` of the monotonic clock, so that it fires
   whether or not its last run has ended, never drifts, and keeps its phase over a reload.
2. The phases of a line's paths are spread evenly: pooled, they look at the line without a gap. A
   path that comes later takes the middle of the widest gap; nobody else moves.
3. Each point of the grid moves by up to an eighth of the period, intervals thus by up to a quarter;
   by less where the line has many paths, so that they still look at it in turn.
4. A line is ACTIVE while an exchange waits on it and 2 s more, and for 15 s when a path is new (a
   choice needs to know the loss of all, and 0 of few samples still allows much); RECENT for 15 s
   after it was ACTIVE; STANDBY while another line is one of these; else IDLE. Unless it is IDLE, it
   is STIRRED for 3 s after something on it fell silent or was heard again, and DOUBTED while a
   verdict on it is bad, for a minute at most (ACTIVE, too: ACTIVE_DOUBTED). Going up a pace pulls
   its deadlines in, and a stir asks several at once, 25 ms apart, so that one lost packet is told
   from a dead line in two round trips; where a verdict is bad, it asks end to end, too. A doubt
   about an IDLE line is followed up one packet at a time (`policies.doubt`), until an exchange
   waits: then at once as above. Going IDLE puts off what is
   expensive.
5. Connects speak where nothing else can: often on a path whose ICMP is not answered, more often
   where the exchange that waits has no PING either (h1).
6. PINGs are for waiting exchanges and for doubt; else only to keep a warm connection, and in recent
   use where ICMP is not answered.
7. All periods of a line are stretched by the same factor when what they plan exceeds the line's
   byte cap, or while IDLE what is routine of 10 MB a day; and a token bucket holds back what
   bunches, so that over any window no more than ``0.9 * cap * window + depth`` bytes are sent.
   Cheap probes may use it up; expensive ones wait until half a second's worth is left for them, or
   until a quarter of what came in meanwhile suffices.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from policies.doubt import ROUTINE_BYTES_S, Inquiry
from policies.model import Carrier, Kind, Line, Path
from policies.schema import Cadence
from probes.paces import DOUBT_HTTP_S, Pace, period_s

HOLD_S = 2.0
RECENT_S = 15.0
STIR_S = 3.0
YOUNG_S = 15.0
"""At 10 samples a second 0 lost of them leaves no more than 3% of loss possible."""
DOUBT_S = 60.0
"""So long a bad verdict keeps a line DOUBTED; a sign of life begins it anew."""
HEADROOM = 0.9
BURST_S = 2.0
RESERVE_S = 0.5
CHEAP_BYTES = 600
SAVED_SHARE = 0.25
"""Of what the cap allows, put by while an expensive probe waits: where something stirs all the time
the cheap would use up all, and no path be found back end to end."""
FIRST_ROUND_S = 1.0
"""Every path is measured within this time after it came, cap permitting."""
VOLLEY_SPACING_S = 0.025
VOLLEY_MOST = 8

_JITTER = 0.125
_ORDER = {Kind.ICMP: 0, Kind.PING: 1, Kind.TCP: 2, Kind.QUIC: 3, Kind.HTTP: 4}
_VOLLEY = {Kind.TCP: 0, Kind.PING: 1, Kind.ICMP: 2}
_NONE: frozenset[Kind] = frozenset()


class Job(NamedTuple):
    """One probe to start now."""

    path: Path
    kind: Kind


def cap_bytes_s(line: Line, cadences: Iterable[Cadence]) -> float:
    """Bytes a second that probes may take of ``line``: the least that any of its policies says."""
    caps = [math.inf]
    for cadence in cadences:
        caps.append(cadence.cap_kbit_s * 1000 / 8)
        if line.capacity_bps is not None:
            caps.append(cadence.cap_share * line.capacity_bps / 8)
    return min(caps)


def spread(kept: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Phases in [0, 1) for ``names``: kept ones stay, new ones go where there is most room."""
    phases = {name: kept[name] for name in names if name in kept}
    fresh = [name for name in names if name not in phases]
    if not phases:
        return {name: i / len(fresh) for i, name in enumerate(fresh)}
    for name in fresh:
        taken = sorted(phases.values())
        ends = [*taken[1:], taken[0] + 1.0]
        start, end = max(zip(taken, ends, strict=True), key=lambda gap: gap[1] - gap[0])
        phases[name] = ((start + end) / 2) % 1.0
    return phases


@dataclass(slots=True)
class _Task:
    """One (path, kind) and its place on the grid."""

    path: Path
    kind: Kind
    cadence: Cadence
    cost: int
    phase: float
    lacks: frozenset[Kind] = _NONE
    stamp: int = 0
    """Of its newest heap entry; others are stale."""
    due: float = 0.0
    ran_at: float = -math.inf


@dataclass(slots=True)
class _LineState:
    """What a line's probes share."""

    rate: float
    """Bytes a second, headroom taken off."""
    depth: float
    tokens: float
    filled_at: float
    tasks: list[_Task] = field(default_factory=list)
    pace: Pace = Pace.IDLE
    active_at: float = -math.inf
    """When an exchange was last seen waiting on it."""
    doubted_since: float | None = None
    stirred_at: float = -math.inf
    young_until: float = -math.inf
    """A path is new to it."""
    stretch: float = 1.0
    paths: int = 1
    inquiry: Inquiry = field(default_factory=Inquiry)
    """The doubt about it while it is IDLE."""
    silent: bool = False
    """Something on it is unanswered."""
    dead: bool = False
    """Nothing passes."""
    saved: float = 0.0
    """Of ``tokens``, what is put by for an expensive probe that waits."""
    saving: bool = False

    def refill(self, now: float) -> None:
        came = (now - self.filled_at) * self.rate
        self.tokens = min(self.depth, self.tokens + came)
        if self.saving:
            self.saved = min(self.saved + SAVED_SHARE * came, self.tokens)
        self.filled_at = now

    def wait_s(self, cost: int) -> float:
        """How long until a probe of ``cost`` bytes may go; 0: now."""
        if cost <= CHEAP_BYTES:
            return max(0.0, (min(cost + self.saved, self.depth) - self.tokens) / self.rate)
        need = min(cost + RESERVE_S * self.rate, self.depth)
        wait_s = max(0.0, (need - self.tokens) / self.rate)
        if wait_s > 0.0:
            self.saving = True
            wait_s = max(0.0, min(wait_s, (cost - self.saved) / (SAVED_SHARE * self.rate)))
        return wait_s

    def take(self, cost: int) -> None:
        """A probe of ``cost`` bytes goes."""
        self.tokens -= cost
        if cost > CHEAP_BYTES:
            self.saved, self.saving = max(0.0, self.saved - cost), False


class Planner:
    """Which probes are due. Feed it paths and paces; ask `due` at `next_deadline`."""

    def __init__(self, costs: Mapping[Kind, int], rng: Random) -> None:
        """``costs``: the bytes of one run of each kind that can be run at all."""
        self._costs = dict(costs)
        self._rng = rng
        self._lines: dict[str, _LineState] = {}
        self._tasks: dict[tuple[str, Kind], _Task] = {}
        self._heap: list[tuple[float, int, int, _Task]] = []
        self._stamp = 0
        self._active_at = -math.inf
        """When an exchange was last seen waiting on any line."""

    def reload(self, paths: Sequence[Path], cadence: Callable[[str], Cadence], now: float) -> None:
        """Probe these paths from now on; ``cadence(upstream)`` is its policy's.

        What stays keeps its phase and, unless its period changed, its deadline.
        """
        lines, tasks = self._lines, self._tasks
        self._lines, self._tasks, self._heap = {}, {}, []
        by_line: dict[str, list[Path]] = {}
        for path in paths:
            by_line.setdefault(path.line.name, []).append(path)
        for name, members in by_line.items():
            cadences = [cadence(path.endpoint.upstream) for path in members]
            state = self._line(members[0].line, cadences, lines.get(name), now)
            state.paths = len(members)
            self._lines[name] = state
            kept = {key[0]: task.phase for key, task in tasks.items()}
            if any(path.name not in kept for path in members):
                state.young_until = now + YOUNG_S
            phases = spread(kept, [path.name for path in members])
            for path, its in zip(members, cadences, strict=True):
                for kind in self._kinds(path, its):
                    task = _Task(path, kind, its, self._costs[kind], phases[path.name])
                    self._tasks[path.name, kind] = task
                    state.tasks.append(task)
            state.stretch = self._stretch(state)
            for task in state.tasks:
                old = tasks.get((task.path.name, task.kind))
                if old is not None:
                    task.lacks, task.ran_at = old.lacks, old.ran_at
                if old is not None and old.cadence == task.cadence:
                    self._push(task, old.due)
                else:
                    round_s = min(FIRST_ROUND_S, self._period(task, state))
                    self._push(task, now + self._slot(task, state) * round_s)

    def set_activity(
        self,
        line: str,
        busy: bool,
        now: float,
        *,
        doubted: bool = False,
        silent: bool = False,
        dead: bool = False,
    ) -> Pace:
        """Say whether an exchange waits on ``line``, whether its verdicts are bad, whether
        anything on it is silent, and all of it. Call it often; gives the pace."""
        state = self._lines.get(line)
        if state is None:
            return Pace.IDLE
        if busy:
            state.active_at = self._active_at = now
        if not doubted:
            state.doubted_since = None
        elif state.doubted_since is None:
            state.doubted_since = now
        state.silent, state.dead = silent, dead
        self._set_pace(state, now)
        if state.pace is not Pace.IDLE:
            if state.inquiry.open:
                state.inquiry.settle()
                self._volley(state, now)
        elif silent or doubted:
            state.inquiry.doubt(now)
        else:
            state.inquiry.settle()
        return state.pace

    def stir(self, line: str, now: float) -> None:
        """Something on ``line`` fell silent, or was heard again: ask what can be asked, at once;
        of an IDLE line, as much as a doubt may buy."""
        state = self._lines.get(line)
        if state is None:
            return
        self._set_pace(state, now)
        if state.pace is Pace.IDLE:
            state.inquiry.doubt(now)
            state.inquiry.hasten(now)
        else:
            self._volley(state, now)

    def ask(self, line: str, now: float) -> None:
        """This host's network changed: ask what can be asked, at once."""
        if (state := self._lines.get(line)) is not None:
            self._volley(state, now)

    def _volley(self, state: _LineState, now: float) -> None:
        state.stirred_at = now
        if state.doubted_since is not None:
            state.doubted_since = now
        self._set_pace(state, now)
        asked = sorted(
            (task for task in state.tasks if task.kind in _VOLLEY),
            key=lambda task: (_VOLLEY[task.kind], task.phase),
        )[:VOLLEY_MOST]
        if state.doubted_since is not None:  # is it back end to end?
            ends = [task for task in state.tasks if task.kind is Kind.HTTP]
            asked += sorted(ends, key=lambda task: task.ran_at)
        for number, task in enumerate(asked):
            at = now + number * VOLLEY_SPACING_S
            if at < task.due:
                self._push(task, at)

    def set_lacks(self, path: str, lacks: frozenset[Kind], now: float) -> None:
        """Say which of ICMP, PING and TCP_INFO say nothing on ``path``."""
        if (echo := self._tasks.get((path, Kind.ICMP))) is not None:
            echo.lacks = lacks  # it matters where the line is IDLE
        for kind in (Kind.TCP, Kind.PING):
            task = self._tasks.get((path, kind))
            if task is not None and task.lacks != lacks:
                state = self._lines[task.path.line.name]
                task.lacks = lacks
                state.stretch = self._stretch(state)
                self._pull_in(task, state, now)

    def _set_pace(self, state: _LineState, now: float) -> None:
        quiet_s = now - state.active_at
        since = state.doubted_since
        if now - self._active_at > HOLD_S + RECENT_S and now >= state.young_until:
            pace = Pace.IDLE
        elif now - state.stirred_at <= STIR_S:
            pace = Pace.STIRRED
        elif quiet_s <= HOLD_S or now < state.young_until:
            doubted = since is not None and now - since <= DOUBT_S
            pace = Pace.ACTIVE_DOUBTED if doubted else Pace.ACTIVE
        elif since is not None and now - since <= DOUBT_S:
            pace = Pace.DOUBTED
        elif quiet_s <= HOLD_S + RECENT_S:
            pace = Pace.RECENT
        else:
            pace = Pace.STANDBY
        if pace is state.pace:
            return
        faster = pace > state.pace
        state.pace = pace
        state.stretch = self._stretch(state)
        for task in state.tasks:
            if faster:
                self._pull_in(task, state, now)
            elif pace is Pace.IDLE and task.cost > CHEAP_BYTES and task.ran_at > -math.inf:
                later = self._next(task, state, task.ran_at)
                if later > task.due:
                    self._push(task, later)

    def _pull_in(self, task: _Task, state: _LineState, now: float) -> None:
        sooner = self._next(task, state, now)
        if sooner < task.due:
            self._push(task, sooner)

    def next_deadline(self) -> float | None:
        """When `due` must be asked next; ``None``: nothing is planned."""
        planned = self._planned()
        asked = min(
            (at for state in self._lines.values() if (at := state.inquiry.due) is not None),
            default=None,
        )
        if planned is None or asked is None:
            return planned if asked is None else asked
        return min(planned, asked)

    def _planned(self) -> float | None:
        while self._heap and self._heap[0][2] != self._heap[0][3].stamp:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[Job]:
        """The probes to start now; each is planned anew. What the cap holds back comes later."""
        jobs: list[Job] = []
        for state in self._lines.values():
            if (at := state.inquiry.due) is not None and at <= now:
                jobs += self._inquire(state, now)
        while (deadline := self._planned()) is not None and deadline <= now:
            task = heapq.heappop(self._heap)[3]
            state = self._lines[task.path.line.name]
            state.refill(now)
            wait_s = state.wait_s(task.cost)
            if wait_s > 0:
                self._push(task, now + wait_s + 1e-6)
                continue
            state.take(task.cost)
            task.ran_at = now
            jobs.append(Job(task.path, task.kind))
            self._push(task, self._next(task, state, now))
        return jobs

    def _inquire(self, state: _LineState, now: float) -> Sequence[Job]:
        """The next question about an IDLE line, if its purse suffices: the cheapest kinds of all
        paths in turn, and end to end where a verdict is bad and no connection is left to PING."""
        inquiry = state.inquiry
        silent = [task for task in state.tasks if task.kind in _VOLLEY]
        silent = [task for task in silent if task.kind not in task.lacks] or silent
        if not silent:
            inquiry.settle()
            return ()
        silent.sort(key=lambda task: (_ORDER[task.kind], task.phase))
        number = inquiry.asked
        task = silent[number % len(silent)]
        if number and state.doubted_since is not None and not state.dead:
            for other in state.tasks:
                if (
                    other.kind is Kind.HTTP
                    and self._unpinged(other.path)
                    and now - other.ran_at >= DOUBT_HTTP_S
                    and inquiry.purse.available(now) >= other.cost
                ):
                    task = other
        if not inquiry.buy(task.cost, now, silent=state.silent):
            return ()
        task.ran_at = now
        return (Job(task.path, task.kind),)

    def _unpinged(self, path: Path) -> bool:
        """Whether no connection of a path can be PINGed."""
        task = self._tasks.get((path.name, Kind.PING))
        return task is None or Kind.PING in task.lacks

    def interval_s(self, path: str, kind: Kind) -> float | None:
        """The present period of a probe, stretched; ``None``: it is not run."""
        task = self._tasks.get((path, kind))
        if task is None:
            return None
        return self._period(task, self._lines[task.path.line.name])

    # --- periods ----------------------------------------------------------------------------

    def _kinds(self, path: Path, cadence: Cadence) -> list[Kind]:
        return [
            kind
            for kind in self._costs
            if period_s(kind, cadence, Pace.IDLE) is not None
            and (kind is not Kind.QUIC or Carrier.H3 in path.endpoint.protocols)
        ]

    def _raw(self, task: _Task, state: _LineState) -> float:
        udp_only = task.path.endpoint.protocols == (Carrier.H3,)
        period = period_s(task.kind, task.cadence, state.pace, task.lacks, udp_only=udp_only)
        assert period is not None  # `_kinds` left the others out
        return max(period, 0.01)

    def _period(self, task: _Task, state: _LineState) -> float:
        return self._raw(task, state) * state.stretch

    def _stretch(self, state: _LineState) -> float:
        planned = sum(task.cost / self._raw(task, state) for task in state.tasks)
        rate = min(state.rate, ROUTINE_BYTES_S) if state.pace is Pace.IDLE else state.rate
        return max(1.0, planned / rate)

    def _slot(self, task: _Task, state: _LineState) -> float:
        """The phase of a path, kinds apart by a part of the slot between two paths."""
        return (task.phase + _ORDER[task.kind] / (len(_ORDER) * state.paths)) % 1.0

    def _next(self, task: _Task, state: _LineState, now: float) -> float:
        """The next point of the grid that is at least half a period away, with its jitter."""
        period = self._period(task, state)
        slot = self._slot(task, state)
        n = math.floor(now / period - slot + 0.5) + 1
        most = min(_JITTER, 0.5 / state.paths)
        jitter = self._rng.uniform(-most, most)
        return (n + slot + jitter) * period

    def _push(self, task: _Task, due: float) -> None:
        self._stamp += 1
        task.stamp = self._stamp
        task.due = due
        heapq.heappush(self._heap, (due, _ORDER[task.kind], task.stamp, task))

    def _line(
        self, line: Line, cadences: Iterable[Cadence], old: _LineState | None, now: float
    ) -> _LineState:
        rate = HEADROOM * cap_bytes_s(line, cadences)
        dearest = max(self._costs.values(), default=0)
        depth = max(BURST_S * rate, dearest + RESERVE_S * rate)
        state = _LineState(rate, depth, depth, now)
        if old is not None:
            old.refill(now)
            state.tokens = min(old.tokens, depth)
            state.pace, state.active_at = old.pace, old.active_at
            state.doubted_since, state.stirred_at = old.doubted_since, old.stirred_at
            state.young_until = old.young_until
            state.inquiry = old.inquiry
        return state
