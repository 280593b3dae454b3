"""The table: samples in, snapshots, rankings and changes out."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged import inventory
from edged.table import PathTable
from policies.model import (
    Blame,
    Breaker,
    Carrier,
    Endpoint,
    Kind,
    Line,
    Location,
    Outcome,
    RequestClass,
    Sample,
    Topology,
    Verdict,
)
from policies.schema import Failover, Policy

SMALL = RequestClass.of(1024)
RTT = {"cn2": 0.060, "bgp": 0.150, "hk": 0.200}


def endpoint(name="e1", upstream="u", **more):
    return Endpoint(upstream, name, "https", f"{name}.test", 443, **more)


def topology(lines=("cn2", "bgp"), endpoints=("e1",), node=None):
    return Topology(node, tuple(Line(n) for n in lines), tuple(endpoint(e) for e in endpoints))


class Bench:
    """A table and its clock."""

    def __init__(self, topo=None, **more):
        self.now = 100.0
        self.choices = []
        self.changes = []
        self.table = PathTable(
            topo or topology(),
            {"u": Policy()},
            self.now,
            rng=random.Random(7),
            on_choice=self.choices.append,
            **more,
        )
        self.table.subscribe(self.changes.append)

    def sample(self, path, kind=Kind.TCP, outcome=Outcome.OK, rtt_s=None, **more):
        if outcome is Outcome.OK and rtt_s is None:
            rtt_s = RTT[path.partition(">")[0]]
        sent_at = self.now - (rtt_s or 0.0)
        self.table.observe(Sample(path, kind, sent_at, rtt_s, outcome, **more), self.now)

    def warm_up(self, seconds=5.0):
        """Good samples on all paths."""
        until = self.now + seconds
        while self.now < until:
            self.now += 0.1
            for path in self.table.snapshot.paths:
                self.sample(path)
                self.sample(path, Kind.TLS)

    def first(self, cls=SMALL, upstream="u"):
        return self.table.ranking(upstream, cls).order[0].state.path.line.name


@pytest.fixture
def bench():
    b = Bench()
    b.warm_up()
    return b


def test_every_path_is_there_from_the_start():
    b = Bench(topology(endpoints=("e1", "e2")))
    assert set(b.table.snapshot.paths) == {
        f"{line}>u/{e}" for line in ("cn2", "bgp") for e in ("e1", "e2")
    }
    assert b.table.snapshot.upstreams == {"u": ("cn2>u/e1", "bgp>u/e1", "cn2>u/e2", "bgp>u/e2")}
    ranking = b.table.ranking("u", SMALL)
    assert len(ranking.order) == 4
    assert ranking.decided_by


def test_unknown_upstreams_and_paths():
    b = Bench()
    with pytest.raises(KeyError):
        b.table.ranking("nobody", SMALL)
    b.sample("nowhere>u/e1", rtt_s=0.1)
    b.table.started("nowhere>u/e1")
    b.table.finished("nowhere>u/e1")
    b.table.set_warm("nowhere>u/e1", Carrier.H2)
    b.table.sent("nowhere>u/e1", Kind.TCP, b.now)
    assert not b.table.waiting("nowhere")


def test_the_better_line_is_chosen(bench):
    assert bench.first() == "cn2"
    state = bench.table.snapshot.paths["cn2>u/e1"]
    assert state.estimate.rtt_s == pytest.approx(0.060)
    assert state.verdict is Verdict.UP


def test_a_ranking_is_memoised_per_snapshot(bench):
    first = bench.table.ranking("u", SMALL)
    assert bench.table.ranking("u", SMALL) is first
    assert bench.table.peek("u", SMALL) is first
    bench.now += 0.2
    bench.sample("cn2>u/e1")
    assert bench.table.ranking("u", SMALL) is not first


def test_the_traffic_of_one_upstream_does_not_rank_another_anew():
    endpoints = (endpoint(), endpoint(upstream="v"))
    b = Bench(Topology(None, (Line("cn2"), Line("bgp")), endpoints))
    b.warm_up()
    b.now += 0.2
    b.table.tick(b.now)
    other = b.table.ranking("v", SMALL)
    b.now += 0.2
    b.sample("cn2>u/e1")
    assert b.table.ranking("v", SMALL) is other
    b.now += 5.0
    b.table.tick(b.now)
    assert b.table.ranking("v", SMALL) is not other, "regret and decay go on"


def test_pure_estimates_republish_at_most_every_100_ms(bench):
    serials = set()
    for _ in range(1000):
        bench.now += 0.001
        bench.sample("cn2>u/e1")
        serials.add(bench.table.snapshot.serial)
    assert 9 <= len(serials) <= 12


def test_a_snapshot_is_immutable_history(bench):
    old = bench.table.snapshot
    bench.sample("cn2>u/e1", outcome=Outcome.UNREACHABLE)
    assert old.paths["cn2>u/e1"].verdict is Verdict.UP
    assert bench.table.snapshot.paths["cn2>u/e1"].verdict is Verdict.DOWN
    assert bench.table.snapshot.serial > old.serial


def test_a_verdict_publishes_and_tells_in_the_same_call(bench):
    seen = []

    def look(change):
        seen.append((change, bench.table.snapshot.paths[change.path].verdict, bench.first()))

    bench.table.subscribe(look)
    bench.sample("cn2>u/e1", outcome=Outcome.UNREACHABLE)
    ((change, verdict, first),) = seen
    assert (change.path, change.new, change.blame) == ("cn2>u/e1", Verdict.DOWN, Blame.LINE)
    assert verdict is Verdict.DOWN
    assert first == "bgp"
    assert bench.table.line_verdict("cn2") is Verdict.DOWN


def test_all_changes_of_a_line_are_in_place_before_the_first_is_told():
    b = Bench(topology(endpoints=("e1", "e2", "e3")))
    b.warm_up()
    worst = []
    b.table.subscribe(
        lambda _: worst.append(
            {s.verdict for s in b.table.snapshot.paths.values() if s.path.line.name == "cn2"}
        )
    )
    b.sample("cn2>u/e1", outcome=Outcome.UNREACHABLE)
    assert len(worst) == 3
    assert all(verdicts == {Verdict.DOWN} for verdicts in worst)


def test_a_subscriber_may_report_samples(bench):
    order = []

    def react(change):
        order.append(change.path)
        if change.path == "cn2>u/e1":
            bench.sample("bgp>u/e1", outcome=Outcome.UNREACHABLE)
            order.append("end of the first")

    bench.table.subscribe(react)
    bench.sample("cn2>u/e1", outcome=Outcome.UNREACHABLE)
    assert order == ["cn2>u/e1", "end of the first", "bgp>u/e1"]
    assert len(bench.table.ranking("u", SMALL).order) == 2, "never empty"
    assert "last resort" in bench.table.ranking("u", SMALL).decided_by


def test_a_choice_is_reported_once_with_both_scores(bench):
    bench.first()
    bench.sample("cn2>u/e1", outcome=Outcome.UNREACHABLE)
    bench.first()
    bench.first()
    (choice,) = bench.choices
    assert (choice.old.state.path.line.name, choice.new.state.path.line.name) == ("cn2", "bgp")
    assert choice.old.filtered == "down"
    line = str(choice)
    assert line.startswith("u: cn2>u/e1 ")
    assert "bgp>u/e1 " in line
    assert line.count("rtt ") == 2
    assert "cn2>u/e1 is down" in line


def test_silence_needs_announced_slots_and_ticks():
    b = Bench()
    b.warm_up()
    for _ in range(40):
        b.now += 0.1
        b.table.sent("cn2>u/e1", Kind.TLS, b.now)
        b.sample("bgp>u/e1")
        b.table.tick(b.now)
        if b.changes:
            break
    assert b.changes[0].path == "cn2>u/e1"
    assert b.first() == "bgp"
    assert b.table.doubted("cn2")
    assert not b.table.doubted("bgp")


def test_next_deadline_leads_through_silence_without_traffic():
    b = Bench()
    b.warm_up()
    for _ in range(10):
        b.now += 0.1
        b.table.sent("cn2>u/e1", Kind.TLS, b.now)
    ticks = 0
    while (due := b.table.next_deadline()) is not None and ticks < 100:
        b.now = max(b.now, due)
        b.table.tick(b.now)
        ticks += 1
    assert b.changes
    assert ticks < 100


def test_loop_lag_convicts_nobody():
    b = Bench()
    b.warm_up()
    for _ in range(10):
        b.table.sent("cn2>u/e1", Kind.TLS, b.now)
        b.now += 0.02
    b.now += 5.0
    b.table.tick(b.now, lag_s=5.0)
    assert not b.changes


def test_live_gauges(bench):
    table = bench.table
    assert not table.waiting("cn2")
    table.started("cn2>u/e1")
    table.started("cn2>u/e1")
    assert table.waiting("cn2")
    bench.now += 0.2
    table.tick(bench.now)
    assert table.snapshot.paths["cn2>u/e1"].in_flight == 2
    table.finished("cn2>u/e1")
    table.finished("cn2>u/e1")
    table.finished("cn2>u/e1")
    assert not table.waiting("cn2")
    table.set_warm("bgp>u/e1", Carrier.H2)
    bench.now += 0.2
    table.tick(bench.now)
    assert table.snapshot.paths["bgp>u/e1"].warm is Carrier.H2
    assert table.snapshot.paths["cn2>u/e1"].in_flight == 0


def test_three_local_failures_open_the_breaker_and_good_ones_close_it():
    b = Bench(topology(endpoints=("e1", "e2")))
    b.warm_up()
    for _ in range(3):
        b.now += 0.01
        b.sample("cn2>u/e1", Kind.TTFB, Outcome.TIMEOUT)
    state = b.table.snapshot.paths["cn2>u/e1"]
    assert state.breaker is Breaker.OPEN
    assert "timeout" in state.reason
    assert b.table.doubted("cn2")
    b.now += 2.0
    b.sample("cn2>u/e1")
    assert b.table.snapshot.paths["cn2>u/e1"].breaker is Breaker.HALF_OPEN
    b.sample("cn2>u/e1")
    b.sample("cn2>u/e1")
    assert b.table.snapshot.paths["cn2>u/e1"].breaker is Breaker.CLOSED


def test_a_breaker_that_opens_or_closes_is_told_once_and_why():
    told = []
    b = Bench(on_gate=lambda path, why: told.append((path, why)))
    b.warm_up()
    for _ in range(3):
        b.now += 0.01
        b.sample("cn2>u/e1", Kind.TCP, Outcome.NO_NAME)
    assert told == [("cn2>u/e1", "3 failures in a row, the last: no_name")]
    for _ in range(3):  # half open, and shut again: nothing new to tell
        b.now += 40.0
        b.sample("cn2>u/e1")
        b.sample("cn2>u/e1", Kind.TCP, Outcome.NO_NAME)
    assert len(told) == 1
    b.now += 40.0
    for _ in range(3):
        b.sample("cn2>u/e1")
    assert told[1:] == [("cn2>u/e1", "")]


def test_an_untested_breaker_half_opens_by_its_deadline(bench):
    for _ in range(3):
        bench.sample("bgp>u/e1", Kind.TTFB, Outcome.TIMEOUT)
    for _ in range(10):
        due = bench.table.next_deadline()
        if due is None:
            break
        bench.now = max(due, bench.now)
        bench.table.tick(bench.now)
    assert bench.table.snapshot.paths["bgp>u/e1"].breaker is Breaker.HALF_OPEN


def test_a_path_that_succeeds_far_less_often_is_gated_without_three_failures_in_a_row():
    b = Bench()
    b.warm_up()
    for i in range(60):
        b.now += 0.2
        b.sample("bgp>u/e1")
        outcome = Outcome.RESET if i % 2 else Outcome.OK
        b.sample("cn2>u/e1", Kind.TTFB, outcome, rtt_s=0.06 if outcome is Outcome.OK else None)
        if b.table.snapshot.paths["cn2>u/e1"].breaker is Breaker.OPEN:
            break
    state = b.table.snapshot.paths["cn2>u/e1"]
    assert state.breaker is Breaker.OPEN
    assert "far less often" in state.reason
    assert b.first() == "bgp"


def test_a_full_line_is_stepped_around_by_big_bodies():
    lines = (Line("cn2", capacity_bps=1e7), Line("bgp", capacity_bps=1e8))
    b = Bench(Topology(None, lines, (endpoint(),)))
    b.warm_up()
    big = RequestClass.of(64 << 20)
    b.table.set_line_usage("cn2", 9.9e6)
    b.now += 0.2
    b.table.set_warm("cn2>u/e1", Carrier.H2)
    b.table.set_warm("bgp>u/e1", Carrier.H2)
    b.table.tick(b.now)
    assert b.first(SMALL) == "cn2"
    ranking = b.table.ranking("u", big)
    assert ranking.order[0].state.path.line.name == "bgp"
    assert ranking.order[1].filtered == "hot"


def test_looking_counts_nothing(bench):
    for _ in range(100):
        bench.table.peek("u", SMALL)
    assert bench.table._entries[("u", SMALL)].requests == 0


def test_thousands_of_exchanges_a_second_are_one_sign_of_life_but_all_counted(bench):
    for _ in range(1000):
        bench.now += 0.0005
        bench.sample("cn2>u/e1", Kind.TTFB, rtt_s=0.5)
    bench.sample("cn2>u/e1", Kind.TTFB, Outcome.TIMEOUT)
    bench.now += 1
    bench.table.tick(bench.now)
    assert bench.table.snapshot.paths["cn2>u/e1"].ttfb_p95_s == pytest.approx(0.5, rel=0.02)
    record = bench.table._records["cn2>u/e1"]
    assert record.rate.samples(bench.now) > 950
    assert record.rate.mean > 0.99


def test_error_statuses_eject_the_endpoint_and_no_line():
    b = Bench(topology(endpoints=("e1", "e2")))
    b.warm_up()
    assert b.first() == "cn2"
    for i in range(5):
        line = ("cn2", "bgp")[i % 2]
        b.sample(f"{line}>u/e1", Kind.TTFB, Outcome.HTTP_ERROR, rtt_s=0.2)
    paths = b.table.snapshot.paths
    assert paths["cn2>u/e1"].ejected_until is not None
    assert paths["bgp>u/e1"].ejected_until is not None
    assert paths["cn2>u/e2"].usable
    assert all(s.verdict is Verdict.UP for s in paths.values())
    assert b.table.ranking("u", SMALL).order[0].state.path.name == "cn2>u/e2"
    assert "ejected" in paths["cn2>u/e1"].reason
    b.now = b.table.next_deadline() + 2.0
    b.table.tick(b.now)
    assert b.table.snapshot.paths["cn2>u/e1"].ejected_until is None


def test_busy_rests_the_endpoint_and_blames_nobody():
    b = Bench(topology(endpoints=("e1", "e2")))
    b.warm_up()
    b.sample("cn2>u/e1", Kind.TTFB, Outcome.BUSY, rtt_s=0.1, retry_after_s=5.0)
    paths = b.table.snapshot.paths
    assert paths["bgp>u/e1"].ejected_until == pytest.approx(b.now + 5.0)
    assert paths["cn2>u/e1"].breaker is Breaker.CLOSED
    assert b.table.ranking("u", SMALL).order[0].state.path.endpoint.name == "e2"


def test_this_process_running_out_of_descriptors_says_nothing(bench):
    before = bench.table.snapshot
    for _ in range(10):
        bench.now += 0.2
        bench.sample("cn2>u/e1", outcome=Outcome.LOCAL)
    assert bench.table.snapshot is before


def test_a_path_that_came_back_is_held_and_then_returned_to(bench):
    assert bench.first() == "cn2"
    bench.sample("cn2>u/e1", outcome=Outcome.UNREACHABLE)
    assert bench.first() == "bgp"
    bench.warm_up(1.0)
    held = bench.table.ranking("u", SMALL)
    assert held.order[1].filtered == "recovering"
    assert "recovering" in bench.table.snapshot.paths["cn2>u/e1"].reason
    for _ in range(100):
        bench.warm_up(0.1)
        for _ in range(3):
            first = bench.first()
        if first == "cn2":
            break
    assert first == "cn2"
    assert [c.new.state.path.line.name for c in bench.choices] == ["bgp", "cn2"]


def test_time_to_first_byte_is_the_endpoints_and_not_the_lines(bench):
    for _ in range(30):
        bench.now += 0.05
        bench.sample("cn2>u/e1", Kind.TTFB, rtt_s=4.0)
        bench.sample("cn2>u/e1")
    bench.now += 1.0
    bench.table.tick(bench.now)
    state = bench.table.snapshot.paths["bgp>u/e1"]
    assert state.ttfb_p95_s == pytest.approx(4.0, rel=0.02)
    cn2 = bench.table.snapshot.paths["cn2>u/e1"]
    assert cn2.estimate.rtt_s == pytest.approx(0.06, rel=0.05)
    assert bench.first() == "cn2"


def test_estimates_decay_without_samples(bench):
    for _ in range(20):
        bench.sample("cn2>u/e1", outcome=Outcome.TIMEOUT, kind=Kind.PING)
    loss = bench.table.snapshot.paths["cn2>u/e1"].estimate.loss
    for _ in range(200):
        bench.now += 1.0
        bench.table.tick(bench.now)
    assert bench.table.snapshot.paths["cn2>u/e1"].estimate.loss != loss


def test_distance_is_known_from_locations():
    topo = Topology(
        Location(39.9, 116.4),
        (Line("cn2"),),
        (endpoint(location=Location(1.35, 103.99)), endpoint("e2")),
    )
    paths = Bench(topo).table.snapshot.paths
    assert paths["cn2>u/e1"].distance_km == pytest.approx(4480, rel=0.01)
    assert paths["cn2>u/e2"].distance_km is None


def test_reload_keeps_what_keeps_its_name(bench):
    bench.first()
    bench.sample("cn2>u/e1", outcome=Outcome.UNREACHABLE)
    assert bench.first() == "bgp"
    policy = Policy(failover=Failover(switch_cost_rtts=99))
    bench.table.reload(topology(("cn2", "bgp", "hk"), ("e1", "e2")), bench.now, {"u": policy})
    paths = bench.table.snapshot.paths
    assert len(paths) == 6
    assert paths["cn2>u/e1"].verdict is Verdict.DOWN
    assert paths["bgp>u/e1"].estimate.rtt_s == pytest.approx(0.150)
    assert paths["hk>u/e1"].estimate.samples == 0
    assert bench.table.policy("u") is policy
    assert bench.first() == "bgp"
    bench.table.reload(topology(("bgp",)), bench.now)
    assert set(bench.table.snapshot.paths) == {"bgp>u/e1"}
    assert bench.table.policy("u") is policy
    assert not bench.table.waiting("cn2")
    bench.sample("cn2>u/e1")
    assert bench.first() == "bgp"


def test_reload_can_take_an_upstream_away(bench):
    bench.first()
    topo = Topology(None, (Line("cn2"),), (endpoint(upstream="v"),))
    bench.table.reload(topo, bench.now, {})
    with pytest.raises(KeyError):
        bench.table.ranking("u", SMALL)
    assert bench.first(upstream="v") == "cn2"


def test_an_upstream_without_any_line_ranks_empty():
    topo = Topology(None, (Line("cn2"),), (endpoint(lines=("hk",)),))
    assert Bench(topo).table.ranking("u", SMALL).order == ()


def test_an_unlisted_host_shares_the_lines_verdicts(bench):
    host = Endpoint("?", "?", "https", "example.com", 443)
    name = bench.table.ensure(host, bench.now)
    assert name == "example.com:443"
    assert bench.table.ensure(host, bench.now) == name
    assert bench.table.snapshot.upstreams[name] == tuple(
        f"{line}>example.com:443/?" for line in ("cn2", "bgp")
    )
    bench.sample("cn2>u/e1", outcome=Outcome.UNREACHABLE)
    assert bench.first(upstream=name) == "bgp"
    bench.table.reload(topology(("bgp", "hk")), bench.now)
    assert [p.line.name for p in bench.table.ranking(name, SMALL).paths] == ["bgp", "hk"]


def test_unlisted_hosts_are_bounded_and_those_in_use_stay(bench, monkeypatch):
    monkeypatch.setattr(inventory, "MOST_UNLISTED", 3)
    names = []
    for i in range(6):
        names.append(bench.table.ensure(Endpoint("?", "x", "https", f"h{i}", 443), bench.now))
        bench.table.ranking(names[-1], SMALL)
        if i == 0:
            bench.table.started("cn2>h0:443/x")
    kept = set(bench.table.snapshot.upstreams) - {"u"}
    assert kept == {"h0:443", "h4:443", "h5:443"}
    assert len(bench.table.snapshot.paths) == 2 + 3 * 2
    with pytest.raises(KeyError):
        bench.table.ranking("h1:443", SMALL)


EVENT = st.tuples(
    st.sampled_from(["cn2>u/e1", "bgp>u/e1", "cn2>u/e2", "bgp>u/e2"]),
    st.sampled_from(["sample", "sample", "sent", "tick", "start", "finish", "warm", "reload"]),
    st.sampled_from(list(Outcome)),
    st.sampled_from(list(Kind)),
    st.floats(0, 3),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(EVENT, max_size=60))
def test_invariants(events):
    b = Bench(topology(endpoints=("e1", "e2")))
    verdicts = dict.fromkeys(b.table.snapshot.paths, Verdict.UP)
    serial = b.table.snapshot.serial

    def follow(change):
        assert change.old is verdicts[change.path]
        verdicts[change.path] = change.new

    b.table.subscribe(follow)
    for path, event, outcome, kind, wait in events:
        b.now += wait
        if event == "sample":
            b.sample(path, kind, outcome)
        elif event == "sent":
            b.table.sent(path, kind, b.now)
        elif event == "tick":
            b.table.tick(b.now)
        elif event == "start":
            b.table.started(path)
        elif event == "finish":
            b.table.finished(path)
        elif event == "warm":
            b.table.set_warm(path, Carrier.H2)
        else:
            b.table.reload(topology(endpoints=("e1", "e2")), b.now)
        snapshot = b.table.snapshot
        assert {n: s.verdict for n, s in snapshot.paths.items()} == verdicts, "no change untold"
        assert snapshot.serial >= serial
        serial = snapshot.serial
        ranking = b.table.ranking("u", SMALL)
        assert {p.name for p in ranking.paths} == set(snapshot.paths)
        if any(s.usable for s in snapshot.paths.values()):
            assert ranking.order[0].state.usable
        ejected = {s.path.endpoint.name for s in snapshot.paths.values() if s.ejected_until}
        assert len(ejected) <= 1, "never the last"


def test_an_outage_counts_as_hazard_and_not_as_loss(bench):
    b, name = bench, "cn2>u/e1"

    def estimate():
        return b.table.snapshot.paths[name].estimate

    def turn(lost):
        b.now += 0.2
        b.sample("bgp>u/e1", Kind.PING)
        b.sample(name, Kind.PING, Outcome.TIMEOUT if lost else Outcome.OK)
        b.table.tick(b.now)

    for _ in range(50):
        turn(lost=False)
    before = estimate()
    while b.table.snapshot.paths[name].verdict is not Verdict.DOWN:
        turn(lost=True)
    for _ in range(10):
        turn(lost=True)
    for _ in range(20):
        turn(lost=False)
    assert b.table.snapshot.paths[name].verdict is Verdict.UP
    assert estimate().loss < before.loss * 1.6
