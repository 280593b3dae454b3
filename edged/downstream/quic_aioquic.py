"""`aioquic` as a server's `Engine`."""

from __future__ import annotations

from pathlib import Path

from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration

from edged.downstream.quic_engines import CID_BYTES, Initial, Sink, Tickets, tell
from edged.quic import (
    CONNECTION_WINDOW_BYTES,
    MESSAGE_FRAME_BYTES,
    STREAM_WINDOW_BYTES,
    Address,
)
from edged.quic.aioquic import CreditConnection, Streams


class AioquicFactory:
    """See `edged.downstream.quic_engines.Factory`."""

    def __init__(self, chain_file: Path, key_file: Path, idle_timeout_s: float) -> None:
        self._configuration = QuicConfiguration(
            is_client=False,
            alpn_protocols=["h3"],
            congestion_control_algorithm="cubic",
            connection_id_length=CID_BYTES,
            idle_timeout=idle_timeout_s,
            max_datagram_frame_size=MESSAGE_FRAME_BYTES,
            max_data=CONNECTION_WINDOW_BYTES,
            max_stream_data=STREAM_WINDOW_BYTES,
        )
        self._configuration.load_cert_chain(chain_file, key_file)

    def __call__(self, initial: Initial, tickets: Tickets) -> AioquicEngine:
        return AioquicEngine(self._configuration, initial, tickets)


class AioquicEngine(Streams):
    """A server connection on `aioquic`."""

    def __init__(
        self, configuration: QuicConfiguration, initial: Initial, tickets: Tickets
    ) -> None:
        self._quic = CreditConnection(
            configuration=configuration,
            original_destination_connection_id=initial.original_cid,
            retry_source_connection_id=initial.destination_cid if initial.retried else None,
            session_ticket_fetcher=tickets.take,
            session_ticket_handler=tickets.put,
        )
        self._ended = False
        self.stalled = False
        self.cid = self._quic.host_cid
        self.handle_timer = self._quic.handle_timer

    def receive(self, datagrams: list[bytes], address: Address, now: float) -> None:
        receive = self._quic.receive_datagram
        for datagram in datagrams:
            receive(datagram, address, now)

    def pump(self, sink: Sink) -> None:
        queue = self._quic._events
        while queue and not self.stalled:
            tell(queue.popleft(), events, sink)
        if self._quic._close_event is not None and not self._ended:
            # The engine's own event waits for the closing period (RFC 9000 section 10.2).
            self._ended = True
            sink.terminated()

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]:
        # Until a datagram could be read there is no path to answer on.
        return self._quic.datagrams_to_send(now) if self._quic._network_paths else []

    def get_timer(self) -> float | None:
        return self._quic.get_timer() if self._quic._close_at is not None else None

    def next_stream_id(self) -> int:
        return self._quic.get_next_available_stream_id(is_unidirectional=True)

    def send(self, stream_id: int, data: bytes, fin: bool) -> None:
        stream = self._quic._streams.get(stream_id)
        # A STOP_SENDING that came may not be told yet: the bytes have no taker.
        if stream is None or stream.sender._reset_error_code is None:
            self._quic.send_stream_data(stream_id, data, fin)

    def close(self, code: int) -> None:
        self._quic.close(error_code=code)
