"""What the two QUIC engines have in common, as one is a fork of the other."""

from __future__ import annotations

import ipaddress
from types import ModuleType
from typing import Any

from edged.quic import (
    CONNECTION_WINDOW_BYTES,
    MESSAGE_FRAME_BYTES,
    STREAM_WINDOW_BYTES,
    Address,
)
from edged.upstream.quic_engines import INITIAL_RTT_S, ClientSettings, Sink

DATAGRAM_BYTES = 1200
"""What every path carries (RFC 9000 section 14.1), both ways: larger datagrams vanish where a path
changed or a tunnel narrows it, and PINGs, which are small, say that all is well."""
_MAX_UDP_PAYLOAD_SIZE = 0x03
CONNECTION_IDS = 8
"""How many of the peer's connection ids are kept: the one in use, and some for other paths."""


def options(settings: ClientSettings) -> dict[str, Any]:
    """What a client's `QuicConfiguration` is made with."""
    return {
        "alpn_protocols": list(settings.alpn),
        "cadata": settings.cadata,
        "cafile": settings.cafile,
        "idle_timeout": settings.idle_timeout_s,
        "initial_rtt": INITIAL_RTT_S,
        "max_data": CONNECTION_WINDOW_BYTES,
        "max_stream_data": STREAM_WINDOW_BYTES,
        "max_datagram_frame_size": MESSAGE_FRAME_BYTES if settings.messages else None,
        "server_name": settings.server_name,
        "session_ticket": settings.ticket,
    }


def limit_payload(parameters: bytes) -> bytes:
    """Transport parameters (RFC 9000 section 18) that ask the peer for datagrams of at most
    `DATAGRAM_BYTES`, instead of what they asked for.
    """
    kept, at = b"", 0
    while at < len(parameters):
        kind, begin = _varint(parameters, at)
        length, begin = _varint(parameters, begin)
        if kind != _MAX_UDP_PAYLOAD_SIZE:
            kept += parameters[at : begin + length]
        at = begin + length
    limit = (DATAGRAM_BYTES | 0x4000).to_bytes(2, "big")
    return kept + bytes((_MAX_UDP_PAYLOAD_SIZE, len(limit))) + limit


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at ``at`` (RFC 9000 section 16), and where what follows begins."""
    end = at + (1 << (data[at] >> 6))
    size = end - at
    return int.from_bytes(data[at:end], "big") & ((1 << (8 * size - 2)) - 1), end


class BaseEngine:
    """The part of an `Engine` that is the same on both."""

    def __init__(self, quic: Any, events: ModuleType) -> None:
        self._quic = quic
        self._names = events
        self._peer: Address = ("", 0)
        self._ended = False
        self.stalled = False
        self.get_timer = quic.get_timer

    def connect(self, peer: Address, now: float) -> None:
        """See `Engine`."""
        self._peer = peer
        self._quic.connect(peer, now)

    def ping(self, uid: int) -> None:
        """See `Engine`."""
        self._quic.send_ping(uid)

    def close(self, code: int) -> None:
        """See `Engine`."""
        self._quic.close(error_code=code)

    def _free(self, *circular: Any) -> None:
        """Take the library's connection apart; ``circular``: its parts that refer to themselves."""
        for part in (*circular, self._quic):
            vars(part).clear()

    def _tell(self, event: Any, sink: Sink) -> None:
        names, kind = self._names, type(event)
        if kind is names.StreamDataReceived:
            sink.stream_data(event.stream_id, event.data, event.end_stream)
        elif kind is names.StreamReset:
            sink.stream_reset(event.stream_id, event.error_code)
        elif kind is names.StopSendingReceived:
            sink.stop_sending(event.stream_id, event.error_code)
        elif kind is names.DatagramFrameReceived:
            sink.message(event.data)
        elif kind is names.PingAcknowledged:
            sink.ping_acked(event.uid)
        elif kind is names.HandshakeCompleted:
            sink.handshake_done(event.alpn_protocol, event.early_data_accepted)

    def _tell_end(self, sink: Sink) -> None:
        ended = self._quic._close_event
        if ended is not None and not self._ended:
            # The engine's own event waits for the closing period (RFC 9000 section 10.2).
            self._ended = True
            sink.terminated(ended.error_code, ended.frame_type, ended.reason_phrase)

    def _preferred(self, parameter: Any, *, ipv6: bool) -> Address | None:
        """The address of that family in a ``preferred_address`` transport parameter.

        A server must not send its clients into networks that only they reach (RFC 9000 section
        21.5.6).
        """
        found: Address | None = None
        if parameter is not None:
            found = parameter.ipv6_address if ipv6 else parameter.ipv4_address
        if found is None or not found[1]:
            return None
        address, now = ipaddress.ip_address(found[0]), ipaddress.ip_address(self._peer[0])
        if address.is_multicast or address.is_unspecified:
            return None
        return found if address.is_global or not now.is_global else None
