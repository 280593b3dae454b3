"""What a dial tries, in virtual time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.upstream import carriers as c
from edged.upstream.carriers import Carriers, Plan
from policies.model import Carrier, Line
from tests.edged.upstream.support import path_to

H3, H2, H1 = Carrier.H3, Carrier.H2, Carrier.H1
TCP_ONLY = Plan(tcp=True, h3=False, head_start_s=0.0)


def https(*protocols, line="a", port=443, host="o.example"):
    return path_to(port, scheme="https", protocols=protocols, host=host, line=Line(line))


@pytest.fixture
def carriers():
    return Carriers(h3_available=True)


def test_plain_http_upgrades_and_missing_engines_use_tcp(carriers):
    assert carriers.plan(path_to(80, protocols=(H3, H2, H1)), 0) == TCP_ONLY
    assert carriers.plan(https(H3, H1), 0, upgrade=True) == TCP_ONLY
    assert Carriers(h3_available=False).plan(https(H3, H1), 0) == TCP_ONLY
    assert carriers.plan(https(H2, H1), 0) == TCP_ONLY


def test_h3_has_a_head_start_by_what_it_took_before(carriers):
    path = https(H3, H2)
    assert carriers.plan(path, 0) == Plan(True, True, c.HEAD_START_S)
    carriers.h3_worked(path, 0.06)
    assert carriers.plan(path, 0).head_start_s == pytest.approx(0.18)
    carriers.h3_worked(path, 3.0)
    assert carriers.plan(path, 0).head_start_s == c.HEAD_START_MAX_S


def test_an_endpoint_of_h3_alone_gets_nothing_else(carriers):
    path = https(H3)
    carriers.h3_failed(path, 0)
    assert carriers.plan(path, 0) == Plan(False, True, 0.0)


def test_where_h3_fails_it_is_held_back_longer_each_time(carriers):
    path = https(H3, H2)
    now, waits = 0.0, []
    for _ in range(10):
        carriers.h3_failed(path, now)
        waits.append(carriers.blocked_until(path) - now)
        assert carriers.plan(path, now) == TCP_ONLY
        now = carriers.blocked_until(path)
        # No request is the first to try it again.
        assert carriers.plan(path, now) == TCP_ONLY
        assert H3 in carriers.usable(path, now)
        assert carriers.plan(path, now, only=H3) == Plan(False, True, 0.0)
    assert waits[:4] == [5, 10, 20, 40]
    assert waits[-1] == c.BACKOFF_MAX_S
    carriers.h3_worked(path)
    assert carriers.plan(path, now) == Plan(True, True, c.HEAD_START_S)


def test_on_a_path_in_doubt_nobody_waits_for_h3(carriers):
    path = https(H3, H2)
    carriers.h3_worked(path, 0.1)
    assert carriers.plan(path, 0, hurried=True) == Plan(True, True, 0.0)


def test_a_carrier_that_is_known_to_be_worse_is_not_raced(carriers):
    path = https(H3, H2)
    assert carriers.plan(path, 0, first=H2) == TCP_ONLY
    assert carriers.plan(path, 0, first=H3).h3


def test_where_datagrams_vanish_h3_waits_for_a_word(carriers):
    path = https(H3, H2)
    carriers.silenced.add(path.name)
    assert carriers.plan(path, 1e9) == TCP_ONLY
    assert carriers.usable(path, 1e9) == {H2}
    carriers.silenced.discard(path.name)
    assert carriers.usable(path, 0) == {H3, H2}


def test_two_origins_convict_a_line_and_only_that_line(carriers):
    first, second = https(H3, H2, host="a.example"), https(H3, H2, host="b.example")
    third = https(H3, H2, host="c.example")
    elsewhere = https(H3, H2, host="c.example", line="b")
    carriers.h3_failed(first, 0)
    carriers.h3_failed(first, 0)
    assert carriers.plan(third, 0).h3
    carriers.h3_failed(second, 0)
    assert not carriers.plan(third, 0).h3
    assert carriers.plan(elsewhere, 0).h3
    carriers.h3_worked(third)
    assert carriers.blocked_until(third) == 0


@pytest.mark.parametrize(
    ("value", "until"),
    [
        (b'h3=":443"; ma=60', 60),
        (b'h3=":443"', c.MAX_AGE_DEFAULT_S),
        (b'h3-29=":443"; ma=9, h3=":443"; ma=60; persist=1', 60),
        (b'h2="alt.example:8000", h3="o.example:443"; ma="60"', 60),
        (b'h3=":443"; ma=99999999', c.MAX_AGE_CAP_S),
        (b'h3=":8443"; ma=60', 0),
        (b'h3="other.example:443"; ma=60', 0),
        (b'h3-29=":443"; ma=60', 0),
        (b"clear", 0),
        (b"", 0),
        (b"\xff;;=,", 0),
    ],
)
def test_alt_svc(carriers, value, until):
    path = https(H2, H1)
    now = 1000.0
    carriers.learned(path, b'h3=":443"; ma=1', now)  # a new value replaces all of an older one
    carriers.learned(path, value, now)
    assert carriers.speaks_h3(path, now + until - 1) is (until > 0)
    assert not carriers.speaks_h3(path, now + until)
    if until:
        other = https(H2, H1, line="b")
        assert carriers.speaks_h3(other, now), "an origin's word holds on all lines"


def test_alt_svc_adds_nothing_to_protocols_that_the_operator_named(carriers):
    path = https(H2, H1)
    carriers.learned(path, b'h3=":443"', 0)
    named = replace(path, endpoint=replace(path.endpoint, learns_h3=False))
    assert carriers.speaks_h3(path, 1)
    assert not carriers.speaks_h3(named, 1), "another upstream's word for the same origin"
    assert carriers.plan(named, 1) == TCP_ONLY
    both = replace(path, endpoint=replace(path.endpoint, learns_h3=False, protocols=(H3, H1)))
    assert carriers.plan(both, 1).h3


@given(st.binary(max_size=200))
def test_no_alt_svc_raises(value):
    Carriers(h3_available=True).learned(https(H2), value, 0)
