"""One client request and its response: carries out what `policies.attempts` decides.

An `Exchange` is the `RequestSink` of its client connection and the owner of its attempts. It keeps
the promises that outrank everything: a response cut short is never ended cleanly, a request is
repeated only when the machine says so, and there is always a deadline.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from edged.accesslog import AttemptRecord
from edged.attempt import Attempt
from edged.compress import (
    ACCEPT_ENCODING,
    CODINGS,
    accepted_codings,
    request_coding,
    response_decoder,
)
from edged.delivery import Decoding
from edged.downstream.base import Responder
from edged.driver import UPGRADED_IDLE_S, Driver, candidates
from edged.expectation import Expectation
from edged.messages import Headers, RequestHead, ResponseHead
from edged.outcome import judge
from edged.preferences import Preferences
from edged.spool import Spool
from edged.targets import Target
from policies.commands import Start
from policies.model import Failure, Outcome

if TYPE_CHECKING:
    from edged.exchanges import Exchanges, Plan

HOLD_BYTES = 64 << 10
"""A request whose body is announced to be at most this long goes out once all of it is here."""
SIZE_AWAITED_S = 0.05
"""How long a body of unknown length, that would be coded if it is long, is awaited before its
request goes out. No longer: a client may wait for an answer before it sends more."""
ANSWER_HELD_BYTES = 16 << 10
"""A response that is announced to be at most this long is passed on once all of it is here, so that
it can come from another line if this one dies in between. It is what TCP sends in one go."""
ANSWER_HELD_S = 1.0
"""For so long at most, and a second more (`deadline_passed`): lines are known dead by then."""
SAFE_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE"})
_LAG_HIGH_BYTES = 256 << 10  # body bytes that no attempt has taken yet: the client is paused
_LAG_LOW_BYTES = 64 << 10

_ACCEPT_ENCODING = (b"accept-encoding", ACCEPT_ENCODING)

_NO_BODY = Spool(0)
_NO_BODY.complete = True


class HeldAnswer:
    """A response that has begun, and nothing of it was passed on yet."""

    __slots__ = ("attempt", "head", "pieces")

    def __init__(self, attempt: Attempt, head: ResponseHead) -> None:
        self.attempt = attempt
        self.head = head
        self.pieces: list[bytes] = []


class Exchange(Driver[Attempt]):
    """See the module. Public attributes are for its attempts and for `edged.exchanges`."""

    __slots__ = (
        "_client_codings",
        "_client_slow",
        "_decoding",
        "_held",
        "_length",
        "_paused_client",
        "_size_awaited",
        "expectation",
        "prefix",
        "request_trailers",
        "safe_method",
        "spool",
        "upgraded",
        "upstream_headers",
    )

    def __init__(
        self,
        house: Exchanges,
        plan: Plan,
        request: RequestHead,
        preferences: Preferences,
        responder: Responder,
        prefix: bytes,
    ) -> None:
        self.safe_method = request.method in SAFE_METHODS
        repeatable = self.safe_method or preferences.idempotency_key
        machine = plan.machine(repeatable, plan.candidates)
        super().__init__(house, plan, machine, request, responder)
        self.prefix = prefix
        self.request_trailers: Headers | None = None
        self.spool = _NO_BODY
        if request.body_length != 0:
            limit = plan.service.policy.limits.spool_bytes
            self.spool = Spool(limit, house.spool_dir, house.spool_failed)
        self.upgraded = False
        self.expectation: Expectation | None = None
        """While the client waits for 100 (Continue)."""
        self._client_codings: frozenset[str] | None = None
        self.upstream_headers = self._make_upstream_headers(preferences)
        self._decoding: Decoding | None = None
        self._held: HeldAnswer | None = None
        self._length: int | None = None  # of the response as the client gets it
        self._client_slow = False
        self._paused_client = False
        self._size_awaited: asyncio.TimerHandle | None = None

    def make_attempt(self, begun: Start, target: Target) -> Attempt:
        """A stream from the pools."""
        return Attempt(self, begun, target)

    def refuge(self, path: str) -> str | None:
        """See `Driver.refuge`."""
        if self.machine.done or not self.machine.repeatable:
            return None
        old = self.plan.ranking
        found = candidates(self.house.table.peek(old.upstream, old.request_class))
        return next((p for p in found.paths[: found.reachable] if p != path), None)

    def begin(self) -> None:
        """The head is here. A small body that is still to come is waited for, unless the client
        waits to be told to send it.
        """
        length = self.request.body_length
        if length != 0 and self.request.expects_continue:
            limit = self.service.policy.limits.body_bytes
            if limit is not None and length is not None and length > limit:
                self._refuse_length(limit)
                return
            self.expectation = Expectation(self.house.loop, self.go_ahead)
        elif length and length <= HOLD_BYTES and self.request.upgrade is None:
            return
        if length is None and self._size_matters():
            self._size_awaited = self.house.loop.call_later(SIZE_AWAITED_S, self._start_sending)
            return
        super().begin()

    def go_ahead(self) -> None:
        """The client need not wait with its body: it is told so, unless it has begun."""
        if self.expectation is not None:
            self._end_expectation()
            self.responder.resume_body()

    def _end_expectation(self) -> None:
        assert self.expectation is not None
        self.expectation.over()
        self.expectation = None

    def _size_matters(self) -> bool:
        """Whether the body, whose length is unknown, is coded if it is long."""
        request, least = self.request, self.plan.codes_requests_from
        return (
            least is not None
            and not (request.expects_continue or request.upgrade)
            and request_coding(request, CODINGS, least) is not None
        )

    def _start_sending(self) -> None:
        """Whether its body is long is known by now, or must do without."""
        if self._size_awaited is not None:
            self._size_awaited.cancel()
            self._size_awaited = None
            if not self.ended and not self.machine.done:
                super().begin()

    # -- the client's side (RequestSink) ----------------------------------------------------------

    def body(self, data: bytes) -> None:
        """Request body; after an upgrade, raw bytes."""
        if self.ended:
            return
        if self.upgraded:
            self.touch(UPGRADED_IDLE_S)
            self.record.bytes_up += len(data)
            if self.winner is not None:
                self.winner.pass_raw(data)
            return
        spool = self.spool
        limit = self.service.policy.limits.body_bytes
        if limit is not None and spool.size + len(data) > limit:
            self._refuse_length(limit)
            return
        if self.expectation is not None:
            self._end_expectation()
        was_replayable = spool.replayable
        spool.append(data, self._slowest_cursor())
        if was_replayable and not spool.replayable:
            self._lose_replay()
        self.touch(self.plan.first_byte_timeout_s)
        if self._size_awaited is not None and spool.size >= (self.plan.codes_requests_from or 0):
            self._start_sending()
        else:
            for attempt in tuple(self.live.values()):
                attempt.pass_on(data)
        if not self._paused_client and spool.size - self._fastest_cursor() > _LAG_HIGH_BYTES:
            self._paused_client = True
            self.responder.pause_body()

    def body_end(self, trailers: Headers | None) -> None:
        """The request is complete."""
        if self.ended:
            return
        if self.upgraded:
            if self.winner is not None and self.winner.stream is not None:
                self.winner.stream.send_end()
            return
        self.request_trailers = trailers
        if self.expectation is not None:
            self._end_expectation()
        if self.spool is not _NO_BODY:
            self.spool.complete = True
        if self._size_awaited is not None:
            self._start_sending()
            return
        if self.machine.starts == 0 and not self.machine.done:
            super().begin()
            return
        for attempt in tuple(self.live.values()):
            attempt.feed()

    def pause_response(self) -> None:
        """The client reads slower than the upstream sends."""
        self._client_slow = True
        if self._decoding is not None:
            self._decoding.pause()
        if self.winner is not None and self.winner.stream is not None:
            self.winner.stream.pause_reading()

    def resume_response(self) -> None:
        """The client caught up."""
        self._client_slow = False
        if self._decoding is not None:
            self._decoding.resume()
        winner = self.winner
        if not self._client_slow and winner is not None and winner.stream is not None:
            winner.stream.resume_reading()

    # -- the attempts' side -----------------------------------------------------------------------

    def attempt_pending(self, attempt: Attempt) -> None:
        """No pooled stream was free."""
        self.carry_out(self.machine.pending(attempt.number, monotonic()))

    def attempt_sent(self, attempt: Attempt, now: float) -> None:
        """The request's head went out on it."""
        commands = self.machine.sent(attempt.number, now)
        if commands:
            self.carry_out(commands)

    def attempt_answered(self, attempt: Attempt, head: ResponseHead) -> None:
        """A final head came: it is the answer."""
        now = monotonic()
        status = head.status
        if status < 429:
            attempt.answered(now, Outcome.OK, None)
        else:
            attempt.answered(now, *judge(head))
        self.record.ttfb_s = now - self.started_at
        length = head.body_length
        if (
            length
            and length <= ANSWER_HELD_BYTES
            and attempt.asked_at is not None
            and self.machine.repeatable
        ):
            self._held = HeldAnswer(attempt, head)
            self.deadline = now + ANSWER_HELD_S
            if commands := self.machine.head_held(attempt.number, now):
                self.carry_out(commands)
        else:
            self._commit(attempt, head, now)

    def _commit(self, attempt: Attempt, head: ResponseHead, now: float) -> None:
        """The client gets this response, whatever becomes of it."""
        self.winner = attempt
        commands = self.machine.head_received(attempt.number, now)
        if len(commands) > 1:
            self.carry_out(commands)
        self.record.status = status = head.status
        if self._client_codings is not None:
            decoder = response_decoder(head, self._client_codings)
            if decoder is not None:
                self._decoding = Decoding(decoder, self._send_plain, self._finish, self._break)
        self._length = head.body_length
        self.house.dress(head, attempt.target, self.record.request_id, self.prefix)
        if status == 101:
            self.upgraded = True
            self.deadline = now + UPGRADED_IDLE_S
        else:
            self.deadline = now + self.plan.idle_timeout_s
        self.responder.head(head)

    def _pass_on(self, held: HeldAnswer) -> None:
        """Hold the response back no longer."""
        self._held = None
        self._commit(held.attempt, held.head, monotonic())
        for piece in held.pieces:
            if not self.ended:
                self._body_to_client(piece)

    def attempt_moved(self, attempt: Attempt, left: Target, *, long: bool) -> None:
        """It goes on over another line, unrepeated: the leg that is over is remembered. ``long``:
        so is its body."""
        now, begun, path = monotonic(), attempt.begun, attempt.target.path
        self.record.attempts += (
            AttemptRecord(
                left.path.name,
                attempt.carrier,
                attempt.started_at - self.started_at,
                now - self.started_at,
                why=begun.why,
                reason=begun.reason,
                moved=True,
            ),
        )
        reason = f"the connection moved from line {left.path.line.name}"
        attempt.begun = Start(attempt.number, path.name, "migration", reason)
        attempt.started_at = now
        self.service.counters.migrations += 1
        self._reroute()
        since = self.house.table.silent_since(left.path.name)
        self.carry_out(self.machine.moved(attempt.number, path.name, now, since, long=long))

    def attempt_failed(self, attempt: Attempt, failure: Failure) -> None:
        """It is over without a complete response."""
        held = self._held
        if held is not None and held.attempt is attempt and not failure.line_failed:
            self._pass_on(held)  # the endpoint broke it off, and would again
        if attempt is self.winner:
            self._break(failure.detail)
        else:
            super().attempt_failed(attempt, failure)

    def informational(self, status: int, headers: Headers) -> None:
        """Pass an interim response on, unless the final head is out."""
        if self.record.status is None and not self.ended:
            self.responder.informational(status, headers)

    def response_data(self, data: bytes) -> None:
        """Body bytes: they leave in this loop turn, unless the response is held."""
        self.record.bytes_down_wire += len(data)
        if self._held is not None:
            self._held.pieces.append(data)
            return
        limit_s = UPGRADED_IDLE_S if self.upgraded else self.plan.idle_timeout_s
        self.deadline = monotonic() + limit_s
        self._body_to_client(data)

    def _body_to_client(self, data: bytes) -> None:
        if self._decoding is None:
            self._send_plain(data)
        else:
            self._decoding.data(data)

    def response_end(self, trailers: Headers | None) -> None:
        """The winner's body is complete; the client's is once all is decoded."""
        held = self._held
        if held is not None:
            self._pass_on(held)
        if self._decoding is None:
            self._finish(trailers)
        else:
            self._decoding.end(trailers)

    def body_moved(self) -> None:
        """An attempt took body bytes: the client may send more."""
        if self._paused_client and self.spool.size - self._fastest_cursor() <= _LAG_LOW_BYTES:
            self._paused_client = False
            self.responder.resume_body()

    def _remember(self, attempt: Attempt, failure: Failure | None) -> None:
        super()._remember(attempt, failure)
        if self._held is not None and self._held.attempt is attempt:
            self._held = None  # nobody saw anything of it
            self.touch(self.plan.first_byte_timeout_s)

    # -- time --------------------------------------------------------------------------------------

    def deadline_passed(self, now: float) -> None:
        """Too long without progress (see `edged.deadlines`)."""
        if self._held is not None:
            self._pass_on(self._held)
        elif self.winner is not None:
            self.record.error = "http_response_timeout"
            self._break("the response paused for longer than the policy's idle_timeout_s")
        else:
            self.carry_out(self.machine.expired(now))

    def _refuse_length(self, limit: int) -> None:
        self.carry_out(self.machine.client_gone(monotonic()))
        self.fail(413, "http_request_error", f"the policy allows {limit} bytes of body")

    # -- the response -----------------------------------------------------------------------------

    def _send_plain(self, piece: bytes) -> None:
        self.record.bytes_down += len(piece)
        self.responder.data(piece)

    def _finish(self, trailers: Headers | None) -> None:
        """A complete response."""
        if not self.ended:
            self.responder.end(trailers)
            self.close()

    def _break(self, detail: str) -> None:
        """The response cannot be completed: the client must be able to tell."""
        if not self.ended:
            self.record.error = self.record.error or "http_response_incomplete"
            self.house.broken(self, detail)
            self.responder.abort()
            self.close()

    def gone(self) -> None:
        """The client left. Who has all of the response lost nothing, though the upstream is still
        to say that it ended: HTTP/2 and HTTP/3 may say so later than they send the last byte.
        """
        winner = self.winner
        whole = self.record.bytes_down == self._length and not self.upgraded
        if winner is not None and whole and not self.ended:
            winner.leave()
            self.close()
        else:
            super().gone()

    def release(self) -> None:
        """Free the spool."""
        if self._size_awaited is not None:
            self._size_awaited.cancel()
            self._size_awaited = None
        if self.spool is not _NO_BODY:
            self.record.bytes_up = self.spool.size
            self.spool.close()
        self._decoding = self._held = None
        if self.expectation is not None:
            self._end_expectation()

    # -- parts ------------------------------------------------------------------------------------

    def _make_upstream_headers(self, preferences: Preferences) -> Headers:
        """The request's fields as every attempt sends them, but for what an endpoint adds."""
        request = self.request
        headers = preferences.forwarded.copy()
        if (
            self.plan.codes_responses
            and not preferences.one_representation
            and request.upgrade is None
            and request.method != b"HEAD"  # a length of one representation, too
        ):
            self._client_codings = accepted_codings(preferences.accept_encoding)
            headers.append(_ACCEPT_ENCODING)
        elif preferences.accept_encoding is not None:
            headers.append((b"accept-encoding", preferences.accept_encoding))
        headers.append(self.house.via[request.version])
        return headers

    def _fastest_cursor(self) -> int:
        return max([attempt.cursor for attempt in self.live.values()], default=0)

    def _slowest_cursor(self) -> int:
        return min([attempt.cursor for attempt in self.live.values()], default=0)

    def _lose_replay(self) -> None:
        """Too long for the spool: who is far behind the fastest attempt cannot be served on."""
        self.machine.replay_lost()
        fastest = self._fastest_cursor()
        for attempt in tuple(self.live.values()):
            if fastest - attempt.cursor > _LAG_HIGH_BYTES:
                attempt.failed(Failure(Outcome.PROTOCOL, "the request body outgrew the spool"))
