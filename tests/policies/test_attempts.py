"""The replay table, row by row, and its invariants under any sequence of events."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.allowance import ENDED_OVERDRAFT, MORE_REFUSED, MOST_STARTS
from policies.attempts import MOST_PAUSE_S, Exchange
from policies.budget import Bucket, HedgeBudget
from policies.commands import ArmTimer, Cancel, Commit, GiveUp, Start, Traits
from policies.model import Failure, Outcome, Replay

REFUSED = Failure(Outcome.REFUSED, "connect refused", unprocessed=True)
RESET = Failure(Outcome.RESET, "connection reset")
UNPROCESSED = Failure(Outcome.RESET, "REFUSED_STREAM", unprocessed=True)
DOWN = Failure(Outcome.TIMEOUT, "line is down", path_down=True)


class Bare:
    """A machine whose commands are told without their reasons: ``machine.told`` has them whole."""

    def __init__(self, machine):
        self.machine = machine
        self.told = ()

    def __getattr__(self, name):
        value = getattr(self.machine, name)
        return self._bare(value) if callable(value) else value

    def _bare(self, event):
        def call(*arguments, **named):
            commands = event(*arguments, **named)
            if commands is None:
                return None
            self.told = commands
            return tuple(bare(c) for c in commands)

        return call


def bare(command):
    match command:
        case Start():
            return command._replace(reason="")
        case Cancel():
            return command._replace(failure=None)
    return command


def hedging(tokens):
    """A budget of ``tokens`` hedges, of an upstream that just answered somebody."""
    hedges = HedgeBudget(0.02)
    hedges.bucket = Bucket(capacity=tokens)
    hedges.answered_at = float("inf")
    return hedges


def exchange(
    candidates=("a", "b", "c"),
    *,
    safe=False,
    replay=Replay.LINE_DOWN,
    hedge=True,
    max_attempts=4,
    retries=None,
    hedges=None,
    hedge_delay_s=0.5,
    race_delay_s=0.1,
    eligible=None,
    reachable=None,
    patience_s=5.0,
):
    return Bare(
        Exchange(
            candidates,
            Traits(safe, replay, hedge, max_attempts),
            retries or Bucket(capacity=10),
            hedges or hedging(5),
            hedge_delay_s=hedge_delay_s,
            race_delay_s=race_delay_s,
            eligible=eligible,
            reachable=reachable,
            patience_s=patience_s,
        )
    )


def sent_on_a(**options):
    machine = exchange(**options)
    assert machine.begin(0.0) == (Start(1, "a"),)
    machine.sent(1, 0.0)
    return machine


def only(commands, kind):
    return [c for c in commands if isinstance(c, kind)]


def test_the_plain_case():
    machine = exchange()
    assert machine.begin(0.0) == (Start(1, "a"),)
    assert machine.sent(1, 0.0) == ()
    assert machine.head_received(1, 0.1) == (Commit(1),)
    assert machine.done
    assert machine.failed(1, RESET, 0.2) == ()
    assert machine.path_down("a", 0.2) == ()
    assert machine.timer_fired(9.0) == ()
    assert machine.client_gone(9.0) == ()


def test_no_path_is_503():
    (give_up,) = exchange(()).begin(0.0)
    assert give_up.status == 503


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("replay", list(Replay))
def test_row_1_nothing_sent_or_unprocessed_takes_another_path(safe, replay):
    machine = exchange(safe=safe, replay=replay)
    machine.begin(0.0)
    assert machine.failed(1, REFUSED, 0.0) == (Start(2, "b", "retry"),)
    machine.sent(2, 0.0)
    assert machine.failed(2, UNPROCESSED, 0.0) == (Start(3, "c", "retry"),)
    assert machine.doubled == 0


@pytest.mark.parametrize(
    ("safe", "replay", "moves"),
    [
        (True, Replay.NEVER, True),
        (False, Replay.NEVER, False),
        (False, Replay.LINE_DOWN, True),
        (False, Replay.ALWAYS, True),
    ],
)
@pytest.mark.parametrize("how", ["event", "failure", "unreachable"])
def test_row_2_sent_and_path_down(safe, replay, moves, how):
    machine = sent_on_a(safe=safe, replay=replay)
    if how == "event":
        first, *rest = machine.path_down("a", 1.0)
        assert first == Cancel(1)
    else:
        unreachable = Failure(Outcome.UNREACHABLE, "no route")
        rest = machine.failed(1, DOWN if how == "failure" else unreachable, 1.0)
    if moves:
        assert list(rest) == [Start(2, "b", "failover")]
        assert machine.doubled == 0
        machine.sent(2, 1.0)
        assert machine.doubled == 1
    else:
        assert rest[0].status == 502
        assert "replay: never" in rest[0].reason


@pytest.mark.parametrize(
    ("safe", "replay", "moves"),
    [
        (True, Replay.NEVER, True),
        (False, Replay.NEVER, False),
        (False, Replay.LINE_DOWN, False),
        (False, Replay.ALWAYS, True),
    ],
)
def test_sent_and_reset_while_the_path_is_up(safe, replay, moves):
    commands = sent_on_a(safe=safe, replay=replay).failed(1, RESET, 1.0)
    if moves:
        assert commands == (Start(2, "b", "retry"),)
    else:
        assert commands[0].status == 502


@pytest.mark.parametrize(
    ("safe", "replay", "hedge", "hedges"),
    [
        (True, Replay.NEVER, True, True),
        (True, Replay.NEVER, False, False),
        (False, Replay.NEVER, True, False),
        (False, Replay.LINE_DOWN, True, False),
        (False, Replay.ALWAYS, True, True),
        (False, Replay.ALWAYS, False, False),
    ],
)
def test_row_3_slow(safe, replay, hedge, hedges):
    machine = exchange(safe=safe, replay=replay, hedge=hedge)
    machine.begin(0.0)
    commands = machine.sent(1, 1.0)
    if hedges:
        assert commands == (ArmTimer(1.5),)
        assert machine.timer_fired(1.4) == (ArmTimer(1.5),)
        assert machine.timer_fired(1.5) == (Start(2, "b", "hedge"),)
        assert machine.sent(2, 1.5) == ()
        assert machine.timer_fired(9.0) == ()
        assert machine.head_received(2, 1.6) == (Commit(2), Cancel(1))
    else:
        assert commands == ()
        assert machine.timer_fired(1.5) == ()
        assert machine.path_suspect("a", 1.5) == ()


def test_thinking_for_ten_minutes_is_neither_cut_nor_repeated():
    machine = sent_on_a()
    assert machine.timer_fired(600.0) == ()
    assert machine.head_received(1, 601.0) == (Commit(1),)


def test_suspicion_buys_the_hedge_at_once():
    machine = sent_on_a(safe=True)
    assert machine.path_suspect("b", 0.1) == ()
    assert machine.path_suspect("a", 0.1) == (Start(2, "b", "hedge"),)
    machine.sent(2, 0.1)
    assert machine.path_suspect("a", 0.2) == ()
    assert machine.failed(1, RESET, 0.3) == ()
    assert machine.head_received(2, 0.4) == (Commit(2),)


@pytest.mark.parametrize(("tail_s", "hedged_s", "thinking_s"), [(0.05, 1.0, 1.1), (2.0, 4.0, 4.1)])
def test_doubt_about_a_line_hedges_no_model_that_thinks(tail_s, hedged_s, thinking_s):
    machine = sent_on_a(safe=True, hedge_delay_s=tail_s)
    assert machine.path_suspect("a", thinking_s) == ()
    assert machine.path_suspect("a", hedged_s) == (Start(2, "b", "hedge"),)


def test_only_one_hedge_an_exchange():
    machine = sent_on_a(safe=True)
    machine.timer_fired(0.5)
    machine.sent(2, 0.5)
    assert machine.failed(2, RESET, 0.6) == ()
    assert machine.timer_fired(5.0) == ()


def test_the_hedge_budget_refuses():
    machine = sent_on_a(safe=True, hedges=HedgeBudget(0.0))
    assert machine.timer_fired(0.5) == ()
    assert machine.live == (1,)


def test_a_pending_attempt_is_raced_and_the_loser_is_never_sent():
    machine = exchange(replay=Replay.NEVER)
    machine.begin(0.0)
    assert machine.pending(1, 0.0) == (ArmTimer(0.1),)
    assert machine.timer_fired(0.1) == (Start(2, "b", "race"),)
    assert machine.pending(2, 0.1) == (ArmTimer(1.1),)
    assert machine.sent(2, 0.2) == (Cancel(1),)
    assert machine.sent(1, 0.2) == ()
    assert machine.head_received(2, 0.3) == (Commit(2),)
    assert machine.doubled == 0


def test_a_race_loser_may_still_be_the_hedge():
    machine = exchange(safe=True)
    machine.begin(0.0)
    machine.pending(1, 0.0)
    machine.timer_fired(0.1)
    assert machine.sent(1, 0.2) == (Cancel(2), ArmTimer(0.7))
    assert machine.timer_fired(0.7) == (Start(3, "b", "hedge"),)


def test_no_race_without_a_delay():
    machine = exchange(race_delay_s=None)
    machine.begin(0.0)
    assert machine.pending(1, 0.0) == ()
    assert machine.timer_fired(4.9) == ()


def test_a_race_goes_over_every_path_the_fit_ones_first_those_that_are_down_last():
    machine = exchange("abcd", eligible=2, reachable=3)
    machine.begin(0.0)
    assert machine.pending(1, 0.0) == (ArmTimer(0.1),)
    for number, (path, after_s) in enumerate([("b", 0.1), ("c", 1.0), ("d", 1.0)], 2):
        at = machine.pending(number - 1, number)[0].at
        assert at == pytest.approx(number + after_s)
        assert not only(machine.timer_fired(at - 0.01), Start)
        assert machine.timer_fired(at) == (Start(number, path, "race"),)
    assert machine.pending(4, 6.0) == ()
    assert machine.sent(3, 6.1) == (Cancel(1), Cancel(2), Cancel(4))
    assert machine.doubled == 0
    assert machine.failed(3, UNPROCESSED, 6.2) == (Start(5, "a", "retry"),), "races cost nothing"


def test_a_path_that_comes_back_is_raced_at_once():
    machine = exchange("ab", reachable=1)
    machine.begin(0.0)
    assert machine.pending(1, 0.0) == (ArmTimer(1.0),)
    assert machine.path_back(0.1) == (), "not without a new ranking that says so"
    machine.reroute("ab", 1, 2)
    assert machine.path_back(0.2) == (Start(2, "b", "race"),)
    assert machine.path_back(0.2) == ()
    machine.sent(2, 0.3)
    assert machine.path_back(0.4) == ()


def test_a_stale_pooled_connection_is_repeated_on_the_only_path_at_once():
    machine = exchange(("a",))
    machine.begin(0.0)
    machine.sent(1, 0.0)
    assert machine.failed(1, UNPROCESSED, 0.0) == (Start(2, "a", "retry"),)


def test_repeats_on_a_failed_path_pause():
    machine = exchange(("a",))
    machine.begin(0.0)
    assert machine.failed(1, REFUSED, 0.0) == (ArmTimer(0.05),)
    assert machine.timer_fired(0.04) == (ArmTimer(0.05),)
    assert machine.timer_fired(0.05) == (Start(2, "a", "retry"),)
    assert machine.failed(2, REFUSED, 0.06) == (ArmTimer(pytest.approx(0.16)),)
    machine.reroute(("n", "a"))
    assert machine.timer_fired(0.16) == (Start(3, "n", "retry"),)


def test_path_down_in_the_pause_ends_it_when_nothing_is_left():
    machine = exchange(("a",))
    machine.begin(0.0)
    machine.failed(1, REFUSED, 0.0)
    (give_up,) = machine.path_down("a", 0.01)
    assert isinstance(give_up, GiveUp)
    assert machine.timer_fired(0.05) == ()


def test_thinkers_alone_are_not_hedged_for_being_slower_than_others_were():
    hedges = hedging(5)
    hedges.answered_at = 0.9
    machine = exchange(safe=True, hedges=hedges)
    machine.begin(1.0)
    assert machine.sent(1, 1.0) == (ArmTimer(1.5),)
    assert machine.timer_fired(1.5) == (), "nobody was answered since: it is no tail"
    assert hedges.bucket.available(1.5) == 5
    assert machine.path_suspect("a", 2.0) == (Start(2, "b", "hedge"),)


def test_an_answer_to_one_shows_that_another_waits_in_the_tail():
    hedges = hedging(5)
    hedges.answered_at = 0.0
    first, second = (exchange(safe=True, hedges=hedges) for _ in range(2))
    for machine in (first, second):
        machine.begin(1.0)
        machine.sent(1, 1.0)
    first.head_received(1, 1.2)
    assert second.timer_fired(1.5) == (Start(2, "b", "hedge"),)
    second.sent(2, 1.5)
    assert second.doubled == 1


def test_a_hedge_that_was_never_sent_doubles_nothing():
    machine = sent_on_a(safe=True)
    machine.timer_fired(0.5)
    machine.pending(2, 0.5)
    assert machine.head_received(1, 0.6) == (Commit(1), Cancel(2))
    assert machine.doubled == 0


def test_moves_say_why():
    machine = sent_on_a()
    machine.path_down("a", 1.0, "3 slots silent")
    cancel, start = machine.told
    assert cancel.failure.path_down
    assert cancel.failure.detail == start.reason == "path a is down: 3 slots silent"
    machine = sent_on_a(safe=True)
    machine.path_suspect("a", 0.1, "1 slot silent")
    assert machine.told[0].reason == "path a is suspect: 1 slot silent"
    machine = sent_on_a(safe=True)
    machine.timer_fired(0.5)
    assert machine.told[0].reason == "no answer after 0.500 s"
    machine = exchange()
    machine.begin(0.0)
    machine.pending(1, 0.0)
    machine.timer_fired(0.1)
    assert machine.told[0].reason == "no connection after 0.100 s"
    machine.failed(1, REFUSED, 0.2)
    machine.failed(2, RESET, 0.2)
    assert machine.told[0].reason == "connection reset"


@pytest.mark.parametrize("when", ["before", "pending", "sent"])
def test_with_every_path_down_each_is_a_last_resort_once(when):
    """The same, whether the paths went DOWN before the request came or under it."""
    machine = exchange(("a", "b"), reachable=0 if when == "before" else None, eligible=0)
    if when == "before":
        assert machine.begin(0.0) == (Start(1, "a"),)
        resorts = ["b"]
    else:
        machine.begin(0.0)
        if when == "sent":
            machine.sent(1, 0.0)
        machine.reroute(("a", "b"), 0, 0)
        assert machine.path_down("a", 0.0) == (Cancel(1), ArmTimer(0.05))
        assert machine.stranded
        assert machine.timer_fired(0.05) == (Start(2, "a", "failover"),)
        resorts = ["b"]
    assert machine.stranded
    number = machine.starts
    assert machine.pending(number, 0.1) == (ArmTimer(pytest.approx(0.2)),)
    assert machine.timer_fired(0.2) == (Start(number + 1, resorts[0], "race"),)
    assert machine.pending(number + 1, 0.2) == (ArmTimer(5.0),)
    *cancels, give_up = machine.timer_fired(5.0)
    assert cancels == [Cancel(number), Cancel(number + 1)]
    assert give_up.status == (502 if when == "sent" else 503)
    assert "5 s" in give_up.reason
    assert machine.doubled == 0


def test_last_resorts_that_fail_by_themselves_end_it_at_once():
    machine = exchange(("a", "b"), reachable=0, eligible=0)
    machine.begin(0.0)
    assert machine.failed(1, REFUSED, 0.0) == (ArmTimer(0.05),)
    assert machine.timer_fired(0.05) == (Start(2, "b", "retry"),)
    (give_up,) = machine.failed(2, REFUSED, 0.1)
    assert give_up.status == 502


def test_a_last_resort_that_is_sent_may_think_for_as_long_as_any():
    machine = exchange(("a",), reachable=0, eligible=0)
    machine.begin(0.0)
    machine.pending(1, 0.0)
    machine.sent(1, 0.2)
    assert not machine.stranded
    assert machine.timer_fired(5.0) == ()
    assert machine.live == (1,)


def test_a_path_that_comes_back_is_taken_at_once():
    machine = exchange(("a", "b"), reachable=0, eligible=0)
    machine.begin(0.0)
    machine.pending(1, 0.0)
    assert machine.path_back(1.0) == (), "not without a new ranking that says so"
    machine.reroute(("b", "a"), 0, 1)
    assert machine.path_back(1.0) == (Start(2, "b", "failover"),)
    assert machine.told[0].reason == "path b is back"
    assert machine.sent(2, 1.1) == (Cancel(1),)
    assert not machine.stranded
    assert machine.doubled == 0


def test_the_path_itself_coming_back_is_dialled_anew():
    machine = exchange(("a",), reachable=0, eligible=0)
    machine.begin(0.0)
    machine.pending(1, 0.0)
    machine.reroute(("a",), 0, 1)
    assert machine.path_back(1.0) == (Cancel(1), Start(2, "a", "failover"))


def test_a_path_that_came_back_and_went_again_is_a_last_resort_anew():
    machine = sent_on_a(candidates=("a",))
    machine.reroute(("a",), 0, 0)
    machine.path_down("a", 1.0)
    assert machine.timer_fired(1.05) == (Start(2, "a", "failover"),)
    machine.reroute(("a",), 0, 1)
    assert machine.path_back(2.0) == (Cancel(2), Start(3, "a", "failover"))
    machine.sent(3, 2.1)
    machine.reroute(("a",), 0, 0)
    assert machine.path_down("a", 3.0) == (Cancel(3), ArmTimer(3.2))
    assert machine.timer_fired(3.2) == (Start(4, "a", "failover"),)
    assert machine.pending(4, 3.2) == (ArmTimer(8.0),)


def test_a_path_that_comes_back_in_the_pause_ends_it():
    machine = sent_on_a(candidates=("a",))
    machine.reroute(("a",), 0, 0)
    assert machine.path_down("a", 1.0) == (Cancel(1), ArmTimer(1.05))
    machine.reroute(("a",), 0, 1)
    assert machine.path_back(1.01) == (Start(2, "a", "failover"),)
    machine.sent(2, 1.02)
    assert machine.doubled == 1


def test_a_request_that_must_not_be_repeated_is_answered_at_once_with_no_path_left():
    machine = sent_on_a(candidates=("a",), replay=Replay.NEVER)
    machine.reroute(("a",), 0, 0)
    cancel, give_up = machine.path_down("a", 1.0)
    assert cancel == Cancel(1)
    assert give_up.status == 502


def test_a_path_that_is_down_is_no_retry_while_another_is_not():
    machine = exchange(("a", "b"), reachable=1)
    machine.begin(0.0)
    assert machine.failed(1, REFUSED, 0.0) == (ArmTimer(0.05),)
    assert machine.timer_fired(0.05) == (Start(2, "a", "retry"),)


def test_a_down_path_is_not_repeated_but_as_a_last_resort():
    machine = exchange(("a", "b"))
    machine.begin(0.0)
    assert machine.path_down("b", 0.0) == ()
    assert machine.path_down("a", 0.0) == (Cancel(1), ArmTimer(0.05))
    assert machine.timer_fired(0.05) == (Start(2, "a", "failover"),)


def test_a_path_that_was_down_before_a_new_ranking_may_be_used():
    machine = exchange(("a", "b"), safe=True)
    machine.begin(0.0)
    machine.path_down("b", 0.0)
    machine.reroute(("b", "a"))
    assert machine.failed(1, REFUSED, 1.0) == (Start(2, "b", "retry"),)


def test_reroute_before_path_down_avoids_the_rest_of_the_line():
    machine = exchange(("cn2>x", "cn2>y", "bgp>x"))
    machine.begin(0.0)
    machine.reroute(("bgp>x", "cn2>x", "cn2>y"))
    assert machine.path_down("cn2>x", 0.0) == (Cancel(1), Start(2, "bgp>x", "failover"))
    assert machine.path_down("cn2>y", 0.0) == ()


def test_attempts_are_limited():
    machine = exchange(max_attempts=2)
    machine.begin(0.0)
    machine.failed(1, REFUSED, 0.0)
    (give_up,) = machine.failed(2, REFUSED, 0.0)
    assert "2 attempts" in give_up.reason


def test_attempts_that_lines_took_along_do_not_count():
    machine = sent_on_a(max_attempts=2)
    for number, (dead, back) in enumerate(("ab", "ba", "ab", "ba"), 1):
        machine.reroute((back, dead), None, 1)
        assert machine.path_down(dead, 1.0) == (
            Cancel(number),
            Start(number + 1, back, "failover"),
        )
        machine.sent(number + 1, 1.0)
    machine.reroute(("a", "b"))
    assert machine.failed(5, UNPROCESSED, 2.0) == (Start(6, "b", "retry"),)
    machine.sent(6, 2.0)
    (give_up,) = machine.failed(6, UNPROCESSED, 2.1)
    assert "2 attempts" in give_up.reason


def test_a_race_that_was_not_sent_does_not_count():
    machine = exchange(max_attempts=2)
    machine.begin(0.0)
    machine.pending(1, 0.0)
    assert machine.timer_fired(0.2) == (Start(2, "b", "race"),)
    assert Cancel(2) in machine.sent(1, 0.3)
    assert only(machine.failed(1, UNPROCESSED, 0.4), Start)


def test_lines_that_die_ever_again_end_it_at_last():
    machine = sent_on_a(max_attempts=2)
    for number in range(1, MOST_STARTS * 2):
        machine.reroute(("a", "b", "c"))
        assert only(machine.failed(number, DOWN, 1.0), Start)
        machine.sent(number + 1, 1.0)
    machine.reroute(("a", "b", "c"))
    (give_up,) = machine.failed(MOST_STARTS * 2, DOWN, 2.0)
    assert "2 attempts" in give_up.reason


def test_pauses_have_an_end():
    machine = exchange(("a",), safe=True, max_attempts=9)
    machine.begin(0.0)
    for number in range(1, 9):
        machine.sent(number, 10.0 * number)
        (timer,) = only(machine.failed(number, UNPROCESSED, 10.0 * number), ArmTimer) or [None]
        if timer is not None:  # the first repeat is at once
            assert timer.at - 10.0 * number <= MOST_PAUSE_S
            machine.timer_fired(timer.at)


def test_a_lost_replay_ends_repeats_hedges_and_races():
    machine = sent_on_a(safe=True)
    assert machine.replay_lost() == ()
    assert machine.timer_fired(0.5) == ()
    (give_up,) = machine.failed(1, UNPROCESSED, 1.0)
    assert "spool" in give_up.reason


def test_a_lost_replay_cancels_a_hedge_that_was_not_sent():
    machine = sent_on_a(safe=True)
    machine.timer_fired(0.5)
    assert machine.replay_lost() == (Cancel(2),)
    assert machine.live == (1,)


def test_budget_limits_retries_but_not_failover():
    empty = Bucket(capacity=0)
    (give_up,) = sent_on_a(safe=True, retries=empty).failed(1, RESET, 0.0)
    assert "budget" in give_up.reason
    assert only(sent_on_a(retries=empty).path_down("a", 0.0), Start)
    assert only(sent_on_a(retries=empty).failed(1, DOWN, 0.0), Start)
    machine = exchange(retries=empty)
    machine.begin(0.0)
    assert only(machine.failed(1, REFUSED, 0.0), Start)


def test_a_line_that_dies_under_load_costs_no_answer():
    retries = Bucket(share=0.1, per_s=1.0, capacity=20)
    machines = [sent_on_a(retries=retries) for _ in range(1000)]
    assert all(only(m.path_down("a", 0.1), Start) for m in machines)


def test_silence_is_no_answer_of_an_upstream_that_had_enough():
    mute = Failure(Outcome.TIMEOUT, "no handshake")
    assert only(sent_on_a(safe=True, retries=Bucket(capacity=0)).failed(1, mute, 5.0), Start)


@pytest.mark.parametrize("end", [RESET, Failure(Outcome.REFUSED, "nothing listens")])
def test_a_server_that_goes_takes_many_and_the_first_repeats_of_each_may_overdraw(end):
    retries = Bucket(capacity=3)
    most = round(3 * (1 + ENDED_OVERDRAFT))
    machines = [sent_on_a(safe=True, retries=retries) for _ in range(most + 2)]
    ends = [machine.failed(1, end, 0.0) for machine in machines]
    assert [type(e[0]) for e in ends] == [Start] * most + [GiveUp] * 2
    retries = Bucket(capacity=1)
    machine = sent_on_a(safe=True, retries=retries, hedge=False)
    for number in (1, 2):  # over its other line, too
        assert only(machine.failed(number, RESET, 0.0), Start)
        machine.sent(number + 1, 0.0)
    (give_up,) = machine.failed(3, RESET, 0.0)
    assert "budget" in give_up.reason


def test_who_is_refused_everywhere_asks_a_little_longer():
    refused = Failure(Outcome.REFUSED, "refused", unprocessed=True)

    def starts(failure):
        machine, now, count = exchange("a", max_attempts=3), 0.0, 0
        commands = machine.begin(now)
        while not any(isinstance(c, GiveUp) for c in commands):
            now += 0.4
            if any(isinstance(c, Start) for c in commands):
                count += 1
                machine.pending(machine.starts, now)
                commands = machine.failed(machine.starts, failure, now)
            else:
                commands = machine.timer_fired(now)
        return count

    assert starts(refused) == 3 + MORE_REFUSED
    assert starts(Failure(Outcome.TIMEOUT, "no answer", unprocessed=True)) == 3


def test_what_was_dialled_in_vain_is_waiting_in_the_dark():
    machine = exchange("a", patience_s=5.0)
    machine.begin(0.0)
    machine.pending(1, 0.0)
    machine.reroute("a", 0, 0)
    machine.failed(1, Failure(Outcome.TIMEOUT, "connect", True, path_down=True), 4.0)
    assert machine.stranded
    assert not only(machine.timer_fired(4.9), GiveUp)
    assert only(machine.timer_fired(5.1), GiveUp)


def test_in_the_dark_every_path_is_dialled_at_once_and_none_given_up():
    machine = exchange("abcdef", max_attempts=3, reachable=0, race_delay_s=2.0)
    now, told = 0.0, machine.begin(0.0)
    while starts := only(told, Start):
        now = machine.pending(starts[0].attempt, now)[0].at
        told = machine.timer_fired(now)
    assert machine.starts == 6
    assert now == 5.0, "and nothing but the end is waited for"
    assert only(told, Cancel) == [Cancel(number) for number in range(1, 7)]
    assert only(told, GiveUp)[0].status == 503


def test_a_path_that_comes_back_leaves_the_others_dialled():
    machine = exchange("abc", reachable=0)
    machine.begin(0.0)
    machine.pending(1, 0.0)
    machine.timer_fired(0.1)
    machine.pending(2, 0.1)
    machine.reroute("bac", 0, 1)
    assert machine.path_back(1.0) == (Cancel(2), Start(3, "b", "failover"))
    assert machine.live == (1, 3)
    assert machine.pending(3, 1.0) == (ArmTimer(2.0),), "c is asked, too, but later"
    assert machine.sent(1, 1.1) == (Cancel(3),)


def test_what_the_line_took_along_waits_since_it_fell_silent():
    def ends_at(sent_at, since):
        machine = exchange("a")
        machine.begin(sent_at)
        machine.sent(1, sent_at)
        machine.reroute("a", 0, 0)
        machine.path_down("a", 13.0, "3 slots silent", since)
        machine.timer_fired(13.05)
        return machine.pending(2, 13.05)[0].at

    assert ends_at(0.0, None) == 18.0
    assert ends_at(0.0, 10.0) == 15.0
    assert ends_at(11.0, 10.0) == 16.0, "not longer than it was there"
    assert ends_at(0.0, 2.0) == 14.0, "but a little is left"


def test_what_moved_in_vain_waits_since_it_had_to_move():
    machine = exchange("ab", safe=True, race_delay_s=None)
    machine.begin(0.0)
    machine.sent(1, 0.0)
    machine.moved(1, "b", 13.0, 12.0)
    machine.reroute("ab", 0, 0)
    machine.path_down("b", 14.0, "silent", 13.9)
    machine.timer_fired(14.05)
    assert machine.pending(2, 14.05) == (ArmTimer(17.0),)


def test_a_connection_that_nobody_gets_is_not_tried_for_ever():
    machine = exchange("a")
    timeout = Failure(Outcome.TIMEOUT, "no handshake", unprocessed=True)
    machine.begin(0.0)
    machine.pending(1, 0.0)
    (give_up,) = machine.failed(1, timeout, 5.0)
    assert give_up.status == 504
    assert "within 5 s" in give_up.reason


def test_last_resorts_leave_attempts_for_the_path_that_comes_back():
    machine = exchange("abcd", max_attempts=4, reachable=0)
    machine.begin(0.0)
    machine.pending(1, 0.0)
    mute = Failure(Outcome.TIMEOUT, "connect", unprocessed=True)
    assert only(machine.timer_fired(0.1), Start)
    machine.pending(2, 0.1)
    assert only(machine.failed(1, mute, 3.9) + machine.timer_fired(4.8), Start)
    machine.pending(3, 4.8)
    machine.failed(2, mute, 4.8)
    machine.timer_fired(4.9)
    machine.reroute("abcd", 1, 1)
    assert [start.path for start in only(machine.path_back(4.95), Start)] == ["a"]


def test_a_race_before_it_was_sent_does_not_make_its_end_a_second_one():
    machine = exchange(safe=True, retries=Bucket(capacity=0.25))
    machine.begin(0.0)
    machine.pending(1, 0.0)
    assert only(machine.timer_fired(0.1), Start)
    assert only(machine.sent(2, 0.2), Cancel)
    assert only(machine.failed(2, Failure(Outcome.REFUSED, "nothing listens"), 0.3), Start)


@pytest.mark.parametrize("failure", [UNPROCESSED, REFUSED])
def test_what_no_server_took_goes_to_each_other_path_whatever_the_budget(failure):
    empty = Bucket(capacity=0)
    machines = [sent_on_a(retries=empty) for _ in range(100)]
    for machine in machines:
        assert machine.failed(1, failure, 0.0) == (Start(2, "b", "retry"),)
        machine.sent(2, 0.0)
        assert machine.failed(2, failure, 0.0) == (Start(3, "c", "retry"),)
        machine.sent(3, 0.0)
        (give_up,) = machine.failed(3, failure, 0.0)  # each was asked
        assert "budget" in give_up.reason


def test_who_asks_again_where_it_was_refused_takes_a_token_and_may_overdraw():
    retries = Bucket(capacity=3)
    ends = [sent_on_a(candidates="a", retries=retries).failed(1, UNPROCESSED, 0) for _ in range(8)]
    assert [type(e[0]) for e in ends[6:]] == [GiveUp] * 2
    assert not any(only(e, GiveUp) for e in ends[:6])


def test_expired_is_504_and_client_gone_is_silent():
    machine = sent_on_a(safe=True)
    machine.timer_fired(0.5)
    cancels = machine.expired(600.0)
    assert cancels[:2] == (Cancel(1), Cancel(2))
    assert cancels[2].status == 504
    machine = sent_on_a(safe=True)
    machine.timer_fired(0.5)
    assert machine.client_gone(1.0) == (Cancel(1), Cancel(2))
    assert machine.done


def test_a_connect_timeout_everywhere_is_504():
    machine = exchange(("a", "b"), max_attempts=2)
    machine.begin(0.0)
    timeout = Failure(Outcome.TIMEOUT, "connect", unprocessed=True)
    machine.failed(1, timeout, 5.0)
    assert machine.failed(2, timeout, 10.0)[0].status == 504


class World:
    """Carries out commands as a driver would and watches the invariants."""

    def __init__(self, machine, traits):
        self.machine, self.traits = machine, traits
        self.live: dict[int, str] = {}
        self.sent: set[int] = set()
        self.risky: list[tuple[int, str]] = []  # attempts that may have been executed
        self.ends = self.doubled = 0
        self.timer = None
        self.lost = False

    def apply(self, commands, cause):
        for command in commands:
            assert not self.ends or isinstance(command, Cancel)
            match command:
                case Start(number, path, _, _):
                    assert path not in self.live.values()
                    assert not self.lost or number == 1
                    self.live[number] = path
                    assert number <= MOST_STARTS * self.traits.max_attempts
                    self.check_replay(cause)
                case Cancel(number, _):
                    del self.live[number]
                case Commit(number):
                    del self.live[number]
                    self.ends += 1
                case GiveUp():
                    assert not self.live
                    self.ends += 1
                case ArmTimer(at):
                    self.timer = at
            assert len(self.live) <= (2 if self.sent & self.live.keys() else 4)
        if self.ends:
            assert self.ends == 1
            assert not self.live
        elif cause != "gone":
            assert self.live or self.timer is not None

    def check_replay(self, cause):
        """Every earlier attempt that may have been executed must allow this one."""
        if not self.risky or self.traits.safe or self.traits.replay is Replay.ALWAYS:
            return
        assert self.traits.replay is Replay.LINE_DOWN
        assert all(ended == "down" for _, ended in self.risky), (cause, self.risky)

    def mark_sent(self, number):
        self.sent.add(number)
        self.doubled += bool(self.risky)
        self.risky.append((number, "live"))

    def end(self, number, how):
        del self.live[number]
        self.risky = [
            (n, how if n == number else e)
            for n, e in self.risky
            if n != number or how != "unprocessed"
        ]


EVENT = st.tuples(
    st.sampled_from(
        [
            "sent",
            "pending",
            "head",
            "held",
            "reset",
            "refused",
            "unprocessed",
            "down",
            "downfail",
            "suspect",
            "timer",
            "lost",
            "reroute",
            "back",
            "gone",
            "expired",
        ]
    ),
    st.integers(0, 3),
    st.floats(0.0, 0.4),
)


def step(world, machine, event, pick, now):
    live = sorted(world.live)
    number = live[pick % len(live)] if live else 1
    if event in {"sent", "pending"} and (not live or number in world.sent):
        return ()
    if event == "sent":
        world.mark_sent(number)
        return machine.sent(number, now)
    if event == "pending":
        return machine.pending(number, now)
    if event == "head" and number in world.sent and live:
        return machine.head_received(number, now)
    if event == "held" and number in world.sent and live:
        return machine.head_held(number, now)
    if event in {"reset", "unprocessed", "downfail"} and live and number in world.sent:
        how = {"reset": "reset", "unprocessed": "unprocessed", "downfail": "down"}[event]
        world.end(number, how)
        failure = {"reset": RESET, "unprocessed": UNPROCESSED, "downfail": DOWN}[event]
        return machine.failed(number, failure, now)
    if event == "refused" and live and number not in world.sent:
        del world.live[number]
        return machine.failed(number, REFUSED, now)
    if event == "down":
        path = "abcd"[pick]
        for n in live:
            if world.live[n] == path:
                world.risky = [(m, "down" if m == n else e) for m, e in world.risky]
        return machine.path_down(path, now)
    if event == "suspect":
        return machine.path_suspect("abcd"[pick], now)
    if event == "timer" and world.timer is not None:
        at, world.timer = max(world.timer, now), None
        return machine.timer_fired(at)
    if event == "lost":
        world.lost = True
        return machine.replay_lost()
    if event == "reroute":
        machine.reroute(list(itertools.permutations("abcd"))[pick * 5], None, pick)
    if event == "back":
        return machine.path_back(now)
    if event == "gone":
        return machine.client_gone(now)
    if event == "expired":
        return machine.expired(now)
    return ()


@settings(max_examples=600, deadline=None)
@given(
    st.lists(EVENT, max_size=40),
    st.booleans(),
    st.sampled_from(list(Replay)),
    st.booleans(),
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([0, 1, 10]),
)
def test_invariants(events, safe, replay, hedge, max_attempts, paths, reachable, tokens):
    traits = Traits(safe, replay, hedge, max_attempts)
    machine = exchange(
        "abcd"[:paths],
        safe=safe,
        replay=replay,
        hedge=hedge,
        max_attempts=max_attempts,
        retries=Bucket(capacity=tokens),
        hedges=hedging(tokens),
        reachable=reachable,
    )
    world, now, gone = World(machine, traits), 0.0, False
    world.apply(machine.begin(now), "begin")
    for event, pick, wait in events:
        now += wait
        was_done = machine.done
        commands = step(world, machine, event, pick, now)
        gone = gone or (event == "gone" and not was_done)
        if was_done:
            assert commands == ()
            continue
        world.apply(commands, "gone" if gone else event)
        assert machine.done == bool(world.ends or gone)
        assert machine.doubled == world.doubled


@pytest.mark.parametrize("end", ["down", "failed"])
def test_a_held_response_whose_line_died_comes_from_another_path(end):
    machine = sent_on_a()
    assert machine.head_held(1, 0.1) == ()
    if end == "down":
        assert machine.path_down("a", 0.5) == (Cancel(1), Start(2, "b", "failover"))
    else:
        assert machine.failed(1, DOWN, 0.5) == (Start(2, "b", "failover"),)
    machine.sent(2, 0.5)
    assert machine.doubled == 1
    machine.head_held(2, 0.6)
    assert machine.head_received(2, 0.7) == (Commit(2),)


def test_a_held_response_gets_no_company():
    machine = sent_on_a(safe=True)
    assert only(machine.timer_fired(0.5), Start) == [Start(2, "b", "hedge")]
    machine.sent(2, 0.5)
    assert machine.head_held(1, 0.6) == (Cancel(2),)
    assert only(machine.timer_fired(9.0), Start) == []
    assert machine.path_suspect("a", 9.0) == ()
    assert machine.carrier_lost(1, 9.0, "datagrams vanish") == ()


CARRIER_DOWN = Failure(Outcome.TIMEOUT, "datagrams vanish", carrier_down=True)


@pytest.mark.parametrize("event", ["lost", "failed"])
def test_a_lost_carrier_is_replaced_by_another_on_the_same_path(event):
    machine = sent_on_a()
    if event == "lost":
        commands = machine.carrier_lost(1, 1.0, "datagrams vanish")
        assert commands == (Cancel(1), Start(2, "a", "failover"))
    else:
        assert machine.failed(1, CARRIER_DOWN, 1.0) == (Start(2, "a", "failover"),)
    machine.sent(2, 1.0)
    assert machine.doubled == 1


def test_a_request_that_must_not_be_repeated_goes_on_with_its_connection():
    machine = sent_on_a(replay=Replay.NEVER)
    assert machine.carrier_lost(1, 1.0, "datagrams vanish") == ()
    machine.moved(1, "b", 1.0)
    assert machine.head_received(1, 1.3) == (Commit(1),)
    assert machine.doubled == 0


def test_a_lost_carrier_under_the_only_path_costs_no_pause():
    machine = sent_on_a(candidates=("a",))
    assert machine.failed(1, CARRIER_DOWN, 1.0) == (Start(2, "a", "failover"),)


def test_a_lost_carrier_changes_nothing_while_another_attempt_is_live():
    machine = sent_on_a(safe=True)
    machine.path_suspect("a", 0.1)
    assert machine.carrier_lost(1, 0.2, "datagrams vanish") == ()
    assert machine.head_received(2, 0.3) == (Commit(2), Cancel(1))


# -- migration -----------------------------------------------------------------------------------


def test_an_attempt_that_moved_goes_down_with_the_path_it_came_to():
    machine = exchange(safe=True)
    assert machine.begin(0) == (Start(1, "a"),)
    machine.sent(1, 0)
    machine.moved(1, "b", 1)
    assert machine.path_down("a", 1) == ()
    assert machine.starts == 1
    assert machine.path_down("b", 2) == (Cancel(1), Start(2, "c", "failover"))


def test_an_attempt_that_moved_is_not_joined_on_the_path_it_came_to():
    machine = exchange(safe=True)
    machine.begin(0)
    machine.sent(1, 0)
    machine.moved(1, "b", 1)
    machine.reroute(("b", "c"))
    assert machine.path_suspect("b", 1) == (Start(2, "c", "hedge"),)
    assert machine.head_received(1, 2) == (Commit(1), Cancel(2))


def test_what_is_over_does_not_move():
    machine = exchange(safe=True)
    machine.begin(0)
    machine.sent(1, 0)
    machine.head_received(1, 1)
    machine.moved(1, "b", 1)
    assert machine.path_down("b", 2) == ()


def test_an_attempt_that_left_a_dead_path_gets_another_beside():
    machine = sent_on_a()
    machine.reroute("bca", None, 2)
    assert machine.moved(1, "b", 0.5, 0.1, long=False) == (Start(2, "b", "failover"),)
    assert machine.told[0].reason == "path a is down"
    machine.sent(2, 0.5)
    assert machine.doubled == 1
    assert machine.carrier_lost(1, 0.8, "no answer yet") == ()
    assert machine.head_received(2, 0.9) == (Commit(2), Cancel(1))


def test_a_model_that_thinks_does_not_think_twice_when_its_connection_moves():
    machine = sent_on_a(safe=True)
    machine.reroute("ba", None, 1)
    assert machine.moved(1, "b", 1.5, 1.1, long=False) == ()
    assert machine.head_received(1, 60.0) == (Commit(1),)
