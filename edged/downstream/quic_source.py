"""Answers leave from the address that was asked (RFC 9000 section 9): on a socket that is bound to
all of a host's addresses the kernel would take the one that its routes prefer, and no client knows
a connection from there.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

Ancillary = tuple[int, int, bytes]
Source = tuple[Ancillary, ...]
"""What `socket.sendmsg` is told to send from one address; empty: the socket has but one."""

_IP_PKTINFO = 8
_IPV6_RECVPKTINFO, _IPV6_PKTINFO = 49, 50
_INFO = struct.Struct("=i4s4s")
"""``in_pktinfo``: interface, the address to send from, the address in the header."""
_INFO6 = struct.Struct("=16si")
BYTES = socket.CMSG_SPACE(max(_INFO.size, _INFO6.size))
"""What it takes of an ancillary buffer."""


def learn(sock: socket.socket) -> None:
    """Have a bound socket tell where datagrams were sent to, if that is not plain."""
    if not ip_address(sock.getsockname()[0].partition("%")[0]).is_unspecified:
        return
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)


def source_of(ancillary: list[Ancillary]) -> Source:
    """Where an answer to a datagram that came with ``ancillary`` is sent from."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            address = _INFO.unpack_from(data)[2]
            return ((level, kind, _INFO.pack(0, address, b"\0\0\0\0")),)
        if level == socket.IPPROTO_IPV6 and kind == _IPV6_PKTINFO:
            address, interface = _INFO6.unpack_from(data)
            link_local = address[0] == 0xFE and address[1] & 0xC0 == 0x80
            return ((level, kind, _INFO6.pack(address, interface if link_local else 0)),)
    return ()
