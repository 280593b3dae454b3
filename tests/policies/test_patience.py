"""How long servers keep idle connections: what is believed of what they say and do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.patience import FORGIVEN, LEAST_S, LOST_KEPT_S, SHARE, UNPROVEN_S, Patience

times = st.floats(0.0, 1000.0)
events = st.tuples(st.sampled_from(("closed", "lost", "outlived", "announced")), times)


def test_nothing_is_known_at_first():
    patience = Patience()
    assert patience.known_s(0.0) is None
    assert patience.trusted_s(0.15, 0.0) == pytest.approx(UNPROVEN_S - 0.15)


def test_what_the_server_says_counts():
    patience = Patience()
    patience.announced(5.0)
    assert patience.trusted_s(0.15, 0.0) == pytest.approx(SHARE * 5 - 0.15)


def test_the_soonest_close_counts():
    patience = Patience()
    for idle_s in (75.0, 60.0, 61.0):
        patience.closed(idle_s)
    assert patience.known_s(0.0) == 60.0


def test_the_server_may_close_sooner_than_it_says():
    patience = Patience()
    patience.announced(60.0)
    patience.closed(5.0)
    assert patience.known_s(0.0) == 5.0


def test_a_close_right_after_a_response_was_not_for_being_idle():
    patience = Patience()
    patience.closed(LEAST_S / 2)
    assert patience.known_s(0.0) is None


def test_a_restart_is_forgotten_when_a_connection_outlives_it():
    patience = Patience()
    patience.closed(2.0)
    patience.outlived(2.0 * FORGIVEN - 0.1)
    assert patience.known_s(0.0) == 2.0
    patience.outlived(2.0 * FORGIVEN + 0.1)
    assert patience.known_s(0.0) is None


def test_a_lost_request_counts_for_a_while_whatever_seems_to_be_open():
    patience = Patience()
    patience.lost(3.0, 0.0)
    patience.lost(5.0, 1.0)
    patience.outlived(60.0)
    assert patience.known_s(10.0) == 3.0
    assert patience.known_s(1.0 + LOST_KEPT_S) is None


def test_trust_grows_with_what_was_outlived():
    patience = Patience()
    patience.outlived(20.0)
    assert patience.trusted_s(0.0, 0.0) == pytest.approx(SHARE * 20)


@given(
    st.lists(st.tuples(st.sampled_from(("closed", "lost", "outlived", "announced")), times)), times
)
def test_no_connection_is_trusted_beyond_what_is_known(events, rtt_s):
    patience = Patience()
    longest = 0.0
    for what, seconds in events:
        if what == "lost":
            patience.lost(seconds, 0.0)
        else:
            getattr(patience, what)(seconds)
        longest = max(longest, seconds)
    trusted_s = patience.trusted_s(rtt_s, 0.0)
    assert 0 <= trusted_s <= max(UNPROVEN_S, SHARE * longest)
    if patience.known_s(0.0) is not None:
        assert trusted_s <= SHARE * patience.known_s(0.0)
