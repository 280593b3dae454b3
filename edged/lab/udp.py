"""The UDP front of one endpoint address: forwards datagrams, applying the line of each peer.

Each client address has a flow of its own to the origin, so a QUIC client that moves to another line
arrives there from another address, as a migration does. Loss, silence and a full queue drop for
good; order is kept under jitter, since QUIC takes reordering for loss, and broken only where asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable

from edged.lab.lines import EmulatedLine, Lines, Wire

_BUFFER_BYTES = 4 << 20
_DATAGRAM_BYTES = 65536
_BATCH = 64
_GRANULARITY_S = 0.0005
_IDLE_S = 120.0
_MAX_FLOWS = 4096


class Trip:
    """One direction of one flow: datagrams under way, in order, behind a single timer."""

    __slots__ = ("_extra_s", "_loop", "_queue", "_send", "_timer", "_wire")

    def __init__(self, wire: Wire, extra_s: float, send: Callable[[bytes], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._wire = wire
        self._extra_s = extra_s
        self._send = send
        self._queue: deque[tuple[float, bytes]] = deque()
        self._timer: asyncio.Handle | None = None

    def feed(self, data: bytes) -> None:
        """A datagram sets out, or is lost."""
        now, wire = self._loop.time(), self._wire
        if wire.drops(now):
            return
        due = wire.sent(len(data), now) + wire.transit_s() + self._extra_s
        if (late_s := wire.late_s()) is not None:
            self._loop.call_at(due + late_s, self._arrive, data)
            return
        if self._queue:
            due = max(due, self._queue[-1][0])
        elif due <= now:
            self._arrive(data)
            return
        self._queue.append((due, data))
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._run)

    def _run(self) -> None:
        self._timer = None
        now = self._loop.time() + _GRANULARITY_S
        while self._queue and self._queue[0][0] <= now:
            self._arrive(self._queue.popleft()[1])
        if self._queue:
            self._timer = self._loop.call_at(self._queue[0][0], self._run)

    def _arrive(self, data: bytes) -> None:
        if not self._wire.impairment.blackhole:
            with contextlib.suppress(OSError):  # as lost as on any full line
                self._send(data)

    def close(self) -> None:
        """Drop what is under way."""
        self._queue.clear()
        if self._timer:
            self._timer.cancel()


class Flow:
    """The datagrams of one client address."""

    def __init__(self, front: UdpFront, peer: tuple[str, int], sock: socket.socket) -> None:
        line: EmulatedLine = front.lines.of(peer[0])
        self.sock = sock
        self.used_at = 0.0
        self._front = front
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._up = Trip(line.up, front.extra_delay_s, self._send_up)
        self._down = Trip(line.down, front.extra_delay_s, self._send_down)

    def up(self, data: bytes) -> None:
        """A datagram from the client."""
        self.used_at = self._loop.time()
        if not self._front.silent:
            self._up.feed(data)

    def receive(self) -> None:
        """Datagrams from the origin are waiting."""
        for _ in range(_BATCH):
            try:
                data = self.sock.recv(_DATAGRAM_BYTES)
            except OSError:  # none left, or the origin's port is closed
                return
            if not self._front.silent:
                self._down.feed(data)

    def _send_up(self, data: bytes) -> None:
        if self.sock.fileno() >= 0:
            self.sock.send(data)

    def _send_down(self, data: bytes) -> None:
        self._front.send(data, self._peer)

    def close(self) -> None:
        """Forget the client."""
        self._up.close()
        self._down.close()
        self._loop.remove_reader(self.sock.fileno())
        self.sock.close()


class UdpFront:
    """The UDP socket of one endpoint address. Parameters as `edged.lab.tcp.TcpFront`."""

    def __init__(
        self, lines: Lines, origin: tuple[str, int], *, extra_delay_s: float = 0.0
    ) -> None:
        self.lines = lines
        self.origin = origin
        self.extra_delay_s = extra_delay_s
        self.silent = False
        self._flows: dict[tuple[str, int], Flow] = {}
        self._sock: socket.socket | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    def start(self, address: str, port: int) -> int:
        """Listen; returns the port. Raises `OSError`."""
        self._sock = _udp_socket((address, port))
        loop = asyncio.get_running_loop()
        loop.add_reader(self._sock.fileno(), self._receive)
        self._sweeper = loop.call_later(_IDLE_S, self._sweep)
        return int(self._sock.getsockname()[1])

    @property
    def flows(self) -> int:
        """Client addresses now."""
        return len(self._flows)

    def silence(self, silent: bool) -> None:
        """Silence the endpoint itself, whatever the line, or bring it back."""
        self.silent = silent

    def send(self, data: bytes, peer: tuple[str, int]) -> None:
        """Answer a client from the endpoint's address. Raises `OSError`."""
        if self._sock:
            self._sock.sendto(data, peer)

    def _receive(self) -> None:
        assert self._sock
        for _ in range(_BATCH):
            try:
                data, peer = self._sock.recvfrom(_DATAGRAM_BYTES)
            except OSError:
                return
            flow = self._flows.get(peer) or self._open(peer)
            if flow:
                flow.up(data)

    def _open(self, peer: tuple[str, int]) -> Flow | None:
        if len(self._flows) >= _MAX_FLOWS:
            return None
        sock = _udp_socket((peer[0], 0))
        sock.connect(self.origin)
        flow = self._flows[peer] = Flow(self, peer, sock)
        asyncio.get_running_loop().add_reader(sock.fileno(), flow.receive)
        return flow

    def _close(self, peer: tuple[str, int]) -> None:
        self._flows.pop(peer).close()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        for peer, flow in list(self._flows.items()):
            if loop.time() - flow.used_at > _IDLE_S:
                self._close(peer)
        self._sweeper = loop.call_later(_IDLE_S, self._sweep)

    def stop(self) -> None:
        """Close everything."""
        if self._sweeper:
            self._sweeper.cancel()
        for peer in list(self._flows):
            self._close(peer)
        if self._sock:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None


def _udp_socket(address: tuple[str, int]) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock
