"""The client of `bench/flows.py`: one request at a time over its own connection to a local proxy,
every byte counted and hashed both ways.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.wan_traffic import Broken

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_PIECE_BYTES = 1 << 16
_PROXY_STATUS = "proxy-status"


@dataclass(slots=True)
class Ask:
    """A request, and what its answer must be."""

    id: str
    kind: str
    method: str
    target: str
    body: bytes = b""
    chunked: bool = False
    fields: dict[str, str] = field(default_factory=dict)
    sha256: str | None = None
    """Of the answer's body, if that can be told before."""
    right: Callable[[bytes], bool] = lambda body: True
    """Whether the answer's body is what it should be; it is kept only for ``keeps``."""
    keeps: bool = False
    limit_s: float = 60.0
    tunnelled: bool = False


@dataclass(slots=True)
class Got:
    """What became of it. Times are `time.monotonic`'s."""

    ask: Ask
    began: float
    ended: float = 0.0
    status: int | None = None
    fields: dict[str, str] = field(default_factory=dict)
    size: int = 0
    sha256: str = ""
    body: bytes = b""
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    """When how many bytes were there."""
    error: str | None = None

    @property
    def took_s(self) -> float:
        """From beginning to end."""
        return self.ended - self.began

    @property
    def whole(self) -> bool:
        """A complete answer came, of whatever status."""
        return self.error is None and self.status is not None

    @property
    def fine(self) -> bool:
        """It is the right one, byte for byte."""
        ask = self.ask
        return (
            self.whole
            and self.status == 200
            and ask.sha256 in (None, self.sha256)
            and ask.right(self.body)
        )

    def __str__(self) -> str:
        ask = self.ask
        said = self.fields.get(_PROXY_STATUS, "")
        return (
            f"{ask.id} {ask.method} {ask.target} up {len(ask.body)} took {self.took_s:.2f} s "
            f"status {self.status} got {self.size} {self.error or ''} {said} "
            f"{self.body[:200]!r}".rstrip()
        )


async def fetch(
    ask: Ask, connect: Callable[[], asyncio.Future[Streams] | object], prefix: str = ""
) -> Got:
    """Carry ``ask`` out on a connection that ``connect`` makes; never raises but for a bug."""
    got = Got(ask, time.monotonic())
    digest = hashlib.sha256()
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(ask.limit_s):
            reader, writer = await connect()  # type: ignore[misc]  # a coroutine of streams
            await _exchange(ask, got, digest, reader, writer, prefix)
    except TimeoutError:
        got.error = "timeout"
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError, Broken) as error:
        got.error = f"{type(error).__name__}: {error}"
    finally:
        if writer is not None:
            writer.transport.abort()
    got.ended = time.monotonic()
    got.sha256 = digest.hexdigest()
    return got


async def _exchange(
    ask: Ask,
    got: Got,
    digest: hashlib._Hash,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    prefix: str,
) -> None:
    host = "edge.lab" if prefix else "e1.lab.test"
    fields = {"host": host, "x-lab-id": ask.id, **ask.fields}
    if ask.chunked:
        fields["transfer-encoding"] = "chunked"
    elif ask.body or ask.method in ("POST", "PUT", "PATCH"):
        fields["content-length"] = str(len(ask.body))
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    writer.write(f"{ask.method} {prefix}{ask.target} HTTP/1.1\r\n{head}\r\n".encode())
    sending = asyncio.ensure_future(_send(ask, writer))
    try:
        answer = await _head(reader, got)
        await _body(ask, got, digest, reader, answer)
        await sending
    finally:
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await sending


async def _send(ask: Ask, writer: asyncio.StreamWriter) -> None:
    for at in range(0, len(ask.body), _PIECE_BYTES):
        piece = ask.body[at : at + _PIECE_BYTES]
        if ask.chunked:
            piece = b"%x\r\n%b\r\n" % (len(piece), piece)
        writer.write(piece)
        await writer.drain()
    if ask.chunked:
        writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _head(reader: asyncio.StreamReader, got: Got) -> dict[str, str]:
    while True:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(lines[0].split()[1])
        if status >= 200:
            break
    got.status = status
    pairs = (line.partition(":") for line in lines[1:] if line)
    got.fields = {name.lower(): value.strip() for name, _, value in pairs}
    return got.fields


async def _body(
    ask: Ask, got: Got, digest: hashlib._Hash, reader: asyncio.StreamReader, answer: dict[str, str]
) -> None:
    keeps = ask.keeps or got.status != 200

    def take(piece: bytes) -> None:
        digest.update(piece)
        got.size += len(piece)
        got.arrivals.append((time.monotonic(), got.size))
        if keeps:
            got.body += piece

    if ask.method == "HEAD" or got.status in (204, 304):
        return
    if "chunked" in answer.get("transfer-encoding", ""):
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            while size:
                piece = await reader.read(min(size, _PIECE_BYTES))
                if not piece:
                    raise EOFError("body cut short")
                size -= len(piece)
                take(piece)
            await reader.readexactly(2)
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            name, _, value = line.decode("latin-1").partition(":")
            answer[name.lower()] = value.strip()
        return
    left = int(answer.get("content-length", "-1"))
    if left < 0:
        raise ValueError("an answer whose end cannot be told")
    while left:
        piece = await reader.read(min(left, _PIECE_BYTES))
        if not piece:
            raise EOFError("body cut short")
        left -= len(piece)
        take(piece)
