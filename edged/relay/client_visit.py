"""One request about a flow over one line: its stream to the relay, and the request bytes on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edged.messages import Headers, RequestHead, ResponseHead
from edged.relay import wire
from edged.relay.client_flow import Ask
from edged.relay.repeat import Repeat
from edged.upstream.base import Pending, Stream
from policies.model import Carrier, Failure, Path

if TYPE_CHECKING:
    from edged.relay.client_leg import Leg
    from edged.relay.client_stream import FlowStream

APART = "+"
"""Ends the name of a second way over the same line, on another connection."""
_NOTHING: int | None = 0


class Visit:
    """One request about a flow over one line. Implements `StreamEvents`."""

    __slots__ = (
        "_ask",
        "_blocked",
        "_ended",
        "_flow",
        "_leg",
        "_pending",
        "_up",
        "held",
        "stream",
        "way",
    )

    def __init__(self, flow: FlowStream, leg: Leg, ask: Ask) -> None:
        self.way = ask.line
        """Its line; with `APART`, on another connection there than the flow's other visit."""
        self.stream: Stream | None = None
        self.held = False
        """It must send no more request bytes."""
        self._ask = ask
        self._flow: FlowStream | None = flow
        self._leg = leg
        self._pending: Pending | None = None
        self._blocked = False
        self._ended = False  # the request on this visit is complete
        self._up = -1  # the next request byte to send; -1: it has not begun

    def start(self) -> None:
        """Ask for a stream to the relay."""
        assert self._flow is not None
        self._leg.visits[self] = None
        flow = self._flow
        if flow.avoid is not None and self._leg.open_apart(self, flow.avoid):
            return
        if flow.large or not self.way.endswith(APART):
            repeats = flow.repeats(self._leg)
            self._pending = self._leg.open(self, flow.handover.visit_class, repeats=repeats)
        elif not self._leg.open_apart(self, flow.carrier_on(self._leg)):
            flow.drop(self.way)

    def cancel(self) -> None:
        """Give up."""
        stream, pending = self.stream, self._pending
        self._leave()
        if pending is not None:
            pending.cancel()
        if stream is not None:
            stream.cancel()

    def begin(self) -> None:
        """Send the request about the flow; both its head and a stream must be there."""
        flow, stream = self._flow, self.stream
        if flow is None or stream is None or self._up >= 0:
            return
        out, received = flow.outgoing, flow.machine.received
        door = self._leg.door
        if flow.machine.begun and flow.machine.uploaded:
            self._up, self._ended = out.end, True
            fields = [*door.fields, (wire.OFFSET, b"%d" % received)]
            if flow.handover.takes(self):
                fields.append((wire.INSTEAD, wire.TRUE))
            method, length = b"GET", _NOTHING
        else:
            self._up = out.taken
            fields = [*flow.fields, (wire.ACK, b"%d" % received)]
            if received:
                fields.append((wire.OFFSET, b"%d" % received))
            if out.taken:
                fields.append((wire.UPLOAD_OFFSET, b"%d" % out.taken))
            method = b"POST"
            length = None if flow.length is None else flow.length - out.taken
            self._ended = length == 0
        if flow.repeats(self._leg):
            fields.append((wire.REPEAT, wire.TRUE))
        head = RequestHead(
            *(method, door.scheme, door.authority, wire.flow_path(flow.id)), fields, length
        )
        stream.send_head(head, end=self._ended)
        if flow is self._flow:
            self.feed()

    def feed(self) -> None:
        """Send what is there of the request body."""
        flow = self._flow
        if self._ended or self._up < 0 or flow is None:
            return
        out = flow.outgoing
        while not (self._blocked or self.held) and self.stream is not None and self._up < out.end:
            piece = out.read(self._up)
            self._up += len(piece)
            self.stream.send_data(piece)
        done = out.complete and self._up == out.end and not self.held
        if done and self.stream is not None and not self._ended:
            self._ended = True
            self.stream.send_end(flow.trailers)

    # -- StreamEvents ----------------------------------------------------------------------------

    def stream_ready(self, stream: Stream) -> None:
        """A connection to the relay has room."""
        self._pending = None
        self.stream = stream
        if self._flow is not None:
            self._flow.visit_ready(self)

    def informational(self, status: int, headers: Headers) -> None:
        """From the origin."""
        if self._flow is not None:
            self._flow.informational(status, headers)

    def head(self, head: ResponseHead) -> None:
        """The relay answers."""
        self._leg.heard()
        if self._flow is not None:
            self._flow.head(self, head)

    def data(self, data: bytes) -> None:
        """Response bytes."""
        self._leg.heard()
        if self._flow is not None:
            self._flow.data(self, data)

    def message(self, data: bytes) -> None:
        """Response bytes once more."""
        self._leg.heard()
        repeat = Repeat.decode(data)
        if self._flow is not None and repeat is not None:
            self._flow.repeated(self, repeat)

    def end(self, trailers: Headers | None) -> None:
        """Complete."""
        flow = self._flow
        self._leave()
        if flow is not None:
            flow.ended(self, trailers)

    def failed(self, failure: Failure) -> None:
        """The line, the connection or the relay ended it."""
        flow = self._flow
        self._leave()
        if flow is not None:
            flow.failed(self, failure)

    def moved(self, path: Path) -> None:
        """Connections to relays stay on their lines."""

    def stalled(self, reason: str) -> None:
        """So this never comes."""

    def pause_body(self) -> None:
        """The connection is full."""
        self._blocked = True

    def resume_body(self) -> None:
        """It drained."""
        self._blocked = False
        self.feed()

    def let_go(self) -> None:
        """It may send on."""
        self.held = False
        self.feed()

    @property
    def clogged(self) -> bool:
        """Request bytes wait for a congestion window, and are dropped if this is given up."""
        h3 = self.stream is not None and self.stream.carrier is Carrier.H3
        return self._blocked and h3

    @property
    def sending_at(self) -> int | None:
        """The request byte that it sends next; ``None``: it sends no more, or not yet."""
        return None if self._ended or self._up < 0 else self._up

    @property
    def flow(self) -> FlowStream | None:
        """Whose it is; ``None`` when it is over."""
        return self._flow

    def _leave(self) -> None:
        self._flow = None
        self.stream = None
        self._pending = None
        self._leg.left(self)
