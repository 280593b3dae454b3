"""Coarse deadlines in virtual time."""

from hypothesis import given
from hypothesis import strategies as st

from edged.deadlines import Deadlines


class Waiter:
    def __init__(self, deadline):
        self.deadline, self.bucket, self.passed_at = deadline, 0, None

    def deadline_passed(self, now):
        assert self.passed_at is None
        self.passed_at = now


@given(st.lists(st.floats(100, 130), max_size=30), st.lists(st.floats(0.1, 3), min_size=15))
def test_never_early_never_later_than_two_ticks(deadlines, steps):
    wheel, now = Deadlines(100.0), 100.0
    waiters = [Waiter(d) for d in deadlines]
    for waiter in waiters:
        wheel.add(waiter)
    for step in steps:
        before, now = now, now + step
        wheel.tick(now)
        for waiter in waiters:
            if waiter.passed_at is not None:
                assert waiter.passed_at >= waiter.deadline
            else:
                assert waiter.deadline > before - 2


def test_a_moved_deadline_is_looked_at_again():
    wheel, waiter = Deadlines(0.0), Waiter(2.0)
    wheel.add(waiter)
    waiter.deadline = 5.0
    wheel.tick(4.0)
    assert waiter.passed_at is None
    assert len(wheel) == 1
    wheel.tick(7.0)
    assert waiter.passed_at == 7.0
    assert len(wheel) == 0


def test_removed_members_are_forgotten():
    wheel, waiter = Deadlines(0.0), Waiter(2.0)
    wheel.add(waiter)
    wheel.remove(waiter)
    wheel.remove(waiter)
    wheel.tick(10.0)
    assert waiter.passed_at is None
    assert len(wheel) == 0
