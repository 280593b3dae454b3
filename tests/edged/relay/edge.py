"""An edge in the loop of its relay and origin: two lines on loopback, which can be silenced."""

import asyncio
import contextlib

import yaml

from edged.config import load
from edged.daemon import Daemon
from tests.edged.relay.live import TOKEN, Origin, Relay, until

LINES = {"a": "127.0.0.2", "b": "127.0.0.3"}


class Edge:
    """``async with Edge(tmp_path, origin, relay) as edge: await edge.fetch(...)``"""

    def __init__(self, directory, origin, relay, *, direct=False, policy=None, token=TOKEN):
        self.relay = relay
        (directory / "token").write_text(token)
        (directory / "policies.d").mkdir(exist_ok=True)
        (directory / "policies.d" / "mine.yaml").write_text(yaml.safe_dump(policy or {}))
        self.file = directory / "edged.yaml"
        self.config = {
            "listen": {"proxy": "127.0.0.1:0", "admin": None},
            "lines": [{"name": n, "bind": {"source": s}} for n, s in LINES.items()],
            "relays": [
                {"name": "hk", "url": f"https://127.0.0.1:{relay.port}", "token_file": "token"}
            ],
            "upstreams": [
                {
                    "name": "o",
                    "prefix": "/o",
                    "policy": "mine",
                    "hosts": ["127.0.0.1"],
                    "endpoints": [{"name": "e", "url": origin.url, "direct": direct}],
                }
            ],
            "tls": {"ca_file": "ca.pem"},
            "log": {"access": None, "level": "error"},
        }

    async def __aenter__(self):
        self.file.write_text(yaml.safe_dump(self.config))
        self.daemon = Daemon(load(self.file))
        await self.daemon.start()
        self.port = self.daemon.proxy_addresses[0][1]
        self.client = self.daemon.relays.clients["hk"]
        return self

    async def __aexit__(self, *_):
        await self.daemon.close()

    async def connected(self):
        await until(lambda: all(leg.rtt for leg in self.client.legs.values()))

    def sockets(self, line):
        return self.daemon.dialer.sockets(line)

    async def silence(self, line):
        """Nothing passes on ``line`` any more, and nobody is told."""
        self.sockets(line).silence()

    async def call(self, method, path, headers=(), body=None, *, chunked=False):
        """Send a request; reader and writer, the head's status and fields read."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        fields = [("host", "x"), *headers]
        if chunked:
            fields.append(("transfer-encoding", "chunked"))
        elif body is not None:
            fields.append(("content-length", str(len(body))))
        head = "".join(f"{k}: {v}\r\n" for k, v in fields)
        writer.write(f"{method} /o{path} HTTP/1.1\r\n{head}\r\n".encode())
        if body is not None and not chunked:
            writer.write(body)
        return Answer(reader, writer)

    async def fetch(self, method, path, headers=(), body=None):
        """A whole exchange: status, fields, body, and whether it ended cleanly."""
        answer = await self.call(method, path, headers, body)
        await answer.head()
        body, clean = await answer.read()
        answer.writer.close()
        return answer.status, answer.headers, body, clean


class Answer:
    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def head(self):
        block = await self.reader.readuntil(b"\r\n\r\n")
        line, *fields = block.decode("latin-1").strip().split("\r\n")
        self.status = int(line.split(" ")[1])
        self.headers = {k.lower(): v for k, v in (f.split(": ", 1) for f in fields)}

    async def read(self, most=1 << 60):
        data = bytearray()
        try:
            if "content-length" in self.headers:
                left = int(self.headers["content-length"])
                while len(data) < min(left, most):
                    piece = await self.reader.read(min(65536, left - len(data)))
                    if not piece:
                        return bytes(data), False
                    data += piece
                return bytes(data), len(data) == left
            while len(data) < most:
                size = int(await self.reader.readuntil(b"\r\n"), 16)
                piece = await self.reader.readexactly(size + 2)
                if size == 0:
                    return bytes(data), True
                data += piece[:-2]
        except (asyncio.IncompleteReadError, ConnectionError):
            return bytes(data), False
        return bytes(data), False


@contextlib.asynccontextmanager
async def edge_relay_origin(directory, **more):
    async with (
        Origin() as origin,
        Relay(directory, origin) as relay,
        Edge(directory, origin, relay, **more) as edge,
    ):
        await edge.connected()
        yield edge, relay, origin
