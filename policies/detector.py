"""Silence to verdict: is a path dead, and is it the line, the endpoint or this host?

Runs of silent slots are judged by `policies.silence`. A slot is something sent that ought to be
answered: announced with `Detector.sent`, known by its sample only, or seen on a live connection
(`Detector.saw`). Time is an argument; `Detector.next_deadline` says when to call `tick`.

Layers: ICMP, TCP connects, TCP data and its acknowledgements, end to end over TCP (TLS, HTTP, h2
PING, responses); and, apart, QUIC. A layer's silence counts on the layers below it, too, and only
an answer of its own or a higher layer ends a run: ICMP replies, or SYNs answered by an
accelerator, do not rescue a path on which no TLS gets through. TTFB is never a slot (a model may
think), only a sign of life. An answer shows both ways alive at the time of the *sending*; bytes
that come unasked show the way back only.

| evidence | path | line |
| --- | --- | --- |
| run of silent slots, this path | its verdict | pooled with its other endpoints' |
| ... of ICMP only | SUSPECT at most | SUSPECT at most, unless two endpoints are silent |
| ... of ICMP that never answered here, or often does not | none | none |
| ... of QUIC that never answered here, where TCP answers, and may serve | none | none |
| ... of QUIC, connects answered since | SUSPECT till TCP data passes; h3 blocked | none |
| ... of TCP, QUIC answered since | none; h2 and h1 blocked | none |
| ... of TCP end to end, data is acknowledged | h2 and h1 not blocked for 5 s | none |
| ... of either, from before both were back | none | none |
| ... end to end, bytes still flow both ways | SUSPECT at most | SUSPECT at most |
| a connection stuck on its own | SUSPECT for a time that doubles | none |
| two answers 0.15 s late | SUSPECT for 2 s more; DOWN waits as much longer | DOWN waits |
| line's run, two endpoints in it | the line's | its verdict |
| line's run, its only witness, heard over another line since | the line's | its verdict |
| ... silent over another line too: the endpoint | its own | none; DOWN stays till DOWN there |
| ... nothing known of it elsewhere | its own | SUSPECT; its verdict where it has no other line |
| line's run, one endpoint of several, that one DOWN | its own | SUSPECT until others are heard |
| the kernel took its interface or address | | DOWN at once |
| UNREACHABLE (local) | DOWN | DOWN at once, if the path was a witness |
| DNS (local) | SUSPECT, a silent slot | SUSPECT at once, if the path was a witness |
| REFUSED, TLS, PROTOCOL: two, three attempts in a row | SUSPECT, DOWN | heard: alive |
| RESET: the same | SUSPECT, DOWN | none |
| ... by two endpoints that do not fail elsewhere | the line's | DOWN |
| HTTP_ERROR, BUSY, OK | heard | heard |
| LOCAL (this process ran out of something) | none | none |
| loop lag above d/2 | all deadlines move by the lag | |
| the loop stood still for 0.2 s | what was outstanding says nothing | |

A path shows the worse of its own and its line's verdict. A witness is a path that was heard on the
line, until it is DOWN while the line is heard from others. When a line is heard again, its paths
that fell silent with it are pardoned. Recovery: `policies.silence.Gate`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from policies.attribution import blocked_carriers, judge
from policies.deadlines import Deadlines
from policies.errors import local_error, remote_error
from policies.ledger import (
    ANY,
    CLOCK_S,
    END,
    REACH,
    SYN,
    UDP,
    Finding,
    LineState,
    PathState,
    Slot,
    layer_of,
)
from policies.model import (
    Blame,
    Carrier,
    CarrierChange,
    Change,
    Kind,
    Outcome,
    Sample,
    Seen,
    Verdict,
)

SAME_RUN_S: Final = 10.0
"""A timeout reported so long after an announced slot is a slot of its own."""
STALL_S: Final = 0.2
"""After the loop stood still for so long, timers have beaten the answers that wait to be read."""
LIFE_S: Final = 2.0
"""A path that is DOWN and was silent for so long gives a sign of life when it is heard."""
_OUTSTANDING: Final = 32
_NO_SLOTS: Final = frozenset((Kind.TTFB, Kind.KERNEL))
_PLAIN: Final = frozenset((ANY, SYN, UDP))
"""Layers on which an answer that is late was late on the way: TCP holds up others by repairs."""
_ANSWERS: Final = frozenset((Outcome.OK, Outcome.BUSY, Outcome.HTTP_ERROR))
_UNCHANGED: Final[Sequence[Change]] = ()


class Detector:
    """All lines and paths of one host. Not thread-safe; synchronous; pure but for its own state."""

    def __init__(self) -> None:
        self._paths: dict[str, PathState] = {}
        self._lines: dict[str, LineState] = {}
        self._endpoints: dict[str, list[PathState]] = {}
        self._due = Deadlines()
        self._stalled_at = float("-inf")
        self._carrier_changes: list[CarrierChange] = []
        self.stirs = 0
        """How often a line that was calm fell silent, or one in trouble was heard again: each time
        there is reason to probe at once."""

    # -- what exists -------------------------------------------------------------------------

    def watch(
        self,
        path: str,
        line: str,
        endpoint: str,
        *,
        listed: bool = True,
        udp_only: bool = False,
    ) -> None:
        """Begin with a path; nothing changes if it is known. ``udp_only``: the endpoint speaks
        nothing over TCP.

        What a client asks for that is not ``listed`` may be wrong or dead: such a path speaks
        against its line only after it was heard, and never by a name that does not resolve.
        """
        if path in self._paths:
            return
        owner = self._lines.get(line)
        if owner is None:
            owner = self._lines[line] = LineState(line)
        state = self._paths[path] = PathState(
            path, owner, endpoint, listed=listed, udp_only=udp_only
        )
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
            self._due.wait(state.line, None)
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

    def silent(self, line: str) -> bool:
        """Whether something sent on the line is overdue, and nothing sent since was answered."""
        state = self._lines.get(line)
        return state is not None and any(
            not path.calm and any(channel.run for channel in path.channels) for path in state.paths
        )

    def dead(self, line: str) -> bool:
        """Whether the line is DOWN, or nothing on it was answered of late: until something is,
        there is no use in dear probes."""
        state = self._lines.get(line)
        if state is None:
            return False
        silent = all(path.channels[ANY].run for path in state.paths)
        return silent or state.gate.verdict is Verdict.DOWN

    def doubted(self, line: str) -> bool:
        """Whether anything on the line is worse than UP: reason to probe for its return."""
        state = self._lines.get(line)
        return state is not None and state.doubted

    def stirred(self, line: str) -> int:
        """`stirs` of one line."""
        state = self._lines.get(line)
        return 0 if state is None else state.stirs

    def silent_since(self, path: str) -> float | None:
        """When the silence began for which a path or its line is DOWN; ``None``: there is none."""
        state = self._paths.get(path)
        if state is None:
            return None
        channels = (*state.channels, *state.line.channels)
        return min((c.run_sent_at for c in channels if c.verdict is Verdict.DOWN), default=None)

    def mute(self, path: str) -> bool:
        """Whether ICMP says nothing of the path: then connects must speak."""
        state = self._paths.get(path)
        return state is not None and not state.counts(Kind.ICMP, ANY)

    def take_carrier_changes(self) -> Sequence[CarrierChange]:
        """What transports stopped or began to work since the last call."""
        changes = self._carrier_changes
        if not changes:
            return ()
        self._carrier_changes = []
        return changes

    def next_deadline(self) -> float | None:
        """When `tick` must run at the latest, or ``None`` while nothing is outstanding."""
        return self._due.next()

    # -- what happens ------------------------------------------------------------------------

    def sent(
        self,
        path: str,
        kind: Kind,
        at: float,
        rtt_s: float,
        slack_s: float,
        carrier: Carrier | None = None,
    ) -> None:
        """A slot was sent; its reply is expected ``rtt_s`` later, overdue ``slack_s`` after that.

        `Window.reply_times` gives both. Kinds that wait for thinking (TTFB), or whose fate only a
        look at the connection tells (KERNEL: `saw`), are ignored.
        """
        state = self._paths.get(path)
        if state is None or kind in _NO_SLOTS:
            return
        layer = layer_of(kind, carrier)
        slot = Slot(state, kind, layer, at, at + rtt_s, at + rtt_s + slack_s)
        key = (kind, layer)
        slots = state.slots.get(key)
        if slots is None:
            slots = state.slots[key] = deque(maxlen=_OUTSTANDING)
        elif len(slots) == _OUTSTANDING:
            slots[0].open = False
        slots.append(slot)
        self._due.add(slot)
        state.spaced(kind, layer, at)

    def observe(self, sample: Sample, now: float) -> Sequence[Change]:
        """Take any sample; the outcome decides what it is evidence of."""
        state = self._paths.get(sample.path)
        if state is None:
            return _UNCHANGED
        outcome, layer = sample.outcome, layer_of(sample.kind, sample.carrier)
        if outcome in _ANSWERS:
            sent_at = sample.sent_at
            if sample.kind is Kind.KERNEL:
                # Told once a look: what was acknowledged last was sent a round trip before.
                sent_at -= sample.rtt_s or 0.0
            rtt_s = None if sample.packets_lost else sample.rtt_s
            return self._heard(state, sample.kind, layer, now, sent_at, rtt_s)
        if not outcome.about_path or outcome is Outcome.NO_NAME:
            return _UNCHANGED  # a wrong name is no network's fault; the breaker minds it
        if outcome is Outcome.TIMEOUT:
            return self._timed_out(state, sample, layer, now)
        if outcome is Outcome.UNREACHABLE or outcome is Outcome.DNS:
            local_error(state, sample, now)
            return self._judge(state.line, now)
        alive_on = remote_error(state, sample, now)
        if alive_on is None:
            return self._judge(state.line, now)
        return self._judge(state.line, now, state, alive_on)

    def saw(self, seen: Iterable[Seen], now: float) -> Sequence[Change]:
        """Take what one look at the live connections showed, all at once."""
        touched: dict[LineState, None] = {}
        changes: list[Change] = []
        for it in seen:
            path = self._paths.get(it.path)
            if path is None:
                continue
            layer = layer_of(it.kind, it.carrier)
            if it.sent_at is None:
                for channel in path.hears[layer]:
                    channel.received(it.at)
            elif it.reply_at is None:
                for channel in path.hears[layer]:
                    channel.answered(it.sent_at)
                changes += self._heard(path, it.kind, layer, it.at, it.sent_at)
            elif it.sent_at > self._stalled_at:
                path.missed(Slot(path, it.kind, layer, it.sent_at, it.reply_at, it.at))
                touched[path.line] = None
        for line in touched:
            changes += self._judge(line, now)
        return changes

    def lost(self, line: str, why: str, now: float) -> Sequence[Change]:
        """This host cannot send on ``line``: it is DOWN at once."""
        if (state := self._lines.get(line)) is None:
            return _UNCHANGED
        state.reason, state.blame, state.accuser = f"line {line}: {why}", Blame.LINE, None
        state.silent_at = now
        state.gate.worsen(Verdict.DOWN, now)
        return self._judge(state, now)

    def stuck(self, path: str, times: int, lost: int, now: float) -> tuple[bool, Sequence[Change]]:
        """The same segment was sent ``times`` on a connection of ``path`` and never answered, and
        ``lost`` are missing there although others came.

        Whether that is more than loss: then the connection is of no use, and the path SUSPECT for
        a time that doubles, because large packets may vanish on it.
        """
        if (state := self._paths.get(path)) is None:
            return False, _UNCHANGED
        if not state.more_than_loss(times, lost, now):
            return False, _UNCHANGED
        state.keep_off(now)
        return True, self._judge(state.line, now)

    def spaced(self, path: str, kind: Kind, at: float, carrier: Carrier | None = None) -> None:
        """Something was sent that `saw` will tell the fate of: it counts for the spacing."""
        state = self._paths.get(path)
        if state is not None:
            state.spaced(kind, layer_of(kind, carrier), at)

    def heard(
        self,
        path: str,
        kind: Kind,
        at: float,
        sent_at: float | None = None,
        carrier: Carrier | None = None,
    ) -> Sequence[Change]:
        """The answer to what was sent at ``sent_at`` (``None``: just before) arrived at ``at``."""
        state = self._paths.get(path)
        if state is None:
            return _UNCHANGED
        layer = layer_of(kind, carrier)
        return self._heard(state, kind, layer, at, at if sent_at is None else sent_at)

    def tick(self, now: float, lag_s: float = 0.0) -> Sequence[Change]:
        """Convict what is overdue. ``lag_s``: how late the loop runs in this very turn.

        A lag above half the spacing of the slots moves all deadlines by the lag first.
        """
        if lag_s > 0:
            self.lagged(lag_s, now)
        slots, patient = self._due.take(now)
        touched = dict.fromkeys(patient)
        for slot in slots:
            slot.path.missed(slot)
            touched[slot.path.line] = None
        if not touched:
            return _UNCHANGED
        changes: list[Change] = []
        for line in touched:
            changes += self._judge(line, now)
        return changes

    def lagged(self, lag_s: float, now: float) -> None:
        """The loop stood still for ``lag_s`` until ``now``: what was silent meanwhile convicts
        nobody. After a long stall, what was outstanding says nothing at all."""
        if lag_s >= STALL_S:
            self._stalled_at = now
            for path in self._paths.values():
                for slots in path.slots.values():
                    for slot in slots:
                        slot.open = False
                    slots.clear()
        elif self._due and lag_s > self._pace_s() / 2:
            self._due.delay(lag_s)

    def _pace_s(self) -> float:
        return min(line.channels[ANY].pace_s for line in self._lines.values())

    # -- evidence ----------------------------------------------------------------------------

    def _judge(
        self, line: LineState, now: float, heard: PathState | None = None, layer: int = ANY
    ) -> Sequence[Change]:
        was_calm = line.calm
        line.settle(now)
        for path in line.paths:
            if (change := blocked_carriers(path, now)) is not None:
                self._carrier_changes.append(change)
        changes = judge(line, self._endpoints, now, heard, layer)
        if was_calm and not line.calm:
            self._stir(line)
        self._due.wait(line, None if line.calm else line.patient_until(now))
        return changes

    def _stir(self, line: LineState) -> None:
        line.stirs += 1
        self.stirs += 1

    def _heard(
        self,
        path: PathState,
        kind: Kind,
        layer: int,
        at: float,
        sent_at: float,
        rtt_s: float | None = None,
    ) -> Sequence[Change]:
        path.answered.add(Kind.QUIC if layer == UDP else kind)
        line = path.line
        if path.icmp_silent or kind is Kind.ICMP:
            path.note_icmp(answered=kind is Kind.ICMP)
        slot: Slot | None = None
        if kind not in _NO_SLOTS:
            slots = path.slots.get((kind, layer))
            if slots is not None:
                slot = path.answer(slots, sent_at)
            else:
                for channel in path.hears[layer]:
                    channel.sent(sent_at)
                    channel.answered(sent_at)
        if path.blocked and path.blocked_layer in REACH[layer]:
            self._unblock(path, at)
        if path.calm and line.calm:
            for channel in path.hears[layer]:
                channel.heard_at = at
                if sent_at > channel.proved_at:
                    channel.proved_at = sent_at
            return _UNCHANGED
        if slot is not None and rtt_s is not None and layer in _PLAIN:
            path.note_late(rtt_s - (slot.reply_at - slot.sent_at), at)
        before = path.heard_at
        if path.finding.verdict is Verdict.DOWN and (before is None or at - before > LIFE_S):
            self._stir(line)
        for channel in path.hears[layer]:
            channel.heard(at, sent_at)
        if layer in (END, UDP) or path.error_layer in REACH[layer]:
            path.errors = 0
        return self._judge(line, at, path, layer)

    def _unblock(self, path: PathState, at: float) -> None:
        change = CarrierChange(path.name, path.blocked, False, "it answers again", at)
        path.blocked = ()
        self._carrier_changes.append(change)

    def _timed_out(
        self, path: PathState, sample: Sample, layer: int, now: float
    ) -> Sequence[Change]:
        """A timeout is the announced slot's, whose deadline has mostly passed, or a slot itself."""
        sent_at = sample.sent_at
        if sample.kind in _NO_SLOTS or sent_at <= self._stalled_at:
            return _UNCHANGED
        slots = path.slots.get((sample.kind, layer))
        if slots:
            for slot in reversed(slots):
                if slot.sent_at <= sent_at + CLOCK_S:
                    if sent_at - slot.sent_at > SAME_RUN_S:
                        break
                    slots.remove(slot)
                    if not slot.open:
                        return _UNCHANGED
                    slot.open = False
                    path.missed(slot)
                    return self._judge(path.line, now)
        path.unanswered(sample.kind, layer, sent_at, now)
        return self._judge(path.line, now)
