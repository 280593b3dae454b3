"""The origin's HTTP/1.1 transport: httptools in, plain bytes out (RFC 9112)."""

from __future__ import annotations

import asyncio
import http
from collections import deque
from typing import cast

import httptools

from edged.lab.serving import Fields, Handler, Reply, Request, Room

_MAX_PIPELINED = 64


class H1Connection(asyncio.Protocol):
    """One client connection; pipelined requests are answered one after the other."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._client = ""
        self._waiting: deque[tuple[Request, bool]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._reading: Request | None = None
        self._raw: Request | None = None
        self._reset()
        self.room = Room()

    def _reset(self) -> None:
        self._target = b""
        self._fields: Fields = []
        self._trailers: Fields = []
        self._head_done = False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by type
        self._client = transport.get_extra_info("peername")[0]

    def data_received(self, data: bytes) -> None:
        if self._raw:
            self._raw.body.feed(data)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
            if self._raw:
                if rest:
                    self._raw.body.feed(rest)
            else:  # an Upgrade nobody takes up (RFC 9110, 7.8): go on in HTTP/1.1
                self._parser = httptools.HttpRequestParser(self)
                self.data_received(rest)
        except httptools.HttpParserError:
            self.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
            self.close()

    def eof_received(self) -> bool:
        if self._raw:
            self._raw.body.end()
        elif self._reading:
            self._reading.body.fail()
        return self._task is not None

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._task:
            self._task.cancel()
        self._waiting.clear()

    def pause_writing(self) -> None:
        self.room.shut()

    def resume_writing(self) -> None:
        self.room.clear()

    # httptools

    def on_message_begin(self) -> None:
        self._reset()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        field = (name.decode("latin-1").lower(), value.decode("latin-1").strip())
        (self._trailers if self._head_done else self._fields).append(field)

    def on_headers_complete(self) -> None:
        self._head_done = True
        target = self._target.decode("latin-1")
        authority = dict(self._fields).get("host", "")
        if "://" in target[:8]:
            authority, _, rest = target.partition("://")[2].partition("/")
            target = "/" + rest
        request = Request(
            self._parser.get_method().decode(),
            target,
            authority,
            self._fields,
            version=self._parser.get_http_version(),
            client=self._client,
        )
        request.body.consumed = self._consumed
        if request.headers.get("expect", "").lower() == "100-continue":
            request.body.wanted = self._continue
        self._reading = request
        if self._parser.should_upgrade() and request.headers.get("upgrade") == "websocket":
            self._raw = request
        self._waiting.append((request, self._parser.should_keep_alive()))
        self._next()
        self._throttle()

    def on_body(self, body: bytes) -> None:
        assert self._reading
        self._reading.body.feed(body)
        self._throttle()

    def on_message_complete(self) -> None:
        if self._reading and not self._raw:
            self._reading.body.end(self._trailers)
        self._reading = None

    # answers

    def write(self, data: bytes) -> None:
        """Send bytes if the connection is still there."""
        if self._transport:
            self._transport.write(data)

    def close(self) -> None:
        """Close after what was written."""
        if self._transport:
            self._transport.close()

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport:
            self._transport.abort()

    def _continue(self) -> None:
        self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _consumed(self, _: int) -> None:
        self._throttle()

    def _throttle(self) -> None:
        if not self._transport or self._transport.is_closing():
            return
        reading = self._raw or self._reading
        if (reading and reading.body.full) or len(self._waiting) > _MAX_PIPELINED:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _next(self) -> None:
        if self._task is None and self._waiting and self._transport:
            request, keep_alive = self._waiting.popleft()
            self._task = asyncio.get_running_loop().create_task(self._run(request, keep_alive))

    async def _run(self, request: Request, keep_alive: bool) -> None:
        reply = H1Reply(self, request, keep_alive)
        try:
            await self._handler(request, reply)
            if reply.ended and not reply.keep_alive:
                self.close()
            elif not reply.ended:
                self.abort()
            else:
                async for _ in request.body:  # what the handler left unread
                    pass
        except ConnectionError:
            self.abort()
        finally:
            self._task = None
            self._next()


class H1Reply(Reply):
    """One response."""

    def __init__(self, connection: H1Connection, request: Request, keep_alive: bool) -> None:
        self._connection = connection
        self._method = request.method
        self._version = request.version
        self._chunked = False
        self._bodiless = False
        self.keep_alive = keep_alive
        self.ended = False

    def informational(self, status: int, fields: Fields) -> None:
        self._connection.write(_head(status, fields))

    def head(self, status: int, fields: Fields, *, end: bool = False) -> None:
        names = {name for name, _ in fields}
        self._bodiless = self._method == "HEAD" or status in (204, 304)
        fields = list(fields)
        if status == 101:
            self.keep_alive = False
        elif "content-length" not in names and not self._bodiless:
            if end:
                fields.append(("content-length", "0"))
            elif self._version == "1.1":
                self._chunked = True
                fields.append(("transfer-encoding", "chunked"))
            else:
                self.keep_alive = False
        if not self.keep_alive and status != 101:
            fields.append(("connection", "close"))
        elif self._version == "1.0":
            fields.append(("connection", "keep-alive"))
        self._connection.write(_head(status, fields))
        self.ended = end

    async def data(self, data: bytes) -> None:
        if self._bodiless or not data:
            return
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._connection.write(data)
        await self._connection.room.wait()

    def end(self, trailers: Fields | None = None) -> None:
        if self._chunked:
            lines = "".join(f"{name}: {value}\r\n" for name, value in trailers or [])
            self._connection.write(b"0\r\n" + lines.encode("latin-1") + b"\r\n")
        self.ended = True

    def abort(self) -> None:
        self._connection.abort()


def _head(status: int, fields: Fields) -> bytes:
    try:
        reason = http.HTTPStatus(status).phrase
    except ValueError:
        reason = ""
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"HTTP/1.1 {status} {reason}\r\n{lines}\r\n".encode("latin-1")
