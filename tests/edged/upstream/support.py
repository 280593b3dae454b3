"""A dialer of real sockets, events that record, and servers that misbehave on purpose."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager

from edged.messages import RequestHead
from edged.upstream.pool import Pools
from policies.model import Carrier, Endpoint, Line, Outcome, Path
from probes.base import Dialed, DialError

LINE = Line("a", source="127.0.0.2")
ENGINES = ("pure", "fast")


class LoopbackDialer:
    """Sockets bound to the line's source address."""

    def __init__(self):
        self.dials = 0
        self.refuse = None

    async def connect_tcp(self, line, host, port, *, address=None, timeout_s):
        self.dials += 1
        if self.refuse is not None:
            raise self.refuse
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if line.source:
            sock.bind((line.source, 0))
        began = time.monotonic()
        peer = (address or "127.0.0.1", port)
        try:
            async with asyncio.timeout(timeout_s):
                await loop.sock_connect(sock, peer)
        except TimeoutError:
            sock.close()
            raise DialError(Outcome.TIMEOUT, "no answer") from None
        except OSError as error:
            sock.close()
            raise DialError(Outcome.REFUSED, error.strerror) from None
        except BaseException:
            sock.close()
            raise
        return Dialed(sock, peer, 0.0, time.monotonic() - began)


class Events:
    """Records what a stream says; sends a request as soon as it is ready, if it has one."""

    def __init__(self, head=None, body=None, *, trailers=None):
        self.request = head
        self.body = body
        self.request_trailers = trailers
        self.stream = None
        self.interim = []
        self.response = None
        self.chunks = []
        self.trailers = None
        self.ended = False
        self.failure = None
        self.calls = []
        self.pauses = 0
        self.resumes = 0
        self._changed = asyncio.Event()

    def stream_ready(self, stream):
        self._call("ready")
        self.stream = stream
        if self.request is not None:
            stream.send_head(self.request, end=self.body is None)
            if self.body is not None:
                for piece in self.body:
                    stream.send_data(piece)
                stream.send_end(self.request_trailers)

    def informational(self, status, headers):
        self._call("informational")
        self.interim.append((status, headers))

    def head(self, head):
        self._call("head")
        self.response = head

    def data(self, data):
        self._call("data")
        self.chunks.append(bytes(data))

    def end(self, trailers):
        self._call("end")
        self.trailers = trailers
        self.ended = True

    def failed(self, failure):
        self._call("failed")
        self.failure = failure

    def pause_body(self):
        self.pauses += 1
        self._changed.set()

    def resume_body(self):
        self.resumes += 1
        self._changed.set()

    def _call(self, name):
        assert not self.ended, f"{name} after end"
        assert self.failure is None, f"{name} after failed"
        if name != "data" or self.calls[-1:] != ["data"]:
            self.calls.append(name)
        self._changed.set()

    @property
    def over(self):
        return self.ended or self.failure is not None

    @property
    def content(self):
        return b"".join(self.chunks)

    async def until(self, condition, timeout_s=10):
        async with asyncio.timeout(timeout_s):
            while not condition(self):
                self._changed.clear()
                await self._changed.wait()
        return self

    async def done(self, timeout_s=10):
        return await self.until(lambda e: e.over, timeout_s)


def get(path=b"/", *, method=b"GET", scheme=b"http", headers=(), length=0, upgrade=None):
    return RequestHead(method, scheme, b"localhost", path, list(headers), length, upgrade=upgrade)


def path_to(
    port,
    *,
    scheme="http",
    protocols=(Carrier.H2, Carrier.H1),
    host="localhost",
    name="o",
    line=LINE,
):
    endpoint = Endpoint(
        "u", name, scheme, host, port, address="127.0.0.1", protocols=tuple(protocols)
    )
    return Path(line, endpoint)


async def eventually(condition, timeout_s=5):
    """Wait, loop turn by loop turn, until ``condition()`` holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.001)


class Setup:
    """Pools over the loopback with everything recorded."""

    def __init__(self, **options):
        self.samples = []
        self.warm = []
        self.dialer = LoopbackDialer()
        self.pools = Pools(
            self.dialer,
            self.samples.append,
            set_warm=lambda path, carrier: self.warm.append((path, carrier)),
            **options,
        )

    def open(self, path, head=None, body=None, *, trailers=None, early_data=None, **options):
        events = Events(head, body, trailers=trailers)
        if early_data is None:
            early_data = head is not None and head.method in (b"GET", b"HEAD")
        events.pending = self.pools.open(path, events, early_data=early_data, **options)
        return events

    async def fetch(self, path, head, body=None, **options):
        return await self.open(path, head, body, **options).done()

    def stat(self, path):
        return next(s for s in self.pools.stats() if s.path == path.name)


@asynccontextmanager
async def setup(**options):
    made = Setup(**options)
    try:
        yield made
    finally:
        made.pools.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


@asynccontextmanager
async def server(handler, *, ssl=None):
    """``handler(reader, writer)`` per connection; yields the port."""
    tasks = set()

    async def run(reader, writer):
        tasks.add(asyncio.current_task())
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went, or the test is over
        finally:
            writer.close()
            tasks.discard(asyncio.current_task())

    made = await asyncio.start_server(run, "127.0.0.1", 0, ssl=ssl)
    try:
        yield made.sockets[0].getsockname()[1]
    finally:
        made.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
