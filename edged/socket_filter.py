"""Classic BPF programs on one's own sockets (SO_ATTACH_FILTER, socket(7)).

Most kernels ask for no privileges; hardened ones may. `supported` tells.

The kernel runs a socket's program on each packet for it before the protocol sees it. What the
program drops never arrived: TCP acknowledges nothing, so that the peer retransmits as it would
into a real blackhole. Effective on live sockets, and reversible.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Sequence

_SO_ATTACH_FILTER = getattr(socket, "SO_ATTACH_FILTER", 26)
_SO_DETACH_FILTER = getattr(socket, "SO_DETACH_FILTER", 27)
RET_K = 0x06

Instruction = tuple[int, int, int, int]
"""code, jump if true, jump if false, operand k (linux/filter.h)."""

DROP_ALL: tuple[Instruction, ...] = ((RET_K, 0, 0, 0),)


def set_filter(sock: socket.socket, program: Sequence[Instruction] | None) -> bool:
    """Put ``program`` in place of the socket's filter (``None``: none). False: not permitted."""
    try:
        if program is None:
            sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
            return True
        code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
        buffer = ctypes.create_string_buffer(code, len(code))
        fprog = struct.pack("HP", len(program), ctypes.addressof(buffer))
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
    except OSError as error:
        return program is None and error.errno == errno.ENOENT
    return True


def supported() -> bool:
    """Whether this kernel lets the caller filter its own sockets."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        return set_filter(sock, DROP_ALL)
