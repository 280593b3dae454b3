"""The policy of an upstream: typed, validated, with a default and a meaning for each field.

Durations are written in seconds in the code (names end in ``_s``); a policy file may write
``200ms``, ``15s`` or ``10m``. Unknown keys are errors.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from policies.model import Replay

_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h)\s*$")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(value: object) -> object:
    """Seconds from ``200ms``, ``15s``, ``10m``, ``1h`` or a plain number; others pass unchanged."""
    if isinstance(value, str) and (match := _DURATION.match(value)):
        return float(match[1]) * _UNIT_S[match[2]]
    return value


Seconds = Annotated[float, BeforeValidator(parse_duration), Field(ge=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Weights(_Section):
    """How much each part of the expected cost counts; 1 is the honest expectation."""

    rtt: Weight = 1.0
    """Round trips, handshake and slow start included."""
    loss: Weight = 1.0
    """Retransmission delay and the time that loss adds to a large body."""
    load: Weight = 1.0
    """Queueing: RTT above its minimum and requests beyond the concurrency limit."""
    distance: Weight = 1.0
    """Above 1 adds (weight - 1) x the geodesic floor; a prior without samples in any case."""
    hazard: Weight = 1.0
    """Expected cost of the line failing during the exchange."""
    cost: Weight = 0.0
    """Milliseconds one is willing to wait to save one unit of money."""


class Cadence(_Section):
    """How often each probe runs. Each period gets +-25% jitter; the byte cap stretches them."""

    icmp_s: Seconds | None = 1.0
    """Echo to the endpoint while idle; null: none."""
    icmp_active_s: Seconds = 0.2
    """The same while an exchange waits."""
    tcp_s: Seconds | None = 5.0
    """TCP connects; null: none."""
    quic_s: Seconds | None = 30.0
    """QUIC handshakes to endpoints with h3; null: none."""
    http_s: Seconds | None = 30.0
    """HTTP GET; null: none."""
    http_path: str = "/"
    """What the HTTP probe asks for; any status below 500 counts as an answer."""
    ping_s: Seconds = 1.0
    """H2 or QUIC PING on a warm connection in recent use."""
    ping_active_s: Seconds = 0.2
    """The same while an exchange waits or doubt exists."""
    ping_idle_s: Seconds = 15.0
    """The same on a connection without recent use."""
    cap_kbit_s: float = Field(64.0, gt=0)
    """Upper limit of probe traffic per line."""
    cap_share: float = Field(0.01, gt=0, le=1)
    """Upper limit as a share of the line's capacity; the smaller of both counts."""


class Failover(_Section):
    """When the choice moves and how long anything may wait."""

    hysteresis_margin: float = Field(0.05, ge=0, le=1)
    """A challenger must be better by this share (or two standard errors) to collect regret."""
    switch_cost_rtts: float = Field(2.5, ge=0)
    """Regret that makes the choice move, in round trips of the incumbent."""
    connect_timeout_s: Seconds = 5.0
    """DNS, connect and TLS together, per attempt."""
    first_byte_timeout_s: Seconds = 600.0
    """Longest wait for a response head on a healthy line. A model may think."""
    idle_timeout_s: Seconds = 600.0
    """Longest silence within a response body on a healthy line."""


class Hedge(_Section):
    """A second attempt before the first failed."""

    when: Literal["off", "safe", "always"] = "safe"
    """safe: safe methods and requests with an Idempotency-Key; always: any method."""
    budget: float = Field(0.02, ge=0, le=1)
    """Share of requests that may be hedged."""
    min_delay_s: Seconds = 0.05
    """Never earlier than this."""


class Retry(_Section):
    """Attempts after a failure."""

    budget: float = Field(0.10, ge=0, le=1)
    """Share of requests that may be retried."""
    min_per_s: float = Field(1.0, ge=0)
    """Retries always allowed, per second."""
    max_attempts: int = Field(4, ge=1, le=16)
    """Per exchange, the first included."""


class Compression(_Section):
    """What is compressed on the long leg, whatever the client asked for."""

    responses: bool = True
    """Ask upstreams for zstd, br and gzip, and decode for the client."""
    requests: bool = True
    """Compress bodies to endpoints that declare accepts_encoding."""
    min_bytes: int = Field(1024, ge=0)
    """Request bodies below this go plain."""
    level: int = Field(3, ge=1, le=11)
    """zstd level; br and gzip use the nearest of theirs."""


class Limits(_Section):
    """What one exchange may hold."""

    spool_bytes: int = Field(64 << 20, ge=0)
    """Request body kept for replay; a longer body is sent but can no longer be replayed."""
    body_bytes: int | None = Field(None, ge=0)
    """Largest request body accepted (413 beyond); null: any."""


class Policy(_Section):
    """Everything an upstream's exchanges are decided by."""

    scheme: Literal[
        "expected-cost",
        "distance-latency-loss",
        "latency-failure-load",
        "latency-load-bandwidth",
        "nearest-three",
    ] = "expected-cost"
    """Score: the expected cost in ms, or one of the classic weightings by name."""
    weights: Weights = Weights()
    cadence: Cadence = Cadence()
    failover: Failover = Failover()
    hedge: Hedge = Hedge()
    retry: Retry = Retry()
    replay: Replay | None = None
    """Null: line-down for gateway requests, never for explicit-proxy requests."""
    compression: Compression = Compression()
    limits: Limits = Limits()
