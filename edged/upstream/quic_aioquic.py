"""`aioquic` as an `Engine`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicPacketType
from aioquic.tls import Epoch

from edged.quic import Address
from edged.quic.aioquic import CreditConnection, Streams
from edged.upstream.quic_aioquic_paths import PathConnection
from edged.upstream.quic_base import BaseEngine, options
from edged.upstream.quic_engines import ClientSettings, Counters, Sink


class _Connection(CreditConnection, PathConnection):
    """Counts what it sends and loses."""

    def __init__(self, configuration: QuicConfiguration, on_ticket: Callable[[Any], None]) -> None:
        super().__init__(configuration=configuration, session_ticket_handler=on_ticket)
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

    def resend_early(self, now: float) -> None:
        """0-RTT was rejected: its packets will never be acknowledged, so send their data again."""
        space = self._spaces[Epoch.ONE_RTT]
        early = [p for p in space.sent_packets.values() if p.packet_type is QuicPacketType.ZERO_RTT]
        self._loss._on_packets_lost(congestion_event=False, now=now, packets=early, space=space)


class AioquicEngine(Streams, BaseEngine):
    """A client connection on `aioquic`."""

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

    def streams_allowed(self) -> int:
        return self._quic._remote_max_streams_bidi

    def peer_idle_timeout_s(self) -> float | None:
        return self._quic._remote_max_idle_timeout or None

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

    def release(self) -> None:
        spaces = getattr(self._quic, "_spaces", {})  # there are none before it connects
        self._free(self._quic._loss, *spaces.values())
