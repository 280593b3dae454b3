"""What both ends of a QUIC connection need of an engine, whichever end edged is.

The client's adapters are in `edged.upstream`, the server's in `edged.downstream`.
"""

from __future__ import annotations

STREAM_WINDOW_BYTES = 4 << 20
"""Receive window of a stream: 150 ms at 200 Mbit/s; also the most that a held one can pile up."""
CONNECTION_WINDOW_BYTES = 16 << 20
MESSAGE_FRAME_BYTES = 1200
"""Largest DATAGRAM frame (RFC 9221) taken where they are: between an edge and its relays."""
MESSAGE_BYTES = 1000
"""What one of them carries at most: it fits the smallest path with all headers."""
PACKET_OVERHEAD_BYTES = 60
"""About what its packet takes besides."""


def message_fits(size: int, window: int, in_flight: int, *, waiting: int, spare: bool) -> bool:
    """Whether a DATAGRAM frame of ``size`` bytes may leave: there must be room behind it in the
    congestion window for ``waiting`` bytes of its stream, and for others' a quarter of it; for one
    that can be spared half of it.
    """
    most = window // 2 if spare else 3 * window // 4
    return in_flight + size + PACKET_OVERHEAD_BYTES + waiting <= most


Address = tuple[str, int]
