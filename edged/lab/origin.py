"""An LLM-like origin over h1, h2 and h3, in-process or as ``python -m edged.lab.origin``.

One handler behind three thin transports. TLS with ALPN on a TCP port, h3 on the UDP port of the
same number, and a cleartext port (h1, and h2 with prior knowledge) beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import cast

from edged.lab import resources
from edged.lab.certs import Certificates, make_certificates
from edged.lab.origin_h1 import H1Connection
from edged.lab.origin_h2 import H2Connection
from edged.lab.origin_h3 import H3Server
from edged.lab.service import BODILESS_METHODS, HttpError, Service
from edged.lab.serving import Reply, Request

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class _Connection(asyncio.Protocol):
    """Hands a new connection to h1 or h2: by ALPN, or in cleartext by the h2 preface."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._transport: asyncio.Transport | None = None
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by type
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = transport.get_extra_info("ssl_object")
        if tls:
            self._become(tls.selected_alpn_protocol() == "h2")
        self._origin.remember(self._transport)

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if _PREFACE.startswith(self._seen[: len(_PREFACE)]):
            if len(self._seen) < len(_PREFACE):
                return
            self._become(True)
        else:
            self._become(False)

    def _become(self, h2: bool) -> None:
        assert self._transport
        handler = self._origin.handle
        protocol = H2Connection(handler) if h2 else H1Connection(handler)
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if self._seen:
            protocol.data_received(self._seen)


class Origin:
    """One origin. ``service`` holds its switches and counters; ports are known after `start`."""

    def __init__(
        self,
        certificates: Certificates,
        *,
        service: Service | None = None,
        h3_engine: str = "aioquic",
        h2: bool = True,
        h3: bool = True,
    ) -> None:
        self.service = service or Service()
        self.port = 0
        """TCP with TLS, and UDP."""
        self.cleartext_port = 0
        self._transports: set[asyncio.Transport] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        """Those that answer."""
        self._certificates = certificates
        self._alpn = ["h2", "http/1.1"] if h2 else ["http/1.1"]
        self._h3_engine = h3_engine if h3 else None
        self._h3: H3Server | None = None
        self._servers: list[asyncio.Server] = []

    async def start(
        self, address: str = "127.0.0.1", port: int = 0, *, cleartext_port: int = 0
    ) -> None:
        """Listen; 0 chooses free ports. Raises `OSError`."""
        loop = asyncio.get_running_loop()

        def connection() -> _Connection:
            return _Connection(self)

        context = self._certificates.server_context(self._alpn)
        secure = await loop.create_server(
            connection, address, port, ssl=context, backlog=1024, reuse_address=True
        )
        self._servers.append(secure)
        self.port = secure.sockets[0].getsockname()[1]
        if self._h3_engine:
            files = self._certificates
            self._h3 = H3Server(self.handle, files.certificate, files.key, self._h3_engine)
            await self._h3.start(address, self.port)
        clear = await loop.create_server(
            connection, address, cleartext_port, backlog=1024, reuse_address=True
        )
        self._servers.append(clear)
        self.cleartext_port = clear.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close listeners and connections."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        for transport in self._transports:
            transport.abort()
        self._transports.clear()
        if self._h3:
            self._h3.stop()
            self._h3 = None
        await asyncio.sleep(0)
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def remember(self, transport: asyncio.Transport) -> None:
        """A connection to close at the end; those that closed by themselves are let go."""
        self._transports.add(transport)
        if len(self._transports) % 256 == 0:
            self._transports = {t for t in self._transports if not t.is_closing()}

    async def handle(self, request: Request, reply: Reply) -> None:
        """One request."""
        service = self.service
        service.requests += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            route = resources.find(request)
            if request.method in BODILESS_METHODS:
                service.executed(request)
            await route(service, request, reply)
        except HttpError as error:
            await self._refuse(request, reply, error)
        except ValueError as error:
            await self._refuse(request, reply, HttpError(400, str(error)))
        finally:
            self._tasks.discard(task)

    async def _refuse(self, request: Request, reply: Reply, error: HttpError) -> None:
        document = {"error": {"message": error.message, "type": "lab", "code": error.status}}
        await self.service.answer_json(request, reply, document, error.status, error.fields)


async def _serve(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="edged-lab-") as directory:
        hosts = ["localhost", "*.lab.test", "127.0.0.1", args.address]
        certificates = make_certificates(Path(directory), dict.fromkeys(hosts))
        service = Service(token_rate=args.token_rate)
        origin = Origin(certificates, service=service, h3_engine=args.h3_engine)
        try:
            await origin.start(args.address, args.port)
        except OSError as error:
            print(f"cannot listen on {args.address}:{args.port}: {error}", file=sys.stderr)
            return 1
        print(f"https://{args.address}:{origin.port}  h1 h2 h3, CA {certificates.ca_file}")
        print(f"http://{args.address}:{origin.cleartext_port}  h1, h2 prior knowledge", flush=True)
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        await stopped.wait()
        await origin.stop()
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="edged.lab.origin", description=__doc__)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="TCP and UDP; 0: a free one")
    parser.add_argument("--token-rate", type=float, default=50.0, help="tokens per second")
    parser.add_argument("--h3-engine", choices=("aioquic", "qh3"), default="aioquic")
    args = parser.parse_args()
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.run(_serve(args))
    return asyncio.run(_serve(args))


if __name__ == "__main__":
    sys.exit(main())
