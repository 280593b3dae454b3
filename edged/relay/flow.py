"""One exchange through a relay: what it has said so far, and who is listening.

The inner side is an exchange or a tunnel of the relay, to which a flow is the `Responder`. The
outer side is any number of visits: requests of the client about this flow, each over some line,
that bring request bytes, read response bytes, or both. Visits come and go; the flow stays.

    head missing -> streaming -> complete | broken        (the response)
    open -> over                                          (nothing more can happen upstream)

Rules:

* A visit reads every byte from the offset it named, once and in order, and then what became of the
  response: a clean end only if the origin's was clean.
* Request bytes are passed on once, whoever brings them (`edged.relay.upload`).
* Bytes are kept until the client acknowledges them. Of a client that never does (curl), `HISTORY`
  journals full are kept behind what its connections took, as far as all flows together have room:
  what is in the buffers on the way is lost with a connection.
* The origin is read on while the journal, the client's share of all journals and its rate allow.

No I/O, no clock but the one that `Flows` was given.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from edged.downstream.base import RequestSink, Responder
from edged.messages import Headers, ResponseHead
from edged.relay import wire
from edged.relay.coding import Inflow, response_encoder
from edged.relay.dictionary import FlushingEncoder, decoder
from edged.relay.intake import Intake
from edged.relay.journal import Journal
from edged.relay.upload import Upload

if TYPE_CHECKING:
    from edged.relay.flows import Flows, Ledger
    from edged.relay.visit import Visit

VISITS = 8
"""Visits of one flow at a time; a further one ends the oldest."""
HISTORY = 2
"""Journals full that are kept behind what was sent to a client that does not acknowledge."""


class State(Enum):
    """How far the response is."""

    WAITING = "waiting"
    STREAMING = "streaming"
    COMPLETE = "complete"
    BROKEN = "broken"


class Flow:
    """See the module. The attributes without a line below are for `Flows` and `Visit`."""

    __slots__ = (
        "_accepts",
        "_acknowledged",
        "_head",
        "_held",
        "_intake",
        "_limit",
        "_opaque",
        "_outflow",
        "_sent",
        "_throttled",
        "_trailers",
        "_upload_paused",
        "_visits",
        "acknowledges",
        "client",
        "flows",
        "id",
        "journal",
        "ledger",
        "over",
        "sink",
        "state",
        "target",
        "unprocessed",
        "upload",
    )

    def __init__(
        self,
        flows: Flows,
        ledger: Ledger,
        flow_id: bytes,
        upload: Upload,
        *,
        target: tuple[str, int] = ("", 0),
        client: str = "",
        opaque: bool = False,
        switches: bool = False,
        acknowledges: bool = False,
        accepts: bool = False,
    ) -> None:
        """``opaque``: bytes both ways; ``switches``: they begin only when the origin agrees (101).

        ``acknowledges``: the client says what it has, so that all it has not said is kept.
        ``accepts``: the response may be coded.
        """
        self.flows = flows
        self.ledger = ledger
        self.id = flow_id
        self.target = target
        """Host and port that it goes to."""
        self.client = client
        """Who asked, for the access log."""
        self.sink: RequestSink | None = None
        """The exchange; ``None`` before it begins and once it is over."""
        self.state = State.WAITING
        """How far the response is."""
        self.over = False
        """Nothing more can happen upstream."""
        self.unprocessed = False
        """The relay answers itself, and the origin saw nothing of the request."""
        self.upload = upload
        """How far the request is."""
        self.journal = Journal(ledger.share)
        """The response's bytes."""
        self.acknowledges = acknowledges
        """The client says what it has."""
        self._intake = Intake(switches=switches)
        self._accepts = accepts
        self._outflow: FlushingEncoder | None = None
        self._opaque = opaque
        self._head: ResponseHead | None = None
        self._trailers: Headers | None = None
        self._limit = flows.limits.flow_bytes
        self._acknowledged = 0
        self._sent = 0
        self._held = False
        self._throttled = False
        self._upload_paused = False
        self._visits: tuple[Visit, ...] = ()

    def decode(self, said: wire.Control, dictionary: bytes | None) -> None:
        """The request body is coded, with ``dictionary`` as its past. Once complete it is kept as a
        dictionary under the scope that was ``said``.
        """
        ledger, scope = self.ledger, said.scope

        def keep(body: bytes) -> None:
            ledger.dictionaries.put(scope or b"", body, said.dictionary)

        inflow = Inflow(
            decoder(dictionary, said.prefix),
            said.length,
            self.upload_broken,
            ledger.share,
            None if scope is None else keep,
            self.ledger.coded,
        )
        self._intake.decode(inflow)

    # -- the exchange's side (Responder) ----------------------------------------------------------

    @property
    def certificate(self) -> None:
        """Nobody asks a flow for one."""
        return None

    def begin(self, sink: RequestSink) -> None:
        """The exchange has begun (and may be over already)."""
        if self.over:
            return
        self.sink = sink
        self._intake.begin(sink)
        if self._held or self._throttled:
            sink.pause_response()

    def informational(self, status: int, headers: Headers) -> None:
        """Pass on to who is there; nothing is kept of it."""
        for visit in self._visits:
            if visit.reads:
                visit.responder.informational(status, wire.escaped(headers))

    def head(self, head: ResponseHead) -> None:
        """The response begins."""
        if self._head is not None:
            return
        self._head = head
        self.state = State.STREAMING
        if self._accepts and (encoder := response_encoder(head)) is not None:
            self._outflow = encoder
        for visit in self._visits:
            visit.tell_head(head)
        if self._intake.answered(agreed=head.status == 101):
            self._opaque = False

    def data(self, data: bytes) -> None:
        """Response bytes."""
        if self.state is State.STREAMING:
            if self._outflow is not None:
                plain = len(data)
                data = self._outflow.feed(data)
                self.ledger.coded(plain, len(data))
            if data:
                self._keep(data)

    def _keep(self, data: bytes) -> None:
        """Bytes as they are sent: to those who wait for just these, and into the journal."""
        journal, flows = self.journal, self.flows
        at = journal.end
        journal.append(data)
        for visit in self._visits:
            if visit.offset == at and visit.reads and not (visit.slow or visit.superseded):
                visit.pass_on(data)
        if self.ledger.spend(len(data), flows.clock()):
            self._throttle()
        if self.ledger.share.scarce:
            flows.make_room(self.ledger)
        if not self._held and self._ahead():
            self._hold()

    def end(self, trailers: Headers | None = None) -> None:
        """The response is complete."""
        if self.state is State.WAITING or self.state is State.STREAMING:
            self._trailers = trailers
            if self._outflow is not None:
                self._keep(self._outflow.finish())
            self._finished(State.COMPLETE)

    def abort(self) -> None:
        """The response will never be complete."""
        if self.state is State.WAITING or self.state is State.STREAMING:
            self._finished(State.BROKEN)

    def pause_body(self) -> None:
        """The origin takes request bytes more slowly than they come."""
        self._upload_paused = True
        self._intake.pause()
        for visit in self._visits:
            if visit.sends:
                visit.responder.pause_body()

    def resume_body(self) -> None:
        """It takes them again."""
        self._upload_paused = False
        self._intake.resume()
        self._let_send()

    def _let_send(self) -> None:
        for visit in self._visits if not (self._upload_paused or self._throttled) else ():
            if visit.sends:
                visit.responder.resume_body()

    def _finished(self, state: State) -> None:
        self.state = state
        if state is State.BROKEN or not self._opaque or self.upload.complete:
            self._close_upstream()
        for visit in self._visits:
            visit.pump()
        self.flows.finished(self)

    def _close_upstream(self) -> None:
        self.over = True
        self.sink = None
        self._intake.close()
        self.ledger.waiting.pop(self, None)

    # -- backpressure -----------------------------------------------------------------------------

    def _ahead(self) -> bool:
        """As much is kept for the client as may be."""
        told = self._acknowledged if self.acknowledges else self._sent
        return self.journal.end - told >= self.ledger.share.allowance(self._limit)

    def _hold(self) -> None:
        self._held = True
        if self.sink is not None and not self._throttled:
            self.sink.pause_response()

    def _go_on(self) -> None:
        """The client has taken something. Who takes nothing needs no more, whatever room others
        make.
        """
        if self._ahead():
            return
        self._held = False
        if self.sink is not None and not self._throttled:
            self.sink.resume_response()

    def _throttle(self) -> None:
        """The client has had more than its rate: both directions pause until it has earned it."""
        if self._throttled:
            return
        self._throttled = True
        self.ledger.waiting[self] = None
        for visit in self._visits:
            if visit.sends:
                visit.responder.pause_body()
        if self.sink is not None and not self._held:
            self.sink.pause_response()

    def unthrottle(self) -> None:
        """It has."""
        self._throttled = False
        self._let_send()
        if self.sink is not None and not self._held:
            self.sink.resume_response()

    def _trim(self) -> None:
        """Give back what nobody will ask for."""
        if self.acknowledges:
            keep = self._acknowledged
        else:
            keep = self._sent - HISTORY * self.ledger.share.allowance(self._limit)
            self.ledger.histories[self] = None
        self.journal.release(keep)
        if self._held:
            self._go_on()

    def shorten(self) -> None:
        """The client holds too much: keep less of what was sent."""
        self.journal.release(self._sent - self.ledger.share.allowance(self._limit) // 2)

    # -- the client's side ------------------------------------------------------------------------

    @property
    def attended(self) -> bool:
        """Some line carries it now."""
        return bool(self._visits)

    def acknowledge(self, offset: int) -> None:
        """The client has all bytes before ``offset`` and will never ask for them again.

        That it has the last one does not mean that it knows so: a flow is kept until it is deleted.
        """
        if not self.acknowledges:
            self.acknowledges = True
            self.ledger.histories.pop(self, None)
        if self._acknowledged < offset <= self.journal.end:
            self._acknowledged = offset
        self._trim()

    def first_wanted(self, offset: int) -> int:
        """Where a visit begins that asks from ``offset``: what was acknowledged meanwhile, over a
        faster line, is not wanted any more.
        """
        return max(offset, self._acknowledged)

    def keeps(self, offset: int) -> bool:
        """Whether a visit can read from ``offset``."""
        return self.journal.start <= offset <= self.journal.end

    def receives(self, offset: int) -> None:
        """A visit begins to read from ``offset``: all before it has arrived."""
        if self.acknowledges:
            self.acknowledge(offset)

    def join(self, visit: Visit) -> None:
        """Let ``visit`` read, and pass on what it brings."""
        if len(self._visits) >= VISITS:
            self._visits[0].break_off()
        self._visits += (visit,)
        self.flows.attended(self)
        if visit.sends:
            if self._upload_paused or self._throttled:
                visit.responder.pause_body()
            else:
                visit.responder.resume_body()  # a client that waits for 100 is told to go ahead
        if visit.reads:
            if self._head is not None:
                visit.tell_head(self._head)
            visit.pump()

    def supersede(self, visit: Visit) -> None:
        """``visit`` begins where others end, and they read no more. Where the least of them ends:
        the client may have given up those that are further, and nobody else brings what is between.
        """
        others = [other for other in self._visits if other.reads and not other.superseded]
        for other in others:
            other.superseded = True
        visit.offset = max(visit.offset, min((other.offset for other in others), default=0))

    def leave(self, visit: Visit) -> None:
        """``visit`` is over, in whatever way."""
        rest = tuple(v for v in self._visits if v is not visit)
        if len(rest) != len(self._visits):
            self._visits = rest
            if not rest:
                self.flows.unattended(self)

    def was_sent(self, offset: int, size: int) -> None:
        """A visit handed ``size`` bytes, those before ``offset``, to its connection."""
        self.ledger.sent_twice += max(0, min(size, size - offset + self._sent))
        if offset > self._sent:
            self._sent = offset
            if not self.acknowledges:
                self._trim()

    def receive(self, at: int, data: bytes) -> None:
        """Request bytes from ``at``. Raises `upload.Gap` and `upload.Inconsistent`."""
        new = self.upload.take(at, data)
        self.ledger.taken_twice += len(data) - len(new)
        if not new:
            return
        self.ledger.moved(self)
        if self.ledger.spend(len(new), self.flows.clock()):
            self._throttle()
        self._intake.body(new, self.upload.offset)

    def receive_end(self, at: int, trailers: Headers | None) -> None:
        """The request ends at ``at``. Raises `upload.Gap` and `upload.Inconsistent`."""
        if self.upload.finish(at):
            self.ledger.moved(self)
            self._intake.end(trailers)
            if self.state is State.COMPLETE and not self.over:
                self._close_upstream()

    def upload_broken(self, text: str) -> None:
        """The request body cannot be decoded: nothing can come of this flow."""
        for visit in self._visits:
            visit.refuse(self.flows.bad_request(text))
        self.flows.remove(self)

    @property
    def kept(self) -> bool:
        """It was not given up or forgotten."""
        return self.ledger.flows.get(self.id) is self

    @property
    def ends_plainly(self) -> bool:
        """The response is complete, and no trailers follow its bytes."""
        return self.state is State.COMPLETE and not self._trailers

    @property
    def coded(self) -> bool:
        """The journal holds a zstd stream, not the response's own bytes."""
        return self._outflow is not None

    def cancel(self) -> None:
        """Give up: the exchange ends, every visit breaks off, nothing is kept."""
        sink = self.sink
        if self.state is State.WAITING or self.state is State.STREAMING:
            self.state = State.BROKEN
        self._close_upstream()
        if sink is not None:
            sink.gone()
        for visit in self._visits:
            visit.break_off()
        self.ledger.histories.pop(self, None)
        self.journal.close()

    def finish_visit(self, responder: Responder) -> None:
        """Tell a visit that has read all bytes what became of the response."""
        if self.state is State.COMPLETE:
            responder.end(self._trailers)
        else:
            responder.abort()

    def description(self) -> Headers:
        """How far both directions are, as fields."""
        upload = self.upload
        return [
            (wire.UPLOAD_OFFSET, b"%d" % upload.offset),
            (wire.UPLOAD_COMPLETE, wire.TRUE if upload.complete else wire.FALSE),
            (b"edged-state", self.state.value.encode()),
            (b"edged-kept", b"%d-%d" % (self.journal.start, self.journal.end)),
        ]
