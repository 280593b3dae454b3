"""The TCP front of one endpoint address: forwards bytes, applying the line of each peer.

The delay queue of each direction keeps order. Silence is the kernel's (`edged.lab.silence`) where
it lets us: SYNs from a dead line are not answered, established connections acknowledge nothing and
send nothing. Upward loss is dropped by the kernel too, so that clients see real retransmissions;
downward loss shows as the wait that a retransmission would cost.

Not emulated: the round trip of connect (loopback answers at once), slow start, and a TCP line that
is dead downwards only still acknowledges what the client sends.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import cast

from edged.lab import silence
from edged.lab.lines import EmulatedLine, Lines, Wire
from edged.socket_filter import set_filter, supported

_SLICE_BYTES = 16 << 10
_RECEIVE_BUFFER_BYTES = 256 << 10
_EOF = b""


class Pipe:
    """One direction of one connection: bytes, then an end or an abort, in order, when due."""

    __slots__ = (
        "_extra_s",
        "_frozen",
        "_last_due",
        "_loop",
        "_lossy",
        "_paused",
        "_queue",
        "_queued_bytes",
        "_rtt",
        "_timer",
        "_wire",
        "finished",
        "sink",
        "source",
    )

    def __init__(self, wire: Wire, extra_s: float, rtt: Callable[[], float], lossy: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._wire = wire
        self._extra_s = extra_s
        self._rtt = rtt
        self._lossy = lossy
        self._queue: deque[tuple[float, bytes | None]] = deque()
        self._queued_bytes = 0
        self._last_due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._frozen = False
        self._paused = False
        self.finished = False
        self.source: Leg | None = None
        self.sink: Leg | None = None

    def feed(self, data: bytes) -> None:
        """Bytes from the source."""
        now = self._loop.time()
        sliced = self._wire.impairment.rate_bps is not None and len(data) > _SLICE_BYTES
        size = _SLICE_BYTES if sliced else len(data)
        for at in range(0, len(data), size):
            chunk = data[at : at + size] if sliced else data
            repair_s = self._wire.repair_s(len(chunk), self._rtt()) if self._lossy else 0.0
            self._put(self._wire.sent(len(chunk), now) + repair_s, chunk)
        self._queued_bytes += len(data)
        self._run()
        if self._queued_bytes > self._wire.window_bytes() and self.source:
            self.source.hold(True)

    def finish(self, *, abort: bool) -> None:
        """The source ended (cleanly or not); travels behind the bytes. An abort may follow."""
        if abort or not self.finished:
            self.finished = True
            self._put(self._loop.time(), None if abort else _EOF)
            self._run()

    def _put(self, left_at: float, item: bytes | None) -> None:
        due = left_at + self._wire.transit_s() + self._extra_s
        self._last_due = max(self._last_due, due)
        self._queue.append((self._last_due, item))

    def _run(self) -> None:
        sink, queue = self.sink, self._queue
        now = self._loop.time()
        while queue and sink and not self._frozen and not self._paused and queue[0][0] <= now:
            item = queue.popleft()[1]
            if item:
                self._queued_bytes -= len(item)
                sink.write(item)
            else:
                sink.end(abort=item is None)
        if self.source and self._queued_bytes <= self._wire.window_bytes() // 2:
            self.source.hold(self._frozen)
        self._arm(now)

    def _arm(self, now: float) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._queue and self.sink and not self._frozen and not self._paused:
            self._timer = self._loop.call_at(max(now, self._queue[0][0]), self._run)

    def pause(self, paused: bool) -> None:
        """The sink's write buffer is full, or has drained."""
        self._paused = paused
        self._run()

    def freeze(self, frozen: bool) -> None:
        """Nothing moves while frozen; what was under way arrives after the thaw."""
        if frozen != self._frozen:
            self._frozen = frozen
            if self.source:
                self.source.hold(frozen)
            self._run()

    def connect(self, source: Leg, sink: Leg) -> None:
        """Both ends are there."""
        self.source, self.sink = source, sink
        source.hold(self._frozen)
        self._run()

    def close(self) -> None:
        """Drop everything under way."""
        self.finished = True
        self.source = self.sink = None
        self._queue.clear()
        if self._timer:
            self._timer.cancel()


class Leg(asyncio.Protocol):
    """One socket of a forwarded connection."""

    def __init__(
        self, sock: socket.socket, outgoing: Pipe, incoming: Pipe, lost: Callable[[], None]
    ) -> None:
        self._sock = sock
        self._outgoing = outgoing  # what this socket's peer sends
        self._incoming = incoming
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._held = False
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by type

    def data_received(self, data: bytes) -> None:
        self._outgoing.feed(data)

    def eof_received(self) -> bool:
        self._outgoing.finish(abort=False)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._outgoing.finish(abort=True)
        self._lost()

    def pause_writing(self) -> None:
        self._incoming.pause(True)

    def resume_writing(self) -> None:
        self._incoming.pause(False)

    def hold(self, held: bool) -> None:
        """Stop or resume reading."""
        if held != self._held and self._transport:
            self._held = held
            (self._transport.pause_reading if held else self._transport.resume_reading)()

    def write(self, data: bytes) -> None:
        """Pass bytes on."""
        if self._transport:
            self._transport.write(data)

    def end(self, *, abort: bool) -> None:
        """Pass the end on: a FIN, or a reset; a connection ended both ways is closed."""
        transport = self._transport
        if not transport:
            return
        if self._outgoing.finished and (self._ended or not abort):
            transport.close()
        elif abort:
            _reset_on_close(self._sock)
            transport.abort()
        else:
            self._ended = True
            transport.write_eof()


class Link:
    """One client connection, its counterpart at the origin, and the silence between them."""

    def __init__(self, front: TcpFront, sock: socket.socket, peer: str) -> None:
        self.line: EmulatedLine = front.lines.of(peer)
        self._front = front
        self._sock = sock
        self._peer = peer
        self._legs: list[Leg] = []
        self._alive = 0
        extra_s, kernel = front.extra_delay_s, front.kernel

        def rtt() -> float:
            return self.line.rtt_s + 2 * extra_s

        self._up = Pipe(self.line.up, extra_s, rtt, lossy=not kernel)
        self._down = Pipe(self.line.down, extra_s, rtt, lossy=True)
        self._applied: tuple[float, bool] = (-1.0, False)
        self.apply()

    def apply(self) -> None:
        """Bring filters and queues into the line's present state."""
        up, down = self.line.up.impairment, self.line.down.impairment
        dead_up, dead_down = (x.blackhole or self._front.silent for x in (up, down))
        if self._front.kernel:
            wanted = (1.0 if dead_up else up.loss, dead_up and dead_down)
            loss, mute = wanted
            if wanted != self._applied:
                set_filter(self._sock, silence.drop_program(loss) if loss else None)
            if mute != self._applied[1]:
                silence.set_mute(self._sock, self._peer, mute)
            self._applied = wanted
        elif self._front.signs:
            mute = dead_up and dead_down
            if mute != self._applied[1]:
                silence.set_mute(self._sock, self._peer, mute)
            self._applied = (0.0, mute)
        self._up.freeze(dead_up)
        self._down.freeze(dead_down)

    async def open(self) -> None:
        """Connect to the origin, from the peer's own address so that it can tell lines apart."""
        loop = asyncio.get_running_loop()
        out = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            out.setblocking(False)
            out.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            out.bind((self._peer, 0))
            await loop.sock_connect(out, self._front.origin)
        except OSError:
            out.close()
            _reset_on_close(self._sock)
            self._sock.close()
            self._front.forget(self)
            return
        near = Leg(self._sock, self._up, self._down, self._leg_lost)
        far = Leg(out, self._down, self._up, self._leg_lost)
        self._legs = [near, far]
        self._alive = 2
        await loop.connect_accepted_socket(lambda: near, self._sock)
        await loop.create_connection(lambda: far, sock=out)
        self._up.connect(near, far)
        self._down.connect(far, near)

    def _leg_lost(self) -> None:
        self._alive -= 1
        if not self._alive:
            self._up.close()
            self._down.close()
            self._front.forget(self)

    def abort(self) -> None:
        """Reset both sides now."""
        for leg in self._legs:
            leg.end(abort=True)
        if not self._legs:
            self._sock.close()


class TcpFront:
    """The listening socket of one endpoint address and all connections through it.

    ``extra_delay_s`` is the endpoint's own distance each way, on top of the line's.
    ``kernel`` tells whether silence and loss are the kernel's. Where it refuses filters ``signs``
    tells whether keys still silence a line, both ways at once; else it stalls in user space only.
    """

    def __init__(
        self, lines: Lines, origin: tuple[str, int], *, extra_delay_s: float = 0.0
    ) -> None:
        self.lines = lines
        self.origin = origin
        self.extra_delay_s = extra_delay_s
        self.kernel = supported()
        self.signs = silence.can_mute()
        self.silent = False
        self.port = 0
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        lines.subscribe(self._changed)

    def start(self, address: str, port: int = 0) -> int:
        """Listen; returns the port. Raises `OSError`."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            listener.bind((address, port))
            listener.setblocking(False)
            listener.listen(1024)
        except OSError:
            listener.close()
            raise
        self._listener = listener
        self._filter_listener()
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept)
        self.port = int(listener.getsockname()[1])
        return self.port

    @property
    def connections(self) -> int:
        """Forwarded connections now."""
        return len(self._links)

    def silence(self, silent: bool) -> None:
        """Silence the endpoint itself, whatever the line, or bring it back."""
        self.silent = silent
        self._filter_listener()
        for link in list(self._links):
            link.apply()

    def _filter_listener(self) -> None:
        if not self._listener:
            return
        if not self.kernel:
            if self.signs:
                self._mute_listener(self._listener)
            return
        if self.silent:
            set_filter(self._listener, silence.drop_program(1))
            return
        losses = []
        for line in self.lines:
            up, down = line.up.impairment, line.down.impairment
            dead = up.blackhole or down.blackhole
            loss = 1.0 if dead else 1 - (1 - up.loss) * (1 - down.loss)  # SYN and SYN-ACK
            if loss:
                losses.append((line.spec.source, loss))
        set_filter(self._listener, silence.sources_program(losses) if losses else None)

    def _mute_listener(self, listener: socket.socket) -> None:
        """No SYN from a dead line is answered: it lacks the signature."""
        for line in self.lines:
            dead = all(x.impairment.blackhole for x in (line.up, line.down))
            silence.set_mute(listener, line.spec.source, self.silent or dead)

    def _changed(self, line: EmulatedLine) -> None:
        self._filter_listener()
        for link in list(self._links):
            if link.line is line:
                link.apply()

    def _accept(self) -> None:
        for _ in range(64):
            try:
                assert self._listener
                sock, peer = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = Link(self, sock, peer[0])
            self._links.add(link)
            task = asyncio.get_running_loop().create_task(link.open())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def forget(self, link: Link) -> None:
        """A connection is over."""
        self._links.discard(link)

    def close_listener(self) -> None:
        """Refuse new connections; those that are there go on."""
        if self._listener:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None

    async def stop(self) -> None:
        """Close the listener and reset every connection."""
        self.close_listener()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for link in list(self._links):
            link.abort()
        await asyncio.sleep(0)


def _reset_on_close(sock: socket.socket) -> None:
    if sock.fileno() >= 0:  # its transport may be closing already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
