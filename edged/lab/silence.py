"""How a TCP socket of one's own goes silent in the kernel, without privileges.

Two means, both effective on live sockets and both reversible:

* A classic BPF filter (`edged.socket_filter`) drops incoming segments before TCP sees them: on a
  listening socket no SYN is answered, on an established one nothing is acknowledged, so the peer's
  kernel retransmits as it would into a real blackhole.
* An MD5 signature key (RFC 2385, ``TCP_MD5SIG``, tcp(7)) makes the kernel sign what it sends; a
  peer without the key discards it unseen, retransmissions and keep-alives of ours included.

A filter may also drop a random share, which is real packet loss. The kernel's loopback joins
segments, so one drop can take up to 64 KiB of a large write.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence

from edged.socket_filter import RET_K, Instruction

_TCP_MD5SIG = getattr(socket, "TCP_MD5SIG", 14)

# linux/filter.h: ancillary loads and the offset base of the network header.
_NET_OFF = 0x100000000 - 0x100000
_AD_RANDOM = 0x100000000 - 0x1000 + 56
_IPV4_SOURCE = _NET_OFF + 12
_LD_W_ABS, _JEQ_K, _JGE_K = 0x20, 0x15, 0x35
_ALL = 0xFFFFFFFF
_MD5_KEY = b"edged-lab"


def threshold(loss: float) -> int:
    """The 32-bit number below which a random word means "lost"."""
    return min(_ALL, max(0, round(loss * (1 << 32))))


def drop_program(loss: float) -> list[Instruction]:
    """A filter that drops each packet with probability ``loss``; 1 drops everything."""
    if loss >= 1:
        return [(RET_K, 0, 0, 0)]
    return [
        (_LD_W_ABS, 0, 0, _AD_RANDOM),
        (_JGE_K, 0, 1, threshold(loss)),
        (RET_K, 0, 0, _ALL),
        (RET_K, 0, 0, 0),
    ]


def sources_program(losses: Sequence[tuple[str, float]]) -> list[Instruction]:
    """A filter for a listening socket: loss by IPv4 source address, others pass."""
    program: list[Instruction] = []
    for source, loss in losses:
        verdict = drop_program(loss)
        address = int.from_bytes(socket.inet_aton(source), "big")
        program.append((_LD_W_ABS, 0, 0, _IPV4_SOURCE))
        program.append((_JEQ_K, 0, len(verdict), address))
        program.extend(verdict)
    program.append((RET_K, 0, 0, _ALL))
    return program


def set_mute(sock: socket.socket, peer: str, mute: bool) -> bool:
    """Make what the kernel sends to ``peer`` (IPv4) unacceptable to it, or acceptable again.

    While mute, incoming segments are discarded as well (they lack the signature).
    False: not permitted or not in this kernel.
    """
    key = _MD5_KEY if mute else b""
    address = struct.pack("=HH4s", socket.AF_INET, 0, socket.inet_aton(peer)).ljust(128, b"\0")
    option = address + struct.pack("=BBHI", 0, 0, len(key), 0) + key.ljust(80, b"\0")
    try:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_MD5SIG, option)
    except OSError as error:
        return not mute and error.errno == errno.ENOENT
    return True


def can_mute() -> bool:
    """Whether this kernel lets the caller sign what its own sockets send."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        return set_mute(sock, "127.0.0.1", True)
