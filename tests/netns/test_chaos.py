"""Two minutes of `bench/chaos.py`, and its judgement of what requests came to."""

import itertools
import math
from dataclasses import replace

import pytest

from bench.chaos import report, run
from bench.chaos_schedule import ALL, DARK, DNS, KINDS, QUIET_S, Health, schedule, steps
from bench.chaos_verdict import (
    ALONE_S,
    GOOD_S,
    POOR_S,
    SAID_S,
    Asked,
    Timeline,
    Verdict,
    judge,
)
from bench.chaos_watch import Holding, flat, too_much
from bench.wan_traffic import Shot
from tests.netns.site import CADDY

SECONDS = 120.0
REFUSED = 'edged; error=destination_unavailable; details="h1"'


NOT_YET = (Verdict.FAILED, Verdict.BROKEN)
"""Bars that are missed now and then by what edged is; docs/chaos.md says by how much."""


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(420)
@pytest.mark.skipif(not CADDY.exists(), reason="caddy is not installed")
def test_two_minutes(tmp_path):
    result = run(tmp_path, seed=1, seconds=SECONDS)
    told = report(result)
    print(told)
    assert not [verdict for _, verdict in result.at_fault if verdict not in NOT_YET], told
    assert not result.unfinished, told
    assert not result.too_much, told
    assert "Traceback" not in result.log, told
    assert "a bug in edged" not in result.log, told
    if result.misses():
        pytest.xfail("\n".join(one[:200] for one in result.misses()))


# -- the schedule ----------------------------------------------------------------------------------


def test_a_seed_decides_all():
    assert schedule(3, 600) == schedule(3, 600)
    assert schedule(3, 600) != schedule(4, 600)


@pytest.mark.parametrize("seed", range(20))
def test_events_keep_to_their_places(seed):
    events = schedule(seed, SECONDS)
    assert all(event.at_s >= QUIET_S for event in events)
    assert all(event.at_s < event.until_s <= SECONDS - QUIET_S for event in events)
    for target in ("a", "b", "e1", "e2", DNS):
        mine = [e for e in events if e.target == target or (e.target == ALL and target in "ab")]
        assert all(a.until_s <= b.at_s for a, b in itertools.pairwise(mine))
    servers = [event for event in events if event.target in ("e1", "e2")]
    assert all(a.until_s <= b.at_s for a, b in itertools.pairwise(servers))


def test_the_long_run_has_all_kinds_and_two_minutes_most():
    assert {event.kind for event in schedule(1, 1440)} == KINDS.keys()
    kinds = {event.kind for event in schedule(1, SECONDS)}
    assert len(kinds) >= len(KINDS) - 2
    assert DARK in kinds


def test_a_line_that_flaps_ends_alive():
    events = [event for event in schedule(1, 1440) if event.kind == "flap"]
    assert events
    for event in events:
        turns = [step.begins for step in steps([event])]
        assert turns[0]
        assert not turns[-1]
        assert all(event.at_s < turn < event.until_s for turn in event.turns)


# -- what requests come to -------------------------------------------------------------------------


def asked(due=100.0, took=1.0, status=200, error=None, **more):
    shot = Shot("get", "get-1", due, due + took, status)
    shot.error = error
    shot.proxy_status = more.pop("proxy_status", REFUSED)
    options = {"kind": "get", "udp_only": False, "repeatable": True, "limit_s": 40.0, **more}
    return Asked(shot, **options)


def timeline(*changes, restarts=()):
    """``changes``: (line, at, health)."""
    line = Timeline("ab")
    for change in changes:
        line.line(*change)
    line.restarts = list(restarts)
    return line


DEAD, POOR, NO_UDP, GOOD = Health.DEAD, Health.POOR, Health.NO_UDP, Health.GOOD
CALM = timeline()
NIGHT = timeline(("a", 90.0, DEAD), ("b", 95.0, DEAD))


def test_whole_answers():
    one = asked(length=3, sha256="x")
    one.got = 3, "x"
    assert judge(one, CALM) is Verdict.OK
    one.got = 2, "x"
    assert judge(one, CALM) is Verdict.SHORT
    one.got = 3, "y"
    assert judge(one, CALM) is Verdict.SHORT


@pytest.mark.parametrize("numbers", [[0, 1], [0, 1, 1, 2], [0, 2, 1]])
def test_streams_have_every_token_once_and_in_order(numbers):
    stream = asked(tokens=3)
    stream.shot.tokens = [(0, 100.0), (1, 100.1), (2, 100.2)]
    assert judge(stream, CALM) is Verdict.OK
    stream.shot.tokens = [(number, 100.0) for number in numbers]
    assert judge(stream, CALM) is Verdict.SHORT


def test_refusals_are_excused_only_without_a_line():
    assert judge(asked(status=503), CALM) is Verdict.FAILED
    assert judge(asked(status=503), NIGHT) is Verdict.DARK
    assert judge(asked(status=500), NIGHT) is Verdict.BARE
    assert judge(asked(status=503, proxy_status="edged; details=x"), NIGHT) is Verdict.BARE
    assert judge(asked(status=None, error="OSError: x"), NIGHT) is Verdict.BARE
    assert judge(asked(status=None, error="timeout", took=40), NIGHT) is Verdict.HUNG
    assert judge(asked(status=503, took=ALONE_S + 0.1), NIGHT) is Verdict.HUNG


def test_a_line_must_have_worked_long_enough():
    for back_s, verdict in ((GOOD_S + 0.1, Verdict.FAILED), (GOOD_S - 0.1, Verdict.DARK)):
        # Refused at 105.0; a line was back for so long.
        morning = timeline(("a", 90.0, DEAD), ("b", 90.0, DEAD), ("b", 105.0 - back_s, GOOD))
        assert judge(asked(took=5.0, status=503), morning) is verdict
    # Refused at once: whoever waited would have had an answer.
    soon = timeline(("a", 90.0, DEAD), ("b", 100.0 + GOOD_S, DEAD))
    assert judge(asked(took=0.1, status=503), soon) is Verdict.FAILED
    poor = timeline(("a", 90.0, DEAD), ("b", 90.0, POOR))
    assert judge(asked(took=5.0, status=503), poor) is Verdict.FAILED
    short = timeline(("a", 90.0, DEAD), ("b", 90.0, POOR), ("b", 100.0 + POOR_S - 1, DEAD))
    assert judge(asked(took=POOR_S + 1, status=503), short) is Verdict.DARK


def test_without_udp_a_line_is_dead_for_h3_alone():
    blocked = timeline(("a", 90.0, NO_UDP), ("b", 90.0, DEAD))
    assert judge(asked(status=503), blocked) is Verdict.FAILED
    assert judge(asked(status=503, udp_only=True), blocked) is Verdict.DARK


def test_what_may_have_been_executed_is_not_repeated_when_a_server_goes():
    gone = timeline(restarts=[(100.5, 102.0, "e1")])
    assert judge(asked(status=502, repeatable=False), gone) is Verdict.REFUSED
    assert judge(asked(status=502), gone) is Verdict.FAILED
    assert judge(asked(status=502, repeatable=False), CALM) is Verdict.FAILED


def broken(carrier, path="a>up/e1", **more):
    return asked(took=5.0, error="Broken: body cut short", log={"carrier": carrier, "path": path})


@pytest.mark.parametrize("carrier", ["h1", "h2"])
def test_responses_over_tcp_break_with_their_line_or_server(carrier):
    died = timeline(("a", 104.5, DEAD))
    assert judge(broken(carrier), died) is Verdict.BROKEN_DEAD
    assert judge(broken(carrier, "b>up/e1"), died) is Verdict.BROKEN
    assert judge(broken(carrier), timeline(("a", 99.0, POOR))) is Verdict.BROKEN_POOR
    gone = timeline(restarts=[(104.0, 107.0, "e1")])
    assert judge(broken(carrier), gone) is Verdict.BROKEN_RESTART
    assert judge(broken(carrier, "a>up/e2"), gone) is Verdict.BROKEN


def test_responses_over_h3_break_only_without_any_line():
    assert judge(broken("h3"), timeline(("a", 104.5, DEAD))) is Verdict.BROKEN
    assert judge(broken("h3"), timeline(("a", 104.5, DEAD), ("b", 90.0, NO_UDP))) is (
        Verdict.BROKEN_DEAD
    )
    assert judge(broken("h3"), timeline(("a", 104.5, DEAD), ("b", 90.0, POOR))) is (
        Verdict.BROKEN_POOR
    )


def test_responses_whose_server_came_back_without_them_are_given_up_in_time():
    for back_s, verdict in ((SAID_S - 0.1, Verdict.BROKEN_RESTART), (SAID_S + 0.1, Verdict.BROKEN)):
        gone = timeline(restarts=[(101.0, 105.0 - back_s, "e1")])
        one = asked(due=95.0, took=10.0, error="Broken: x", log={"carrier": "h3", "path": "a>u/e1"})
        assert judge(one, gone) is verdict
        # While no line worked nobody could know.
        night = timeline(
            ("a", 90.0, DEAD), ("b", 90.0, DEAD), ("b", 103.0, GOOD), restarts=gone.restarts
        )
        assert judge(one, night) is Verdict.BROKEN_RESTART
    before = timeline(restarts=[(93.0, 94.0, "e1")])
    assert judge(one, before) is Verdict.BROKEN
    # The server that was away was not the one that answered.
    waited = asked(due=95.0, took=10.0, error="Broken: x", log={"carrier": "h2", "path": "a>u/e1"})
    waited.shot.answered = 99.0
    away = timeline(("a", 104.8, DEAD), restarts=[(97.0, 98.0, "e1")])
    assert judge(waited, away) is Verdict.BROKEN_DEAD
    waited.shot.answered = 96.0
    assert judge(waited, away) is Verdict.BROKEN


def test_what_the_origin_breaks_off_is_broken():
    cut = replace(broken("h2"), kind="cut", length=10)
    assert judge(cut, CALM) is Verdict.BROKEN_RIGHTLY
    cut.shot.error, cut.got = None, (5, "")
    assert judge(cut, CALM) is Verdict.SHORT


def test_the_timeline_counts_only_one_line_at_a_stretch():
    turns = timeline(("a", 0.0, DEAD), ("a", 2.0, GOOD), ("b", 2.0, DEAD), ("b", 5.0, POOR))
    assert turns.worked(0.0, 2.0, least=GOOD, udp=False) == 2.0
    assert turns.worked(0.0, 4.0, least=GOOD, udp=False) == 2.0
    assert turns.worked(1.0, 9.0, least=POOR, udp=False) == 7.0
    assert turns.worst("b", 3.0, 9.0) is DEAD
    assert turns.last(3.0, 4.0, udp=False) == 4.0
    assert timeline(("a", 1.0, DEAD), ("b", 2.0, DEAD)).last(0.0, 9.0, udp=False) == 2.0
    assert not math.isinf(turns.worked(-5.0, 9.0, least=GOOD, udp=True))


def test_memory_is_flat_when_the_last_quarter_is_as_the_second():
    assert flat([50.0, 100.0, 101.0, 104.0])
    assert not flat([100.0, 100.0, 105.0, 115.0])


def test_what_is_left_behind():
    warm = Holding(
        100, tcp=9, udp=3, h3_paths=2, files=20, spools=1, tasks=4, open_requests=7, waiting=1
    )
    calm = replace(warm, spools=0, open_requests=0, waiting=0)
    assert not too_much(calm, warm)
    # A path that nobody had needed before keeps its connection, but each socket belongs to one.
    assert not too_much(replace(calm, udp=4, h3_paths=4), warm)
    assert too_much(replace(calm, udp=5, h3_paths=4), warm) == ["udp: 5 of 4"]
    assert too_much(replace(calm, tcp=10, spools=1), warm) == ["tcp: 10 of 9", "spools: 1 of 0"]
    assert not too_much(replace(calm, open_requests=1), warm, pulses=1)
