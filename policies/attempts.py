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

Where only the carrier stopped working (datagrams vanish, TCP goes on) the rows of a path that is
DOWN count, and the path itself, on another carrier, is the first to be taken. A request that must
not be repeated goes on with its connection, if that can change its line.

1. At most two attempts are live. They start on different paths, but one may move to the other's.
2. Races. While the only live attempt is pending for longer than ``race_delay_s``, or its path is
   SUSPECT, a second one may start: nothing was sent, so nothing can happen twice. When one of two
   attempts is sent, another that is still pending is cancelled.
3. Hedges. At most one per exchange, from the hedge budget: at once when the path becomes SUSPECT,
   unless it has waited for long (the service thinks, and will for longer than the doubt lasts);
   else ``hedge_delay_s`` after the request was sent, if the upstream answered another exchange
   since. Where nobody is answered it is no tail: the service thinks, or the detector will tell.
4. Another path means: the best one that did not fail this exchange yet; then one that did, but is
   not DOWN, after a pause (none for the first repeat of a request that was sent: the pooled
   connection was stale). With ``max_attempts`` starts, races and hedges included, it is over. Those
   do not count that put no load on the upstream: a race that was cancelled before it was sent, a
   last resort that was not, an attempt whose path went DOWN, and the first `MORE_REFUSED` whose
   connection was refused where no path is untried: who restarts is back in a second or two.
   Lines may die faster than that; a multiple bounds them, too.
5. A body that outgrew the spool cannot be repeated: no attempt starts any more.
6. Budget. Free are attempts after a path went DOWN, after a failure that is the line's, after one
   of which nothing was sent, and after silence of its connection: they put no second load on the
   upstream, and a line that dies under load must not cost answers while other paths are UP. So is
   a path not yet tried, after a refusal unprocessed; to ask again where it was refused takes a
   token and may overdraw the bucket by its capacity. The first two repeats of a request whose
   connection ended, by word or because nothing listens any more, may overdraw it by several: a
   server that goes takes all of its connections at once, over whichever line. All other retries
   take a token or end.
7. Last resorts. While every path is DOWN each is tried once, at most two at a time, for
   ``patience_s`` in all unless one gets its request sent; a path that comes back is taken at once.
   It makes no difference whether the paths went DOWN before the request came or under it.
8. Exactly one `Commit` or `GiveUp` ends the machine, or ``client_gone``. Until then there is a live
   attempt or an armed timer.
"""

from __future__ import annotations

from collections.abc import Sequence

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
from policies.itinerary import Itinerary
from policies.live import LiveAttempt
from policies.model import Blame, Failure, Outcome, Replay

REPEAT_PAUSE_S = 0.05
"""Before a path that failed, or a last resort, is tried; doubles with each attempt."""
MOST_PAUSE_S = 1.0
PATIENCE_S = 5.0
MOST_STARTS = 4
"""Times ``max_attempts``, whatever the starts came to."""
MORE_REFUSED = 2
"""With the pauses before them they make 1.5 s of a refusal."""
ENDED_OVERDRAFT = 4.0
"""Times the capacity of the bucket: 80 requests more at once, where 20 tokens fit."""
THINKING_S = 1.0
"""Who waits for longer, and for twice the tail, waits for a service that thinks."""


_NOTHING: Commands = ()
_FIRST_COMMIT: Commands = (Commit(1),)
_NO_PATH = Failure(Outcome.UNREACHABLE, "no path to this upstream", unprocessed=True)
_ALL_DOWN = Failure(Outcome.TIMEOUT, "every path is DOWN", unprocessed=True, path_down=True)
_ENDS = (Outcome.RESET, Outcome.REFUSED)
_EXPIRED = Failure(Outcome.TIMEOUT, "no response within the limit")


class Exchange:
    """One exchange. ``candidates``, ``eligible`` and ``reachable`` are `Itinerary`'s.

    After each `Start` the caller reports ``sent``, ``pending`` or ``failed`` for that attempt.
    ``hedge_delay_s`` and ``race_delay_s``: `None` means never. ``retries`` and ``hedges`` are the
    upstream's; the exchange earns in them when it begins.
    """

    __slots__ = (
        "_done",
        "_executed",
        "_free",
        "_hedge_delay_s",
        "_hedges",
        "_last_failure",
        "_live",
        "_lost_at",
        "_paths",
        "_patience_s",
        "_race_delay_s",
        "_repeat",
        "_replayable",
        "_retries",
        "_traits",
        "doubled",
        "hedged",
        "starts",
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
        self._traits = traits
        self._retries = retries
        self._hedges = hedges
        may_hedge = traits.hedge and (traits.safe or traits.replay is Replay.ALWAYS)
        self._hedge_delay_s = hedge_delay_s if may_hedge else None
        self._race_delay_s = race_delay_s
        self._patience_s = patience_s
        self._live: list[LiveAttempt] = []
        self._lost_at: float | None = None
        """Since when no path is reachable and none was sent to; `None`: some is."""
        self._repeat: tuple[float, Why, str] | None = None
        """When the next attempt starts, with its why and reason; nothing is live until then."""
        self._last_failure: Failure | None = None
        self._executed = False
        """An attempt that has ended may have been executed."""
        self._replayable = True
        self._done = False
        self._free = 0
        """Starts that do not count."""
        self.starts = 0
        self.hedged = False
        self.doubled = 0
        """Attempts sent although another one may have been executed."""

    @property
    def done(self) -> bool:
        """Committed, given up, or the client is gone."""
        return self._done

    @property
    def live(self) -> tuple[int, ...]:
        """The numbers of the live attempts."""
        return tuple(a.number for a in self._live)

    @property
    def stranded(self) -> bool:
        """Every path is DOWN: call `path_back` when one is not any more."""
        return self._lost_at is not None and not self._done

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
        self.starts = 1
        self._live.append(LiveAttempt(1, path, now))
        if paths.reachable == 0:
            self._lost_at = now
            paths.tried_down(path)
            return (ArmTimer(now + self._patience_s), Start(1, path))
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
        if attempt > 1 or self._lost_at is not None:
            self._lost_at = None
            if self._executed or any(a.sent_at is not None for a in self._live if a is not live):
                self.doubled += 1
        if len(self._live) == 1:
            delay_s = self._hedge_delay_s
            return _NOTHING if delay_s is None or self.hedged else (ArmTimer(now + delay_s),)
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
        return _NOTHING if len(self._live) == 1 else tuple(self._drop_all_but(live))

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
        losers = self._drop_all_but(live)
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

    def moved(self, attempt: int, path: str) -> None:
        """The attempt goes on over ``path``, unrepeated (connection migration)."""
        live = self._find(attempt)
        if live is not None:
            live.path = path

    def path_down(self, path: str, now: float, reason: str = "declared DOWN") -> Commands:
        """``path`` was declared DOWN. Call `reroute` first: the next path may share its line."""
        if self._done:
            return _NOTHING
        self._paths.went_down(path)
        live = next((a for a in self._live if a.path == path), None)
        if live is None:
            if self._live or self._paths.pick(repeat=True) is not None:
                return _NOTHING
            if self._resort() is None:
                return self._give_up(self._last_failure or _ALL_DOWN, "no other path is left")
            self._lost_at = now if self._lost_at is None else self._lost_at
            return _NOTHING
        self._live.remove(live)
        unsent = live.sent_at is None
        failure = Failure(Outcome.TIMEOUT, f"path {path} is down: {reason}", unsent, path_down=True)
        return (Cancel(live.number, failure), *self._after(live, failure, now))

    def path_back(self, now: float) -> Commands:
        """A path that was DOWN can be used again. Call `reroute` first."""
        if not self.stranded or (path := self._paths.pick(repeat=True)) is None:
            return _NOTHING
        self._lost_at = None
        self._paths.found_again()
        if self._repeat is not None:
            self._repeat = (now, *self._repeat[1:])
            return self._start_repeat(now)
        if self._cannot_start():
            return _NOTHING
        # What was sent into the void waits for ever longer retransmissions: dial anew.
        stale = [a for a in self._live if a.path == path] or self._live[1:]
        cancels = self._drop(stale)
        return (*cancels, *self._start(path, "failover", f"path {path} is back", now))

    def path_suspect(self, path: str, now: float, reason: str = "declared SUSPECT") -> Commands:
        """``path`` became SUSPECT: redundancy is bought now, if it may be."""
        if len(self._live) != 1 or self._live[0].path != path or self._done:
            return _NOTHING
        live = self._live[0]
        waited_s = 0.0 if live.sent_at is None else now - live.sent_at
        if live.answering or waited_s > max(THINKING_S, 2 * (self._hedge_delay_s or 0.0)):
            return _NOTHING
        return self._second(live, now, f"path {path} is suspect: {reason}")

    def timer_fired(self, now: float) -> Commands:
        """The armed time came. Early and stale calls are harmless."""
        if self._done:
            return _NOTHING
        if self._lost_at is not None and now >= self._lost_at + self._patience_s:
            cancels = [Cancel(a.number) for a in self._live]
            reason = f"no path came back within {self._patience_s:g} s"
            failure = self._last_failure or _ALL_DOWN
            return (*cancels, *self._give_up(failure, reason, 502 if self._executed else 503))
        if self._repeat is not None:
            return self._start_repeat(now)
        at = self._company_at()
        if at is None or now < at:
            return self._arm(now)
        live = self._live[0]
        if live.sent_at is None:
            commands = self._second(live, now, f"no connection after {now - live.pending_at:.3f} s")
        elif self._hedges.answered_at <= live.sent_at:
            return _NOTHING
        else:
            commands = self._second(live, now, f"no answer after {now - live.sent_at:.3f} s")
        return commands if commands or self._lost_at is None else (self._end(self._lost_at),)

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
        path = self._paths.pick()
        most = self._traits.max_attempts
        restarts = failure.outcome is Outcome.REFUSED and path is None
        one_more = restarts and self.starts - self._free == most > self.starts - MORE_REFUSED
        in_vain = unsent and (self._lost_at is not None or one_more)
        self._free += failure.path_down or failure.carrier_down or in_vain
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
        silent = failure.outcome is Outcome.TIMEOUT
        no_load = unsent or (unprocessed and path is not None)
        free = no_load or line_failed or silent or failure.blame is Blame.LINE
        went = failure.outcome in _ENDS and self.starts - self._free <= 2
        overdraft = 1.0 if unprocessed else ENDED_OVERDRAFT * went
        if not free and not self._retries.take(now, overdraft=overdraft * self._retries.capacity):
            return self._give_up(failure, "the retry budget is spent")
        why: Why = "failover" if line_failed else "retry"
        if path is not None:
            return self._start(path, why, failure.detail, now)
        stale = not unsent and self.starts == 1 and again is not None
        pause_s = 0.0 if stale else min(MOST_PAUSE_S, REPEAT_PAUSE_S * 2.0 ** (self.starts - 1))
        self._repeat = (now + pause_s, why, failure.detail)
        if again is None and self._lost_at is None:
            # What was dialled in vain was waiting, too; but a half is left.
            self._lost_at = max(ended.pending_at, now - self._patience_s / 2) if unsent else now
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
        start = self._start(path, why, reason, now)
        return start if self._lost_at is None else (self._end(self._lost_at), *start)

    def _second(self, live: LiveAttempt, now: float, reason: str) -> Commands:
        """A second attempt beside ``live``: a race if that one is pending, else a hedge."""
        if self._cannot_start():
            return _NOTHING
        path = self._paths.pick_fit(but=live.path)
        if live.sent_at is None:
            if path is None and self._lost_at is not None:
                path = self._resort()
            return _NOTHING if path is None else self._start(path, "race", reason, now)
        if path is None or self._hedge_delay_s is None or self.hedged:
            return _NOTHING
        self.hedged = self._hedges.take(now)
        return self._start(path, "hedge", reason, now) if self.hedged else _NOTHING

    def _start(self, path: str, why: Why, reason: str, now: float) -> Commands:
        if self._lost_at is not None:
            self._paths.tried_down(path)
        self.starts += 1
        self._live.append(LiveAttempt(self.starts, path, now))
        return (Start(self.starts, path, why, reason),)

    def _drop_all_but(self, winner: LiveAttempt) -> list[Cancel]:
        return self._drop([a for a in self._live if a is not winner])

    def _drop(self, losers: list[LiveAttempt]) -> list[Cancel]:
        for loser in losers:
            self._live.remove(loser)
            self._free += loser.sent_at is None
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
        most = self._traits.max_attempts
        if self.starts - self._free >= most or self.starts >= MOST_STARTS * most:
            return f"all {most} attempts are used up"
        return ""

    def _resort(self) -> str | None:
        return self._paths.resort([a.path for a in self._live])

    # -- time --------------------------------------------------------------------------------------

    def _company_at(self) -> float | None:
        """When the only live attempt gets company; `None`: never."""
        if len(self._live) != 1:
            return None
        hedge_delay_s = None if self.hedged else self._hedge_delay_s
        return self._live[0].company_at(self._race_delay_s, hedge_delay_s)

    def _arm(self, now: float) -> Commands:
        at = self._company_at()
        if self._lost_at is not None:
            end_at = self._lost_at + self._patience_s
            at = end_at if at is None else min(at, end_at)
        return _NOTHING if at is None else (ArmTimer(max(at, now)),)

    def _end(self, lost_at: float) -> ArmTimer:
        return ArmTimer(lost_at + self._patience_s)

    def _find(self, attempt: int) -> LiveAttempt | None:
        for live in self._live:
            if live.number == attempt:
                return live
        return None
