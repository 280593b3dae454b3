"""What both ends of a QUIC connection need of an engine, whichever end edged is.

The client's adapters are in `edged.upstream`, the server's in `edged.downstream`.
"""

from __future__ import annotations

STREAM_WINDOW_BYTES = 4 << 20
"""Receive window of a stream: 150 ms at 200 Mbit/s; also the most that a held one can pile up."""
CONNECTION_WINDOW_BYTES = 16 << 20

Address = tuple[str, int]
