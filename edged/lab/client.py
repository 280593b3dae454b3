"""The demo's HTTP client: HTTP/1.1 as plain as it gets, so that what it measures is not itself.

A request takes an idle connection or opens one at once; it never waits for another. Framing is by
length or chunks (RFC 9112, 6). It trusts the server: it is the lab's, or edged.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

TROUBLES = (OSError, EOFError, TimeoutError, ValueError)
"""What requests raise: no connection, a connection cut, silence, or nonsense."""
_LONGEST_LINE_BYTES = 1 << 16

_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Response:
    """A response whose head is here. Read its body with `lines` or `read`."""

    def __init__(self, reader: asyncio.StreamReader, head: bytes, timeout_s: float) -> None:
        status_line, *fields = head.decode("latin-1").split("\r\n")
        _, status, *_ = status_line.split(" ", 2)
        self.status = int(status)
        self.headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (field.partition(":") for field in fields if field)
        }
        self.complete = False
        """The body was read to its end: the connection may be used again."""
        self._reader = reader
        self._timeout_s = timeout_s

    async def parts(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises one of `TROUBLES`."""
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await self._line()).split(b";")[0], 16):
                yield await self._exactly(size)
                await self._exactly(2)
            while (await self._line()).strip():
                pass  # trailers
        elif length := int(self.headers.get("content-length", "0")):
            yield await self._exactly(length)
        self.complete = True

    async def lines(self) -> AsyncIterator[str]:
        """The body's lines as they come."""
        rest = b""
        async for part in self.parts():
            *whole, rest = (rest + part).split(b"\n")
            for line in whole:
                yield line.decode().rstrip("\r")
        if rest:
            yield rest.decode()

    async def read(self) -> bytes:
        """The whole body."""
        return b"".join([part async for part in self.parts()])

    async def _line(self) -> bytes:
        async with asyncio.timeout(self._timeout_s):
            line = await self._reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError("cut in the middle of a line")
        return line

    async def _exactly(self, count: int) -> bytes:
        async with asyncio.timeout(self._timeout_s):
            return await self._reader.readexactly(count)


class Client:
    """Posts JSON to one origin, ``timeout_s`` being the longest silence."""

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._authority = parts.netloc
        self._prefix = parts.path
        self._timeout_s = timeout_s
        self._idle: list[_Streams] = []

    @asynccontextmanager
    async def post(
        self, path: str, document: object, headers: Mapping[str, str]
    ) -> AsyncIterator[Response]:
        """Send, and give the response when its head is here. Raises one of `TROUBLES`."""
        reader, writer = await self._connection()
        response: Response | None = None
        try:
            writer.write(self._request(path, document, headers))
            async with asyncio.timeout(self._timeout_s):
                head = await reader.readuntil(b"\r\n\r\n")
            response = Response(reader, head, self._timeout_s)
            yield response
        finally:
            if response is not None and response.complete:
                self._idle.append((reader, writer))
            else:
                writer.transport.abort()

    def close(self) -> None:
        """Close the idle connections."""
        for _, writer in self._idle:
            writer.transport.abort()
        self._idle.clear()

    async def _connection(self) -> _Streams:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.transport.abort()
        async with asyncio.timeout(self._timeout_s):
            return await asyncio.open_connection(self._host, self._port, limit=_LONGEST_LINE_BYTES)

    def _request(self, path: str, document: object, headers: Mapping[str, str]) -> bytes:
        body = json.dumps(document).encode()
        fields = {
            "host": self._authority,
            "content-type": "application/json",
            "content-length": str(len(body)),
            **headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST {self._prefix}{path} HTTP/1.1\r\n{lines}\r\n".encode() + body
