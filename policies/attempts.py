"""The machine of one exchange: which paths are tried, when, and whether an attempt may be repeated.

Events in (past tense), commands out; no I/O, no clock. The caller carries out the commands in
order, at once, before the next event.

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
response begun, 429 and 503           committed             committed
====================================  ====================  =====================================

1. At most two attempts are live. Live attempts are on different paths.
2. Races. While the only live attempt is pending for longer than ``race_delay_s``, or its path is
   SUSPECT, a second one may start: nothing was sent, so nothing can happen twice. When one of two
   attempts is sent, another that is still pending is cancelled.
3. Hedges. At most one per exchange, from the hedge budget, ``hedge_delay_s`` after the request was
   sent, or at once when the path becomes SUSPECT.
4. Another path means: the best one that did not fail this exchange yet; then one that did, but is
   not DOWN, after a pause (none for the first repeat of a request that was sent: the pooled
   connection was stale). With ``max_attempts`` starts, races and hedges included, it is over.
5. A body that outgrew the spool cannot be repeated: no attempt starts any more.
6. Budget. Free are attempts after a path went DOWN, after a failure that is the line's, and after
   one of which nothing was sent: they put no second load on the upstream, and a line that dies
   under load must not cost answers while other paths are UP. A request refused unprocessed takes a
   retry token and may overdraw the bucket by its capacity. All other retries take a token or end.
7. Exactly one `Commit` or `GiveUp` ends the machine, or ``client_gone``. Until then there is a live
   attempt or an armed timer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

from policies.budget import Bucket
from policies.model import Blame, Failure, Outcome, Replay

REPEAT_PAUSE_S = 0.05
"""Before a path that failed is tried again; doubles with each attempt."""

Why: TypeAlias = Literal["first", "retry", "failover", "race", "hedge"]


class Traits(NamedTuple):
    """What the machine needs to know of a request and its policy."""

    safe: bool
    """Safe method (RFC 9110 section 9.2.1) or Idempotency-Key."""
    replay: Replay
    hedge: bool
    """The policy wants this request hedged."""
    max_attempts: int


class Start(NamedTuple):
    """Begin attempt number ``attempt`` (from 1) on ``path``."""

    attempt: int
    path: str
    why: Why = "first"


class Cancel(NamedTuple):
    """Give this attempt up; report nothing of it any more."""

    attempt: int


class Commit(NamedTuple):
    """This attempt's response is the answer."""

    attempt: int


class ArmTimer(NamedTuple):
    """Call ``timer_fired`` at ``at``; replaces any earlier timer."""

    at: float


class GiveUp(NamedTuple):
    """No answer will come. ``reason`` says why there is no further attempt."""

    failure: Failure
    reason: str
    status: int
    """502, 503 (no path), 504, or 403 for an address that edged refuses to dial."""


Command: TypeAlias = Start | Cancel | Commit | ArmTimer | GiveUp
Commands: TypeAlias = tuple[Command, ...]


class Hedges(Protocol):
    """Where the right to a hedge comes from: `policies.budget.HedgeBudget` or a `Bucket`."""

    def earn(self) -> None:
        """A request came."""

    def take(self, now: float) -> bool:
        """Take the right to one hedge."""


class _Attempt:
    """A live attempt."""

    __slots__ = ("number", "path", "pending_at", "sent_at")

    def __init__(self, number: int, path: str, pending_at: float) -> None:
        self.number = number
        self.path = path
        self.pending_at = pending_at
        self.sent_at: float | None = None


_NOTHING: Commands = ()
_FIRST_COMMIT: Commands = (Commit(1),)
_NO_PATH = Failure(Outcome.UNREACHABLE, "no path to this upstream", unprocessed=True)
_EXPIRED = Failure(Outcome.TIMEOUT, "no response within the limit")


class Exchange:
    """One exchange. ``candidates``: path names, best first; the first ``eligible`` of them (`None`:
    all) are fit for races and hedges, the others (DOWN, ejected, hot) are last resorts.

    After each `Start` the caller reports ``sent``, ``pending`` or ``failed`` for that attempt.
    ``hedge_delay_s`` and ``race_delay_s``: `None` means never. ``retries`` and ``hedges`` are the
    upstream's; the exchange earns in them when it begins.
    """

    __slots__ = (
        "_candidates",
        "_done",
        "_down",
        "_eligible",
        "_failed",
        "_hedge_delay_s",
        "_hedges",
        "_last_failure",
        "_live",
        "_race_delay_s",
        "_repeat_at",
        "_repeat_why",
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
        hedges: Hedges,
        *,
        hedge_delay_s: float | None,
        race_delay_s: float | None = None,
        eligible: int | None = None,
    ) -> None:
        self._candidates = candidates
        self._eligible = eligible
        self._traits = traits
        self._retries = retries
        self._hedges = hedges
        may_hedge = traits.hedge and (traits.safe or traits.replay is Replay.ALWAYS)
        self._hedge_delay_s = hedge_delay_s if may_hedge else None
        self._race_delay_s = race_delay_s
        self._live: list[_Attempt] = []
        # Paths that failed this exchange and that were declared DOWN during it. Made on demand.
        self._failed: set[str] | None = None
        self._down: set[str] | None = None
        self._repeat_at: float | None = None
        self._repeat_why: Why = "retry"
        self._last_failure: Failure | None = None
        self._replayable = True
        self._done = False
        self.starts = 0
        """Attempts started."""
        self.hedged = False
        self.doubled = 0
        """Attempts started although an earlier one may have been executed."""

    @property
    def done(self) -> bool:
        """Committed, given up, or the client is gone."""
        return self._done

    @property
    def live(self) -> tuple[int, ...]:
        """The numbers of the live attempts."""
        return tuple(a.number for a in self._live)

    # -- events ----------------------------------------------------------------------------------

    def begin(self, now: float) -> Commands:
        """The request head is here and its candidates are ranked."""
        self._retries.earn()
        self._hedges.earn()
        if not self._candidates:
            return self._give_up(_NO_PATH, "the upstream has no path", 503)
        path = self._candidates[0]
        self.starts = 1
        self._live.append(_Attempt(1, path, now))
        return (Start(1, path),)

    def pending(self, attempt: int, now: float) -> Commands:
        """`Start` found no free connection: one is being dialled or waited for."""
        live = self._find(attempt)
        if live is None or live.sent_at is not None or self._race_delay_s is None:
            return _NOTHING
        live.pending_at = now
        return self._arm(now)

    def sent(self, attempt: int, now: float) -> Commands:
        """The request (its head) was handed to a connection: from now on it may be executed."""
        live = self._find(attempt)
        if live is None or live.sent_at is not None:
            return _NOTHING
        live.sent_at = now
        if len(self._live) == 1:
            delay_s = self._hedge_delay_s
            return _NOTHING if delay_s is None or self.hedged else (ArmTimer(now + delay_s),)
        losers = [a for a in self._live if a.sent_at is None]
        for loser in losers:
            self._live.remove(loser)
        return (*[Cancel(a.number) for a in losers], *self._arm(now))

    def head_received(self, attempt: int, now: float) -> Commands:
        """The first byte of a final response."""
        live = self._find(attempt)
        if live is None:
            return _NOTHING
        self._done = True
        if len(self._live) == 1:
            self._live.clear()
            return _FIRST_COMMIT if attempt == 1 else (Commit(attempt),)
        losers = tuple(Cancel(a.number) for a in self._live if a is not live)
        self._live.clear()
        return (Commit(attempt), *losers)

    def failed(self, attempt: int, failure: Failure, now: float) -> Commands:
        """The attempt is over without a response head. (After `Commit` nothing is decided here.)"""
        live = self._find(attempt)
        if live is None:
            return _NOTHING
        self._live.remove(live)
        if self._failed is None:
            self._failed = set()
        self._failed.add(live.path)
        return self._after(live, failure, now)

    def path_down(self, path: str, now: float, reason: str = "declared DOWN") -> Commands:
        """``path`` was declared DOWN. Call `reroute` first: the next path may share its line."""
        if self._done:
            return _NOTHING
        if self._down is None:
            self._down = set()
        self._down.add(path)
        live = next((a for a in self._live if a.path == path), None)
        if live is None:
            if self._live or self._repeat_at is None or self._pick(repeat=True) is not None:
                return _NOTHING
            return self._give_up(self._last_failure or _NO_PATH, "no other path is left")
        self._live.remove(live)
        unsent = live.sent_at is None
        failure = Failure(Outcome.TIMEOUT, f"path {path} is down: {reason}", unsent, path_down=True)
        return (Cancel(live.number), *self._after(live, failure, now))

    def path_suspect(self, path: str, now: float) -> Commands:
        """``path`` became SUSPECT: redundancy is bought now, if it may be."""
        if len(self._live) != 1 or self._live[0].path != path or self._done:
            return _NOTHING
        return self._second(self._live[0], now)

    def timer_fired(self, now: float) -> Commands:
        """The armed time came. Early and stale calls are harmless."""
        if self._done:
            return _NOTHING
        if self._repeat_at is not None:
            return self._repeat(now)
        at = self._deadline()
        if at is None:
            return _NOTHING
        if now < at:
            return (ArmTimer(at),)
        return self._second(self._live[0], now)

    def reroute(self, candidates: Sequence[str], eligible: int | None = None) -> None:
        """A new ranking: the order of what may still be tried."""
        self._candidates = candidates
        self._eligible = eligible
        self._down = None

    def replay_lost(self) -> Commands:
        """The body outgrew the spool: it can no longer be repeated. Attempts that were sent carry
        on. (While nothing was sent the caller stops reading the body instead.)
        """
        self._replayable = False
        if all(a.sent_at is None for a in self._live):
            return _NOTHING
        losers = [a for a in self._live if a.sent_at is None]
        for loser in losers:
            self._live.remove(loser)
        return tuple(Cancel(a.number) for a in losers)

    def expired(self, now: float) -> Commands:
        """The policy's longest wait for a response head is over."""
        if self._done:
            return _NOTHING
        cancels = tuple(Cancel(a.number) for a in self._live)
        return (*cancels, *self._give_up(_EXPIRED, "first_byte_timeout_s of the policy"))

    def client_gone(self, now: float) -> Commands:
        """The client vanished: nobody waits for an answer."""
        if self._done:
            return _NOTHING
        self._done = True
        cancels = tuple(Cancel(a.number) for a in self._live)
        self._live.clear()
        self._repeat_at = None
        return cancels

    # -- decisions -------------------------------------------------------------------------------

    def _after(self, ended: _Attempt, failure: Failure, now: float) -> Commands:
        """What follows a live attempt's end: the replay table, then the budget."""
        if self._last_failure is None or not failure.path_down:
            self._last_failure = failure  # why it failed tells more than that the path is DOWN now
        if self._live:
            return self._arm(now)
        line_failed = (
            failure.path_down
            or failure.outcome is Outcome.UNREACHABLE
            or (self._down is not None and ended.path in self._down)
        )
        unsent = ended.sent_at is None
        unprocessed = unsent or failure.unprocessed
        traits = self._traits
        replay_allowed = (
            unprocessed
            or traits.safe
            or traits.replay is Replay.ALWAYS
            or (line_failed and traits.replay is Replay.LINE_DOWN)
        )
        if not replay_allowed:
            reason = f"it may have been executed, and replay: {traits.replay} forbids to repeat it"
            return self._give_up(failure, reason)
        refusal = self._cannot_start()
        if refusal:
            return self._give_up(self._last_failure, refusal)
        if self._pick(repeat=True) is None:
            return self._give_up(self._last_failure, "no other path is left")
        free = unsent or line_failed or failure.blame is Blame.LINE
        overdraft = self._retries.capacity if unprocessed else 0.0
        if not free and not self._retries.take(now, overdraft=overdraft):
            return self._give_up(failure, "the retry budget is spent")
        if not unprocessed:
            self.doubled += 1
        why: Why = "failover" if line_failed else "retry"
        path = self._pick()
        if path is not None:
            return self._start(path, why, now)
        stale = not unsent and self.starts == 1
        pause_s = 0.0 if stale else REPEAT_PAUSE_S * 2.0 ** (self.starts - 1)
        self._repeat_at = now + pause_s
        self._repeat_why = why
        return self._repeat(now)

    def _repeat(self, now: float) -> Commands:
        """After the pause: the best path there is now, failed before or not."""
        assert self._repeat_at is not None
        if now < self._repeat_at:
            return (ArmTimer(self._repeat_at),)
        self._repeat_at = None
        path = self._pick() or self._pick(repeat=True)
        if path is None or not self._replayable:
            return self._give_up(self._last_failure or _NO_PATH, "no other path is left")
        return self._start(path, self._repeat_why, now)

    def _second(self, live: _Attempt, now: float) -> Commands:
        """A second attempt beside ``live``: a race if that one is pending, else a hedge."""
        if self._cannot_start():
            return _NOTHING
        path = self._pick(self._eligible)
        if path is None:
            return _NOTHING
        if live.sent_at is None:
            return self._start(path, "race", now)
        if self._hedge_delay_s is None or self.hedged or not self._hedges.take(now):
            return _NOTHING
        self.hedged = True
        self.doubled += 1
        return self._start(path, "hedge", now)

    def _start(self, path: str, why: Why, now: float) -> Commands:
        self.starts += 1
        self._live.append(_Attempt(self.starts, path, now))
        return (Start(self.starts, path, why),)

    def _give_up(self, failure: Failure, reason: str, status: int | None = None) -> Commands:
        self._done = True
        self._live.clear()
        self._repeat_at = None
        if status is None and failure.outcome is Outcome.FORBIDDEN:
            status = 403
        if status is None:
            if failure.path_down:
                status = 503 if failure.unprocessed else 502
            else:
                status = 504 if failure.outcome is Outcome.TIMEOUT else 502
        return (GiveUp(failure, reason, status),)

    def _cannot_start(self) -> str:
        """Why no further attempt may start; empty if one may."""
        if not self._replayable:
            return "the request body outgrew the spool and cannot be repeated"
        if self.starts >= self._traits.max_attempts:
            return f"all {self._traits.max_attempts} attempts are used up"
        return ""

    def _pick(self, first: int | None = None, *, repeat: bool = False) -> str | None:
        """The best candidate (of the ``first``) that is not live, not DOWN and, unless ``repeat``,
        did not fail before.
        """
        live, down = self._live, self._down
        failed = None if repeat else self._failed
        for path in self._candidates[:first]:
            if down is not None and path in down:
                continue
            if failed is not None and path in failed:
                continue
            if live and path == live[0].path:
                continue
            return path
        return None

    def _deadline(self) -> float | None:
        """When the only live attempt gets company; `None`: never."""
        if len(self._live) != 1:
            return None
        live = self._live[0]
        if live.sent_at is None:
            return None if self._race_delay_s is None else live.pending_at + self._race_delay_s
        if self._hedge_delay_s is None or self.hedged:
            return None
        return live.sent_at + self._hedge_delay_s

    def _arm(self, now: float) -> Commands:
        at = self._deadline()
        return _NOTHING if at is None else (ArmTimer(max(at, now)),)

    def _find(self, attempt: int) -> _Attempt | None:
        for live in self._live:
            if live.number == attempt:
                return live
        return None
