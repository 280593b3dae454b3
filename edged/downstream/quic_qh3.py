"""`qh3` as a server's `Engine`: its Rust core is driven directly once the handshake is complete.

`edged.quic.qh3` says why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qh3.quic import events
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection

from edged.downstream.quic_engines import CID_BYTES, Initial, Sink, Tickets, tell
from edged.quic import (
    CONNECTION_WINDOW_BYTES,
    MESSAGE_FRAME_BYTES,
    STREAM_WINDOW_BYTES,
    Address,
)
from edged.quic.qh3 import Broken, Streams, demand_core


class Qh3Factory:
    """See `edged.downstream.quic_engines.Factory`. Raises `EngineError` with qh3 before 2.1."""

    def __init__(self, chain_file: Path, key_file: Path, idle_timeout_s: float) -> None:
        demand_core()
        self._configuration = QuicConfiguration(
            is_client=False,
            alpn_protocols=["h3"],
            connection_id_length=CID_BYTES,
            idle_timeout=idle_timeout_s,
            max_datagram_frame_size=MESSAGE_FRAME_BYTES,
            max_data=CONNECTION_WINDOW_BYTES,
            max_stream_data=STREAM_WINDOW_BYTES,
        )
        self._configuration.load_cert_chain(chain_file, key_file)

    def __call__(self, initial: Initial, tickets: Tickets) -> Qh3Engine:
        return Qh3Engine(self._configuration, initial, tickets)


INFINITE = 1 << 62


class _Connection(QuicConnection):
    """Lets the core answer addresses that are not validated.

    Its own limit (RFC 9000 section 8.1) keeps back what would be allowed, for as long as the client
    takes to send again. `Qh3Engine` keeps the limit instead.
    """

    def _create_core(self, remote_addr: Any, initial_dcid: bytes, now: float) -> None:
        known = self._retry_source_connection_id
        self._retry_source_connection_id = known or b""
        try:
            super()._create_core(remote_addr, initial_dcid, now)
        finally:
            self._retry_source_connection_id = known


class Qh3Engine(Streams):
    """A server connection on `qh3`."""

    def __init__(
        self, configuration: QuicConfiguration, initial: Initial, tickets: Tickets
    ) -> None:
        self._quic: Any = _Connection(
            configuration=configuration,
            original_destination_connection_id=initial.original_cid,
            retry_source_connection_id=initial.destination_cid if initial.retried else None,
            session_ticket_fetcher=tickets.take,
            session_ticket_handler=tickets.put,
        )
        self._core = None
        self._next_id = 3
        self._allowance = INFINITE if initial.retried else 0
        """Bytes that may be sent to an address which was not validated yet."""
        self._waiting: list[tuple[bytes, Address]] = []
        self._ended = False
        self._broken = False
        self.stalled = False
        self.cid: bytes = self._quic.host_cid
        self.get_timer = self._quic.get_timer

    def receive(self, datagrams: list[bytes], address: Address, now: float) -> None:
        try:
            if self._core is not None:
                self._core.receive_many_datagrams(datagrams, address, now)
                return
            self._allowance += 3 * sum(map(len, datagrams))
            for i, datagram in enumerate(datagrams):
                self._quic.receive_datagram(datagram, address, now)
                if self._quic._handshake_complete:
                    self._core = self._quic._core
                    self._core.receive_many_datagrams(datagrams[i + 1 :], address, now)
                    return
        except Broken:
            self._broken = True

    def pump(self, sink: Sink) -> None:
        quic = self._quic
        while quic._events:
            tell(quic._events.popleft(), events, sink)
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
            elif kind == "connection_id_issued":
                sink.cid_issued(event[1])
            elif kind == "connection_id_retired":
                sink.cid_retired(event[1])
            else:
                self._hand_back(event)
                while quic._events:
                    tell(quic._events.popleft(), events, sink)
        if (quic._close_event is not None or self._broken) and not self._ended:
            self._ended = True
            sink.terminated()

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]:
        core = self._core
        if core is None:
            return self._first_flights(now)
        out, self._waiting = self._waiting, []
        poll = core.poll_transmit
        try:
            while (transmit := poll(now)) is not None:
                out.append((transmit[0], transmit[1]))
        except Broken:
            # It would be silent from now on. The end is told when time has passed: at once.
            self._broken = True
            self.get_timer = lambda: now
        return out

    def _first_flights(self, now: float) -> list[tuple[bytes, Address]]:
        """What leaves before the handshake is complete: three times what came, at most."""
        self._waiting += self._quic.datagrams_to_send(now)
        out = []
        while self._waiting and len(self._waiting[0][0]) <= self._allowance:
            self._allowance -= len(self._waiting[0][0])
            out.append(self._waiting.pop(0))
        return out

    def handle_timer(self, now: float) -> None:
        try:
            if self._core is None:
                self._quic.handle_timer(now)
            else:
                self._core.handle_timer(now)
        except Broken:
            self._broken = True

    def next_stream_id(self) -> int:
        return self._next_id

    def send(self, stream_id: int, data: bytes, fin: bool) -> None:
        if stream_id & 3 == 3 and stream_id >= self._next_id:
            self._next_id = stream_id + 4
        self._send(stream_id, data, fin)

    def close(self, code: int) -> None:
        self._quic.close(error_code=code)
