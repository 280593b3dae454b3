"""srtt, rttvar, windowed minimum, and which kind yields R."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.model import Kind
from policies.rtt import FORGET_S, FRESH_S, PathRtt, RttEstimator


def test_first_sample_as_in_rfc_9002():
    rtt = RttEstimator(0.1, 0.0)
    assert (rtt.srtt_s, rtt.rttvar_s, rtt.min_s) == (0.1, 0.05, 0.1)
    assert rtt.jitter_s is None


def test_further_samples_as_in_rfc_9002():
    rtt = RttEstimator(0.1, 0.0)
    rtt.observe(0.2, 1.0)
    assert rtt.rttvar_s == pytest.approx(0.75 * 0.05 + 0.25 * 0.1)
    assert rtt.srtt_s == pytest.approx(0.875 * 0.1 + 0.125 * 0.2)


def test_jitter_is_the_smoothed_difference_of_neighbours():
    rtt = RttEstimator(0.1, 0.0)
    rtt.observe(0.12, 1.0)
    assert rtt.jitter_s == pytest.approx(0.02)
    rtt.observe(0.12, 2.0)
    assert rtt.jitter_s == pytest.approx(0.02 * 15 / 16)


def test_minimum_forgets_after_ten_seconds():
    rtt = RttEstimator(0.05, 0.0)
    for second in range(1, 10):
        rtt.observe(0.1, second)
    assert rtt.min_s == 0.05
    rtt.observe(0.1, 10)
    assert rtt.min_s == 0.1


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0.001, 2)), min_size=1, max_size=80))
def test_minimum_is_that_of_the_last_ten_slots_of_a_second(steps):
    at, seen, rtt = 0.0, [], None
    for gap, value in steps:
        at += gap
        seen.append((int(at), value))
        if rtt is None:
            rtt = RttEstimator(value, at)
        else:
            rtt.observe(value, at)
    assert rtt.min_s == min(v for slot, v in seen if slot > int(at) - 10)
    assert len(rtt._minima) <= 11


def test_after_a_long_gap_an_estimator_starts_anew():
    rtt = RttEstimator(0.1, 0.0)
    rtt.observe(0.3, FORGET_S + 1)
    assert rtt.srtt_s == 0.3
    assert rtt.count == 2


def governing(now, **samples):
    path = PathRtt()
    for kind, (rtt_s, at) in samples.items():
        path.observe(Kind[kind], rtt_s, at)
    found = path.governing(now)
    return None if found is None else found[0]


@pytest.mark.parametrize(
    ("samples", "kind"),
    [
        ({}, None),
        ({"TCP": (0.06, 100)}, Kind.TCP),
        # a SYN answered nearby looks too short: the slowest transport kind is the truth
        ({"TCP": (0.001, 100), "TLS": (0.15, 100)}, Kind.TLS),
        ({"TCP": (0.001, 100), "PING": (0.15, 100), "KERNEL": (0.001, 100)}, Kind.PING),
        ({"QUIC": (0.1, 100), "TLS": (0.15, 100 - FRESH_S - 1)}, Kind.QUIC),
        # thinking never counts while anything else was measured, stale as it may be
        ({"TCP": (0.06, 1), "TTFB": (5.0, 100), "HTTP": (0.5, 100)}, Kind.TCP),
        ({"ICMP": (0.06, 1), "TTFB": (5.0, 100)}, Kind.ICMP),
        ({"ICMP": (0.3, 100), "TCP": (0.06, 100)}, Kind.TCP),
        ({"ICMP": (0.3, 100), "TCP": (0.06, 1)}, Kind.ICMP),
        ({"ICMP": (0.3, 1), "TCP": (0.06, 1)}, Kind.TCP),
        ({"TCP": (0.06, 2), "TLS": (0.15, 1)}, Kind.TCP),
        ({"TTFB": (5.0, 100), "HTTP": (0.5, 100)}, Kind.HTTP),
        ({"TTFB": (5.0, 100)}, Kind.TTFB),
    ],
)
def test_the_kind_that_governs(samples, kind):
    assert governing(100.0, **samples) is kind


def test_pings_outrank_a_handshake_that_was_slow():
    path = PathRtt()
    path.observe(Kind.TLS, 0.3, 100.0)
    path.observe(Kind.PING, 0.06, 100.0)
    path.observe(Kind.PING, 0.06, 101.0)
    assert path.governing(101.0)[0] is Kind.TLS  # two of them may be luck
    path.observe(Kind.PING, 0.06, 102.0)
    assert path.governing(102.0)[0] is Kind.PING
    path.observe(Kind.TCP, 0.1, 102.0 + FRESH_S)
    path.observe(Kind.TLS, 0.2, 102.0 + FRESH_S)
    assert path.governing(102.0 + FRESH_S)[0] is Kind.PING
    assert path.governing(103.0 + FRESH_S)[0] is Kind.TLS  # stale: the greatest of the others
