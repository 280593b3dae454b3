"""The policy of an upstream: typed, validated, with a default and a meaning for each field.

Durations are seconds in the code (names end in ``_s``); a policy file may write ``200ms``, ``15s``,
``10m``, ``1h`` or a number of seconds. Unknown keys are errors; a number is never taken from text
or from true.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from policies.model import Replay

_DURATION = re.compile(r"(\d+(?:\.\d+)?) ?(ms|s|m|h)", re.ASCII)
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(value: object) -> object:
    """Seconds from ``200ms``, ``15s``, ``10m`` or ``1h``; what is no text passes unchanged.

    Raises ValueError for any other text.
    """
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value)
    if match is None:
        raise ValueError("write a duration as 200ms, 15s, 10m, 1h or a number of seconds")
    return float(match[1]) * _UNIT_S[match[2]]


Seconds = Annotated[
    float,
    BeforeValidator(parse_duration),
    Field(strict=True, ge=0, le=7 * 86400, allow_inf_nan=False),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0},
                {"type": "string", "pattern": f"^{_DURATION.pattern}$"},
            ]
        }
    ),
]
Period = Annotated[Seconds, Field(ge=0.01)]
"""A period or a limit on waiting; below 10 ms either does harm."""
Weight = Annotated[float, Field(strict=True, ge=0, le=1000, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Count = Annotated[int, Field(strict=True, ge=0)]


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
    cost: Annotated[float, Field(strict=True, ge=0, le=1e9, allow_inf_nan=False)] = 0.0
    """Milliseconds one is willing to wait to save one unit of money."""


class Cadence(_Section):
    """How often each probe runs. Each period gets +-25% jitter; the byte cap stretches them."""

    icmp_s: Period | None = 1.0
    """Echo to the endpoint while idle; null: none."""
    icmp_active_s: Period = 0.2
    """The same while an exchange waits."""
    tcp_s: Period | None = 5.0
    """TCP connects; null: none."""
    quic_s: Period | None = 30.0
    """QUIC handshakes to endpoints with h3; null: none."""
    http_s: Period | None = 30.0
    """HTTP GET; null: none."""
    http_path: Annotated[str, Field(pattern=r"^/[!-~]*$")] = "/"
    """What the HTTP probe asks for; any status below 500 counts as an answer."""
    ping_s: Period = 1.0
    """H2 or QUIC PING on a warm connection in recent use."""
    ping_active_s: Period = 0.2
    """The same while an exchange waits or doubt exists."""
    ping_idle_s: Period = 15.0
    """The same on a connection without recent use."""
    cap_kbit_s: float = Field(64.0, strict=True, gt=0, allow_inf_nan=False)
    """Upper limit of probe traffic per line."""
    cap_share: float = Field(0.01, strict=True, gt=0, le=1)
    """Upper limit as a share of the line's capacity; the smaller of both counts."""


class Failover(_Section):
    """When the choice moves and how long anything may wait."""

    hysteresis_margin: Share = 0.05
    """A challenger must be better by this share (or two standard errors) to collect regret."""
    switch_cost_rtts: Weight = 2.5
    """Regret that makes the choice move, in round trips of the incumbent."""
    connect_timeout_s: Period = 5.0
    """DNS, connect and TLS together, per attempt; and the wait for any path while all are DOWN."""
    first_byte_timeout_s: Period = 600.0
    """Longest wait for a response head on a healthy line. A model may think."""
    idle_timeout_s: Period = 600.0
    """Longest silence within a response body on a healthy line."""


class Hedge(_Section):
    """A second attempt before the first failed."""

    when: Literal["off", "safe", "always"] = "safe"
    """safe: safe methods and requests with an Idempotency-Key; always: any method."""
    budget: Share = 0.02
    """Share of requests that may be hedged."""
    min_delay_s: Seconds = 0.05
    """Never earlier than this."""


class Retry(_Section):
    """Attempts after a failure."""

    budget: Share = 0.10
    """Share of requests that may be retried."""
    min_per_s: Weight = 1.0
    """Retries always allowed, per second."""
    max_attempts: int = Field(4, strict=True, ge=1, le=16)
    """Per exchange, the first included; those that a line's death ended do not count."""


class Compression(_Section):
    """What is compressed on the long leg, whatever the client asked for."""

    responses: bool = True
    """Ask upstreams for zstd, br and gzip, and decode for the client."""
    requests: bool = True
    """Compress bodies to endpoints that declare accepts_encoding, and to relays."""
    min_bytes: Count = 1024
    """Request bodies below this go plain."""
    level: int = Field(6, strict=True, ge=1, le=11)
    """zstd level; br uses the same up to 8, gzip up to 9."""


class Redundancy(_Section):
    """What goes through a relay over two lines at once; whichever byte comes first goes on."""

    small_streams: Literal["auto", "always", "never"] = "auto"
    """Of token streams and small requests. auto: while the best line is in doubt, loses more than
    1% or is young; never: only once a line is silent."""
    max_kbit_s: float = Field(64.0, strict=True, gt=0, allow_inf_nan=False)
    """A response that comes faster than this is not small."""
    max_share: Share = 0.25
    """Of a line's capacity, if it is known: so much may all second copies take."""


class Limits(_Section):
    """What one exchange may hold."""

    spool_bytes: Count = 64 << 20
    """Request body kept for replay; a longer body is sent but can no longer be replayed."""
    body_bytes: Count | None = None
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
    """How much each part of the expected cost counts."""
    cadence: Cadence = Cadence()
    """How often each probe runs."""
    failover: Failover = Failover()
    """When the choice moves and how long anything may wait."""
    hedge: Hedge = Hedge()
    """A second attempt before the first failed."""
    retry: Retry = Retry()
    """Attempts after a failure."""
    replay: Replay | None = None
    """When a request that is not safe and may have been executed goes out again: never, line-down
    or always. Null: line-down for gateway requests, never for explicit-proxy requests."""
    compression: Compression = Compression()
    """What is compressed on the long leg."""
    redundancy: Redundancy = Redundancy()
    """What goes through a relay twice."""
    limits: Limits = Limits()
    """What one exchange may hold."""
