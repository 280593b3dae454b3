"""Quantiles with 1% relative error over a sliding window."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.sketch import SlidingSketch


@given(st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=300), st.floats(0, 1))
def test_every_quantile_is_within_one_percent(values, q):
    sketch = SlidingSketch()
    for value in values:
        sketch.observe(value, 5.0)
    exact = sorted(values)[int(q * (len(values) - 1))]
    (found,) = sketch.quantiles(5.0, q)
    assert found == pytest.approx(exact, rel=0.0101)


def test_several_quantiles_in_one_pass():
    sketch = SlidingSketch()
    for i in range(1, 1001):
        sketch.observe(i / 1000, 1.0)
    assert sketch.quantiles(1.0, 0.5, 0.95) == pytest.approx((0.5, 0.95), rel=0.011)


def test_slots_are_forgotten_whole():
    sketch = SlidingSketch(slots=6)
    sketch.observe(1.0, 5.0)
    for at in (15.0, 25.0, 35.0, 45.0, 55.0):
        sketch.observe(0.1, at)
    assert sketch.count(55.0) == 6
    assert sketch.quantiles(55.0, 1.0)[0] == pytest.approx(1.0, rel=0.01)
    assert sketch.count(61.0) == 5
    assert sketch.quantiles(61.0, 1.0)[0] == pytest.approx(0.1, rel=0.01)
    assert sketch.count(1000.0) == 0
    assert sketch.quantiles(1000.0, 0.5, 0.9) == (None, None)


def test_memory_is_bounded_whatever_comes():
    sketch = SlidingSketch(slots=2)
    rng = random.Random(1)
    for _ in range(50_000):
        sketch.observe(10 ** rng.uniform(-12, 12), 1.0)
    assert len(sketch._current) <= 1300
    for slot in range(100):
        sketch.observe(1.0, slot * 10.0 + 20)
    assert len(sketch._older) <= 2
