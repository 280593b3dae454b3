"""What the machine of one exchange (`policies.attempts`) is told once, and what it tells to do."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from policies.model import Failure, Outcome, Replay

Why: TypeAlias = Literal["first", "retry", "failover", "race", "hedge", "migration"]
"""``migration``: not a try of its own, but one that goes on over another line."""


class Traits(NamedTuple):
    """What the machine needs to know of a request and its policy."""

    safe: bool
    """Safe method (RFC 9110 section 9.2.1) or Idempotency-Key."""
    replay: Replay
    hedge: bool
    """The policy wants this request hedged."""
    max_attempts: int

    def may_repeat(self, *, line_failed: bool) -> bool:
        """The replay table for a request that may have been executed, without a response byte."""
        replay = self.replay
        by_line = line_failed and replay is Replay.LINE_DOWN
        return self.safe or replay is Replay.ALWAYS or by_line


class Start(NamedTuple):
    """Begin attempt number ``attempt`` (from 1) on ``path``."""

    attempt: int
    path: str
    why: Why = "first"
    reason: str = ""
    """The sentence that explains ``why``, for people; empty for the first."""


class Cancel(NamedTuple):
    """Give this attempt up; report nothing of it any more."""

    attempt: int
    failure: Failure | None = None
    """What ended it; ``None``: another attempt was better, or nobody waits."""


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


def status_of(failure: Failure) -> int:
    """What a client is told that gets no other answer."""
    if failure.path_down:
        return 503 if failure.unprocessed else 502
    return {Outcome.FORBIDDEN: 403, Outcome.TIMEOUT: 504}.get(failure.outcome, 502)


Command: TypeAlias = Start | Cancel | Commit | ArmTimer | GiveUp
Commands: TypeAlias = tuple[Command, ...]
