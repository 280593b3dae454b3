"""The transition table of one path, row by row, and flap damping."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.breaker import Backoff, Damping, Gate, is_evidence, local_failure
from policies.model import Breaker, Kind, Outcome, Verdict


def rng():
    return random.Random(1)


def opened(at=0.0):
    gate = Gate()
    for _ in range(3):
        gate.bad(Outcome.RESET, at, rng())
    assert gate.state is Breaker.OPEN
    return gate


def test_which_outcomes_are_the_paths_own():
    assert [o for o in Outcome if local_failure(o)] == [
        Outcome.TIMEOUT,
        Outcome.UNREACHABLE,
        Outcome.REFUSED,
        Outcome.RESET,
        Outcome.DNS,
        Outcome.NO_NAME,
        Outcome.TLS,
        Outcome.PROTOCOL,
    ]


def test_icmp_and_tcp_info_are_no_evidence():
    assert not is_evidence(Kind.ICMP)
    assert not is_evidence(Kind.KERNEL)
    assert is_evidence(Kind.TTFB)


def test_third_bad_in_a_row_opens():
    gate, r = Gate(), rng()
    assert not gate.bad(Outcome.RESET, 0.0, r)
    assert not gate.bad(Outcome.RESET, 0.0, r)
    gate.good(0.0)
    assert not gate.bad(Outcome.RESET, 0.0, r)
    assert not gate.bad(Outcome.RESET, 0.0, r)
    assert gate.bad(Outcome.REFUSED, 0.0, r)
    assert gate.state is Breaker.OPEN
    assert 0.8 <= gate.open_until <= 1.2
    assert "refused" in gate.reason


def test_what_fails_together_fails_once():
    gate, r = Gate(), rng()
    for number in range(5):
        assert not gate.bad(Outcome.TIMEOUT, 1.0 + 0.2 * number, r, sent_at=0.1 * number)
    assert not gate.bad(Outcome.TIMEOUT, 3.0, r, sent_at=2.0)
    assert gate.bad(Outcome.TIMEOUT, 4.0, r, sent_at=3.5)


def test_an_outlier_opens_once():
    gate = Gate()
    assert gate.outlier("worse", 0.0, rng())
    assert not gate.outlier("worse", 0.0, rng())
    assert gate.reason == "worse"


def test_samples_during_the_pause_are_ignored():
    gate = opened()
    until = gate.open_until
    assert not gate.good(until - 0.01)
    assert not gate.bad(Outcome.RESET, until - 0.01, rng())
    assert gate.state is Breaker.OPEN
    assert gate.open_until == until


def test_one_good_after_the_pause_half_opens_and_three_close():
    gate = opened()
    assert gate.good(2.0)
    assert gate.state is Breaker.HALF_OPEN
    assert not gate.good(2.1)
    assert gate.good(2.2)
    assert gate.state is Breaker.CLOSED
    assert gate.reason == ""


def test_bad_after_the_pause_opens_for_longer():
    gate = opened()
    assert not gate.bad(Outcome.RESET, 2.0, rng())
    assert 1.6 <= gate.open_until - 2.0 <= 2.4


def test_bad_while_half_open_opens_at_once():
    gate = opened()
    gate.good(2.0)
    assert gate.bad(Outcome.RESET, 2.1, rng())
    assert gate.state is Breaker.OPEN
    assert 1.6 <= gate.open_until - 2.1 <= 2.4
    gate.good(9.0)
    gate.good(9.0)
    assert gate.state is Breaker.HALF_OPEN, "good ones before the relapse do not count"


def test_a_gate_nobody_tests_half_opens_by_itself():
    gate = opened()
    assert not gate.tick(29.0)
    assert gate.deadline() == gate.open_until + 30
    assert gate.tick(gate.deadline())
    assert gate.state is Breaker.HALF_OPEN
    assert gate.deadline() is None


def test_pauses_double_to_thirty_seconds_and_are_forgotten():
    backoff, now, pauses = Backoff(), 0.0, []
    for _ in range(7):
        until = backoff.next(now, rng())
        pauses.append(until - now)
        now = until
    factor = rng().uniform(0.8, 1.2)
    assert pauses == pytest.approx([factor * p for p in (1, 2, 4, 8, 16, 30, 30)])
    assert backoff.next(now + 95, rng()) - (now + 95) == pytest.approx(factor * 8)
    assert backoff.next(now + 1000, rng()) - (now + 1000) == pytest.approx(factor)


@given(st.lists(st.tuples(st.sampled_from(["good", "bad", "tick"]), st.floats(0, 20))))
def test_a_gate_always_finds_its_way_back(events):
    gate, now, r = Gate(), 0.0, rng()
    for event, wait in events:
        now += wait
        before = gate.state
        if event == "good":
            changed = gate.good(now)
        elif event == "bad":
            changed = gate.bad(Outcome.TIMEOUT, now, r)
        else:
            changed = gate.tick(now)
        assert changed == (gate.state is not before)
        assert (gate.open_until is not None) == (gate.state is Breaker.OPEN)
        assert gate.open_until is None or gate.open_until <= now + 36.0
    for _ in range(3):
        now += 36.0
        gate.good(now)
    assert gate.state is Breaker.CLOSED


def fall(damping, now, new=Verdict.DOWN, old=Verdict.UP):
    damping.fell(old, new, now)


def test_doubt_counts_less_and_a_fall_by_way_of_doubt_counts_once():
    damping = Damping()
    fall(damping, 0.0, Verdict.SUSPECT)
    assert damping.penalty(0.0) == 200
    fall(damping, 0.0, Verdict.DOWN, Verdict.SUSPECT)
    assert damping.penalty(0.0) == 1000


def test_two_doubts_hold_nothing_and_one_after_the_other_ever_more():
    damping, holds = Damping(), []
    for now in range(8):
        fall(damping, now, Verdict.SUSPECT)
        doomed = damping.holds(now)
        damping.came_back(now + 0.1)
        until = damping.held_until(now + 0.1)
        assert doomed == (until is not None)
        holds.append(0.0 if until is None else until - now - 0.1)
    assert holds[:2] == [0.0, 0.0]
    assert 0 < holds[2] < 1 < holds[4] < 5 < holds[7] < 30


def test_a_single_outage_holds_the_return_for_longer_than_a_fast_flap():
    damping = Damping()
    assert damping.held_until(0.0) is None
    assert not damping.holds(0.0)
    fall(damping, 0.0)
    assert damping.held_until(0.5) is None
    assert damping.holds(0.5)
    damping.came_back(600.0)
    until = damping.held_until(600.0)
    assert until == 600.0 + 3.5
    assert damping.held_until(until - 0.01) == until
    assert damping.held_until(until) is None


def test_a_relapse_before_it_was_trusted_is_the_same_outage():
    damping = Damping()
    fall(damping, 0.0)
    damping.came_back(5.0)
    fall(damping, 5.1, Verdict.DOWN, Verdict.SUSPECT)
    assert damping.penalty(5.1) == 1000
    assert damping.held_until(5.2) is None
    damping.came_back(6.0)
    assert damping.held_until(6.0) == 9.5


def test_flapping_every_two_seconds_suppresses_until_it_has_been_quiet():
    damping, now = Damping(), 0.0
    for _ in range(4):
        fall(damping, now)
        damping.came_back(now + 1)
        now += 2
    assert damping.penalty(now) > 3000
    until = damping.held_until(now)
    assert damping.suppressed
    assert damping.penalty(until) == pytest.approx(750)
    assert damping.held_until(until + 0.001) is None
    assert not damping.suppressed


def test_slow_flaps_do_not_suppress():
    damping = Damping()
    for i in range(10):
        fall(damping, i * 60.0)
        damping.came_back(i * 60.0 + 1)
        damping.held_until(i * 60.0 + 2)
        assert not damping.suppressed


def test_suppression_is_bounded():
    damping = Damping()
    for i in range(1000):
        fall(damping, i * 0.1)
    assert damping.held_until(100.0) <= 99.9 + 120.1
