"""A path falls into doubt: those who would leave it find connections elsewhere."""

from dataclasses import replace

from policies.model import Blame, Change, Replay, Verdict
from policies.schema import Policy
from tests.harness.scripted import Stage, make_path, staged

SUSPECT = Change("cn2>up/e1", Verdict.UP, Verdict.SUSPECT, Blame.LINE, "silence", 0.0)


@staged
async def test_as_many_as_would_move_are_announced_to_the_next_path():
    stage = Stage(policy=Policy(replay=Replay.LINE_DOWN))
    for _ in range(3):
        stage.request(b"POST", length=0)
    stage.request().sink.body_end(None)
    stage.streams[0].answer(200, [], 5, b"he")  # its response has begun: it cannot move
    stage.exchanges.path_changed(SUSPECT)
    assert stage.upstreams.prepared == [("bgp>up/e1", 3)]


@staged
async def test_a_doubt_on_one_path_is_one_of_its_line():
    stage = Stage([make_path("cn2"), make_path("bgp"), make_path("cn2", "e2")])
    stage.request()
    of_another = replace(SUSPECT, path="cn2>up/e2")
    stage.exchanges.path_changed(of_another)
    assert stage.upstreams.prepared == [("bgp>up/e1", 1)]


@staged
async def test_who_must_not_be_repeated_goes_nowhere():
    stage = Stage(policy=Policy(replay=Replay.NEVER))
    stage.request(b"POST", length=0)
    stage.exchanges.path_changed(SUSPECT)
    assert stage.upstreams.prepared == []


@staged
async def test_a_path_that_is_down_is_no_refuge():
    stage = Stage()
    stage.request()
    stage.table.order(stage.paths, 1)
    stage.exchanges.path_changed(SUSPECT)
    assert stage.upstreams.prepared == []
