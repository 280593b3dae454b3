"""Silence to verdict, in virtual time."""

import heapq
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.detector import Detector
from policies.model import Blame, Carrier, Kind, Outcome, Sample, Seen, Verdict
from policies.silence import STEP_S, Channel

LOST = Outcome.TIMEOUT


class World:
    """Lines and endpoints that answer probes, or do not; the detector is told what it would see."""

    def __init__(
        self, lines, endpoints, probes, *, loss=0.0, rtt_s=0.06, seed=1, fast=None, timeout_s=None
    ):
        """`probes`: (kind, period) for every path; `fast`: periods while the line is silent.

        With `timeout_s` slots are not announced: silence shows as TIMEOUT samples.
        """
        self.rng = random.Random(seed)
        self.detector = Detector()
        self.loss = loss
        self.rtt_s = rtt_s
        self.now = 1000.0
        self.dead = {}
        self.changes = []
        self.fast = fast or {}
        self.timeout_s = timeout_s
        self.events = []
        self.serial = itertools.count()
        for line in lines:
            for endpoint in endpoints:
                self.detector.watch(self.name(line, endpoint), line, f"u/{endpoint}")
                for kind, period in probes:
                    at = self.now + self.rng.random() * period
                    self.at(at, self.probe, line, endpoint, kind, period)

    @staticmethod
    def name(line, endpoint):
        return f"{line}>u/{endpoint}"

    def at(self, when, call, *arguments):
        heapq.heappush(self.events, (when, next(self.serial), call, arguments))

    def kill(self, line="*", endpoint="*", kinds=tuple(Kind)):
        self.dead[line, endpoint] = kinds

    def heal(self, line="*", endpoint="*"):
        del self.dead[line, endpoint]

    def answers(self, line, endpoint, kind):
        keys = ((line, "*"), ("*", endpoint), (line, endpoint))
        return not any(kind in self.dead.get(key, ()) for key in keys)

    def probe(self, line, endpoint, kind, period):
        if self.timeout_s is None:
            self.detector.sent(self.name(line, endpoint), kind, self.now, self.rtt_s, 0.03)
        lost = self.rng.random() < self.loss
        self.at(self.now + self.rtt_s, self.reply, line, endpoint, kind, self.now, lost)
        fast = self.fast.get(kind, period) if self.detector.silent(line) else period
        gap = min(period, fast) * self.rng.uniform(0.75, 1.25)
        self.at(self.now + gap, self.probe, line, endpoint, kind, period)

    def reply(self, line, endpoint, kind, sent_at, lost):
        name = self.name(line, endpoint)
        if not lost and self.answers(line, endpoint, kind):
            sample = Sample(name, kind, sent_at, self.now - sent_at)
            self.changes += self.detector.observe(sample, self.now)
        elif self.timeout_s is not None:
            self.at(
                sent_at + self.timeout_s, self.time_out, Sample(name, kind, sent_at, None, LOST)
            )

    def time_out(self, sample):
        self.changes += self.detector.observe(sample, self.now)

    def run(self, seconds):
        end = self.now + seconds
        while True:
            deadline = self.detector.next_deadline()
            next_event = self.events[0][0] if self.events else float("inf")
            when = min(next_event, float("inf") if deadline is None else deadline)
            if when > end:
                self.now = end
                return self
            self.now = max(self.now, when)
            if next_event <= when:
                _, _, call, arguments = heapq.heappop(self.events)
                call(*arguments)
            else:
                self.changes += self.detector.tick(self.now)

    def verdict(self, line, endpoint="x"):
        return self.detector.finding(self.name(line, endpoint)).verdict

    def blame(self, line, endpoint="x"):
        return self.detector.finding(self.name(line, endpoint)).blame

    def first(self, verdict, since=0.0):
        return next((c.at for c in self.changes if c.new is verdict and c.at >= since), None)


# -- one path ------------------------------------------------------------------------------------


def test_one_endpoint_on_one_line_with_pings_goes_down_within_k_slots_and_back():
    world = World(["a"], ["x"], [(Kind.PING, 0.2)])
    world.run(20)
    assert world.changes == []
    died = world.now
    world.kill("a")
    world.run(3)
    assert world.first(Verdict.SUSPECT) - died < 0.65
    assert world.first(Verdict.DOWN) - died < 0.9
    assert world.blame("a") is Blame.UNKNOWN
    healed = world.now
    world.heal("a")
    world.run(2)
    assert world.verdict("a") is Verdict.UP
    assert world.first(Verdict.SUSPECT, healed) - healed < 0.4
    assert world.first(Verdict.UP, healed) - healed < 0.9


def test_little_traffic_tcp_each_5_s_and_icmp_each_second():
    probes = [(Kind.TCP, 5.0), (Kind.ICMP, 1.0)]
    world = World(["a"], ["x"], probes, fast={Kind.ICMP: 0.2, Kind.TCP: 1.0})
    world.run(60)
    assert world.changes == []
    died = world.now
    world.kill("a")
    world.run(20)
    assert world.first(Verdict.SUSPECT) - died < 2.0
    assert world.first(Verdict.DOWN) - died < 8.0


def test_silence_of_icmp_alone_never_puts_the_only_endpoint_down():
    world = World(["a"], ["x"], [(Kind.TCP, 5.0), (Kind.ICMP, 1.0)])
    world.run(30)
    world.kill("a", kinds=(Kind.ICMP,))
    world.run(300)
    assert world.first(Verdict.DOWN) is None


def test_an_endpoint_that_never_answered_icmp_contributes_nothing():
    world = World(["a"], ["x"], [(Kind.TCP, 5.0), (Kind.ICMP, 0.2)])
    world.kill("a", kinds=(Kind.ICMP,))
    world.run(300)
    assert world.changes == []
    assert not world.detector.silent("a")


@pytest.mark.parametrize("local", [(Kind.ICMP,), (Kind.ICMP, Kind.TCP)])
def test_lower_layers_do_not_rescue_a_path_on_which_nothing_else_gets_through(local):
    probes = [(Kind.ICMP, 1.0), (Kind.TCP, 1.0), (Kind.PING, 0.2)]
    world = World(["a"], ["x"], probes)
    world.run(20)
    died = world.now
    world.kill("a", kinds=tuple(k for k in Kind if k not in local))
    world.run(3)
    assert world.first(Verdict.DOWN) - died < 0.9
    world.run(60)
    assert world.verdict("a") is Verdict.DOWN
    world.heal("a")
    world.run(3)
    assert world.verdict("a") is Verdict.UP


def test_udp_blocked_after_it_worked_is_not_a_dead_path_while_tls_gets_through():
    world = World(["a"], ["x"], [(Kind.QUIC, 5.0), (Kind.TLS, 1.0)])
    world.run(30)
    world.kill("a", kinds=(Kind.QUIC,))
    world.run(120)
    assert world.first(Verdict.DOWN) is None


def test_quic_that_never_answered_contributes_nothing_where_tcp_answers():
    world = World(["a"], ["x"], [(Kind.TCP, 5.0), (Kind.QUIC, 1.0)])
    world.kill("a", kinds=(Kind.QUIC,))
    world.run(20)
    settled = world.now
    world.run(120)
    assert world.first(Verdict.SUSPECT, settled) is None
    assert world.verdict("a") is Verdict.UP


def test_receipts_of_data_are_signs_of_life():
    world = World(["a"], ["x"], [(Kind.PING, 0.2)])
    world.run(10)
    world.kill("a", kinds=(Kind.PING,))
    for _ in range(100):
        world.run(0.1)
        world.changes += world.detector.heard("a>u/x", Kind.TTFB, world.now)
    assert world.first(Verdict.DOWN) is None


def test_a_late_reply_counts_as_loss_and_rescues():
    detector = Detector()
    detector.watch("p", "a", "u/x")
    detector.observe(Sample("p", Kind.TCP, 9.0, 0.06), 9.06)
    detector.sent("p", Kind.TCP, 10.0, 0.06, 0.03)
    (suspect,) = detector.tick(10.09)
    assert suspect.new is Verdict.SUSPECT
    (up,) = detector.observe(Sample("p", Kind.TCP, 10.0, 0.3), 10.3)
    assert up.new is Verdict.UP
    assert detector.next_deadline() is None


def stepped(took_s, seconds, *, every_s=0.07):
    """Verdicts of a path whose round trip of 60 ms grew to ``took_s`` at 10.0 (``None``: died)."""
    detector = Detector()
    detector.watch("p", "a", "u/x")
    events = []
    for n in range(int(10 / every_s)):
        at = n * every_s
        events += [(at, "sent", at), (at + 0.06, "heard", at)]
    for n in range(int(seconds / every_s)):
        at = 10.0 + n * every_s
        events.append((at, "sent", at))
        if took_s is not None:
            events.append((at + took_s, "heard", at))
    changes = []
    for when, what, sent_at in sorted(events):
        while (due := detector.next_deadline()) is not None and due <= when:
            changes += detector.tick(due)
        if what == "sent":
            detector.sent("p", Kind.TCP, when, 0.06, 0.03)
        else:
            sample = Sample("p", Kind.TCP, sent_at, when - sent_at)
            changes += detector.observe(sample, when)
    first = {}
    for change in changes:
        first.setdefault(change.new, change.at - 10.0)
    return detector, first


def test_a_round_trip_that_grows_by_300_ms_at_once_is_no_death():
    _, first = stepped(0.36, 5.0)
    assert Verdict.DOWN not in first
    assert first[Verdict.SUSPECT] < 0.2


def test_answers_that_come_much_too_late_keep_new_requests_away_until_estimates_follow():
    detector, _ = stepped(0.36, 1.0)
    for n in range(20):
        at = 11.0 + 0.05 * n
        detector.sent("p", Kind.TCP, at, 0.36, 0.03)
        detector.observe(Sample("p", Kind.TCP, at, 0.36), at + 0.36)
        assert detector.finding("p").verdict is Verdict.SUSPECT
    for n in range(40):
        at = 12.0 + 0.05 * n
        detector.sent("p", Kind.TCP, at, 0.36, 0.03)
        detector.observe(Sample("p", Kind.TCP, at, 0.36), at + 0.36)
    assert detector.finding("p").verdict is Verdict.UP


def test_one_late_answer_is_jitter():
    detector, _ = stepped(None, 0.05)
    detector.tick(10.1)
    detector.observe(Sample("p", Kind.TCP, 10.0, 0.36), 10.36)
    assert detector.finding("p").verdict is Verdict.UP


def test_a_connect_whose_packet_was_repeated_was_not_late_but_lost():
    detector, _ = stepped(None, 0.1)
    detector.tick(10.2)
    for at in (10.0, 10.05):
        sample = Sample("p", Kind.TCP, at, 1.06, packets_sent=2, packets_lost=1)
        detector.observe(sample, at + 1.06)
    assert detector.finding("p").verdict is Verdict.UP


def test_death_is_told_from_a_step_as_soon_as_the_first_answer_should_have_come_late():
    _, first = stepped(None, 2.0)
    assert first[Verdict.DOWN] == pytest.approx(0.06 + STEP_S, abs=0.01)
    detector, first = stepped(None, 0.3)
    assert Verdict.DOWN not in first
    changes = []
    while (due := detector.next_deadline()) is not None:  # though nothing more is sent
        changes += detector.tick(due)
    (down,) = changes
    assert down.at - 10.0 == pytest.approx(0.06 + STEP_S, abs=0.01)


def test_after_a_late_answer_death_takes_as_much_longer_to_tell():
    detector, _ = stepped(0.36, 0.5)  # answers come till 10.86
    changes = []
    for n in range(40):
        at = 10.9 + 0.05 * n
        while (due := detector.next_deadline()) is not None and due <= at:
            changes += detector.tick(due)
        detector.sent("p", Kind.TCP, at, 0.1, 0.1)
    (down,) = [change for change in changes if change.new is Verdict.DOWN]
    assert down.at - 10.9 > 0.1 + STEP_S + 0.2


def test_a_run_begins_with_its_earliest_slot_even_if_that_is_overdue_later():
    channel = Channel()
    channel.silent(10.10, 10.16, "e", icmp=False)
    channel.silent(10.00, 10.06, "e", icmp=False)
    assert (channel.run, channel.run_sent_at, channel.run_first_reply_at) == (2, 10.0, 10.06)
    assert channel.run_last_sent_at == 10.10


def test_timeout_samples_alone_convict_when_no_slot_was_announced():
    detector = Detector()
    detector.watch("p", "a", "u/x")
    detector.observe(Sample("p", Kind.TCP, 0.0, 0.06), 0.06)
    verdicts = []
    for at in (5.0, 10.0, 15.0, 20.0):
        detector.observe(Sample("p", Kind.TCP, at, None, Outcome.TIMEOUT), at + 2)
        verdicts.append(detector.finding("p").verdict)
    assert verdicts[0] is Verdict.SUSPECT
    assert verdicts[-1] is Verdict.DOWN


def test_the_timeout_of_an_announced_slot_is_not_counted_twice():
    detector = Detector()
    detector.watch("p", "a", "u/x")
    at = 0.0
    for _ in range(50):
        detector.sent("p", Kind.PING, at, 0.06, 0.03)
        detector.observe(Sample("p", Kind.PING, at, 0.06), at + 0.06)
        at += 0.2
    detector.sent("p", Kind.PING, at, 0.06, 0.03)
    detector.tick(at + 0.09)
    for _ in range(5):
        detector.observe(Sample("p", Kind.PING, at + 0.001, None, Outcome.TIMEOUT), at + 1)
        at += 0.0
    assert detector.finding("p").verdict is not Verdict.DOWN


def test_thinking_is_not_silence():
    detector = Detector()
    detector.watch("p", "a", "u/x")
    detector.sent("p", Kind.TTFB, 0.0, 0.06, 0.03)
    assert detector.next_deadline() is None
    assert not detector.observe(Sample("p", Kind.TTFB, 0.0, None, Outcome.TIMEOUT), 60.0)


# -- attribution ---------------------------------------------------------------------------------

THREE = ["x", "y", "z"]
ACTIVE = [(Kind.PING, 0.2), (Kind.TCP, 5.0), (Kind.ICMP, 1.0)]


def test_all_endpoints_of_a_line_silent_blame_the_line_at_once():
    world = World(["a", "b"], THREE, [(Kind.TCP, 1.0)])
    world.run(30)
    died = world.now
    world.kill("a")
    world.run(5)
    assert world.detector.line_verdict("a") is Verdict.DOWN
    assert world.detector.line_verdict("b") is Verdict.UP
    assert world.first(Verdict.DOWN) - died < 1.8  # pooled: a slot each 0.33 s
    assert all(world.blame("a", e) is Blame.LINE for e in THREE)
    assert all(world.verdict("b", e) is Verdict.UP for e in THREE)


def test_one_endpoint_silent_among_three_is_the_endpoint():
    world = World(["a", "b"], THREE, [(Kind.TCP, 1.0)])
    world.run(30)
    world.kill(endpoint="x")
    world.run(20)
    assert world.verdict("a") is world.verdict("b") is Verdict.DOWN
    assert world.blame("a") is world.blame("b") is Blame.ENDPOINT
    assert world.detector.line_verdict("a") is world.detector.line_verdict("b") is Verdict.UP
    assert world.verdict("a", "y") is world.verdict("b", "z") is Verdict.UP
    assert all(c.new is not Verdict.DOWN for c in world.changes if not c.path.endswith("x"))


def test_the_busy_endpoint_dies_and_the_quiet_ones_keep_the_line():
    world = World(["a"], ["y", "z"], [(Kind.TCP, 5.0)], fast={Kind.TCP: 0.5})
    world.detector.watch("a>u/x", "a", "u/x")
    world.at(world.now, world.probe, "a", "x", Kind.PING, 0.2)
    world.run(30)
    world.kill(endpoint="x")
    world.run(30)
    assert world.verdict("a", "x") is Verdict.DOWN
    assert world.blame("a", "x") is Blame.ENDPOINT
    assert not any(c.new is Verdict.DOWN and c.path != "a>u/x" for c in world.changes)
    assert world.verdict("a", "y") is Verdict.UP


def test_the_only_endpoint_silent_on_one_line_of_two_is_the_line():
    world = World(["a", "b"], ["x"], [(Kind.PING, 0.2)])
    world.run(30)
    world.kill("a")
    world.run(5)
    assert world.verdict("a") is Verdict.DOWN
    assert world.blame("a") is Blame.LINE
    assert world.verdict("b") is Verdict.UP


def test_the_only_endpoint_silent_on_both_lines_is_the_endpoint():
    world = World(["a", "b"], ["x"], [(Kind.PING, 0.2)])
    world.run(30)
    world.kill(endpoint="x")
    world.run(5)
    assert world.verdict("a") is world.verdict("b") is Verdict.DOWN
    assert world.blame("a") is world.blame("b") is Blame.ENDPOINT
    assert world.detector.line_verdict("a") is not Verdict.DOWN
    assert world.detector.line_verdict("b") is not Verdict.DOWN


def test_a_line_that_comes_back_pardons_the_paths_that_fell_silent_with_it():
    world = World(["a"], THREE, [(Kind.TCP, 2.0)])
    world.run(30)
    world.kill("a")
    world.run(10)
    assert all(world.verdict("a", e) is Verdict.DOWN for e in THREE)
    world.heal("a")
    world.run(4)
    assert all(world.verdict("a", e) is Verdict.UP for e in THREE)


def test_an_endpoint_that_stays_dead_is_convicted_again_after_the_pardon():
    world = World(["a"], THREE, [(Kind.TCP, 1.0)])
    world.run(30)
    world.kill("a")
    world.kill(endpoint="x")
    world.run(10)
    world.heal("a")
    world.run(20)
    assert world.verdict("a", "x") is Verdict.DOWN
    assert world.blame("a", "x") is Blame.ENDPOINT
    assert world.verdict("a", "y") is Verdict.UP


def test_attribution_of_forty_random_cases():
    right = 0
    for seed in range(40):
        rng = random.Random(seed)
        world = World(["a", "b"], THREE, ACTIVE, loss=0.01, seed=seed, rtt_s=rng.uniform(0.02, 0.3))
        world.run(rng.uniform(20, 40))
        line_dies = rng.random() < 0.5
        endpoint = rng.choice(THREE)
        world.kill(**({"line": "a"} if line_dies else {"endpoint": endpoint}))
        world.run(6)
        a_down = [world.verdict("a", e) is Verdict.DOWN for e in THREE]
        if line_dies:
            right += all(a_down) and world.blame("a", endpoint) is Blame.LINE
        else:
            others = [e for e in THREE if e != endpoint]
            right += (
                world.verdict("a", endpoint) is world.verdict("b", endpoint) is Verdict.DOWN
                and world.blame("a", endpoint) is Blame.ENDPOINT
                and all(world.verdict(n, e) is not Verdict.DOWN for n in "ab" for e in others)
            )
        assert world.detector.line_verdict("b") is not Verdict.DOWN
    assert right >= 39


# -- errors --------------------------------------------------------------------------------------


def settled(lines=("a", "b"), endpoints=("x", "y")):
    detector = Detector()
    for line in lines:
        for endpoint in endpoints:
            detector.watch(f"{line}>{endpoint}", line, endpoint)
            detector.observe(Sample(f"{line}>{endpoint}", Kind.TCP, 0.9, 0.06), 0.96)
    return detector


def fail(detector, path, outcome, *times, kind=Kind.TTFB):
    changes = []
    for at in times:
        changes += detector.observe(Sample(path, kind, at, None, outcome), at + 0.05)
    return changes


def test_a_local_error_blames_the_line_at_once():
    detector = settled()
    changes = fail(detector, "a>x", Outcome.UNREACHABLE, 2.0)
    assert {c.path for c in changes if c.new is Verdict.DOWN} == {"a>x", "a>y"}
    assert all(c.blame is Blame.LINE for c in changes)
    assert detector.line_verdict("a") is Verdict.DOWN
    assert detector.finding("b>x").verdict is Verdict.UP


def test_a_local_error_is_told_in_its_own_words():
    detector = settled()
    said = "line a: cannot resolve x.test: name server 10.0.0.53: Connection refused"
    sample = Sample("a>x", Kind.TCP, 2.0, None, Outcome.DNS, detail=said)
    changes = detector.observe(sample, 2.05)
    assert {c.reason for c in changes if c.path == "a>x"} == {said}


def test_a_path_that_cries_wolf_is_no_witness_the_second_time():
    detector = settled()
    fail(detector, "a>x", Outcome.UNREACHABLE, 2.0)
    for at in (3.0, 3.1, 3.2):
        detector.heard("a>y", Kind.TLS, at)
    assert detector.finding("a>y").verdict is Verdict.UP
    assert detector.finding("a>x").verdict is Verdict.DOWN
    fail(detector, "a>x", Outcome.UNREACHABLE, 4.0)
    assert detector.finding("a>y").verdict is Verdict.UP
    detector.heard("a>x", Kind.TLS, 5.0)
    fail(detector, "a>x", Outcome.UNREACHABLE, 6.0)
    assert detector.finding("a>y").verdict is Verdict.DOWN


def test_a_name_that_does_not_resolve_makes_the_line_suspect_and_only_the_path_down():
    detector = settled()
    fail(detector, "a>x", Outcome.DNS, 2.0)
    assert detector.finding("a>y").verdict is Verdict.SUSPECT
    detector.heard("a>y", Kind.TLS, 2.5)
    assert detector.finding("a>y").verdict is Verdict.UP
    fail(detector, "a>x", Outcome.DNS, 3.0, 4.0, 5.0, 6.0)
    detector.heard("a>y", Kind.TLS, 6.5)
    assert detector.finding("a>x").verdict is Verdict.DOWN
    assert detector.finding("a>y").verdict is Verdict.UP


def test_refusals_speak_against_the_endpoint_and_show_the_line_alive():
    detector = settled()
    verdicts = []
    for at in (2.0, 3.0, 4.0):
        fail(detector, "a>x", Outcome.REFUSED, at, kind=Kind.TCP)
        verdicts.append(detector.finding("a>x").verdict)
    assert verdicts == [Verdict.UP, Verdict.SUSPECT, Verdict.DOWN]
    assert detector.finding("a>x").blame is Blame.ENDPOINT
    assert detector.line_verdict("a") is Verdict.UP


def test_a_refusal_ends_the_silence_of_the_line():
    detector = settled(lines=("a",))
    fail(detector, "a>y", Outcome.TIMEOUT, 2.0, 3.0, 4.0, 5.0, kind=Kind.TCP)
    fail(detector, "a>x", Outcome.TIMEOUT, 2.2, 3.2, 4.2, kind=Kind.TCP)
    assert detector.line_verdict("a") is Verdict.DOWN
    fail(detector, "a>x", Outcome.REFUSED, 6.0, kind=Kind.TCP)
    assert detector.line_verdict("a") is Verdict.SUSPECT


def test_exchanges_that_fail_together_fail_once():
    detector = settled()
    for _ in range(20):
        detector.observe(Sample("a>x", Kind.TTFB, 2.0, None, Outcome.RESET), 2.5)
    assert detector.finding("a>x").verdict is Verdict.UP


def test_an_answer_between_errors_starts_the_count_again():
    detector = settled()
    fail(detector, "a>x", Outcome.RESET, 2.0, 3.0)
    assert detector.finding("a>x").verdict is Verdict.SUSPECT
    detector.heard("a>x", Kind.TTFB, 3.5)
    fail(detector, "a>x", Outcome.RESET, 4.0)
    assert detector.finding("a>x").verdict is Verdict.UP


def test_two_endpoints_reset_on_one_line_only_blame_the_line():
    detector = settled(endpoints=("x", "y", "z"))
    fail(detector, "a>x", Outcome.RESET, 2.0, 3.0, 4.0)
    fail(detector, "a>y", Outcome.RESET, 2.5, 3.5, 4.5)
    for endpoint in "xyz":
        detector.heard(f"b>{endpoint}", Kind.TTFB, 5.0)
    fail(detector, "a>x", Outcome.RESET, 6.0)
    assert detector.line_verdict("a") is Verdict.DOWN
    assert detector.finding("a>z").blame is Blame.LINE
    detector.heard("a>z", Kind.TTFB, 7.0)
    assert detector.line_verdict("a") is Verdict.SUSPECT


def test_running_out_of_descriptors_says_nothing_of_the_network():
    detector = settled()
    assert not fail(detector, "a>x", Outcome.LOCAL, 2.0, 3.0, 4.0, 5.0)
    assert not detector.silent("a")


@pytest.mark.parametrize("outcome", [Outcome.HTTP_ERROR, Outcome.BUSY])
def test_an_http_answer_of_any_status_is_a_sign_of_life(outcome):
    detector = settled()
    fail(detector, "a>x", outcome, 2.0, 3.0, 4.0, 5.0)
    assert detector.finding("a>x").verdict is Verdict.UP


# -- this host -----------------------------------------------------------------------------------


def test_a_busy_loop_does_not_convict_the_network():
    detector = settled(lines=("a",), endpoints=("x",))
    at = 1.0
    for _ in range(20):
        at += 0.2
        detector.sent("a>x", Kind.PING, at, 0.06, 0.03)
        detector.observe(Sample("a>x", Kind.PING, at, 0.06), at + 0.06)
    for i in range(1, 6):
        detector.sent("a>x", Kind.PING, at + 0.2 * i, 0.06, 0.03)
    late = at + 1.3
    assert not detector.tick(late, lag_s=1.2)
    for i in range(1, 6):  # the replies had waited in the socket's buffer
        detector.observe(Sample("a>x", Kind.PING, at + 0.2 * i, late - at), late)
    assert not detector.tick(late + 2)
    assert detector.finding("a>x").verdict is Verdict.UP


def test_without_the_lag_the_same_silence_convicts():
    detector = settled(lines=("a",), endpoints=("x",))
    for i in range(5):
        detector.sent("a>x", Kind.PING, 1.2 + 0.2 * i, 0.06, 0.03)
    assert detector.tick(2.3, lag_s=0.01)
    assert detector.finding("a>x").verdict is Verdict.DOWN


def test_after_a_long_stall_what_was_outstanding_says_nothing():
    detector = settled(lines=("a",), endpoints=("x",))
    for i in range(5):
        detector.sent("a>x", Kind.PING, 1.2 + 0.2 * i, 0.06, 0.03)
    detector.lagged(5.0, 7.0)
    assert detector.next_deadline() is None
    assert not detector.tick(7.0)
    assert not fail(detector, "a>x", Outcome.TIMEOUT, 1.2, 1.4, 1.6, 1.8, kind=Kind.PING)
    silent = [Seen("a>x", Kind.KERNEL, 7.1, at, at + 0.06) for at in (6.0, 6.2, 6.4, 6.6)]
    assert not detector.saw(silent, 7.1)
    assert detector.finding("a>x").verdict is Verdict.UP


def test_a_line_that_lost_its_interface_is_down_at_once_and_heard_again_later():
    detector = settled()
    changes = detector.lost("a", "interface eth0 is down", 2.0)
    assert {c.path for c in changes if c.new is Verdict.DOWN} == {"a>x", "a>y"}
    assert all(c.blame is Blame.LINE and "eth0" in c.reason for c in changes)
    assert detector.finding("b>x").verdict is Verdict.UP
    assert not detector.lost("nowhere", "", 2.0)
    for at in (3.0, 3.1, 3.2):
        detector.heard("a>x", Kind.TLS, at)
    assert detector.finding("a>x").verdict is Verdict.UP


# -- ways there and back ---------------------------------------------------------------------


def ping(detector, at, *, answered=True, carrier=None, path="a>x"):
    detector.sent(path, Kind.PING, at, 0.06, 0.03, carrier)
    if answered:
        sample = Sample(path, Kind.PING, at, 0.06, carrier=carrier)
        return list(detector.observe(sample, at + 0.06))
    return list(detector.tick(at + 0.1))


def test_an_answer_to_what_was_sent_before_the_silence_does_not_end_it():
    detector = settled(lines=("a",), endpoints=("x",))
    for i in range(20):
        ping(detector, 1.0 + 0.2 * i)
    for at in (5.0, 5.2, 5.4, 5.6):  # the way there died at 4.9
        ping(detector, at, answered=False)
        # A response to a request of 4.0, from a model that had thought, still arrives.
        detector.observe(Sample("a>x", Kind.TTFB, 4.0, at + 0.1 - 4.0), at + 0.1)
    detector.tick(6.0)
    assert detector.finding("a>x").verdict is Verdict.DOWN


def test_bytes_that_still_arrive_hold_down_off_for_half_a_second():
    verdicts = {}
    for receiving in (False, True):
        detector = settled(lines=("a",), endpoints=("x",))
        for i in range(20):
            ping(detector, 1.0 + 0.2 * i)
        for i in range(12):
            at = 5.0 + 0.1 * i
            if receiving:  # each 20 ms
                detector.saw([Seen("a>x", Kind.TTFB, at + 0.08)], at + 0.08)
            ping(detector, at, answered=False)
            verdicts.setdefault((receiving, detector.finding("a>x").verdict), at)
    assert verdicts[False, Verdict.DOWN] < 5.5
    assert 5.4 <= verdicts[True, Verdict.DOWN] < 5.9


def test_silence_end_to_end_while_data_is_acknowledged_is_a_repair_first():
    detector = settled(lines=("a",), endpoints=("x",))
    for i in range(20):
        ping(detector, 1.0 + 0.2 * i)
    seen = {}
    for i in range(14):
        at = 5.0 + 0.2 * i
        ping(detector, at, answered=False)
        detector.saw([Seen("a>x", Kind.KERNEL, at + 0.06, at)], at + 0.1)
        seen.setdefault(detector.finding("a>x").verdict, at - 5.0)
    assert seen[Verdict.SUSPECT] >= 0.5
    assert 1.0 <= seen[Verdict.DOWN] < 1.6


def settled_h3():
    detector = settled(lines=("a", "b"), endpoints=("x",))
    for i in range(20):
        for line in "ab":
            ping(detector, 1.0 + 0.2 * i, carrier=Carrier.H3, path=f"{line}>x")
    return detector


def test_quic_silent_where_tcp_answers_blocks_h3_and_convicts_nobody():
    detector = settled_h3()
    for i in range(8):
        ping(detector, 5.0 + 0.1 * i, answered=False, carrier=Carrier.H3)
        detector.observe(Sample("a>x", Kind.TCP, 5.05 + 0.1 * i, 0.03), 5.08 + 0.1 * i)
    (change,) = detector.take_carrier_changes()
    assert change[:3] == ("a>x", (Carrier.H3,), True)
    assert not detector.take_carrier_changes()
    assert detector.finding("a>x").verdict is Verdict.SUSPECT  # connects only, so far
    detector.observe(Sample("a>x", Kind.TLS, 6.0, 0.06), 6.2)
    assert detector.finding("a>x").verdict is Verdict.UP
    assert detector.line_verdict("a") is Verdict.UP
    assert not detector.silent("a")
    for at in (20.0, 20.2, 20.4, 20.6, 20.8):  # it is tried again, in vain
        assert not fail(detector, "a>x", Outcome.TIMEOUT, at, kind=Kind.QUIC)
    ping(detector, 30.0, carrier=Carrier.H3)
    (change,) = detector.take_carrier_changes()
    assert change[:3] == ("a>x", (Carrier.H3,), False)


def test_tcp_silent_where_quic_answers_blocks_h2_and_h1():
    detector = settled_h3()
    for i in range(8):
        fail(detector, "a>x", Outcome.TIMEOUT, 5.0 + 0.1 * i, kind=Kind.TCP)
        ping(detector, 5.02 + 0.1 * i, carrier=Carrier.H3)
    (change,) = detector.take_carrier_changes()
    assert change[:3] == ("a>x", (Carrier.H2, Carrier.H1), True)
    assert detector.finding("a>x").verdict is Verdict.UP


def test_quic_and_tcp_silent_is_the_line():
    detector = settled_h3()
    for i in range(8):
        ping(detector, 5.0 + 0.1 * i, answered=False, carrier=Carrier.H3)
        fail(detector, "a>x", Outcome.TIMEOUT, 5.02 + 0.1 * i, kind=Kind.TCP)
        ping(detector, 5.05 + 0.1 * i, carrier=Carrier.H3, path="b>x")
    assert detector.finding("a>x").verdict is Verdict.DOWN
    assert detector.line_verdict("a") is Verdict.DOWN
    assert not detector.take_carrier_changes()


def test_a_host_that_limits_echoes_is_soon_asked_otherwise():
    detector = settled(lines=("a",), endpoints=("x",))
    detector.observe(Sample("a>x", Kind.ICMP, 1.0, 0.06), 1.06)
    assert not detector.mute("a>x")
    for i in range(40):
        at = 2.0 + 0.2 * i
        detector.sent("a>x", Kind.ICMP, at, 0.06, 0.03)
        detector.tick(at + 0.1)
        if i % 5 == 4:
            detector.observe(Sample("a>x", Kind.TCP, at + 0.1, 0.06), at + 0.16)
    assert detector.mute("a>x")
    assert detector.finding("a>x").verdict is Verdict.UP


def test_a_connection_that_is_stuck_makes_its_path_suspect_for_a_time_that_doubles():
    detector = settled()
    convincing, changes = detector.stuck("a>x", 2, 0, 2.0)
    assert not convincing
    assert not changes
    convincing, changes = detector.stuck("a>x", 3, 0, 2.0)
    assert convincing
    assert [(c.path, c.new) for c in changes] == [("a>x", Verdict.SUSPECT)]
    assert detector.stuck("a>x", 2, 0, 2.5)[0], "its neighbours are, too"
    detector.heard("a>x", Kind.ICMP, 6.0)
    assert detector.finding("a>x").verdict is Verdict.SUSPECT
    detector.heard("a>x", Kind.ICMP, 7.1)
    assert detector.finding("a>x").verdict is Verdict.UP
    assert detector.stuck("a>x", 2, 3, 8.0)[0], "four missing together"
    detector.heard("a>x", Kind.ICMP, 17.0)
    assert detector.finding("a>x").verdict is Verdict.SUSPECT


def test_a_stir_is_told_when_calm_ends_and_when_life_returns():
    detector = settled(lines=("a",), endpoints=("x",))
    assert detector.stirred("a") == 0
    for at in (2.0, 2.2, 2.4, 2.6):
        ping(detector, at, answered=False)
    assert detector.stirred("a") == detector.stirs == 1
    assert detector.doubted("a")
    detector.heard("a>x", Kind.ICMP, 60.0)
    assert detector.stirred("a") == 2


# -- life cycle and promises ---------------------------------------------------------------------


def test_forget_voids_slots_and_lines():
    detector = settled(lines=("a",), endpoints=("x",))
    detector.sent("a>x", Kind.PING, 2.0, 0.06, 0.03)
    detector.forget("a>x")
    assert detector.next_deadline() is None
    assert not detector.tick(10.0)
    assert not detector.heard("a>x", Kind.PING, 11.0)
    assert detector.line_verdict("a") is Verdict.UP
    detector.watch("a>x", "a", "x")
    assert detector.finding("a>x").verdict is Verdict.UP


@pytest.mark.parametrize("timeout_s", [None, 0.25], ids=["announced", "timeouts"])
@pytest.mark.parametrize("loss", [0.001, 0.01, 0.05])
def test_no_false_down_in_an_hour_at_the_stated_loss(loss, timeout_s):
    world = World(["a"], ["x"], [(Kind.PING, 0.2)], loss=loss, seed=7, timeout_s=timeout_s)
    world.run(3600)
    assert world.first(Verdict.DOWN) is None
    suspects = sum(c.new is Verdict.SUSPECT for c in world.changes)
    assert suspects <= 2 * 60


@pytest.mark.parametrize("loss", [0.0, 0.01])
def test_timeouts_of_probes_find_a_dead_line_in_a_second_while_an_exchange_waits(loss):
    probes = [(Kind.ICMP, 0.2), (Kind.TCP, 1.0), (Kind.HTTP, 30.0)]
    world = World(["a", "b"], ["x"], probes, loss=loss, timeout_s=0.25)
    world.run(60)
    assert world.first(Verdict.DOWN) is None
    died = world.now
    world.kill("a")
    world.run(3)
    assert world.first(Verdict.DOWN, died) - died < 1.5
    assert world.blame("a") is Blame.LINE


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    period=st.floats(0.05, 5.0),
    endpoints=st.integers(1, 3),
    loss=st.sampled_from([0.0, 0.01, 0.05]),
)
def test_a_dead_line_is_down_within_its_slots_and_back_after_it_heals(
    seed, period, endpoints, loss
):
    names = THREE[:endpoints]
    world = World(["a"], names, [(Kind.TCP, period)], loss=loss, seed=seed)
    world.run(30 * period)
    world.kill("a")
    world.run(8 * 1.25 * period + 0.2)
    assert all(world.verdict("a", e) is Verdict.DOWN for e in names)
    world.heal("a")
    world.run(12 * 1.25 * period + 0.2)
    assert all(world.verdict("a", e) is not Verdict.DOWN for e in names)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_order_of_events_keeps_the_invariants(data):
    detector = settled()
    paths = ["a>x", "a>y", "b>x", "b>y"]
    shown = dict.fromkeys(paths, Verdict.UP)
    now = 2.0
    for _ in range(data.draw(st.integers(1, 60))):
        now += data.draw(st.floats(0, 2))
        path = data.draw(st.sampled_from(paths))
        kind = data.draw(st.sampled_from(list(Kind)))
        what = data.draw(st.sampled_from(["sent", "tick", *Outcome]))
        if what == "sent":
            detector.sent(path, kind, now, 0.1, 0.05)
            changes = ()
        elif what == "tick":
            changes = detector.tick(now, data.draw(st.sampled_from([0.0, 0.5])))
        else:
            back = data.draw(st.floats(0, 1))
            changes = detector.observe(Sample(path, kind, now - back, None, Outcome(what)), now)
        for change in changes:
            assert shown[change.path] is change.old
            assert change.old is not change.new
            assert change.reason
            shown[change.path] = change.new
        for name in paths:
            finding = detector.finding(name)
            assert finding.verdict is shown[name]
            assert (finding.verdict is Verdict.UP) == (finding.blame is Blame.NOBODY)
            assert finding.verdict >= detector.line_verdict(name[0])


def test_a_name_that_does_not_exist_says_nothing_of_line_or_path():
    detector = settled()
    for at in (2.0, 3.0, 4.0, 5.0):
        fail(detector, "a>x", Outcome.NO_NAME, at)
        fail(detector, "a>y", Outcome.NO_NAME, at)
    assert detector.finding("a>x").verdict is Verdict.UP
    assert detector.finding("a>y").verdict is Verdict.UP


def test_hosts_that_no_one_listed_condemn_no_line_before_they_were_ever_heard():
    detector = Detector()
    detector.watch("a>x", "a", "u/x", listed=True)
    for number in range(4):
        detector.watch(f"a>wild{number}", "a", f"w/{number}", listed=False)
    for step in range(40):
        at = 1.0 + step / 4
        outcome = (Outcome.TIMEOUT, Outcome.DNS, Outcome.UNREACHABLE)[step % 3]
        fail(detector, f"a>wild{step % 4}", outcome, at, kind=Kind.TCP)
        detector.tick(at)
        assert detector.line_verdict("a") is Verdict.UP
        assert detector.finding("a>x").verdict is Verdict.UP
    detector.heard("a>wild0", Kind.TLS, 20.0)
    fail(detector, "a>wild0", Outcome.DNS, 21.0)
    assert detector.line_verdict("a") is Verdict.UP


def test_where_nothing_is_listed_unlisted_hosts_that_were_heard_still_tell_a_dead_line():
    detector = Detector()
    for number in range(3):
        detector.watch(f"a>wild{number}", "a", f"w/{number}", listed=False)
        detector.heard(f"a>wild{number}", Kind.TLS, 1.0)
    for step in range(12):
        fail(detector, f"a>wild{step % 3}", Outcome.TIMEOUT, 2.0 + step / 2, kind=Kind.TCP)
        detector.tick(2.0 + step / 2)
    assert detector.line_verdict("a") is Verdict.DOWN


def test_an_answer_is_the_probe_s_that_it_answers_and_not_the_next_one_s():
    """Else a line that dies between two probes is taken to have lived until the second."""
    detector = Detector()
    detector.watch("a>u/e", "a", "u/e")
    for sent_at in (10.0, 10.03):
        detector.sent("a>u/e", Kind.ICMP, sent_at, 0.06, 0.2)
    detector.observe(Sample("a>u/e", Kind.ICMP, 10.0, 0.06, Outcome.OK), 10.06)
    (slots,) = detector._paths["a>u/e"].slots.values()
    assert [slot.sent_at for slot in slots] == [10.03]


@pytest.mark.parametrize("announced_late_s", [0.0, 0.02, 0.049])
def test_slots_and_samples_may_be_timed_by_different_readings_of_the_clock(announced_late_s):
    detector = Detector()
    detector.watch("a>u/e", "a", "u/e")
    detector.sent("a>u/e", Kind.ICMP, 10.0 + announced_late_s, 0.06, 0.2)
    detector.observe(Sample("a>u/e", Kind.ICMP, 10.0, 0.06, Outcome.OK), 10.06)
    (slots,) = detector._paths["a>u/e"].slots.values()
    assert not slots


def silent_on_a(last_s):
    """One endpoint over two lines; what was sent on ``a`` from 1.0 s to ``last_s`` was lost."""
    detector = Detector()
    for line in "ab":
        detector.watch(f"{line}>u/x", line, "u/x")
        detector.heard(f"{line}>u/x", Kind.PING, 0.9)
    for n in range(10):
        at = 1.0 + 0.1 * n
        detector.sent("a>u/x", Kind.PING, at, 0.06, 0.03)
        if at + 0.2 > last_s:
            break
    detector.tick(last_s)
    return detector


def test_what_is_told_late_of_a_path_is_no_word_of_others_on_its_line():
    detector = silent_on_a(1.8)
    assert detector.finding("a>u/x").verdict is Verdict.DOWN
    assert detector.line_verdict("a") is Verdict.SUSPECT  # the endpoint was not heard elsewhere yet
    detector.heard("a>u/x", Kind.KERNEL, 1.85, 0.5)  # acknowledged before, looked at now
    detector.heard("b>u/x", Kind.PING, 1.9)
    detector.sent("a>u/x", Kind.PING, 1.95, 0.06, 0.03)
    detector.tick(2.1)
    assert detector.line_verdict("a") is Verdict.DOWN


def test_a_doubt_about_the_endpoint_elsewhere_takes_no_verdict_back():
    detector = silent_on_a(1.8)
    detector.heard("b>u/x", Kind.PING, 1.85)
    detector.sent("a>u/x", Kind.PING, 1.9, 0.06, 0.03)
    detector.tick(2.0)
    assert detector.line_verdict("a") is Verdict.DOWN
    for n in range(2):
        detector.sent("b>u/x", Kind.PING, 10.0 + 0.05 * n, 0.06, 0.03)
    detector.tick(10.2)
    assert detector.finding("b>u/x").verdict is Verdict.SUSPECT
    detector.sent("a>u/x", Kind.PING, 10.2, 0.06, 0.03)
    detector.tick(10.4)
    assert detector.line_verdict("a") is Verdict.DOWN
