"""From states to scores, by scheme."""

from __future__ import annotations

import pytest

from policies.costing import Facts, cost, handshake_round_trips
from policies.model import (
    Breaker,
    Carrier,
    Endpoint,
    Estimate,
    Line,
    Path,
    PathState,
    RequestClass,
    Verdict,
)
from policies.ranking import Chooser
from policies.schema import Policy, Weights


def state(line, estimate, *, verdict=Verdict.UP, warm=None, in_flight=0, km=None, **endpoint):
    options = {"scheme": "https", "protocols": (Carrier.H2, Carrier.H1), **endpoint}
    target = Endpoint("u", "e", options["scheme"], "h", 443, protocols=options["protocols"])
    path = Path(line if isinstance(line, Line) else Line(line), target)
    return PathState(path, verdict, Breaker.CLOSED, None, estimate, km, None, warm, in_flight, None)


def measured(rtt_s, loss, **more):
    return Estimate(
        rtt_s=rtt_s, rttvar_s=rtt_s / 20, rtt_min_s=rtt_s, loss=loss, samples=99, **more
    )


SHORT_LOSSY = measured(0.060, 0.05)
LONG_CLEAN = measured(0.150, 0.001)


def best(facts, request_class, policy):
    scored = cost(facts, request_class, policy)
    failover = policy.failover
    ranking = Chooser().rank("u", request_class, scored, failover, requests=99, now=0.0)
    return ranking.order[0].state.path.line.name


@pytest.mark.parametrize(("body", "line"), [(10_000, "lossy"), (10_000_000, "clean")])
def test_a_small_request_takes_the_short_lossy_line_and_a_big_upload_the_clean_one(body, line):
    facts = [Facts(state("lossy", SHORT_LOSSY)), Facts(state("clean", LONG_CLEAN))]
    assert best(facts, RequestClass.of(body), Policy()) == line


def test_handshakes():
    unknown = Estimate()
    assert handshake_round_trips(state("a", unknown, warm=Carrier.H1)) == 0
    assert handshake_round_trips(state("a", unknown)) == 2
    assert handshake_round_trips(state("a", unknown, scheme="http")) == 1
    assert handshake_round_trips(state("a", unknown, protocols=(Carrier.H3, Carrier.H2))) == 1


def test_a_cold_path_costs_its_handshake_apart():
    warm, cold = cost(
        [Facts(state("a", LONG_CLEAN, warm=Carrier.H2)), Facts(state("b", LONG_CLEAN))],
        RequestClass(0),
        Policy(),
    )
    assert warm.cold_ms == 0
    assert cold.cold_ms == pytest.approx(300)
    assert cold.cost_ms == pytest.approx(warm.cost_ms)


def test_parts_sum_to_the_cost_and_r_is_the_price_unit():
    (scored,) = cost([Facts(state("a", SHORT_LOSSY))], RequestClass(65536), Policy())
    assert sum(part.ms for part in scored.parts) == pytest.approx(scored.cost_ms)
    assert scored.round_trip_ms == pytest.approx(60)
    assert 0 < scored.error_ms < 0.1 * scored.cost_ms


def test_an_unmeasured_path_is_uncertain():
    (scored,) = cost([Facts(state("a", Estimate()))], RequestClass(0), Policy())
    assert scored.error_ms == 0.5 * scored.round_trip_ms


def test_the_hazard_of_a_line_counts_the_way_to_the_best_other_line():
    flaky = Facts(state("a", LONG_CLEAN), hazard_per_s=0.01)
    near = Facts(state("b", SHORT_LOSSY))
    far = Facts(state("b", measured(0.500, 0.001)))
    request = RequestClass(0, streaming=True)

    def hazard(other):
        scored = cost([flaky, other], request, Policy())[0]
        return next(part.ms for part in scored.parts if part.name == "hazard")

    assert 0 < hazard(near) < hazard(far)
    dead = near._replace(state=state("b", SHORT_LOSSY, verdict=Verdict.DOWN))
    assert hazard(dead) > hazard(near), "a dead line is no way out"


def test_price_counts_when_the_policy_says_so():
    dear = Facts(state(Line("a", price_per_gb=10.0), SHORT_LOSSY))
    free = Facts(state("b", LONG_CLEAN))
    assert best([dear, free], RequestClass(1024), Policy()) == "a"
    frugal = Policy(weights=Weights(cost=1000))
    assert best([dear, free], RequestClass(1 << 20), frugal) == "b"


@pytest.mark.parametrize(
    ("scheme", "line"),
    [
        ("distance-latency-loss", "near"),
        ("latency-failure-load", "quick"),
        ("latency-load-bandwidth", "wide"),
        ("nearest-three", "quick"),
    ],
)
def test_the_classic_schemes_choose_by_their_own_inputs(scheme, line):
    facts = [
        Facts(state("near", measured(0.100, 0.01, goodput_bps=1e7), km=100, in_flight=9)),
        Facts(state("quick", measured(0.050, 0.04, goodput_bps=1e7), km=3000, in_flight=9)),
        Facts(state("wide", measured(0.090, 0.05, goodput_bps=1e9), km=4000, in_flight=0)),
        Facts(
            state("far", measured(0.010, 0.05, goodput_bps=1e6), km=9000, in_flight=10),
            failure=1.0,
        ),
    ]
    if scheme != "nearest-three":
        facts = facts[:3]
    assert best(facts, RequestClass(1024), Policy(scheme=scheme)) == line


def test_a_lines_spare_bandwidth_and_hold_reach_the_ranking():
    (scored,) = cost(
        [Facts(state("a", LONG_CLEAN), held="recovering", spare_bps=5e6)], RequestClass(0), Policy()
    )
    assert scored.held == "recovering"
    assert scored.spare_bps == 5e6
