"""The machine of one exchange: which paths are tried, when, and whether an attempt may be repeated.

Events in (past tense), commands out (`policies.commands`); no I/O, no clock. The caller carries out
the commands in order, at once, before the next event.

Attempts. An attempt is *pending* from `Start` until its request is handed to a connection (`sent`);
from then on the upstream may have executed it, unless a `Failure` says ``unprocessed``. The first
response head commits: `Commit`, the other attempt is cancelled, and the machine is done. Whatever
happens to the response after that (migration, broken body) is not decided here.

Rules (DESIGN 3, the replay table):

====================================  ====================  =====================================
what happened to the attempt          safe                  other methods, by ``replay``
====================================  ====================  =====================================
pending or refused unprocessed        another path          another path
sent, no response byte, path DOWN     another path          line-down, always: another; never: 502
sent, failed otherwise (reset ...)    another path          always: another path; else 502
sent, no response byte, only slow     hedge if ``hedge``    hedge if ``hedge`` and always
held response, path DOWN              another path          line-down, always: another path
response begun, 429 and 503           committed             committed
====================================  ====================  =====================================

A response is *held* while it has begun and nothing of it was passed on: a short one, until it is
whole. To whom it matters it has not begun. Where ``replay: never`` rules none is held.

An attempt may go on over another line, unrepeated. Where its path was DOWN, and the table allows
it, the request goes to another connection as well: the first answer counts. Not when it has waited
for long (a service that thinks would think twice), nor with a long body.

Where only the carrier stopped working (datagrams vanish, TCP goes on) the rows of a path that is
DOWN count, and the path itself, on another carrier, is the first to be taken. A request that must
not be repeated goes on with its connection, if that can change its line.

1. At most two attempts are live where one was sent; else one a path. They start on different
   paths, but one may move to the other's.
2. Redundancy, races and hedges: `policies.company`. When one of several attempts is sent, those
   that are still pending are cancelled.
3. Time without any path: `policies.wait`. While every path is DOWN each is a last resort, tried
   once, all of them together: they race as others do. A path that comes back is tried anew at
   once. Whether the paths went DOWN before the request came or under it makes no difference.
4. Another path means: the best one that did not fail this exchange yet; then one that did, but is
   not DOWN, after a pause (none for the first repeat of a request that was sent: the pooled
   connection was stale). How many there may be, and what they cost: `policies.allowance`.
5. A body that outgrew the spool cannot be repeated: no attempt starts any more.
6. Exactly one `Commit` or `GiveUp` ends the machine, or ``client_gone``. Until then there is a live
   attempt or an armed timer.
"""

from __future__ import annotations

from collections.abc import Sequence

from policies.allowance import Allowance
from policies.budget import Bucket, HedgeBudget
from policies.commands import (
    ArmTimer,
    Cancel,
    Commands,
    Commit,
    GiveUp,
    Start,
    Traits,
    Why,
    status_of,
)
from policies.company import Company
from policies.itinerary import Itinerary
from policies.live import LiveAttempt
from policies.model import Failure, Outcome, Replay
from policies.wait import Wait

REPEAT_PAUSE_S = 0.05
"""Before a path that failed, or a last resort, is tried; doubles with each attempt."""
MOST_PAUSE_S = 1.0
PATIENCE_S = 5.0

_NOTHING: Commands = ()
_FIRST_COMMIT: Commands = (Commit(1),)
_NO_PATH = Failure(Outcome.UNREACHABLE, "no path to this upstream", unprocessed=True)
_ALL_DOWN = Failure(Outcome.TIMEOUT, "every path is DOWN", unprocessed=True, path_down=True)
_EXPIRED = Failure(Outcome.TIMEOUT, "no response within the limit")


class Exchange:
    """One exchange. ``candidates``, ``eligible`` and ``reachable`` are `Itinerary`'s.

    After each `Start` the caller reports ``sent``, ``pending`` or ``failed`` for that attempt.
    ``hedge_delay_s`` and ``race_delay_s`` are `Company`'s. ``retries`` and ``hedges`` are the
    upstream's; the exchange earns in them when it begins.
    """

    __slots__ = (
        "_allowance",
        "_company",
        "_done",
        "_executed",
        "_hedges",
        "_last_failure",
        "_live",
        "_paths",
        "_patience_s",
        "_repeat",
        "_replayable",
        "_retries",
        "_traits",
        "_wait",
        "doubled",
    )

    def __init__(
        self,
        candidates: Sequence[str],
        traits: Traits,
        retries: Bucket,
        hedges: HedgeBudget,
        *,
        hedge_delay_s: float | None,
        race_delay_s: float | None = None,
        eligible: int | None = None,
        reachable: int | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._paths = Itinerary(candidates, eligible, reachable)
        self._allowance = Allowance(traits.max_attempts, retries)
        self._traits = traits
        self._retries = retries
        self._hedges = hedges
        may_hedge = traits.hedge and (traits.safe or traits.replay is Replay.ALWAYS)
        self._company = Company(
            self._paths, hedges, hedge_delay_s if may_hedge else None, race_delay_s
        )
        self._patience_s = patience_s
        self._live: list[LiveAttempt] = []
        self._wait = Wait(patience_s)
        self._repeat: tuple[float, Why, str] | None = None
        """When the next attempt starts, with its why and reason; nothing is live until then."""
        self._last_failure: Failure | None = None
        self._executed = False
        """An attempt that has ended may have been executed."""
        self._replayable = True
        self._done = False
        self.doubled = 0
        """Attempts sent although another one may have been executed."""

    @property
    def done(self) -> bool:
        """Committed, given up, or the client is gone."""
        return self._done

    @property
    def starts(self) -> int:
        """How many attempts there were."""
        return self._allowance.starts

    @property
    def hedged(self) -> bool:
        """There was a hedge."""
        return self._company.hedged

    @property
    def live(self) -> tuple[int, ...]:
        """The numbers of the live attempts."""
        return tuple(a.number for a in self._live)

    @property
    def stranded(self) -> bool:
        """Nothing was sent yet: call `path_back` when a path is not DOWN any more."""
        return self._wait.since is not None and not self._done

    @property
    def repeatable(self) -> bool:
        """Whether a request that was sent may go again when its path is DOWN."""
        allowed = self._traits.safe or self._traits.replay is not Replay.NEVER
        return allowed and self._replayable

    # -- events ----------------------------------------------------------------------------------

    def begin(self, now: float) -> Commands:
        """The request head is here and its candidates are ranked."""
        self._retries.earn()
        self._hedges.earn()
        paths = self._paths
        if not paths.order:
            return self._give_up(_NO_PATH, "the upstream has no path", 503)
        path = paths.order[0]
        self._allowance.starts = 1
        self._live.append(LiveAttempt(1, path, now))
        self._wait.begin(now)
        if paths.reachable == 0:
            self._wait.darken(now)
            paths.tries(path)
        return (Start(1, path),)

    def pending(self, attempt: int, now: float) -> Commands:
        """`Start` found no free connection: one is being dialled or waited for."""
        live = self._find(attempt)
        if live is None or live.sent_at is not None:
            return _NOTHING
        live.pending_at = now
        return self._arm(now)

    def sent(self, attempt: int, now: float) -> Commands:
        """The request (its head) was handed to a connection: from now on it may be executed."""
        live = self._find(attempt)
        if live is None or live.sent_at is not None:
            return _NOTHING
        live.sent_at = now
        self._wait.sent()
        if attempt > 1 and (self._executed or any(a.sent_at is not None for a in self._but(live))):
            self.doubled += 1
        if len(self._live) == 1:
            hedge_at = self._company.hedge_at(now)
            return _NOTHING if hedge_at is None else (ArmTimer(hedge_at),)
        losers = [a for a in self._live if a.sent_at is None]
        return (*self._drop(losers), *self._arm(now))

    def head_held(self, attempt: int, now: float) -> Commands:
        """A final response has begun and is held back until it is whole; `head_received` follows
        when something of it is to be passed on. It gets no company any more."""
        live = self._find(attempt)
        if live is None:
            return _NOTHING
        live.answering = True
        self._hedges.answered_at = now
        return _NOTHING if len(self._live) == 1 else tuple(self._drop(self._but(live)))

    def head_received(self, attempt: int, now: float) -> Commands:
        """Something of a final response is passed on."""
        live = self._find(attempt)
        if live is None:
            return _NOTHING
        self._done = True
        self._hedges.answered_at = now
        if len(self._live) == 1:
            self._live.clear()
            return _FIRST_COMMIT if attempt == 1 else (Commit(attempt),)
        losers = self._drop(self._but(live))
        self._live.clear()
        return (Commit(attempt), *losers)

    def failed(self, attempt: int, failure: Failure, now: float) -> Commands:
        """The attempt is over without a response head. (After `Commit` nothing is decided here.)"""
        live = self._find(attempt)
        if live is None:
            return _NOTHING
        self._live.remove(live)
        if failure.path_down:
            self._paths.went_down(live.path)
        elif not failure.carrier_down:  # else the path is as good as any
            self._paths.failed(live.path)
        return self._after(live, failure, now)

    def carrier_lost(self, attempt: int, now: float, reason: str) -> Commands:
        """What the attempt runs on stopped working on its path, where others work. Nothing follows
        if the request must not be repeated, or is being answered: its connection may go on over
        another line.
        """
        live = self._find(attempt)
        if live is None or len(self._live) > 1 or live.answering:
            return _NOTHING
        if not self.repeatable or self._cannot_start():
            return _NOTHING
        self._live.remove(live)
        failure = Failure(Outcome.TIMEOUT, reason, live.sent_at is None, carrier_down=True)
        return (Cancel(live.number, failure), *self._after(live, failure, now))

    def moved(
        self, attempt: int, path: str, now: float, since: float | None = None, *, long: bool = True
    ) -> Commands:
        """The attempt goes on over ``path``, unrepeated (connection migration). Call `reroute`
        first. ``since``: when the path that it left, which is DOWN, fell silent. ``long``: its body
        had better not be sent again beside.
        """
        live = self._find(attempt)
        if live is None:
            return _NOTHING
        left, live.path = live.path, path
        live.lost(now if since is None else since)
        if since is None or long or len(self._live) > 1 or live.answering or not self.repeatable:
            return _NOTHING
        best = self._paths.pick()
        if best is None or self._company.thinks(live, now) or self._cannot_start():
            return _NOTHING
        return self._start(best, "failover", f"path {left} is down", now)

    def path_down(
        self, path: str, now: float, reason: str = "declared DOWN", since: float | None = None
    ) -> Commands:
        """``path`` was declared DOWN, and silent ``since``. Call `reroute` first: the next path may
        share its line."""
        if self._done:
            return _NOTHING
        self._paths.went_down(path)
        live = next((a for a in self._live if a.path == path), None)
        if live is None:
            if not self._is_dark(now):
                return _NOTHING
            if not self._live and self._resort() is None:
                return self._give_up(self._last_failure or _ALL_DOWN, "no other path is left")
            return self._arm(now)
        self._live.remove(live)
        live.lost(now if since is None else since)
        unsent = live.sent_at is None
        failure = Failure(Outcome.TIMEOUT, f"path {path} is down: {reason}", unsent, path_down=True)
        return (Cancel(live.number, failure), *self._after(live, failure, now))

    def path_back(self, now: float) -> Commands:
        """A path that was DOWN can be used again. Call `reroute` first."""
        dark = self._wait.dark
        taken = () if dark else [a.path for a in self._live]
        path = self._paths.pick(repeat=dark, but=taken)
        if not self.stranded or path is None:
            return _NOTHING
        if not dark:
            race = self._live and not self._cannot_start()
            return self._start(path, "race", f"path {path} is back", now) if race else _NOTHING
        self._wait.dawn()
        self._paths.found_again()
        if self._repeat is not None:
            self._repeat = (now, *self._repeat[1:])
            return self._start_repeat(now)
        # What was sent into the void waits for ever longer retransmissions: dial anew.
        cancels = self._drop([a for a in self._live if a.path == path])
        if self._cannot_start():
            return (*cancels, *self._arm(now))
        return (*cancels, *self._start(path, "failover", f"path {path} is back", now))

    def path_suspect(self, path: str, now: float, reason: str = "declared SUSPECT") -> Commands:
        """``path`` became SUSPECT: redundancy is bought now, if it may be."""
        if len(self._live) != 1 or self._live[0].path != path or self._done:
            return _NOTHING
        live = self._live[0]
        if live.answering or self._company.thinks(live, now):
            return _NOTHING
        return self._join(now, f"path {path} is suspect: {reason}")

    def timer_fired(self, now: float) -> Commands:
        """The armed time came. Early and stale calls are harmless."""
        if self._done:
            return _NOTHING
        if self._wait.is_over(now):
            cancels = [Cancel(a.number) for a in self._live]
            what = "no path came back" if self._wait.dark else "no connection"
            reason = f"{what} within {self._patience_s:g} s"
            failure = self._last_failure or _ALL_DOWN
            return (*cancels, *self._give_up(failure, reason, 502 if self._executed else 503))
        if self._repeat is not None:
            return self._start_repeat(now)
        self._is_dark(now)
        at = self._company.due_at(self._live, dark=self._wait.dark)
        if at is None or now < at:
            return self._arm(now)
        if self._company.in_vain(self._live):
            return _NOTHING
        first = self._live[0]
        if first.sent_at is None:
            return self._join(now, f"no connection after {now - first.pending_at:.3f} s")
        return self._join(now, f"no answer after {now - first.sent_at:.3f} s")

    def reroute(
        self, candidates: Sequence[str], eligible: int | None = None, reachable: int | None = None
    ) -> None:
        """A new ranking: the order of what may still be tried."""
        self._paths.reroute(candidates, eligible, reachable)

    def replay_lost(self) -> Commands:
        """The body outgrew the spool: it can no longer be repeated. Attempts that were sent carry
        on. (While nothing was sent the caller stops reading the body instead.)
        """
        self._replayable = False
        losers = [a for a in self._live if a.sent_at is None]
        return _NOTHING if len(losers) == len(self._live) else tuple(self._drop(losers))

    def expired(self, now: float) -> Commands:
        """The policy's longest wait for a response head is over."""
        if self._done:
            return _NOTHING
        cancels = tuple(Cancel(a.number, _EXPIRED) for a in self._live)
        return (*cancels, *self._give_up(_EXPIRED, "first_byte_timeout_s of the policy"))

    def client_gone(self, now: float) -> Commands:
        """The client vanished: nobody waits for an answer."""
        if self._done:
            return _NOTHING
        self._done = True
        cancels = tuple(Cancel(a.number) for a in self._live)
        self._live.clear()
        self._repeat = None
        return cancels

    # -- decisions -------------------------------------------------------------------------------

    def _after(self, ended: LiveAttempt, failure: Failure, now: float) -> Commands:
        """What follows a live attempt's end: the replay table, then the budget."""
        if self._last_failure is None or not failure.path_down:
            self._last_failure = failure  # why it failed tells more than that the path is DOWN now
        line_failed = failure.line_failed or self._paths.is_down(ended.path)
        unsent = ended.sent_at is None
        if all(a.sent_at is None for a in self._live):
            self._wait.begin(now if ended.lost_at is None else ended.lost_at)
        dark = self._is_dark(now)
        path = self._paths.pick()
        untried = path is not None
        self._allowance.ended(failure, unsent=unsent, resort=dark, untried=untried)
        unprocessed = unsent or failure.unprocessed
        self._executed = self._executed or not unprocessed
        if self._live:
            return self._arm(now)
        if not (unprocessed or self._traits.may_repeat(line_failed=line_failed)):
            replay = self._traits.replay
            reason = f"it may have been executed, and replay: {replay} forbids to repeat it"
            return self._give_up(failure, reason)
        refusal = self._cannot_start()
        if refusal:
            return self._give_up(self._last_failure, refusal)
        again = self._paths.pick(repeat=True)
        if again is None and self._resort() is None:
            return self._give_up(self._last_failure, "no other path is left")
        if path is None and unsent and not dark and self._wait.worn_out(now):
            return self._give_up(failure, f"no connection within {self._patience_s:g} s")
        if not self._allowance.pays(
            failure, now, line_failed=line_failed, unsent=unsent, untried=untried
        ):
            return self._give_up(failure, "the retry budget is spent")
        why: Why = "failover" if line_failed else "retry"
        if path is not None:
            return self._start(path, why, failure.detail, now)
        stale = not unsent and self.starts == 1 and again is not None
        pause_s = 0.0 if stale else min(MOST_PAUSE_S, REPEAT_PAUSE_S * 2.0 ** (self.starts - 1))
        self._repeat = (now + pause_s, why, failure.detail)
        return self._start_repeat(now)

    def _start_repeat(self, now: float) -> Commands:
        """After the pause: the best path there is now, failed before or not; else a last resort."""
        assert self._repeat is not None
        at, why, reason = self._repeat
        if now < at:
            return (ArmTimer(at),)
        self._repeat = None
        path = self._paths.pick() or self._paths.pick(repeat=True) or self._resort()
        if path is None or not self._replayable:
            return self._give_up(self._last_failure or _NO_PATH, "no other path is left")
        return self._start(path, why, reason, now)

    def _join(self, now: float, reason: str) -> Commands:
        """One more attempt beside those that are live, if there may be one."""
        found = None if self._cannot_start() else self._company.take(self._live, now)
        if found is None:
            end_at = self._wait.end_at
            return _NOTHING if end_at is None else (ArmTimer(end_at),)
        return self._start(*found, reason, now)

    def _start(self, path: str, why: Why, reason: str, now: float) -> Commands:
        self._paths.tries(path)
        self._allowance.starts = number = self._allowance.starts + 1
        self._live.append(LiveAttempt(number, path, now))
        return (Start(number, path, why, reason),)

    def _drop(self, losers: list[LiveAttempt]) -> list[Cancel]:
        for loser in losers:
            self._live.remove(loser)
        self._allowance.dropped(sum(loser.sent_at is None for loser in losers))
        return [Cancel(loser.number) for loser in losers]

    def _give_up(self, failure: Failure, reason: str, status: int | None = None) -> Commands:
        self._done = True
        self._live.clear()
        self._repeat = None
        return (GiveUp(failure, reason, status_of(failure) if status is None else status),)

    def _cannot_start(self) -> str:
        """Why no further attempt may start; empty if one may."""
        if not self._replayable:
            return "the request body outgrew the spool and cannot be repeated"
        return self._allowance.spent(sum(a.sent_at is None for a in self._live))

    def _is_dark(self, now: float) -> bool:
        """Whether nothing is under way and every path is DOWN, as of now."""
        if self._wait.since is not None and self._paths.pick(repeat=True) is None:
            self._wait.darken(now)
        return self._wait.dark

    def _resort(self) -> str | None:
        return self._paths.resort([a.path for a in self._live])

    # -- time --------------------------------------------------------------------------------------

    def _arm(self, now: float) -> Commands:
        at, end_at = self._company.due_at(self._live, dark=self._wait.dark), self._wait.end_at
        if end_at is not None:
            at = end_at if at is None else min(at, end_at)
        return _NOTHING if at is None else (ArmTimer(max(at, now)),)

    def _but(self, attempt: LiveAttempt) -> list[LiveAttempt]:
        return [a for a in self._live if a is not attempt]

    def _find(self, attempt: int) -> LiveAttempt | None:
        for live in self._live:
            if live.number == attempt:
                return live
        return None
