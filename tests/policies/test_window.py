"""Samples in, estimates out."""

import sys
import time

import pytest

from policies.loss import loss_interval
from policies.model import Estimate, Kind, Outcome, Sample
from policies.window import EndpointLatency, MaxFilter, Window, is_exchange


def fill(window, kind, rtts, *, start=100.0, gap=1.0, **fields):
    now = start
    for rtt_s in rtts:
        outcome = Outcome.TIMEOUT if rtt_s is None else Outcome.OK
        window.observe(Sample("p", kind, now, rtt_s, outcome, **fields), now + (rtt_s or 1.0))
        now += gap
    return now


def test_an_empty_window_knows_nothing():
    assert Window().estimate(1.0) == Estimate()


def test_a_single_sample_counts():
    window = Window()
    now = fill(window, Kind.TCP, [0.06])
    estimate = window.estimate(now)
    assert (estimate.rtt_s, estimate.rttvar_s, estimate.rtt_min_s) == (0.06, 0.03, 0.06)
    assert estimate.samples == 1
    assert estimate.loss == pytest.approx(loss_interval(0, 1)[1], rel=0.02)


def test_quantiles_and_jitter_are_those_of_the_kind_that_governs():
    window = Window()
    fill(window, Kind.TCP, [0.001] * 50)
    now = fill(window, Kind.TLS, [i / 1000 for i in range(101, 151)])
    estimate = window.estimate(now)
    assert estimate.p50_s == pytest.approx(0.125, rel=0.02)
    assert estimate.p95_s == pytest.approx(0.148, rel=0.02)
    assert estimate.jitter_s == pytest.approx(0.001, rel=0.01)


def test_time_to_first_byte_does_not_touch_rtt_or_loss():
    window = Window()
    now = fill(window, Kind.TCP, [0.06] * 10)
    before = window.estimate(now)
    for _ in range(1000):
        window.observe(Sample("p", Kind.TTFB, now - 3, 3.0), now)
    after = window.estimate(now)
    assert (after.rtt_s, after.loss) == (before.rtt_s, pytest.approx(before.loss, rel=1e-6))


def test_where_only_exchanges_were_seen_the_shortest_stands_for_the_rtt():
    window = Window()
    now = fill(window, Kind.TTFB, [3.0, 0.4, 2.0])
    estimate = window.estimate(now)
    assert estimate.rtt_s == 0.4
    assert estimate.loss is None


def test_packets_reported_by_the_kernel_are_counted():
    window = Window()
    now = fill(window, Kind.KERNEL, [0.06] * 60, packets_sent=1000, packets_lost=10)
    loss = window.estimate(now).loss
    assert 0.01 < loss < 0.0115


def test_silence_is_one_packet_lost():
    window = Window()
    now = fill(window, Kind.TCP, [0.06, None] * 10, gap=0.1)
    assert window.estimate(now).loss == pytest.approx(loss_interval(10, 20)[1], rel=0.02)


def test_a_retransmitted_syn_is_loss_and_no_round_trip():
    window = Window()
    now = fill(window, Kind.TCP, [0.06] * 10)
    before = window.estimate(now)
    window.observe(Sample("p", Kind.TCP, now, 1.06), now + 1.06)
    after = window.estimate(now + 1.06)
    assert after.rtt_s == before.rtt_s
    assert after.loss > before.loss


def test_a_first_slow_connect_is_taken_as_it_is():
    window = Window()
    now = fill(window, Kind.TCP, [1.2])
    assert window.estimate(now).rtt_s == 1.2


def test_goodput_is_the_recent_maximum_and_else_the_last_one_known():
    window = Window()
    for i, bps in enumerate((5e6, 9e6, 2e6)):
        window.observe(Sample("p", Kind.KERNEL, 0, 0.06, goodput_bps=bps), 100.0 + i)
    assert window.estimate(103.0).goodput_bps == 9e6
    assert window.estimate(500.0).goodput_bps == 2e6


def test_max_filter_keeps_a_bounded_number_of_slots():
    filtered = MaxFilter(slots=3)
    for i in range(1000):
        filtered.observe(1000.0 - i, i * 10.0)
    assert filtered.value(9990.0) == 1000.0 - 997
    assert len(filtered._maxima) <= 4


def test_estimates_are_kept_until_a_sample_comes_or_time_passes():
    window = Window()
    now = fill(window, Kind.TCP, [0.06])
    first = window.estimate(now)
    assert window.estimate(now + 0.1) is first
    window.observe(Sample("p", Kind.TCP, now, 0.08), now + 0.2)
    assert window.estimate(now + 0.2).samples == 2
    before = window.estimate(now + 0.2).loss
    assert window.estimate(now + 30).loss > before


def test_reply_times_follow_the_kind():
    window = Window()
    assert window.reply_times(Kind.TCP, 0.0) == (1.0, 0.0)
    now = fill(window, Kind.TCP, [0.06] * 200)
    rtt_s, slack_s = window.reply_times(Kind.TCP, now)
    assert rtt_s == pytest.approx(0.06)
    assert slack_s == 0.025
    assert window.reply_times(Kind.QUIC, now) == (1.0, 0.0)
    now = fill(window, Kind.QUIC, [0.06, 0.1] * 20)
    rtt_s, slack_s = window.reply_times(Kind.QUIC, now)
    assert rtt_s == pytest.approx(2 * window.kind(Kind.QUIC).srtt_s)
    assert slack_s == pytest.approx(8 * window.kind(Kind.QUIC).rttvar_s)


def test_endpoint_latency_says_nothing_of_the_tail_before_twenty_exchanges():
    latency = EndpointLatency()
    assert latency.p50_s(0.0) is None
    for i in range(19):
        latency.observe(1.0 + i / 10, 10.0 + i)
    assert latency.p50_s(30.0) == pytest.approx(1.9, rel=0.01)
    assert latency.p95_s(30.0) is None
    latency.observe(9.0, 31.0)
    assert latency.p95_s(32.0) == pytest.approx(2.8, rel=0.011)
    assert latency.count(32.0) == 20


def test_endpoint_latency_forgets_after_five_minutes():
    latency = EndpointLatency()
    latency.observe(1.0, 10.0)
    assert latency.p50_s(290.0) is not None
    assert latency.p50_s(320.0) is None


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (Sample("p", Kind.TTFB, 0, 1.0), True),
        (Sample("p", Kind.TTFB, 0, 1.0, Outcome.HTTP_ERROR), True),
        (Sample("p", Kind.TTFB, 0, 0.01, Outcome.BUSY), False),
        (Sample("p", Kind.TTFB, 0, None, Outcome.RESET), False),
        (Sample("p", Kind.HTTP, 0, 1.0), False),
    ],
)
def test_which_samples_are_exchanges(sample, expected):
    assert is_exchange(sample) is expected


def test_observing_an_exchange_is_cheap_and_takes_no_memory():
    window, latency = Window(), EndpointLatency()
    sample = Sample("p", Kind.TTFB, 100.0, 0.5)
    plain = time.perf_counter()
    for i in range(20_000):
        sample._replace(sent_at=i)
    plain = time.perf_counter() - plain
    spent = time.perf_counter()
    for _ in range(20_000):
        window.observe(sample, 100.0)
        latency.observe(0.5, 100.0)
    spent = time.perf_counter() - spent
    assert spent < 8 * plain  # compared with making as many tuples, on the same machine
    assert sys.getsizeof(latency._sketch._current) < 1000


def test_an_outage_leaves_no_loss_and_no_round_trips_behind():
    window = Window()
    now = fill(window, Kind.PING, [0.06] * 60)
    before = window.estimate(now)
    window.mark()
    now = fill(window, Kind.PING, [None] * 30, start=now)
    now = fill(window, Kind.PING, [0.9] * 3, start=now)
    assert window.estimate(now).loss > 3 * before.loss
    window.rewind()
    now = fill(window, Kind.PING, [None] * 30, start=now)
    window.rewind()
    after = window.estimate(now)
    assert after.rtt_s == before.rtt_s
    assert after.loss < 1.5 * before.loss


def test_a_path_that_was_never_known_starts_anew_after_its_first_outage():
    window = Window()
    now = fill(window, Kind.PING, [None] * 30)
    window.rewind()
    assert window.estimate(now).loss is None
