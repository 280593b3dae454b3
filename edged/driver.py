"""Carries out the commands of `policies.attempts`: what requests and tunnels share.

The machine decides; a `Driver` starts, cancels and remembers attempts, keeps the one timer, and
answers the client itself when the machine gives up. How an attempt reaches the upstream is the
subclass's affair.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from edged.accesslog import AttemptRecord, ExchangeRecord
from edged.downstream.base import Responder
from edged.headers import new_request_id
from edged.messages import RequestHead
from edged.outcome import cause, error_type
from policies.attempts import Exchange as Machine
from policies.commands import ArmTimer, Cancel, Commands, GiveUp, Start
from policies.model import Carrier, Change, Failure, Path, Ranking

if TYPE_CHECKING:
    from edged.exchanges import Exchanges, Plan
    from edged.targets import Target

UPGRADED_IDLE_S = 3600.0
"""Longest silence on a connection switched to raw bytes."""


class Candidates(NamedTuple):
    """What a machine chooses from."""

    paths: tuple[str, ...]
    """Their names, best first."""
    eligible: int
    """How many of them are fit for races and hedges."""
    reachable: int
    """How many of them are not DOWN."""


def candidates(ranking: Ranking, suits: Callable[[Path], bool] | None = None) -> Candidates:
    """The paths of ``ranking`` that suit.

    If none suits, all are taken: a request is never left without a path while there is one.
    """
    order = ranking.order
    if suits is not None:
        order = tuple(c for c in order if suits(c.state.path)) or order
    return Candidates(
        tuple(c.state.path.name for c in order),
        sum(not c.filtered for c in order),
        sum(c.filtered != "down" for c in order),
    )


class Try(Protocol):
    """What a driver needs of an attempt."""

    @property
    def number(self) -> int: ...
    @property
    def target(self) -> Target: ...
    @property
    def begun(self) -> Start: ...
    @property
    def started_at(self) -> float: ...
    @property
    def carrier(self) -> Carrier | None: ...
    @property
    def over(self) -> bool: ...
    @property
    def outlives_lines(self) -> bool:
        """It was sent to a relay as a flow: which of the lines there it takes is its own affair."""

    @property
    def bytes_up_wire(self) -> int: ...

    def start(self) -> None: ...
    def cancel(self) -> None: ...


TryT = TypeVar("TryT", bound=Try)


class Driver(ABC, Generic[TryT]):
    """One exchange's machine, attempts, timer and figures."""

    __slots__ = (
        "_timer",
        "deadline",
        "ended",
        "house",
        "live",
        "machine",
        "plan",
        "record",
        "request",
        "responder",
        "service",
        "started_at",
        "winner",
    )

    def __init__(
        self,
        house: Exchanges,
        plan: Plan,
        machine: Machine,
        request: RequestHead,
        responder: Responder,
    ) -> None:
        self.house = house
        self.plan = plan
        self.service = plan.service
        self.machine = machine
        self.request = request
        self.responder = responder
        self.started_at = now = monotonic()
        self.record = ExchangeRecord(
            new_request_id(),
            house.wall_offset_s + now,
            plan.ranking.upstream,
            request.method.decode("latin-1"),
            request.authority.decode("latin-1"),
            request.path.partition(b"?")[0].decode("latin-1"),
            client=responder.client,
            ranking=plan.ranking,
        )
        """What will be told of this exchange when it is over; kept up to date."""
        self.deadline = now + plan.first_byte_timeout_s
        """Monotonic time at which `deadline_passed` is called unless there is progress."""
        self.live: dict[int, TryT] = {}
        self.winner: TryT | None = None
        """The attempt whose response the client gets."""
        self.ended = False
        self._timer: asyncio.TimerHandle | None = None

    # -- for subclasses ---------------------------------------------------------------------------

    @abstractmethod
    def make_attempt(self, begun: Start, target: Target) -> TryT:
        """The attempt that ``begun`` orders, on ``target``; not started yet."""

    def suits(self, path: Path) -> bool:
        """Whether ``path`` will do for this exchange."""
        return True

    @abstractmethod
    def deadline_passed(self, now: float) -> None:
        """Too long without progress (`Exchanges.tick`)."""

    @abstractmethod
    def release(self) -> None:
        """Free what the subclass holds; called once, at the end."""

    def refuge(self, path: str) -> str | None:
        """The pooled path that this exchange would go to if ``path`` went DOWN now."""
        return None

    def touch(self, limit_s: float) -> None:
        """There was progress: the next is due in ``limit_s``."""
        self.deadline = monotonic() + limit_s

    # -- events -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """The request is ready to go."""
        self.carry_out(self.machine.begin(monotonic()))

    def gone(self) -> None:
        """The client left."""
        if not self.ended:
            self.carry_out(self.machine.client_gone(monotonic()))
            self.service.counters.client_gone += 1
            self.record.error = "client_gone"
            self.close()

    def attempt_failed(self, attempt: TryT, failure: Failure) -> None:
        """An attempt ended without a complete response, before any was committed."""
        if self.live.pop(attempt.number, None) is not None:
            self._remember(attempt, failure)
            self._reroute()
            self.carry_out(self.machine.failed(attempt.number, failure, monotonic()))

    def path_down(self, change: Change) -> None:
        """A path in use was declared DOWN. A flow goes on by itself, or waits for a line, unless
        the request may, and can, go another way than through its relay.
        """
        if not self.machine.done:
            others = self._reroute()
            if self._flow() is not None and not (self.machine.repeatable and others):
                return
            since = self.house.table.silent_since(change.path)
            self.carry_out(self.machine.path_down(change.path, monotonic(), change.reason, since))

    def carrier_lost(self, attempt: int, reason: str) -> None:
        """What an attempt runs on stopped working on its path, where others work."""
        if not self.machine.done:
            self._reroute()
            self.carry_out(self.machine.carrier_lost(attempt, monotonic(), reason))

    def path_suspect(self, change: Change) -> None:
        """A path in use became SUSPECT."""
        if not self.machine.done:
            self._reroute()
            self.carry_out(self.machine.path_suspect(change.path, monotonic(), change.reason))

    def path_back(self) -> None:
        """A path that was DOWN, perhaps of another upstream, is not any more."""
        if self.machine.stranded:
            self._reroute()
            self.carry_out(self.machine.path_back(monotonic()))

    def _timer_fired(self) -> None:
        self._timer = None
        if not self.machine.done:
            self._reroute()
            self.carry_out(self.machine.timer_fired(monotonic()))

    def _reroute(self) -> bool:
        """The order may have changed since the plan was made: whoever starts later takes the new.
        Beside a flow only other ways than through its relay count, as it has the lines to that for
        itself, and a second flow would be a second request. Whether any of those is not DOWN.

        Never for a first attempt: that is what the plan is for.
        """
        old = self.plan.ranking
        ranking = self.house.table.peek(old.upstream, old.request_class)
        flow = self._flow()
        if flow is None:
            self.machine.reroute(*candidates(ranking, self.suits))
            return True
        relay = flow.relay
        order = tuple(c for c in ranking.order if c.state.path.relay != relay)
        found = candidates(replace(ranking, order=order), self.suits)
        self.machine.reroute(*found)
        return found.reachable > 0

    def _flow(self) -> Path | None:
        """The path of the live attempt that is a flow."""
        return next((t.target.path for t in self.live.values() if t.outlives_lines), None)

    # -- commands ---------------------------------------------------------------------------------

    def carry_out(self, commands: Commands) -> None:
        """Carry out in order. `Commit` is the caller's, who holds the response head."""
        for command in commands:
            if isinstance(command, Start):
                self._start(command)
            elif isinstance(command, ArmTimer):
                self._arm(command.at)
            elif isinstance(command, Cancel):
                self._cancel(command.attempt, command.failure)
            elif isinstance(command, GiveUp):
                self._give_up(command)

    def _start(self, command: Start) -> None:
        attempt = self.make_attempt(command, self.house.targets.get(command.path))
        self.live[command.attempt] = attempt
        if command.attempt > 1:
            self._count_extra(command.why)
        attempt.start()

    def _count_extra(self, why: str) -> None:
        counters = self.service.counters
        if why == "hedge":
            counters.hedges += 1
        elif why != "race":
            counters.retries += 1
            counters.failovers += why == "failover"

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.machine.stranded:
            self.house.stranded[self] = None
        delay_s = max(0.0, at - monotonic())
        self._timer = self.house.loop.call_later(delay_s, self._timer_fired)

    def _cancel(self, number: int, failure: Failure | None = None) -> None:
        attempt = self.live.pop(number, None)
        if attempt is not None:
            self._remember(attempt, failure)
            attempt.cancel()

    def _give_up(self, command: GiveUp) -> None:
        error = error_type(command.failure, command.status)
        old = self.plan.ranking
        why = cause(command.failure, self.house.table.peek(old.upstream, old.request_class))
        detail = f"{old.upstream}: {why} ({command.reason})"
        self.fail(command.status, error, detail)

    def fail(self, status: int, error: str, detail: str) -> None:
        """Answer the client ourselves: no response of the upstream will come."""
        self.record.error = error
        self.record.status = status
        self.service.counters.errors[error] += 1
        self.house.send_error(self, error, detail)
        self.close()

    def close(self) -> None:
        """The end, whatever it was: free everything, hand in the figures."""
        self.ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        live, winner, record = self.live, self.winner, self.record
        if winner is not None and winner.over and len(live) == 1 and not record.attempts:
            record.bytes_up_wire = winner.bytes_up_wire
            live.clear()
        for number in tuple(live):
            self._cancel(number)
        self.release()
        self.house.closed(self)
        self.winner = None  # it refers to us: a cycle would leave both to the garbage collector

    def _remember(self, attempt: TryT, failure: Failure | None) -> None:
        record = self.record
        record.bytes_up_wire += attempt.bytes_up_wire
        record.attempts += (
            AttemptRecord(
                attempt.target.path.name,
                attempt.carrier,
                attempt.started_at - self.started_at,
                monotonic() - self.started_at,
                failure,
                attempt.begun.why,
                failure is None and not (attempt is self.winner and attempt.over),
                attempt.begun.reason,
            ),
        )
