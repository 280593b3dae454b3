"""The cadence in virtual time, and the driver against counting probes."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.doubt import IDLE_BYTES_S, PURSE_BYTES, ROUTINE_BYTES_S
from policies.model import Carrier, Endpoint, Estimate, Kind, Line, Outcome, Path, Sample
from policies.schema import Cadence
from probes.cadence import (
    HEADROOM,
    HOLD_S,
    RECENT_S,
    VOLLEY_SPACING_S,
    YOUNG_S,
    Planner,
    cap_bytes_s,
    spread,
)
from probes.paces import Pace, period_s
from probes.schedule import Scheduler, timeout_s

COSTS = {Kind.ICMP: 112, Kind.TCP: 420, Kind.QUIC: 5000, Kind.HTTP: 8192}
SMALL = {Kind.ICMP: 112}


def paths_of(count, *, line=None, start=0, protocols=(Carrier.H3, Carrier.H2)):
    line = line or Line("cn2")
    return [
        Path(line, Endpoint("u", f"e{i}", "https", f"e{i}.test", 443, protocols=protocols))
        for i in range(start, start + count)
    ]


def planner_of(paths, cadence=None, costs=COSTS, seed=1, now=1000.0, grown=True):
    cadence = cadence or Cadence()
    planner = Planner(costs, Random(seed))
    born = now - YOUNG_S if grown else now
    planner.reload(paths, lambda _: cadence, born)
    if grown:
        simulate(planner, born, YOUNG_S, lambda at: look(planner, paths, at))
        look(planner, paths, now)
    return planner


def look(planner, paths, at):
    for line in {path.line.name for path in paths}:
        planner.set_activity(line, False, at)


def simulate(planner, start, seconds, on_step=None):
    """[(time, job)] of everything that fires, asked exactly when the planner wants to be."""
    fired = []
    now = start
    while True:
        deadline = planner.next_deadline()
        if deadline is None or deadline > start + seconds:
            return fired
        now = max(now, deadline)
        if on_step:
            on_step(now)
        fired += [(now, job) for job in planner.due(now)]


def times(fired, kind, path=None):
    return [t for t, job in fired if job.kind is kind and path in (None, job.path.name)]


def test_fires_on_a_fixed_grid_with_a_quarter_of_jitter():
    (path,) = paths_of(1)
    fired = times(simulate(planner_of([path], costs=SMALL), 1000.0, 900), Kind.ICMP)
    gaps = [(b - a) / 2.0 for a, b in itertools.pairwise(fired[1:])]
    assert all(0.75 <= gap <= 1.25 for gap in gaps)
    assert max(gaps) > 1.1
    assert min(gaps) < 0.9
    assert abs(len(fired) - 450) <= 2  # jitter never adds up to drift


def test_asks_again_whether_or_not_anyone_answered_and_skips_what_was_missed():
    planner = planner_of(paths_of(1), costs=SMALL)
    simulate(planner, 1000.0, 5)
    late = planner.due(1060.0)  # a minute of blockage is one probe, not sixty
    assert len(late) == 1
    assert planner.next_deadline() > 1060.0


def test_paths_of_a_line_look_at_it_in_turn_without_a_gap():
    planner = planner_of(paths_of(5), Cadence(icmp_active_s=1.0), costs=SMALL)
    busy = lambda now: planner.set_activity("cn2", True, now)  # noqa: E731 - as short as it is
    busy(1000.0)
    fired = [t for t in times(simulate(planner, 1000.0, 120, busy), Kind.ICMP) if t > 1002]
    gaps = [b - a for a, b in itertools.pairwise(fired)]
    assert max(gaps) <= 0.2 + 0.25 + 1e-9  # a slot and twice the jitter
    assert sum(gaps) / len(gaps) == pytest.approx(0.2, rel=0.03)


def test_every_path_is_measured_in_the_first_second():
    fired = simulate(planner_of(paths_of(12), costs=SMALL, grown=False), 1000.0, 1.0)
    assert {job.path.name for _, job in fired} == {p.name for p in paths_of(12)}


def test_reload_keeps_the_phase_and_the_deadline_of_what_stays():
    planner = planner_of(paths_of(3), costs=SMALL)
    fired = simulate(planner, 1000.0, 10)
    last = {p.name: times(fired, Kind.ICMP, p.name)[-1] for p in paths_of(3)}
    planner.reload([*paths_of(2), *paths_of(2, start=7)], lambda _: Cadence(), 1010.0)
    after = simulate(planner, 1010.0, 8)
    for path in paths_of(2):
        first = times(after, Kind.ICMP, path.name)[0]
        assert planner.interval_s(path.name, Kind.ICMP) == pytest.approx(6.0, rel=0.1)
        assert 2.5 < first - last[path.name] < 8.0  # 4.3 s were the period of three
    assert not times(after, Kind.ICMP, paths_of(3)[2].name)
    assert times(after, Kind.ICMP, paths_of(1, start=7)[0].name)


@given(kept=st.sets(st.integers(0, 20), max_size=8), fresh=st.sets(st.integers(21, 40), max_size=8))
def test_phases_stay_and_new_ones_take_the_widest_gap(kept, fresh):
    old = spread({}, [str(i) for i in sorted(kept)])
    new = spread(old, [str(i) for i in sorted(kept | fresh)])
    assert all(new[name] == phase for name, phase in old.items())
    assert all(0 <= phase < 1 for phase in new.values())
    assert len(set(new.values())) == len(new)
    if new:
        ring = sorted(new.values())
        widest = max(b - a for a, b in itertools.pairwise([*ring, ring[0] + 1]))
        assert widest <= 2 / len(new) + 1e-9


def test_a_waiting_exchange_speeds_its_line_up_at_once_and_only_that_line():
    cn2, bgp = paths_of(1), paths_of(1, line=Line("bgp"))
    planner = planner_of(cn2 + bgp, costs=SMALL)
    simulate(planner, 1000.0, 10.0)
    planner.set_activity("cn2", True, 1010.0)
    assert planner.next_deadline() <= 1010.0 + 0.3

    def keep_busy(now):
        planner.set_activity("cn2", True, now)
        planner.set_activity("bgp", False, now)

    fired = simulate(planner, 1010.0, 10, keep_busy)
    assert len(times(fired, Kind.ICMP, cn2[0].name)) == pytest.approx(50, abs=3)
    assert len(times(fired, Kind.ICMP, bgp[0].name)) == pytest.approx(10, abs=2)  # STANDBY


def test_pace_falls_back_after_a_hold_so_that_short_requests_do_not_flap():
    planner = planner_of(paths_of(1), costs=SMALL)
    planner.set_activity("cn2", True, 1000.0)
    planner.set_activity("cn2", False, 1001.9)
    assert planner.interval_s("cn2>u/e0", Kind.ICMP) == 0.2
    planner.set_activity("cn2", False, 1002.1)
    assert planner.interval_s("cn2>u/e0", Kind.ICMP) == 0.4
    planner.set_activity("cn2", False, 1000.1 + HOLD_S + RECENT_S)
    assert planner.interval_s("cn2>u/e0", Kind.ICMP) == 2.0


@pytest.mark.parametrize(
    ("kind", "idle", "standby", "recent", "doubted", "active", "stirred"),
    [
        (Kind.ICMP, 2.0, 1.0, 0.4, 0.5, 0.2, 0.1),
        (Kind.PING, 15.0, 15.0, 15.0, 0.5, 0.2, 0.2),
        (Kind.TCP, 60.0, 5.0, 5.0, 1.0, 1.0, 0.2),
        (Kind.QUIC, 900.0, 30.0, 30.0, 30.0, 30.0, 30.0),
        (Kind.HTTP, 900.0, 30.0, 30.0, 3.0, 30.0, 30.0),
    ],
)
def test_the_default_periods(kind, idle, standby, recent, doubted, active, stirred):
    cadence = Cadence()
    assert period_s(kind, cadence, Pace.IDLE) == idle
    assert period_s(kind, cadence, Pace.STANDBY) == standby
    assert period_s(kind, cadence, Pace.RECENT) == recent
    assert period_s(kind, cadence, Pace.DOUBTED) == doubted
    assert period_s(kind, cadence, Pace.ACTIVE) == active
    assert period_s(kind, cadence, Pace.STIRRED) == stirred


def test_where_icmp_is_mute_connects_and_pings_speak():
    cadence, mute, alone = Cadence(), frozenset({Kind.ICMP}), frozenset({Kind.ICMP, Kind.PING})
    assert period_s(Kind.TCP, cadence, Pace.STANDBY, mute) == 1.0
    assert period_s(Kind.TCP, cadence, Pace.RECENT, mute) == 0.5
    assert period_s(Kind.PING, cadence, Pace.RECENT, mute) == 1.0
    assert period_s(Kind.TCP, cadence, Pace.ACTIVE, mute) == 1.0
    assert period_s(Kind.TCP, cadence, Pace.ACTIVE, alone) == 0.2
    assert period_s(Kind.TCP, cadence, Pace.STIRRED, alone) == 0.1
    assert period_s(Kind.TCP, Cadence(tcp_s=None), Pace.ACTIVE, alone) is None
    quic = frozenset({Kind.KERNEL})
    assert period_s(Kind.PING, cadence, Pace.STIRRED, quic) == 0.1
    assert period_s(Kind.PING, cadence, Pace.ACTIVE, quic) == 0.2


def test_a_path_that_lost_its_voices_is_asked_by_connects_at_once():
    planner = planner_of(paths_of(1), costs={Kind.ICMP: 112, Kind.TCP: 420})
    planner.set_activity("cn2", True, 1000.0)
    simulate(planner, 1000.0, 3, lambda now: planner.set_activity("cn2", True, now))
    planner.set_lacks("cn2>u/e0", frozenset({Kind.ICMP, Kind.PING}), 1003.0)
    fired = simulate(planner, 1003.0, 2, lambda now: planner.set_activity("cn2", True, now))
    assert len(times(fired, Kind.TCP)) >= 8


def test_a_doubted_path_is_asked_end_to_end_soon_but_not_for_ever():
    cadence = Cadence()
    assert period_s(Kind.HTTP, cadence, Pace.ACTIVE_DOUBTED) == 3.0
    assert period_s(Kind.ICMP, cadence, Pace.ACTIVE_DOUBTED) == 0.2
    assert period_s(Kind.HTTP, Cadence(http_s=None), Pace.DOUBTED) is None
    assert period_s(Kind.HTTP, Cadence(http_s=1.0), Pace.DOUBTED) == 1.0
    planner = planner_of(paths_of(1) + paths_of(1, line=Line("bgp")))
    busy = lambda at: planner.set_activity("bgp", True, at)  # noqa: E731 - as short as it is
    busy(1000.0)
    assert planner.set_activity("cn2", False, 1000.0, doubted=True) is Pace.DOUBTED
    assert planner.set_activity("cn2", True, 1001.0, doubted=True) is Pace.ACTIVE_DOUBTED
    busy(1061.0)
    assert planner.set_activity("cn2", False, 1061.0, doubted=True) is Pace.STANDBY
    busy(1070.0)
    planner.stir("cn2", 1070.0)  # a sign of life
    assert planner.set_activity("cn2", False, 1070.1, doubted=True) is Pace.STIRRED
    assert planner.set_activity("cn2", False, 1074.0, doubted=True) is Pace.DOUBTED
    assert period_s(Kind.QUIC, cadence, Pace.DOUBTED) == 30.0
    assert period_s(Kind.QUIC, cadence, Pace.DOUBTED, udp_only=True) == 3.0
    assert period_s(Kind.QUIC, cadence, Pace.ACTIVE, udp_only=True) == 30.0


def test_a_stir_asks_every_kind_within_a_tenth_of_a_second():
    costs = {Kind.ICMP: 112, Kind.TCP: 420, Kind.PING: 182, Kind.HTTP: 8192}
    planner = planner_of(paths_of(2) + paths_of(1, line=Line("bgp")), costs=costs)
    planner.reload(paths_of(2) + paths_of(1, line=Line("bgp")), lambda _: Cadence(), 1000.0)
    simulate(planner, 1000.0, 100)
    planner.set_activity("bgp", True, 1099.5)
    planner.set_activity("cn2", False, 1099.5)
    simulate(planner, 1099.5, 0.5)
    planner.stir("cn2", 1100.0)
    fired = simulate(planner, 1100.0, 0.14)
    fired = [(at, job) for at, job in fired if job.path.line.name == "cn2"]
    assert len(times(fired[:3], Kind.TCP)) == 2
    assert {job.kind for _, job in fired} == {Kind.TCP, Kind.PING, Kind.ICMP}
    gaps = [b - a for a, b in itertools.pairwise(times(fired, Kind.TCP))]
    assert min(gaps) >= 0.9 * VOLLEY_SPACING_S


def test_a_sign_of_life_of_a_path_that_is_down_is_followed_up_end_to_end():
    costs = {Kind.ICMP: 112, Kind.TCP: 420, Kind.HTTP: 8192}
    planner = planner_of(paths_of(1), costs=costs)
    planner.set_activity("cn2", True, 1070.0, doubted=True)
    planner.stir("cn2", 1071.0)
    assert times(simulate(planner, 1071.0, 0.3), Kind.HTTP)


ALL_COSTS = {Kind.ICMP: 112, Kind.PING: 354, Kind.TCP: 420, Kind.QUIC: 9000, Kind.HTTP: 8192}


def idle_for(planner, start, seconds, **state):
    """What is asked of an idle line in this state."""
    look_at = lambda at: planner.set_activity("cn2", False, at, **state)  # noqa: E731 - short
    look_at(start)
    return simulate(planner, start, seconds, look_at)


def test_a_doubt_about_an_idle_line_buys_one_packet_and_another_while_it_is_unanswered():
    planner = planner_of(paths_of(1), costs=ALL_COSTS)
    simulate(planner, 1000.0, 100)
    planner.stir("cn2", 1100.0)
    fired = idle_for(planner, 1100.0, 0.35, silent=True)
    assert [job.kind for _, job in fired] == [Kind.ICMP]
    assert idle_for(planner, 1100.36, 1.0) == [], "it was answered"
    planner.stir("cn2", 1110.0)
    fired = idle_for(planner, 1110.0, 1.2, silent=True)
    assert {job.kind for _, job in fired} == {Kind.ICMP, Kind.PING, Kind.TCP}
    assert 6 <= len(fired) <= 9


def test_an_idle_line_that_stays_silent_spends_no_more_than_its_purse():
    planner = planner_of(paths_of(1), costs=ALL_COSTS)
    simulate(planner, 1000.0, 100)
    hours = 2
    fired = idle_for(planner, 1100.0, hours * 3600, silent=True, doubted=True)
    spent = sum(ALL_COSTS[job.kind] for _, job in fired)
    assert spent <= IDLE_BYTES_S * hours * 3600 + PURSE_BYTES + ALL_COSTS[Kind.QUIC]
    assert len([at for at, _ in fired if at < 1102.0]) >= 6


def test_an_idle_line_without_a_connection_to_ping_is_asked_end_to_end():
    planner = planner_of(paths_of(1), costs=ALL_COSTS)
    simulate(planner, 1000.0, 100)
    planner.set_lacks("cn2>u/e0", frozenset({Kind.PING}), 1100.0)
    dead = idle_for(planner, 1100.0, 5.0, silent=True, doubted=True, dead=True)
    assert not times(dead, Kind.HTTP), "the purse is kept for a sign of life"
    planner.stir("cn2", 1105.0)
    fired = idle_for(planner, 1105.0, 5.0, silent=True, doubted=True)
    assert len(times(fired, Kind.HTTP)) == 1
    assert not times(fired, Kind.PING)[1:]


def test_an_exchange_that_begins_in_doubt_asks_all_at_once():
    planner = planner_of(paths_of(1), costs=ALL_COSTS)
    simulate(planner, 1000.0, 100)
    idle_for(planner, 1100.0, 0.1, silent=True)
    assert planner.set_activity("cn2", True, 1100.1, silent=True) is Pace.STIRRED
    fired = simulate(planner, 1100.1, 0.1)
    assert {job.kind for _, job in fired} == {Kind.TCP, Kind.PING, Kind.ICMP}


def test_a_change_of_this_hosts_network_asks_all_at_once_on_idle_lines_too():
    planner = planner_of(paths_of(1), costs=ALL_COSTS)
    simulate(planner, 1000.0, 100)
    planner.ask("cn2", 1100.0)
    fired = simulate(planner, 1100.0, 0.1)
    assert {job.kind for _, job in fired} == {Kind.TCP, Kind.PING, Kind.ICMP}


def test_what_was_due_soon_is_put_off_when_a_line_becomes_idle():
    planner = planner_of(paths_of(1), costs=ALL_COSTS)
    planner.set_activity("cn2", True, 1000.0)
    at = 1000.0 + HOLD_S + RECENT_S + 0.1
    simulate(planner, 1000.0, at - 1000.0, lambda at: planner.set_activity("cn2", False, at))
    planner.set_activity("cn2", False, at)
    fired = simulate(planner, at, 120.0)
    assert not times(fired, Kind.HTTP)
    assert not times(fired, Kind.QUIC)


@pytest.mark.parametrize("count", [1, 3, 20])
def test_an_idle_line_costs_less_than_10_mb_a_day(count):
    costs = ALL_COSTS
    planner = planner_of(paths_of(count), costs=costs)
    simulate(planner, 1000.0, 60)
    day = 6 * 3600
    fired = simulate(planner, 1060.0, day)
    assert sum(costs[job.kind] for _, job in fired) < 10e6 * day / 86_400
    assert sum(costs[job.kind] for _, job in fired) > 0.8 * ROUTINE_BYTES_S * day
    icmp = times(fired, Kind.ICMP)
    assert max(b - a for a, b in itertools.pairwise(icmp)) < 5.6


def test_null_periods_and_missing_protocols_mean_no_probe():
    cadence = Cadence(icmp_s=None, http_s=None)
    (path,) = paths_of(1, protocols=(Carrier.H2,))
    fired = simulate(planner_of([path], cadence), 1000.0, 60)
    assert {job.kind for _, job in fired} == {Kind.TCP}


def test_the_cap_is_the_smaller_of_rate_and_share_and_the_strictest_policy():
    slow = Line("4g", capacity_bps=1e6)
    assert cap_bytes_s(slow, [Cadence()]) == 1250
    assert cap_bytes_s(Line("x"), [Cadence(), Cadence(cap_kbit_s=8)]) == 1000


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 40),
    kbit_s=st.sampled_from([4.0, 16.0, 64.0]),
    busy=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_no_window_ever_sees_more_bytes_than_the_cap_allows(count, kbit_s, busy, seed):
    cadence = Cadence(cap_kbit_s=kbit_s)
    planner = planner_of(paths_of(count), cadence, seed=seed)
    fired = simulate(
        planner, 1000.0, 120, lambda now: planner.set_activity("cn2", busy, now) if busy else None
    )
    rate = HEADROOM * kbit_s * 125
    depth = max(2 * rate, 8192 + 0.5 * rate)
    sent = [(t, COSTS[job.kind]) for t, job in fired]
    # The worst window that ends at each probe, in one pass.
    level, before = 0.0, 1000.0
    for t, cost in sent:
        level = max(0.0, level - (t - before) * rate) + cost
        before = t
        assert level <= depth + 1e-6
    long_run = sum(cost for t, cost in sent if t > 1030) / 90
    assert long_run <= kbit_s * 125 * 1.05


def test_where_something_stirs_all_the_time_paths_are_still_asked_end_to_end():
    paths = paths_of(8)
    planner = planner_of(paths)
    stirred_at = 0.0

    def step(at):
        nonlocal stirred_at
        planner.set_activity("cn2", True, at, doubted=True)
        if at - stirred_at >= 1.0:
            stirred_at = at
            planner.stir("cn2", at)

    fired = simulate(planner, 1000.0, 90.0, step)
    asked = defaultdict(list)
    for at, job in fired:
        if job.kind is Kind.HTTP:
            asked[job.path.name].append(at)
    assert asked.keys() == {path.name for path in paths}


def test_under_the_cap_every_kind_still_gets_its_turn():
    planner = planner_of(paths_of(10), Cadence(cap_kbit_s=16))
    planner.set_activity("cn2", True, 1000.0)
    fired = simulate(planner, 1000.0, 600, lambda now: planner.set_activity("cn2", True, now))
    count = defaultdict(int)
    for _, job in fired:
        count[job.kind] += 1
    assert set(count) == set(COSTS)
    stretch = planner.interval_s("cn2>u/e0", Kind.ICMP) / 0.2
    assert stretch > 1
    assert count[Kind.HTTP] == pytest.approx(600 / 30 / stretch * 10, rel=0.35)


def test_an_expensive_probe_does_not_hold_up_a_cheap_one():
    planner = planner_of(paths_of(3), Cadence(icmp_active_s=1.0))
    planner.set_activity("cn2", True, 1000.0)
    fired = simulate(planner, 1000.0, 300, lambda now: planner.set_activity("cn2", True, now))
    fired = [t for t in times(fired, Kind.ICMP) if t > 1005]
    assert max(b - a for a, b in itertools.pairwise(fired)) < 0.75


def test_timeouts_follow_what_the_path_needs_within_bounds():
    assert timeout_s(Kind.ICMP, None) == 1.0
    assert timeout_s(Kind.ICMP, Estimate(rtt_s=0.01, rttvar_s=0.001)) == 1.0
    assert timeout_s(Kind.ICMP, Estimate(rtt_s=0.9, rttvar_s=0.05)) == pytest.approx(1.2)
    assert timeout_s(Kind.ICMP, Estimate(rtt_s=3.0)) == 3.0


# --- the driver -------------------------------------------------------------------------------


class Quiet:
    def __init__(self, busy=False):
        self.busy = busy

    def waiting(self, line):
        return self.busy

    stirs = 0

    def doubted(self, line):
        return False

    def silent(self, line):
        return False

    def dead(self, line):
        return False

    def stirred(self, line):
        return self.stirs


class Awaited:
    kind = Kind.TCP
    cost_bytes = 100

    def __init__(self, answer=None, hang=False):
        self.answer, self.hang, self.runs, self.ended = answer, hang, 0, 0

    async def run(self, path, *, timeout_s):
        self.runs += 1
        try:
            if self.hang:
                await asyncio.Event().wait()
            if isinstance(self.answer, Exception):
                raise self.answer
            return [Sample(path.name, Kind.TCP, 0.0, 0.01)]
        finally:
            self.ended += 1


class Plain:
    kind = Kind.ICMP
    cost_bytes = 100

    def __init__(self):
        self.begun = 0

    def start(self, path, *, timeout_s, report):
        self.begun += 1
        report(Sample(path.name, Kind.ICMP, 0.0, None, Outcome.TIMEOUT))

    async def run(self, path, *, timeout_s):
        raise AssertionError("a startable probe needs no task")


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def fast(**more):
    return Cadence(icmp_s=0.02, icmp_active_s=0.02, tcp_s=0.02, cap_kbit_s=1e6, **more)


def test_the_driver_starts_what_is_due_reports_and_leaves_nothing_behind():
    async def main():
        got = []
        hanging, plain = Awaited(hang=True), Plain()
        scheduler = Scheduler({Kind.TCP: hanging, Kind.ICMP: plain}, Quiet(busy=True), got.append)
        scheduler.reload(paths_of(2), lambda _: fast())
        task = asyncio.create_task(scheduler.run())
        await until(lambda: hanging.runs > 5 and plain.begun > 5)
        assert {s.kind for s in got} == {Kind.ICMP}
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert hanging.ended == hanging.runs
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_broken_probe_is_told_of_and_the_others_carry_on(caplog):
    async def main():
        plain = Plain()
        broken = Awaited(answer=ValueError("bug"))
        scheduler = Scheduler(
            {Kind.TCP: broken, Kind.ICMP: plain}, Quiet(busy=True), lambda _: None
        )
        scheduler.reload(paths_of(1), lambda _: fast())
        task = asyncio.create_task(scheduler.run())
        await until(lambda: broken.runs > 3 and plain.begun > 3)
        task.cancel()

    asyncio.run(main())
    assert "probe tcp of cn2>u/e0 broke: ValueError('bug')" in caplog.text


def test_a_bug_in_the_receiver_ends_run_with_that_error():
    async def main():
        def report(_):
            raise KeyError("table")

        scheduler = Scheduler({Kind.ICMP: Plain()}, Quiet(), report)
        scheduler.reload(paths_of(1), lambda _: fast())
        with pytest.raises(KeyError):
            await asyncio.wait_for(scheduler.run(), 5)

    asyncio.run(main())


def test_a_nudge_is_seen_in_the_next_turn():
    async def main():
        activity, plain = Quiet(), Plain()
        scheduler = Scheduler({Kind.ICMP: plain}, activity, lambda _: None)
        scheduler.reload(
            paths_of(1), lambda _: Cadence(icmp_s=1000, icmp_active_s=0.01, cap_kbit_s=1e6)
        )
        task = asyncio.create_task(scheduler.run())
        await until(lambda: plain.begun >= 1)
        activity.busy = True
        scheduler.nudge()
        scheduler.nudge()
        await until(lambda: plain.begun > 3)
        assert scheduler.interval_s("cn2>u/e0", Kind.ICMP) == 0.01
        task.cancel()

    asyncio.run(main())


class Eyes:
    """A watch whose next look is due when it says."""

    def __init__(self):
        self.looks, self.due = 0, None

    def look(self, now):
        self.looks += 1
        self.due = None

    def next_due(self):
        return self.due


def test_connections_are_looked_at_only_while_an_exchange_waits_and_when_one_is_overdue():
    async def main():
        activity, eyes, now = Quiet(), Eyes(), [1000.0]
        scheduler = Scheduler({}, activity, lambda _: None, watch=eyes, clock=lambda: now[0])
        scheduler.reload(paths_of(1), lambda _: Cadence())
        task = asyncio.create_task(scheduler.run())

        async def turn():
            scheduler.nudge()
            await asyncio.sleep(0)
            await asyncio.sleep(0)

        await turn()
        assert not eyes.looks
        activity.busy = True
        await turn()
        assert eyes.looks == 1
        await turn()
        assert eyes.looks == 1  # no sooner than 50 ms later
        eyes.due = now[0] + 0.02
        now[0] += 0.021
        await turn()
        assert eyes.looks == 2
        task.cancel()

    asyncio.run(main())


def test_a_stir_is_passed_on_once_and_mute_paths_are_asked_for():
    async def main():
        activity, plain, now = Quiet(), Plain(), [1000.0]
        alone = frozenset({Kind.ICMP, Kind.PING})
        scheduler = Scheduler(
            {Kind.ICMP: plain}, activity, lambda _: None, lacks=lambda _: alone,
            clock=lambda: now[0],
        )  # fmt: skip
        scheduler.reload(paths_of(1), lambda _: Cadence())
        task = asyncio.create_task(scheduler.run())
        await asyncio.sleep(0)
        begun = plain.begun
        activity.stirs = 1
        for _ in range(2):
            scheduler.nudge()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert plain.begun == begun + 1
        assert scheduler.interval_s("cn2>u/e0", Kind.ICMP) == 0.1
        task.cancel()

    asyncio.run(main())


def test_fifty_busy_paths_cost_little_cpu():
    planner = planner_of(paths_of(50), Cadence(cap_kbit_s=10000))
    steps = 0

    def on_step(now):
        nonlocal steps
        steps += 1
        planner.set_activity("cn2", True, now)

    fired = simulate(planner, 1000.0, 20, on_step)
    assert len(fired) > 5000  # 250 echoes a second and the rest
    assert steps <= len(fired) + 100  # never asked in vain
