"""CONNECT: opaque bytes both ways with watermarks (RFC 9110 section 9.3.6).

A tunnel may race and change paths until it is connected, since nothing was sent. After that it is
bound to its line: when that goes DOWN it is closed at once, so that the client reconnects. Through
a relay it is a flow (`edged.relay.client_tunnel`), and goes on over another line.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Protocol, cast

from edged.driver import UPGRADED_IDLE_S, Driver, candidates
from edged.messages import Headers, RequestHead, ResponseHead
from edged.relay.client_tunnel import FlowLeg
from edged.routes import split_authority
from policies.commands import Start
from policies.model import Carrier, Change, Failure, Kind, Outcome, Path, Sample
from probes.base import DialError, Wire

if TYPE_CHECKING:
    from edged.downstream.base import Responder
    from edged.exchanges import Exchanges, Plan
    from edged.targets import Target

DRAIN_REST_S = 5.0
"""A tunnel without traffic for so long is closed in a drain: most are pooled connections that
nobody uses, and would hold it up to its end."""
ANSWER_S = 120.0
"""So long a tunnel in which the client spoke last is taken for one that waits for an answer."""
_HIGH_BYTES = 256 << 10
_LOW_BYTES = 64 << 10


class Pipe(Protocol):
    """What a tunnel does with its upstream connection."""

    def write(self, data: bytes) -> None: ...
    def write_eof(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def is_closing(self) -> bool: ...


class Tunnel(Driver["Leg | FlowLeg"]):
    """One CONNECT request. The `RequestSink` of its client connection."""

    __slots__ = (
        "_transport",
        "asking",
        "broken",
        "client_ended",
        "early",
        "host",
        "upstream_ended",
    )

    def __init__(
        self,
        house: Exchanges,
        plan: Plan,
        request: RequestHead,
        responder: Responder,
    ) -> None:
        self.host = split_authority(request.authority, 443)[0]
        machine = plan.machine(True, candidates(plan.ranking, self.suits))
        super().__init__(house, plan, machine, request, responder)
        self._transport: Pipe | None = None
        self.asking = True
        """Whether the client sent last: then an answer may be due."""
        self.broken = False
        self.client_ended = False
        self.upstream_ended = False
        self.early: list[bytes] = []
        """What the client sent before it was connected (a TLS ClientHello, usually)."""

    def make_attempt(self, begun: Start, target: Target) -> Leg | FlowLeg:
        """A TCP connection over the target's line, or a flow through its relay."""
        return (Leg if target.path.relay is None else FlowLeg)(self, begun, target)

    def suits(self, path: Path) -> bool:
        """Endpoints of the very host the client named will do, if there are any.

        The client's own TLS runs inside: another host's certificate would not satisfy it.
        """
        return path.endpoint.host == self.host

    # -- the client's side (RequestSink) ----------------------------------------------------------

    def body(self, data: bytes) -> None:
        """Bytes from the client."""
        if self.ended:
            return
        self.record.bytes_up += len(data)
        if self._transport is None:
            self.early.append(data)
            if self.record.bytes_up > _HIGH_BYTES:
                self.responder.pause_body()
            return
        self.touch(UPGRADED_IDLE_S)
        self.asking = True
        if self.winner is not None:
            self.winner.target.moved_bytes += len(data)
        self._transport.write(data)

    def body_end(self, trailers: Headers | None) -> None:
        """The client sends no more; the upstream may go on."""
        self.client_ended = True
        if self._transport is None or self.ended:
            return
        if self.upstream_ended:
            self.close()
        elif not self._transport.is_closing():
            self._transport.write_eof()

    def pause_response(self) -> None:
        """The client is slow."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_response(self) -> None:
        """It caught up."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # -- the upstream's side ----------------------------------------------------------------------

    def connected(self, leg: Leg | FlowLeg, transport: Pipe) -> None:
        """The first path is there: the others are cancelled."""
        now = monotonic()
        self.winner = leg
        self.carry_out(self.machine.head_received(leg.number, now))
        self._transport = transport
        self.record.status = 200
        self.record.ttfb_s = now - self.started_at
        self.touch(UPGRADED_IDLE_S)
        head = ResponseHead(200, [], None, reason=b"Connection established")
        self.house.dress(head, leg.target, self.record.request_id, b"")
        self.responder.head(head)
        if self.early:
            transport.write(b"".join(self.early))
            if self.record.bytes_up > _HIGH_BYTES:
                self.responder.resume_body()
            self.early.clear()
        if self.client_ended:
            transport.write_eof()

    def received(self, data: bytes) -> None:
        """Bytes from the upstream."""
        self.touch(UPGRADED_IDLE_S)
        self.asking = False
        self.record.bytes_down += len(data)
        self.record.bytes_down_wire += len(data)
        self.responder.data(data)

    def half_closed(self) -> None:
        """The upstream sends no more; the client may go on."""
        if not self.upstream_ended:
            self.upstream_ended = True
            self.responder.end()
            if self.client_ended:
                self.close()

    def lost(self, error: Exception | None) -> None:
        """The upstream connection is gone."""
        if self.ended:
            return
        if error is None:
            self.half_closed()
            if not self.ended:
                self.close()
        else:
            self._break("connection_terminated", f"the tunnel's connection was lost: {error}")

    def path_down(self, change: Change) -> None:
        """DOWN closes an established tunnel at once; one that is still connecting moves. A flow
        waits for a line.
        """
        if self.winner is not None and self.winner.outlives_lines:
            return
        if self.winner is not None:
            self._break("connection_terminated", f"path {change.path} is down: {change.reason}")
        else:
            super().path_down(change)

    def carrier_lost(self, attempt: int, reason: str) -> None:
        """A tunnel is TCP and nothing else."""
        if self.winner is not None:
            path = self.winner.target.path.name
            self._break("connection_terminated", f"path {path}: {reason}")
        else:
            super().carrier_lost(attempt, reason)

    def deadline_passed(self, now: float) -> None:
        """No connection in time, or a silent hour."""
        if self.winner is None:
            self.carry_out(self.machine.expired(now))
        else:
            self._break("connection_timeout", "nothing was sent either way for an hour")

    def rested(self, now: float) -> bool:
        """Whether it is connected and nothing was sent either way for `DRAIN_REST_S`."""
        return self.winner is not None and self._idle_s(now) >= DRAIN_REST_S

    def waits(self, now: float) -> bool:
        """Whether anybody may be waiting for its bytes: not where the upstream spoke last, nor
        when an answer has been due for `ANSWER_S`."""
        return self.winner is None or self._idle_s(now) < (
            ANSWER_S if self.asking else DRAIN_REST_S
        )

    def _idle_s(self, now: float) -> float:
        return UPGRADED_IDLE_S - (self.deadline - now)

    def drain(self) -> None:
        """An orderly end: its client connects anew, to who comes after us."""
        if not self.ended:
            if not self.upstream_ended:
                self.responder.end()
            self.close()

    def release(self) -> None:
        """Drop what has not been sent."""
        self._transport = None
        self.early.clear()

    def _break(self, error: str, detail: str) -> None:
        if not self.ended:
            self.record.error = error
            self.broken = True
            self.house.broken(self, detail)
            self.responder.abort()
            self.close()


class Leg(asyncio.Protocol):
    """One try: a dial over one line, then the tunnel's upstream connection."""

    carrier: Carrier | None = None
    outlives_lines = False

    def __init__(self, tunnel: Tunnel, begun: Start, target: Target) -> None:
        self.exchange = tunnel
        self.begun = begun
        self.number = begun.attempt
        self.target = target
        self.started_at = monotonic()
        self._task: asyncio.Task[None] | None = None
        self._wire: Wire | None = None
        self._transport: asyncio.Transport | None = None
        self.over = False

    @property
    def path_name(self) -> str:
        """The path it runs on."""
        return self.target.path.name

    def fileno(self) -> int | None:
        """Its socket, for those who watch its line; ``None`` when closed."""
        if self._transport is None or (sock := self._transport.get_extra_info("socket")) is None:
            return None
        number: int = sock.fileno()
        return number if number >= 0 else None

    @property
    def line_name(self) -> str:
        """The line it runs on."""
        return self.target.path.line.name

    def waits(self, now: float) -> bool:
        """Whether anybody may be waiting for its bytes."""
        return self.exchange.waits(now)

    def give_up(self, detail: str) -> None:
        """Nothing passes any more on this connection, whatever its line does."""
        if not self.over:
            self.exchange.lost(TimeoutError(detail))

    @property
    def bytes_up_wire(self) -> int:
        """All bytes of the client, if this is the one that was connected."""
        return self.exchange.record.bytes_up if self._transport is not None else 0

    def start(self) -> None:
        """Dial."""
        self.target.live[self] = None
        self.exchange.house.table.started(self.target.path.name)
        self._task = self.exchange.house.loop.create_task(self._dial())
        self.exchange.carry_out(self.exchange.machine.pending(self.number, self.started_at))

    def cancel(self) -> None:
        """Give up, or close."""
        self._leave()
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            if self.exchange.broken:
                self._transport.abort()
            else:
                self._transport.close()

    async def _dial(self) -> None:
        tunnel, path = self.exchange, self.target.path
        endpoint = path.endpoint
        try:
            dialed = await tunnel.house.dialer.connect_tcp(
                path.line,
                endpoint.host,
                endpoint.port,
                address=endpoint.address,
                timeout_s=tunnel.plan.connect_timeout_s,
            )
        except DialError as error:
            self._task = None
            if not self.over:
                self._leave()
                self._report(None, error.outcome)
                failure = Failure(error.outcome, error.detail, unprocessed=True)
                tunnel.attempt_failed(self, failure)
            return
        self._report(dialed.connect_s, Outcome.OK)
        self._wire = dialed.wire
        try:
            await tunnel.house.loop.create_connection(lambda: self, sock=dialed.sock)
        except BaseException:
            dialed.sock.close()
            raise
        finally:
            self._task = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is none by type
        if self.over:
            transport.abort()
            return
        if self._wire is not None:
            transport = self._wire.wrap(transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=_HIGH_BYTES, low=_LOW_BYTES)
        self.exchange.house.legs[self] = None
        self.exchange.connected(self, transport)

    def data_received(self, data: bytes) -> None:
        if not self.over:
            self.target.moved_bytes += len(data)
            self.exchange.received(data)

    def eof_received(self) -> bool:
        if not self.over:
            self.exchange.half_closed()
        return not self.over

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over:
            self.exchange.lost(exc)

    def pause_writing(self) -> None:
        if not self.over:
            self.exchange.responder.pause_body()

    def resume_writing(self) -> None:
        if not self.over:
            self.exchange.responder.resume_body()

    def _report(self, rtt_s: float | None, outcome: Outcome) -> None:
        sample = Sample(self.target.path.name, Kind.TCP, self.started_at, rtt_s, outcome)
        self.exchange.house.table.observe(sample, monotonic())

    def _leave(self) -> None:
        if not self.over:
            self.over = True
            self.target.live.pop(self, None)
            self.exchange.house.legs.pop(self, None)
            self.exchange.house.table.finished(self.target.path.name)
