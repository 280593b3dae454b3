"""The expected cost of a path."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.loss import loss_interval
from policies.model import RequestClass
from policies.schema import Weights
from policies.score import (
    HAZARD_HALF_LIFE_S,
    PRIOR_LOSS,
    PRIOR_SAMPLES,
    Hazard,
    PathInputs,
    expected_rtt_s,
    score,
    transfer,
)

HONEST = Weights()
NO_BODY = RequestClass(0)
SHORT = PathInputs(0.060, 0.002, 0.060, loss=0.05, samples=100)
LONG = PathInputs(0.150, 0.002, 0.150, loss=0.001, samples=100)


def parts(inputs, request=NO_BODY, weights=HONEST):
    return dict(score(inputs, request, weights).parts)


# -- the bar -------------------------------------------------------------------------------------


@pytest.mark.parametrize("handshake", [0, 1, 2])
@pytest.mark.parametrize("length", [0, 1024, 10 << 10])
def test_a_small_request_prefers_60_ms_with_5_percent_loss(length, handshake):
    request = RequestClass.of(length)
    short, long = (replace(p, handshake_round_trips=handshake) for p in (SHORT, LONG))
    assert score(short, request, HONEST).cost_ms < score(long, request, HONEST).cost_ms


@pytest.mark.parametrize("length", [1 << 20, 10 << 20, 100 << 20])
@pytest.mark.parametrize("handshake", [0, 1, 2])
def test_a_large_upload_prefers_150_ms_with_a_thousandth_of_loss(length, handshake):
    request = RequestClass.of(length)
    short, long = (replace(p, handshake_round_trips=handshake) for p in (SHORT, LONG))
    assert score(short, request, HONEST).cost_ms > score(long, request, HONEST).cost_ms


# -- the formula, part by part -------------------------------------------------------------------


def test_a_warm_path_without_body_costs_a_round_trip_and_its_loss():
    found = parts(SHORT)
    assert found["rtt"] == pytest.approx(60)
    assert found["loss"] == pytest.approx((1 - 0.95**2) * (60 + 8))
    assert found["load"] == found["distance"] == found["hazard"] == found["cost"] == 0


def test_handshake_round_trips_are_added():
    for handshake in (0, 1, 2):
        cold = replace(SHORT, handshake_round_trips=handshake)
        assert parts(cold)["rtt"] == pytest.approx(60 * (1 + handshake))


@pytest.mark.parametrize(
    ("packets", "flights"), [(1, 1), (10, 1), (11, 2), (30, 2), (31, 3), (70, 3), (71, 4)]
)
def test_slow_start_doubles_from_ten_packets(packets, flights):
    sent = transfer(packets * 1460, 0.1, 0.0, goodput_bps=1e9)
    assert (sent.flights, sent.bulk_bits) == (flights, 0)


def test_slow_start_ends_when_the_window_fills_the_path():
    # 11.68 Mbit/s over 100 ms are 100 packets: 10 + 20 + 40 + 80 leave in slow start
    sent = transfer(1000 * 1460, 0.1, 0.0, goodput_bps=100 * 1460 * 8 / 0.1)
    assert sent.flights == 4
    assert sent.bulk_bits == (1000 - 150) * 1460 * 8
    assert sent.bulk_s == pytest.approx(0.85)


def test_where_goodput_was_not_measured_loss_and_capacity_bound_it():
    assert transfer(1, 0.1, 0.01).goodput_bps == pytest.approx(1.22 * 1460 * 8 / 0.1 / 0.1)
    assert transfer(1, 0.1, 0.01, capacity_bps=1e5).goodput_bps == 1e5
    assert transfer(1, 0.1, 0.01, goodput_bps=5e6).goodput_bps == 5e6


def test_the_loss_of_a_body_follows_the_formula():
    request = RequestClass.of(10 << 10)  # 16 KiB class: 12 packets
    measured = replace(SHORT, goodput_bps=50e6)
    expected = (1 - 0.95**2) * 68 + (1 - 0.95**11) * 9 / 8 * 60
    assert parts(measured, request)["loss"] == pytest.approx(expected)
    assert parts(measured, request)["rtt"] == pytest.approx(120)


def test_load_is_queueing_above_the_minimum_and_beyond_the_limit():
    queued = replace(SHORT, rtt_min_s=0.040)
    assert parts(queued)["load"] == pytest.approx(20)
    busy = replace(SHORT, in_flight=14, limit=10, service_s=0.2)
    assert parts(busy)["load"] == pytest.approx(0.5 * 200)
    assert parts(replace(busy, in_flight=9))["load"] == 0
    assert parts(replace(busy, limit=None))["load"] == 0


def test_distance_is_a_part_only_above_weight_one():
    far = replace(SHORT, distance_km=9000)
    assert parts(far)["distance"] == 0
    assert parts(far, weights=Weights(distance=0))["distance"] == 0
    assert parts(far, weights=Weights(distance=3))["distance"] == pytest.approx(180)


def test_hazard_is_the_chance_of_an_outage_times_what_it_costs():
    shaky = replace(SHORT, hazard_per_s=0.001, detect_s=0.5, alt_rtt_s=0.15, service_s=2.0)
    duration_s = (60 + (1 - 0.95**2) * 68) / 1000 + 2.0
    assert parts(shaky)["hazard"] == pytest.approx(0.001 * duration_s * 650)
    stream = parts(shaky, RequestClass(0, streaming=True))["hazard"]
    assert stream == pytest.approx(0.001 * (duration_s + 30) * 650)


def test_hazard_of_a_body_includes_sending_it_again():
    shaky = replace(SHORT, hazard_per_s=0.001, goodput_bps=1e6, alt_rtt_s=0.15)
    small, large = (parts(shaky, RequestClass.of(n))["hazard"] for n in (1, 10 << 20))
    assert large > 1000 * small


def test_cost_is_ms_per_unit_of_money():
    dear = replace(SHORT, price_per_gb=0.8, down_bytes=984_576)
    found = parts(dear, RequestClass.of(10 << 10), Weights(cost=1000))
    assert found["cost"] == pytest.approx(1000 * 0.8 * 1_000_960 / 1e9)


@pytest.mark.parametrize("name", ["rtt", "loss", "load", "hazard"])
def test_weight_two_minds_a_part_twice_as_much(name):
    inputs = replace(SHORT, rtt_min_s=0.05, hazard_per_s=0.01)
    once, twice = parts(inputs), parts(inputs, weights=Weights(**{name: 2.0}))
    assert twice[name] == pytest.approx(2 * once[name])
    assert {k: v for k, v in twice.items() if k != name} == {
        k: v for k, v in once.items() if k != name
    }


# -- priors --------------------------------------------------------------------------------------


def test_distance_is_the_prior_of_a_path_without_samples():
    assert expected_rtt_s(PathInputs(distance_km=9000)) == pytest.approx(0.180)
    assert expected_rtt_s(PathInputs()) == pytest.approx(0.200)


def test_the_prior_is_worth_five_samples():
    def blended(n):
        return expected_rtt_s(PathInputs(0.1, samples=n, distance_km=10_000))

    assert blended(5) == pytest.approx(0.15)
    assert blended(45) == pytest.approx(0.11)
    assert expected_rtt_s(PathInputs(0.1, samples=1)) == 0.1


def test_the_prior_of_loss_is_that_of_five_packets():
    assert loss_interval(0, PRIOR_SAMPLES)[1] == pytest.approx(PRIOR_LOSS, abs=0.001)


# -- hazard --------------------------------------------------------------------------------------


def test_outages_are_forgotten_with_a_half_life_of_an_hour():
    hazard, quiet = Hazard(0.0), Hazard(0.0)
    hazard.outage(0.0)
    ahead = hazard.rate(0.0) - quiet.rate(0.0)
    assert ahead == pytest.approx(1 / 3600)
    for at in (HAZARD_HALF_LIFE_S, 2 * HAZARD_HALF_LIFE_S):
        assert hazard.rate(at) > quiet.rate(at)
    assert hazard.rate(86400.0) == pytest.approx(quiet.rate(86400.0), abs=1e-9)


def test_the_rate_of_regular_outages_is_found():
    hazard = Hazard(0.0)
    for at in range(0, 20 * 3600, 600):
        hazard.outage(at)
    assert hazard.rate(20 * 3600) == pytest.approx(1 / 600, rel=0.1)


# -- what must hold for anything -----------------------------------------------------------------

some_inputs = st.builds(
    PathInputs,
    rtt_s=st.none() | st.floats(1e-6, 10),
    rttvar_s=st.none() | st.floats(0, 5),
    rtt_min_s=st.none() | st.floats(1e-6, 10),
    loss=st.none() | st.floats(0, 1),
    goodput_bps=st.none() | st.floats(0, 1e11),
    samples=st.integers(0, 1000),
    distance_km=st.none() | st.floats(0, 20_037),
    handshake_round_trips=st.integers(0, 4),
    service_s=st.none() | st.floats(0, 600),
    in_flight=st.integers(0, 10_000),
    limit=st.none() | st.floats(0, 10_000),
    capacity_bps=st.none() | st.floats(1e3, 1e11),
    hazard_per_s=st.floats(0, 1),
    price_per_gb=st.floats(0, 100),
)
some_requests = st.builds(
    RequestClass.of, st.none() | st.integers(0, 1 << 31), streaming=st.booleans()
)


@given(some_inputs, some_requests)
def test_every_part_is_finite_and_not_negative_and_they_sum_up(inputs, request):
    found = score(inputs, request, Weights(cost=1))
    assert all(0 <= part.ms < float("inf") for part in found.parts)
    assert found.cost_ms == sum(part.ms for part in found.parts)
    assert [p.name for p in found.parts] == ["rtt", "loss", "load", "distance", "hazard", "cost"]


@given(some_requests, st.floats(0.001, 1), st.floats(0, 0.5), st.floats(0, 0.5))
def test_more_loss_never_costs_less_but_for_the_last_flight(request, rtt_s, p, q):
    # slow start counts whole flights, the bulk behind it does not
    less, more = (PathInputs(rtt_s, 0.01, rtt_s, loss=x, samples=9) for x in sorted((p, q)))
    flight_ms = rtt_s * 1000
    assert score(less, request, HONEST).cost_ms <= score(more, request, HONEST).cost_ms + flight_ms
