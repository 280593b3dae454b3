"""Connections that go on over another line: whose they are, and what their pools do."""

from __future__ import annotations

import asyncio

from edged.upstream.pool_types import PoolStats
from policies.model import Blame, Carrier, Change, Failure, Line, Outcome, Verdict
from tests.edged.upstream.pooling import H3_PATH, FakeConnection, FakeH3
from tests.edged.upstream.support import path_to, setup

A, B = (path_to(1, line=Line(name), **H3_PATH) for name in "ab")


class Mobile(FakeConnection):
    """Goes on over ``way``, if it has one; proven when the test says so."""

    way = None
    doubts = 0

    def doubt(self):
        self.doubts += 1

    def leave(self):
        if self.way is None or not self.in_flight:
            return False
        self.path, self.way = self.way, None
        self.capacity = 0
        self.owner = self.owner.moved(self, self.path)
        return True

    def prove(self):
        self.capacity = 10
        self.owner.capacity_changed(self)


class Mobiles(FakeH3):
    """Makes them."""

    def __init__(self):
        super().__init__()
        self.made = []

    async def connect(self, path, owner, **options):
        self.made.append(Mobile(path, owner))
        return self.made[-1]


class Waiting:
    """A request for a stream."""

    def __init__(self):
        self.stream = self.failure = None

    def stream_ready(self, stream):
        self.stream = stream

    def failed(self, failure):
        self.failure = failure


def change(path, new, old=Verdict.UP):
    return Change(path.name, old, new, Blame.LINE, "silence", 0.0)


def down(pools, path):
    """As the daemon has it: first those leave who can."""
    pools.path_leaving(change(path, Verdict.DOWN))
    pools.path_changed(change(path, Verdict.DOWN))


def connections(pools):
    return {
        s.path: s.connections.get(Carrier.H3, 0) for s in pools.stats() if isinstance(s, PoolStats)
    }


def play(body):
    async def main():
        h3 = Mobiles()
        async with setup(h3=h3) as made:
            waiting = Waiting()
            made.pools.open(A, waiting, early_data=False)
            async with asyncio.timeout(5):
                while waiting.stream is None:
                    await asyncio.sleep(0.001)
            (connection,) = h3.made
            await body(made.pools, connection, h3)

    asyncio.run(main())


def test_a_connection_that_moved_is_the_other_pools():
    async def body(pools, connection, h3):
        connection.way = B
        down(pools, A)
        assert connection.failure is None
        assert connections(pools) == {A.name: 0, B.name: 1}
        assert [s.in_flight for s in pools.stats()] == [0, 1]
        # Not proven yet: a request there does not get it.
        early = Waiting()
        pools.open(B, early, early_data=False)
        assert early.stream is None
        connection.prove()
        assert early.stream is not None
        # The death of the line that was left is nothing to it; that of its own is.
        down(pools, A)
        assert connection.failure is None
        down(pools, B)
        assert isinstance(connection.failure, Failure)
        assert connection.failure.path_down
        assert connections(pools)[B.name] == 0

    play(body)


def test_it_may_move_on_and_back():
    async def body(pools, connection, h3):
        for here, there in ((A, B), (B, A), (A, B)):
            connection.way = there
            down(pools, here)
            pools.path_changed(change(here, Verdict.UP, Verdict.DOWN))
            assert connections(pools) == {here.name: 0, there.name: 1}
            connection.prove()
        assert connection.failure is None

    play(body)


def test_who_cannot_go_on_ends():
    async def body(pools, connection, h3):
        down(pools, A)
        assert connection.failure == Failure(Outcome.TIMEOUT, "silence", path_down=True)

    play(body)


def test_doubt_reaches_connections():
    async def body(pools, connection, h3):
        pools.path_changed(change(A, Verdict.SUSPECT))
        assert connection.doubts == 1
        # It found the other path quicker, and moves by itself.
        connection.way = B
        assert connection.leave()
        assert connections(pools) == {A.name: 0, B.name: 1}

    play(body)


def test_a_closed_house_lets_go_of_it():
    async def body(pools, connection, h3):
        connection.way = B
        down(pools, A)
        pools.close()
        assert connection.failure is not None

    play(body)
