"""Buckets never give more than was earned, and the hedge brake is a rule of the last 100."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.budget import Bucket, HedgeBudget, hedge_budget, retry_bucket
from policies.schema import Hedge, Retry


def test_a_new_bucket_is_full_and_then_empty():
    bucket = Bucket(capacity=3)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]


def test_requests_and_time_earn():
    bucket = Bucket(share=0.25, per_s=1.0, capacity=1)
    assert bucket.take(0.0)
    for _ in range(3):
        bucket.earn()
    assert not bucket.take(0.0)
    bucket.earn()
    assert bucket.take(0.0)
    assert not bucket.take(0.9)
    assert bucket.take(1.1)


def test_time_backwards_earns_nothing():
    bucket = Bucket(per_s=1.0, capacity=5)
    assert bucket.take(100.0, 5)
    assert not bucket.take(50.0)
    assert bucket.available(100.0) == 0


def test_overdraft_goes_on_when_ordinary_spending_stops():
    bucket = Bucket(capacity=1)
    assert bucket.take(0.0)
    assert not bucket.take(0.0)
    assert bucket.take(0.0, overdraft=1.0)
    assert not bucket.take(0.0, overdraft=1.0)
    assert bucket.available(0.0) == -1


def test_resize_keeps_what_was_spent():
    bucket = Bucket(capacity=10)
    bucket.take(0.0, 9)
    bucket.resize(share=0.5, per_s=0.0, capacity=20)
    assert bucket.available(0.0) == 1
    bucket.resize(share=0.5, per_s=0.0, capacity=0.5)
    assert bucket.available(0.0) == 0.5


def test_negative_settings_are_refused():
    with pytest.raises(ValueError):
        Bucket(share=-0.1)


@given(
    st.lists(st.one_of(st.just("earn"), st.floats(0, 5)), max_size=200),
    st.floats(0, 1),
    st.floats(0, 3),
    st.floats(0, 10),
)
def test_never_more_taken_than_was_there(events, share, per_s, capacity):
    bucket = Bucket(share=share, per_s=per_s, capacity=capacity)
    bucket.available(0.0)
    now, earned, taken = 0.0, 0, 0
    for event in events:
        if event == "earn":
            bucket.earn()
            earned += 1
        else:
            now += event
            taken += bucket.take(now)
            assert bucket.available(now) <= capacity + 1e-9
    assert taken <= capacity + share * earned + per_s * now + 1e-6


def test_hedges_are_two_percent_in_the_long_run():
    budget = hedge_budget(Hedge())
    granted = 0
    for i in range(10_000):
        budget.earn()
        granted += budget.take(i * 0.01)
    assert 200 <= granted <= 206


def test_hedging_stops_above_a_fifth_of_the_last_hundred_and_comes_back():
    budget = HedgeBudget(1.0)
    for _ in range(100):
        budget.earn()
    granted = 0
    for _ in range(50):
        budget.earn()
        granted += budget.take(0.0)
    assert granted == 21
    assert budget.braked
    for _ in range(100):
        budget.earn()
    assert not budget.braked
    assert budget.take(0.0)


def test_hedging_can_be_off():
    for hedge in (Hedge(when="off"), Hedge(budget=0)):
        budget = hedge_budget(hedge)
        for _ in range(1000):
            budget.earn()
        assert not budget.take(0.0)


def test_a_hedge_budget_takes_a_new_policy():
    budget = HedgeBudget(0.0)
    budget.resize(0.5)
    budget.earn()
    budget.earn()
    assert budget.take(0.0)


def test_retries_are_ten_percent_and_one_a_second():
    bucket = retry_bucket(Retry())
    now, taken = 0.0, 0
    for i in range(10_000):
        now = i / 1000
        bucket.earn()
        taken += bucket.take(now)
    assert taken == pytest.approx(20 + 0.10 * 10_000 + 1.0 * now, abs=2)


def test_no_retries_at_all():
    assert not retry_bucket(Retry(budget=0, min_per_s=0)).take(0.0)
