"""Requests/s and CPU per request of the upstream half: pools and carriers, without a client side.

    python bench/upstream.py [--seconds 2] [--concurrency 64] [--profile h2-plain]

64 requests are always open; each answer (1 KB) starts the next one. The server is nginx with one
worker on loopback, so that the rate is bounded by whichever is slower; the CPU time of this process
per request is the figure that counts. Both HTTP/2 engines run.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path as File

import uvloop

sys.path.insert(0, str(File(__file__).resolve().parent.parent))

from edged.messages import Headers, RequestHead, ResponseHead
from edged.upstream.base import Stream
from edged.upstream.engines import FAST, PURE
from edged.upstream.pool import Pools
from edged.upstream.tls import Tls
from policies.model import Carrier, Failure, Path
from tests.edged.upstream.real_servers import Certificate, nginx
from tests.edged.upstream.support import LoopbackDialer, path_to

TARGET_US = {"h1-plain": 20.0, "h2-plain-fast": 80.0, "h2-tls-fast": 80.0}
BODY = "location / { return 200 '%s'; }" % ("x" * 1024)
FIELDS: Headers = [
    (b"user-agent", b"bench/1"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"zstd, br, gzip"),
    (b"authorization", b"Bearer 0123456789abcdef0123456789abcdef"),
]


class Client:
    """One of the concurrent requesters: a `StreamEvents` without a task."""

    __slots__ = ("count", "failures", "head_", "path", "pools", "stop_at")

    def __init__(self, pools: Pools, path: Path, stop_at: float) -> None:
        scheme = path.endpoint.scheme.encode()
        self.pools = pools
        self.path = path
        self.stop_at = stop_at
        self.head_ = RequestHead(b"GET", scheme, b"localhost", b"/v1/models", FIELDS)
        self.count = 0
        self.failures = 0

    def start(self) -> None:
        self.pools.open(self.path, self, early_data=True)

    def stream_ready(self, stream: Stream) -> None:
        stream.send_head(self.head_, end=True)

    def informational(self, status: int, headers: Headers) -> None: ...

    def head(self, head: ResponseHead) -> None: ...

    def data(self, data: bytes) -> None: ...

    def pause_body(self) -> None: ...

    def resume_body(self) -> None: ...

    def end(self, trailers: Headers | None) -> None:
        self.count += 1
        if time.monotonic() < self.stop_at:
            self.start()  # on another connection: an h1 one is free again only after this call

    def failed(self, failure: Failure) -> None:
        self.failures += 1


@dataclass
class Result:
    name: str
    per_s: float
    cpu_us: float
    failures: int


async def run(
    name: str, path: Path, tls: Tls | None, engine: str, seconds: float, concurrency: int
) -> Result:
    pools = Pools(LoopbackDialer(), lambda sample: None, tls=tls, engine=engine)
    warm = Client(pools, path, time.monotonic() + 0.3)
    for _ in range(concurrency):
        warm.start()
    await asyncio.sleep(0.5)
    client = Client(pools, path, time.monotonic() + seconds)
    cpu, wall = time.process_time(), time.monotonic()
    for _ in range(concurrency):
        client.start()
    await asyncio.sleep(seconds)
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    count = client.count
    await asyncio.sleep(0.1)
    pools.close()
    return Result(name, count / wall, cpu / max(count, 1) * 1e6, client.failures)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--profile", metavar="NAME", help="profile this row only")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = File(name)
        certificate = Certificate.make(directory)
        tls = Tls(certificate.ca_file)
        h1, h2 = (Carrier.H1,), (Carrier.H2,)
        rows = []
        for title, secure, carrier in (
            ("h1-plain", False, h1),
            ("h1-tls", True, h1),
            ("h2-plain", False, h2),
            ("h2-tls", True, h2),
        ):
            for engine in (FAST,) if carrier is h1 else (FAST, PURE):
                label = title if carrier is h1 else f"{title}-{engine}"
                if arguments.profile and arguments.profile != label:
                    continue
                with nginx(
                    directory, certificate if secure else None, BODY, h2=carrier is h2
                ) as port:
                    path = path_to(port, scheme="https" if secure else "http", protocols=carrier)
                    profiler = cProfile.Profile() if arguments.profile else None
                    if profiler:
                        profiler.enable()
                    rows.append(
                        uvloop.run(
                            run(
                                label,
                                path,
                                tls if secure else None,
                                engine,
                                arguments.seconds,
                                arguments.concurrency,
                            )
                        )
                    )
                    if profiler:
                        profiler.disable()
                        pstats.Stats(profiler).sort_stats("tottime").print_stats(30)
    print(f"{'':16}{'requests/s':>12}{'CPU us/request':>16}{'target':>8}")
    for row in rows:
        target = TARGET_US.get(row.name)
        print(
            f"{row.name:16}{row.per_s:12,.0f}{row.cpu_us:16.1f}{target or '':>8}"
            + (f"  {row.failures} failed" if row.failures else "")
        )
    return 1 if any(row.failures for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
