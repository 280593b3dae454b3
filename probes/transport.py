"""httpx over a line: a transport whose sockets come from the `Dialer`.

It serves probes, the command line and tests; the hot path has its own carriers.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any

import httpcore
import httpx

from policies.model import Line
from probes.base import Dialed, Dialer

KEEPALIVE_S = 120.0
"""How long an idle connection is kept."""


class LineStream(httpcore.AsyncNetworkStream):
    """A connected socket as httpcore wants it."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dialed: Dialed
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._closed = False
        self.dialed = dialed

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout("no data in time") from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not buffer:
            return
        try:
            async with asyncio.timeout(timeout):
                await self.dialed.wire.passage()
                self._writer.write(buffer)
                await self._writer.drain()
        except TimeoutError as error:
            raise httpcore.WriteTimeout("the peer takes no data") from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        writer = self._writer
        del self._reader, self._writer  # httpcore keeps this, and TLS has large buffers
        if self.dialed.wire.silent:
            writer.transport.abort()
            return
        writer.close()
        try:
            async with asyncio.timeout(1.0):
                await writer.wait_closed()
        except (OSError, TimeoutError):
            writer.transport.abort()  # the peer is gone or does not answer close_notify

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
        except TimeoutError as error:
            self._writer.transport.abort()
            raise httpcore.ConnectTimeout("no TLS handshake in time") from error
        except OSError as error:  # ssl.SSLError is one
            self._writer.transport.abort()
            raise httpcore.ConnectError(str(error)) from error
        except BaseException:
            self._writer.transport.abort()
            raise
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "dialed":
            return self.dialed
        if info == "is_readable":  # httpcore's question to an idle connection: did it end?
            return self._closed or self._reader.at_eof() or self._writer.transport.is_closing()
        if self._closed:
            return None
        return self._writer.get_extra_info(info)


class LineBackend(httpcore.AsyncNetworkBackend):
    """Connects over one line; ``address`` replaces DNS. `DialError` passes through unchanged."""

    def __init__(self, dialer: Dialer, line: Line, address: str | None = None) -> None:
        self._dialer = dialer
        self._line = line
        self._address = address
        self.dialed: Dialed | None = None
        """The newest connection's."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> LineStream:
        dialed = await self._dialer.connect_tcp(
            self._line,
            host,
            port,
            address=self._address,
            timeout_s=timeout if timeout is not None else 30.0,
        )
        self.dialed = dialed
        try:
            reader, writer = await asyncio.open_connection(sock=dialed.sock)
        except BaseException:
            dialed.sock.close()
            raise
        return LineStream(reader, writer, dialed)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Body(httpx.AsyncByteStream):
    """A response body that hands its connection back when closed."""

    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        stream = self._response.stream
        assert isinstance(stream, AsyncIterable)  # of an asynchronous pool
        async for part in stream:
            yield part

    async def aclose(self) -> None:
        await self._response.aclose()


class LineTransport(httpx.AsyncBaseTransport):
    """An httpx transport over one line; failures arrive as httpcore's or as `DialError`."""

    def __init__(
        self,
        dialer: Dialer,
        line: Line,
        *,
        ssl_context: ssl.SSLContext,
        address: str | None = None,
        http2: bool = True,
        http1: bool = True,
    ) -> None:
        self.backend = LineBackend(dialer, line, address)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context,
            http1=http1,
            http2=http2,
            max_connections=4,
            keepalive_expiry=KEEPALIVE_S,
            network_backend=self.backend,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        response = await self._pool.handle_async_request(
            httpcore.Request(
                request.method,
                httpcore.URL(
                    scheme=request.url.raw_scheme,
                    host=request.url.raw_host,
                    port=request.url.port,
                    target=request.url.raw_path,
                ),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Body(response),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


def trust(ca_file: str | None = None) -> ssl.SSLContext:
    """A verifying client context: the system's authorities and those of ``ca_file``.

    Raises `OSError` when ``ca_file`` cannot be read or holds no certificate.
    """
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context
