"""All flows of a relay: who owns which, what each client spends, and when a flow is given up.

Every deadline of one kind is the same time away, so that the order of insertion is the order of
the deadlines: nothing is ever searched for what is due. Ids belong to the client (its token) that
made them; nobody else can find, join or even collide with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from edged.headers import error_response
from edged.messages import ResponseHead
from edged.relay.dictionary import Library, Store
from edged.relay.flow import Flow, State
from edged.relay.journal import Account, Share
from policies.budget import Bucket

BURST_S = 2.0
"""Requests and bytes that a client may ask for at once, in seconds of its rate."""
INFINITE = float("inf")


@dataclass(frozen=True, slots=True)
class FlowLimits:
    """What all clients together may hold."""

    flow_bytes: int = 4 << 20
    """Response bytes kept for one flow. Measured over 150 ms with 1% loss and 100 Mbit/s, 1 MiB
    carries 21 Mbit/s of the 39 that TCP with bbr reaches, 4 MiB all of them."""
    total_bytes: int = 256 << 20
    """Response bytes kept for all flows (`edged.relay.journal`). When they hold too much each may
    still hold 16 KiB, and what its connection brings at once."""
    dictionary_bytes: int = 64 << 20
    """Earlier request bodies, against which the next ones are decoded, of all clients together."""
    flows: int = 16384
    linger_s: float = 30.0
    """How long a flow is kept that no line carries."""
    gone_s: float = 120.0
    """How long an id is remembered that has been used, so that it cannot be used again."""
    gone: int = 65536
    """How many of them."""


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What one client may hold and ask for."""

    flows: int = 4096
    requests_per_s: float | None = None
    bytes_per_s: float | None = None
    """Both directions together; beyond it flows are slowed down, not refused."""


class Follower(Protocol):
    """Who wants to know how far a client's uploads are (a pulse)."""

    def upload_moved(self, flow: Flow) -> None:
        """It took bytes, or its end."""

    def close(self) -> None:
        """The client may do nothing any more."""


class TooMany(Exception):
    """No further flow: the client's limit is reached (429), or the relay's (503)."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Ledger:
    """What one client holds and has spent. It survives a reload, by the client's name."""

    __slots__ = (
        "_bytes",
        "_requests",
        "bodies_coded",
        "bodies_plain",
        "dictionaries",
        "dictionaries_missed",
        "done",
        "flows",
        "followers",
        "heard_at",
        "histories",
        "limits",
        "name",
        "opened",
        "refused",
        "sent_twice",
        "share",
        "taken_twice",
        "waiting",
    )

    def __init__(self, name: str, limits: ClientLimits, share: Share, dictionaries: Store) -> None:
        self.name = name
        self.share = share
        """What its journals hold."""
        self.dictionaries = dictionaries
        """Its earlier request bodies."""
        self.flows: dict[bytes, Flow] = {}
        self.done: dict[Flow, None] = {}
        """Flows that are over and that no line carries, oldest first: what can be given up."""
        self.histories: dict[Flow, None] = {}
        """Flows that keep more of what was sent than they must: they are told nothing."""
        self.waiting: dict[Flow, None] = {}
        """Flows held back by the byte rate."""
        self.followers: dict[Follower, None] = {}
        self.heard_at: float | None = None
        """When the client last said something by a pulse, or sent request bytes after one; ``None``
        without pulses.
        """
        self.dictionaries_missed = 0
        self.bodies_plain = 0
        """Bytes of bodies that were coded on the line, as they were before or after that."""
        self.bodies_coded = 0
        """The same, as they were on the line."""
        self.sent_twice = 0
        """Response bytes that had been handed to a connection before, as over another line."""
        self.taken_twice = 0
        """Request bytes that had come before."""
        self.opened = 0
        self.refused = 0
        self.configure(limits)

    def configure(self, limits: ClientLimits) -> None:
        """Take other limits; what was spent is forgotten."""
        self.limits = limits
        self._requests = _bucket(limits.requests_per_s)
        self._bytes = _bucket(limits.bytes_per_s)

    def ask(self, now: float) -> bool:
        """One more request; whether it is allowed."""
        allowed = self._requests is None or self._requests.take(now)
        if not allowed:
            self.refused += 1
        return allowed

    def spend(self, size: int, now: float) -> bool:
        """``size`` bytes passed; whether that was more than the rate."""
        bucket = self._bytes
        if bucket is None:
            return False
        bucket.take(now, size, overdraft=INFINITE)
        return bucket.available(now) < 0

    def coded(self, plain: int, coded: int) -> None:
        """Bytes were, or had been, coded for the line."""
        self.bodies_plain += plain
        self.bodies_coded += coded

    def moved(self, flow: Flow) -> None:
        """An upload took bytes."""
        if self.heard_at is not None:
            self.heard_at = flow.flows.clock()
        for follower in self.followers:
            follower.upload_moved(flow)

    def tick(self, now: float) -> None:
        """Let go on who has waited long enough."""
        if self.waiting and (self._bytes is None or self._bytes.available(now) >= 0):
            waiting, self.waiting = self.waiting, {}
            for flow in waiting:
                flow.unthrottle()


def _bucket(per_s: float | None) -> Bucket | None:
    if per_s is None:
        return None
    return Bucket(per_s=per_s, capacity=max(1.0, per_s * BURST_S))


class Flows:
    """See the module. ``clock`` is any monotonic clock in s, the one that `tick` is called with;
    ``soon(call)`` calls in the next turn of the loop.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        soon: Callable[[Callable[[], None]], object],
        limits: FlowLimits | None = None,
    ) -> None:
        self.clock = clock
        self.soon = soon
        self.limits = limits or FlowLimits()
        self.account = Account(self.limits.total_bytes)
        self.library = Library(self.limits.dictionary_bytes)
        """Earlier request bodies of all clients."""
        self.ledgers: dict[str, Ledger] = {}
        self.count = 0
        """Flows there are."""
        self._quiet: dict[Flow, float] = {}
        self._done: dict[Flow, None] = {}
        self._gone: dict[tuple[Ledger, bytes], float] = {}

    # -- clients ----------------------------------------------------------------------------------

    def ledger(self, name: str, limits: ClientLimits) -> Ledger:
        """The client's ledger, made if there is none."""
        ledger = self.ledgers.get(name)
        if ledger is None:
            share, dictionaries = Share(self.account), self.library.store()
            ledger = self.ledgers[name] = Ledger(name, limits, share, dictionaries)
        elif ledger.limits != limits:
            ledger.configure(limits)
        return ledger

    def dismiss(self, name: str) -> None:
        """The client may do nothing any more: all its flows end."""
        ledger = self.ledgers.pop(name, None)
        if ledger is not None:
            for flow in list(ledger.flows.values()):
                self.remove(flow)
            for follower in list(ledger.followers):
                follower.close()
            self.library.discard(ledger.dictionaries)

    def configure(self, limits: FlowLimits) -> None:
        """Take other limits; flows that exist keep their own share."""
        self.limits = limits
        self.account.limit_bytes = limits.total_bytes
        self.library.resize(limits.dictionary_bytes)

    # -- flows ------------------------------------------------------------------------------------

    def used(self, ledger: Ledger, flow_id: bytes) -> bool:
        """Whether the id was used for a flow that is gone."""
        return (ledger, flow_id) in self._gone

    def admit(self, ledger: Ledger) -> None:
        """Make sure that the client can have one more flow. Raises `TooMany`."""
        if len(ledger.flows) >= ledger.limits.flows:
            if not ledger.done:
                ledger.refused += 1
                raise TooMany(429, f"{ledger.limits.flows} flows are open, which is the limit")
            self.remove(next(iter(ledger.done)))
        if self.count >= self.limits.flows:
            if not self._done:
                ledger.refused += 1
                raise TooMany(503, "the relay has as many flows as it can hold")
            self.remove(next(iter(self._done)))

    def add(self, flow: Flow) -> None:
        """A flow begins, which no line carries yet."""
        flow.ledger.flows[flow.id] = flow
        flow.ledger.opened += 1
        self.count += 1
        self.unattended(flow)

    def remove(self, flow: Flow) -> None:
        """A flow ends; its id cannot be used again for a while."""
        ledger = flow.ledger
        if ledger.flows.pop(flow.id, None) is None:
            return
        self.count -= 1
        self.bury(ledger, flow.id)
        flow.cancel()
        self.attended(flow)

    def bury(self, ledger: Ledger, flow_id: bytes) -> None:
        """Remember an id as used."""
        gone = self._gone
        if len(gone) >= self.limits.gone:
            del gone[next(iter(gone))]
        gone[ledger, flow_id] = self.clock() + self.limits.gone_s

    def make_room(self, ledger: Ledger) -> None:
        """The client holds too much: give up what was delivered and may never be asked for."""
        share = ledger.share
        while ledger.done and share.scarce:
            self.remove(next(iter(ledger.done)))
        while ledger.histories and share.scarce:
            flow = next(iter(ledger.histories))
            del ledger.histories[flow]
            flow.shorten()

    # -- what flows tell --------------------------------------------------------------------------

    def attended(self, flow: Flow) -> None:
        """A line carries it."""
        self._quiet.pop(flow, None)
        self._done.pop(flow, None)
        flow.ledger.done.pop(flow, None)

    def unattended(self, flow: Flow) -> None:
        """No line carries it any more."""
        if flow.ledger.flows.get(flow.id) is flow:
            self._quiet[flow] = self.clock() + self.limits.linger_s
            if flow.over:
                self._done[flow] = flow.ledger.done[flow] = None

    def finished(self, flow: Flow) -> None:
        """Its response is over."""
        if flow in self._quiet and flow.over:
            self._done[flow] = flow.ledger.done[flow] = None

    def touch(self, flow: Flow) -> None:
        """Its client asked about it: it is not forgotten."""
        if self._quiet.pop(flow, None) is not None:
            self._quiet[flow] = self.clock() + self.limits.linger_s

    # -- time -------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Give up what is due. Call it some times a second."""
        quiet = self._quiet
        while quiet:
            flow = next(iter(quiet))
            if quiet[flow] > now:
                break
            self.remove(flow)
        gone = self._gone
        while gone:
            key = next(iter(gone))
            if gone[key] > now:
                break
            del gone[key]
        for ledger in self.ledgers.values():
            if ledger.heard_at is not None and now - ledger.heard_at > self.limits.linger_s:
                self._abandoned(ledger)
            ledger.tick(now)

    def _abandoned(self, ledger: Ledger) -> None:
        """All pulses of a client are silent: no line carries its flows, whatever the connections
        look like that its requests came over.
        """
        ledger.heard_at = None
        for flow in [flow for flow in ledger.flows.values() if flow.acknowledges]:
            self.remove(flow)

    def close(self) -> None:
        """End all flows."""
        for name in list(self.ledgers):
            self.dismiss(name)

    def bad_request(self, text: str) -> tuple[ResponseHead, bytes]:
        """The answer to a request that contradicts itself or what came before."""
        return error_response(
            400,
            "flow_inconsistent",
            text,
            "HEAD the flow for its Upload-Offset, or DELETE it and begin another.",
            proxy_error="http_request_error",
        )


__all__ = ["ClientLimits", "Flow", "FlowLimits", "Flows", "Ledger", "State", "TooMany"]
