"""Where clients connect: bound sockets, and the connections that came in through them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable

from edged.downstream.base import Handler
from edged.downstream.h1 import H1Connection
from edged.downstream.hub import Hub
from edged.downstream.limits import Limits
from edged.downstream.sockets import bind

HANDSHAKE_S = 10.0
"""A client that has not finished its TLS handshake by then is cut off."""
_BACKLOG = 4096


class Listener:
    """Accepts on any number of addresses and serves HTTP/1.1 and h2c on each.

    To be made where a loop runs.

    ``hub`` has the counters: ``connections`` (a set, open now), ``connections_total``,
    ``connections_refused``, ``requests_open``, ``requests_total``, ``requests_bad``.
    """

    def __init__(self, handler: Handler, limits: Limits | None = None) -> None:
        self._servers: list[asyncio.Server] = []
        loop = asyncio.get_running_loop()
        self._empty = asyncio.Event()
        self.hub = Hub(handler, limits or Limits(), loop)
        self.hub.on_empty = self._empty.set

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """What is bound, with the ports that the system chose where 0 was asked for."""
        return [s.getsockname()[:2] for server in self._servers for s in server.sockets]

    async def start(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        tune: Callable[[socket.socket], None] | None = None,
    ) -> tuple[str, int]:
        """Listen on one address; may be called again for more. The address bound.

        ``tls`` serves HTTPS only (an HTTP/2 client is known by its preface, whatever ALPN chose).
        ``tune`` sets options of the socket, which its connections inherit.

        Raises `OSError` with a text for people when it can't be had.
        """
        hub = self.hub
        sock = bind(host, port)
        if tune is not None:
            tune(sock)
        server = await hub.loop.create_server(
            lambda: H1Connection(hub),
            sock=sock,
            backlog=_BACKLOG,
            ssl=tls,
            ssl_handshake_timeout=None if tls is None else HANDSHAKE_S,
        )
        if not self._servers:
            hub.start()
        self._servers.append(server)
        bound: tuple[str, int] = sock.getsockname()[:2]
        return bound

    def reconfigure(self, limits: Limits) -> None:
        """Use other limits from the next message on."""
        self.hub.limits = limits

    async def drain(self, deadline_s: float) -> int:
        """Stop accepting, let requests in flight finish for ``deadline_s`` seconds, then close.

        Returns how many connections had to be cut.
        """
        for server in self._servers:
            server.close()
        self.hub.draining = True
        for connection in list(self.hub.connections):
            connection.drain()
        if self.hub.connections:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), deadline_s)
        cut = len(self.hub.connections)
        await self.close()
        return cut

    async def close(self) -> None:
        """Close everything at once."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        self.hub.draining = True
        if self.hub.connections:
            self._empty.clear()
            for connection in list(self.hub.connections):
                connection.kill()
            await self._empty.wait()
        self.hub.stop()
