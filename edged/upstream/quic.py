"""Moves the datagrams of one QUIC connection: the driver between an `Engine` and a UDP socket.

The engine decides what is sent and when; the driver owns the socket and the one timer. The socket
can be replaced while the connection lives (`Driver.use`), so a connection may change its line.

* Reading: UDP_GRO where the kernel has it, a bounded number of reads a wake, all events told
  before anything is written.
* Writing: once a loop turn (`Driver.touch`), batches of equal size with UDP_SEGMENT (GSO). What
  the socket does not take waits for it to become writable; the engine is not asked for more.
* Timer: one ``call_at``, moved only when the engine wants it earlier; early wakes re-arm.

Time is `time.monotonic`, which every loop's clock shares but uvloop rounds to milliseconds: too
coarse for the round trips that the engines measure.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections import deque
from time import monotonic
from typing import Protocol

from edged.upstream.quic_engines import Address, Engine, Sink
from policies.model import Outcome

SOCKET_BUFFER_BYTES = 4 << 20
"""Asked for both ways; the kernel gives what net.core.rmem_max and wmem_max allow."""
READS_PER_WAKE = 16
TIMER_SLACK_S = 0.001
PING_OF_NOBODY = 0
"""The uid of a PING whose acknowledgement nobody waits for; owners begin at 1."""

_UDP_SEGMENT = 103
_UDP_GRO = 104
_GSO_MAX_SEGMENTS = 64
_GSO_MAX_BYTES = 65000
_READ_BYTES = 65535
_SEGMENT_SIZE = struct.Struct("=H")
_GRO_SIZE = struct.Struct("=i")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_GRO_SIZE.size)

# A datagram that cannot leave now is a lost datagram to QUIC; these say that the line is gone.
_UNREACHABLE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENODEV})


class Owner(Sink, Protocol):
    """Whose connection is driven: gets the engine's events and the socket's."""

    heard_at: float
    """Set by the driver to the loop time of each wake with datagrams."""

    def turn_done(self) -> None:
        """All events of a wake were told; nothing was written yet."""

    def flushed(self) -> None:
        """What may be sent now was handed to the socket: buffers may have room again."""

    def socket_failed(self, outcome: Outcome, detail: str) -> None:
        """The socket says that the peer or the route is gone."""


class Driver:
    """Runs ``engine`` over a connected UDP socket for ``owner``, until `close`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, engine: Engine, sock: socket.socket, owner: Owner
    ) -> None:
        self._loop = loop
        self._engine = engine
        self._owner = owner
        self._sock: socket.socket | None = None
        self._gro = False
        self._gso = True
        self._backlog: deque[bytes] = deque()
        self._touched = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self.datagrams_sent = 0
        """Datagrams that carried more than an acknowledgement, as far as their size tells."""
        self.bytes_received = 0
        self.bytes_sent = 0
        self.use(sock)

    def use(self, sock: socket.socket) -> None:
        """Read from and write to this connected, non-blocking UDP socket from now on.

        The one used before is closed; the datagrams that it did not take are lost, as on a wire.
        A PING goes out at once, because the peer learns the new address from what it receives.
        """
        replaced = self._sock is not None
        self._drop_socket()
        sock.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            if sock.getsockopt(socket.SOL_SOCKET, option) < SOCKET_BUFFER_BYTES:
                sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        try:
            sock.setsockopt(socket.SOL_UDP, _UDP_GRO, 1)
            self._gro = True
        except OSError:
            self._gro = False
        self._sock = sock
        self._loop.add_reader(sock.fileno(), self._readable)
        if replaced:
            self._engine.ping(PING_OF_NOBODY)
            self.touch()

    def start(self, peer: Address) -> None:
        """Start the handshake."""
        self._engine.connect(peer, monotonic())
        self.flush()

    def touch(self) -> None:
        """Something is to be sent: flush once at the end of this loop turn."""
        if not self._touched:
            self._touched = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what the engine has, and set the timer."""
        self._touched = False
        if self._sock is None:
            return
        if not self._backlog:
            datagrams = self._engine.datagrams_to_send(monotonic())
            if datagrams and not self._send(datagrams):
                return
        self._arm()
        self._owner.flushed()

    def pump(self) -> None:
        """Take the engine's events now (after it was stalled)."""
        self._engine.pump(self._owner)
        self._owner.turn_done()
        self.touch()

    def close(self) -> None:
        """Send what the engine wants to say last, and let go of socket and timer."""
        if self._sock is None:
            return
        if not self._backlog:
            last = self._engine.datagrams_to_send(monotonic())
            self._sock_send_all(last)
        self._drop_socket()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drop_socket(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())
            sock.close()
        self._backlog.clear()

    # Reading

    def _readable(self) -> None:
        now = monotonic()
        received: list[bytes] = []
        for _ in range(READS_PER_WAKE):
            sock = self._sock
            if sock is None:
                return
            try:
                data, ancillary, _, _ = sock.recvmsg(_READ_BYTES, _ANCILLARY_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._socket_error(error)
                break
            size = len(data)
            self.bytes_received += size
            segment = _GRO_SIZE.unpack_from(ancillary[0][2])[0] if ancillary else size
            if segment < size:
                received += [data[i : i + segment] for i in range(0, size, segment)]
            else:
                received.append(data)
        if received and self._sock is not None:
            self._owner.heard_at = now
            self._engine.receive(received, now)
            self._engine.pump(self._owner)
            self._owner.turn_done()
            self.touch()

    # Writing

    def _send(self, datagrams: list[bytes]) -> bool:
        """Hand datagrams to the socket; False if that ended the connection."""
        if len(datagrams) == 1:
            data = datagrams[0]
            self.bytes_sent += len(data)
            self.datagrams_sent += len(data) > 64
            return self._send_group([data])
        groups: list[list[bytes]] = []
        size = room = 0
        for data in datagrams:
            length = len(data)
            self.bytes_sent += length
            self.datagrams_sent += length > 64
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
        if self._backlog:
            self._backlog.extend(group)
            return True
        if len(group) > 1 and self._gso:
            try:
                sock.sendmsg(
                    group, [(socket.SOL_UDP, _UDP_SEGMENT, _SEGMENT_SIZE.pack(len(group[0])))]
                )
                return True
            except (BlockingIOError, InterruptedError):
                self._wait_writable(group)
                return True
            except OSError as error:
                # EINVAL, EIO: this kernel or device cannot; EMSGSIZE: below, one by one.
                self._gso = self._gso and error.errno == errno.EMSGSIZE
        return self._sock_send_all(group)

    def _sock_send_all(self, group: list[bytes]) -> bool:
        for i, data in enumerate(group):
            if self._sock is None:
                return False
            try:
                self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                self._wait_writable(group[i:])
                return True
            except OSError as error:
                self._socket_error(error)
        return self._sock is not None

    def _wait_writable(self, datagrams: list[bytes]) -> None:
        if self._sock is not None:
            self._backlog.extend(datagrams)
            self._loop.add_writer(self._sock.fileno(), self._writable)

    def _writable(self) -> None:
        sock, backlog = self._sock, self._backlog
        if sock is None:
            return
        self._loop.remove_writer(sock.fileno())
        waiting = list(backlog)
        backlog.clear()
        if self._sock_send_all(waiting) and not backlog:
            self.flush()

    def _socket_error(self, error: OSError) -> None:
        if error.errno == errno.ECONNREFUSED:
            self._owner.socket_failed(Outcome.REFUSED, "nothing listens on the UDP port")
        elif error.errno in _UNREACHABLE:
            self._owner.socket_failed(Outcome.UNREACHABLE, f"UDP: {error.strerror}")
        # Anything else (EMSGSIZE of an MTU probe, EPERM of a filter, ENOBUFS) is a lost datagram.

    # Time

    def _arm(self) -> None:
        due = self._engine.get_timer()
        if due is None:
            return
        if self._timer is not None:
            if self._timer_at <= due + TIMER_SLACK_S:
                return
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_at(due, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        if self._sock is None:
            return
        now = monotonic()
        due = self._engine.get_timer()
        if due is None or due > now + TIMER_SLACK_S:
            self._arm()
            return
        # The loop may wake a little early; the engine must see its deadline reached.
        self._engine.handle_timer(max(now, due))
        self._engine.pump(self._owner)
        self._owner.turn_done()
        self.flush()
