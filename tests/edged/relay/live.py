"""A relay and an origin on loopback, in one loop, and clients that break off where they like."""

import asyncio
import contextlib
import errno
import hashlib
import os
import random
import ssl

import trustme
import uvloop
import yaml

from edged.relay.config import load
from edged.relay.daemon import RelayDaemon
from tests.harness.h3client import connect

TOKEN = "0123456789abcdef0123456789abcdef"
OTHER = "fedcba9876543210fedcba9876543210"
FLOW = "/.well-known/edged/flow/"
PULSE = "/.well-known/edged/pulse"


def run(scenario, limit_s=60):
    """Run ``scenario`` on the loop that the daemon has, and fail for what it would only log."""
    logged = []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
        await asyncio.wait_for(scenario, limit_s)

    uvloop.run(main())
    assert not logged, logged


def sha(data):
    return hashlib.sha256(data).hexdigest()


def flow_id():
    return os.urandom(16).hex()


def content(seed, size):
    return random.Random(seed).randbytes(size)


class Origin:
    """An HTTP/1.1 server; ``executed`` counts requests by their x-id."""

    def __init__(self):
        self.executed = {}
        self.connections = 0
        self.open = 0
        self.go_on = asyncio.Event()
        self.heads = []
        self.sent = 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.go_on.set()
        self._server.close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader, writer):
        self.connections += 1
        self.open += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, *fields = head.decode("latin-1").strip().split("\r\n")
                method, path, _ = line.split(" ")
                headers = {k.lower(): v for k, v in (f.split(": ", 1) for f in fields)}
                self.heads.append((method, path, headers))
                name = headers.get("x-id")
                if name:
                    self.executed[name] = self.executed.get(name, 0) + 1
                what, *args = (path.strip("/") or "bytes/0/1").split("/")
                await getattr(self, f"do_{what}")(reader, writer, headers, *args)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def _send(self, writer, data):
        writer.write(data)
        self.sent += len(data)
        await writer.drain()

    async def _body(self, reader, headers):
        """The request body's hash and size."""
        digest, size = hashlib.sha256(), 0
        if "transfer-encoding" in headers:
            while n := int(await reader.readuntil(b"\r\n"), 16):
                piece = await reader.readexactly(n)
                await reader.readexactly(2)
                digest.update(piece)
                size += n
            await reader.readuntil(b"\r\n")
        else:
            left = int(headers.get("content-length", 0))
            while left:
                piece = await reader.read(min(left, 65536))
                if not piece:
                    raise ConnectionError
                digest.update(piece)
                size += len(piece)
                left -= len(piece)
        return digest.hexdigest(), size

    async def do_bytes(self, reader, writer, headers, seed, size):
        """So many bytes, with a length."""
        await self._body(reader, headers)
        data = content(int(seed), int(size))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(data))
        for at in range(0, len(data), 65536):
            await self._send(writer, data[at : at + 65536])

    async def do_stream(self, reader, writer, headers, seed, size):
        """The hash of the request's body, then so many bytes, in chunks."""
        digest, _ = await self._body(reader, headers)
        data = content(int(seed), int(size))
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n")
        writer.write(b"x-hash: %s\r\n\r\n" % digest.encode())
        for at in range(0, len(data), 30000):
            piece = data[at : at + 30000]
            await self._send(writer, b"%x\r\n%b\r\n" % (len(piece), piece))
        await self._send(writer, b"0\r\nx-sum: 1\r\n\r\n")

    async def do_hash(self, reader, writer, headers):
        digest, size = await self._body(reader, headers)
        said = f"{digest} {size}".encode()
        await self._send(
            writer, b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(said) + said
        )

    async def do_endless(self, reader, writer, headers):
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            await self._send(writer, b"10000\r\n" + bytes(65536) + b"\r\n")

    async def do_cut(self, reader, writer, headers, size, at):
        await self._send(writer, f"HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n".encode())
        await self._send(writer, bytes(int(at)))
        raise ConnectionError

    async def do_cutchunked(self, reader, writer, headers, at):
        await self._send(writer, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        await self._send(writer, b"%x\r\n%b\r\n" % (int(at), bytes(int(at))))
        raise ConnectionError

    async def do_redirect(self, reader, writer, headers, port=None):
        to = b"http://169.254.169.254/latest/meta-data"
        if port is not None:
            to = b"http://127.0.0.1:%d/hash" % int(port)
        await self._send(
            writer, b"HTTP/1.1 302 Found\r\nlocation: %s\r\ncontent-length: 0\r\n\r\n" % to
        )

    async def do_words(self, reader, writer, headers, size):
        """Text of so many bytes."""
        data = (b"word " * (int(size) // 5 + 1))[: int(size)]
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n"
        await self._send(writer, head % len(data) + data)

    async def do_events(self, reader, writer, headers):
        """Server-sent events, each when ``go_on`` is set."""
        await self._body(reader, headers)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
        await self._send(writer, head + b"transfer-encoding: chunked\r\n\r\n")
        for n in range(50):
            await self.go_on.wait()
            self.go_on.clear()
            event = b'data: {"id":"chatcmpl-1","choices":[{"delta":{"content":"w%d"}}]}\n\n' % n
            await self._send(writer, b"%x\r\n%b\r\n" % (len(event), event))
        await self._send(writer, b"0\r\n\r\n")

    async def do_poll(self, reader, writer, headers):
        await self.go_on.wait()
        await self._send(writer, b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnews")

    async def do_ws(self, reader, writer, headers):
        await self._send(
            writer,
            b"HTTP/1.1 101 Switching Protocols\r\n"
            b"connection: upgrade\r\nupgrade: websocket\r\n\r\n",
        )
        while data := await reader.read(65536):
            await self._send(writer, data)
        raise ConnectionError


class Relay:
    """``async with Relay(tmp_path, origin) as relay: ...``"""

    def __init__(self, directory, origin, *, allow=None, more=None, **config):
        self.directory = directory
        self.ca = trustme.CA()
        self.ca.cert_pem.write_to_path(str(directory / "ca.pem"))
        self.issue()
        allow = allow or [f"127.0.0.1:{origin.port}"]
        digest = hashlib.sha256
        self.config = {
            "node": {"name": "hk-1"},
            "listen": {"relay": "127.0.0.1:0", "admin": None},
            "certificate": {"chain_file": "chain.pem", "key_file": "key.pem"},
            "clients": [
                {
                    "name": name,
                    "token_sha256": digest(token.encode()).hexdigest(),
                    "allow": allow,
                    **(more or {}).get(name, {}),
                }
                for name, token in (("one", TOKEN), ("two", OTHER))
            ],
            "log": {"access": None, "level": "error"},
            **config,
        }
        self.file = directory / "relay.yaml"

    def issue(self):
        leaf = self.ca.issue_cert("localhost", "127.0.0.1")
        (self.directory / "chain.pem").write_bytes(
            b"".join(p.bytes() for p in leaf.cert_chain_pems)
        )
        leaf.private_key_pem.write_to_path(str(self.directory / "key.pem"))

    def write(self):
        self.file.write_text(yaml.safe_dump(self.config))

    async def __aenter__(self):
        self.write()
        for left in range(5, -1, -1):
            self.daemon = RelayDaemon(load(self.file))
            try:
                await self.daemon.start()
                break
            except OSError as error:  # the port that TCP was given is taken for UDP
                if error.errno != errno.EADDRINUSE or not left:
                    raise
        self.port = self.daemon.proxy_addresses[0][1]
        return self

    async def __aexit__(self, *_):
        await self.daemon.close()
        assert self.daemon.flows.count == 0
        assert self.daemon.flows.account.used_bytes == 0
        assert self.daemon.proxy.hub.requests_open == 0

    @property
    def flows(self):
        return self.daemon.flows

    @property
    def url(self):
        return f"https://127.0.0.1:{self.port}{FLOW}"

    async def curl(self, *arguments, data=b""):
        """Run curl; its exit status, standard output and what -w said (if asked)."""
        process = await asyncio.create_subprocess_exec(
            "curl",
            "-sS",
            "--cacert",
            str(self.directory / "ca.pem"),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, error = await process.communicate(data)
        return process.returncode, out, error.decode()

    async def call(self, method, path, headers=(), body=None, *, token=TOKEN, length=...):
        """Send a request on an HTTP/1.1 connection of its own; the `Call`."""
        context = ssl.create_default_context(cafile=str(self.directory / "ca.pem"))
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=context)
        fields = [("host", "relay"), *headers]
        if token:
            fields.append(("proxy-authorization", f"Bearer {token}"))
        if length is ...:
            length = None if body is None else len(body)
        if length == "chunked":
            fields.append(("transfer-encoding", "chunked"))
        elif length is not None:
            fields.append(("content-length", str(length)))
        head = "".join(f"{k}: {v}\r\n" for k, v in fields)
        writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + (body or b""))
        return Call(reader, writer)


class Call:
    """One request on a connection of its own."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.status = None
        self.headers = {}

    async def head(self):
        """Read the final head."""
        while True:
            block = await self.reader.readuntil(b"\r\n\r\n")
            line, *fields = block.decode("latin-1").strip().split("\r\n")
            self.status = int(line.split(" ")[1])
            self.headers = {k.lower(): v for k, v in (f.split(": ", 1) for f in fields)}
            if self.status >= 200:
                return self

    async def read(self, most=1 << 60):
        """Up to ``most`` bytes of the body, and whether it ended cleanly."""
        data = bytearray()
        try:
            if "content-length" in self.headers:
                left = int(self.headers["content-length"])
                while len(data) < min(left, most):
                    piece = await self.reader.read(min(65536, left - len(data), most - len(data)))
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
            pass
        return bytes(data), False

    async def answer(self):
        """The whole response's body."""
        await self.head()
        body, clean = await self.read()
        self.hang_up()
        assert clean or self.status in (204, 304)
        return body

    def hang_up(self):
        """Break off."""
        self.writer.transport.abort()


async def until(condition, limit_s=15):
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def relay_and_origin(directory, **config):
    async with Origin() as origin, Relay(directory, origin, **config) as relay:
        yield relay, origin


class H3Calls:
    """Calls as `Relay.call` makes them, over HTTP/3: streams of one connection until it breaks."""

    def __init__(self, relay, engine="aioquic"):
        self.relay, self.engine = relay, engine
        self._context = self._connection = None

    async def call(self, method, path, headers=(), body=None, *, token=TOKEN, length=...):
        if self._connection is None:
            self._context = connect(
                self.relay.port, ca=str(self.relay.directory / "ca.pem"), engine=self.engine
            )
            self._connection = await self._context.__aenter__()
        fields = [*headers, ("proxy-authorization", f"Bearer {token}")]
        if length is ...:
            length = None if body is None else len(body)
        if length is not None:
            fields.append(("content-length", str(length)))
        whole = length is None or length == len(body or b"")
        return H3Call(self._connection.request(method, path, fields, body, end=whole))

    async def hang_up(self):
        """Break the connection off."""
        if self._connection is not None:
            self._connection = None
            await self._context.__aexit__(None, None, None)


class H3Call:
    def __init__(self, reply):
        self.reply = reply
        self.writer = self
        self.taken = 0

    async def drain(self):
        await asyncio.sleep(0)

    @property
    def status(self):
        return self.reply.status

    @property
    def headers(self):
        return {k.decode(): v.decode() for k, v in self.reply.headers.items()}

    async def head(self):
        await self.reply.until(lambda r: r.status or r.ended)
        if not self.reply.status:
            raise ConnectionError
        return self

    async def read(self, most=1 << 60):
        await self.reply.until(lambda r: r.ended or len(r.body) >= most)
        clean = self.reply.ended == "end" and len(self.reply.body) <= most
        return bytes(self.reply.body[:most]), clean

    def hang_up(self):
        if self.reply.ended is None:
            self.reply.reset()
