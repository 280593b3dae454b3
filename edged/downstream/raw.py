"""A client connection after 101, or 2xx to CONNECT: bytes both ways, unread.

Each direction ends by itself; the connection closes when both have.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from edged.downstream.hub import NEVER, Hub
from edged.downstream.sockets import reset

if TYPE_CHECKING:
    from edged.downstream.h1_response import H1Exchange


class RawConnection(asyncio.Protocol):
    """Takes a connection over from HTTP/1.1, with the bytes that came early.

    Invariant: ``_kept`` is empty unless the handler paused, or has not been told yet.
    """

    __slots__ = (
        "_client_ended",
        "_exchange",
        "_hub",
        "_input_ended",
        "_kept",
        "_paused",
        "_queued",
        "_transport",
        "_write_ended",
        "deadline",
    )

    def __init__(
        self, hub: Hub, transport: asyncio.Transport, exchange: H1Exchange, early: bytes
    ) -> None:
        self._hub = hub
        self._transport = transport
        self._exchange = exchange
        self._kept = early
        self._paused = False
        self._client_ended = False
        self._input_ended = False
        self._write_ended = False
        self._queued = 0
        self.deadline = NEVER
        if early:
            hub.loop.call_soon(self._deliver)

    # The transport's side.

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        sink = self._exchange.sink
        if self._kept or self._paused or sink is None:
            self._kept += data
            self._deliver()
        else:
            sink.body(data)

    def eof_received(self) -> bool:
        """The client sends no more, but may still read."""
        self._client_ended = True
        self._deliver()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed, by whomever."""
        self._hub.leave(self)
        self._lose()
        exchange = self._exchange  # it and its connection hold this: let the three go one by one
        exchange.tunnel = None
        exchange.connection.forget_tunnel()

    def pause_writing(self) -> None:
        """The write buffer is above its high watermark."""
        self._await_reader()
        if self._exchange.sink is not None and not self._exchange.done:
            self._exchange.sink.pause_response()

    def resume_writing(self) -> None:
        """It drained."""
        self.deadline = NEVER
        if self._exchange.sink is not None and not self._exchange.done:
            self._exchange.sink.resume_response()

    def _deliver(self) -> None:
        """Hand over what was kept, then the end, unless the handler has paused."""
        exchange = self._exchange
        sink = exchange.sink
        if sink is None or exchange.done:
            return
        if self._kept and not self._paused:
            data, self._kept = self._kept, b""
            sink.body(data)
        if self._client_ended and not self._kept and not self._input_ended and not exchange.done:
            self._input_ended = True
            sink.body_end(None)
            self._close_if_over()

    def _close_if_over(self) -> None:
        if self._input_ended and self._write_ended and not self._exchange.done:
            self._exchange.over()
            self._hub.requests_open -= 1
            self._close()

    # What the exchange asks for.

    def write(self, data: bytes) -> None:
        """Send bytes to the client."""
        if not self._write_ended:
            self._transport.write(data)

    def half_close(self) -> None:
        """No more bytes will be sent."""
        if self._write_ended:
            return
        self._write_ended = True
        self._close_if_over()
        if not self._exchange.done and self._transport.can_write_eof():
            self._transport.write_eof()

    def pause_body(self) -> None:
        """Stop reading."""
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume_body(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
            if self._kept or self._client_ended:
                self._hub.loop.call_soon(self._deliver)

    def cut(self) -> None:
        """Break the connection visibly; the exchange is done."""
        self._hub.requests_open -= 1
        reset(self._transport)

    # The hub's side.

    def _await_reader(self) -> None:
        self._queued = self._transport.get_write_buffer_size()
        self.deadline = self._hub.now + self._hub.limits.write_stall_s

    def _close(self) -> None:
        self._await_reader()
        self._transport.close()

    def _lose(self) -> None:
        exchange = self._exchange
        if not exchange.done:
            sink = exchange.sink
            exchange.over()
            self._hub.requests_open -= 1
            if sink is not None:
                sink.gone()

    def expired(self, now: float) -> None:
        """A client that takes nothing for so long is cut off."""
        queued = self._transport.get_write_buffer_size()
        if queued and queued != self._queued:
            self._await_reader()
        else:
            self.kill()

    def drain(self) -> None:
        """A tunnel lasts as long as draining allows."""

    def kill(self) -> None:
        """Close at once."""
        self.deadline = NEVER
        self._lose()
        reset(self._transport)
