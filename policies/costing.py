"""From what is known of an upstream's paths to their scores, by the scheme its policy names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from policies.classic import ClassicInputs, classic_scores
from policies.model import Carrier, PathState, RequestClass, Verdict
from policies.ranking import Scored
from policies.schema import Policy
from policies.score import PathInputs, expected_rtt_s, score

RESPONSE_BYTES = 64 << 10
"""Expected size of a response, for its price."""
RACE_DEFAULT_S = 0.5
RACE_FLOOR_S = 0.1
"""Cryptography and a busy loop take their time, too."""
SMOOTHED_SAMPLES = 15
"""An exponential mean with weight 1/8 has the variance of the mean of 15 samples."""


class Facts(NamedTuple):
    """What the scores need beyond the snapshot's state of a path."""

    state: PathState
    service_s: float | None = None
    """The endpoint's median time to first byte, R included."""
    hazard_per_s: float = 0.0
    detect_s: float = 0.5
    failure: float | None = None
    """Share of attempts that failed."""
    held: str = ""
    spare_bps: float | None = None


def handshake_round_trips(state: PathState) -> int:
    """Round trips before a request can be sent: 0 warm, 1 QUIC or plain TCP, 2 TCP and TLS 1.3."""
    return 0 if state.warm is not None else _cold_round_trips(state)


def _cold_round_trips(state: PathState) -> int:
    endpoint = state.path.endpoint
    return 1 if endpoint.scheme == "http" or Carrier.H3 in endpoint.protocols else 2


def race_delay_s(state: PathState) -> float:
    """How long a connection on this path may take before another path is tried beside it.

    The round trips of its handshake (RFC 8305 section 5: from measured RTT) and 4 rttvar, as a
    probe timeout (RFC 9002 section 6.2.1). A warm h2 or h3 connection has at most to be asked with
    a PING; a warm h1 connection may be busy, so that one is dialled.
    """
    estimate = state.estimate
    if estimate.rtt_s is None:
        return RACE_DEFAULT_S
    trips = 1 if state.warm in (Carrier.H2, Carrier.H3) else _cold_round_trips(state)
    variation_s = 4 * (estimate.rtt_s / 8 if estimate.rttvar_s is None else estimate.rttvar_s)
    return max(RACE_FLOOR_S, trips * estimate.rtt_s + variation_s)


def cost(facts: Sequence[Facts], request_class: RequestClass, policy: Policy) -> list[Scored]:
    """One `Scored` for each of an upstream's paths, in their order."""
    if policy.scheme == "expected-cost":
        return _expected(facts, request_class, policy)
    inputs = [_classic_inputs(f) for f in facts]
    scores = classic_scores(policy.scheme, inputs)
    return [
        Scored(f.state, s.cost_ms, s.parts, s.cost_ms, held=f.held, spare_bps=f.spare_bps)
        for f, s in zip(facts, scores, strict=True)
    ]


def _expected(facts: Sequence[Facts], request_class: RequestClass, policy: Policy) -> list[Scored]:
    plain = [_inputs(f) for f in facts]
    trips = [expected_rtt_s(p) for p in plain]
    up = sorted(
        (r, f.state.path.name)
        for r, f in zip(trips, facts, strict=True)
        if f.state.verdict is Verdict.UP
    )
    result = []
    for f, inputs, rtt_s in zip(facts, plain, trips, strict=True):
        alternative = next((r for r, name in up if name != f.state.path.name), None)
        costed = score(_inputs(f, alternative), request_class, policy.weights)
        trips_ms = costed.parts[0].ms
        result.append(
            Scored(
                f.state,
                costed.cost_ms,
                costed.parts,
                rtt_s * 1000,
                error_ms=_relative_error(inputs, rtt_s) * trips_ms,
                cold_ms=policy.weights.rtt * handshake_round_trips(f.state) * rtt_s * 1000,
                held=f.held,
                spare_bps=f.spare_bps,
            )
        )
    return result


def _inputs(facts: Facts, alternative_s: float | None = None) -> PathInputs:
    state = facts.state
    estimate, line = state.estimate, state.path.line
    service_s = facts.service_s
    if service_s is not None and estimate.rtt_s is not None:
        service_s = max(0.0, service_s - estimate.rtt_s)
    return PathInputs(
        rtt_s=estimate.rtt_s,
        rttvar_s=estimate.rttvar_s,
        rtt_min_s=estimate.rtt_min_s,
        loss=estimate.loss,
        goodput_bps=estimate.goodput_bps,
        samples=estimate.samples,
        distance_km=state.distance_km,
        service_s=service_s,
        in_flight=state.endpoint_in_flight,
        limit=state.limit,
        capacity_bps=line.capacity_bps,
        price_per_gb=line.price_per_gb,
        down_bytes=RESPONSE_BYTES,
        hazard_per_s=facts.hazard_per_s,
        detect_s=facts.detect_s,
        alt_rtt_s=alternative_s,
    )


def _relative_error(inputs: PathInputs, rtt_s: float) -> float:
    """Standard error of R as a share of R."""
    if inputs.rttvar_s is None or inputs.samples == 0 or rtt_s <= 0:
        return 0.5
    deviation_s = 1.25 * inputs.rttvar_s  # mean deviation to standard deviation (Jacobson 1988)
    return deviation_s / math.sqrt(min(inputs.samples, SMOOTHED_SAMPLES)) / rtt_s


def _classic_inputs(facts: Facts) -> ClassicInputs:
    state = facts.state
    bandwidth_bps = facts.spare_bps
    if bandwidth_bps is None:
        bandwidth_bps = state.estimate.goodput_bps or state.path.line.capacity_bps
    limit = state.limit
    return ClassicInputs(
        distance_km=state.distance_km,
        rtt_s=state.estimate.rtt_s,
        loss=state.estimate.loss,
        failure=facts.failure,
        load=state.endpoint_in_flight / limit if limit else float(state.in_flight),
        bandwidth_bps=bandwidth_bps,
    )
