"""The one abstraction between the origin's routes and its transports (h1, h2, h3).

A handler is ``async def handler(request, reply)``. Transports cancel its task when the client is
gone, so handlers need no checks. Bodies are streamed both ways with backpressure.
"""

from __future__ import annotations

import asyncio
import urllib.parse
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

Fields = list[tuple[str, str]]
"""Field lines in order; names lower-case."""

_HIGH_WATER_BYTES = 1 << 20


class Body:
    """A request body on its way in: an async iterator of chunks, then ``trailers``.

    ``consumed(n)`` is called as bytes are taken (flow control); ``wanted()`` at the first read
    (100-continue).
    """

    def __init__(self) -> None:
        self.consumed: Callable[[int], None] = _ignore
        self.wanted: Callable[[], None] | None = None
        self.trailers: Fields = []
        self.buffered = 0
        self._chunks: deque[bytes] = deque()
        self._ended = False
        self._failed = False
        self._wake: asyncio.Event = asyncio.Event()

    @property
    def full(self) -> bool:
        """Whether the sender should wait."""
        return self.buffered > _HIGH_WATER_BYTES

    @property
    def complete(self) -> bool:
        """Whether its end has arrived."""
        return self._ended

    def feed(self, data: bytes) -> None:
        """Bytes arrived."""
        self._chunks.append(data)
        self.buffered += len(data)
        self._wake.set()

    def end(self, trailers: Fields | None = None) -> None:
        """The body is complete."""
        self.trailers = trailers or []
        self._ended = True
        self._wake.set()

    def fail(self) -> None:
        """The body was cut short: readers get `ConnectionResetError`."""
        self._failed = True
        self._wake.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self.wanted and not self._ended:
            self.wanted()
            self.wanted = None
        while True:
            while self._chunks:
                chunk = self._chunks.popleft()
                self.buffered -= len(chunk)
                self.consumed(len(chunk))
                yield chunk
            if self._failed:
                raise ConnectionResetError("request body cut short")
            if self._ended:
                return
            self._wake.clear()
            await self._wake.wait()

    async def read(self) -> bytes:
        """All of it."""
        return b"".join([chunk async for chunk in self])


class Request:
    """A request head and its body."""

    __slots__ = (
        "authority",
        "body",
        "client",
        "early",
        "fields",
        "headers",
        "method",
        "path",
        "query",
        "target",
        "version",
    )

    def __init__(
        self,
        method: str,
        target: str,
        authority: str,
        fields: Fields,
        *,
        version: str,
        client: str,
        early: bool = False,
    ) -> None:
        self.method = method
        self.target = target
        split = urllib.parse.urlsplit(target)
        self.path = urllib.parse.unquote(split.path)
        self.query = dict(urllib.parse.parse_qsl(split.query, keep_blank_values=True))
        self.authority = authority
        self.fields = fields
        self.headers = dict(fields)
        self.version = version
        """``1.1``, ``1.0``, ``2`` or ``3``."""
        self.client = client
        """The peer's address: in the lab, the line's."""
        self.early = early
        """Arrived as QUIC 0-RTT data."""
        self.body = Body()

    def number(self, name: str, default: float) -> float:
        """A number from the query or an ``x-lab-NAME`` field. Raises `ValueError`."""
        return float(self.query.get(name) or self.headers.get(f"x-lab-{name}") or default)


class Reply(Protocol):
    """Where a response goes. Without ``content-length`` the transport frames the body itself."""

    def informational(self, status: int, fields: Fields) -> None:
        """Send an interim response (1xx but 101)."""

    def head(self, status: int, fields: Fields, *, end: bool = False) -> None:
        """Send the head; ``end`` when no body follows. 101 switches to raw bytes (h1 only)."""

    async def data(self, data: bytes) -> None:
        """Send body bytes; returns when there is room for more."""

    def end(self, trailers: Fields | None = None) -> None:
        """End the response."""

    def abort(self) -> None:
        """Break the response off: a reset stream, or a connection cut."""


Handler = Callable[[Request, Reply], Awaitable[None]]


class StreamReply(Reply):
    """A response on one stream of several."""

    broken: tuple[type[Exception], ...] = (ConnectionError,)
    """What sending raises once the client is gone."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._ended = False
        self._task: asyncio.Task[None] | None = None

    def start(self, handler: Handler) -> None:
        """Run the handler."""
        self._task = asyncio.get_running_loop().create_task(self._run(handler))

    async def _run(self, handler: Handler) -> None:
        try:
            await handler(self.request, self)
            if not self._ended:
                self.abort()
        except self.broken:
            self.abort()
        finally:
            self._over()

    def _over(self) -> None:
        """The handler is through: the connection need not know this any more."""

    def gone(self) -> None:
        """The client reset the stream or vanished."""
        if self._task:
            self._task.cancel()


async def answer(
    reply: Reply, status: int, body: bytes, content_type: str, extra: Fields | None = None
) -> None:
    """A complete response with a known length."""
    fields = [("content-type", content_type), ("content-length", str(len(body))), *(extra or [])]
    reply.head(status, fields, end=not body)
    if body:
        await reply.data(body)
        reply.end()


class Room:
    """Waiting for room to write: a condition that transports open and close."""

    __slots__ = ("_open", "_waiter")

    def __init__(self) -> None:
        self._open = True
        self._waiter: asyncio.Future[None] | None = None

    def shut(self) -> None:
        """No room."""
        self._open = False

    def clear(self) -> None:
        """There is room (again)."""
        self._open = True
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)
        self._waiter = None

    async def wait(self) -> None:
        """Until there is room."""
        while not self._open:
            if self._waiter is None:
                self._waiter = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._waiter)


def _ignore(_: int) -> None:
    return
