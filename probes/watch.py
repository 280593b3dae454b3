"""Looks at the connections that have work in flight: what TCP_INFO and receipts say of their lines.

The peer's kernel acknowledges data without its server having to think, so that data is a probe that
costs nothing, on any carrier over TCP, in tunnels and during uploads. Each transmission, repeated
ones included, is a slot: silent if nothing was acknowledged a round trip and 4 rttvar later (at
least 50 ms: a receiver may delay an acknowledgement by 40 ms). The look that finds a transmission
also knows when it happened, and the one that judges it reads the kernel's state of that moment, so
a late loop convicts nobody.

Bytes read from a connection show that the way back is alive, and no more.

A connection may be stuck on a line that is alive: its large packets vanish (an MTU hole), and
whatever is repeated does, too. Then the oldest segment goes unacknowledged again and again, or a
gap in what is received stays open.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from policies.model import Carrier, Kind, Sample, Seen
from probes import kernel
from probes.kernel import KernelSampler, TcpInfo

LEAST_SLACK_S: Final = 0.05
MERGE_S: Final = 0.02
"""Transmissions of one socket closer than this are one slot; the kernel's clock is no finer."""
SOCKETS_PER_PATH: Final = 16
"""At most so many are looked at in one go; further ones take turns."""
SAMPLE_S: Final = 0.25
REPAIR_ROUNDS: Final = 2.25
"""A loss that others show is repeated a quarter round trip later (RFC 8985), and lost again."""
GAP_S: Final = 0.8
GAP_RTTS: Final = 6.0
GAP_TIMES: Final = 3
_SLOTS: Final = 8
_ALIVE: Final = frozenset((1, 4, 8))
"""ESTABLISHED, FIN_WAIT1, CLOSE_WAIT: data may be in flight."""


class Live(NamedTuple):
    """One connection with work in flight."""

    path: str
    fd: int | None
    """Of its TCP socket; ``None``: it has none (QUIC)."""
    carrier: Carrier | None
    heard_at: float
    """Monotonic time at which bytes last came; 0: nobody keeps count."""


class Stuck(NamedTuple):
    """A socket on which the same data fails to pass."""

    path: str
    fd: int
    times: int
    """How often the oldest was sent without an answer (of a gap: as far as can be told)."""
    lost: int
    """Segments missing while others sent with them came: lost too, by the same chance."""
    since: float
    """When there was last any progress, or the first of it was seen."""


class Look(NamedTuple):
    """What one look showed."""

    sent: list[str]
    """Paths on which a transmission was noticed whose fate a later look will tell."""
    seen: list[Seen]
    samples: list[Sample]
    stuck: list[Stuck]


class _Slot(NamedTuple):
    sent_at: float
    reply_at: float
    due: float
    repeats: bool
    """Only repetitions were sent."""


class _Socket:
    """What is remembered of one socket between looks."""

    __slots__ = (
        "acked",
        "delivered",
        "expired_at",
        "expiries",
        "gap_since",
        "ooo",
        "path",
        "progress_at",
        "received",
        "received_at",
        "resent",
        "retrans",
        "segments",
        "sent_at",
        "slots",
        "told",
    )

    def __init__(self, path: str, info: TcpInfo, now: float) -> None:
        self.path = path
        self.delivered = info.delivered
        self.acked = info.bytes_acked
        self.sent_at = float("-inf")
        """The latest transmission that is a slot."""
        self.slots: deque[_Slot] = deque(maxlen=_SLOTS)
        self.segments = info.data_segs_out or 0
        self.retrans = info.total_retrans
        """Segments sent, and how many of them again, as of the latest slot."""
        self.received_at = now
        self.progress_at = now
        self.resent = info.total_retrans
        """Repetitions until there was progress."""
        self.expiries = 0
        self.expired_at = now
        """How often the retransmission timer ran out since, and when last."""
        self.told = (0, 0)
        """What was last told as stuck."""
        self.received = info.bytes_received
        self.ooo = info.rcv_ooopack
        self.gap_since: float | None = None
        """When a segment came beyond a gap that is still open."""

    def follows(self, path: str, info: TcpInfo) -> bool:
        """False when the descriptor now belongs to another connection."""
        return path == self.path and (info.bytes_acked or 0) >= (self.acked or 0)


class ConnectionWatch:
    """Made once; `look` while anything waits, at most every 50 ms, and at `next_due`."""

    def __init__(self, read: Callable[[int], TcpInfo | None] | None = None) -> None:
        self._read = read or kernel.read
        self._sockets: dict[int, _Socket] = {}
        self._receipts: dict[tuple[str, Carrier | None], float] = {}
        self._sampler = KernelSampler()
        self._sample_at = 0.0
        self._turn = 0

    def next_due(self) -> float | None:
        """When the oldest unanswered transmission is overdue; ``None``: none is outstanding."""
        return min((s.slots[0].due for s in self._sockets.values() if s.slots), default=None)

    def look(self, live: Iterable[Live], now: float) -> Look:
        """Look once at each of ``live``."""
        found = Look([], [], [], [])
        by_path: dict[str, dict[int, None]] = {}
        receipts: dict[tuple[str, Carrier | None], float] = {}
        for path, fd, carrier, heard_at in live:
            if heard_at:
                key = (path, carrier)
                receipts[key] = max(heard_at, receipts.get(key, 0.0))
            if fd is not None:
                by_path.setdefault(path, {})[fd] = None
        self._tell_receipts(receipts, found)
        self._turn += 1
        known, self._sockets = self._sockets, {}
        for path, fds in by_path.items():
            chosen = self._choose(list(fds), known)
            for fd in fds:
                if fd in chosen:
                    self._look_at(path, fd, known.get(fd), now, found)
                elif fd in known:
                    self._sockets[fd] = known[fd]
        for fd, socket in known.items():
            if socket.slots and fd not in self._sockets:
                self._look_back(socket, fd, now, found)
        if now >= self._sample_at:
            self._sample_at = now + SAMPLE_S
            found.samples.extend(self._sampler.take(now))
        return found

    def _choose(self, fds: list[int], known: dict[int, _Socket]) -> set[int]:
        """Those with something outstanding, and of the others as many as there is room for."""
        if len(fds) <= SOCKETS_PER_PATH:
            return set(fds)
        chosen = {fd for fd in fds if (it := known.get(fd)) is not None and it.slots}
        start = self._turn * SOCKETS_PER_PATH % len(fds)
        for fd in (*fds[start:], *fds[:start]):
            if len(chosen) >= SOCKETS_PER_PATH:
                break
            chosen.add(fd)
        return chosen

    def _tell_receipts(self, receipts: dict[tuple[str, Carrier | None], float], to: Look) -> None:
        before = self._receipts
        for key, heard_at in receipts.items():
            if heard_at > before.get(key, 0.0):
                path, carrier = key
                to.seen.append(Seen(path, Kind.TTFB, heard_at, carrier=carrier))
        self._receipts = receipts

    def _look_at(self, path: str, fd: int, socket: _Socket | None, now: float, found: Look) -> None:
        info = self._read(fd)
        if info is None or info.state not in _ALIVE:
            return
        if socket is None or not socket.follows(path, info):
            socket = _Socket(path, info, now)
        self._sockets[fd] = socket
        self._sampler.note(path, fd, info, now)
        received_at = now - info.last_data_recv_s
        if received_at > socket.received_at + MERGE_S:
            socket.received_at = received_at
            found.seen.append(Seen(path, Kind.KERNEL, received_at))
        rtt_s = info.rtt_s or info.rto_s
        slack_s = max(4 * info.rttvar_s, LEAST_SLACK_S)
        self._judge_slots(socket, info, rtt_s, now, found)
        sent_at = now - info.last_data_sent_s
        if info.unacked and sent_at > socket.sent_at + MERGE_S:
            socket.sent_at = sent_at
            reply_at = sent_at + rtt_s
            if len(socket.slots) < _SLOTS:
                repeats = info.data_segs_out is not None and (
                    info.data_segs_out - socket.segments == info.total_retrans - socket.retrans
                )
                socket.slots.append(_Slot(sent_at, reply_at, reply_at + slack_s, repeats))
                found.sent.append(path)
            socket.segments, socket.retrans = info.data_segs_out or 0, info.total_retrans
        self._judge_progress(socket, fd, info, rtt_s + slack_s, now, found)
        self._judge_gap(socket, fd, info, rtt_s, now, found)

    def _look_back(self, socket: _Socket, fd: int, now: float, found: Look) -> None:
        """Its work ended since the last look: what was outstanding was answered, or is void."""
        info = self._read(fd)
        if info is not None and not info.unacked and socket.follows(socket.path, info):
            self._judge_slots(socket, info, 0.0, now, found)

    def _judge_slots(
        self, socket: _Socket, info: TcpInfo, rtt_s: float, now: float, found: Look
    ) -> None:
        """Answered or silent, each slot that is decided now."""
        slots = socket.slots
        progressed = info.delivered is None or info.delivered != socket.delivered
        socket.delivered = info.delivered
        acked_at = now - info.last_ack_recv_s
        if not info.unacked:
            answered_until = now
        elif progressed:
            # What was acknowledged last was sent about a round trip before.
            answered_until = acked_at - rtt_s + max(2 * info.rttvar_s, 0.01)
        else:
            answered_until = float("-inf")
        while slots and slots[0].sent_at <= answered_until:
            slot = slots.popleft()
            found.seen.append(Seen(socket.path, Kind.KERNEL, acked_at, slot.sent_at))
        while slots and slots[0].due <= now:
            slot = slots.popleft()
            if slot.repeats and info.sacked:
                continue  # what came beyond the gap shows the line alive; the gap is another matter
            found.seen.append(Seen(socket.path, Kind.KERNEL, now, slot.sent_at, slot.reply_at))

    @staticmethod
    def _judge_progress(
        socket: _Socket, fd: int, info: TcpInfo, patience_s: float, now: float, found: Look
    ) -> None:
        """Whether the oldest segment was sent again and again while nothing before it moved."""
        if info.bytes_acked != socket.acked or not info.unacked:
            socket.acked, socket.progress_at = info.bytes_acked, now
            socket.resent = info.total_retrans
            socket.expiries = 0
            socket.told = (0, 0)
            return
        if info.total_retrans == socket.resent:
            return
        if info.retransmits != socket.expiries:
            socket.expiries, socket.expired_at = info.retransmits, now - info.last_data_sent_s
        times = socket.expiries + (now - socket.expired_at >= patience_s)
        if info.sacked and now - socket.progress_at >= REPAIR_ROUNDS * patience_s:
            times = max(times, 2)
        told = (times, min(info.lost, info.unacked - info.sacked))
        if times > 1 and told > socket.told:
            socket.told = told
            found.stuck.append(Stuck(socket.path, fd, *told, socket.progress_at))

    @staticmethod
    def _judge_gap(
        socket: _Socket, fd: int, info: TcpInfo, rtt_s: float, now: float, found: Look
    ) -> None:
        """Whether a segment came beyond a gap, and nothing in order since."""
        beyond = info.rcv_ooopack != socket.ooo
        socket.ooo = info.rcv_ooopack
        if info.bytes_received != socket.received:
            socket.received, socket.gap_since = info.bytes_received, None
        elif socket.gap_since is None:
            if beyond:
                socket.gap_since = now
        elif now - socket.gap_since >= max(GAP_S, GAP_RTTS * rtt_s):
            # By now the peer has sent it, again after a round trip, and by its timer.
            found.stuck.append(Stuck(socket.path, fd, GAP_TIMES, 0, socket.gap_since))
            socket.gap_since = None
