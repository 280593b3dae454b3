"""One UDP socket of a QUIC connection: datagrams in and out by the batch.

* Reading: UDP_GRO where the kernel has it, a bounded number of reads a wake.
* Writing: batches of equal size with UDP_SEGMENT (GSO). What the socket does not take waits for it
  to become writable.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections import deque
from typing import Protocol

SOCKET_BUFFER_BYTES = 4 << 20
"""Asked for both ways; the kernel gives what net.core.rmem_max and wmem_max allow."""
READS_PER_WAKE = 16

_UDP_SEGMENT = 103
_UDP_GRO = 104
_GSO_MAX_SEGMENTS = 64
_GSO_MAX_BYTES = 65000
_READ_BYTES = 65535
_SEGMENT_SIZE = struct.Struct("=H")
_GRO_SIZE = struct.Struct("=i")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_GRO_SIZE.size)


class Reader(Protocol):
    """Whose socket it is."""

    def readable(self, sock: UdpSocket) -> None:
        """Datagrams wait: `UdpSocket.receive` them."""

    def drained(self, sock: UdpSocket) -> None:
        """It took all that waited."""

    def socket_error(self, sock: UdpSocket, error: OSError) -> None:
        """The socket says that something did not get through."""


class UdpSocket:
    """A connected, non-blocking UDP socket, until `close`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, path: int, reader: Reader
    ) -> None:
        """``path`` is the number of the connection's path that runs over it."""
        self.path = path
        self.backlog: deque[bytes] = deque()
        """Datagrams that the socket did not take yet."""
        self._loop = loop
        self._sock: socket.socket | None = sock
        self._reader = reader
        self._gso = True
        sock.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            if sock.getsockopt(socket.SOL_SOCKET, option) < SOCKET_BUFFER_BYTES:
                sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        with contextlib.suppress(OSError):  # else the kernel hands over one datagram at a time
            sock.setsockopt(socket.SOL_UDP, _UDP_GRO, 1)
        loop.add_reader(sock.fileno(), reader.readable, self)

    @property
    def closed(self) -> bool:
        """It is gone."""
        return self._sock is None

    def close(self) -> None:
        """Let go of it; what waits is lost, as on a wire."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())
            sock.close()
            del self._reader  # which refers to this
        self.backlog.clear()

    def receive(self) -> list[bytes]:
        """What waits, up to a bound."""
        received: list[bytes] = []
        for _ in range(READS_PER_WAKE):
            sock = self._sock
            if sock is None:
                break
            try:
                data, ancillary, _, _ = sock.recvmsg(_READ_BYTES, _ANCILLARY_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._reader.socket_error(self, error)
                break
            size = len(data)
            segment = _GRO_SIZE.unpack_from(ancillary[0][2])[0] if ancillary else size
            if segment < size:
                received += [data[i : i + segment] for i in range(0, size, segment)]
            else:
                received.append(data)
        return received

    def send(self, datagrams: list[bytes]) -> bool:
        """Hand datagrams over, behind those that wait; False if the socket was closed by it."""
        if len(datagrams) == 1:
            return self._send_group(datagrams)
        groups: list[list[bytes]] = []
        size = room = 0
        for data in datagrams:
            length = len(data)
            if room and length <= size:
                groups[-1].append(data)
                # Only the last segment of a batch may be shorter.
                room = room - 1 if length == size else 0
            else:
                groups.append([data])
                size = length
                room = min(_GSO_MAX_SEGMENTS, _GSO_MAX_BYTES // max(length, 1)) - 1
        return all(self._send_group(group) for group in groups)

    def _send_group(self, group: list[bytes]) -> bool:
        sock = self._sock
        if sock is None:
            return False
        if self.backlog:
            self.backlog.extend(group)
            return True
        if len(group) > 1 and self._gso:
            try:
                sock.sendmsg(
                    group, [(socket.SOL_UDP, _UDP_SEGMENT, _SEGMENT_SIZE.pack(len(group[0])))]
                )
                return True
            except (BlockingIOError, InterruptedError):
                self._wait(group)
                return True
            except OSError as error:
                # EINVAL, EIO: this kernel or device cannot; EMSGSIZE: below, one by one.
                self._gso = self._gso and error.errno == errno.EMSGSIZE
        return self._send_all(group)

    def _send_all(self, group: list[bytes]) -> bool:
        for i, data in enumerate(group):
            if self._sock is None:
                return False
            try:
                self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                self._wait(group[i:])
                return True
            except OSError as error:
                self._reader.socket_error(self, error)
        return self._sock is not None

    def _wait(self, datagrams: list[bytes]) -> None:
        if self._sock is not None:
            self.backlog.extend(datagrams)
            self._loop.add_writer(self._sock.fileno(), self._writable)

    def _writable(self) -> None:
        if self._sock is None:
            return
        self._loop.remove_writer(self._sock.fileno())
        waiting = list(self.backlog)
        self.backlog.clear()
        if self._send_all(waiting) and not self.backlog:
            self._reader.drained(self)
