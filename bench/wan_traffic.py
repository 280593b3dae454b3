"""The traffic of `bench/wan.py`: an HTTP/1.1 client of a local proxy, and what it is made to do.

Requests leave when they are due, whether or not earlier ones were answered, and count from then.
All times are `time.monotonic`'s, which is also the lines' clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import re
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

_LIMIT_S = 15.0
"""A request that takes longer has failed."""
_TOKEN = re.compile(rb'"content": ?"w(\d+) "|^data: \{"i": ?(\d+)', re.M)

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Broken(Exception):
    """The response ended before its end."""


@dataclass(slots=True)
class Shot:
    """One request and what became of it."""

    flow: str
    id: str
    due: float
    ended: float | None = None
    status: int | None = None
    line_address: str | None = None
    """The edge's address that the origin saw."""
    request_id: str | None = None
    """edged's, as in its access log."""
    proxy_status: str | None = None
    tokens: list[tuple[int, float]] = field(default_factory=list)
    """Number and time of arrival of each token of a stream."""
    body: bytes = b""
    error: str | None = None
    answered: float | None = None
    """When the head of the response came."""

    @property
    def ok(self) -> bool:
        """Whether a whole answer of 200 came."""
        return self.error is None and self.status == 200

    @property
    def took_s(self) -> float:
        """From when it was due; of one that was given up, until then."""
        return (self.ended if self.ended is not None else time.monotonic()) - self.due

    def longest_gap_s(self) -> float:
        """Between two tokens, or the last token and the end."""
        times = [at for _, at in self.tokens]
        if self.ended is not None:
            times.append(self.ended)
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)

    def lost_and_doubled(self, expected: int) -> tuple[int, int]:
        """Tokens that did not come, and those that came again or late."""
        numbers = [number for number, _ in self.tokens]
        late = sum(b < a for a, b in itertools.pairwise(numbers))
        return expected - len(set(numbers)), len(numbers) - len(set(numbers)) + late


class Client:
    """Keep-alive connections to one proxy."""

    def __init__(self, connect: Connect, prefix: str, limit_s: float = _LIMIT_S) -> None:
        self._connect = connect
        self._prefix = prefix
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.limit_s = limit_s

    async def shoot(
        self,
        shot: Shot,
        method: str,
        target: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        limit_s: float | None = None,
    ) -> Shot:
        """Carry a request out and note what comes back; never raises but for a bug."""
        try:
            async with asyncio.timeout(limit_s or self.limit_s):
                await self._exchange(shot, method, target, body, headers or {})
        except TimeoutError:
            shot.error = "timeout"
        except (OSError, EOFError, Broken, ValueError) as error:
            shot.error = f"{type(error).__name__}: {error}"
        shot.ended = time.monotonic()
        return shot

    async def _exchange(
        self, shot: Shot, method: str, target: str, body: bytes, headers: dict[str, str]
    ) -> None:
        while self._idle and self._idle[-1][0].at_eof():
            self._idle.pop()[1].close()  # the proxy let it go
        connection = self._idle.pop() if self._idle else await self._connect()
        reader, writer = connection
        try:
            fields = {"host": "e1.lab.test", "x-lab-id": shot.id, **headers}
            if body or method == "POST":
                fields["content-length"] = str(len(body))
            head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            writer.write(f"{method} {self._prefix}{target} HTTP/1.1\r\n{head}\r\n".encode())
            writer.write(body)
            answer, reusable = await _head(reader, shot)
            async for piece in _body(reader, answer):
                if answer.get("content-type", "").startswith("text/event-stream"):
                    _note_tokens(shot, piece)
                else:
                    shot.body += piece
        except BaseException:
            writer.transport.abort()
            raise
        if reusable:
            self._idle.append(connection)
        else:
            writer.close()

    def close(self) -> None:
        """Close idle connections."""
        for _, writer in self._idle:
            writer.transport.abort()
        self._idle.clear()


async def _head(reader: asyncio.StreamReader, shot: Shot) -> tuple[dict[str, str], bool]:
    while True:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(lines[0].split()[1])
        if status >= 200:
            break
    shot.status, shot.answered = status, time.monotonic()
    pairs = (line.partition(":") for line in lines[1:] if line)
    answer = {name.lower(): value.strip() for name, _, value in pairs}
    shot.line_address = answer.get("x-remote") or answer.get("x-lab-client")
    shot.request_id = answer.get("edged-request-id")
    shot.proxy_status = answer.get("proxy-status")
    return answer, answer.get("connection", "").lower() != "close"


async def _body(reader: asyncio.StreamReader, answer: dict[str, str]):  # type: ignore[no-untyped-def]  # an async generator of bytes
    if "chunked" in answer.get("transfer-encoding", ""):
        while size := int(await reader.readuntil(b"\r\n"), 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readuntil(b"\r\n")
        return
    left = int(answer.get("content-length", "0"))
    while left:
        piece = await reader.read(min(left, 1 << 16))
        if not piece:
            raise Broken("body cut short")
        left -= len(piece)
        yield piece


def _note_tokens(shot: Shot, piece: bytes) -> None:
    now = time.monotonic()
    shot.body += piece
    end = shot.body.rfind(b"\n\n") + 1
    for one, other in _TOKEN.findall(shot.body[:end]):
        shot.tokens.append((int(one or other), now))
    shot.body = shot.body[end:]


def plainly(host: str, port: int, source: str | None = None) -> Connect:
    """Connections in cleartext."""
    local = (source, 0) if source else None

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(host, port, local_addr=local)

    return connect


def securely(host: str, port: int, context: ssl.SSLContext, source: str | None = None) -> Connect:
    """Connections with TLS, from an address."""
    local = (source, 0) if source else None

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            host, port, ssl=context, server_hostname="e1.lab.test", local_addr=local
        )

    return connect


def tunnelled(port: int, target: str, context: ssl.SSLContext) -> Connect:
    """TLS connections to ``target`` (host:port) through CONNECT to a local proxy."""

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n".encode())
            answer = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in answer.split(b"\r\n")[0]:
                raise Broken(answer.split(b"\r\n")[0].decode())
            await writer.start_tls(context, server_hostname="e1.lab.test")
        except BaseException:
            writer.transport.abort()
            raise
        return reader, writer

    return connect


# -- what a client is made to do -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Flow(ABC):
    """Traffic of one kind, from ``start_s`` of a run on; shots are named after it."""

    name: str
    start_s: float = 0.0

    @abstractmethod
    async def run(self, client: Client, begun: float, shots: list[Shot]) -> None:
        """Carry it out in a run that began at ``begun``."""


async def shoot(  # type: ignore[no-untyped-def]  # options are those of `Client.shoot`
    client: Client,
    shots: list[Shot],
    name: str,
    due: float,
    target: str,
    *,
    method: str = "POST",
    body: bytes = b"",
    **options,
) -> Shot:
    """One request of a flow, when it is due."""
    await asyncio.sleep(due - time.monotonic())
    shot = Shot(name, f"{name}-{len(shots)}", due)
    shots.append(shot)
    return await client.shoot(shot, method, target, body, **options)


def padded(size: int) -> bytes:
    """A small JSON document."""
    return json.dumps({"pad": "x" * size}).encode()


@dataclass(frozen=True, slots=True)
class Steady(Flow):
    """Requests at a rate."""

    method: str = "POST"
    target: str = "/echo"
    body_bytes: int = 64
    rate: float = 20.0
    count: int = 320

    async def run(self, client: Client, begun: float, shots: list[Shot]) -> None:
        body = padded(self.body_bytes) if self.method == "POST" else b""
        async with asyncio.TaskGroup() as group:
            for number in range(self.count):
                due = begun + self.start_s + number / self.rate
                await asyncio.sleep(due - time.monotonic())
                group.create_task(
                    shoot(client, shots, self.name, due, self.target, method=self.method, body=body)
                )


@dataclass(frozen=True, slots=True)
class Stream(Flow):
    """One answer token by token, as an LLM's."""

    tokens: int = 200
    rate: float = 20.0

    async def run(self, client: Client, begun: float, shots: list[Shot]) -> None:
        question = {"stream": True, "messages": [{"role": "user", "content": "x"}]}
        headers = {
            "x-lab-tokens": str(self.tokens),
            "x-lab-rate": str(self.rate),
            "content-type": "application/json",
        }
        await shoot(
            client,
            shots,
            self.name,
            begun + self.start_s,
            "/v1/chat/completions",
            body=json.dumps(question).encode(),
            headers=headers,
            limit_s=self.tokens / self.rate + _LIMIT_S,
        )


@dataclass(frozen=True, slots=True)
class Upload(Flow):
    """A large body of noise; ``body`` of the answer is turned into whether the SHA-256 agrees."""

    size: int = 10_000_000
    limit_s: float = 60.0

    async def run(self, client: Client, begun: float, shots: list[Shot]) -> None:
        body = noise(self.size)
        due = begun + self.start_s
        shot = await shoot(
            client, shots, self.name, due, "/upload", body=body, limit_s=self.limit_s
        )
        if shot.ok and json.loads(shot.body)["sha256"] != hashlib.sha256(body).hexdigest():
            shot.error = "another SHA-256"


@dataclass(frozen=True, slots=True)
class Documents(Flow):
    """JSON documents one after the other, each after a pause."""

    size: int = 200_000
    count: int = 10
    pause_s: float = 0.5

    async def run(self, client: Client, begun: float, shots: list[Shot]) -> None:
        due = begun + self.start_s
        for number in range(self.count):
            await shoot(
                client,
                shots,
                self.name,
                due,
                "/upload",
                body=conversation(self.size, number),
                headers={"content-type": "application/json"},
            )
            due = time.monotonic() + self.pause_s


@dataclass(frozen=True, slots=True)
class Thinkers(Flow):
    """Requests to a model that thinks before its first byte, all at once."""

    target: str = ""
    count: int = 20
    think_s: float = 60.0

    async def run(self, client: Client, begun: float, shots: list[Shot]) -> None:
        target, body = f"{self.target}/slow?s={self.think_s}", padded(64)
        due, limit_s = begun + self.start_s, 2.5 * self.think_s + _LIMIT_S
        async with asyncio.TaskGroup() as group:
            for _ in range(self.count):
                group.create_task(
                    shoot(client, shots, self.name, due, target, body=body, limit_s=limit_s)
                )
                await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class Cuts(Flow):
    """Answers that the origin breaks off, with a length given and without, in turn."""

    target: str = ""
    count: int = 20

    async def run(self, client: Client, begun: float, shots: list[Shot]) -> None:
        for number in range(self.count):
            target = f"{self.target}/cut?n={1000 * (number + 1)}&framed={number % 2}"
            due = max(time.monotonic(), begun + self.start_s)
            await shoot(client, shots, self.name, due, target, method="GET")


def noise(size: int) -> bytes:
    """Bytes that nothing compresses, the same each time."""
    blocks = -(-size // 32)
    return b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(blocks))[:size]


def conversation(size: int, number: int) -> bytes:
    """A chat request of about ``size`` bytes, as compressible as text."""
    words = re.findall(rb"..", hashlib.sha256(b"%d" % number).hexdigest().encode())
    vocabulary = [hashlib.sha256(b"w%d" % n).hexdigest()[: 3 + n % 7] for n in range(800)]
    texts, length, n = [], 0, number
    while length < size:
        n = (n * 1103515245 + int(words[n % len(words)], 16) + 12345) % (1 << 31)
        texts.append(vocabulary[(n >> 8) % len(vocabulary)])
        length += len(texts[-1]) + 1
    messages = [
        {
            "role": "user" if at % 2 else "assistant",
            "content": " ".join(texts[at * 80 : at * 80 + 80]),
        }
        for at in range(len(texts) // 80 + 1)
    ]
    return json.dumps({"model": "lab", "messages": messages}).encode()


async def play(
    client: Client,
    flows: tuple[Flow, ...],
    begun: float,
    shots: list[Shot],
    happenings: Callable[[], Awaitable[None]],
) -> None:
    """All flows, and what happens meanwhile."""
    happening = asyncio.ensure_future(happenings())
    try:
        async with asyncio.TaskGroup() as group:
            for flow in flows:
                group.create_task(flow.run(client, begun, shots))
        await happening
    finally:
        happening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await happening
        client.close()
