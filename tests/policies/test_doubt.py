"""How much evidence a doubt may buy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.doubt import (
    DOUBT_BYTES_S,
    FIRST_WAIT_S,
    HEARD_WAIT_S,
    LONGEST_WAIT_S,
    PURSE_BYTES,
    SWIFT,
    Inquiry,
)


def test_one_packet_is_waited_for_and_then_they_follow_swiftly():
    inquiry = Inquiry()
    inquiry.doubt(10.0)
    assert inquiry.due == 10.0
    assert inquiry.buy(112, 10.0)
    assert inquiry.due == 10.0 + FIRST_WAIT_S
    inquiry.doubt(10.1)
    assert inquiry.due == 10.0 + FIRST_WAIT_S, "the same doubt"
    waits = []
    for _ in range(SWIFT + 10):
        now = inquiry.due
        assert inquiry.buy(112, now)
        waits.append(inquiry.due - now)
    assert waits[0] < FIRST_WAIT_S
    assert waits == [pytest.approx(wait_s) for wait_s in sorted(waits)]
    assert waits[-1] == pytest.approx(LONGEST_WAIT_S)


def test_where_only_a_verdict_is_left_there_is_no_haste():
    inquiry = Inquiry()
    inquiry.doubt(10.0)
    inquiry.buy(112, 10.0, silent=False)
    assert inquiry.due == 10.0 + HEARD_WAIT_S


def test_an_answer_ends_it_and_the_next_doubt_begins_anew():
    inquiry = Inquiry()
    inquiry.doubt(10.0)
    inquiry.buy(112, 10.0)
    inquiry.settle()
    assert not inquiry.open
    inquiry.hasten(11.0)
    assert not inquiry.open, "nothing is in doubt"
    inquiry.doubt(12.0)
    assert (inquiry.due, inquiry.asked) == (12.0, 0)


def test_what_cannot_be_paid_is_waited_for():
    inquiry = Inquiry()
    inquiry.doubt(0.0)
    assert inquiry.buy(8192, 0.0)
    assert not inquiry.buy(8192, 1.0)
    assert inquiry.due == pytest.approx(1.0 + (2 * 8192 - PURSE_BYTES) / DOUBT_BYTES_S - 1.0)
    assert inquiry.buy(8192, inquiry.due + 0.01)


@given(
    costs=st.lists(st.sampled_from([112, 354, 420, 8192]), min_size=1, max_size=200),
    gap_s=st.floats(0.0, 100.0),
)
def test_no_doubt_spends_more_than_the_purse_and_what_time_adds(costs, gap_s):
    inquiry, now, spent = Inquiry(), 0.0, 0
    for cost in costs:
        inquiry.doubt(now)
        now = max(now, inquiry.due)
        spent += cost * inquiry.buy(cost, now)
        inquiry.settle()
        now += gap_s
    assert spent <= PURSE_BYTES + DOUBT_BYTES_S * now + 1e-6
