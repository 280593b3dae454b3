"""A response that its server breaks off is a broken body for the client: every time, whatever the
carrier, the framing and the client. Never a short one that looks complete.
"""

import asyncio
import contextlib
import gzip
import http.client
import itertools
import socket
import threading
import zlib

import pytest

from edged.lab.certs import make_certificates
from edged.lab.origin import Origin
from tests.harness.clients import Raw
from tests.harness.h2client import H2Client
from tests.harness.live import Edged
from tests.live.conftest import OwnLoop

ROUNDS = 2
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
_CHUNKED = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
_CODED = gzip.compress(b"all of it " * 1000)
_STREAMED = zlib.compressobj(wbits=31).compress(b"all of it " * 1000) or _CODED[:20]
BREAKS = {
    "length-none": _HEAD + b"Content-Length: 100\r\n\r\n",
    "length-some": _HEAD + b"Content-Length: 100\r\n\r\n" + b"x" * 40,
    "length-all-but-one": _HEAD + b"Content-Length: 100\r\n\r\n" + b"x" * 99,
    "chunk-none": _CHUNKED,
    "chunk-size": _CHUNKED + b"1",
    "chunk-data": _CHUNKED + b"a\r\nxxxxx",
    "chunk-crlf": _CHUNKED + b"5\r\nxxxxx\r",
    "chunk-whole": _CHUNKED + b"5\r\nxxxxx\r\n",
    "chunk-last": _CHUNKED + b"5\r\nxxxxx\r\n0\r\n",
    "chunk-trailer": _CHUNKED + b"5\r\nxxxxx\r\n0\r\nx-sum: 1\r\n",
    "coded": _HEAD
    + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % (len(_CODED) - 9)
    + _CODED[:-9],
    "coded-chunks": _CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    + b"%x\r\n%b\r\n0\r\n\r\n" % (len(_STREAMED), _STREAMED),
}
"""What the server sends before it closes its half. The coded ones are whole as far as HTTP goes."""
TLS_ONLY = {"close": _HEAD + b"Connection: close\r\n\r\n" + b"x" * 40}
"""Without TLS nobody can tell this from a whole one; with it close_notify is missing."""


class HalfClosing:
    """Answers with what ``BREAKS`` says, closes its half, and goes on reading."""

    def __init__(self, context=None):
        self.context = context
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock):
        with contextlib.suppress(OSError), sock:
            stream = sock
            if self.context is not None:
                stream = self.context.wrap_socket(sock, server_side=True)
            seen = b""
            while b"\r\n\r\n" not in seen:
                data = stream.recv(65536)
                if not data:
                    return
                seen += data
            name = seen.split()[1].decode().rpartition("/")[2]
            stream.sendall({**BREAKS, **TLS_ONLY}.get(name, _HEAD + b"Content-Length: 0\r\n\r\n"))
            stream.shutdown(socket.SHUT_WR)  # of the socket: no close_notify
            while stream.recv(65536):
                pass

    def close(self):
        self.listener.close()


@pytest.fixture(scope="module")
def edged(tmp_path_factory):
    directory = tmp_path_factory.mktemp("broken")
    certificates = make_certificates(directory, ["localhost", "127.0.0.1"])
    plain, secure = HalfClosing(), HalfClosing(certificates.server_context(["http/1.1"]))
    with OwnLoop() as loop, contextlib.closing(plain), contextlib.closing(secure):
        origin = loop.do(Origin, certificates)
        loop.call(origin.start())

        def upstream(name, url, protocols):
            endpoint = {"name": "e", "url": url, "protocols": protocols}
            return {"name": name, "prefix": f"/{name}", "endpoints": [endpoint]}

        lab = f"https://localhost:{origin.port}"
        config = {
            "upstreams": [
                upstream("plain", f"http://127.0.0.1:{plain.port}", ["h1"]),
                upstream("secure", f"https://127.0.0.1:{secure.port}", ["h1"]),
                *(upstream(carrier, lab, [carrier]) for carrier in ("h1", "h2", "h3")),
            ],
            "tls": {"ca_file": str(certificates.ca_file)},
            "log": {"access": "access.log"},
        }
        with Edged(config, directory) as running:
            yield running
        loop.call(origin.stop())


def http11(edged, path):
    try:
        answer = edged.fetch(path, timeout=10)
    except (http.client.IncompleteRead, ConnectionError):
        return "broken"
    return f"{answer.status} and {len(answer.body)} bytes"


def http10(edged, path):
    with socket.create_connection(("127.0.0.1", edged.port), 10) as sock:
        sock.sendall(f"GET {path} HTTP/1.0\r\nHost: h\r\n\r\n".encode())
        seen = b""
        try:
            while data := sock.recv(65536):
                seen += data
        except ConnectionResetError:
            return "broken"
    head, _, body = seen.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:") and int(line[15:]) > len(body):
            return "broken"
    return f"{head.split()[1].decode()} and {len(body)} bytes"


def http2(edged, path):
    async def ask():
        raw = Raw(*await asyncio.open_connection("127.0.0.1", edged.port))
        client = H2Client(raw)
        fields = [(":method", "GET"), (":scheme", "http"), (":authority", "h"), (":path", path)]
        client.headers(1, [(n.encode(), v.encode()) for n, v in fields])
        async with asyncio.timeout(10):
            status, body = await client.response(1)
        raw.close()
        return f"{status} and {len(body)} bytes" if 1 in client.ended else "broken"

    return asyncio.run(ask())


CLIENTS = {"HTTP/1.1": http11, "HTTP/1.0": http10, "HTTP/2": http2}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("upstream", "how"),
    [
        *itertools.product(("plain", "secure"), BREAKS),
        *itertools.product(("secure",), TLS_ONLY),
    ],
)
def test_a_server_that_closes_its_half_within_a_response(edged, upstream, how, client):
    told = {CLIENTS[client](edged, f"/{upstream}/{how}") for _ in range(ROUNDS)}
    # An error of edged's own is honest, too: where the end came before the client had a byte.
    assert "broken" in told
    assert all(answer == "broken" or answer.startswith("502 ") for answer in told)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(("size", "framed"), [(0, 0), (1, 1), (5000, 0), (300_000, 1)])
@pytest.mark.parametrize("carrier", ["h1", "h2", "h3"])
def test_a_server_that_aborts_a_response(edged, carrier, size, framed, client):
    path = f"/{carrier}/cut?n={size}&framed={framed}"
    told = {CLIENTS[client](edged, path) for _ in range(ROUNDS)}
    assert told == {"broken"}
