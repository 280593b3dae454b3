"""Rows of `bench/flows.py` in short. A run that a busy machine disturbed is played once more."""

import pytest

from bench import flows_bulk, flows_deaths, flows_random, flows_streams
from bench.flows import END_S, GAPS_S, NEW_S

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


@pytest.mark.parametrize("policy", ["never", "always"])
def test_token_streams_lose_nothing_with_their_line(tmp_path, policy):
    for seed in (1, 2):
        played = flows_streams.play(tmp_path, policy, [seed], 1, tokens=80)
        told = "\n".join(map(str, played.runs))
        assert all(run.right for run in played.runs), told
        assert not flows_random.BUG.search(played.logs)
        if played.longest()[-1] <= GAPS_S[policy][1]:
            return
    raise AssertionError(told)


def test_flows_are_whole_and_carried_out_once_whatever_happens_to_lines(tmp_path):
    result = flows_random.run(tmp_path, seed=3, seconds=10, left_s=0)
    result.left.clear()  # connections rest for longer than a test waits
    assert not result.misses(), "\n".join(result.misses())
    assert any(event.kind.changes.get("blackhole") for event in result.happened)


def test_a_session_through_connect_outlives_its_lines(tmp_path):
    played = flows_bulk.session(tmp_path, seed=1, changes=3)
    assert played.error is None
    assert len(played.changes) == 3


def test_a_relay_that_dies_takes_nothing_with_it_that_has_not_begun(tmp_path):
    death = flows_deaths.relay_killed(tmp_path, seed=1)
    told = death.told()
    for got in death.got:
        if got.ask.kind in flows_deaths.BEGUN:
            assert not got.whole, told
            assert got.ended < death.at + END_S, told
        else:
            assert got.fine, told
    assert all(got.fine and got.took_s < 2 * NEW_S for got in death.later), told


def test_a_relay_frees_what_an_edge_left_that_is_gone(tmp_path):
    relay = {"journal": {"linger_s": 3}}
    left = flows_deaths.edge_killed(tmp_path, seed=1, vanishes=True, limit_s=12, relay=relay)
    assert left.flows_free_s is not None, left.told()
