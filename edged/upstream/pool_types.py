"""What pools are set up with and what they tell: limits, shared tools, statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from edged.upstream.carriers import Carriers
from edged.upstream.connection import Connection, Connector, Owner
from policies.model import Carrier, Endpoint, Path


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Bounds of one pool."""

    h1_connections: int = 4096
    multiplexed_connections: int = 32
    dials: int = 64
    """At the same time."""
    h1_idle_s: float = 60.0
    multiplexed_idle_s: float = 300.0
    trust_s: float = 10.0
    """Silence after which an idle h2 or h3 connection is asked first."""
    h1_trust_s: float = 30.0
    """Idleness after which an h1 connection gets no request that must not be repeated."""
    ping_timeout_s: float = 1.0
    backup_dial_s: float = 0.25
    """How late a PING may be answered before a dial starts beside it."""
    wait_s: float = 10.0
    """Longest wait for a stream while all connections are in use, beyond the connect timeout."""
    warm_retry_s: float = 5.0


class PoolStats(NamedTuple):
    """A pool for admin and metrics; counts are of now, totals since start."""

    path: str
    origin: str
    connections: dict[str, int]
    in_flight: int
    waiting: int
    dialing: int
    opened_total: int
    dial_failures_total: int
    streams_total: int


@dataclass(frozen=True, slots=True)
class PoolTools:
    """What all pools share."""

    tcp: Connector
    h3: Connector | None
    carriers: Carriers
    limits: PoolLimits
    connect_timeout: Callable[[str], float]
    """Seconds for DNS, connect and TLS, by upstream."""
    set_warm: Callable[[str, Carrier | None], None]
    adopt: Callable[[Connection, Path], Owner]
    """A connection moved to this path: whose it is now."""
    emptied: Callable[[], None]
    """A pool lost its last connection."""


def may_multiplex(endpoint: Endpoint) -> bool:
    """Whether a connection not made yet may turn out to carry several streams."""
    if endpoint.scheme == "https":
        return endpoint.protocols != (Carrier.H1,)
    return Carrier.H1 not in endpoint.protocols
