"""Servers that do not follow migrated clients, and for how long they are left alone."""

from policies.model import Carrier, Endpoint, Line, Path
from policies.refusals import (
    FAILURES_AFTER_SUCCESS,
    LINES_TO_CONVICT_AN_ORIGIN,
    REFUSED_S,
    Refusals,
)


def test_refusals_are_forgotten_and_two_lines_convict_an_origin():
    endpoint = Endpoint("up", "e", "https", "h", 1, protocols=(Carrier.H3,))
    a, b, c = (Path(Line(name), endpoint) for name in "abc")
    refusals = Refusals()
    refusals.failed(a, 0.0)
    assert not refusals.allowed(a, 1.0)
    assert refusals.allowed(b, 1.0)
    assert refusals.allowed(a, REFUSED_S)
    refusals.failed(a, REFUSED_S)
    assert not refusals.allowed(a, 2.9 * REFUSED_S)  # twice as long
    assert refusals.allowed(a, 3 * REFUSED_S)
    assert LINES_TO_CONVICT_AN_ORIGIN == 2
    refusals.failed(a, 0.0)
    refusals.failed(b, 0.0)
    assert not refusals.allowed(c, 1.0)
    refusals.worked(b)
    assert refusals.allowed(c, 1.0)
    for i in range(2000):
        refusals.failed(Path(Line("a"), Endpoint("up", "e", "https", f"h{i}", 1)), 0.0)
    assert len(refusals._refused) <= 1024


def test_an_origin_that_followed_is_not_convicted_by_lines_that_come_and_go():
    endpoint = Endpoint("up", "e", "https", "h", 1, protocols=(Carrier.H3,))
    a, b = (Path(Line(name), endpoint) for name in "ab")
    refusals = Refusals()
    refusals.failed(a, 0.0)
    refusals.worked(b)  # it knows migrated clients, whatever line a did
    assert refusals.allowed(a, 1.0)
    for _ in range(2):
        for _ in range(FAILURES_AFTER_SUCCESS - 1):
            refusals.failed(a, 1.0)
            assert refusals.allowed(a, 2.0)
        refusals.worked(a)
    for _ in range(FAILURES_AFTER_SUCCESS):
        refusals.failed(a, 3.0)
    assert not refusals.allowed(a, 4.0)
    for i in range(2000):
        refusals.worked(Path(Line("a"), Endpoint("up", "e", "https", f"h{i}", 1)))
    assert len(refusals._followed) <= 1024
