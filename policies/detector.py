"""Silence to verdict: is a path dead, and is it the line, the endpoint or this host?

Runs of silent slots are judged by `policies.silence`. A slot is something sent that ought to be
answered: announced with `Detector.sent`, or known by its sample only. Time is an argument;
`Detector.next_deadline` says when to call `tick`.

Layers: 0 ICMP, 1 TCP and KERNEL, 2 everything that goes end to end. A layer's channel counts the
silent slots of its own and higher layers, and only an arrival of its own or a higher layer ends a
run: ICMP replies, or SYNs answered by an accelerator, do not rescue a path on which no TLS gets
through. TTFB is never a slot (a model may think), only a sign of life.

| evidence | path | line |
| --- | --- | --- |
| run of silent slots, this path | its verdict | pooled with its other endpoints' |
| ... of ICMP only | SUSPECT at most | SUSPECT at most, unless two endpoints are silent |
| ... of ICMP that never answered here; QUIC likewise where TCP answers | none | none |
| line's run, two endpoints in it | the line's | its verdict |
| line's run, its only witness, heard over another line since | the line's | its verdict |
| ... silent over another line too: the endpoint | its own | none |
| ... nothing known of it elsewhere | its own | SUSPECT; its verdict where it has no other line |
| line's run, one endpoint of several, that one DOWN | its own | SUSPECT until others are heard |
| UNREACHABLE (local) | DOWN | DOWN at once, if the path was a witness |
| DNS (local) | SUSPECT, a silent slot | SUSPECT at once, if the path was a witness |
| REFUSED, TLS, PROTOCOL: two, three attempts in a row | SUSPECT, DOWN | heard: alive |
| RESET: the same | SUSPECT, DOWN | none |
| ... by two endpoints that do not fail elsewhere | the line's | DOWN |
| HTTP_ERROR, BUSY, OK | heard | heard |
| LOCAL (this process ran out of something) | none | none |
| loop lag above d/2 | all deadlines move by the lag | |

A path shows the worse of its own and its line's verdict. A witness is a path that was heard on the
line, until it is DOWN while the line is heard from others. When a line is heard again, its paths
that fell silent with it are pardoned. Recovery: `policies.silence.Gate`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from typing import Final

from policies.attribution import LAYER, Finding, LineState, PathState, Slot, judge, witness
from policies.model import Change, Kind, Outcome, Sample, Verdict

SAME_RUN_S: Final = 10.0
"""A timeout reported so long after an announced slot is a slot of its own."""
_OUTSTANDING: Final = 32
_NO_SLOTS: Final = frozenset((Kind.TTFB, Kind.KERNEL))
_ANSWERS: Final = frozenset((Outcome.OK, Outcome.BUSY, Outcome.HTTP_ERROR))
_CLOCK_S: Final = 0.05
"""Slots are announced, samples timed, by different readings of the clock."""
_UNCHANGED: Final[Sequence[Change]] = ()


class Detector:
    """All lines and paths of one host. Not thread-safe; synchronous; pure but for its own state."""

    def __init__(self) -> None:
        self._paths: dict[str, PathState] = {}
        self._lines: dict[str, LineState] = {}
        self._endpoints: dict[str, list[PathState]] = {}
        self._due: list[Slot] = []
        self._shift_s = 0.0
        """What lag has added to the deadlines of the heap, which are stored without it."""

    # -- what exists -------------------------------------------------------------------------

    def watch(self, path: str, line: str, endpoint: str, *, listed: bool = True) -> None:
        """Begin with a path; nothing changes if it is known.

        What a client asks for that is not ``listed`` may be wrong or dead: such a path speaks
        against its line only after it was heard, and never by a name that does not resolve.
        """
        if path in self._paths:
            return
        owner = self._lines.get(line)
        if owner is None:
            owner = self._lines[line] = LineState(line)
        state = self._paths[path] = PathState(path, owner, endpoint, listed=listed)
        owner.paths.append(state)
        self._endpoints.setdefault(endpoint, []).append(state)

    def forget(self, path: str) -> None:
        """End with a path; its slots are void."""
        state = self._paths.pop(path, None)
        if state is None:
            return
        for slots in state.slots.values():
            for slot in slots:
                slot.open = False
        state.line.paths.remove(state)
        if not state.line.paths:
            del self._lines[state.line.name]
        self._endpoints[state.endpoint].remove(state)
        if not self._endpoints[state.endpoint]:
            del self._endpoints[state.endpoint]

    # -- what it says ------------------------------------------------------------------------

    def finding(self, path: str) -> Finding:
        """Verdict, blame and the sentence that explains them. Raises `KeyError`."""
        return self._paths[path].finding

    def line_verdict(self, line: str) -> Verdict:
        """The line's own verdict; UP if unknown."""
        state = self._lines.get(line)
        return Verdict.UP if state is None else state.gate.verdict

    def suspected(self, line: str) -> bool:
        """Whether anything on the line is silent, DOWN or half-open: reason to probe faster."""
        state = self._lines.get(line)
        return state is not None and not (state.calm and all(p.calm for p in state.paths))

    def next_deadline(self) -> float | None:
        """When `tick` must run at the latest, or ``None`` while nothing is outstanding."""
        while self._due and not self._due[0].open:
            heapq.heappop(self._due)
        return self._due[0].due + self._shift_s if self._due else None

    # -- what happens ------------------------------------------------------------------------

    def sent(self, path: str, kind: Kind, at: float, rtt_s: float, slack_s: float) -> None:
        """A slot was sent; its reply is expected ``rtt_s`` later, overdue ``slack_s`` after that.

        `Window.reply_times` gives both. Kinds that wait for thinking or are reported only when
        something came of them (TTFB, KERNEL) are ignored.
        """
        state = self._paths.get(path)
        if state is None or kind in _NO_SLOTS:
            return
        slot = Slot(state, kind, at, at + rtt_s, at + rtt_s + slack_s - self._shift_s)
        slots = state.slots.get(kind)
        if slots is None:
            slots = state.slots[kind] = deque(maxlen=_OUTSTANDING)
        elif len(slots) == _OUTSTANDING:
            slots[0].open = False
        slots.append(slot)
        heapq.heappush(self._due, slot)
        if self._counts(state, kind):
            for channel in state.hears[slot.layer]:
                channel.sent(at)

    def observe(self, sample: Sample, now: float) -> Sequence[Change]:
        """Take any sample; the outcome decides what it is evidence of."""
        state = self._paths.get(sample.path)
        if state is None:
            return _UNCHANGED
        outcome = sample.outcome
        if outcome in _ANSWERS:
            return self._heard(state, sample.kind, now, sample.sent_at)
        if not outcome.about_path or outcome is Outcome.NO_NAME:
            return _UNCHANGED  # a wrong name is no network's fault; the breaker minds it
        if outcome is Outcome.TIMEOUT:
            return self._timed_out(state, sample.kind, sample.sent_at, now)
        if outcome is Outcome.UNREACHABLE or outcome is Outcome.DNS:
            return self._local_error(state, sample, now)
        return self._remote_error(state, sample, now)

    def heard(
        self, path: str, kind: Kind, at: float, sent_at: float | None = None
    ) -> Sequence[Change]:
        """A reply (to the slot sent at ``sent_at``) or any other receipt arrived at ``at``."""
        state = self._paths.get(path)
        return _UNCHANGED if state is None else self._heard(state, kind, at, sent_at)

    def tick(self, now: float, lag_s: float = 0.0) -> Sequence[Change]:
        """Convict what is overdue. ``lag_s``: how late the loop runs in this very turn.

        A lag above half the spacing of the slots moves all deadlines by the lag first.
        """
        if lag_s > 0:
            self.lagged(lag_s)
        touched: dict[str, LineState] = {}
        due = self._due
        while due and due[0].due + self._shift_s <= now:
            slot = heapq.heappop(due)
            if slot.open:
                slot.open = False
                self._silent(slot)
                touched[slot.path.line.name] = slot.path.line
        if not touched:
            return _UNCHANGED
        changes: list[Change] = []
        for line in touched.values():
            changes += judge(line, self._endpoints, now, None)
        return changes

    def lagged(self, lag_s: float) -> None:
        """The loop stood still for ``lag_s``: no deadline that passed meanwhile convicts anyone."""
        if self._due and lag_s > self._pace_s() / 2:
            self._shift_s += lag_s

    def _pace_s(self) -> float:
        return min(line.channels[0].pace_s for line in self._lines.values())

    # -- evidence ----------------------------------------------------------------------------

    def _heard(
        self, path: PathState, kind: Kind, at: float, sent_at: float | None
    ) -> Sequence[Change]:
        layer = LAYER[kind]
        path.answered.add(kind)
        line = path.line
        if sent_at is not None and kind not in _NO_SLOTS:
            slots = path.slots.get(kind)
            if slots is not None:
                self._answer(path, slots, sent_at)
            else:
                for channel in path.hears[layer]:
                    channel.sent(sent_at)
                    channel.answered()
        if path.calm and line.calm:
            for channel in path.hears[layer]:
                channel.heard_at = at
            return _UNCHANGED
        for channel in path.hears[layer]:
            channel.heard(at)
        if layer >= path.error_layer:
            path.errors = 0
        return judge(line, self._endpoints, at, path, layer)

    @staticmethod
    def _answer(path: PathState, slots: deque[Slot], sent_at: float) -> None:
        """The newest slot sent by then is answered; older ones stay, and are lost when overdue."""
        for slot in reversed(slots):
            if slot.sent_at <= sent_at + _CLOCK_S:
                slot.open = False
                for channel in path.hears[slot.layer]:
                    channel.answered()
                slots.remove(slot)
                return

    def _timed_out(
        self, path: PathState, kind: Kind, sent_at: float, now: float
    ) -> Sequence[Change]:
        """A timeout is the announced slot's, whose deadline has mostly passed, or a slot itself."""
        if kind is Kind.TTFB:
            return _UNCHANGED
        slots = path.slots.get(kind)
        if slots:
            for slot in reversed(slots):
                if slot.sent_at <= sent_at + _CLOCK_S:
                    if sent_at - slot.sent_at > SAME_RUN_S:
                        break
                    slots.remove(slot)
                    if not slot.open:
                        return _UNCHANGED
                    slot.open = False
                    self._silent(slot)
                    return judge(path.line, self._endpoints, now, None)
        self._unannounced(path, kind, sent_at, now)
        return judge(path.line, self._endpoints, now, None)

    def _unannounced(self, path: PathState, kind: Kind, sent_at: float, now: float) -> None:
        if self._counts(path, kind):
            for channel in path.hears[LAYER[kind]]:
                channel.sent(sent_at)
        # A timeout is about twice what a reply takes.
        self._silent(Slot(path, kind, sent_at, (sent_at + now) / 2, now))

    def _local_error(self, path: PathState, sample: Sample, now: float) -> Sequence[Change]:
        line = path.line
        accuses = witness(path) and (path.listed or sample.outcome is not Outcome.DNS)
        verdict = Verdict.DOWN if sample.outcome is Outcome.UNREACHABLE else Verdict.SUSPECT
        path.reason = f"this host or its gateway reported {sample.outcome} over {line.name}"
        path.gate.worsen(verdict, now)
        if accuses:
            line.reason = path.reason
            line.accuser = path
            line.gate.worsen(verdict, now)
        if sample.outcome is Outcome.DNS and path.listed:
            self._unannounced(path, Kind.HTTP, sample.sent_at, now)
        return judge(line, self._endpoints, now, None)

    def _remote_error(self, path: PathState, sample: Sample, now: float) -> Sequence[Change]:
        line = path.line
        reset = sample.outcome is Outcome.RESET
        if not reset:
            for channel in path.hears[1]:
                channel.heard(now)
            slots = path.slots.get(sample.kind)
            if slots:
                self._answer(path, slots, sample.sent_at)
        if sample.sent_at >= path.attempt_after:
            # Exchanges that fail together fail once: only an attempt made since counts again.
            path.attempt_after = now
            if not path.errors:
                path.error_since = now
            path.errors += 1
            path.error_layer = 1 if sample.outcome is Outcome.REFUSED else 2
            path.error = sample.outcome
        return judge(line, self._endpoints, now, None if reset else path, 1)

    @staticmethod
    def _counts(path: PathState, kind: Kind) -> bool:
        """Whether silence of this kind says anything here: it has answered, or it should."""
        if kind is Kind.ICMP or (kind is Kind.QUIC and path.answered):
            return kind in path.answered
        return True

    def _silent(self, slot: Slot) -> None:
        path = slot.path
        if not self._counts(path, slot.kind):
            return
        pooled = witness(path)
        icmp = slot.kind is Kind.ICMP
        for number in range(slot.layer + 1):
            path.channels[number].silent(slot.sent_at, slot.reply_at, path.endpoint, icmp=icmp)
            if pooled:
                path.line.channels[number].silent(
                    slot.sent_at, slot.reply_at, path.endpoint, icmp=icmp
                )
        path.gate.stumble()
        if pooled:
            path.line.gate.stumble()
