"""Connections opened for requests that may come at once from a path in doubt."""

from policies.model import Blame, Carrier, Change, Verdict
from tests.edged.upstream.pooling import polite, polite_h2, pooling
from tests.edged.upstream.support import eventually, get, path_to


@pooling(polite)
async def test_who_comes_finds_connections_and_a_few_to_spare(pools, port):
    path = path_to(port)
    pools.pools.prepare(path, 16)
    await eventually(lambda: pools.stat(path).connections == {"h1": 18})
    events = [pools.open(path, get()) for _ in range(16)]
    assert all(e.pending is None for e in events), "nobody waits for a handshake"
    for e in events:
        await e.done()
    assert pools.dialer.dials == 18


@pooling(polite)
async def test_who_comes_early_takes_what_is_being_dialled(pools, port):
    path = path_to(port)
    pools.pools.prepare(path, 4)
    for e in [pools.open(path, get()) for _ in range(4)]:
        await e.done()
    assert pools.dialer.dials == 5


@pooling(polite)
async def test_what_is_there_or_coming_is_not_opened_again(pools, port):
    path = path_to(port)
    pools.pools.prepare(path, 3)
    pools.pools.prepare(path, 3)
    await eventually(lambda: pools.stat(path).connections == {"h1": 4})
    pools.pools.prepare(path, 4)
    assert pools.stat(path).dialing == 0
    pools.pools.prepare(path, 1000)
    await eventually(lambda: not pools.stat(path).dialing)
    assert pools.stat(path).connections == {"h1": 36}, "there is a limit"


@pooling(polite_h2)
async def test_one_connection_that_multiplexes_is_enough(pools, port):
    path = path_to(port, protocols=(Carrier.H2,))
    pools.pools.prepare(path, 20)
    await eventually(lambda: pools.stat(path).connections == {"h2": 1})
    pools.pools.prepare(path, 20)
    assert pools.stat(path).dialing == 0
    assert pools.dialer.dials == 1


@pooling(polite)
async def test_nothing_is_opened_on_a_path_that_is_in_doubt_itself(pools, port):
    path = path_to(port)
    for verdict in (Verdict.SUSPECT, Verdict.DOWN):
        change = Change(path.name, Verdict.UP, verdict, Blame.LINE, "silence", 0.0)
        pools.pools.path_changed(change)
        pools.pools.prepare(path, 3)
        assert pools.stat(path).dialing == 0
