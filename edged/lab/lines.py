"""Emulated lines: what each direction of each does to bytes, told apart by source address.

A front (`edged.lab.tcp`, `edged.lab.udp`) asks a `Wire` when a chunk arrives at the other end; the
wire knows delay, jitter, rate and loss. Everything may change while running; whoever must act on a
change (filters, frozen queues) subscribes to the `Lines`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

_RTO_MIN_S = 0.2
_SEGMENT_BYTES = 1460
_LATE_S = 0.003
_WINDOW_BYTES = 4 << 20
_LEAST_WINDOW_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Impairment:
    """What one direction does to bytes."""

    delay_s: float = 0.0
    """One way."""
    jitter_s: float = 0.0
    """Delay varies uniformly by up to this much either way; as in a queue, order is kept."""
    reorder: float = 0.0
    """Probability that a datagram arrives late, after some that were sent after it."""
    loss: float = 0.0
    """Probability per packet."""
    rate_bps: float | None = None
    """Bits per second; ``None``: unlimited."""
    queue_s: float = 0.5
    """Longest queue before the rate, as time; beyond it UDP is dropped and TCP held back."""
    blackhole: bool = False
    """Silence: nothing arrives, nothing is answered."""
    udp_blocked: bool = False
    """Silence for datagrams only."""


@dataclass(frozen=True, slots=True)
class LineSpec:
    """One emulated line as first set up."""

    name: str
    source: str
    """The loopback address whose traffic takes this line."""
    kind: str = "bgp"
    up: Impairment = Impairment()
    """From the edge to the endpoints."""
    down: Impairment = Impairment()

    @classmethod
    def symmetric(
        cls,
        name: str,
        source: str,
        *,
        rtt_s: float,
        jitter_s: float = 0.0,
        loss: float = 0.0,
        rate_bps: float | None = None,
        kind: str = "bgp",
    ) -> LineSpec:
        """A line with half of the round trip each way and the same impairment both ways."""
        one_way = Impairment(delay_s=rtt_s / 2, jitter_s=jitter_s, loss=loss, rate_bps=rate_bps)
        return cls(name, source, kind, one_way, one_way)


@dataclass(slots=True, eq=False)
class Wire:
    """One direction: its impairment now, and when its transmitter is free."""

    impairment: Impairment
    rng: random.Random
    free_at: float = 0.0
    bytes: int = 0

    def sent(self, size: int, now: float) -> float:
        """When the last bit of ``size`` bytes has left; occupies the transmitter until then."""
        self.bytes += size
        rate = self.impairment.rate_bps
        if rate is None:
            return now
        self.free_at = max(now, self.free_at) + size * 8 / rate
        return self.free_at

    def window_bytes(self) -> int:
        """How much of one TCP direction may be under way before its sender is held back."""
        it = self.impairment
        if it.rate_bps is None:
            return _WINDOW_BYTES
        return max(_LEAST_WINDOW_BYTES, int((it.queue_s + it.delay_s) * it.rate_bps / 8))

    def transit_s(self) -> float:
        """One packet's delay: the set one, varied by the jitter."""
        it = self.impairment
        if not it.jitter_s:
            return it.delay_s
        return max(0.0, it.delay_s + self.rng.uniform(-it.jitter_s, it.jitter_s))

    def late_s(self) -> float | None:
        """How much later than in its turn a reordered datagram arrives; ``None``: in its turn."""
        it = self.impairment
        if not it.reorder or self.rng.random() >= it.reorder:
            return None
        return _LATE_S + 2 * it.jitter_s

    def drops(self, now: float) -> bool:
        """Whether a datagram arriving now is lost: silence, a full queue, chance."""
        it = self.impairment
        return (
            it.blackhole
            or it.udp_blocked
            or (it.rate_bps is not None and self.free_at - now > it.queue_s)
            or (it.loss > 0 and self.rng.random() < it.loss)
        )

    def repair_s(self, size: int, rtt_s: float) -> float:
        """Extra wait of a TCP chunk for a lost packet: an RTO, or a round trip if more follow."""
        loss = self.impairment.loss
        if not loss:
            return 0.0
        packets = -(-size // _SEGMENT_BYTES)
        if self.rng.random() >= 1 - (1 - loss) ** packets:
            return 0.0
        return rtt_s if packets > 3 else max(_RTO_MIN_S, rtt_s)


@dataclass(slots=True, eq=False)
class EmulatedLine:
    """One line while it runs."""

    spec: LineSpec
    up: Wire
    down: Wire

    @property
    def name(self) -> str:
        """Its name."""
        return self.spec.name

    @property
    def rtt_s(self) -> float:
        """Set round trip, without jitter and queue."""
        return self.up.impairment.delay_s + self.down.impairment.delay_s


@dataclass(slots=True, eq=False)
class Lines:
    """All lines by source address; peers from elsewhere use ``open``, which does nothing."""

    specs: Iterable[LineSpec]
    seed: int | None = None
    open: EmulatedLine = field(init=False)
    _by_name: dict[str, EmulatedLine] = field(init=False)
    _by_source: dict[str, EmulatedLine] = field(init=False)
    _subscribers: list[Callable[[EmulatedLine], None]] = field(init=False)

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        lines = [EmulatedLine(s, Wire(s.up, rng), Wire(s.down, rng)) for s in self.specs]
        self._by_name = {line.name: line for line in lines}
        self._by_source = {line.spec.source: line for line in lines}
        if not len(lines) == len(self._by_name) == len(self._by_source):
            raise ValueError("two lines of the same name or source address")
        nothing = Impairment()
        self.open = EmulatedLine(LineSpec("open", ""), Wire(nothing, rng), Wire(nothing, rng))
        self._subscribers = []

    def __iter__(self) -> Iterator[EmulatedLine]:
        return iter(self._by_name.values())

    def __getitem__(self, name: str) -> EmulatedLine:
        return self._by_name[name]

    def of(self, source: str) -> EmulatedLine:
        """The line that traffic from ``source`` takes."""
        return self._by_source.get(source, self.open)

    def subscribe(self, callback: Callable[[EmulatedLine], None]) -> None:
        """Call ``callback(line)`` after each change."""
        self._subscribers.append(callback)

    def set(
        self, name: str, *, up: Impairment | None = None, down: Impairment | None = None
    ) -> None:
        """Change a line now. Raises `KeyError` for an unknown one."""
        line = self._by_name[name]
        if up is not None:
            line.up.impairment = up
        if down is not None:
            line.down.impairment = down
        for callback in self._subscribers:
            callback(line)

    def blackhole(self, name: str, silent: bool = True, *, direction: str = "both") -> None:
        """Silence a line, or bring it back. ``direction``: ``both``, ``up`` or ``down``."""
        line = self._by_name[name]
        up, down = (
            replace(wire.impairment, blackhole=silent) if direction in ("both", which) else None
            for wire, which in ((line.up, "up"), (line.down, "down"))
        )
        self.set(name, up=up, down=down)

    def restore(self, name: str) -> None:
        """Put a line back to what its spec says."""
        spec = self._by_name[name].spec
        self.set(name, up=spec.up, down=spec.down)
