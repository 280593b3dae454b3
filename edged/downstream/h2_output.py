"""Sending on an HTTP/2 connection (RFC 9113 section 5.2): what windows and socket allow, in as few
writes as possible."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Any

from edged.downstream.h2_stream import H2Exchange
from edged.downstream.hub import Hub
from edged.messages import Headers
from edged.upstream.engines import h2_engine

_FRAME_BYTES = 16384


class H2Output(asyncio.Protocol, ABC):
    """A protocol that sends on many streams.

    Invariant: everything the engine has to say is written at the end of the loop turn at the
    latest. While ``_corked`` (the engine's events are being handled) it waits for their end.
    """

    __slots__ = (
        "_corked",
        "_engine",
        "_flush_due",
        "_hub",
        "_streams",
        "_transport",
        "_unreturned",
        "_write_paused",
    )

    def __init__(self, hub: Hub) -> None:
        limits = hub.limits
        self._hub = hub
        self._engine: Any = h2_engine().server(
            limits.h2_window_bytes, limits.h2_streams, limits.header_bytes
        )
        self._engine.increment_flow_control_window(3 * limits.h2_window_bytes)
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # until adopted
        self._streams: dict[int, H2Exchange] = {}
        self._unreturned = 0
        self._corked = False
        self._flush_due = False
        self._write_paused = False

    def pause_writing(self) -> None:
        """The write buffer is above its high watermark: streams queue."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """It drained."""
        self._write_paused = False
        self._pump_all()

    # What an exchange asks for.

    def send_head(self, exchange: H2Exchange, fields: Headers, *, end: bool) -> None:
        """Send a field section."""
        if self._is_open(exchange.stream_id):
            self._engine.send_headers(exchange.stream_id, fields, end_stream=end)
            self._flush_soon()

    def send_data(self, exchange: H2Exchange, data: bytes) -> None:
        """Send or queue body bytes; the handler is paused above the high watermark."""
        exchange.queue.append(data)
        exchange.queued += len(data)
        if exchange.queued == len(data):
            self._pump(exchange)
        if exchange.queued > self._hub.limits.write_high_bytes and not exchange.slow:
            exchange.slow = True
            if exchange.sink is not None:
                exchange.sink.pause_response()

    def send_end(self, exchange: H2Exchange) -> None:
        """End the response once its queue is empty."""
        if not exchange.queued:
            self._finish(exchange)

    def return_window(self, exchange: H2Exchange, size: int) -> None:
        """Give ``size`` received bytes back to the client, in useful portions, unless paused."""
        exchange.unreturned += size
        if (
            exchange.unreturned >= self._hub.limits.h2_window_bytes // 4
            and not exchange.paused
            and not exchange.done
            and not exchange.request_ended
            and self._is_open(exchange.stream_id)
        ):
            self._engine.increment_flow_control_window(exchange.unreturned, exchange.stream_id)
            exchange.unreturned = 0
            self._flush_soon()

    # What the connection asks for.

    @abstractmethod
    def _finish(self, exchange: H2Exchange) -> None:
        """All body bytes of a response that has ended are sent."""

    def _return_connection_window(self, size: int) -> None:
        self._unreturned += size
        if self._unreturned >= self._hub.limits.h2_window_bytes:
            self._engine.increment_flow_control_window(self._unreturned)
            self._unreturned = 0

    def _pump_all(self) -> None:
        for exchange in [e for e in self._streams.values() if e.queued]:
            if self._write_paused:
                break
            self._pump(exchange)

    def _pump(self, exchange: H2Exchange) -> None:
        """Send what the windows allow of a stream's queue."""
        engine = self._engine
        stream_id = exchange.stream_id
        if not self._is_open(stream_id):
            return
        queue = exchange.queue
        frame = min(_FRAME_BYTES, engine.max_outbound_frame_size)
        while queue and not self._write_paused:
            window = engine.local_flow_control_window(stream_id)
            if window <= 0:
                break
            data = queue[0]
            if len(data) <= min(window, frame):
                queue.popleft()
                engine.send_data(stream_id, data)
                exchange.queued -= len(data)
                continue
            room = min(window, len(data))
            for at in range(0, room, frame):
                engine.send_data(stream_id, data[at : min(at + frame, room)])
            exchange.queued -= room
            if room == len(data):
                queue.popleft()
            else:
                queue[0] = data[room:]
            self._flush()
        self._flush_soon()
        if not exchange.queued and exchange.ended:
            self._finish(exchange)
        elif exchange.slow and exchange.queued <= self._hub.limits.write_high_bytes // 4:
            exchange.slow = False
            if exchange.sink is not None:
                exchange.sink.resume_response()

    def _reset_stream(self, stream_id: int, code: Any) -> None:
        if self._is_open(stream_id):
            self._engine.reset_stream(stream_id, error_code=code)
            self._flush_soon()

    def _is_open(self, stream_id: int) -> bool:
        """Whether anything can be said on a stream. The engine has seen all of what was received,
        a reset included, before the first of its events is handled here; and what one of them
        causes may well concern a stream that another one ends.
        """
        stream = self._engine.streams.get(stream_id)
        return stream is not None and not stream.closed

    def _flush_soon(self) -> None:
        if not self._corked and not self._flush_due:
            self._flush_due = True
            self._hub.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        data = self._engine.data_to_send()
        if data and not self._transport.is_closing():
            self._transport.write(data)
