"""One request of a client about a flow, over whatever line it came."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edged.downstream.base import Responder
from edged.messages import Headers, ResponseHead
from edged.relay import wire
from edged.relay.flow import State
from edged.relay.upload import Inconsistent

if TYPE_CHECKING:
    from edged.relay.flow import Flow
    from edged.relay.repeat import Repeats

PIECE_BYTES = 64 << 10
TURN_BYTES = 128 << 10
"""Handed to a connection in one turn of the loop: only after that does it say that it is full, and
what it was handed is sent twice when its line dies."""


class Visit:
    """One request of the client about a flow: the `RequestSink` of its connection.

    It reads response bytes from ``offset`` on (``None``: it does not read), and brings request
    bytes from ``at`` on (``None``: it brings none).
    """

    __slots__ = (
        "_at",
        "_last",
        "_resting",
        "flow",
        "offset",
        "over",
        "reads",
        "repeats",
        "responder",
        "sends",
        "slow",
        "superseded",
    )

    def __init__(
        self,
        flow: Flow,
        responder: Responder,
        *,
        offset: int | None = None,
        at: int | None = None,
        last: bool = True,
    ) -> None:
        """``last``: with this request's end the request body ends."""
        self.flow = flow
        self.responder = responder
        self.offset = offset or 0
        """Of the next response byte to send."""
        self.reads = offset is not None
        self.sends = at is not None
        self._at = at or 0
        self._last = last
        self._resting = False
        self.slow = False
        """Its connection takes no more for now."""
        self.over = False
        self.superseded = False
        """Another visit brings what is left of the response."""
        self.repeats: Repeats | None = None
        """Small pieces go out once more as datagrams."""

    # -- what its connection calls (RequestSink) --------------------------------------------------

    def body(self, data: bytes) -> None:
        """Request bytes."""
        if self.over or not self.sends:
            return
        try:
            self.flow.receive(self._at, data)
        except Inconsistent as error:
            self._refuse(str(error))
        else:
            self._at += len(data)

    def body_end(self, trailers: Headers | None) -> None:
        """This request's bytes are all here."""
        if self.over or not self.sends:
            return
        self.sends = False
        if self._last:
            try:
                self.flow.receive_end(self._at, trailers)
            except Inconsistent as error:
                self._refuse(str(error))
                return
        if not self.reads and not self.over:
            self._leave()
            self.responder.head(ResponseHead(204, self.flow.description(), 0))
            self.responder.end()

    def gone(self) -> None:
        """The line died, or the client wants no more of it."""
        if self.repeats is not None:
            self.repeats.stop()
        if not self.over:
            self._leave()

    def pause_response(self) -> None:
        """The connection's buffer is full."""
        self.slow = True

    def resume_response(self) -> None:
        """It drained."""
        self.slow = False
        self.pump()

    # -- what its flow calls ----------------------------------------------------------------------

    def tell_head(self, head: ResponseHead) -> None:
        """Send the response's head."""
        if self.reads:
            flow = self.flow
            outer = wire.outer_response(
                head, self.offset, unprocessed=flow.unprocessed, coded=flow.coded
            )
            self.responder.head(outer)

    def pass_on(self, data: bytes) -> None:
        """Send the journal's newest bytes, which are just those that come next."""
        offset = self.offset = self.offset + len(data)
        self.responder.data(data)
        if self.repeats is not None:
            self.repeats.passed(len(data))
        self.flow.was_sent(offset, len(data))

    def pump(self) -> None:
        """Send what is there, as far as the connection takes it; at its end, the end."""
        flow = self.flow
        journal = flow.journal
        until = self.offset + TURN_BYTES
        while self.reads and not (self.slow or self.over or self.superseded or self._resting):
            if self.offset < journal.start:  # acknowledged over another line
                self.break_off()
                return
            data = journal.read(self.offset, PIECE_BYTES)
            if data and self.offset >= until:
                self._resting = True
                flow.flows.soon(self._rested)
                return
            if data:
                self.pass_on(data)
                continue
            if flow.state is State.COMPLETE or flow.state is State.BROKEN:
                self._leave()
                flow.finish_visit(self.responder)
                if self.repeats is not None:
                    self.repeats.passed(0)
            return

    def _rested(self) -> None:
        self._resting = False
        self.pump()

    def break_off(self) -> None:
        """End without a clean end."""
        if self.repeats is not None:
            self.repeats.stop()
        if not self.over:
            self._leave()
            self.responder.abort()

    def refuse(self, answer: tuple[ResponseHead, bytes]) -> None:
        """End with an answer of the relay's own, if the response has not begun."""
        head, body = answer
        self._leave()
        if self.reads and self.flow.state is not State.WAITING:
            self.responder.abort()
            return
        self.responder.head(head)
        self.responder.data(body)
        self.responder.end()

    def _refuse(self, text: str) -> None:
        self.refuse(self.flow.flows.bad_request(text))

    def _leave(self) -> None:
        self.over = True
        self.flow.leave(self)
