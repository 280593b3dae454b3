"""One HTTP/2 connection to an upstream (RFC 9113), with the HPACK of either engine.

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
from collections.abc import Callable
from dataclasses import replace
from time import monotonic

from edged.upstream.base import StreamEvents
from edged.upstream.connection import Owner, Report, Rest
from edged.upstream.engines import HpackEngine
from edged.upstream.h2_stream import WINDOW_BYTES, H2Stream
from edged.upstream.h2_tail import TAIL_DATA, Tail
from edged.upstream.h2_wire import CODE_NAMES, ENHANCE_YOUR_CALM, NO_ERROR, H2Wire, WireError
from edged.upstream.pings import Pings
from edged.upstream.sockets import describe, outcome_of
from policies.model import Carrier, Failure, Outcome, Path

CONNECTION_WINDOW_BYTES = 16 << 20
HELD_MAX_BYTES = 32 << 20
"""What paused streams may hold together before the connection's window is held back."""
FRAME_BYTES = 1 << 16
HEAD_BYTES_MAX = 1 << 16
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
        hpack: HpackEngine,
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
        self.rest: Rest | None = None
        self.announced_s: float | None = None
        self.rtt_s: float | None = None
        self.wire = H2Wire(
            hpack, self, window=WINDOW_BYTES, frame_bytes=FRAME_BYTES, head_bytes=HEAD_BYTES_MAX
        )
        self.streams: dict[int, H2Stream] = {}
        """By id, from head sent to released."""
        self.waiting: dict[int, H2Stream] = {}
        """Those with queued body bytes, oldest wait first."""
        self.blocked = False
        """The socket's buffer is full."""
        self.loop = loop
        self.transport: asyncio.Transport
        self._owner = owner
        self._settled = settled
        self._alt_svc = b""
        self._unopened: dict[H2Stream, None] = {}
        self._limit = limit
        self._on_limit = on_limit
        self._last_id = _LAST_STREAM_ID
        self._goaway: Failure | None = None
        self.closed = False
        self._receiving = False
        self._flush_due = False
        self._due = 0
        self._unacked = 0
        self._held = 0
        self._settings_sent_at = 0.0
        self.calmed = False
        """The peer said ENHANCE_YOUR_CALM (section 7)."""
        self._pings = Pings(loop, report)
        self._tail = Tail(loop, self._send_tail)
        self.settled = True

    # What the pool calls

    def open_stream(self, events: StreamEvents) -> H2Stream:
        """A stream; its id is taken when its head is sent (ids must rise in that order)."""
        assert self.capacity > 0
        self.capacity -= 1
        self.in_flight += 1
        self.idle_since = None
        stream = H2Stream(self, events, reused=self.served > 0)
        self.served += 1
        self._unopened[stream] = None
        return stream

    def ping(self, done: Callable[[float | None], None], timeout_s: float) -> bool:
        """Send PING (section 6.7); see `Connection.ping`."""
        if self.closed:
            return False
        number = self._pings.begin(self.path.name, done, timeout_s)
        self.wire.ping(number.to_bytes(8, "big"))
        self.flush_soon()
        return True

    def drain(self) -> None:
        """Take nothing new; close when the last stream ended."""
        if not self.draining and not self.closed:
            self._start_draining()
            if not self.in_flight:
                self.close(None)

    def close(self, failure: Failure | None = None) -> None:
        """Close at once, with a GOAWAY if this is an orderly end."""
        if not self.closed and failure is None:
            self.wire.goaway(NO_ERROR)
            self._write()
        self._end(failure, abort=failure is not None)

    def expect_loss(self, *, expected: bool) -> None:
        """PING behind what would be alone on its way, or no longer."""
        self._tail.wanted = expected

    def doubt(self) -> None:
        """TCP cannot run on another path."""

    def leave(self) -> bool:
        """Nor go on there."""
        return False

    def fileno(self) -> int | None:
        """The socket's descriptor."""
        if self.closed or (sock := self.transport.get_extra_info("socket")) is None:
            return None
        number: int = sock.fileno()
        return number if number >= 0 else None

    # What the streams call

    def enlist(self, stream: H2Stream) -> bool:
        """Give ``stream`` its id, now that its head is sent; False when no more are taken."""
        wire = self.wire
        if self.closed or self._goaway is not None:
            return False
        if wire.peer_streams is not None and len(self.streams) >= wire.peer_streams:
            return False
        stream.id = wire.next_id
        stream.out_window = wire.peer_window
        wire.next_id += 2
        del self._unopened[stream]
        self.streams[stream.id] = stream
        if wire.next_id > _LAST_STREAM_ID:
            self._start_draining()
        return True

    def release(self, stream: H2Stream) -> None:
        """``stream`` is over (its events were told, or it was cancelled)."""
        if stream.id:
            del self.streams[stream.id]
            self.waiting.pop(stream.id, None)
        else:
            del self._unopened[stream]
        self.in_flight -= 1
        if not self.in_flight:
            self.idle_since = self.loop.time()
            if self.draining and not self.closed:
                # Not inside the caller: it is in the middle of a stream's call.
                self.loop.call_soon(self.close)
        self._update_capacity()

    def reset(self, stream_id: int, code: int) -> None:
        """Send RST_STREAM."""
        if not self.closed:
            self.wire.reset(stream_id, code)
            self.flush_soon()

    def give_window(self, stream_id: int, size: int) -> None:
        """Let the peer send ``size`` more bytes on a stream."""
        if not self.closed:
            self.wire.give_window(stream_id, size)
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
        if self._due >= FLUSH_BYTES and not self.closed:
            self._write()
        else:
            self.flush_soon()

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send preface, SETTINGS and the connection's window in one write."""
        self.transport = transport  # type: ignore[assignment]  # uvloop's are no subclasses
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self.wire.start(CONNECTION_WINDOW_BYTES)
        self._settings_sent_at = monotonic()
        self._write()

    def data_received(self, data: bytes) -> None:
        """Frames, in the turn in which they arrived."""
        self.heard_at = self.loop.time()
        self._receiving = True
        try:
            self.wire.receive(data)
        except WireError as error:
            self._broken(error)
        finally:
            self._receiving = False
            if not self.closed:
                self._write()

    def eof_received(self) -> bool:
        """The peer ended its side; the transport closes after this."""
        self._lost(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        self._lost(exc)
        self.wire.release()

    def pause_writing(self) -> None:
        """The socket's buffer is above its high watermark."""
        self.blocked = True

    def resume_writing(self) -> None:
        """It drained."""
        self.blocked = False
        self._pump()

    # What the wire tells (`edged.upstream.h2_wire.Sink`)

    def data_counted(self, size: int) -> None:
        """DATA came: give the connection's window back in large steps."""
        self._unacked += size
        if self._unacked >= CONNECTION_WINDOW_BYTES // 2:
            self._give_connection_window()

    def window_opened(self, stream_id: int) -> None:
        """More may be sent."""
        if not stream_id:
            self._pump()
        elif (stream := self.waiting.get(stream_id)) is not None:
            while not self.blocked and stream.pump():
                pass

    def settings_received(self) -> None:
        """The peer's limits."""
        limit = self.wire.peer_streams
        self._limit = STREAMS_MAX if limit is None else min(limit, STREAMS_MAX)
        if self._on_limit is not None:
            self._on_limit(self._limit)
        self._update_capacity()
        self._pump()

    def settings_acked(self) -> None:
        """A first idea of the round trip."""
        if self.rtt_s is None:
            self.rtt_s = monotonic() - self._settings_sent_at

    def ping_acked(self, data: bytes) -> None:
        """A PING came back."""
        if data == TAIL_DATA:
            self._tail.unanswered -= 1
            self._settle(settled=self._tail.unanswered <= 0)
        elif (rtt_s := self._pings.answered(int.from_bytes(data, "big"))) is not None:
            self.rtt_s = rtt_s

    def goaway_received(self, last_id: int, code: int) -> None:
        """The peer takes no more: streams beyond ``last_id`` were not acted on."""
        self.calmed = self.calmed or code == ENHANCE_YOUR_CALM
        self._last_id = min(self._last_id, last_id)
        text = "the server closes the connection (GOAWAY)"
        if code:
            text = f"the server closes the connection (GOAWAY {CODE_NAMES.get(code, code)})"
        self._goaway = Failure(Outcome.RESET, text)
        if self.idle_since is not None:
            self.rest = Rest(self.loop.time() - self.idle_since, lost=False)
        self._start_draining()
        refused = replace(self._goaway, unprocessed=True)
        for stream in [s for i, s in self.streams.items() if i > self._last_id]:
            stream.fail(refused)
        for stream in list(self._unopened):
            stream.fail(refused)
        if not self.in_flight:
            self.loop.call_soon(self.close)

    def alt_svc_received(self, origin: bytes, value: bytes) -> None:
        """ALTSVC for an origin; others' are not this connection's to say."""
        endpoint = self.path.endpoint
        standard = endpoint.port == (443 if endpoint.scheme == "https" else 80)
        port = "" if standard else f":{endpoint.port}"
        if origin == f"{endpoint.scheme}://{endpoint.host}{port}".encode():
            self._owner.alt_svc(self, value)

    def response_begun(self) -> None:
        """A stream has its head: session tickets have come by now."""
        if self._settled is not None:
            self._settled()
            self._settled = None

    # Inside

    def alt_svc(self, value: bytes) -> None:
        """An Alt-Svc field came with a response."""
        if value != self._alt_svc:
            self._alt_svc = value
            self._owner.alt_svc(self, value)

    def _start_draining(self) -> None:
        if not self.draining:
            self.draining = True
            self.capacity = 0
            self._owner.draining(self)

    def _update_capacity(self) -> None:
        if self.closed:
            return
        room = self._limit - self.in_flight
        self.capacity = 0 if self.draining or room < 0 else room
        self._owner.capacity_changed(self)

    def _give_connection_window(self) -> None:
        if self._unacked and self._held < HELD_MAX_BYTES and not self.closed:
            size, self._unacked = self._unacked, 0
            self.wire.give_window(0, size)
            self.flush_soon()

    def _pump(self) -> None:
        """Send queued bodies while windows and the socket allow, in turns."""
        waiting = self.waiting
        while waiting and not self.blocked and not self.closed:
            progress = False
            for stream in list(waiting.values()):
                if stream.pump():
                    progress = True
                if self.blocked or self.wire.out_window <= 0:
                    break
            if not progress or self.wire.out_window <= 0:
                break

    def _flush(self) -> None:
        self._flush_due = False
        if not self.closed:
            self._write()

    def _send_tail(self) -> None:
        if self.in_flight and not self.closed:
            self.wire.ping(TAIL_DATA)
            self.transport.write(self.wire.take())
            self._tail.unanswered += 1
            self._settle(settled=False)

    def _settle(self, *, settled: bool) -> None:
        if settled is not self.settled:
            self.settled = settled
            self._owner.capacity_changed(self)

    def _write(self) -> None:
        self._due = 0
        data = self.wire.take()
        if data:
            self.transport.write(data)
            if self._tail.wanted:
                self._tail.wrote()

    def _broken(self, error: WireError) -> None:
        if not self.closed:
            self.wire.goaway(error.code)
            self._write()
        self._end(Failure(Outcome.PROTOCOL, f"HTTP/2 protocol error: {error}"), abort=False)

    def _lost(self, exc: Exception | None) -> None:
        if self.closed:
            return
        if self.idle_since is not None:
            self.rest = Rest(self.loop.time() - self.idle_since, lost=False)
        if exc is None and not self.in_flight:
            self._end(None, abort=False)
        else:
            failure = self._goaway or Failure(outcome_of(exc), describe(exc))
            self._end(failure, abort=True)

    def _end(self, failure: Failure | None, *, abort: bool) -> None:
        """The one way out: transport, capacity, pings, streams, owner, in this order, once."""
        if self.closed:
            return
        self.closed = True
        self.draining = True
        self.capacity = 0
        if abort:
            self.transport.abort()
        else:
            self.transport.close()
        if self.in_flight:
            self._owner.capacity_changed(self)  # who fails with it may ask again at once
        self._tail.stop()
        self._pings.close()
        told = failure or _SHUTDOWN
        for stream in list(self.streams.values()):
            stream.fail(replace(told, unprocessed=stream.id > self._last_id))
        for stream in list(self._unopened):
            stream.fail(replace(told, unprocessed=True))
        self.in_flight = 0
        self._owner.closed(self, failure)
