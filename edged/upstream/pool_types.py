"""What pools are set up with and what they tell: limits, shared tools, statistics."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from edged.upstream.carriers import Carriers
from edged.upstream.connection import Connection, Connector, Owner
from policies.carriers import Choice
from policies.model import Carrier, Endpoint, Estimate, Path
from policies.patience import Patience

_MOST_PATIENCES = 4096


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Bounds of one pool."""

    h1_connections: int = 4096
    multiplexed_connections: int = 32
    dials: int = 64
    """At the same time."""
    h1_idle_s: float = 60.0
    h1_spare: int = 8
    """Idle h1 connections that are kept for so long; of more, those that rested longest go after
    ``h1_surplus_idle_s``: an outage opens hundreds, of a quarter of a megabyte each with TLS."""
    h1_surplus_idle_s: float = 5.0
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
    surplus_idle_s: float = 20.0
    """Idleness after which an h2 or h3 connection goes that is not its carrier's only one."""
    used_s: float = 60.0
    """Without a request for so long, a pool needs no second carrier."""


class PatienceBook:
    """What is known of servers' patience with idle connections, by origin and carrier; bounded."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, int, Carrier], Patience] = OrderedDict()

    def of(self, endpoint: Endpoint, carrier: Carrier) -> Patience:
        """What is known of the server of ``endpoint``; the same object while it is remembered."""
        key = (endpoint.host, endpoint.port, carrier)
        patience = self._known.get(key)
        if patience is None:
            patience = self._known[key] = Patience()
            if len(self._known) > _MOST_PATIENCES:
                self._known.popitem(last=False)
        return patience


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
    choice: Choice | None = None
    """Which carriers suit the path, and what they cost."""


@dataclass(frozen=True, slots=True)
class PoolTools:
    """What all pools share."""

    tcp: Connector
    h3: Connector | None
    carriers: Carriers
    patience: PatienceBook
    limits: PoolLimits
    connect_timeout: Callable[[str], float]
    """Seconds for DNS, connect and TLS, by upstream."""
    set_warm: Callable[[str, Carrier | None], None]
    estimate: Callable[[str], Estimate | None]
    """What is known of a path, by name."""
    paced: Callable[[], bool]
    """Whether TCP's congestion control measures bandwidth (BBR)."""
    adopt: Callable[[Connection, Path], Owner]
    """A connection moved to this path: whose it is now."""
    emptied: Callable[[], None]
    """A pool lost its last connection."""


def may_multiplex(endpoint: Endpoint) -> bool:
    """Whether a connection not made yet may turn out to carry several streams."""
    if endpoint.scheme == "https":
        return endpoint.protocols != (Carrier.H1,)
    return Carrier.H1 not in endpoint.protocols
