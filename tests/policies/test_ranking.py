"""Rows, heat and hysteresis."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.model import (
    Breaker,
    Endpoint,
    Estimate,
    Line,
    Part,
    Path,
    PathState,
    RequestClass,
    Verdict,
)
from policies.ranking import FLAPPING, SUSPECT_MS, Chooser, Scored, quantile
from policies.schema import Failover

SMALL = RequestClass(1024)
BIG = RequestClass(16 << 20)
POLICY = Failover()


def path(line, capacity_bps=None):
    return Path(Line(line, capacity_bps=capacity_bps), Endpoint("u", "e", "https", "h", 443))


def scored(
    line,
    cost,
    *,
    verdict=Verdict.UP,
    breaker=Breaker.CLOSED,
    ejected=None,
    held="",
    in_flight=0,
    limit=None,
    capacity=None,
    spare=None,
    error=0.0,
    cold=0.0,
):
    state = PathState(
        path(line, capacity),
        verdict,
        breaker,
        ejected,
        Estimate(rtt_s=cost / 1000),
        None,
        None,
        None,
        in_flight,
        limit,
        endpoint_in_flight=in_flight,
    )
    parts = (Part("rtt", cost),)
    return Scored(state, cost, parts, cost, error, cold, held, spare)


def rank(chooser, paths, *, requests=0, now=0.0, cls=SMALL, policy=POLICY):
    return chooser.rank("u", cls, paths, policy, requests=requests, now=now)


def lines(ranking):
    return [c.state.path.line.name for c in ranking.order]


def words(ranking):
    return [c.filtered for c in ranking.order]


def test_without_a_path_it_is_empty():
    ranking = rank(Chooser(), [])
    assert ranking.order == ()
    assert "no path" in ranking.decided_by


def test_least_cost_is_first_and_the_sentence_says_so():
    ranking = rank(Chooser(), [scored("b", 150), scored("a", 60)])
    assert lines(ranking) == ["a", "b"]
    assert words(ranking) == ["", ""]
    assert ranking.decided_by == "a>u/e costs least: 60.0 against 150.0 of b>u/e"
    assert rank(Chooser(), [scored("a", 60)]).decided_by == "a>u/e is the only path"


def test_rows():
    ranking = rank(
        Chooser(),
        [
            scored("down", 1, verdict=Verdict.DOWN),
            scored("open", 2, breaker=Breaker.OPEN),
            scored("ejected", 3, ejected=9.0),
            scored("half", 4, breaker=Breaker.HALF_OPEN),
            scored("suspect", 5, verdict=Verdict.SUSPECT),
            scored("held", 6, held="recovering"),
            scored("busy", 7, in_flight=10, limit=10),
            scored("up", 8),
        ],
    )
    assert lines(ranking) == ["up", "busy", "held", "half", "suspect", "ejected", "open", "down"]
    assert words(ranking) == [
        "",
        "hot",
        "recovering",
        "half-open",
        "suspect",
        "ejected",
        "breaker open",
        "down",
    ]


def test_suspects_are_eligible_when_nothing_is_better_but_the_dead_are_a_last_resort():
    ranking = rank(Chooser(), [scored("a", 60, verdict=Verdict.SUSPECT)])
    assert words(ranking) == [""]
    ranking = rank(Chooser(), [scored(x, 60, verdict=Verdict.DOWN) for x in "ab"])
    assert words(ranking) == ["down", "down"]
    assert "last resort" in ranking.decided_by


def test_quantile():
    assert quantile([], 0.84) == 0
    assert quantile([3], 0.84) == 3
    assert quantile([0, 10], 0.84) == pytest.approx(8.4)


def test_at_the_limit_is_hot_unless_all_are():
    ranking = rank(Chooser(), [scored("a", 60, in_flight=4, limit=4), scored("b", 150)])
    assert lines(ranking) == ["b", "a"]
    hot = [scored("a", 60, in_flight=4, limit=4), scored("b", 150, in_flight=9, limit=4)]
    ranking = rank(Chooser(), hot)
    assert lines(ranking) == ["a", "b"]
    assert words(ranking) == ["", ""]


def test_the_busiest_without_a_limit_is_not_hot():
    assert lines(rank(Chooser(), [scored("a", 60, in_flight=500), scored("b", 150)])) == ["a", "b"]
    paths = [scored("a", 60, in_flight=6, limit=10), scored("b", 150, limit=10)]
    assert lines(rank(Chooser(), paths)) == ["b", "a"]
    paths = [scored("a", 60, in_flight=5, limit=10), scored("b", 150, limit=10)]
    assert lines(rank(Chooser(), paths)) == ["a", "b"]


def test_a_full_line_is_hot_for_big_bodies_only():
    paths = [scored("a", 60, capacity=1e8, spare=1e7), scored("b", 150, capacity=1e8, spare=9e7)]
    assert lines(rank(Chooser(), paths)) == ["a", "b"]
    assert lines(rank(Chooser(), paths, cls=BIG)) == ["b", "a"]


def test_a_hot_incumbent_is_stepped_around_and_returned_to():
    chooser = Chooser()
    rank(chooser, [scored("a", 60), scored("b", 150)])
    ranking = rank(chooser, [scored("a", 60, in_flight=4, limit=4), scored("b", 150)], now=0.1)
    assert lines(ranking)[0] == "b"
    assert "hot" in ranking.decided_by
    assert chooser.incumbent == "a>u/e"
    ranking = rank(chooser, [scored("a", 60), scored("b", 150)], now=0.2)
    assert lines(ranking)[0] == "a"


def moved_after(costs, *, per_s, policy=POLICY, error=0.0, limit_s=60.0, step=0.1):
    """Seconds until a chooser settled on ``a`` leaves it for ``b``; None: never."""
    chooser, now = Chooser(), 0.0
    rank(chooser, [scored("a", 50), scored("b", 100)], requests=100)
    a, b = costs
    owed = 0.0
    while now < limit_s:
        now += step
        owed += per_s * step
        paths = [scored("a", a, error=error), scored("b", b, error=error)]
        ranking = rank(chooser, paths, requests=int(owed), now=now, policy=policy)
        owed -= int(owed)
        if lines(ranking)[0] == "b":
            return now
    return None


def test_a_difference_within_the_margin_never_moves():
    assert moved_after((100, 96), per_s=1000) is None
    assert moved_after((100, 80), per_s=1000, error=10) is None


def test_the_more_requests_suffer_the_sooner_it_moves():
    fast = moved_after((200, 150), per_s=100)
    slow = moved_after((200, 150), per_s=20)
    assert fast < slow <= 2.0


def test_the_price_of_a_switch_is_a_policy():
    cheap = moved_after((150, 60), per_s=20, policy=Failover(switch_cost_rtts=0.5))
    dear = moved_after((150, 60), per_s=20, policy=Failover(switch_cost_rtts=20))
    assert cheap < dear


def test_an_idle_upstream_returns_to_its_better_line():
    assert moved_after((150, 60), per_s=0) < 15


def test_a_small_gain_of_an_idle_upstream_does_not_move_it():
    assert moved_after((100, 85), per_s=0) is None


def test_regret_is_forgotten_when_the_incumbent_is_better_again():
    chooser, now = Chooser(), 0.0
    rank(chooser, [scored("a", 100), scored("b", 120)], requests=50)
    for i in range(600):
        now += 0.1
        beaten = i % 2
        paths = [scored("a", 130 if beaten else 100), scored("b", 120)]
        assert lines(rank(chooser, paths, requests=1, now=now))[0] == "a"


def test_the_sentence_of_a_kept_incumbent_and_of_a_move():
    chooser = Chooser()
    rank(chooser, [scored("a", 100), scored("b", 120)])
    rank(chooser, [scored("a", 100), scored("b", 50)], requests=1, now=0.1)
    kept = rank(chooser, [scored("a", 100), scored("b", 50)], requests=2, now=0.2)
    assert lines(kept) == ["a", "b"]
    assert kept.decided_by.startswith("kept a>u/e: b>u/e costs 50.0 less than a>u/e, but regret 90")
    moved = rank(chooser, [scored("a", 100), scored("b", 50)], requests=9, now=0.3)
    assert moved.decided_by.startswith("moved to b>u/e")
    assert chooser.regret_ms == 0
    margin = rank(chooser, [scored("a", 49), scored("b", 50)], requests=9, now=0.4)
    assert "within the margin" in margin.decided_by


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": Verdict.SUSPECT, "held": "recovering"},
        {"verdict": Verdict.DOWN},
        {"breaker": Breaker.OPEN},
        {"breaker": Breaker.HALF_OPEN},
        {"ejected": 9.0},
    ],
)
def test_doubt_and_death_skip_the_hysteresis(change):
    chooser = Chooser()
    rank(chooser, [scored("a", 60), scored("b", 150)])
    ranking = rank(chooser, [scored("a", 60, **change), scored("b", 150)], now=0.001)
    assert lines(ranking)[0] == "b"
    assert ranking.decided_by.startswith("a>u/e is ")
    back = rank(chooser, [scored("a", 60), scored("b", 150)], now=0.002)
    assert lines(back)[0] == "b", "the way back is by regret"


def test_a_false_alarm_is_stepped_around_and_costs_no_way_back():
    chooser = Chooser()
    rank(chooser, [scored("a", 60), scored("b", 150)])
    doubted = [scored("a", 60, verdict=Verdict.SUSPECT), scored("b", 150)]
    ranking = rank(chooser, doubted, requests=5, now=0.1)
    assert lines(ranking) == ["b", "a"]
    assert words(ranking) == ["", "suspect"]
    assert ranking.decided_by == "a>u/e is suspect: stepped around"
    assert lines(rank(chooser, [scored("a", 60), scored("b", 150)], now=0.2)) == ["a", "b"]
    worse = [scored("a", 60, verdict=Verdict.DOWN), scored("b", 150)]
    assert lines(rank(chooser, worse, now=0.3)) == ["b", "a"]
    assert chooser.incumbent == "b>u/e"


def test_a_doubt_is_no_way_back_for_a_path_that_flaps():
    chooser = Chooser()
    rank(chooser, [scored("b", 150), scored("a", 60, verdict=Verdict.DOWN)])
    flapping, back = scored("a", 60, held=FLAPPING), scored("a", 60, held="recovering")
    doubted = scored("b", 150, verdict=Verdict.SUSPECT)
    assert lines(rank(chooser, [flapping, doubted], requests=2, now=0.1)) == ["b", "a"]
    assert lines(rank(chooser, [back, doubted], now=0.2)) == ["a", "b"]
    assert lines(rank(chooser, [back, scored("b", 150)], now=0.3)) == ["b", "a"]
    assert lines(rank(chooser, [flapping, scored("b", 1, verdict=Verdict.DOWN)], now=0.4))[0] == "a"


def test_what_recovers_collects_the_regret_that_takes_it_back():
    chooser = Chooser()
    rank(chooser, [scored("b", 150), scored("a", 60, verdict=Verdict.DOWN)])
    held = [scored("a", 60, held="recovering"), scored("b", 150)]
    for i in range(20):
        assert lines(rank(chooser, held, requests=1, now=i * 0.1)) == ["b", "a"]
    assert lines(rank(chooser, [scored("a", 60), scored("b", 150)], now=2.0)) == ["a", "b"]


def test_an_incumbent_that_fell_and_came_back_is_not_left_for_one_that_is_held_too():
    chooser = Chooser()
    rank(chooser, [scored("b", 150)])
    both = [scored("a", 60, held="recovering"), scored("b", 150, held="recovering")]
    for i in range(100):
        ranking = rank(chooser, both, requests=5, now=i * 0.1)
    assert lines(ranking) == ["b", "a"]
    assert words(ranking) == ["", "recovering"]


def test_a_path_that_vanished_is_left():
    chooser = Chooser()
    rank(chooser, [scored("a", 60), scored("b", 150)])
    assert (
        rank(chooser, [scored("b", 150)], now=0.1).decided_by
        == "a>u/e is gone; b>u/e is the only path"
    )


def test_a_forced_move_counts_handshakes_and_a_busy_upstream_does_not():
    chooser = Chooser()
    cold, warm = scored("b", 100, cold=200), scored("c", 150)
    rank(chooser, [scored("a", 60), cold, warm], requests=100)
    ranking = rank(chooser, [scored("a", 60, verdict=Verdict.DOWN), cold, warm], now=0.1)
    assert lines(ranking) == ["c", "b", "a"]
    assert ranking.order[1].cost_ms == 300
    assert ranking.order[1].parts[-1] == Part("handshake", 200)
    later = rank(chooser, [cold, warm], requests=100, now=5.0)
    later = rank(chooser, [cold, warm], requests=100, now=6.0)
    assert lines(later) == ["b", "c"]
    assert later.order[0].cost_ms == 100


def test_a_quiet_upstream_counts_handshakes():
    chooser = Chooser()
    assert lines(rank(chooser, [scored("a", 100, cold=200), scored("b", 150)])) == ["b", "a"]


def test_a_path_that_is_much_worse_is_no_way_around_a_doubt():
    doubted = scored("b", 160, verdict=Verdict.SUSPECT)
    assert lines(rank(Chooser(), [scored("a", 160 + SUSPECT_MS + 1), doubted])) == ["b", "a"]
    assert lines(rank(Chooser(), [scored("a", 160 + SUSPECT_MS - 1), doubted])) == ["a", "b"]
    shaky = scored("b", 160, verdict=Verdict.SUSPECT, breaker=Breaker.HALF_OPEN)
    assert lines(rank(Chooser(), [scored("a", 900), shaky])) == ["a", "b"]


def test_a_path_stepped_around_that_has_become_dearer_is_not_returned_to():
    chooser, other = Chooser(), scored("b", 160)
    rank(chooser, [scored("a", 65), other], requests=20)
    for step in range(10):
        worse = scored("a", 65 + 80 * step, verdict=Verdict.SUSPECT)
        ranking = rank(chooser, [worse, other], requests=2, now=0.1 + 0.1 * step)
        assert lines(ranking) == ["b", "a"]
    assert lines(rank(chooser, [scored("a", 785), other], requests=2, now=1.2)) == ["b", "a"]
    assert chooser.incumbent == "b>u/e"


STATE = st.fixed_dictionaries(
    {
        "cost": st.floats(1, 1000),
        "verdict": st.sampled_from(list(Verdict)),
        "breaker": st.sampled_from(list(Breaker)),
        "ejected": st.sampled_from([None, None, 99.0]),
        "held": st.sampled_from(["", "recovering"]),
        "in_flight": st.integers(0, 20),
        "limit": st.sampled_from([None, 1.0, 10.0]),
        "cold": st.sampled_from([0.0, 100.0]),
    }
)


@given(st.lists(st.lists(STATE, min_size=1, max_size=5), min_size=1, max_size=20))
def test_never_empty_and_never_a_worse_row_first(history):
    chooser, now = Chooser(), 0.0
    for states in history:
        now += 0.5
        paths = [scored(f"l{i}", **s) for i, s in enumerate(states)]
        ranking = rank(chooser, paths, requests=3, now=now)
        assert sorted(lines(ranking)) == sorted(p.state.path.line.name for p in paths)
        first = ranking.order[0]
        if any(p.state.usable for p in paths):
            assert first.state.usable
            assert not first.filtered
        sound = [p for p in paths if p.state.usable and p.state.breaker is Breaker.CLOSED]
        if any(p.state.verdict is Verdict.UP for p in sound):
            costs = [p.cost_ms for p in sound if p.state.verdict is Verdict.UP]
            far_better = first.cost_ms - 100.0 < max(costs) - SUSPECT_MS  # 100 for a handshake
            assert first.state.verdict is Verdict.UP or far_better
        for candidate in ranking.order:
            assert sum(p.ms for p in candidate.parts) == pytest.approx(candidate.cost_ms)
        assert ranking.decided_by
