"""The sockets of one line, and how they all fall silent as if the line had died (`edged.drill`).

Nothing but edged's own sockets is touched. Where the kernel refuses filters (`socket_filter`), what
comes in still arrives:

| traffic | how it is stopped |
| --- | --- |
| in | a socket filter drops every packet before the protocol sees it: nothing is acknowledged |
| out, TCP | `HoldingTransport` keeps what is written; the kernel repeats what it sent before |
| out, datagrams | the socket's class is replaced by one whose sends succeed and do nothing |
| new connections | wait before their SYN, until their timeout or the end |
| closing | a duplicate descriptor keeps the kernel from telling the peer |

Afterwards TCP goes on where it was, as over a line that came back; datagrams are lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterable
from typing import Any, cast
from weakref import WeakSet

from edged.socket_filter import DROP_ALL, set_filter

Data = bytes | bytearray | memoryview


class SilentSocket(socket.socket):
    """Takes datagrams and lets them vanish."""

    __slots__ = ()  # as its base: only so can a live socket change its class

    def send(self, data: Any, flags: int = 0) -> int:
        """As `socket.send`."""
        return memoryview(data).nbytes

    def sendto(self, data: Any, *_: Any) -> int:
        """As `socket.sendto`."""
        return memoryview(data).nbytes

    def sendmsg(self, buffers: Iterable[Any], *_: Any) -> int:
        """As `socket.sendmsg`."""
        return sum(memoryview(buffer).nbytes for buffer in buffers)


class HoldingTransport:
    """A transport that can keep what is written for later; else it costs its user nothing."""

    __slots__ = (
        "__weakref__",
        "_eof",
        "_held",
        "_held_bytes",
        "_high_bytes",
        "_inner",
        "_paused",
        "write",
        "writelines",
    )

    def __init__(self, inner: asyncio.Transport) -> None:
        self._inner = inner
        self._held: list[bytes] | None = None
        self._held_bytes = 0
        self._high_bytes = 64 << 10
        self._eof = False
        self._paused = False
        self.write: Callable[[Data], None] = inner.write
        self.writelines: Callable[[Iterable[Data]], None] = inner.writelines

    # -- silence ---------------------------------------------------------------------------------

    def hold(self) -> None:
        """From now on nothing leaves."""
        if self._held is None and not self._inner.is_closing():
            self._held = []
            self.write = self._keep
            self.writelines = self._keep_all

    def release(self) -> None:
        """What was kept leaves, and all that follows."""
        held = self._forget()
        if held is None or self._inner.is_closing():
            return
        if held:
            self._inner.write(b"".join(held))
        if self._eof:
            self._inner.write_eof()
        if self._paused:
            self._paused = False
            if self._inner.get_write_buffer_size() <= self._high_bytes:
                self._protocol().resume_writing()

    def _keep(self, data: Data) -> None:
        if self._held is not None:
            self._held.append(bytes(data))
            self._held_bytes += len(self._held[-1])
            if self._held_bytes > self._high_bytes and not self._paused:
                self._paused = True
                self._protocol().pause_writing()

    def _keep_all(self, parts: Iterable[Data]) -> None:
        self._keep(b"".join(parts))

    def _forget(self) -> list[bytes] | None:
        held, self._held = self._held, None
        self._held_bytes = 0
        self.write = self._inner.write
        self.writelines = self._inner.writelines
        return held

    def _protocol(self) -> asyncio.Protocol:
        return cast(asyncio.Protocol, self._inner.get_protocol())

    # -- as asyncio.Transport --------------------------------------------------------------------

    def write_eof(self) -> None:
        """As `asyncio.Transport`."""
        if self._held is None:
            self._inner.write_eof()
        else:
            self._eof = True

    def close(self) -> None:
        """As `asyncio.Transport`; what is kept never leaves, and no farewell does."""
        if self._forget() is None:
            self._inner.close()
        else:
            self._inner.abort()

    def abort(self) -> None:
        """As `asyncio.Transport`."""
        self._forget()
        self._inner.abort()

    def get_write_buffer_size(self) -> int:
        """As `asyncio.Transport`."""
        return self._inner.get_write_buffer_size() + self._held_bytes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As `asyncio.Transport`."""
        if high is not None:
            self._high_bytes = high
        self._inner.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """As `asyncio.Transport`."""
        return self._inner.get_write_buffer_limits()

    def can_write_eof(self) -> bool:
        """As `asyncio.Transport`."""
        return self._inner.can_write_eof()

    def is_closing(self) -> bool:
        """As `asyncio.Transport`."""
        return self._inner.is_closing()

    def is_reading(self) -> bool:
        """As `asyncio.Transport`."""
        return self._inner.is_reading()

    def pause_reading(self) -> None:
        """As `asyncio.Transport`."""
        self._inner.pause_reading()

    def resume_reading(self) -> None:
        """As `asyncio.Transport`."""
        self._inner.resume_reading()

    def get_protocol(self) -> asyncio.BaseProtocol:
        """As `asyncio.Transport`."""
        return self._inner.get_protocol()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """As `asyncio.Transport`."""
        self._inner.set_protocol(protocol)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As `asyncio.Transport`."""
        return self._inner.get_extra_info(name, default)


class LineSockets:
    """Every socket and transport of one line while it lives; `silence` and `restore` them."""

    __slots__ = ("_duplicates", "_passage", "_sockets", "_transports")

    def __init__(self) -> None:
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._transports: WeakSet[HoldingTransport] = WeakSet()
        self._duplicates: list[socket.socket] = []
        self._passage: asyncio.Event | None = None
        """Set when the silence is over; ``None``: there is none."""

    @property
    def silent(self) -> bool:
        """Whether nothing comes in or goes out."""
        return self._passage is not None

    def track(self, sock: socket.socket) -> None:
        """A socket was made for this line."""
        self._sockets.add(sock)
        if self._passage is not None:
            self._mute(sock)

    def wrap(self, transport: asyncio.Transport) -> asyncio.Transport:
        """The transport to write to instead of this one."""
        wrapped = HoldingTransport(transport)
        self._transports.add(wrapped)
        if self._passage is not None:
            wrapped.hold()
        return cast(asyncio.Transport, wrapped)

    async def passage(self) -> None:
        """Wait until something can go out."""
        while self._passage is not None:
            await self._passage.wait()

    def silence(self) -> None:
        """The line dies."""
        if self._passage is not None:
            return
        self._passage = asyncio.Event()
        for transport in self._transports:
            transport.hold()
        for sock in self._sockets:
            self._mute(sock)

    def restore(self) -> None:
        """It is back."""
        passage, self._passage = self._passage, None
        if passage is None:
            return
        for sock in (*self._sockets, *self._duplicates):
            if sock.fileno() >= 0:
                set_filter(sock, None)
                if isinstance(sock, SilentSocket):
                    cast(Any, sock).__class__ = socket.socket
        for sock in self._duplicates:
            sock.close()
        self._duplicates.clear()
        for transport in tuple(self._transports):
            transport.release()
        passage.set()

    def _mute(self, sock: socket.socket) -> None:
        if sock.fileno() < 0:
            return
        set_filter(sock, DROP_ALL)
        if sock.type == socket.SOCK_STREAM:
            with contextlib.suppress(OSError):  # no descriptor left: its end will be seen
                self._duplicates.append(sock.dup())
        elif type(sock) is socket.socket:
            sock.__class__ = SilentSocket
