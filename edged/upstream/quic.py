"""Moves the datagrams of one QUIC connection: the driver between an `Engine` and UDP sockets.

The engine decides what is sent and when; the driver owns the sockets and the one timer. Each
socket carries one path of the connection (RFC 9000 section 9); one path is in use, and another can
take its place while the connection lives (`Driver.move`).

* Reading: all events of a wake are told before anything is written.
* Writing: once a loop turn (`Driver.touch`). While datagrams wait for the socket in use, the
  engine is not asked for more.
* Timer: one ``call_at``, moved only when the engine wants it earlier; early wakes re-arm.

Time is `time.monotonic`, which every loop's clock shares but uvloop rounds to milliseconds: too
coarse for the round trips that the engines measure.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from time import monotonic
from typing import Protocol

from edged.quic import Address
from edged.upstream.quic_engines import Engine, Sink
from edged.upstream.quic_socket import SOCKET_BUFFER_BYTES, UdpSocket
from policies.model import Outcome

TIMER_SLACK_S = 0.001
PING_OF_NOBODY = 0
"""The uid of a PING whose acknowledgement nobody waits for; owners begin at 1."""

# A datagram that cannot leave now is a lost datagram to QUIC; these say that the line is gone.
_UNREACHABLE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENODEV})


class Owner(Sink, Protocol):
    """Whose connection is driven: gets the engine's events and the socket's."""

    heard_at: float
    """Set by the driver to the loop time of each wake with datagrams on the path in use."""

    def turn_done(self) -> None:
        """All events of a wake were told; nothing was written yet."""

    def flushed(self) -> None:
        """What may be sent now was handed to the socket: buffers may have room again."""

    def socket_failed(self, outcome: Outcome, detail: str) -> None:
        """The socket in use says that the peer or the route is gone."""


class Driver:
    """Runs ``engine`` over a connected UDP socket for ``owner``, until `close`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, engine: Engine, sock: socket.socket, owner: Owner
    ) -> None:
        self._loop = loop
        self._engine = engine
        self._owner = owner
        self._touched = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self.datagrams_sent = 0
        """Datagrams that carried more than an acknowledgement, as far as their size tells."""
        self.bytes_received = 0
        self.bytes_sent = 0
        self._sock = UdpSocket(loop, sock, 0, self)
        self._others: dict[int, UdpSocket] = {}
        self._paths = 1
        self.reading: int | None = None
        """The path whose datagrams are told now; ``None``: time passed, or it was stalled."""

    # Paths

    @property
    def path(self) -> int:
        """The number of the path in use."""
        return self._sock.path

    def add(self, sock: socket.socket) -> int:
        """Another path, over this connected UDP socket; returns its number. Takes ``sock``."""
        number = self._paths
        self._paths += 1
        self._others[number] = UdpSocket(self._loop, sock, number, self)
        return number

    def again(self, path: int) -> int:
        """The socket of ``path``, which was left, for another path: its number. To the engine it is
        as new as any; the peer has met its address before."""
        sock = self._others.pop(path)
        self._engine.forget_path(path)
        sock.path = number = self._paths
        self._paths += 1
        self._others[number] = sock
        return number

    def move(self, path: int) -> bool:
        """Use ``path``, which was added, from now on; False if the engine cannot.

        What comes on the path used before is still taken, until it is dropped. The peer learns the
        new address from what it receives: let something be sent.
        """
        if not self._engine.migrate(path, monotonic()):
            return False
        self._others[self._sock.path] = self._sock
        self._sock.backlog.clear()
        self._sock = self._others.pop(path)
        self.touch()
        return True

    def drop(self, path: int) -> None:
        """Close a path that is not in use."""
        sock = self._others.pop(path, None)
        if sock is not None:
            sock.close()
            self._engine.forget_path(path)
            self.touch()

    # What the owner calls

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
        if self._closed:
            return
        if not self._sock.backlog and not self._send():
            return
        self._arm()
        self._owner.flushed()

    def pump(self) -> None:
        """Take the engine's events now (after it was stalled)."""
        self._engine.pump(self._owner)
        self._owner.turn_done()
        self.touch()

    def close(self) -> None:
        """Send what the engine wants to say last, and let go of sockets and timer."""
        if self._closed:
            return
        self._closed = True
        if not self._sock.backlog:
            self._send()
        for sock in (self._sock, *self._others.values()):
            sock.close()
        self._others.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Datagrams

    def readable(self, sock: UdpSocket) -> None:
        """Datagrams wait on one of the sockets."""
        now = monotonic()
        received = sock.receive()
        if not received or self._closed:
            return
        self.bytes_received += sum(map(len, received))
        if sock is self._sock:
            self._owner.heard_at = now
        self.reading = sock.path
        self._engine.receive(received, now, sock.path)
        self._engine.pump(self._owner)
        self.reading = None
        self._owner.turn_done()
        self.touch()

    def drained(self, sock: UdpSocket) -> None:
        """A socket took what waited for it."""
        if sock is self._sock:
            self.flush()

    def socket_error(self, sock: UdpSocket, error: OSError) -> None:
        """Only the socket in use can end the connection."""
        if sock is not self._sock or self._closed:
            return
        if error.errno == errno.ECONNREFUSED:
            self._owner.socket_failed(Outcome.REFUSED, "nothing listens on the UDP port")
        elif error.errno in _UNREACHABLE:
            self._owner.socket_failed(Outcome.UNREACHABLE, f"UDP: {error.strerror}")
        # Anything else (EMSGSIZE of an MTU probe, EPERM of a filter, ENOBUFS) is a lost datagram.

    def _send(self) -> bool:
        """Hand over what the engine has; False if that ended the connection."""
        datagrams = self._engine.datagrams_to_send(monotonic())
        if self._others:
            for path, data in self._engine.take_elsewhere():
                if (sock := self._others.get(path)) is not None:
                    sock.send([data])
        if not datagrams:
            return True
        for data in datagrams:
            length = len(data)
            self.bytes_sent += length
            self.datagrams_sent += length > 64
        return self._sock.send(datagrams)

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
        if self._closed:
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


__all__ = ["PING_OF_NOBODY", "SOCKET_BUFFER_BYTES", "Driver", "Owner"]
