"""One HTTP/3 connection to an upstream: the `Connection` of `edged.upstream.connection`.

It stands between a `quic.Driver` (datagrams, time) and its `H3Stream`s. Rules:

* ``capacity`` is what the peer's stream credit leaves (RFC 9000 section 4.6), and 0 while
  draining, closed, or stalled by a paused stream (see `quic_engines` on credit).
* A connection ends once, through `_die`: it takes nothing new, then every stream fails, then every
  ping, then the owner hears.
* It may go on over another line (`edged.upstream.migration`): then it has another ``path`` and
  another owner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import ClassVar

from edged.messages import Headers, header
from edged.upstream import h3_frames as h3
from edged.upstream.base import StreamEvents
from edged.upstream.connection import Owner, Report, Rest
from edged.upstream.h3_meter import Meter
from edged.upstream.h3_stream import SEND_LOW_BYTES, H3Stream
from edged.upstream.h3_tending import Tending
from edged.upstream.migration import FIRST_MARK, Migration, MigrationTools
from edged.upstream.pings import Pings
from edged.upstream.quic import Driver
from edged.upstream.quic_engines import Engine
from edged.upstream.quic_failure import end_of
from policies.model import Carrier, Failure, Kind, Outcome, Path, Sample

_CLOSED_LOCALLY = Failure(Outcome.LOCAL, "the connection was closed by edged")


class H3Connection:
    """See `edged.upstream.connection.Connection`. Made by `edged.upstream.h3.H3Connector`."""

    __deletable__: ClassVar = ["_tending", "driver", "migration", "session"]
    """For mypyc."""
    carrier = Carrier.H3
    settled = True
    rest: Rest | None = None
    announced_s: float | None = None

    def __init__(
        self,
        path: Path,
        owner: Owner,
        engine: Engine,
        report: Report,
        loop: asyncio.AbstractEventLoop,
        migration: MigrationTools,
    ) -> None:
        self.path = path
        """Where it runs now."""
        self.loop = loop
        self.engine = engine
        self.driver: Driver
        self.session: h3.Session
        self.capacity = 0
        self.in_flight = 0
        self.served = 0
        self.idle_since: float | None = monotonic()
        self.heard_at = monotonic()
        self.draining = False
        self.early = False
        self.early_accepted: bool | None = None
        """Whether the server took 0-RTT data; ``None``: none was sent, or it is not known yet."""
        self.paused: set[H3Stream] = set()
        """Streams whose request body is paused."""
        self.ready: asyncio.Future[None] = loop.create_future()
        """Done when the handshake is, or the connection at its end."""
        self.owned = False
        """Handed over: from now on the owner hears of it."""
        self.end: Failure | None = None
        """Why it is closed."""
        self.report = report
        self.peer = ("", 0)
        """The server's address as the handshake found it."""
        self.migration = Migration(self, migration)
        self._owner = owner
        self._started_at = monotonic()
        self._deadline: asyncio.TimerHandle | None = None
        self._closed = False
        self._shaken = False
        self._streams: dict[int, H3Stream] = {}
        self._unsent: set[H3Stream] = set()
        self._ids_taken = 0
        self._stalling: set[H3Stream] = set()
        self._late: list[H3Stream] = []
        self._pings = Pings(loop, report, Carrier.H3)
        self._tending = Tending(self)
        self._alt_svc: bytes | None = None
        self._meter = Meter(engine)

    # Starting

    def start(
        self, driver: Driver, peer: tuple[str, int], *, early: bool, timeout_s: float
    ) -> None:
        """Shake hands over ``driver``; with ``early`` the connection may be used at once."""
        self.driver = driver
        self.peer = peer
        self._started_at = monotonic()
        self._deadline = self.loop.call_later(timeout_s, self._too_late)
        driver.start(peer)
        if early and not self._closed:
            self.early = True
            self._open_session()
            self._set_capacity()

    def _open_session(self) -> None:
        ids = []
        for _ in range(3):
            stream_id = self.engine.next_stream_id(unidirectional=True)
            ids.append(stream_id)
            self.engine.send(stream_id, b"", False)
        self.session = h3.Session(
            self, (ids[0], ids[1], ids[2]), datagrams=self.path.endpoint.is_door
        )
        self.driver.touch()

    def _too_late(self) -> None:
        detail = "no QUIC handshake in time (is UDP blocked on this line?)"
        self.close(Failure(Outcome.TIMEOUT, detail))

    def handshake_done(self, alpn: str | None, early_accepted: bool) -> None:
        if self._closed:
            return
        if alpn != "h3":
            self._die(Failure(Outcome.TLS, f"the server chose ALPN {alpn!r} instead of h3"), 0x178)
            return
        now = monotonic()
        self._shaken = True
        if self._deadline is not None:
            self._deadline.cancel()
        self.report(Sample(self.path.name, Kind.QUIC, self._started_at, now - self._started_at))
        was_early, self.early = self.early, False
        self.early_accepted = early_accepted if was_early else None
        if not was_early:
            self._open_session()
        self._set_capacity()
        if not self.ready.done():
            self.ready.set_result(None)
        if was_early:
            self._send_late()
            self._owner.capacity_changed(self)

    # What the pool calls

    def open_stream(self, events: StreamEvents) -> H3Stream:
        stream = H3Stream(self, events, reused=self.served > 0)
        self._unsent.add(stream)
        self.served += 1
        if not self.in_flight:
            self._tending.begin()
        self.in_flight += 1
        self.capacity -= 1
        self.idle_since = None
        return stream

    def ping(self, done: Callable[[float | None], None], timeout_s: float) -> bool:
        if self._closed:
            return False
        self.engine.ping(self._pings.begin(self.path.name, done, timeout_s))
        self.driver.touch()
        return True

    def drain(self) -> None:
        if self.draining or self._closed:
            return
        self.draining = True
        self.capacity = 0
        self._owner.draining(self)
        if not self.in_flight:
            self.close()

    def close(self, failure: Failure | None = None) -> None:
        self._die(failure, h3.NO_ERROR)

    def fileno(self) -> int | None:
        return None

    def expect_loss(self, *, expected: bool) -> None:
        """QUIC's own probes are soon enough."""

    def doubt(self) -> None:
        if not self._closed:
            self.migration.doubt()

    def leave(self) -> bool:
        return self.owned and not self._closed and self.migration.leave()

    # What the migration calls

    def moved(self, path: Path) -> None:
        """It runs on ``path`` now, but is not proven there."""
        self.path = path
        self._set_capacity()
        self._pings.left_path()
        self._owner = self._owner.moved(self, path)
        for stream in [*self._unsent, *self._streams.values()]:
            stream.moved(path)

    def fail_waiting(self, failure: Failure) -> None:
        """The streams without a response are over."""
        for stream in [*self._unsent, *self._streams.values()]:
            if not stream.begun:
                stream.fail(replace(failure, unprocessed=stream.id is None))

    def stalled(self, reason: str) -> None:
        """The peer was not heard on the new path in time."""
        for stream in [*self._unsent, *self._streams.values()]:
            stream.stalled(reason)

    def arrived(self) -> None:
        """The peer answered on the new path."""
        self._meter.begin_anew(self.driver, self.heard_at)
        self._set_capacity()
        self._owner.capacity_changed(self)

    # What the streams call

    def assign_id(self, stream: H3Stream) -> int:
        """A QUIC stream for ``stream``."""
        stream_id = self.engine.next_stream_id()
        self._unsent.discard(stream)
        self._ids_taken += 1
        self._streams[stream_id] = stream
        return stream_id

    def send(self, stream_id: int, data: bytes, fin: bool) -> None:
        """Queue bytes; they leave at the end of the loop turn."""
        self.engine.send(stream_id, data, fin)
        self.driver.touch()

    def abandon(self, stream_id: int, code: int) -> None:
        """Reset what is open of a QUIC stream."""
        if self._closed:
            return
        self.engine.reset(stream_id, code)
        if code != h3.NO_ERROR:
            self.engine.stop(stream_id, code)
            self.session.cancelled(stream_id)
        self.driver.touch()

    def forget(self, stream: H3Stream) -> None:
        """No more events of its QUIC stream go to ``stream``."""
        self._unsent.discard(stream)
        if stream.id is not None:
            self._streams.pop(stream.id, None)

    def ended(self, stream: H3Stream) -> None:
        """Its attempt was told; make the numbers and the owner follow."""
        if self._closed:
            return
        self.in_flight -= 1
        if not self.in_flight:
            self.idle_since = monotonic()
        self._set_capacity()
        self._owner.capacity_changed(self)
        if self.draining and not self.in_flight:
            self.close()

    def repeat(self, stream: H3Stream) -> None:
        """Send ``stream``'s request again, once the handshake is complete."""
        self._late.append(stream)
        if not self.early:
            self.loop.call_soon(self._send_late)

    def stall(self, stream: H3Stream, stalled: bool) -> None:
        """A paused stream has piled up too much (or no longer): stop giving credit."""
        if stalled == (stream in self._stalling):
            return
        if stalled:
            self._stalling.add(stream)
        else:
            self._stalling.discard(stream)
        if self.engine.stalled == bool(self._stalling):
            return
        self.engine.stalled = stalled
        if not stalled and not self._closed:
            self.loop.call_soon(self._unstalled)

    def head_seen(self, headers: Headers) -> None:
        """A response's head came."""
        value = header(headers, b"alt-svc")
        if value is not None and value != self._alt_svc:
            self._alt_svc = value
            self._owner.alt_svc(self, value)

    # What the session calls

    def send_on(self, stream_id: int, data: bytes) -> None:
        self.engine.send(stream_id, data, False)

    def goaway(self, last_id: int) -> None:
        failure = Failure(
            Outcome.RESET, "the server is going away and did not process it", unprocessed=True
        )
        if not self.draining:
            self.draining = True
            self.capacity = 0
            self._owner.draining(self)
        for stream_id in [i for i in self._streams if i >= last_id]:
            self._streams[stream_id].fail(failure)
        if not self.in_flight:
            self.close()

    # What the driver and its engine call

    def stream_data(self, stream_id: int, data: bytes, fin: bool) -> None:
        stream = self._streams.get(stream_id)
        try:
            if stream is not None:
                stream.received(data, fin)
            elif stream_id & 3 == 3 and not self._closed:
                self.session.receive(stream_id, data, fin)
        except h3.ConnectionBroken as broken:
            self.broken(broken)

    def stream_reset(self, stream_id: int, code: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.reset(code)
        elif stream_id & 3 == 3 and not self._closed:
            try:
                self.session.reset(stream_id)
            except h3.ConnectionBroken as broken:
                self.broken(broken)

    def stop_sending(self, stream_id: int, code: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.sending_stopped()

    def message(self, data: bytes) -> None:
        """The payload of a DATAGRAM frame: of one stream (RFC 9297 section 2.1)."""
        quarter, at = h3.read_varint(data, 0)
        stream = self._streams.get(4 * quarter)
        if stream is not None:
            stream.message(data[at:])

    def ping_acked(self, uid: int) -> None:
        if uid >= FIRST_MARK:
            self.migration.acked(uid)
        else:
            # The peer may delay its acknowledgement by 25 ms; the engine has taken that off.
            self._pings.answered(uid, self.engine.counters().latest_rtt_s)

    def terminated(self, code: int, frame_type: int | None, reason: str) -> None:
        failure = end_of(code, frame_type, reason, self.path.endpoint.host)
        # A server that closes or lets lapse what nobody uses has not failed.
        gentle = failure.outcome in (Outcome.RESET, Outcome.TIMEOUT) and self._shaken
        if self.migration.moving:
            failure = self.migration.ended(failure)
        self._die(failure, None, gentle=gentle)

    def turn_done(self) -> None:
        if self._closed:
            return
        if self.migration.watching:
            self.migration.heard()
        if self.engine.stalled:
            # Acknowledgements wait behind the stall; any packet is a sign of life.
            for uid in self._pings.waiting:
                self.ping_acked(uid)
        if self._shaken:
            before = self.capacity
            self._set_capacity()
            if self.capacity != before:
                self._owner.capacity_changed(self)
            if not self.migration.moving:
                sample = self._meter.sample(self.path.name, self.driver, self.heard_at)
                if sample is not None:
                    self.report(sample)

    def flushed(self) -> None:
        if self.paused:
            unsent = self.engine.unsent
            for stream in list(self.paused):
                if stream.id is not None and unsent(stream.id) < SEND_LOW_BYTES:
                    stream.window_opened()

    def path_validated(self, path: int, rtt_s: float | None) -> None:
        self.migration.validated(path, rtt_s)

    def socket_failed(self, outcome: Outcome, detail: str) -> None:
        if outcome is Outcome.UNREACHABLE and self.leave():
            return
        self._die(Failure(outcome, detail), None)

    def broken(self, broken: h3.ConnectionBroken) -> None:
        """The peer broke the protocol."""
        self._die(Failure(Outcome.PROTOCOL, broken.detail), broken.code)

    # Inside

    def _send_late(self) -> None:
        late, self._late = self._late, []
        for stream in late:
            stream.send_again()

    def _unstalled(self) -> None:
        if not (self._closed or self.engine.stalled):
            self.driver.pump()

    def _set_capacity(self) -> None:
        if self.draining or self._closed or self._stalling or self.migration.moving:
            self.capacity = 0
        else:
            credit = self.engine.streams_allowed() - self._ids_taken - len(self._unsent)
            self.capacity = max(credit, 0)

    def _die(self, failure: Failure | None, code: int | None, *, gentle: bool = False) -> None:
        """The end. ``code`` is what the peer is told, if it can be."""
        if self._closed:
            return
        orderly = (failure is None or gentle) and not self.in_flight
        if failure is None:
            failure = _CLOSED_LOCALLY
        if code is not None:
            self.engine.close(code)
        self._closed = True
        self.end = failure
        self.capacity = self.in_flight = 0
        self.draining = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._tending.stop()
        if not self._shaken:
            self.report(Sample(self.path.name, Kind.QUIC, self._started_at, None, failure.outcome))
        self.migration.close()
        self.driver.close()
        streams = [*self._unsent, *self._streams.values(), *self._late]
        if streams and self.owned:
            self._owner.capacity_changed(self)  # who fails with it may ask again at once
        for stream in streams:
            stream.fail(
                replace(failure, unprocessed=stream.id is None and stream not in self._late)
            )
        self._pings.close()
        if not self.ready.done():
            self.ready.set_result(None)
        if self.owned:
            self._owner.closed(self, None if orderly else failure)
        self.loop.call_soon(self._let_go)  # whoever called is not through with us

    def _let_go(self) -> None:
        """Break the circles that the garbage collector would have to find."""
        self.engine.release()
        del self.migration, self.driver, self._tending
        if hasattr(self, "session"):
            del self.session
