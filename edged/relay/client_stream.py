"""One exchange as a flow through a relay: to its attempt a stream like any other.

Carries out what `edged.relay.client_flow` decides: visits are requests on the pooled connections to
the relay, and the attempt sees one stream that outlives them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from edged.compress import CodingError
from edged.downstream.fields import BadMessage
from edged.headers import REQUEST_ID
from edged.messages import Headers, RequestHead, ResponseHead, header
from edged.relay import wire
from edged.relay.client_bodies import Held
from edged.relay.client_copies import Copying, review
from edged.relay.client_flow import (
    LINGER_S,
    Ask,
    Command,
    FlowClient,
    Give,
    Wait,
)
from edged.relay.client_handover import Handover
from edged.relay.client_response import Arrivals
from edged.relay.client_upload import MOST_BYTES, Outgoing
from edged.relay.client_visit import APART, Visit
from edged.relay.repeat import Repeat
from edged.upstream.base import Pending, StreamEvents
from policies.model import Carrier, Failure, Outcome, Path, RequestClass
from policies.schema import Policy

if TYPE_CHECKING:
    from edged.relay.client import RelayClient
    from edged.relay.client_leg import Leg

_NO_WAY = "the relay found no way to the endpoint"


class FlowStream:
    """See the module: an `edged.upstream.base.Stream`, and a `Pending` before it is one."""

    def __init__(
        self,
        client: RelayClient,
        path: Path,
        events: StreamEvents,
        request_class: RequestClass | None,
        policy: Policy,
    ) -> None:
        self.id = secrets.token_bytes(16)
        self.path = path
        """As the attempt knows it: the line that the flow goes by now, mostly."""
        self.carrier = Carrier.H2
        self.reused = True
        self.request_class = request_class
        self.machine = FlowClient()
        self.outgoing = Outgoing()
        self.fields: Headers = []
        """Of every POST about the flow, but for offsets."""
        self.length: int | None = 0
        """Of the request body."""
        self.trailers: Headers | None = None
        self.doubled_at = 0.0
        """When the last visit began."""
        self.copying = Copying(policy.redundancy, request_class, monotonic())
        """Whether it goes over two lines at once."""
        self.handover = Handover(self)
        self.client = client
        self.visits: dict[str, Visit] = {}
        """Those under way."""
        self._compression = policy.compression
        self._events = events
        self._ready = False
        self.headed = False
        """The request's head can go."""
        self._over = False
        self._held: Held | None = None
        self._arrivals = Arrivals(monotonic())
        self.paused = False
        """The client takes nothing for now."""
        self._told_pause = False
        self.avoid: Carrier | None = None
        """What brought nothing for long: others are asked first."""
        self._timer: asyncio.TimerHandle | None = None

    # -- before it is a stream -------------------------------------------------------------------

    def open(self, line: str) -> Pending | None:
        """Ask for a stream over ``line``; see `Upstreams.open`."""
        self._visit(self.machine.ask(line))
        return None if self._ready else self

    def visit_ready(self, visit: Visit) -> None:
        """A connection to the relay is there."""
        if self._ready:
            if self.headed:
                visit.begin()
            if self.paused and visit.stream is not None:
                visit.stream.pause_reading()
            return
        self._ready = True
        assert visit.stream is not None
        self.carrier, self.reused = visit.stream.carrier, visit.stream.reused
        self._events.stream_ready(self)
        self.moved()

    # -- what the attempt calls (Stream) ---------------------------------------------------------

    def send_head(self, head: RequestHead, *, end: bool) -> None:
        """Open the flow."""
        if self.headed or self._held is not None or self._over:
            return
        bodies, compression = self.client.bodies, self._compression
        if not end and bodies.codes(head, compression):
            self._held = Held(bodies, head, self.path.endpoint.upstream, compression.level)
            return
        if head.upgrade is not None:
            self._begin(head, [], None)  # what follows the switch is the rest of this body
        else:
            self._begin(head, [(wire.ACCEPT, wire.ZSTD)], 0 if end else head.body_length)

    def _begin(self, head: RequestHead, fields: Headers, length: int | None) -> None:
        """The request's head can go: ``length`` of what follows it."""
        self.headed = True
        self.handover.opaque = head.upgrade is not None or head.method == b"CONNECT"
        self.fields = wire.outer_request(head, self.client.token)[1] + fields
        self.length = length
        if length == 0:
            self.outgoing.complete = True
            self.machine.uploaded = True
        for visit in tuple(self.visits.values()):
            visit.begin()
        self.review(monotonic())

    def _begin_coded(self, held: Held, *, alone: bool = False) -> None:
        fields, data = held.coded(alone=alone)
        self.outgoing = Outgoing()
        self.outgoing.append(data)
        self.outgoing.complete = True
        self._begin(held.head, [*fields, (wire.ACCEPT, wire.ZSTD)], len(data))

    def send_data(self, data: bytes) -> None:
        """Request body bytes."""
        if self._over or self.outgoing.complete or not data:
            return
        if self._held is not None:
            self._held.add(data)
            return
        self.outgoing.append(data)
        for visit in tuple(self.visits.values()):
            visit.feed()
        if self.outgoing.full and not self._told_pause and not self._over:
            self._told_pause = True
            self._events.pause_body()

    def send_end(self, trailers: Headers | None = None) -> None:
        """The request is complete."""
        if self._over or self.outgoing.complete:
            return
        self.trailers = trailers
        if self._held is not None:
            self._begin_coded(self._held)
            return
        self.outgoing.complete = True
        for visit in tuple(self.visits.values()):
            visit.feed()

    def cancel(self) -> None:
        """Give up: the relay is told, and cancels the exchange."""
        if not self._over:
            self._end()

    def forsake(self, failure: Failure) -> None:
        """See `Stream`."""
        self._fail(failure)

    def pause_reading(self) -> None:
        """The relay's journal fills, and then its origin waits."""
        self.paused = True
        for visit in self.visits.values():
            if visit.stream is not None:
                visit.stream.pause_reading()

    def resume_reading(self) -> None:
        """Take on."""
        self.paused = False
        for visit in tuple(self.visits.values()):
            if self._over or self.paused:
                return
            if visit.stream is not None and visit is not self.handover.waiting:
                visit.stream.resume_reading()

    # -- what visits bring -----------------------------------------------------------------------

    def informational(self, status: int, headers: Headers) -> None:
        """An interim response; on a second visit it may come again."""
        if not self.machine.begun:
            self._events.informational(status, headers)

    def head(self, visit: Visit, outer: ResponseHead) -> None:
        """The head of a visit's response."""
        try:
            inner = wire.inner_response(outer)
        except (wire.BadFlow, BadMessage):
            inner = None
        if inner is None:
            if outer.status == 412 and self._held is not None:
                self._resend(self._held, visit.way)
            else:
                self._refused(visit, outer.status)
        elif header(outer.headers, wire.UNPROCESSED) == wire.TRUE and not self.machine.begun:
            self._fail(Failure(Outcome.RESET, f"{_NO_WAY} ({outer.status})", unprocessed=True))
        elif self.machine.head(visit.way, inner.offset):
            head = inner.head
            if inner.coded:
                self._arrivals.coded()
            if self._held is not None:
                self._held.arrived()
            head.headers = [field for field in head.headers if field[0] != REQUEST_ID]  # not ours
            large = self.copying.answers(head.body_length)
            self.handover.size = None if inner.coded else head.body_length
            self._events.head(head)
            if large:
                self.settle(visit.way)
            self.review(monotonic())
            self.handover.look_around(monotonic())
        elif not self._over:
            self.handover.headed(visit, inner.offset)

    def data(self, visit: Visit, data: bytes) -> None:
        """Response bytes."""
        new = self.machine.data(visit.way, data)
        if new:
            self._take(visit, new)

    def _take(self, visit: Visit, new: bytes) -> None:
        now, received = monotonic(), self.machine.received
        self.client.received(self.id, received)
        if self._arrivals.came(received, now):
            self.client.hurry()
        if self.copying.small and self.copying.passed(received, now):
            self.settle(visit.way)
        try:
            for piece in self._arrivals.plain(new):
                if not self._over:
                    self._events.data(piece)
        except CodingError as error:
            self._badly_coded(error)
        if not self._over:
            self.handover.received()

    def repeated(self, visit: Visit, repeat: Repeat) -> None:
        """Response bytes once more, in a datagram."""
        if self._over or self.paused:
            return
        new = self.machine.repeated(visit.way, repeat.offset, repeat.data)
        if new:
            self._take(visit, new)
        end = repeat.offset + len(repeat.data)
        if repeat.complete and not self._over and self.machine.finished(end):
            self._complete(None)

    def _badly_coded(self, error: CodingError) -> None:
        self._fail(Failure(Outcome.PROTOCOL, f"the relay's coding is broken: {error}"))

    def ended(self, visit: Visit, trailers: Headers | None) -> None:
        """A visit ended cleanly."""
        self.visits.pop(visit.way, None)
        if self.machine.ended(visit.way):
            self._complete(trailers)
        elif not self._over and self.handover.broken():
            self.client.loop.call_soon(self.anew)

    def _complete(self, trailers: Headers | None) -> None:
        """All of the response is here."""
        try:
            self._arrivals.finish()
        except CodingError as error:
            self._badly_coded(error)
            return
        events = self._events
        self._end()
        events.end(trailers)

    def failed(self, visit: Visit, failure: Failure) -> None:
        """A visit ended otherwise."""
        self.visits.pop(visit.way, None)
        if self._over:
            return
        if not self._ready:
            self._fail(failure)
            return
        if self.handover.broken():
            self.client.loop.call_soon(self.anew)
            return
        command = self.machine.failed(visit.way, failure, self.client.usable(), monotonic())
        if isinstance(command, Give):
            self._fail(command.failure)
        else:  # its connection may be ending just now, and must not be asked
            self.client.loop.call_soon(self._go_on, command)

    def _go_on(self, command: Command) -> None:
        self.carry_out(command)
        self.review(monotonic())

    def _resend(self, held: Held, way: str) -> None:
        """The relay has forgotten the earlier body: the whole one goes under the same id."""
        held.unknown()
        for old in tuple(self.visits):
            self.drop(old)
        self.headed = False  # what visits would send is made anew
        self.carry_out(self.machine.ask(way.removesuffix(APART)))
        self._begin_coded(held, alone=True)

    def _refused(self, visit: Visit, status: int) -> None:
        self.visits.pop(visit.way, None)
        visit.cancel()
        if self.handover.broken() and status not in (404, 410):
            self.client.loop.call_soon(self.anew)
            return
        self.carry_out(self.machine.refused(visit.way, status, f"the relay answered {status}"))

    # -- what the relay's client tells -----------------------------------------------------------

    def review(self, now: float) -> None:
        """See `client_copies.review`."""
        if self.visits and not self._over:
            review(self, now)

    @property
    def large(self) -> bool:
        """See `Handover.large`."""
        return self.headed and not self._over and self.handover.large

    def keep_only(self, visit: Visit) -> None:
        """All that is left comes over ``visit``."""
        for way in [way for way, other in self.visits.items() if other is not visit]:
            self.drop(way)
        if visit.stream is not None and not self.paused:
            visit.stream.resume_reading()
        self.moved()

    def look_after(self, now: float) -> None:
        """Ask anew for a response that has paused for long; ever more rarely while it does."""
        waits = self.machine.waits_until is not None  # for a line
        if self._over or self.paused or waits or self.handover.opaque or not self.machine.begun:
            self._arrivals.rest(now)
        elif self._arrivals.missed(now):
            stale = [visit.stream.carrier for visit in self.visits.values() if visit.stream]
            self.avoid = stale[0] if stale else None
            self.handover.broken()
            self.anew()

    def anew(self) -> None:
        """Ask for all that is missing, over the best line."""
        if not self._over:
            for way in tuple(self.visits):
                self.drop(way)
            self._go_on(self.machine.restart(self.client.usable(), monotonic()))

    def carrier_on(self, leg: Leg) -> Carrier:
        """What the visit over ``leg`` runs on."""
        visit = self.visits.get(leg.name)
        return self.carrier if visit is None or visit.stream is None else visit.stream.carrier

    def repeats(self, leg: Leg) -> bool:
        """Whether small pieces of the response should come over ``leg`` more than once."""
        return self.copying.repeats(leg)

    def settle(self, best: str) -> None:
        """``best`` is well: one line is enough."""
        for line in self.machine.surplus(best):
            self.drop(line)
        self.moved()

    def drop(self, line: str) -> None:
        """One of two visits is not needed."""
        self.machine.drop(line)
        if (visit := self.visits.pop(line, None)) is not None:
            visit.cancel()

    def line_back(self) -> None:
        """Some line is usable again."""
        self.carry_out(self.machine.line_back(self.client.usable()))

    def taken(self, offset: int) -> None:
        """The relay has the request's bytes before ``offset``."""
        outgoing = self.outgoing
        visits = tuple(self.visits.values())
        if len(visits) > 1:
            for visit in visits:
                at = visit.sending_at
                if at is not None and outgoing.end - at > 2 * MOST_BYTES:
                    self.drop(visit.way)  # another one sends, and what this one needs is kept
        sending = [v.sending_at for v in self.visits.values() if v.sending_at is not None]
        outgoing.release(offset, min(sending, default=None))
        self.handover.taken()
        if self.length is not None and outgoing.done:
            self.machine.uploaded = True
        if self._told_pause and outgoing.roomy and not self._over:
            self._told_pause = False
            self._events.resume_body()

    def lost(self) -> None:
        """The relay does not know it."""
        for line in self.machine.lines or (self.path.line.name,):
            self.carry_out(self.machine.refused(line, 404, ""))

    # -- parts -----------------------------------------------------------------------------------

    def carry_out(self, command: Command) -> None:
        """What `client_flow` orders."""
        if isinstance(command, Ask):
            if command.pause_s:
                self._later(command.pause_s, lambda: self._visit(command))
            else:
                self._visit(command)
                self.moved()
        elif isinstance(command, Give):
            self._fail(command.failure)
        elif isinstance(command, Wait):
            self._later(LINGER_S, self._expired)

    def _visit(self, ask: Ask) -> None:
        if not self._over:
            self.make(ask).start()

    def make(self, ask: Ask) -> Visit:
        """The visit that is asked for, to be started."""
        self._stop_timer()
        self.doubled_at = monotonic()
        visit = self.visits[ask.line] = Visit(self, self.client.leg(ask.line), ask)
        return visit

    def moved(self) -> None:
        """Tell the attempt when its line is none of those that are asked."""
        lines = [way.removesuffix(APART) for way in self.machine.lines]
        line = self.path.line.name
        if self._over or not self._ready or not lines or line == lines[-1]:
            return
        if line in lines and not self.client.legs[line].doubtful:
            return
        path = self.client.path_over(lines[-1], self.path)
        if path is not None:
            self.path = path
            self._events.moved(path)

    def _later(self, delay_s: float, call: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self.client.loop.call_later(delay_s, call)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expired(self) -> None:
        self._timer = None
        self.carry_out(self.machine.expired(monotonic()))

    def _fail(self, failure: Failure) -> None:
        events = self._events
        if not self._over:
            self._end()
            events.failed(failure)

    def _end(self) -> None:
        """Nothing more of it, whatever it was."""
        self._over = True
        self.handover.end()
        self._stop_timer()
        visits, self.visits = tuple(self.visits.values()), {}
        for visit in visits:
            visit.cancel()
        self.outgoing.clear()
        self.client.ended(self)
