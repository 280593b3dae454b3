"""One try of a CONNECT tunnel through a relay: a flow of opaque bytes, which survives its line."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from edged.messages import Headers, RequestHead, ResponseHead
from edged.upstream.base import Pending, Stream
from policies.commands import Start
from policies.model import Carrier, Failure, Kind, Outcome, Path, RequestClass, Sample

if TYPE_CHECKING:
    from edged.targets import Target
    from edged.tunnel import Tunnel

_CLASS = RequestClass.of(1 << 20)
"""Nobody knows what a tunnel carries: never twice, and nothing small behind it."""


class FlowLeg:
    """The tunnel's attempt, its transport once connected, and the `StreamEvents` of its flow."""

    def __init__(self, tunnel: Tunnel, begun: Start, target: Target) -> None:
        self.exchange = tunnel
        self.begun = begun
        self.number = begun.attempt
        self.target = target
        self.started_at = monotonic()
        self.carrier: Carrier | None = None
        self.over = False
        self._stream: Stream | None = None
        self._pending: Pending | None = None
        self._connected = False

    @property
    def outlives_lines(self) -> bool:
        """See `Try`."""
        return self._stream is not None

    @property
    def bytes_up_wire(self) -> int:
        """All bytes of the client, if this is the one that was connected."""
        return self.exchange.record.bytes_up if self._connected else 0

    def start(self) -> None:
        """Ask for a flow."""
        self.target.live[self] = None
        house = self.exchange.house
        house.table.started(self.target.path.name)
        self._pending = house.upstreams.open(
            self.target.path, self, early_data=False, request_class=_CLASS
        )
        if not self.over:
            self.exchange.carry_out(self.exchange.machine.pending(self.number, self.started_at))

    def cancel(self) -> None:
        """Give up, or close."""
        stream, pending = self._stream, self._pending
        self._leave()
        if pending is not None:
            pending.cancel()
        if stream is not None:
            stream.cancel()

    # -- the tunnel's transport ------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._stream is not None:
            self._stream.send_data(data)

    def write_eof(self) -> None:
        """It sends no more."""
        if self._stream is not None:
            self._stream.send_end()

    def pause_reading(self) -> None:
        """The client is slow."""
        if self._stream is not None:
            self._stream.pause_reading()

    def resume_reading(self) -> None:
        """It caught up."""
        if self._stream is not None:
            self._stream.resume_reading()

    def is_closing(self) -> bool:
        """Nothing more can be written."""
        return self.over

    # -- StreamEvents ----------------------------------------------------------------------------

    def stream_ready(self, stream: Stream) -> None:
        """Say where to."""
        self._pending = None
        self._stream = stream
        self.carrier = stream.carrier
        authority = self.exchange.request.authority
        stream.send_head(RequestHead(b"CONNECT", b"", authority, b"", [], None), end=False)

    def informational(self, status: int, headers: Headers) -> None:
        """Nothing for a tunnel."""

    def head(self, head: ResponseHead) -> None:
        """The relay has connected, or could not."""
        if 200 <= head.status < 300:
            self._connected = True
            self._report(monotonic() - self.started_at, Outcome.OK)
            self.exchange.connected(self, self)
            return
        if self._stream is not None:
            self._stream.cancel()
        text = f"the relay answered {head.status} to CONNECT"
        self.failed(Failure(Outcome.RESET, text, unprocessed=True))

    def data(self, data: bytes) -> None:
        """Bytes from the other end."""
        if not self.over:
            self.target.moved_bytes += len(data)
            self.exchange.received(data)

    def end(self, trailers: Headers | None) -> None:
        """The other end closed."""
        if not self.over:
            self.exchange.lost(None)

    def failed(self, failure: Failure) -> None:
        """It is over."""
        if self.over:
            return
        if self._connected:
            self.exchange.lost(ConnectionError(failure.detail))
            return
        self._leave()
        self._report(None, failure.outcome)
        self.exchange.attempt_failed(self, failure)

    def moved(self, path: Path) -> None:
        """It goes on over another line."""
        if self.over:
            return
        house, left = self.exchange.house, self.target
        left.live.pop(self, None)
        house.table.finished(left.path.name)
        self.target = house.targets.get(path.name)
        self.target.live[self] = None
        house.table.started(path.name)
        self.exchange.machine.moved(self.number, path.name, monotonic())
        self.exchange.service.counters.migrations += 1

    def stalled(self, reason: str) -> None:
        """Its bytes can be asked nowhere else."""

    def pause_body(self) -> None:
        """The relay takes no more for now."""
        if not self.over:
            self.exchange.responder.pause_body()

    def resume_body(self) -> None:
        """It does again."""
        if not self.over:
            self.exchange.responder.resume_body()

    def _report(self, rtt_s: float | None, outcome: Outcome) -> None:
        sample = Sample(self.target.path.name, Kind.TTFB, self.started_at, rtt_s, outcome)
        self.exchange.house.table.observe(sample, monotonic())

    def _leave(self) -> None:
        if not self.over:
            self.over = True
            self._stream = self._pending = None
            self.target.live.pop(self, None)
            self.exchange.house.table.finished(self.target.path.name)
