"""What one direction of an emulated line does to IP packets: the model alone, in virtual time.

A `Wire` is given packets (`push`) and gives them back when they are due (`pop`); the time is an
argument, the chance a seeded generator of its own. Nothing here knows of devices or processes.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
_NAMES = {ICMP: "icmp", TCP: "tcp", UDP: "udp", ICMP6: "icmp"}
NEVER = math.inf


@dataclass(frozen=True, slots=True)
class Burst:
    """Gilbert-Elliott loss: a good and a bad state, each with a loss of its own.

    The chain steps at each packet, or each ``step_s`` of time, so that a burst lasts as long
    whether many packets pass or few. Bursts last ``1 / leave`` steps in the mean.
    """

    enter: float
    """Probability of good to bad, per step."""
    leave: float
    """Probability of bad to good, per step."""
    loss_bad: float = 1.0
    loss_good: float = 0.0
    step_s: float | None = None

    @property
    def share_bad(self) -> float:
        """Share of steps in the bad state, in the long run."""
        return self.enter / (self.enter + self.leave)

    @property
    def mean_loss(self) -> float:
        """Share of packets lost in the long run."""
        return self.share_bad * self.loss_bad + (1 - self.share_bad) * self.loss_good


@dataclass(frozen=True, slots=True)
class Impairment:
    """What one direction does to packets. Checks follow in the order of these fields."""

    blackhole: bool = False
    """Everything vanishes, and nobody is told."""
    udp_blocked: bool = False
    """UDP vanishes."""
    mtu_bytes: int | None = None
    """Longer IP packets vanish, without an ICMP message."""
    silent_hosts: tuple[str, ...] = ()
    """IPv4 addresses whose packets, to them or from them, vanish: an endpoint that is dead."""
    loss: float = 0.0
    """Probability per packet, independent."""
    burst: Burst | None = None
    """Loss in bursts, on top."""
    rate_bps: float | None = None
    """Bits of IP packets per second; ``None``: unlimited."""
    queue_bytes: int = 256 << 10
    """What may wait before the rate; a packet that finds no room is dropped."""
    delay_s: float = 0.0
    """One way."""
    jitter_s: float = 0.0
    """The delay varies uniformly by up to this much either way; order is kept."""
    reorder: float = 0.0
    """Probability that a packet takes ``reorder_s`` longer, and others overtake it."""
    reorder_s: float = 0.01
    duplicate: float = 0.0
    """Probability that a packet arrives twice."""

    def changed(self, changes: dict[str, Any]) -> Impairment:
        """With some fields changed, as they come from JSON. Raises `TypeError`, `ValueError`."""
        if unknown := set(changes) - {f.name for f in fields(self)}:
            raise ValueError(f"no such impairment: {', '.join(sorted(unknown))}")
        changes = dict(changes)
        if isinstance(burst := changes.get("burst"), dict):
            changes["burst"] = Burst(**burst)
        if "silent_hosts" in changes:
            changes["silent_hosts"] = tuple(changes["silent_hosts"])
        return replace(self, **changes)


@dataclass(slots=True)
class Count:
    """Packets and bytes."""

    packets: int = 0
    bytes: int = 0


@dataclass(slots=True, eq=False)
class Counters:
    """What a direction was given and what became of it; duplicates count as delivered."""

    offered: Count = field(default_factory=Count)
    delivered: Count = field(default_factory=Count)
    by_protocol: dict[str, Count] = field(default_factory=dict)
    """Of ``offered``: ``icmp``, ``tcp``, ``udp`` or a protocol's number."""
    lost: dict[str, int] = field(default_factory=dict)
    """Packets by cause: the field of `Impairment` that took them, ``queue`` or ``device``."""

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Wire:
    """One direction of one line while it runs."""

    __slots__ = (
        "_bad",
        "_chain_at",
        "_free_at",
        "_in_order",
        "_last_due",
        "_late",
        "_rng",
        "_serial",
        "_silent",
        "counters",
        "impairment",
    )

    def __init__(self, impairment: Impairment, seed: int | str) -> None:
        self._rng = random.Random(seed)
        self.counters = Counters()
        self._bad = False
        self._chain_at: float | None = None
        self._free_at = 0.0
        self._last_due = 0.0
        # Dues never fall in the first; overtaken packets wait in the second, a heap.
        self._in_order: deque[tuple[float, bytes]] = deque()
        self._late: list[tuple[float, int, bytes]] = []
        self._serial = 0
        self.set(impairment)

    def set(self, impairment: Impairment) -> None:
        """Treat packets so from now on; those under way arrive as they would have."""
        self.impairment = impairment
        self._silent = frozenset(
            bytes(int(part) for part in host.split(".")) for host in impairment.silent_hosts
        )

    @property
    def due(self) -> float:
        """When the next packet arrives; infinite if none is under way."""
        due = self._in_order[0][0] if self._in_order else NEVER
        if self._late and self._late[0][0] < due:
            return self._late[0][0]
        return due

    def push(self, packet: bytes, now: float) -> None:
        """A packet enters."""
        size = len(packet)
        protocol = packet[9] if packet[0] >> 4 == 4 else packet[6]
        self._count(protocol, size)
        cause = self._vanishes(packet, protocol, size, now)
        if cause:
            lost = self.counters.lost
            lost[cause] = lost.get(cause, 0) + 1
            return
        it = self.impairment
        sent = now
        if it.rate_bps is not None:
            sent = self._free_at = max(now, self._free_at) + size * 8 / it.rate_bps
        rng = self._rng
        due = sent + it.delay_s
        if it.jitter_s:
            due = max(sent, due + rng.uniform(-it.jitter_s, it.jitter_s))
        if it.reorder and rng.random() < it.reorder:
            self._serial += 1
            heapq.heappush(self._late, (due + it.reorder_s, self._serial, packet))
        else:
            self._queue(due, packet)
        if it.duplicate and rng.random() < it.duplicate:
            self._queue(due, packet)

    def pop(self, now: float) -> bytes | None:
        """The next packet that has arrived by ``now``."""
        queue, late = self._in_order, self._late
        if late and late[0][0] <= now and not (queue and queue[0][0] <= late[0][0]):
            packet = heapq.heappop(late)[2]
        elif queue and queue[0][0] <= now:
            packet = queue.popleft()[1]
        else:
            return None
        delivered = self.counters.delivered
        delivered.packets += 1
        delivered.bytes += len(packet)
        return packet

    def _queue(self, due: float, packet: bytes) -> None:
        if due < self._last_due:
            due = self._last_due
        self._last_due = due
        self._in_order.append((due, packet))

    def _count(self, protocol: int, size: int) -> None:
        counters = self.counters
        counters.offered.packets += 1
        counters.offered.bytes += size
        name = _NAMES.get(protocol) or str(protocol)
        count = counters.by_protocol.get(name)
        if count is None:
            count = counters.by_protocol[name] = Count()
        count.packets += 1
        count.bytes += size

    def _vanishes(self, packet: bytes, protocol: int, size: int, now: float) -> str | None:
        it = self.impairment
        if it.blackhole:
            return "blackhole"
        if it.udp_blocked and protocol == UDP:
            return "udp_blocked"
        if it.mtu_bytes is not None and size > it.mtu_bytes:
            return "mtu_bytes"
        if self._silent and (packet[12:16] in self._silent or packet[16:20] in self._silent):
            return "silent_hosts"
        if it.loss and self._rng.random() < it.loss:
            return "loss"
        if it.burst and self._in_burst(it.burst, now):
            return "burst"
        if it.rate_bps is not None:
            waiting_bytes = (self._free_at - now) * it.rate_bps / 8
            if waiting_bytes + size > it.queue_bytes:
                return "queue"
        return None

    def _in_burst(self, burst: Burst, now: float) -> bool:
        if burst.step_s is None:
            steps = 1.0
        else:
            steps = (now - self._chain_at) / burst.step_s if self._chain_at is not None else 1.0
            self._chain_at = now
        # The two-state chain after any number of steps, in closed form.
        share = burst.share_bad
        memory = max(0.0, 1 - burst.enter - burst.leave) ** steps
        bad = share + ((1.0 if self._bad else 0.0) - share) * memory
        self._bad = self._rng.random() < bad
        loss = burst.loss_bad if self._bad else burst.loss_good
        return self._rng.random() < loss
