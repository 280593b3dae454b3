"""The classic weightings that a policy can name instead of the expected cost.

Each criterion is a share of the worst candidate (x / max over the candidates; for bandwidth
1 - x / max), so 0 is perfect, 1 is the worst there is, and a small difference stays small (min-max
scaling would turn 60.0 against 60.1 ms into 0 against 1). What is not known counts as the worst.
The cost is the weighted sum in points, 0 to 100; lower wins.

| scheme | weights |
| --- | --- |
| distance-latency-loss | distance 40, latency 40, loss 20 |
| latency-failure-load | latency 50, failure 30, load 20 |
| latency-load-bandwidth | latency 40, load 30, bandwidth 30 |
| nearest-three | the three nearest by distance, these by latency; then the rest by distance |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from policies.model import Part
from policies.score import Score

NEAREST: Final = 3
BEYOND_NEAREST: Final = 1e6
"""Added to the cost of those that are not among the nearest, which keeps them behind."""
UNKNOWN_KM: Final = 20_037.0
"""Half the equator: as far as it can be."""
UNKNOWN_MS: Final = 10_000.0


@dataclass(frozen=True, slots=True)
class ClassicInputs:
    """One candidate; ``None`` where nothing is known."""

    distance_km: float | None = None
    rtt_s: float | None = None
    loss: float | None = None
    """Ratio of packets lost (upper bound)."""
    failure: float | None = None
    """Ratio of exchanges or probes that failed; ``None``: ``loss`` stands for it."""
    load: float | None = None
    """Requests in flight, by the concurrency limit where there is one."""
    bandwidth_bps: float | None = None
    """Bandwidth that is left."""


SCHEMES: Final[Mapping[str, tuple[tuple[str, float], ...]]] = {
    "distance-latency-loss": (("distance", 40), ("latency", 40), ("loss", 20)),
    "latency-failure-load": (("latency", 50), ("failure", 30), ("load", 20)),
    "latency-load-bandwidth": (("latency", 40), ("load", 30), ("bandwidth", 30)),
}

_VALUE: Final[Mapping[str, Callable[[ClassicInputs], float | None]]] = {
    "distance": lambda c: c.distance_km,
    "latency": lambda c: c.rtt_s,
    "loss": lambda c: c.loss,
    "failure": lambda c: c.loss if c.failure is None else c.failure,
    "load": lambda c: c.load,
    "bandwidth": lambda c: c.bandwidth_bps,
}


def classic_scores(scheme: str, candidates: Sequence[ClassicInputs]) -> list[Score]:
    """One score per candidate, in the candidates' order; ``ms`` of the parts are points here.

    ``scheme`` is one of `SCHEMES` or ``nearest-three``; raises `KeyError` for any other.
    """
    if scheme == "nearest-three":
        return _nearest(candidates)
    columns = [
        (name, weight, _badness(name, [_VALUE[name](c) for c in candidates]))
        for name, weight in SCHEMES[scheme]
    ]
    scores = []
    for i in range(len(candidates)):
        parts = tuple(Part(name, weight * column[i]) for name, weight, column in columns)
        scores.append(Score(sum(part.ms for part in parts), parts))
    return scores


def _badness(name: str, values: Sequence[float | None]) -> list[float]:
    greatest = max((v for v in values if v is not None), default=0.0)
    if name == "bandwidth":
        return [1.0 if v is None or greatest <= 0 else 1 - v / greatest for v in values]
    return [1.0 if v is None else v / greatest if greatest > 0 else 0.0 for v in values]


def _nearest(candidates: Sequence[ClassicInputs]) -> list[Score]:
    km = [UNKNOWN_KM if c.distance_km is None else c.distance_km for c in candidates]
    chosen = set(sorted(range(len(km)), key=km.__getitem__)[:NEAREST])
    scores = []
    for i, candidate in enumerate(candidates):
        if i in chosen:
            behind = 0.0
            latency = UNKNOWN_MS if candidate.rtt_s is None else candidate.rtt_s * 1000
        else:
            behind, latency = BEYOND_NEAREST + km[i], 0.0
        scores.append(Score(behind + latency, (Part("distance", behind), Part("latency", latency))))
    return scores
