"""`qh3` as an `Engine`: its Rust core is driven directly once the handshake is complete.

qh3's `QuicConnection` turns every event of the core into an object as soon as a datagram arrives;
taking the core's own tuples when they are wanted saves that, and is what gives credit (see
`edged.upstream.quic_engines`). Whatever is not plain traffic is handed back to `QuicConnection`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from qh3.quic import events
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection, QuicConnectionError

from edged.upstream.engines import EngineError
from edged.upstream.quic_engines import (
    CONNECTION_WINDOW_BYTES,
    INITIAL_RTT_S,
    STREAM_WINDOW_BYTES,
    Address,
    ClientSettings,
    Counters,
    Sink,
)

_INTERNAL_ERROR, _PADDING = 0x1, 0x0


class _OneEvent:
    """A core whose queue holds one event: lets `QuicConnection` handle just that one."""

    def __init__(self, core: Any, event: tuple[Any, ...]) -> None:
        self._core = core
        self._event: tuple[Any, ...] | None = event

    def next_event(self) -> tuple[Any, ...] | None:
        event, self._event = self._event, None
        return event

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)


class Qh3Engine:
    """A client connection on `qh3` 2.1 or later. Raises `EngineError` on an older one."""

    exact_credit = False

    def __init__(self, settings: ClientSettings, on_ticket: Callable[[Any], None]) -> None:
        if not hasattr(QuicConnection, "_drain_core"):
            raise EngineError("qh3 is too old for QUIC here: pip install 'qh3>=2.1'")
        self._quic: Any = QuicConnection(
            configuration=QuicConfiguration(
                alpn_protocols=list(settings.alpn),
                cadata=settings.cadata,
                cafile=settings.cafile,
                idle_timeout=settings.idle_timeout_s,
                initial_rtt=INITIAL_RTT_S,
                max_data=CONNECTION_WINDOW_BYTES,
                max_stream_data=STREAM_WINDOW_BYTES,
                server_name=settings.server_name,
                session_ticket=settings.ticket,
            ),
            session_ticket_handler=on_ticket,
        )
        self._peer: Address = ("", 0)
        self._core: Any = None
        """The native core once the handshake is complete; it is never replaced after that."""
        self._next_ids = {0: 0, 2: 2}
        self._ended = False
        self._broken: str | None = None
        self.stalled = False
        self.get_timer = self._quic.get_timer

    def connect(self, peer: Address, now: float) -> None:
        self._peer = peer
        self._quic.connect(peer, now)

    def receive(self, datagrams: list[bytes], now: float) -> None:
        if self._core is not None:
            try:
                self._core.receive_many_datagrams(datagrams, self._peer, now)
            except (RuntimeError, ValueError) as error:
                self._broken = str(error)
            return
        for i, datagram in enumerate(datagrams):
            self._quic.receive_datagram(datagram, self._peer, now)
            if self._quic._handshake_complete:
                self._core = self._quic._core
                self._core.receive_many_datagrams(datagrams[i + 1 :], self._peer, now)
                return

    def pump(self, sink: Sink) -> None:
        quic = self._quic
        while quic._events:
            self._tell(quic._events.popleft(), sink)
        core = self._core
        while core is not None and not self.stalled:
            event = core.next_event()
            if event is None:
                break
            kind = event[0]
            if kind == "stream_data":
                sink.stream_data(event[1], event[2], event[3])
            elif kind == "stream_finished" or kind == "streams_available":
                continue
            elif kind == "stream_reset":
                sink.stream_reset(event[1], event[2])
            elif kind == "stop_sending":
                sink.stop_sending(event[1], event[2])
            elif kind == "ping_acknowledged":
                sink.ping_acked(event[1])
            else:
                quic._core = _OneEvent(core, event)
                try:
                    quic._drain_core()
                finally:
                    quic._core = core
                while quic._events:
                    self._tell(quic._events.popleft(), sink)
        ended = quic._close_event
        if ended is not None and not self._ended:
            # The engine's own event waits for the closing period (RFC 9000 section 10.2).
            self._ended = True
            sink.terminated(ended.error_code, ended.frame_type, ended.reason_phrase)
        elif self._broken is not None and not self._ended:
            self._ended = True
            sink.terminated(_INTERNAL_ERROR, _PADDING, self._broken)

    def _tell(self, event: Any, sink: Sink) -> None:
        kind = type(event)
        if kind is events.StreamDataReceived:
            sink.stream_data(event.stream_id, event.data, event.end_stream)
        elif kind is events.HandshakeCompleted:
            sink.handshake_done(event.alpn_protocol, event.early_data_accepted)
        elif kind is events.StreamReset:
            sink.stream_reset(event.stream_id, event.error_code)
        elif kind is events.StopSendingReceived:
            sink.stop_sending(event.stream_id, event.error_code)
        elif kind is events.PingAcknowledged:
            sink.ping_acked(event.uid)

    def datagrams_to_send(self, now: float) -> list[bytes]:
        core = self._core
        if core is None:
            return [data for data, _ in self._quic.datagrams_to_send(now)]
        out: list[bytes] = []
        poll = core.poll_transmit
        while (transmit := poll(now)) is not None:
            out.append(transmit[0])
        return out

    def handle_timer(self, now: float) -> None:
        if self._core is None:
            self._quic.handle_timer(now)
        else:
            try:
                self._core.handle_timer(now)
            except (RuntimeError, ValueError) as error:
                self._broken = str(error)

    def next_stream_id(self, *, unidirectional: bool = False) -> int:
        return self._next_ids[2 if unidirectional else 0]

    def send(self, stream_id: int, data: bytes, fin: bool) -> None:
        kind = stream_id & 3
        if stream_id >= self._next_ids[kind]:
            self._next_ids[kind] = stream_id + 4
        if self._core is None:
            self._quic.send_stream_data(stream_id, data, fin)
        else:
            try:
                self._core.send_stream(stream_id, data, fin)
            except RuntimeError:
                # A STOP_SENDING may wait untold while stalled: the bytes have no taker.
                if self._core.can_send_stream(stream_id):
                    raise

    def reset(self, stream_id: int, code: int) -> None:
        if self._quic._stream_can_send(stream_id):
            self._quic.reset_stream(stream_id, code)

    def stop(self, stream_id: int, code: int) -> None:
        # The core refuses for a stream that it has already finished: then there is nothing to stop.
        with suppress(QuicConnectionError):
            self._quic.stop_stream(stream_id, code)

    def ping(self, uid: int) -> None:
        self._quic.send_ping(uid)

    def close(self, code: int) -> None:
        self._quic.close(error_code=code)

    def unsent(self, stream_id: int) -> int:
        unsent: int = (self._core or self._quic).get_send_buffer_size(stream_id)
        return unsent

    def streams_allowed(self) -> int:
        allowed: int = self._quic.max_concurrent_bidi_streams
        return allowed

    def peer_idle_timeout_s(self) -> float | None:
        parameters = self._quic._applied_transport_parameters
        if parameters is None or not parameters.max_idle_timeout:
            return None
        seconds: float = parameters.max_idle_timeout / 1000
        return seconds

    def hold(self, stream_id: int, held: bool) -> None:
        """Nothing to do: not taking events is what withholds credit."""

    def counters(self) -> Counters:
        core = self._core or self._quic._core
        if core is None:
            return Counters(None, None, 0, None)
        return Counters(core.smoothed_rtt, core.latest_rtt, core.loss_total, None)
