"""PathTable: the only mutable path state. Samples in; snapshots, rankings and changes out.

Synchronous, without I/O and without a clock. What changes a verdict, a breaker or an ejection
publishes a new `Snapshot` before the call returns, and then tells the subscribers; estimates are
republished at most every 100 ms, by whatever call comes next. State is keyed by path name and
survives a reload.

What one sample is evidence of: `edged.judging`. What a snapshot shows: `edged.publishing`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from edged import judging, legs
from edged.inventory import Inventory, Turnover
from edged.publishing import Publisher
from edged.records import Choice, Entry, PathRecord
from policies.concurrency import Answer
from policies.detector import Detector
from policies.model import (
    Breaker,
    Carrier,
    CarrierChange,
    Change,
    Endpoint,
    FarLeg,
    Kind,
    Ranking,
    RequestClass,
    Sample,
    Seen,
    Snapshot,
    Topology,
    Verdict,
)
from policies.schema import Policy

SAME_SIGN_S = 0.005
"""Exchanges that succeed within this span are one sign of life, so that thousands a second cost
little; their times to first byte are all counted."""


class PathTable:
    """See the module. ``policies``: by upstream name; ``default_policy`` for unlisted hosts.

    ``rng`` jitters pauses. ``on_choice`` is told when the first path of a ranking changes,
    ``on_gate`` when a breaker opens, with the reason, and when it closes again, with an empty one.
    """

    def __init__(
        self,
        topology: Topology,
        policies: Mapping[str, Policy],
        now: float,
        *,
        rng: random.Random,
        default_policy: Policy | None = None,
        on_choice: Callable[[Choice], None] | None = None,
        on_gate: Callable[[str, str], None] | None = None,
    ) -> None:
        self._rng = rng
        self._on_choice = on_choice
        self._on_gate = on_gate
        self._detector = Detector()
        self._inventory = Inventory(default_policy or Policy())
        self._lines = self._inventory.lines
        self._upstreams = self._inventory.upstreams
        self._records = self._inventory.records
        self._publisher = Publisher(self._inventory, self._detector, now)
        self._states = self._publisher.states
        self._dirty = self._publisher.dirty
        self._troubled = self._publisher.troubled
        self._entries: dict[tuple[str, RequestClass], Entry] = {}
        self._subscribers: list[Callable[[Change], None]] = []
        self._carrier_subscribers: list[Callable[[CarrierChange], None]] = []
        self._untold: deque[Change] = deque()
        self._telling = False
        self._now = now
        self.snapshot = Snapshot(now, 0, {}, {})
        self.reload(topology, now, policies)

    # -- samples and time --------------------------------------------------------------------

    def observe(self, sample: Sample, now: float) -> None:
        """Take one sample; samples of unknown paths are dropped."""
        record = self._records.get(sample.path)
        if record is None or not sample.outcome.about_path:
            return
        if now > self._now:
            self._now = now
        self._dirty.add(record)
        changes: Sequence[Change] = ()
        if sample.kind is Kind.TTFB:
            judging.learn(record, sample, self._states[sample.path].estimate.rtt_s, now)
        if sample.kind is not Kind.TTFB or not sample.outcome.ok or now >= record.heard_until:
            record.heard_until = now + SAME_SIGN_S
            record.window.observe(sample, now)
            changes = self._detector.observe(sample, now)
        moved = self._judge(record, sample, now)
        if changes or moved or now >= self._publisher.republish_at:
            self._publish(now, changes)
        self._tell_carriers()

    def saw(self, sent: Iterable[str], seen: Iterable[Seen], now: float) -> None:
        """Take what one look at the connections in use showed.

        ``sent``: paths on which data was sent whose fate a later look will tell.
        """
        for path in sent:
            self._detector.spaced(path, Kind.KERNEL, now)
        changes = self._detector.saw(seen, now)
        if changes:
            self._now = max(self._now, now)
            self._publish(now, changes)
        self._tell_carriers()

    def answered(self, path: str, answers: Sequence[Answer], now: float) -> None:
        """Further exchanges on ``path`` were answered well.

        For those between two samples of real traffic: they count for the tail of the latency, for
        the concurrency limit and for the rate of success, and tell nothing new otherwise.
        """
        record = self._records.get(path)
        if record is not None:
            record.goods += len(answers)
            for ttfb_s, _ in answers:
                record.remote.latency.observe(ttfb_s, now)
            record.remote.answered(answers, self._states[path].estimate.rtt_s, now)
            self._dirty.add(record)

    def lost(self, line: str, why: str, now: float) -> None:
        """This host cannot send on ``line``: it is DOWN at once."""
        if changes := self._detector.lost(line, why, now):
            self._publish(now, changes)

    def stuck(self, path: str, times: int, lost: int, now: float) -> bool:
        """The same data was sent ``times`` on a connection of ``path`` without an answer, and
        ``lost`` segments are missing there.

        Whether that is more than loss: the connection is of no use, and the path is SUSPECT.
        """
        convincing, changes = self._detector.stuck(path, times, lost, now)
        if changes:
            self._now = max(self._now, now)
            self._publish(now, changes)
        return convincing

    def sent(
        self,
        path: str,
        kind: Kind,
        now: float,
        carrier: Carrier | None = None,
        held_s: float = 0.0,
    ) -> None:
        """A probe or PING was sent on ``path``: from now on its silence counts.

        ``held_s``: how long the other side may keep its answer.
        """
        record = self._records.get(path)
        if record is not None:
            rtt_s, slack_s = record.window.reply_times(kind, now)
            self._detector.sent(path, kind, now, rtt_s, slack_s + held_s, carrier)

    def reported(self, path: str, far: FarLeg | None, now: float) -> None:
        """The relay of ``path`` said how it does on its own way to the endpoint."""
        record = self._records.get(path)
        if record is None or record.leg is None or record.far == far:
            return
        self._now = max(self._now, now)
        self._dirty.add(record)
        change = legs.reported(record, far, now)
        if change is not None:
            self._publish(now, (change,))

    def tick(self, now: float, lag_s: float = 0.0) -> None:
        """Deadlines, decay, ejection ends, regret. ``lag_s``: how late the loop runs this turn."""
        self._now = max(self._now, now)
        changes = self._detector.tick(now, lag_s)
        if changes or self._publisher.due(now):
            self._publish(now, changes)
        self._tell_carriers()

    def lagged(self, lag_s: float, now: float) -> None:
        """The event loop stood still for ``lag_s`` until now: silence meanwhile convicts nobody."""
        self._detector.lagged(lag_s, now)

    def next_deadline(self) -> float | None:
        """When `tick` must run at the latest; `None`: nothing is pending."""
        times = self._publisher.deadlines()
        if (silence_at := self._detector.next_deadline()) is not None:
            times.append(silence_at)
        return min(times, default=None)

    # -- choices -----------------------------------------------------------------------------

    def ranking(self, upstream: str, cls: RequestClass) -> Ranking:
        """The order for a request that comes now, which is counted. Memoised until a snapshot
        shows something new of the upstream.

        Raises KeyError for an upstream that does not exist.
        """
        entry = self._entries.get((upstream, cls))
        if entry is None:
            entry = self._entry(upstream, cls)
        entry.requests += 1
        ranking = entry.ranking
        if ranking is None or entry.serial != entry.upstream.serial:
            ranking = self._rank(entry)
        return ranking

    def peek(self, upstream: str, cls: RequestClass) -> Ranking:
        """The same for people and standby connections: nothing is counted."""
        entry = self._entries.get((upstream, cls)) or self._entry(upstream, cls)
        if entry.ranking is None or entry.serial != entry.upstream.serial:
            return self._rank(entry)
        return entry.ranking

    def policy(self, upstream: str) -> Policy:
        """The policy an upstream is decided by. Raises KeyError."""
        return self._upstreams[upstream].policy

    def line_verdict(self, line: str) -> Verdict:
        """What is known of a line as a whole."""
        return self._detector.line_verdict(line)

    # -- live gauges -------------------------------------------------------------------------

    def started(self, path: str) -> int:
        """An attempt began on ``path``; gives how many are in flight at its endpoint now.

        Unknown paths are ignored (they went with a reload).
        """
        record = self._records.get(path)
        if record is None:
            return 0
        remote = record.remote
        record.in_flight += 1
        record.line.in_flight += 1
        remote.in_flight += 1
        self._dirty.add(record)
        if remote.limit is not None and remote.in_flight >= remote.limit and not remote.full:
            # The next request must know: until an estimate changes, it would come here as well.
            self._publish(self._now, ())
        return remote.in_flight

    def finished(self, path: str) -> None:
        """It ended."""
        record = self._records.get(path)
        if record is not None and record.in_flight > 0:
            record.in_flight -= 1
            record.line.in_flight -= 1
            record.remote.in_flight -= 1
            self._dirty.add(record)

    def set_warm(self, path: str, carrier: Carrier | None) -> None:
        """A usable connection of ``carrier`` is open on ``path``, or none is."""
        record = self._records.get(path)
        if record is not None and record.warm is not carrier:
            record.warm = carrier
            self._dirty.add(record)

    def set_line_usage(self, line: str, used_bps: float | None) -> None:
        """Bits per second that cross ``line`` now; needed for its spare bandwidth."""
        record = self._lines.get(line)
        if record is not None:
            record.used_bps = used_bps

    def set_drilled(self, line: str, drilled: bool) -> None:
        """``line`` is silenced on purpose: its outages do not count against it later."""
        record = self._lines.get(line)
        if record is not None:
            record.drilled = drilled

    def in_flight(self, line: str) -> int:
        """How many attempts are in flight on ``line``."""
        record = self._lines.get(line)
        return 0 if record is None else record.in_flight

    def waiting(self, line: str) -> bool:
        """Whether an exchange is in flight on ``line``: probes speed up."""
        return self.in_flight(line) > 0

    def doubted(self, line: str) -> bool:
        """Whether ``line`` or a path on it is worse than UP: it is probed for its return."""
        if self._detector.doubted(line):
            return True
        return any(
            r.gate.state is not Breaker.CLOSED and r.line.line.name == line for r in self._troubled
        )

    def silent(self, line: str) -> bool:
        """Whether something sent on ``line`` is overdue, verdict or not."""
        return self._detector.silent(line)

    def silent_since(self, path: str) -> float | None:
        """When the silence began for which a path is DOWN; ``None``: there is none."""
        return self._detector.silent_since(path)

    def dead(self, line: str) -> bool:
        """Whether nothing passes on ``line`` at all."""
        return self._detector.dead(line)

    def stirred(self, line: str) -> int:
        """How often something on ``line`` fell silent, or was heard again, so far."""
        return self._detector.stirred(line)

    @property
    def stirs(self) -> int:
        """The same over all lines."""
        return self._detector.stirs

    def mute(self, path: str) -> bool:
        """Whether ICMP says nothing of ``path``."""
        return self._detector.mute(path)

    def warm(self, path: str) -> Carrier | None:
        """The carrier with an open, usable connection, if there is one."""
        record = self._records.get(path)
        return None if record is None else record.warm

    def subscribe(self, callback: Callable[[Change], None]) -> None:
        """Call ``callback`` with each change of a verdict, the new snapshot being in place."""
        self._subscribers.append(callback)

    def subscribe_carriers(self, callback: Callable[[CarrierChange], None]) -> None:
        """Call ``callback`` when one transport of a path falls silent while the other answers,
        and when it answers again; after the verdicts of the same moment."""
        self._carrier_subscribers.append(callback)

    # -- what exists -------------------------------------------------------------------------

    def reload(
        self,
        topology: Topology,
        now: float,
        policies: Mapping[str, Policy] | None = None,
        default_policy: Policy | None = None,
    ) -> None:
        """Take a new topology (and policies); what keeps its name keeps its state.

        Unlisted hosts stay, over the lines that exist now.
        """
        self._take(self._inventory.reload(topology, now, policies, default_policy))
        self._publish(now, ())

    def ensure(self, endpoint: Endpoint, now: float) -> str:
        """Paths over every line for a host that is in no upstream; gives its upstream's name.

        See `Inventory.ensure`.
        """
        name, turnover = self._inventory.ensure(endpoint)
        if turnover is not None:
            self._take(turnover)
            self._publish(now, ())
        return name

    # -- parts -------------------------------------------------------------------------------

    def _take(self, turnover: Turnover) -> None:
        """Follow what came and went."""
        for record in turnover.gone:
            self._publisher.forget(record)
            self._detector.forget(record.path.name)
        for key in [k for k in self._entries if k[0] in turnover.dropped]:
            del self._entries[key]
        for record in turnover.placed:
            path = record.path
            if path.relay is not None:
                continue  # what is heard of its leg is heard of it
            listed = record.upstream.listed
            self._detector.watch(
                path.name,
                path.line.name,
                path.endpoint.key,
                listed=listed,
                udp_only=path.endpoint.protocols == (Carrier.H3,),
            )
        self._dirty.update(turnover.placed)

    def _judge(self, record: PathRecord, sample: Sample, now: float) -> bool:
        """Breaker and cohort; says whether a gate or an exclusion changed."""
        found = self._detector.finding(record.path.name) if record.leg is None else record.finding
        down = found.verdict is Verdict.DOWN
        gate = record.gate
        was = gate.state
        moved = judging.judge(record, sample, now, self._rng, down=down)
        if moved:
            turned = was is not gate.state and Breaker.CLOSED in (was, gate.state)
            if turned and self._on_gate is not None:
                self._on_gate(record.path.name, gate.reason)
            # An exclusion concerns all paths of the endpoint.
            same = record.siblings()
            self._dirty.update(same)
            self._troubled.update(same)
        return moved

    def _apply(self, change: Change) -> None:
        """What a verdict means for damping and hazard."""
        record = self._records.get(change.path)
        if record is None:
            return
        self._dirty.add(record)
        self._troubled.add(record)
        down = self._detector.line_verdict(record.line.line.name) is Verdict.DOWN
        judging.changed(record, change, line_down=down)

    def _publish(self, now: float, changes: Sequence[Change]) -> None:
        """One new snapshot with all that changed, then the subscribers."""
        if changes:
            changes = legs.spread(self._records, changes)
        for change in changes:
            self._apply(change)
        self.snapshot = self._publisher.make(now)
        self._untold.extend(changes)
        self._tell()

    def _tell_carriers(self) -> None:
        for change in self._detector.take_carrier_changes():
            for callback in tuple(self._carrier_subscribers):
                callback(change)

    def _tell(self) -> None:
        """Deliver changes in order, also those that a subscriber causes."""
        if self._telling:
            return
        self._telling = True
        try:
            while self._untold:
                change = self._untold.popleft()
                for callback in tuple(self._subscribers):
                    callback(change)
        finally:
            self._telling = False

    def _entry(self, upstream: str, cls: RequestClass) -> Entry:
        entry = self._entries[(upstream, cls)] = Entry(self._upstreams[upstream], cls)
        return entry

    def _rank(self, entry: Entry) -> Ranking:
        ranking, choice = entry.rank(self._states, self._now)
        if choice is not None and self._on_choice is not None:
            self._on_choice(choice)
        return ranking
