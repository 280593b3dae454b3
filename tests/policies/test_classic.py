"""The classic weightings choose what their formulas say."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.classic import BEYOND_NEAREST, SCHEMES, ClassicInputs, classic_scores
from policies.schema import Policy

# km, RTT in ms, loss, load, Mbit/s left
NEAR_SLOW = ClassicInputs(1000, 0.200, 0.01, load=2, bandwidth_bps=10e6)
FAR_FAST = ClassicInputs(9000, 0.100, 0.01, load=4, bandwidth_bps=100e6)
MIDDLE_LOSSY = ClassicInputs(4000, 0.120, 0.05, load=1, bandwidth_bps=50e6)
ALL = [NEAR_SLOW, FAR_FAST, MIDDLE_LOSSY]


@pytest.mark.parametrize(
    ("scheme", "points"),
    [
        # 40 km/9000 + 40 ms/200 + 20 loss/5%
        ("distance-latency-loss", [4.444 + 40 + 4, 40 + 20 + 4, 17.778 + 24 + 20]),
        # 50 ms/200 + 30 loss/5% + 20 load/4
        ("latency-failure-load", [50 + 6 + 10, 25 + 6 + 20, 30 + 30 + 5]),
        # 40 ms/200 + 30 load/4 + 30 (1 - Mbit/100)
        ("latency-load-bandwidth", [40 + 15 + 27, 20 + 30 + 0, 24 + 7.5 + 15]),
    ],
)
def test_tabulated_weightings(scheme, points):
    scores = classic_scores(scheme, ALL)
    assert [s.cost_ms for s in scores] == pytest.approx(points, abs=0.001)
    for s in scores:
        assert sum(part.ms for part in s.parts) == pytest.approx(s.cost_ms)


@pytest.mark.parametrize(
    ("scheme", "best"),
    [
        ("distance-latency-loss", NEAR_SLOW),
        ("latency-failure-load", FAR_FAST),
        ("latency-load-bandwidth", MIDDLE_LOSSY),
    ],
)
def test_each_weighting_chooses_another(scheme, best):
    scores = classic_scores(scheme, ALL)
    assert min(zip(scores, ALL, strict=True), key=lambda pair: pair[0].cost_ms)[1] is best


def test_nearest_three_by_distance_then_latency():
    rows = [(8000, 0.05), (1000, 0.20), (2000, 0.10), (3000, 0.15), (4000, 0.01)]
    scores = classic_scores("nearest-three", [ClassicInputs(km, rtt) for km, rtt in rows])
    order = sorted(range(5), key=lambda i: scores[i].cost_ms)
    assert order == [2, 3, 1, 4, 0]
    assert [scores[i].cost_ms < BEYOND_NEAREST for i in order] == [True] * 3 + [False] * 2


def test_nearest_three_with_unknowns():
    candidates = [ClassicInputs(None, 0.01), *(ClassicInputs(km, None) for km in (1, 2, 3))]
    scores = classic_scores("nearest-three", candidates)
    assert scores[0].cost_ms == max(s.cost_ms for s in scores)


def test_failures_stand_before_loss_where_they_are_known():
    candidates = [ClassicInputs(failure=0.1, loss=0.0), ClassicInputs(failure=None, loss=0.05)]
    parts = [dict(s.parts) for s in classic_scores("latency-failure-load", candidates)]
    assert [p["failure"] for p in parts] == pytest.approx([30, 15])


def test_the_names_are_those_of_the_policy_file():
    names = set(get_args(Policy.model_fields["scheme"].annotation))
    assert names == {"expected-cost", "nearest-three", *SCHEMES}
    with pytest.raises(KeyError):
        classic_scores("expected-cost", ALL)


maybe = st.none() | st.floats(0, 1e9)
inputs = st.builds(ClassicInputs, maybe, maybe, maybe, maybe, maybe, maybe)


@given(st.sampled_from(sorted(SCHEMES)), st.lists(inputs, max_size=6))
def test_points_are_between_0_and_100_and_unknown_is_the_worst(scheme, candidates):
    scores = classic_scores(scheme, candidates)
    assert len(scores) == len(candidates)
    assert all(-1e-9 <= s.cost_ms <= 100 + 1e-9 for s in scores)
    if candidates:
        worst = classic_scores(scheme, [*candidates, ClassicInputs()])[-1]
        assert worst.cost_ms == pytest.approx(100)
