"""Which of a carrier's connections takes the next stream."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edged.upstream.shelf import UNLIMITED, Shelf


class Connection:
    def __init__(self, capacity=100):
        self.capacity, self.in_flight, self.settled = capacity, 0, True

    def open(self):
        self.capacity -= 1
        self.in_flight += 1

    def end(self):
        self.capacity += 1
        self.in_flight -= 1


def shelf_of(*connections, limit=UNLIMITED):
    shelf = Shelf()
    shelf.limit = limit
    for connection in connections:
        shelf.place(connection)
    return shelf


def take(shelf, connection, *, bulky=False):
    connection.open()
    return shelf.took(connection, bulky=bulky)


def end(shelf, connection):
    connection.end()
    shelf.place(connection)


def test_without_a_limit_the_one_that_came_last_carries_all():
    one, two = Connection(), Connection()
    shelf = shelf_of(one, two)
    for _ in range(5):
        assert shelf.first() is two
        assert not take(shelf, two)


def test_with_a_limit_streams_spread_and_the_one_that_rested_longest_goes_first():
    one, two = Connection(), Connection()
    shelf = shelf_of(one, two, limit=1)
    assert not take(shelf, shelf.first())
    assert shelf.first() is two
    assert take(shelf, two), "none is free"
    end(shelf, one)
    end(shelf, two)
    assert shelf.first() is one


def test_those_at_their_limit_are_taken_in_turn():
    one, two = Connection(), Connection()
    shelf = shelf_of(one, two, limit=1)
    take(shelf, one)
    take(shelf, two)
    turns = []
    for _ in range(4):
        turns.append(next(iter(shelf.shared)))
        take(shelf, turns[-1])
    assert turns == [one, two, one, two]


def test_what_is_not_settled_is_for_when_nothing_better_is_there():
    one, two = Connection(), Connection()
    shelf = shelf_of(one, two, limit=1)
    one.settled = False
    shelf.place(one)
    assert list(shelf.free) == [two]
    assert list(shelf.shared) == [one]
    one.settled = True
    shelf.place(one)
    assert one in shelf.free


def test_small_requests_do_not_stand_behind_a_large_body():
    one, two = Connection(), Connection()
    shelf = shelf_of(one, two)
    assert shelf.quietest() is two
    assert not take(shelf, two, bulky=True)
    assert shelf.first() is one
    assert not take(shelf, one)
    assert shelf.quietest() is one
    end(shelf, two)
    assert shelf.first() is two


def test_a_full_or_forgotten_connection_stands_nowhere():
    one = Connection(capacity=1)
    shelf = shelf_of(one)
    assert take(shelf, one, bulky=True)
    assert not shelf
    end(shelf, one)
    assert one in shelf
    shelf.forget(one)
    assert not shelf


def test_a_new_limit_holds_for_all():
    one, two = Connection(), Connection()
    shelf = shelf_of(one, two)
    take(shelf, two)
    shelf.set_limit(1)
    assert list(shelf.free) == [one]
    shelf.set_limit(UNLIMITED)
    assert set(shelf.free) == {one, two}


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(("take", "bulky", "end", "doubt"))),
        max_size=60,
    ),
    st.sampled_from((1, 2, UNLIMITED)),
)
def test_a_connection_stands_in_one_place_and_only_with_room(events, limit):
    connections = [Connection(capacity=3) for _ in range(4)]
    shelf = shelf_of(*connections, limit=limit)
    for number, what in events:
        connection = connections[number]
        if what in ("take", "bulky") and connection in shelf:
            take(shelf, connection, bulky=what == "bulky")
        elif what == "end" and connection.in_flight:
            end(shelf, connection)
        elif what == "doubt":
            connection.settled = not connection.settled
            shelf.place(connection)
        for each in connections:
            assert (each in shelf.free) + (each in shelf.shared) == (each.capacity > 0)
            if each in shelf.free:
                assert each.in_flight < limit


def test_one_that_was_set_aside_does_not_come_back_by_taking_a_stream():
    for bulky in (False, True):
        asked = Connection()
        shelf = shelf_of(asked, limit=1)
        shelf.remove(asked)
        assert not take(shelf, asked, bulky=bulky)
        assert asked not in shelf
