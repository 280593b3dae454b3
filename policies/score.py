"""The expected cost of a path for a class of request, in ms, as a sum of named parts.

```
C = w_rtt  * N * R
  + w_loss * [ (1-(1-p)^2) * PTO + (1-(1-p)^(n-1)) * 9/8 * R + bulk_bits / G ]
  + w_load * [ (R - Rmin) + S * max(0, (inflight + 1 - L) / L) ]
  + max(0, w_distance - 1) * floor
  + hazard * E[duration of the exchange] * (T_detect + R_alt + redo)
  + w_cost * price_per_gb * bytes
```

R srtt, p loss (upper bound), PTO = R + max(4 rttvar, 1 ms), floor = geodesic km / 100 ms (light in
fibre there and back), n packets of the body, S service time, L concurrency limit.
N = 1 + handshake (0 warm, 1 QUIC, 2 TCP + TLS 1.3) + (slow-start flights of the body - 1).

Slow start (RFC 6928: 10 packets, doubling per flight) ends when the window reaches G * R; what of
the body is left then are the bulk bits. Where G was not measured it is what loss permits,
1.22 * packet / (R * sqrt p) (Mathis et al. 1997), and never more than the line's capacity.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log, sqrt
from typing import Final

from policies.model import Part, RequestClass
from policies.schema import Weights

PACKET_BYTES: Final = 1460
INITIAL_WINDOW: Final = 10
PRIOR_SAMPLES: Final = 5
PRIOR_LOSS: Final = 0.435
"""Upper bound of 0 lost of `PRIOR_SAMPLES` (`policies.loss.loss_interval`)."""
UNKNOWN_KM: Final = 10_000.0
"""Mean distance of two random points of the earth: the prior of an endpoint without location."""
STREAM_S: Final = 30.0
"""Expected duration of a token stream."""
HAZARD_HALF_LIFE_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class PathInputs:
    """Everything the cost of one path depends on; ``None`` where nothing is known."""

    rtt_s: float | None = None
    rttvar_s: float | None = None
    rtt_min_s: float | None = None
    loss: float | None = None
    goodput_bps: float | None = None
    samples: int = 0
    distance_km: float | None = None
    handshake_round_trips: int = 0
    """0 warm, 1 QUIC, 2 TCP + TLS 1.3 (1 TCP without TLS)."""
    service_s: float | None = None
    """S: the endpoint's median time to first byte less R."""
    in_flight: int = 0
    """At the endpoint, over all its lines."""
    limit: float | None = None
    capacity_bps: float | None = None
    price_per_gb: float = 0.0
    down_bytes: int = 0
    """Expected response bytes, for the price."""
    hazard_per_s: float = 0.0
    """Outages of the line per second (`Hazard.rate`)."""
    detect_s: float = 0.5
    """T_detect: how long a failure of the line would stay unnoticed."""
    alt_rtt_s: float | None = None
    """R of the next best path; ``None``: as this one."""


@dataclass(frozen=True, slots=True)
class Score:
    """A total in ms and the parts it is the sum of."""

    cost_ms: float
    parts: tuple[Part, ...]


def floor_ms(distance_km: float) -> float:
    """The least round trip that light in fibre permits (200 km/ms there and back)."""
    return distance_km / 100


def expected_rtt_s(inputs: PathInputs) -> float:
    """R with the prior of distance: 2 x floor, worth 5 samples, where the location is known."""
    known_km = inputs.distance_km
    if inputs.rtt_s is None:
        return 2 * floor_ms(UNKNOWN_KM if known_km is None else known_km) / 1000
    if known_km is None:
        return inputs.rtt_s
    prior_s = 2 * floor_ms(known_km) / 1000
    n = max(1, inputs.samples)
    return (PRIOR_SAMPLES * prior_s + n * inputs.rtt_s) / (PRIOR_SAMPLES + n)


@dataclass(frozen=True, slots=True)
class Transfer:
    """How a body leaves: ``flights`` of slow start (1 without a body), then ``bulk_bits`` at G."""

    flights: int
    bulk_bits: float
    goodput_bps: float

    @property
    def bulk_s(self) -> float:
        """Time of the part beyond slow start."""
        return self.bulk_bits / self.goodput_bps if self.bulk_bits else 0.0


def transfer(
    body_bytes: int,
    rtt_s: float,
    loss: float,
    goodput_bps: float | None = None,
    capacity_bps: float | None = None,
) -> Transfer:
    """Split a body into slow-start flights and the rest; see the module's head."""
    rtt_s = max(rtt_s, 1e-4)
    if goodput_bps is None:
        goodput_bps = 1.22 * PACKET_BYTES * 8 / (rtt_s * sqrt(max(loss, 1e-6)))
    if capacity_bps is not None:
        goodput_bps = min(goodput_bps, capacity_bps)
    goodput_bps = max(goodput_bps, 1000.0)
    packets = ceil(body_bytes / PACKET_BYTES)
    if packets <= INITIAL_WINDOW:
        return Transfer(1, 0.0, goodput_bps)
    window_limit = max(float(INITIAL_WINDOW), goodput_bps * rtt_s / 8 / PACKET_BYTES)
    doublings = int(log(window_limit / INITIAL_WINDOW, 2))
    flights_needed = ceil(log(packets / INITIAL_WINDOW + 1, 2))
    flights = min(flights_needed, doublings + 1)
    sent = INITIAL_WINDOW * (2**flights - 1)
    left = max(0, packets - sent)
    return Transfer(flights, left * PACKET_BYTES * 8.0, goodput_bps)


def score(inputs: PathInputs, request: RequestClass, weights: Weights) -> Score:
    """The expected cost of one request of this class on one path. Pure."""
    rtt_s = expected_rtt_s(inputs)
    rtt_ms = rtt_s * 1000
    p = PRIOR_LOSS if inputs.loss is None else inputs.loss
    rttvar_s = inputs.rttvar_s if inputs.rttvar_s is not None else rtt_s / 2
    pto_ms = rtt_ms + max(4 * rttvar_s * 1000, 1.0)
    body = transfer(request.up_bytes, rtt_s, p, inputs.goodput_bps, inputs.capacity_bps)
    packets = max(1, ceil(request.up_bytes / PACKET_BYTES))
    round_trips = 1 + inputs.handshake_round_trips + (body.flights - 1)

    rtt_part = round_trips * rtt_ms
    loss_part = (
        (1 - (1 - p) ** 2) * pto_ms
        + (1 - (1 - p) ** (packets - 1)) * 9 / 8 * rtt_ms
        + body.bulk_s * 1000
    )
    body_ms = (body.flights - 1) * rtt_ms + body.bulk_s * 1000
    duration_s = (rtt_part + loss_part) / 1000 + (inputs.service_s or 0.0)
    if request.streaming:
        duration_s += STREAM_S
    alt_ms = rtt_ms if inputs.alt_rtt_s is None else inputs.alt_rtt_s * 1000
    redo_ms = body_ms / 2  # a failure hits a body in transit half way on average
    price = inputs.price_per_gb * (request.up_bytes + inputs.down_bytes) / 1e9

    distance = inputs.distance_km
    parts = (
        Part("rtt", weights.rtt * rtt_part),
        Part("loss", weights.loss * loss_part),
        Part("load", weights.load * _load_ms(inputs)),
        Part("distance", max(0.0, weights.distance - 1) * floor_ms(distance) if distance else 0.0),
        Part(
            "hazard",
            weights.hazard
            * min(1.0, inputs.hazard_per_s * duration_s)
            * (inputs.detect_s * 1000 + alt_ms + redo_ms),
        ),
        Part("cost", weights.cost * price),
    )
    return Score(sum(part.ms for part in parts), parts)


def _load_ms(inputs: PathInputs) -> float:
    queueing_s = 0.0
    if inputs.rtt_s is not None and inputs.rtt_min_s is not None:
        queueing_s = max(0.0, inputs.rtt_s - inputs.rtt_min_s)
    if inputs.limit is not None and inputs.service_s is not None:
        limit = max(inputs.limit, 1.0)
        queueing_s += inputs.service_s * max(0.0, (inputs.in_flight + 1 - limit) / limit)
    return queueing_s * 1000


class Hazard:
    """Outages of one line per second, remembered with a half-life of one hour.

    Starts as if one hour with 1/24 outage had been watched, so that a new line is neither perfect
    nor condemned by its first outage.
    """

    __slots__ = ("_at", "_exposure_s", "_outages")

    def __init__(self, now: float) -> None:
        self._at = now
        self._outages = 1 / 24
        self._exposure_s = 3600.0

    def outage(self, now: float) -> None:
        """The line went DOWN (call once an outage, when the blame is the line's)."""
        self._decay(now)
        self._outages += 1

    def rate(self, now: float) -> float:
        """Outages per second at ``now``."""
        self._decay(now)
        return self._outages / self._exposure_s

    def _decay(self, now: float) -> None:
        elapsed = now - self._at
        if elapsed <= 0:
            return
        keep = 0.5 ** (elapsed / HAZARD_HALF_LIFE_S)
        self._outages *= keep
        self._exposure_s = self._exposure_s * keep + HAZARD_HALF_LIFE_S / log(2) * (1 - keep)
        self._at = now
