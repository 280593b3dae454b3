"""What the detector keeps of each line and path: layers, slots, channels, findings.

A layer's silence counts in the channels of the layers below it, too, and its answers end their
runs (`REACH`). QUIC stands beside TCP: the answers of one say nothing of the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Final, NamedTuple

from policies.model import Blame, Carrier, Kind, Outcome, Verdict
from policies.silence import FALSE_DOWN_IN_BURSTS_PER_S, Channel, Gate, slots_needed

ANY, SYN, DATA, END, UDP = range(5)
"""Layers: ICMP; TCP connects; TCP data and its acknowledgements; end to end over TCP; QUIC."""
REACH: Final = ((ANY,), (ANY, SYN), (ANY, SYN, DATA), (ANY, SYN, DATA, END), (ANY, UDP))
"""By layer: the channels in which its silence counts and whose runs its answers end."""
OVER_TCP: Final = (SYN, DATA, END)
TCP_CARRIERS: Final = (Carrier.H2, Carrier.H1)
UDP_CARRIERS: Final = (Carrier.H3,)
STUCK_SPACING_S: Final = 0.05
"""How often a segment might get stuck on a busy path: once each is sent."""
STUCK_LEAST: Final = 2
STUCK_MOST: Final = 3
STUCK_TOGETHER: Final = 4
HOLE_S: Final = 5.0
HOLE_MOST_S: Final = 300.0
LATE_S: Final = 2.0
"""So long it counts that answers were late: until the estimates have followed."""
MUCH_LATE_S: Final = 0.15
LATE_ANSWERS: Final = 2
"""So many answers that are so late show that the way has grown longer."""
CLOCK_S: Final = 0.05
"""Slots are announced, samples timed, by different readings of the clock."""
ICMP_LOST_MAX: Final = 0.3
"""A path that leaves more of its echoes unanswered while it is heard otherwise limits their rate,
and their silence says nothing."""
_ICMP_LESSONS: Final = 4
_LAYER: Final = {Kind.ICMP: ANY, Kind.TCP: SYN, Kind.KERNEL: DATA, Kind.QUIC: UDP}


def layer_of(kind: Kind, carrier: Carrier | None) -> int:
    """The layer of a measurement on a connection of ``carrier`` (``None``: on none)."""
    return UDP if carrier is Carrier.H3 else _LAYER.get(kind, END)


class Finding(NamedTuple):
    """What the detector says of one path now. The blame may sharpen while the verdict stays."""

    verdict: Verdict
    blame: Blame
    reason: str


class Slot:
    """One thing sent. ``open`` until it is answered or overdue."""

    __slots__ = ("due", "kind", "layer", "open", "path", "reply_at", "sent_at")

    def __init__(
        self,
        path: PathState,
        kind: Kind,
        layer: int,
        sent_at: float,
        reply_at: float,
        due: float,
    ) -> None:
        self.path = path
        self.kind = kind
        self.layer = layer
        self.sent_at = sent_at
        self.reply_at = reply_at
        self.due = due
        self.open = True

    def __lt__(self, other: Slot) -> bool:
        return self.due < other.due


class LineState:
    """A line: the pooled channels of its paths, one per layer."""

    __slots__ = (
        "accuser",
        "blame",
        "calm",
        "channels",
        "doubted",
        "gate",
        "name",
        "paths",
        "reason",
        "silent_at",
        "stirs",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.paths: list[PathState] = []
        self.channels = tuple(Channel() for _ in REACH)
        self.gate = Gate()
        self.blame = Blame.LINE
        self.reason = ""
        self.stirs = 0
        """How often it fell silent, or was heard again, after calm or silence."""
        self.silent_at = 0.0
        """When the silence began that it was convicted for."""
        self.accuser: PathState | None = None
        """Whose local error put it DOWN."""
        self.calm = True
        """Nothing is silent and nothing is held against it, as of the last `judge`."""
        self.doubted = False
        """It or a path on it is worse than UP, as of the last `judge`."""

    def settle(self, now: float) -> None:
        """Before its channels are asked for their verdicts."""
        most_s = 0.0
        for path in self.paths:
            late_s = path.late_s if now < path.late_until else 0.0
            most_s = max(most_s, late_s)
            for channel in path.channels:
                channel.at, channel.late_s = now, late_s
        for channel in self.channels:
            channel.at, channel.late_s = now, most_s

    def patient_until(self, now: float) -> float | None:
        """When a run that would be DOWN but for patience must be judged again."""
        return min(
            (
                channel.patient_until
                for channel in chain(self.channels, *(path.channels for path in self.paths))
                if channel.run
                and channel.patient_until > now
                and channel.run >= channel.needed(Verdict.DOWN)
            ),
            default=None,
        )

    def is_calm(self) -> bool:
        """What ``calm`` is set to."""
        return not any(c.run for c in self.channels) and self.gate.verdict is Verdict.UP


class PathState:
    """A path: its own channels, its errors and what it shows."""

    __slots__ = (
        "alone",
        "answered",
        "attempt_after",
        "blocked",
        "blocked_at",
        "blocked_layer",
        "calm",
        "channels",
        "endpoint",
        "error",
        "error_layer",
        "error_since",
        "errors",
        "finding",
        "gate",
        "hears",
        "hole_s",
        "hole_until",
        "icmp_lost",
        "icmp_silent",
        "late",
        "late_s",
        "late_until",
        "line",
        "listed",
        "name",
        "reason",
        "slots",
        "udp_only",
    )

    def __init__(
        self,
        name: str,
        line: LineState,
        endpoint: str,
        *,
        listed: bool = True,
        udp_only: bool = False,
    ) -> None:
        self.name = name
        self.line = line
        self.listed = listed
        self.udp_only = udp_only
        """The endpoint speaks nothing over TCP: what answers there makes up for no datagram."""
        self.endpoint = endpoint
        self.channels = tuple(Channel() for _ in REACH)
        self.gate = Gate()
        self.reason = ""
        self.slots: dict[tuple[Kind, int], deque[Slot]] = {}
        """Outstanding, by kind and layer."""
        self.answered: set[Kind] = set()
        """What answered here; any answer of QUIC's stands as `Kind.QUIC`."""
        self.icmp_lost = 0.0
        """The recent share of echoes that went unanswered, smoothed by 1/16."""
        self.icmp_silent = 0
        """Echoes gone unanswered since anything was heard."""
        self.blocked: tuple[Carrier, ...] = ()
        """Carriers whose transport is silent here while the other one answers."""
        self.blocked_layer = ANY
        self.blocked_at = 0.0
        """When the silence began that this is about, and on which layer."""
        self.alone = False
        """DOWN while others on the line were heard: no witness against the line."""
        self.hole_until = float("-inf")
        self.hole_s = 0.0
        """For how long data is kept off it because connections were stuck, and until when."""
        self.late = 0
        self.late_s = 0.0
        self.late_until = float("-inf")
        """How many answers were late of late, by how much, and until when that counts."""
        self.errors = 0
        self.error = Outcome.OK
        self.error_layer = 0
        self.error_since = 0.0
        self.attempt_after = float("-inf")
        self.finding = Finding(Verdict.UP, Blame.NOBODY, "")
        self.calm = True
        """Nothing is silent, held against it or shown of it, as of the last `judge`."""
        both = tuple(zip(self.channels, line.channels, strict=True))
        self.hears = tuple(tuple(chain(*(both[n] for n in reach))) for reach in REACH)
        """By layer: its channels and its line's that such an answer concerns."""

    def is_calm(self) -> bool:
        """What ``calm`` is set to."""
        return (
            not (self.errors or any(c.run for c in self.channels))
            and self.gate.verdict is Verdict.UP
            and self.finding.verdict is Verdict.UP
            and not self.unproven
        )

    @property
    def unproven(self) -> bool:
        """Whether QUIC is blocked and nothing but connects has shown that TCP works."""
        return self.blocked is UDP_CARRIERS and not self.answered_since(self.blocked_at, DATA, END)

    def answered_since(self, at: float, *layers: int) -> bool:
        """Whether something sent at ``at`` or later was answered on one of ``layers``."""
        return any(self.channels[layer].proved_at >= at for layer in layers)

    def counts(self, kind: Kind, layer: int) -> bool:
        """Whether silence of this kind says anything here: it has answered, or it should."""
        if layer == ANY:
            return kind in self.answered and (
                self.icmp_lost <= ICMP_LOST_MAX or self.channels[SYN].loss > ICMP_LOST_MAX / 3
            )
        if self.blocked and (self.blocked_layer == UDP) == (layer == UDP):
            return False
        if layer == UDP and self.answered and not self.udp_only:
            return Kind.QUIC in self.answered
        return True

    def answer(self, slots: deque[Slot], sent_at: float) -> Slot | None:
        """The slot sent nearest to then is answered; older ones stay, and are lost when overdue.

        Not the newest that the clocks allow: of two probes close together the first one's answer
        says nothing of the second's.
        """
        near: Slot | None = None
        for slot in reversed(slots):
            if slot.sent_at > sent_at + CLOCK_S:
                continue
            if near is not None and sent_at - slot.sent_at >= near.sent_at - sent_at:
                break
            near = slot
        if near is not None:
            near.open = False
            for channel in self.hears[near.layer]:
                channel.answered(near.sent_at)
            slots.remove(near)
        return near

    def spaced(self, kind: Kind, layer: int, at: float) -> None:
        """Something was sent at ``at``: it counts for how far slots are apart."""
        if self.counts(kind, layer):
            for channel in self.hears[layer]:
                channel.sent(at)

    def unanswered(self, kind: Kind, layer: int, sent_at: float, now: float) -> None:
        """What was no announced slot timed out; about twice as late as a reply would have come."""
        self.spaced(kind, layer, sent_at)
        self.missed(Slot(self, kind, layer, sent_at, (sent_at + now) / 2, now))

    def missed(self, slot: Slot) -> None:
        """A slot of this path's was not answered in time."""
        icmp = slot.kind is Kind.ICMP
        self.icmp_silent += icmp
        if not self.counts(slot.kind, slot.layer):
            return
        pooled = witness(self)
        for number in REACH[slot.layer]:
            for owner in (self, self.line) if pooled else (self,):
                owner.channels[number].silent(slot.sent_at, slot.reply_at, self.endpoint, icmp=icmp)
        self.gate.stumble()
        if pooled:
            self.line.gate.stumble()

    def more_than_loss(self, times: int, lost: int, now: float) -> bool:
        """Whether a segment sent ``times`` in vain, with ``lost`` missing, is no accident."""
        data = self.channels[DATA]
        alone = slots_needed(data.loss, STUCK_SPACING_S, FALSE_DOWN_IN_BURSTS_PER_S)
        alone = STUCK_LEAST if now < self.hole_until else min(alone, STUCK_MOST)
        together = slots_needed(
            data.loss, STUCK_SPACING_S, FALSE_DOWN_IN_BURSTS_PER_S, data.loss_after_loss
        )
        return times >= max(STUCK_LEAST, alone) or (
            times + lost - 1 >= max(STUCK_TOGETHER, together)
        )

    def keep_off(self, now: float) -> None:
        """A connection was stuck: for a time that doubles, new ones would be, too."""
        if now >= self.hole_until:
            again = now - self.hole_until < self.hole_s
            self.hole_s = min(2 * self.hole_s, HOLE_MOST_S) if again else HOLE_S
            self.hole_until = now + self.hole_s

    def note_late(self, late_s: float, at: float) -> None:
        """An answer took ``late_s`` longer than it should: it is a sign of life, and of how long
        the next ones may take."""
        if late_s < MUCH_LATE_S:
            return
        if at >= self.late_until:
            self.late, self.late_s = 0, 0.0
        self.late += 1
        self.late_s = max(self.late_s, late_s)
        self.late_until = at + LATE_S

    def note_icmp(self, *, answered: bool) -> None:
        """Something was answered: the echoes silent so far were lost, few of them in an outage."""
        for _ in range(min(self.icmp_silent, _ICMP_LESSONS)):
            self.icmp_lost += (1 - self.icmp_lost) / 16
        self.icmp_silent = 0
        if answered:
            self.icmp_lost -= self.icmp_lost / 16

    @property
    def heard_at(self) -> float | None:
        """When anything was last heard on it (channel 0 hears all)."""
        return self.channels[0].heard_at

    def heard_since(self, at: float, layer: int) -> bool:
        """Whether an arrival that concerns channel ``layer`` came after ``at``."""
        heard = self.channels[layer].heard_at
        return heard is not None and heard > at


Peers = Mapping[str, Sequence[PathState]]
"""The paths of each endpoint, over all lines."""


def witness(path: PathState) -> bool:
    """Whether what befalls the path may speak against its line."""
    if path.alone:
        return False
    if path.heard_at is not None:
        return True
    return path.listed and all(p.heard_at is None for p in path.line.paths)
