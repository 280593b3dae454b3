"""The connections of one carrier that have room, and which of them takes the next stream.

A stream on a TCP connection waits for whatever any other stream of it lost, so that a line with
loss carries few streams on each connection. ``limit`` says how many; a connection at its limit
still serves, in turn with others, when there is nothing better.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from edged.upstream.connection import Connection

UNLIMITED = 1 << 30


class Shelf:
    """Invariant: a connection stands in ``free`` or in ``shared``, and in neither without room."""

    __slots__ = ("_bulky", "free", "limit", "shared")

    def __init__(self) -> None:
        self.free: OrderedDict[Connection, None] = OrderedDict()
        """Below the limit, in the order in which they came."""
        self.shared: OrderedDict[Connection, None] = OrderedDict()
        """At the limit; taken in turn, the first first."""
        self.limit = UNLIMITED
        self._bulky: set[Connection] = set()
        """Those that were given a large body and were not idle since: they count as at the limit,
        for what is small would stand in line behind it."""

    def place(self, connection: Connection) -> None:
        """Put ``connection`` where its numbers say."""
        if connection.capacity <= 0:
            self.remove(connection)
        elif (
            connection.in_flight < self.limit
            and connection.settled
            and not self._is_bulky(connection)
        ):
            self.free[connection] = None
            if self.shared:
                self.shared.pop(connection, None)
        else:
            self.shared[connection] = None
            self.free.pop(connection, None)

    def took(self, connection: Connection, *, bulky: bool) -> bool:
        """``connection`` was given a stream; whether that leaves none that is free.

        One that is not here, early or being verified, does not come here by that.
        """
        if bulky:
            self._bulky.add(connection)
        if connection not in self:
            return False
        if bulky or connection.capacity <= 0 or connection.in_flight >= self.limit:
            self.place(connection)
            if connection in self.shared:
                self.shared.move_to_end(connection)
            return not self.free
        return False

    def first(self) -> Connection:
        """The free connection to take next: without a limit the one that came last, so that what
        is not needed stays idle and expires; with one the one that rested longest, so that what
        was lost of the exchange before is mended by now."""
        return next(reversed(self.free) if self.limit == UNLIMITED else iter(self.free))

    def quietest(self) -> Connection:
        """For a large body: a free connection without a stream, if there is one."""
        for connection in reversed(self.free):
            if not connection.in_flight:
                return connection
        return next(reversed(self.free))

    def _is_bulky(self, connection: Connection) -> bool:
        if connection not in self._bulky:
            return False
        if connection.in_flight:
            return True
        self._bulky.discard(connection)
        return False

    def remove(self, connection: Connection) -> None:
        """It takes nothing now."""
        self.free.pop(connection, None)
        if self.shared:
            self.shared.pop(connection, None)

    def forget(self, connection: Connection) -> None:
        """It is gone."""
        self.remove(connection)
        self._bulky.discard(connection)

    def set_limit(self, limit: int) -> None:
        """So many streams on each from now on."""
        if limit != self.limit:
            self.limit = limit
            for connection in [*self.free, *self.shared]:
                self.place(connection)

    def __contains__(self, connection: object) -> bool:
        return connection in self.free or connection in self.shared

    def __bool__(self) -> bool:
        return bool(self.free or self.shared)

    def __iter__(self) -> Iterator[Connection]:
        yield from self.free
        yield from self.shared
