"""`aioquic` as an `Engine`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import MAX_STREAM_DATA_FRAME_CAPACITY
from aioquic.quic.packet import QuicFrameType, QuicPacketType
from aioquic.tls import Epoch

from edged.upstream.quic_aioquic_paths import PathConnection
from edged.upstream.quic_base import BaseEngine, options
from edged.upstream.quic_engines import (
    STREAM_WINDOW_BYTES,
    Address,
    ClientSettings,
    Counters,
    Sink,
)


class _Connection(PathConnection):
    """Moves a stream's receive window only for bytes that were delivered and not held.

    The base class doubles the window whenever half of it was used, so that after 100 MB a paused
    stream could still pile up 100 MB.
    """

    def __init__(self, configuration: QuicConfiguration, on_ticket: Callable[[Any], None]) -> None:
        super().__init__(configuration=configuration, session_ticket_handler=on_ticket)
        self.held: set[int] = set()
        self.lost = 0
        self.sent = 0
        recovery = self._loss
        on_lost, on_sent = recovery._on_packets_lost, recovery.on_packet_sent

        def count_lost(*, packets: Iterable[Any], **options: Any) -> None:
            if options.get("congestion_event", True):
                packets = tuple(packets)
                self.lost += len(packets)
            on_lost(packets=packets, **options)

        def count_sent(*, packet: Any, space: Any) -> None:
            self.sent += packet.is_ack_eliciting
            on_sent(packet=packet, space=space)

        recovery._on_packets_lost = count_lost  # type: ignore[method-assign]  # the engine has no counter
        recovery.on_packet_sent = count_sent  # type: ignore[method-assign]  # likewise

    def _write_stream_limits(self, builder: Any, space: Any, stream: Any) -> None:
        limit = stream.max_stream_data_local
        if not limit:
            return
        delivered = stream.receiver.starting_offset()
        if limit - delivered < STREAM_WINDOW_BYTES // 2 and stream.stream_id not in self.held:
            limit = stream.max_stream_data_local = delivered + STREAM_WINDOW_BYTES
        if stream.max_stream_data_local_sent != limit:
            frame = builder.start_frame(
                QuicFrameType.MAX_STREAM_DATA,
                capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
                handler=self._on_max_stream_data_delivery,
                handler_args=(stream,),
            )
            frame.push_uint_var(stream.stream_id)
            frame.push_uint_var(limit)
            stream.max_stream_data_local_sent = limit

    def resend_early(self, now: float) -> None:
        """0-RTT was rejected: its packets will never be acknowledged, so send their data again."""
        space = self._spaces[Epoch.ONE_RTT]
        early = [p for p in space.sent_packets.values() if p.packet_type is QuicPacketType.ZERO_RTT]
        self._loss._on_packets_lost(congestion_event=False, now=now, packets=early, space=space)


class AioquicEngine(BaseEngine):
    """A client connection on `aioquic`."""

    exact_credit = True
    probes = True

    def __init__(self, settings: ClientSettings, on_ticket: Callable[[Any], None]) -> None:
        configuration = QuicConfiguration(**options(settings), congestion_control_algorithm="cubic")
        super().__init__(_Connection(configuration, on_ticket), events)
        self._quic: _Connection
        self._now = 0.0
        self._early = settings.ticket is not None
        self._elsewhere: list[tuple[int, bytes]] = []
        self.handle_timer = self._quic.handle_timer

    def receive(self, datagrams: list[bytes], now: float, path: int = 0) -> None:
        self._now = now
        receive, quic = self._quic.receive_datagram, self._quic
        address = quic.address_of(path)
        if address is None:
            return
        # Where the peer has not answered yet, it may be one that does not know the connection. On a
        # path that is only probed that is no reason to end it (but section 10.3 would have it so).
        resettable = quic.unproven and address == quic._network_paths[0].addr
        for datagram in datagrams:
            receive(datagram, address, now)
            if resettable and quic.is_reset(datagram):
                return

    def pump(self, sink: Sink) -> None:
        quic = self._quic
        queue = quic._events
        while queue and not self.stalled:
            event: Any = queue.popleft()
            if self._early and type(event) is events.HandshakeCompleted:
                self._early = False
                if not event.early_data_accepted:
                    quic.resend_early(self._now)
            self._tell(event, sink)
        if quic.validated:
            validated, quic.validated = quic.validated, []
            for path, rtt_s in validated:
                sink.path_validated(path, rtt_s)
        self._tell_end(sink)

    def datagrams_to_send(self, now: float) -> list[bytes]:
        quic = self._quic
        datagrams = quic.datagrams_to_send(now)
        if len(quic._network_paths) == 1:
            return [data for data, _ in datagrams]
        in_use = quic._network_paths[0].addr
        for data, address in datagrams:
            if address != in_use:
                self._elsewhere.append((quic.number_of(address), data))
        return [data for data, address in datagrams if address == in_use]

    def take_elsewhere(self) -> list[tuple[int, bytes]]:
        taken, self._elsewhere = self._elsewhere, []
        return taken

    def next_stream_id(self, *, unidirectional: bool = False) -> int:
        return self._quic.get_next_available_stream_id(is_unidirectional=unidirectional)

    def send(self, stream_id: int, data: bytes, fin: bool) -> None:
        self._quic.send_stream_data(stream_id, data, fin)

    def reset(self, stream_id: int, code: int) -> None:
        stream = self._quic._streams.get(stream_id)
        if stream is not None and not stream.sender.is_finished:
            self._quic.reset_stream(stream_id, code)

    def stop(self, stream_id: int, code: int) -> None:
        stream = self._quic._streams.get(stream_id)
        if stream is not None and not stream.receiver.is_finished:
            self._quic.stop_stream(stream_id, code)

    def unsent(self, stream_id: int) -> int:
        stream = self._quic._streams.get(stream_id)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender.highest_offset

    def streams_allowed(self) -> int:
        return self._quic._remote_max_streams_bidi

    def peer_idle_timeout_s(self) -> float | None:
        return self._quic._remote_max_idle_timeout or None

    def hold(self, stream_id: int, held: bool) -> None:
        if held:
            self._quic.held.add(stream_id)
        else:
            self._quic.held.discard(stream_id)

    def counters(self) -> Counters:
        loss = self._quic._loss
        known = loss._rtt_initialized
        return Counters(
            loss._rtt_smoothed if known else None,
            loss._rtt_latest if known else None,
            self._quic.lost,
            self._quic.sent,
        )

    def may_migrate(self) -> bool:
        return self._quic.may_migrate

    def preferred_address(self, *, ipv6: bool) -> Address | None:
        return self._preferred(self._quic.preferred_address, ipv6=ipv6)

    def challenge(self, path: int) -> bool:
        return self._quic.challenge(path, self._peer)

    def migrate(self, path: int, now: float) -> bool:
        return self._quic.migrate(path, self._peer, now)

    def forget_path(self, path: int) -> None:
        self._quic.forget_path(path)
