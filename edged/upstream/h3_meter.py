"""What a QUIC connection's own transport says of the path in use: RTT, loss and goodput."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from policies.model import Carrier, Kind, Sample

if TYPE_CHECKING:
    from edged.upstream.quic import Driver
    from edged.upstream.quic_engines import Engine

SAMPLE_EVERY_S = 1.0
"""How often they are reported while the connection carries traffic."""
GOODPUT_MIN_BYTES = 128 << 10
"""Less than this in a sample's span says nothing of the line's rate."""


class Meter:
    """Makes samples of the engine's and the driver's counters."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._at = monotonic()
        self._counted = (0, 0, 0, 0)

    def begin_anew(self, driver: Driver, now: float) -> None:
        """The connection runs on another path: what was counted is not that path's."""
        self._counted, self._at = self._count(driver), now

    def sample(self, path: str, driver: Driver, now: float) -> Sample | None:
        """The span since the last one, ended at ``now``; ``None``: not yet, or nothing was sent."""
        span_s = now - self._at
        if span_s <= SAMPLE_EVERY_S:
            return None
        counted, srtt_s = self._count(driver), self._engine.counters().srtt_s
        sent, lost, received_bytes, sent_bytes = (
            new - old for new, old in zip(counted, self._counted, strict=True)
        )
        self._counted, self._at = counted, now
        if sent <= 0 or srtt_s is None:
            return None
        moved = max(received_bytes, sent_bytes)
        return Sample(
            path,
            Kind.KERNEL,
            now,
            srtt_s,
            packets_sent=sent,
            packets_lost=min(lost, sent),
            carrier=Carrier.H3,
            goodput_bps=8 * moved / span_s if moved >= GOODPUT_MIN_BYTES else None,
        )

    def _count(self, driver: Driver) -> tuple[int, int, int, int]:
        """Packets sent and lost, bytes received and sent, since the start."""
        counters = self._engine.counters()
        sent = counters.packets_sent
        return (
            driver.datagrams_sent if sent is None else sent,
            counters.packets_lost,
            driver.bytes_received,
            driver.bytes_sent,
        )
