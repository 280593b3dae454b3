"""How long an exchange waits while nothing of it is under way."""

import pytest

from policies.wait import Wait

PATIENCE_S = 5.0


@pytest.fixture
def wait():
    wait = Wait(PATIENCE_S)
    wait.begin(10.0)
    return wait


def test_with_a_path_the_connects_themselves_bound_it(wait):
    assert wait.end_at is None
    assert not wait.is_over(1000.0)
    assert not wait.worn_out(14.9)
    assert wait.worn_out(15.0)


def test_in_the_dark_it_is_over_a_patience_after_it_began(wait):
    wait.darken(12.0)
    assert wait.dark
    assert wait.end_at == 15.0
    assert (wait.is_over(14.9), wait.is_over(15.0)) == (False, True)


def test_at_nightfall_a_little_is_left(wait):
    wait.darken(19.0)
    assert wait.end_at == 20.0


def test_what_is_under_way_has_no_end_here(wait):
    wait.darken(11.0)
    wait.sent()
    assert (wait.since, wait.end_at, wait.dark) == (None, None, False)
    wait.darken(12.0)
    assert not wait.dark
    assert not wait.worn_out(1000.0)
    wait.begin(30.0)
    wait.begin(31.0)
    assert wait.since == 30.0


def test_lines_that_flap_prolong_it_once(wait):
    for at in (11.0, 12.0, 13.0, 14.0):
        wait.darken(at)
        wait.dawn()
        assert not wait.dark
    assert wait.end_at == 17.5
    wait.darken(17.0)
    assert wait.end_at == 17.5
