"""One HTTP/2 connection to an upstream (RFC 9113), on either engine of `edged.upstream.engines`.

Sending: what all streams produced in one loop turn leaves in one write. A body waits in its
stream's queue while the peer's window or the socket is full; above a watermark the attempt is told.
Receiving: the connection's window is given back as bytes arrive, a stream's only as its attempt
takes them, so that a slow reader holds up nobody else; what all held streams may pile up together
is bounded, and only beyond that the connection's window is held back too.

What proves that a request was not acted on (``unprocessed``): its head was never sent, its id is
beyond a GOAWAY's last id (section 6.8), or it was refused (REFUSED_STREAM, section 8.7) before any
response head.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import Any

from edged.upstream.base import StreamEvents
from edged.upstream.connection import Owner, Report
from edged.upstream.engines import H2Engine
from edged.upstream.h2_stream import WINDOW_BYTES, H2Stream
from edged.upstream.sockets import describe, outcome_of
from policies.model import Carrier, Failure, Kind, Outcome, Path, Sample

CONNECTION_WINDOW_BYTES = 16 << 20
HELD_MAX_BYTES = 32 << 20
"""What paused streams may hold together before the connection's window is held back."""
FRAME_BYTES = 1 << 16
HEADER_BYTES_MAX = 1 << 16
STREAMS_ASSUMED = 100
"""Before a server's SETTINGS were ever seen (RFC 9113 section 6.5.2: no smaller)."""
STREAMS_MAX = 1000
WRITE_HIGH_BYTES = 1 << 18
FLUSH_BYTES = 1 << 16
_LAST_STREAM_ID = (1 << 31) - 1
_SHUTDOWN = Failure(Outcome.LOCAL, "the connection was closed by this host")


class H2Connection(asyncio.Protocol):
    """One TLS or TCP connection speaking HTTP/2. See `edged.upstream.connection`."""

    carrier = Carrier.H2
    early = False

    def __init__(
        self,
        path: Path,
        owner: Owner,
        engine: H2Engine,
        *,
        loop: asyncio.AbstractEventLoop,
        report: Report,
        settled: Callable[[], None] | None = None,
        limit: int = STREAMS_ASSUMED,
        on_limit: Callable[[int], None] | None = None,
    ) -> None:
        """``settled`` is called once, after the first response head (session tickets are there).

        ``limit`` is how many streams the peer takes until its SETTINGS say it (``on_limit``).
        """
        self.path = path
        self.capacity = limit
        self.in_flight = 0
        self.served = 0
        self.heard_at = loop.time()
        self.idle_since: float | None = self.heard_at
        self.draining = False
        self.rtt_s: float | None = None
        self.engine = engine
        self.h2 = engine.client(WINDOW_BYTES, FRAME_BYTES, HEADER_BYTES_MAX)
        self.streams: dict[int, H2Stream] = {}
        """By id, from head sent to released."""
        self.waiting: dict[int, H2Stream] = {}
        """Those with queued body bytes, oldest wait first."""
        self.blocked = False
        """The socket's buffer is full."""
        self.loop = loop
        self.transport: asyncio.Transport
        self._owner = owner
        self._report = report
        self._settled = settled
        self._unopened: dict[int, H2Stream] = {}
        self._limit = limit
        self._on_limit = on_limit
        self._last_id = _LAST_STREAM_ID
        self._goaway: Failure | None = None
        self._closed = False
        self._receiving = False
        self._flush_due = False
        self._due = 0
        self._unacked = 0
        self._held = 0
        self._settings_sent_at = 0.0
        self._pings: dict[bytes, _Ping] = {}
        self._ping_ids = itertools.count(1)
        events = engine.events
        self._handlers: dict[type, Callable[[Any], None]] = {
            events.ResponseReceived: self._on_response,
            events.DataReceived: self._on_data,
            events.StreamEnded: self._on_end,
            events.WindowUpdated: self._on_window,
            events.TrailersReceived: self._on_trailers,
            events.InformationalResponseReceived: self._on_informational,
            events.StreamReset: self._on_reset,
            events.ConnectionTerminated: self._on_goaway,
            events.RemoteSettingsChanged: self._on_settings,
            events.SettingsAcknowledged: self._on_settings_ack,
            events.PingAckReceived: self._on_ping_ack,
            events.AlternativeServiceAvailable: self._on_alt_svc,
        }

    # What the pool calls

    def open_stream(self, events: StreamEvents) -> H2Stream:
        """A stream; its id is taken when its head is sent (ids must rise in that order)."""
        assert self.capacity > 0
        self.capacity -= 1
        self.in_flight += 1
        self.idle_since = None
        stream = H2Stream(self, events, reused=self.served > 0)
        self.served += 1
        self._unopened[id(stream)] = stream
        return stream

    def ping(self, done: Callable[[float | None], None], timeout_s: float) -> bool:
        """Send PING (section 6.7); see `Connection.ping`."""
        if self._closed:
            return False
        data = next(self._ping_ids).to_bytes(8, "big")
        timer = self.loop.call_later(timeout_s, self._ping_lost, data)
        self._pings[data] = _Ping(monotonic(), timer, done)
        self.h2.ping(data)
        self.flush_soon()
        return True

    def drain(self) -> None:
        """Take nothing new; close when the last stream ended."""
        if not self.draining and not self._closed:
            self._start_draining()
            if not self.in_flight:
                self.close(None)

    def close(self, failure: Failure | None = None) -> None:
        """Close at once, with a GOAWAY if this is an orderly end."""
        if not self._closed and failure is None:
            self.h2.close_connection()
            self._write()
        self._end(failure, abort=failure is not None)

    def fileno(self) -> int | None:
        """The socket's descriptor."""
        if self._closed or (sock := self.transport.get_extra_info("socket")) is None:
            return None
        number: int = sock.fileno()
        return number if number >= 0 else None

    # What the streams call

    def enlist(self, stream: H2Stream, stream_id: int) -> None:
        """``stream`` sends its head now, as ``stream_id``."""
        self._unopened.pop(id(stream), None)
        self.streams[stream_id] = stream

    def next_id(self) -> int | None:
        """The id for a new stream, or ``None`` when the peer takes no more."""
        if self._closed or self._goaway is not None:
            return None
        try:
            stream_id: int = self.h2.get_next_available_stream_id()
        except self.engine.ProtocolError:  # all 2^30 ids are used up
            self._start_draining()
            return None
        return stream_id

    def release(self, stream: H2Stream) -> None:
        """``stream`` is over (its events were told, or it was cancelled)."""
        if self.streams.pop(stream.id, None) is None and (
            self._unopened.pop(id(stream), None) is None
        ):
            return
        self.waiting.pop(stream.id, None)
        self.in_flight -= 1
        if not self.in_flight:
            self.idle_since = self.loop.time()
            if self.draining and not self._closed:
                # Not inside the caller: it is in the middle of a stream's or engine's call.
                self.loop.call_soon(self.close)
        self._update_capacity()

    def reset(self, stream_id: int, code: int) -> None:
        """Send RST_STREAM unless the stream is closed already."""
        if not self._closed:
            try:
                self.h2.reset_stream(stream_id, code)
            except self.engine.ProtocolError:
                return  # closed by both sides meanwhile
            self.flush_soon()

    def give_window(self, stream_id: int, size: int) -> None:
        """Let the peer send ``size`` more bytes on a stream."""
        if not self._closed:
            try:
                self.h2.increment_flow_control_window(size, stream_id)
            except self.engine.ProtocolError:
                return  # the stream ended: it needs no window
            self.flush_soon()

    def hold(self, size: int) -> None:
        """A paused stream holds ``size`` more bytes (or fewer, if negative)."""
        self._held += size
        if size < 0:
            self._give_connection_window()

    def flush_soon(self) -> None:
        """Write what is due at the end of this loop turn (or of the bytes being received)."""
        if not self._flush_due and not self._receiving:
            self._flush_due = True
            self.loop.call_soon(self._flush)

    def wrote(self, size: int) -> None:
        """``size`` body bytes are due; a lot leaves now, so that the socket's watermark is seen."""
        self._due += size
        if self._due >= FLUSH_BYTES and not self._closed:
            self._write()
        else:
            self.flush_soon()

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send preface, SETTINGS and the connection's window in one write."""
        self.transport = transport  # type: ignore[assignment]  # uvloop's are no subclasses
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(CONNECTION_WINDOW_BYTES - 65_535)
        self._settings_sent_at = monotonic()
        self._write()

    def data_received(self, data: bytes) -> None:
        """Frames, in the turn in which they arrived."""
        self.heard_at = self.loop.time()
        self._receiving = True
        try:
            handlers = self._handlers
            for event in self.h2.receive_data(data):
                if (handler := handlers.get(event.__class__)) is not None:
                    handler(event)
        except self.engine.ProtocolError as error:
            self._broken(f"HTTP/2 protocol error: {error}")
        finally:
            self._receiving = False
            if not self._closed:
                self._write()

    def eof_received(self) -> bool:
        """The peer ended its side; the transport closes after this."""
        self._lost(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        self._lost(exc)

    def pause_writing(self) -> None:
        """The socket's buffer is above its high watermark."""
        self.blocked = True

    def resume_writing(self) -> None:
        """It drained."""
        self.blocked = False
        self._pump()

    # What the engine tells

    def _on_response(self, event: Any) -> None:
        if (stream := self.streams.get(event.stream_id)) is not None:
            stream.received_head(event.headers, ended=event.stream_ended is not None)
            if self._settled is not None:
                self._settled()
                self._settled = None

    def _on_informational(self, event: Any) -> None:
        if (stream := self.streams.get(event.stream_id)) is not None:
            stream.received_informational(event.headers)

    def _on_data(self, event: Any) -> None:
        self._unacked += event.flow_controlled_length
        if (stream := self.streams.get(event.stream_id)) is not None:
            stream.received_data(event.data, event.flow_controlled_length)
        if self._unacked >= CONNECTION_WINDOW_BYTES // 2:
            self._give_connection_window()

    def _on_trailers(self, event: Any) -> None:
        if (stream := self.streams.get(event.stream_id)) is not None:
            stream.received_trailers(event.headers)

    def _on_end(self, event: Any) -> None:
        if (stream := self.streams.get(event.stream_id)) is not None:
            stream.received_end()

    def _on_reset(self, event: Any) -> None:
        if (stream := self.streams.get(event.stream_id)) is not None:
            stream.received_reset(int(event.error_code))

    def _on_window(self, event: Any) -> None:
        if not event.stream_id:
            self._pump()
        elif (stream := self.waiting.get(event.stream_id)) is not None and not self.blocked:
            stream.pump()
            self.flush_soon()

    def _on_settings(self, event: Any) -> None:
        limit = self.h2.remote_settings.max_concurrent_streams
        self._limit = min(limit, STREAMS_MAX)
        if self._on_limit is not None:
            self._on_limit(self._limit)
        self._update_capacity()
        self._pump()

    def _on_settings_ack(self, event: Any) -> None:
        if self.rtt_s is None:
            self.rtt_s = monotonic() - self._settings_sent_at

    def _on_ping_ack(self, event: Any) -> None:
        if (ping := self._pings.pop(bytes(event.ping_data), None)) is not None:
            ping.timer.cancel()
            self.rtt_s = rtt_s = monotonic() - ping.sent_at
            self._report(Sample(self.path.name, Kind.PING, ping.sent_at, rtt_s))
            ping.done(rtt_s)

    def _on_alt_svc(self, event: Any) -> None:
        host = self.path.endpoint.host.encode()
        if event.origin is None or host in event.origin:
            self._owner.alt_svc(self, event.field_value)

    def _on_goaway(self, event: Any) -> None:
        code = int(event.error_code)
        self._last_id = min(self._last_id, event.last_stream_id)
        text = "the server closes the connection (GOAWAY)"
        if code:
            name = getattr(event.error_code, "name", str(code))
            text = f"the server closes the connection (GOAWAY {name})"
        self._goaway = Failure(Outcome.RESET, text)
        self._start_draining()
        refused = replace(self._goaway, unprocessed=True)
        for stream in [s for i, s in self.streams.items() if i > self._last_id]:
            stream.fail(refused)
        for stream in list(self._unopened.values()):
            stream.fail(refused)
        if not self.in_flight:
            self.loop.call_soon(self.close)

    # Inside

    def alt_svc(self, value: bytes) -> None:
        """An Alt-Svc field came with a response."""
        self._owner.alt_svc(self, value)

    def _start_draining(self) -> None:
        if not self.draining:
            self.draining = True
            self.capacity = 0
            self._owner.draining(self)

    def _update_capacity(self) -> None:
        if self._closed:
            return
        room = self._limit - self.in_flight
        self.capacity = 0 if self.draining or room < 0 else room
        self._owner.capacity_changed(self)

    def _give_connection_window(self) -> None:
        if self._unacked and self._held < HELD_MAX_BYTES and not self._closed:
            size, self._unacked = self._unacked, 0
            self.h2.increment_flow_control_window(size)
            self.flush_soon()

    def _pump(self) -> None:
        """Send queued bodies while windows and the socket allow, in turns."""
        waiting = self.waiting
        while waiting and not self.blocked and not self._closed:
            progress = False
            for stream in list(waiting.values()):
                if stream.pump():
                    progress = True
                if self.blocked or self.h2.outbound_flow_control_window <= 0:
                    break
            if not progress or self.h2.outbound_flow_control_window <= 0:
                break

    def _flush(self) -> None:
        self._flush_due = False
        if not self._closed:
            self._write()

    def _write(self) -> None:
        self._due = 0
        data = self.h2.data_to_send()
        if data:
            self.transport.write(data)

    def _ping_lost(self, data: bytes) -> None:
        if (ping := self._pings.pop(data, None)) is not None:
            self._report(Sample(self.path.name, Kind.PING, ping.sent_at, None, Outcome.TIMEOUT))
            ping.done(None)

    def _broken(self, why: str) -> None:
        if not self._closed:
            self._write()  # the engine prepared a GOAWAY that tells the peer why
        self._end(Failure(Outcome.PROTOCOL, why), abort=False)

    def _lost(self, exc: Exception | None) -> None:
        if self._closed:
            return
        if exc is None and not self.in_flight:
            self._end(None, abort=False)
        else:
            failure = self._goaway or Failure(outcome_of(exc), describe(exc))
            self._end(failure, abort=True)

    def _end(self, failure: Failure | None, *, abort: bool) -> None:
        """The one way out: transport, pings, streams, owner, in this order, once."""
        if self._closed:
            return
        self._closed = True
        self.draining = True
        self.capacity = 0
        if abort:
            self.transport.abort()
        else:
            self.transport.close()
        for ping in self._pings.values():
            ping.timer.cancel()
            ping.done(None)
        self._pings.clear()
        told = failure or _SHUTDOWN
        for stream in list(self.streams.values()):
            stream.fail(replace(told, unprocessed=stream.id > self._last_id))
        for stream in list(self._unopened.values()):
            stream.fail(replace(told, unprocessed=True))
        self.in_flight = 0
        self._owner.closed(self, failure)


class _Ping:
    """A PING on its way."""

    __slots__ = ("done", "sent_at", "timer")

    def __init__(
        self,
        sent_at: float,
        timer: asyncio.TimerHandle,
        done: Callable[[float | None], None],
    ) -> None:
        self.sent_at = sent_at
        self.timer = timer
        self.done = done
