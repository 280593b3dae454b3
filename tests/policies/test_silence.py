"""How much silence is a verdict."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.model import Verdict
from policies.silence import Channel, Gate, slots_needed

PER_MINUTE, PER_DAY = 1 / 60, 1 / 86400


def shown(loss, spacing_s):
    return slots_needed(loss, spacing_s, PER_MINUTE), slots_needed(loss, spacing_s, PER_DAY)


@pytest.mark.parametrize(
    ("loss", "suspect", "down"), [(0.001, 2, 3), (0.01, 2, 4), (0.05, 3, 5), (0.15, 4, 8)]
)
def test_slots_needed_at_50_ms_are_those_of_the_design(loss, suspect, down):
    assert shown(loss, 0.05) == (suspect, down)


@given(
    loss=st.floats(0.001, 0.5),
    spacing=st.floats(0.02, 60),
    allowed=st.sampled_from([PER_MINUTE, PER_DAY]),
)
def test_slots_needed_is_the_smallest_that_keeps_the_promise(loss, spacing, allowed):
    k = slots_needed(loss, spacing, allowed)
    rate = lambda n: loss**n * (1 - loss) / spacing  # noqa: E731 - the formula as it is written
    assert k == 20 or rate(k) <= allowed * (1 + 1e-9)
    assert k == 1 or rate(k - 1) > allowed * (1 - 1e-9)


def test_bursts_ask_for_more_slots_but_accept_a_false_down_an_hour():
    independent = slots_needed(0.01, 0.05, 1 / 3600)
    assert slots_needed(0.01, 0.05, 1 / 3600, 0.5) > independent + 3


def test_channel_learns_loss_and_burstiness_from_runs_that_end():
    channel = Channel()
    at = 0.0
    for i in range(2000):
        at += 0.2
        channel.sent(at)
        if i % 50 in (0, 1):
            channel.silent(at, at + 0.06, "e", icmp=False)
        else:
            channel.answered(at)
            channel.heard(at + 0.06, at)
    assert channel.loss == pytest.approx(0.04, rel=0.2)
    assert channel.loss_after_loss > 0.3
    assert channel.pace_s == pytest.approx(0.2)


def test_gate_half_opens_and_needs_three_arrivals():
    gate = Gate()
    gate.worsen(Verdict.DOWN, 1.0)
    seen = []
    for _ in range(3):
        gate.better(Verdict.UP)
        seen.append(gate.verdict)
    assert seen == [Verdict.SUSPECT, Verdict.SUSPECT, Verdict.UP]


def test_gate_starts_again_after_a_stumble():
    gate = Gate()
    gate.worsen(Verdict.DOWN, 1.0)
    gate.better(Verdict.UP)
    gate.better(Verdict.UP)
    gate.stumble()
    gate.better(Verdict.UP)
    assert gate.verdict is Verdict.SUSPECT
