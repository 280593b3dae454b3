"""Loss with a bound that admits what is not known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.loss import DecayedCounts, LossEstimate, loss_interval


def beta_quantile(q, a, b, steps=20_000):
    """By numeric integration; slow and plain."""
    xs = [(i + 0.5) / steps for i in range(steps)]
    densities = [x ** (a - 1) * (1 - x) ** (b - 1) for x in xs]
    total, seen = sum(densities), 0.0
    for x, density in zip(xs, densities, strict=True):
        seen += density
        if seen >= q * total:
            return x
    return 1.0


def test_none_of_a_hundred_still_allows_three_point_seven_percent():
    assert loss_interval(0, 100)[1] == pytest.approx(0.037, abs=0.0001)


@pytest.mark.parametrize(("lost", "total"), [(0, 100), (1, 100), (5, 100), (0, 20), (30, 200)])
def test_the_bound_is_close_to_the_exact_posterior_of_a_uniform_prior(lost, total):
    exact = beta_quantile(0.975, lost + 1, total - lost + 1)
    assert loss_interval(lost, total)[1] == pytest.approx(exact, rel=0.05)


@given(st.integers(0, 10_000), st.integers(1, 10_000))
def test_the_interval_holds_the_ratio(lost, total):
    lost = min(lost, total)
    low, high = loss_interval(lost, total)
    assert 0 <= low <= lost / total + 1e-12
    assert lost / total - 1e-12 <= high <= 1


def test_nothing_known_is_no_estimate():
    assert loss_interval(0, 0) == (0.0, 1.0)
    assert LossEstimate().bounds(0.0) is None


def test_counts_halve_every_half_life():
    counts = DecayedCounts(10.0)
    counts.add(2, 100, 0.0)
    assert counts.read(10.0) == pytest.approx((1.0, 50.0))
    assert counts.read(20.0) == pytest.approx((0.5, 25.0))


def feed(loss, seconds, start, *, lost_each, total_each=100, icmp=False):
    for i in range(seconds):
        loss.add(lost_each, total_each, start + i, icmp=icmp)
    return start + seconds


def test_the_long_memory_makes_the_bound_tight():
    loss = LossEstimate()
    now = feed(loss, 120, 0.0, lost_each=1)
    low, high = loss.bounds(now)
    assert low < 0.01 < high < 0.0125


def test_a_change_for_the_worse_is_believed_within_two_seconds():
    loss = LossEstimate()
    now = feed(loss, 120, 0.0, lost_each=0)
    assert loss.bounds(now)[1] < 0.001
    now = feed(loss, 2, now, lost_each=10)
    assert loss.bounds(now)[1] > 0.01


def test_a_change_for_the_better_is_believed_once_the_short_memory_says_so():
    loss = LossEstimate()
    now = feed(loss, 120, 0.0, lost_each=10)
    now = feed(loss, 30, now, lost_each=0)
    assert loss.bounds(now)[1] < 0.03


def test_icmp_alone_is_no_evidence():
    loss = LossEstimate()
    feed(loss, 60, 0.0, lost_each=50, icmp=True)
    assert loss.bounds(60.0) is None


def test_icmp_sharpens_the_estimate_while_it_agrees():
    alone, both = LossEstimate(), LossEstimate()
    for i in range(60):
        both.add(0, 1, i, icmp=True)
        if i % 5 == 0:
            alone.add(0, 1, i)
            both.add(0, 1, i)
    assert both.bounds(60.0)[1] < alone.bounds(60.0)[1] / 3


def test_icmp_that_is_rate_limited_is_overruled_by_data():
    loss = LossEstimate()
    for i in range(60):
        loss.add(1, 2, i, icmp=True)
        loss.add(0, 20, i)
    assert loss.bounds(60.0)[1] < 0.01
