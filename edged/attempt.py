"""One try of an exchange on one path: its stream, and the request body going into it.

The attempt reads the body from the exchange's spool at its stream's pace, so that a second one can
start from byte 0 while the first is half way. Whether an attempt starts, wins or ends is decided by
`policies.attempts`; this file only carries it out.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from edged.compress import Encoder, encoder, request_coding
from edged.expectation import EXPECT, Expectation
from edged.messages import Headers, RequestHead, ResponseHead
from edged.targets import Target
from edged.upstream.base import Pending, Stream
from policies.commands import Start
from policies.model import Carrier, Failure, Kind, Outcome, Path, Sample

if TYPE_CHECKING:
    from edged.exchange import Exchange

REPORT_S = 0.02
_PIECE_BYTES = 64 << 10
_SHORT_BYTES = 64 << 10
_WHOLE_BYTES = 256 << 10  # complete bodies up to this size are coded in one go, with a length


class Attempt:
    """Implements `StreamEvents` for its stream; talks to its exchange by plain calls."""

    __slots__ = (
        "_blocked",
        "_body_ended",
        "_cursor",
        "_encoder",
        "_pending",
        "_plain_again",
        "asked_at",
        "begun",
        "bytes_up_wire",
        "carrier",
        "coded",
        "exchange",
        "expects",
        "found",
        "number",
        "over",
        "sent_at",
        "started_at",
        "stream",
        "target",
    )

    def __init__(self, exchange: Exchange, begun: Start, target: Target) -> None:
        self.exchange = exchange
        self.begun = begun
        """The order that it carries out."""
        self.number = begun.attempt
        self.target = target
        self.started_at = monotonic()
        self.sent_at: float | None = None
        """When the head was handed to a connection."""
        self.asked_at: float | None = None
        """When the whole request was: from then on the endpoint owes an answer."""
        self.stream: Stream | None = None
        """``None`` before there is one and when it is over."""
        self.carrier: Carrier | None = None
        """What it runs or ran on; ``None``: it never had a stream."""
        self.bytes_up_wire = 0
        self.coded = False
        self.expects = False
        """Its head says that the client waits for 100 (Continue)."""
        self.over = False
        self.found = 0
        """Attempts in flight at the endpoint when this one began, itself included."""
        self._pending: Pending | None = None
        self._encoder: Encoder | None = None
        self._cursor = 0
        self._blocked = False
        self._body_ended = False
        self._plain_again = False

    # -- commands of the exchange -----------------------------------------------------------------

    def start(self) -> None:
        """Ask for a stream; `stream_ready` or `failed` follows, perhaps inside this call."""
        target, exchange = self.target, self.exchange
        target.live[self] = None
        house = exchange.house
        path = target.path
        self.found = house.table.started(path.name)
        pending = house.upstreams.open(
            path,
            self,
            early_data=exchange.safe_method,
            upgrade=exchange.request.upgrade is not None,
            request_class=exchange.plan.ranking.request_class,
        )
        if pending is not None:
            self._wait(pending)

    def _wait(self, pending: Pending) -> None:
        self._pending = pending
        self.exchange.attempt_pending(self)

    def cancel(self) -> None:
        """Give up; nothing is reported any more."""
        if not self.over:
            stream, pending = self.stream, self._pending
            self._leave()
            if pending is not None:
                pending.cancel()
            if stream is not None:
                stream.cancel()

    def feed(self) -> None:
        """Send what the spool has beyond the cursor, as far as the stream takes it."""
        stream, exchange = self.stream, self.exchange
        if stream is None or self._body_ended or self.over:
            return
        spool = exchange.spool
        while not self._blocked and self._cursor < spool.size:
            piece = spool.read(self._cursor, _PIECE_BYTES)
            self._cursor += len(piece)
            self._send(stream, piece)
        if spool.complete and self._cursor == spool.size and not self._blocked:
            self._end_body(stream)
        else:
            exchange.body_moved()

    def pass_on(self, data: bytes) -> None:
        """Send body bytes that are the spool's newest, without reading them back if possible."""
        stream = self.stream
        if stream is None or self._blocked or self._body_ended:
            return
        if self._cursor + len(data) == self.exchange.spool.size:
            self._cursor += len(data)
            self._send(stream, data)
        else:
            self.feed()

    def pass_raw(self, data: bytes) -> None:
        """After a switch of protocols: the client's bytes as they are."""
        if self.stream is not None:
            self._send(self.stream, data)

    def leave(self) -> None:
        """The client has all it is to get: what the upstream is still to say has no reader."""
        stream = self.stream
        self._leave()
        if stream is not None:
            stream.cancel()

    @property
    def outlives_lines(self) -> bool:
        """See `Try`."""
        return self.stream is not None and self.target.path.relay is not None

    @property
    def cursor(self) -> int:
        """Body offset up to which the stream has taken it."""
        return self._cursor

    # -- StreamEvents -----------------------------------------------------------------------------

    def stream_ready(self, stream: Stream) -> None:
        """Send the head, and the body so far."""
        self._pending = None
        self.stream = stream
        self.carrier = stream.carrier
        exchange, target = self.exchange, self.target
        request = exchange.request
        self.sent_at = now = monotonic()
        head = RequestHead(
            request.method,
            target.scheme,
            target.authority,
            target.base_path + request.path,
            exchange.upstream_headers,
            request.body_length,
        )
        if request.body_length == 0 and request.upgrade is None:
            self.asked_at = now
            self._body_ended = True
            stream.send_head(head, end=True)
            exchange.attempt_sent(self, now)
            return
        head.upgrade = request.upgrade
        whole = self._code(head)
        self.expects = exchange.expectation is not None and target.path.relay is None
        if self.expects:
            head.headers = [*head.headers, EXPECT]
        stream.send_head(head, end=head.body_length == 0)
        exchange.attempt_sent(self, now)
        if self.over or self.stream is not stream:
            return
        if exchange.expectation is not None:
            self._await_continue(exchange.expectation)
        if whole is not None:
            self._cursor = exchange.spool.size
            self._send(stream, whole)
            self._end_body(stream)
        elif request.upgrade is None:
            self.feed()
        else:
            self.asked_at = now
            self._body_ended = True

    def informational(self, status: int, headers: Headers) -> None:
        """100 is for a client that waits for it; the others are passed on."""
        if status == 100:
            self.exchange.go_ahead()
        else:
            self.exchange.informational(status, headers)

    def head(self, head: ResponseHead) -> None:
        """The response begins: commit, unless it refuses what edged may repeat at once."""
        if head.status == 421:
            if self.stream is not None:
                self.stream.cancel()  # its body is nobody's
            self.failed(Failure(Outcome.PROTOCOL, "421 Misdirected Request", unprocessed=True))
            return
        if head.status == 417 and self._repeat_unexpecting():
            return
        if self.coded or self._plain_again:
            if head.status in (400, 415) and self._repeat_plain(head.status):
                return
            self._learn_coding(head.status)
        self.exchange.attempt_answered(self, head)

    def data(self, data: bytes) -> None:
        """Response body."""
        self.target.moved_bytes += len(data)
        self.exchange.response_data(data)

    def end(self, trailers: Headers | None) -> None:
        """The response is complete."""
        if not self._body_ended and self.stream is not None and not self.exchange.upgraded:
            # The peer answered without reading all: the rest of the request has no reader.
            self.stream.cancel()
        self._leave()
        self.exchange.response_end(trailers)

    def failed(self, failure: Failure) -> None:
        """Over without a complete response."""
        if self.over:
            return
        had_stream = self.stream is not None
        self._leave()
        if had_stream:
            self._report(monotonic(), None, failure.outcome)
        self.exchange.attempt_failed(self, failure)

    def moved(self, path: Path) -> None:
        """The stream goes on over another line."""
        exchange, left = self.exchange, self.target
        house = exchange.house
        left.live.pop(self, None)
        house.table.finished(left.path.name)
        self.target = house.targets.get(path.name)
        self.target.live[self] = None
        self.found = house.table.started(path.name)
        self.asked_at = None  # how long the answer takes says nothing of the endpoint any more
        exchange.attempt_moved(self, left, long=self._long)

    def stalled(self, reason: str) -> None:
        """It went to another line, and nothing is heard there. A long body is better waited for."""
        if not self._long:
            self.exchange.carrier_lost(self.number, reason)

    @property
    def _long(self) -> bool:
        return not self._body_ended or self.exchange.spool.size > _SHORT_BYTES

    def pause_body(self) -> None:
        """The stream takes no more for now."""
        self._blocked = True
        if self.exchange.upgraded:
            self.exchange.responder.pause_body()

    def resume_body(self) -> None:
        """The stream takes on."""
        self._blocked = False
        if self.exchange.upgraded:
            self.exchange.responder.resume_body()
        else:
            self.feed()

    # -- parts ------------------------------------------------------------------------------------

    def answered(self, now: float, outcome: Outcome, retry_after_s: float | None) -> None:
        """A passive sample: the time to the first byte of a response.

        Good ones come by the thousand: the table gets one in 20 ms at once, the others together.
        """
        target = self.target
        asked_at = self.asked_at
        if outcome is Outcome.OK and asked_at is not None:
            if now < target.report_at:
                target.answers.append((now - asked_at, self.found))
                return
            self.exchange.plan.tails[target.path.endpoint.name].append(now - asked_at)
        target.report_at = now + REPORT_S
        if outcome is Outcome.OK and self.carrier is not None and self.sent_at is not None:
            house = self.exchange.house
            request_class = self.exchange.plan.ranking.request_class
            house.upstreams.answered(target.path, self.carrier, request_class, now - self.sent_at)
        if target.answers:
            target.flush(self.exchange.house.table, now)
        self._report(now, None if asked_at is None else now - asked_at, outcome, retry_after_s)

    def _report(
        self,
        now: float,
        rtt_s: float | None,
        outcome: Outcome,
        retry_after_s: float | None = None,
    ) -> None:
        sent_at = self.asked_at or self.sent_at or self.started_at
        sample = Sample(
            self.target.path.name,
            Kind.TTFB,
            sent_at,
            rtt_s,
            outcome,
            retry_after_s=retry_after_s,
            carrier=self.carrier,
            found=self.found,
        )
        self.exchange.house.table.observe(sample, now)

    def _leave(self) -> None:
        self.over = True
        self.stream = None  # it refers to us: a cycle would leave both to the garbage collector
        self._pending = None
        self.target.live.pop(self, None)
        self.exchange.house.table.finished(self.target.path.name)

    def _code(self, head: RequestHead) -> bytes | None:
        """Choose a content coding for the body; the whole coded body if it can be had at once."""
        exchange = self.exchange
        coding = self._coding(exchange.request)
        if coding is None:
            return None
        self.coded = True
        head.headers = [*head.headers, (b"content-encoding", coding.encode())]
        level = exchange.service.policy.compression.level
        codec = encoder(coding, level, exchange.request.body_length)
        spool = exchange.spool
        if spool.complete and spool.replayable and spool.size <= _WHOLE_BYTES:
            whole = codec.feed(spool.read(0, spool.size)) + codec.finish()
            head.body_length = len(whole)
            return whole
        self._encoder = codec
        head.body_length = None
        return None

    def _coding(self, request: RequestHead) -> str | None:
        if request.body_length == 0 or self._plain_again:
            return None
        compression = self.exchange.service.policy.compression
        if not compression.requests or self.target.notes.wants_plain(_bare(request.path)):
            return None
        known = request.body_length is not None or request.expects_continue
        if not known and self.exchange.spool.size < compression.min_bytes:
            return None  # short, as far as anyone knows; who waits for 100 (Continue) has much
        accepts = self.target.path.endpoint.accepts_encoding
        return request_coding(request, accepts, compression.min_bytes)

    def _learn_coding(self, status: int) -> None:
        """What the answer to a coded body, or to the same one sent again plain, says of codings."""
        notes = self.target.notes
        if self.coded:
            if status == 415:  # it cannot be sent again; others shall not meet this
                notes.coding_refused(_bare(self.exchange.request.path))
            elif 200 <= status < 300:
                notes.coding_taken()
        elif status not in (400, 415):  # else the plain one was refused, too: not for its coding
            notes.coding_refused(_bare(self.exchange.request.path))

    def _repeat_plain(self, status: int) -> bool:
        """The endpoint may have refused the coding: send the body again as it is, if it can be.

        Both statuses say that the request was not executed. 415 names the coding; 400 may mean
        anything, and is believed of an endpoint that took a coded body once.
        """
        exchange, notes = self.exchange, self.target.notes
        doubted = status == 415 or notes.takes_coding is not True
        if not self.coded or not doubted or not exchange.spool.replayable:
            return False
        self._plain_again = True
        self._repeat()
        return True

    def _await_continue(self, expectation: Expectation) -> None:
        """A relay is this proxy's other half: it has nothing to say of its own."""
        if self.expects:
            state = self.exchange.house.table.snapshot.paths.get(self.target.path.name)
            expectation.asked(None if state is None else state.estimate.rtt_s)
        else:
            self.exchange.go_ahead()

    def _repeat_unexpecting(self) -> bool:
        """Some servers refuse any Expect, without having executed anything (RFC 9110 15.5.18)."""
        if not self.expects or not self.exchange.spool.replayable:
            return False
        self.exchange.go_ahead()
        self._repeat()
        return True

    def _repeat(self) -> None:
        """Once more on the same path, from the beginning."""
        exchange = self.exchange
        if self.stream is not None:
            self.stream.cancel()
        self.stream = None
        self.coded = False
        self._encoder = None
        self._cursor = 0
        self._blocked = False
        self._body_ended = False
        self.asked_at = None
        pending = exchange.house.upstreams.open(self.target.path, self, early_data=False)
        if pending is not None:
            self._wait(pending)

    def _send(self, stream: Stream, piece: bytes) -> None:
        if self._encoder is not None:
            piece = self._encoder.feed(piece)
        if piece:
            self.bytes_up_wire += len(piece)
            self.target.moved_bytes += len(piece)
            stream.send_data(piece)

    def _end_body(self, stream: Stream) -> None:
        self._body_ended = True
        if self._encoder is not None:
            rest = self._encoder.finish()
            self.bytes_up_wire += len(rest)
            stream.send_data(rest)
        self.asked_at = monotonic()
        stream.send_end(self.exchange.request_trailers)


def _bare(path: bytes) -> bytes:
    """Without its query."""
    return path.partition(b"?")[0]
