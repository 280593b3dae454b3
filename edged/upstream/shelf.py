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

    __slots__ = ("free", "limit", "shared")

    def __init__(self) -> None:
        self.free: OrderedDict[Connection, None] = OrderedDict()
        """Below the limit; the one that came last is the first to be taken, so that what is not
        needed stays idle and expires."""
        self.shared: OrderedDict[Connection, None] = OrderedDict()
        """At the limit; taken in turn, the first first."""
        self.limit = UNLIMITED

    def place(self, connection: Connection) -> None:
        """Put ``connection`` where its numbers say."""
        if connection.capacity <= 0:
            self.remove(connection)
        elif connection.in_flight < self.limit:
            self.free[connection] = None
            if self.shared:
                self.shared.pop(connection, None)
        else:
            self.shared[connection] = None
            self.free.pop(connection, None)

    def remove(self, connection: Connection) -> None:
        """It takes nothing now."""
        self.free.pop(connection, None)
        if self.shared:
            self.shared.pop(connection, None)

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
