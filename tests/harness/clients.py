"""For tests of the client side: a listener whose handler records what it is asked, raw clients."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from edged.downstream.limits import Limits
from edged.downstream.listener import Listener
from edged.messages import RequestHead, ResponseHead
from tests.harness.coroutines import as_test

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


def run(scenario: Awaitable[object] | Callable[[], Awaitable[object]], loop: str = "uvloop"):
    """Run ``scenario`` on the named kind of loop, for at most 20 s."""

    async def bounded():
        awaitable = scenario() if callable(scenario) else scenario
        return await asyncio.wait_for(awaitable, 10)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        return runner.run(bounded())


class Request:
    """One request as its handler saw it; the sink that its connection calls."""

    def __init__(self, head: RequestHead, responder) -> None:
        self.head = head
        self.responder = responder
        self.chunks: list[bytes] = []
        self.trailers = None
        self.ended = False
        self.is_gone = False
        self.paused = False
        self.events: list[str] = []
        self._changed = asyncio.Event()

    def _note(self, event: str) -> None:
        self.events.append(event)
        self._changed.set()

    async def until(self, event: str) -> None:
        """Wait until ``event`` has happened."""
        while event not in self.events:
            self._changed.clear()
            await self._changed.wait()

    @property
    def payload(self) -> bytes:
        return b"".join(self.chunks)

    def body(self, data: bytes) -> None:
        assert not self.ended
        assert not self.is_gone
        self.chunks.append(data)
        self._note("body")

    def body_end(self, trailers) -> None:
        assert not self.ended
        assert not self.is_gone
        self.ended = True
        self.trailers = trailers
        self._note("body_end")

    def gone(self) -> None:
        assert not self.is_gone
        self.is_gone = True
        self._note("gone")

    def pause_response(self) -> None:
        self.paused = True
        self._note("pause")

    def resume_response(self) -> None:
        self.paused = False
        self._note("resume")

    def answer(self, status=200, body=b"", headers=(), trailers=None, length="known") -> None:
        """Send a whole response."""
        size = len(body) if length == "known" else length
        self.responder.head(ResponseHead(status, list(headers), size))
        if body:
            self.responder.data(body)
        self.responder.end(trailers)


class Recorder:
    """A handler that keeps every request; ``react`` may answer at once."""

    def __init__(self, react: Callable[[Request], None] | None = None) -> None:
        self.requests: list[Request] = []
        self.react = react
        self._arrived = asyncio.Event()

    def __call__(self, head: RequestHead, responder) -> Request:
        request = Request(head, responder)
        self.requests.append(request)
        self._arrived.set()
        if self.react is not None:
            self.react(request)
        return request

    async def number(self, count: int) -> Request:
        """Wait for the ``count``-th request."""
        while len(self.requests) < count:
            self._arrived.clear()
            await self._arrived.wait()
        return self.requests[count - 1]


def ok(request: Request) -> None:
    """Answer 200 with a short body at once."""
    request.answer(body=b"ok")


class Raw:
    """A client that sends bytes and reads bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> bytes:
        """Read one response head."""
        return await self.reader.readuntil(b"\r\n\r\n")

    async def response(self) -> tuple[bytes, bytes]:
        """Read one response framed by content-length."""
        head = await self.head()
        for line in head.split(b"\r\n"):
            if line.startswith(b"content-length: "):
                return head, await self.reader.readexactly(int(line[16:]))
        return head, b""

    async def rest(self) -> bytes:
        """Read until the server closes; a reset counts as the end."""
        data = b""
        try:
            while piece := await self.reader.read(65536):
                data += piece
        except ConnectionError:
            pass
        return data

    async def reset(self) -> bool:
        """Whether the server ends with a reset, not an orderly close."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionResetError:
            return True
        return False

    def close(self) -> None:
        self.writer.close()


class Served:
    """A listener on loopback and its clients, as an async context manager.

    Unless ``sweeps``, its time passes only by `pass_time`, however slow the machine is.
    """

    def __init__(
        self,
        handler,
        limits: Limits | None = None,
        host: str = "127.0.0.1",
        *,
        sweeps: bool = False,
    ) -> None:
        self.sweeps = sweeps
        self.handler = handler
        self.limits = limits
        self.host = host
        self.clients: list[Raw] = []

    async def __aenter__(self) -> Served:
        self.listener = Listener(self.handler, self.limits)
        self.hub = self.listener.hub
        self.address = await self.listener.start(self.host, 0)
        if not self.sweeps:
            self.hub.stop()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for client in self.clients:
            client.close()
        await self.listener.close()

    async def connect(self, data: bytes = b"") -> Raw:
        """A new client; ``data`` is sent at once."""
        client = Raw(*await asyncio.open_connection(*self.address))
        self.clients.append(client)
        if data:
            client.send(data)
        return client

    async def ask(self, data: bytes) -> tuple[Raw, Request]:
        """A new client, and the request that ``data`` begins. The handler is a `Recorder`."""
        asked = len(self.handler.requests)
        client = await self.connect(data)
        return client, await self.handler.number(asked + 1)

    def pass_time(self, seconds: float) -> None:
        """Sweep as if ``seconds`` had passed since the last sweep."""
        self.hub.sweep(self.hub.now + seconds)


def serving(react=None, limits: Limits | None = None, host="127.0.0.1", *, loops=None):
    """A decorator that makes a test of a coroutine function. If it takes ``served``, that is a
    `Served`, and ``recorder`` its handler. ``loops``: names of `LOOPS` that it runs on, one after
    another.
    """

    def made(scenario):
        def play(call, loop="uvloop"):
            async def whole():
                recorder = Recorder(react)
                async with Served(recorder, limits, host) as served:
                    await call(served=served, recorder=recorder)

            run(whole, loop)

        stage = ("served", "recorder")
        if loops is None:
            return as_test(scenario, stage, play)
        return pytest.mark.parametrize("loop", loops)(as_test(scenario, stage, play, ("loop",)))

    return made


async def turns(count: int = 5) -> None:
    """Let the loop turn so that what was sent over loopback arrives."""
    for _ in range(count):
        await asyncio.sleep(0.005)


class FakeTransport:
    """Keeps what is written; for parsing without sockets."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False
        self.aborted = False
        self.ended = False
        self.reading = True
        self.protocol = None

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        assert not self.closed
        assert not self.ended
        self.written += data

    def writelines(self, parts) -> None:
        self.write(b"".join(parts))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def set_protocol(self, protocol) -> None:
        self.protocol = protocol

    def get_extra_info(self, name: str):
        return ("192.0.2.1", 5) if name == "peername" else None


class NoLoop:
    """A loop that only collects what is to run soon."""

    def __init__(self) -> None:
        self.soon: list = []

    def call_soon(self, callback, *args) -> None:
        self.soon.append((callback, args))

    def run(self) -> None:
        while self.soon:
            callback, args = self.soon.pop(0)
            callback(*args)


def deliver(make_connection, pieces, handler, limits: Limits | None = None):
    """Feed ``pieces`` to a connection without sockets; the transport with what it wrote."""
    from edged.downstream.hub import Hub

    loop = NoLoop()
    hub = Hub(handler, limits or Limits(), loop)
    connection = make_connection(hub)
    transport = FakeTransport()
    connection.connection_made(transport)
    for piece in pieces:
        if transport.closed:
            break
        (transport.protocol or connection).data_received(piece)
        loop.run()
    return transport
