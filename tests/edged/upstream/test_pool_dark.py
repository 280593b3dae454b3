"""Dials on a path that nothing may pass: who is told what, when, and what begins anew."""

import asyncio

import pytest

from edged.upstream.dialing import STALE_S
from policies.model import Blame, Carrier, CarrierChange, Change, Line, Outcome, Verdict
from probes.base import DialError
from tests.edged.upstream.support import LINE, eventually, get, path_to, setup

H3 = Carrier.H3
TIMEOUT_S = 0.5


class Void:
    """Nothing is answered."""

    def __init__(self):
        self.dials = []
        """Of each the path, and whether it asked for early data."""

    async def connect(self, path, owner, *, timeout_s, early_data=False, upgrade=False, only=None):
        self.dials.append((path.name, early_data))
        await asyncio.sleep(timeout_s)
        raise DialError(Outcome.TIMEOUT, "no handshake")

    def on(self, path):
        return len([name for name, _ in self.dials if name == path.name])


def path(name="e1", line=LINE):
    return path_to(1, scheme="https", protocols=(H3,), name=name, line=line)


def verdict(path, new, old=Verdict.UP):
    return Change(path.name, old, new, Blame.UNKNOWN, "silent", 0.0)


def voided(body):
    async def main():
        void = Void()
        async with setup(h3=void, connect_timeout=lambda name: TIMEOUT_S) as pools:
            await body(pools, void)

    asyncio.run(main())


def test_the_silence_of_a_dial_says_nothing_to_who_came_after_it_began():
    async def body(pools, void):
        first = pools.open(path(), get())
        await asyncio.sleep(0.6 * TIMEOUT_S)
        second = pools.open(path(), get())
        loop, begun = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        await first.done()
        assert not second.over
        await eventually(lambda: void.on(path()) == 2)  # anew, for who is left
        await second.done()
        assert loop.time() - begun > 0.9 * TIMEOUT_S
        assert {first.failure.outcome, second.failure.outcome} == {Outcome.TIMEOUT}
        assert second.failure.unprocessed

    voided(body)


def test_where_no_connection_is_open_nobody_waits_longer_than_a_connect_may_take():
    async def body(pools, void):
        waiting = pools.open(path(), get())
        pool = next(iter(pools.pools._pools.values()))
        loop, begun = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        while not waiting.over:
            pool.dialing.again()  # whatever keeps beginning anew
            pool.upkeep.tick(loop.time())
            await asyncio.sleep(0.05)
        assert waiting.failure.outcome is Outcome.TIMEOUT
        assert TIMEOUT_S <= loop.time() - begun < 3 * TIMEOUT_S

    voided(body)


@pytest.mark.parametrize("doubt", [Verdict.SUSPECT, Verdict.DOWN])
def test_nothing_is_sent_early_on_a_path_in_doubt(doubt):
    async def body(pools, void):
        pools.open(path(), get())
        await eventually(lambda: void.dials)
        pools.pools.path_changed(verdict(path(), doubt))
        pools.open(path(), get())
        pools.pools.path_changed(verdict(path("e2"), doubt))
        pools.open(path("e2"), get())
        await eventually(lambda: void.on(path("e2")))
        assert void.dials[0] == (path().name, True)
        assert void.dials[-1] == (path("e2").name, False)

    voided(body)


OTHER = Line("b", source="127.0.0.3")


@pytest.mark.parametrize("how", ["a carrier works", "a path is back"])
def test_a_sign_of_life_on_a_line_wakes_what_is_dialled_over_it_in_vain(how):
    async def body(pools, void):
        heard, same, other = path("e1"), path("e2"), path("e3", OTHER)
        for one in (heard, same, other):
            pools.pools.path_changed(verdict(one, Verdict.DOWN))
            pools.open(one, get())
        await eventually(lambda: len(void.dials) == 3)
        await asyncio.sleep(STALE_S + 0.02)
        for _ in range(3):  # it is dialled once
            if how == "a carrier works":
                pools.pools.carrier_leaving(CarrierChange(heard.name, (H3,), False, "heard", 0.0))
            else:
                pools.pools.path_changed(verdict(heard, Verdict.SUSPECT, Verdict.DOWN))
            await asyncio.sleep(0.01)
        assert void.on(same) == 2
        assert void.on(other) == 1

    voided(body)
