"""When a flow goes over two lines at once."""

from types import SimpleNamespace

import pytest

from edged.relay.client_copies import SMALL_BYTES, YOUNG_S, Copying
from policies.model import RequestClass, Verdict
from policies.schema import Redundancy

SSE = RequestClass.of(100_000, streaming=True)
SMALL = RequestClass.of(SMALL_BYTES)
LARGE = RequestClass.of(SMALL_BYTES + 1)


def leg(*, verdict=Verdict.UP, silent=False, since=0.0, loss=0.0, capacity_bps=None):
    line = SimpleNamespace(capacity_bps=capacity_bps)
    return SimpleNamespace(
        verdict=verdict, silent=silent, since=since, loss=loss, path=SimpleNamespace(line=line)
    )


def copying(when="auto", cls=SSE, **more):
    return Copying(Redundancy(small_streams=when, **more), cls, 100.0)


def test_streams_and_small_requests_only():
    assert copying("always", SSE).wanted(leg(), 0, leg(), 101.0)
    assert copying("always", SMALL).wanted(leg(), 0, leg(), 101.0)
    assert not copying("always", LARGE).wanted(leg(), 0, leg(), 101.0)
    assert not copying("always", None).wanted(leg(), 0, leg(), 101.0)


@pytest.mark.parametrize(
    "best",
    [
        leg(verdict=Verdict.SUSPECT),
        leg(silent=True),
        leg(since=100.0 - YOUNG_S / 2),
        leg(loss=0.011),
    ],
)
def test_auto_minds_a_best_line_that_may_fail(best):
    assert copying().wanted(best, 0, leg(), 100.0)
    assert not copying("never").wanted(best, 0, leg(), 100.0)
    assert not copying().wanted(leg(loss=0.009), 0, leg(), 100.0)


def test_what_comes_fast_is_not_small():
    one = copying("always")
    assert not one.passed(16_000, 100.0)
    assert not one.passed(16_000 + 8_000 * 10, 110.0)
    assert one.passed(16_000 + 8_000 * 10 + 1, 110.0)
    assert not one.passed(200_000, 110.0)
    assert not one.wanted(leg(), 0, leg(), 110.0)


def test_a_long_response_is_not_small():
    one = copying("always", SMALL)
    assert not one.answers(16_000)
    assert not one.answers(None)
    assert one.small
    assert one.answers(50_000_000)
    assert not one.small
    assert not one.answers(50_000_000)


def test_copies_take_their_share_of_a_line_and_no_more():
    line = leg(capacity_bps=1e6)  # 64 kbit/s each, 250 kbit/s in all
    assert copying("always").wanted(leg(), 2, line, 100.0)
    assert not copying("always").wanted(leg(), 3, line, 100.0)
