"""ICMP echo messages and what answers them (RFC 792, RFC 4443): bytes in, meaning out. Pure."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

TOKEN_BYTES = 8

_HEADER = struct.Struct("!BBHHH")
_V4_ECHO_REPLY, _V4_UNREACHABLE, _V4_ECHO = 0, 3, 8
_V6_UNREACHABLE, _V6_ECHO, _V6_ECHO_REPLY = 1, 128, 129
_IPV6_HEADER = 40
_ICMP_PROTOCOL = {socket.AF_INET: 1, socket.AF_INET6: 58}


class Reply(NamedTuple):
    """A message that concerns one of our requests."""

    ident: int
    sequence: int
    unreachable: bool
    """True: some router or this host says that the target cannot be reached."""
    token: bytes | None
    """The request's payload as it came back; ``None`` where an error quotes too little of it."""


def request(family: int, ident: int, sequence: int, token: bytes) -> bytes:
    """An echo request with ``token`` as its payload.

    The checksum is right for IPv4; for IPv6, and on datagram sockets, the kernel writes it.
    """
    kind = _V4_ECHO if family == socket.AF_INET else _V6_ECHO
    packet = _HEADER.pack(kind, 0, 0, ident, sequence) + token
    return _HEADER.pack(kind, 0, _checksum(packet), ident, sequence) + token


def parse(family: int, packet: bytes, *, ip_header: bool) -> Reply | None:
    """The meaning of a received message; ``None`` for whatever is not for us, garbage included.

    ``ip_header``: the IPv4 header comes first (raw IPv4 sockets).
    """
    start = _ipv4_header_bytes(packet) if ip_header else 0
    if start is None or len(packet) < start + _HEADER.size:
        return None
    kind, _, _, ident, sequence = _HEADER.unpack_from(packet, start)
    body = packet[start + _HEADER.size :]
    if kind == (_V4_ECHO_REPLY if family == socket.AF_INET else _V6_ECHO_REPLY):
        return Reply(ident, sequence, False, body)
    if kind == (_V4_UNREACHABLE if family == socket.AF_INET else _V6_UNREACHABLE):
        return quoted(family, body)
    return None


def quoted(family: int, packet: bytes) -> Reply | None:
    """The request that an error message quotes, IP header first."""
    if family == socket.AF_INET:
        start = _ipv4_header_bytes(packet)
        protocol = packet[9] if start is not None else None
    else:
        start = _IPV6_HEADER if len(packet) >= _IPV6_HEADER else None
        protocol = packet[6] if start is not None else None
    if start is None or protocol != _ICMP_PROTOCOL[socket.AddressFamily(family)]:
        return None
    return own_request(family, packet[start:])


def own_request(family: int, packet: bytes) -> Reply | None:
    """Our request as an error gives it back, ICMP header first."""
    if len(packet) < _HEADER.size:
        return None
    kind, _, _, ident, sequence = _HEADER.unpack_from(packet)
    if kind != (_V4_ECHO if family == socket.AF_INET else _V6_ECHO):
        return None
    token = packet[_HEADER.size : _HEADER.size + TOKEN_BYTES]
    return Reply(ident, sequence, True, token if len(token) == TOKEN_BYTES else None)


def _ipv4_header_bytes(packet: bytes) -> int | None:
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return None
    length = (packet[0] & 0x0F) * 4
    return length if 20 <= length <= len(packet) else None


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    total += total >> 16
    return ~total & 0xFFFF
