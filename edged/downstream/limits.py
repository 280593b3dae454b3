"""What one client connection may hold and how long it may keep the daemon waiting."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a listener. Sizes in bytes, times in seconds; times are kept to about 1 s.

    A request beyond a bound gets the status named, after which its connection is closed.
    """

    header_bytes: int = 32768
    """Request line and fields together; also of trailers (431)."""
    header_fields: int = 128
    """Field lines of one section (431)."""
    uri_bytes: int = 8192
    """Request target (414)."""
    header_time_s: float = 15.0
    """First byte of a head to its last (408)."""
    idle_s: float = 300.0
    """Silence between requests on a connection (closed)."""
    body_stall_s: float = 60.0
    """Length of the windows in which a request body must make progress (408)."""
    body_stall_bytes: int = 512
    """The least progress of a body in one such window, unless it ends or edged paused it."""
    duplex: bool = False
    """A body may pause for as long as it likes once its response has begun."""
    write_stall_s: float = 600.0
    """A client that takes no response byte for so long is cut off."""
    linger_s: float = 2.0
    """How long input is discarded after an error answer, so that the client can read it."""
    connections: int = 20000
    """Open at once; further ones are closed on arrival."""
    read_ahead_bytes: int = 16384
    """Bytes kept of requests after the one in progress before reading stops."""
    discard_bytes: int = 65536
    """Rest of a request body read and dropped after an early answer, to keep the connection."""
    write_high_bytes: int = 65536
    """Response bytes queued for a client before its handler is told to pause."""
    h2_streams: int = 128
    """Concurrent streams of an HTTP/2 connection (REFUSED_STREAM)."""
    h2_window_bytes: int = 1 << 20
    """Receive window of an HTTP/2 stream; a connection has four times that."""
    h2_resets_per_s: float = 50.0
    """RST_STREAM a client may send per second, ten seconds' worth at once (CVE-2023-44487)."""
    h2_control_per_s: float = 200.0
    """PING, SETTINGS, PRIORITY and empty frames per second, ten seconds' worth at once."""
