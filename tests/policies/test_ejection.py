"""The cohort rule: cap, backoff, probation, BUSY, and the statistical outlier."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.ejection import Cohort, SuccessRate, clearly_worse


def cohort(*endpoints):
    c = Cohort()
    c.set_members(list(endpoints))
    return c


def rng():
    return random.Random(1)


def eject(c, endpoint, now=0.0):
    return [c.bad(endpoint, "http_error", now, rng()) for _ in range(5)][-1]


def test_five_remote_failures_in_a_row_eject():
    c = cohort("x", "y")
    assert [c.bad("x", "http_error", 0.0, rng()) for _ in range(4)] == [False] * 4
    c.good("x", 0.0)
    assert eject(c, "x")
    assert 0.8 <= c.out_until("x", 0.0) <= 1.2
    assert c.out_until("y", 0.0) is None
    assert "5 failures in a row: http_error" in c.reason("x")
    assert c.out_until("x", 1.3) is None


def test_probation_ejects_for_longer_at_the_first_failure_until_three_good_answers():
    c = cohort("x", "y")
    eject(c, "x")
    assert c.bad("x", "tls", 2.0, rng())
    assert 1.6 <= c.out_until("x", 2.0) - 2.0 <= 2.4
    for _ in range(3):
        c.good("x", 5.0)
    assert not c.bad("x", "tls", 5.0, rng())


def test_never_the_last_and_at_most_half():
    c = cohort("only")
    assert not eject(c, "only")
    c = cohort("a", "b", "c")
    assert eject(c, "a")
    assert not eject(c, "b")
    c = cohort("a", "b", "c", "d")
    assert eject(c, "a")
    assert eject(c, "b")
    assert not eject(c, "c")


def test_busy_rests_for_what_it_asked_but_never_the_last():
    c = cohort("x", "y")
    assert c.busy("x", 7.0, 0.0)
    assert c.out_until("x", 6.9) == 7.0
    assert c.out_until("x", 7.0) is None
    assert not c.busy("y", 7.0, 1.0)
    assert c.busy("y", 3600.0, 8.0)
    assert c.out_until("y", 8.0) == 38.0
    c = cohort("x", "y")
    c.busy("x", None, 0.0)
    assert c.out_until("x", 0.0) == 1.0


def test_an_endpoint_that_answers_less_often_is_ejected_without_five_in_a_row():
    c, now = cohort("x", "y"), 0.0
    for i in range(60):
        now += 0.2
        c.good("y", now)
        if i % 3:
            c.good("x", now)
        elif c.bad("x", "http_error", now, rng()):
            break
    assert 19 <= i < 40
    assert "less often" in c.reason("x")


def test_twenty_samples_are_needed_of_both():
    worse, best = SuccessRate(), SuccessRate()
    for _ in range(19):
        worse.add(False, 0.0)
    for _ in range(40):
        best.add(True, 0.0)
    assert not clearly_worse(worse, best, 0.0)
    worse.add(False, 0.0)
    assert clearly_worse(worse, best, 0.0)
    assert not clearly_worse(worse, best, 120.0), "old samples fade"


@pytest.mark.parametrize(("good", "bad"), [(28, 2), (24, 6), (22, 8), (40, 10), (70, 30), (18, 4)])
def test_the_normal_approximation_agrees_with_the_exact_posterior(good, bad):
    rate, best, r = SuccessRate(), SuccessRate(), random.Random(2)
    for _ in range(200):
        best.add(True, 0.0)
    for _ in range(good):
        rate.add(True, 0.0)
    for _ in range(bad):
        rate.add(False, 0.0)
    draws = [r.betavariate(good + 1, bad + 1) < best.mean - 0.1 for _ in range(20_000)]
    exact = sum(draws) / len(draws)
    if abs(exact - 0.95) > 0.02:
        assert clearly_worse(rate, best, 0.0) == (exact > 0.95)


def test_an_upstream_that_is_bad_everywhere_ejects_nobody_by_comparison():
    c, now, r = cohort("x", "y"), 0.0, rng()
    for i in range(200):
        now += 0.1
        for endpoint in ("x", "y"):
            if i % 2:
                assert not c.bad(endpoint, "http_error", now, r)
            else:
                c.good(endpoint, now)


def test_members_keep_their_state():
    c = cohort("x", "y")
    eject(c, "x")
    c.set_members(["x", "z"])
    assert c.out_until("x", 0.0) is not None
    assert c.out_until("y", 0.0) is None


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.floats(0, 2)), max_size=300),
)
def test_the_cap_holds_whatever_happens(size, events):
    names = [f"e{i}" for i in range(size)]
    c, now, r = cohort(*names), 0.0, rng()
    for pick, good, wait in events:
        now += wait
        name = names[pick % size]
        if good:
            c.good(name, now)
        else:
            c.bad(name, "http_error", now, r)
        out = [n for n in names if c.out_until(n, now) is not None]
        assert len(out) <= size // 2
