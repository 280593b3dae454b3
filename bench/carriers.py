"""What each carrier makes of a line that loses packets, and what edged chooses.

    python bench/carriers.py [--rtt-ms 150] [--loss 0.02] [--rate 20] [--seconds 40] [--pools 4]

Needs root (network namespaces, see tests/netns). One lossy line, a Caddy in front of an origin, and
the pools of the daemon without the daemon: no hedges, no second line, nothing but carriers. Several
pools run side by side, so that a minute gives thousands of requests. ``h2 x1`` and ``h1`` know
nothing of the line's loss; the others are told, as the daemon's probes would tell them.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import uvloop

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edged.dialer import LineDialer
from edged.messages import Headers, RequestHead, ResponseHead
from edged.upstream.base import Stream
from edged.upstream.h3 import H3Connector
from edged.upstream.pool import Pools
from edged.upstream.tls import Tls
from policies.model import Carrier, Endpoint, Estimate, Failure, Line, RequestClass
from policies.model import Path as LinePath
from tests.netns.lab import LineSpec, missing
from tests.netns.site import CADDY_PORT, Site

H1, H2, H3 = Carrier.H1, Carrier.H2, Carrier.H3
UPLOAD_BYTES = 200_000
UPLOAD_EVERY_S = 2.0


class Case(NamedTuple):
    name: str
    protocols: tuple[Carrier, ...]
    told: bool
    """The pools know what the line loses."""


CASES = (
    Case("h1", (H1,), False),
    Case("h2 x1", (H2,), False),
    Case("h2 spread", (H2,), True),
    Case("h3", (H3,), True),
    Case("chosen", (H3, H2, H1), True),
)


class Tally:
    """What came of one case."""

    def __init__(self) -> None:
        self.latencies_s: list[float] = []
        self.carriers: Counter[Carrier] = Counter()
        self.failures: list[Failure] = []

    def row(self, rtt_s: float) -> str:
        found = sorted(self.latencies_s)

        def ms(share: float) -> str:
            return f"{found[min(len(found) - 1, int(share * len(found)))] * 1000:.0f}"

        late = sum(s > 1.15 * rtt_s for s in found) / len(found)
        mean = f"{statistics.mean(found) * 1000:.0f}"
        used = ", ".join(f"{c.value} {n / len(found):.0%}" for c, n in self.carriers.most_common())
        cells = (ms(0.5), mean, ms(0.95), ms(0.99), ms(0.999), f"{late:.1%}", used)
        return " | ".join((str(len(found)), str(len(self.failures)), *cells))


class Request:
    """One request; implements `StreamEvents`."""

    def __init__(self, pools: Pools, path: LinePath, body: bytes, tally: Tally) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pools, self._path, self._tally = pools, path, tally
        self._body = memoryview(body)
        self._class = RequestClass.of(len(body))
        self._paused = False
        self._stream: Stream | None = None
        self._begun = self._sent = monotonic()
        early = not body
        pools.open(path, self, early_data=early, request_class=self._class)

    def stream_ready(self, stream: Stream) -> None:
        self._stream, self._sent = stream, monotonic()
        size = len(self._body)
        method = b"POST" if size else b"GET"
        fields = [(b"user-agent", b"bench"), (b"accept", b"*/*")]
        head = RequestHead(method, b"https", b"e1.lab.test", b"/echo", fields, size)
        stream.send_head(head, end=not size)
        if size:
            self.resume_body()

    def resume_body(self) -> None:
        self._paused = False
        stream = self._stream
        while stream is not None and self._body and not self._paused:
            piece, self._body = self._body[:65536], self._body[65536:]
            stream.send_data(bytes(piece))
            if not self._body:
                stream.send_end()

    def pause_body(self) -> None:
        self._paused = True

    def moved(self, path: LinePath) -> None: ...

    def stalled(self, reason: str) -> None: ...

    def informational(self, status: int, headers: Headers) -> None: ...

    def data(self, data: bytes) -> None: ...

    def head(self, head: ResponseHead) -> None:
        assert self._stream is not None
        carrier = self._stream.carrier
        self._tally.carriers[carrier] += 1
        self._pools.answered(self._path, carrier, self._class, monotonic() - self._sent)

    def end(self, trailers: Headers | None) -> None:
        self._tally.latencies_s.append(monotonic() - self._begun)
        self.done.set_result(None)

    def failed(self, failure: Failure) -> None:
        self._tally.failures.append(failure)
        self.done.set_result(None)


async def load(
    case: Case, site: Site, options: argparse.Namespace, body: bytes, seed: int, tally: Tally
) -> None:
    """One pool's requests, at a fixed rate, the first ones not counted."""
    rtt_s = options.rtt_ms / 1000
    known = Estimate(rtt_s=rtt_s, rttvar_s=0.004, loss_least=options.loss)
    ca_file = str(site.certificates.ca_file)
    dialer = LineDialer()
    pools = Pools(
        dialer,
        lambda sample: None,
        tls=Tls(ca_file),
        h3=H3Connector(dialer, lambda sample: None, ca_file=ca_file),
        connect_timeout=lambda upstream: 10.0,
        estimate=lambda path: known if case.told else None,
    )
    address = site.lab.addresses[0]
    endpoint = Endpoint(
        "u", "e1", "https", "e1.lab.test", CADDY_PORT, address=address,
        protocols=case.protocols, learns_h3=False,
    )  # fmt: skip
    path = LinePath(Line("a", source=site.lab.source("a")), endpoint)
    for _ in range(2):
        await Request(pools, path, body, Tally()).done
    period_s = UPLOAD_EVERY_S if body else 1 / options.rate
    begun = monotonic() + random.Random(seed).uniform(0, period_s)
    waiting = []
    for number in range(int(options.seconds / period_s)):
        await asyncio.sleep(begun + number * period_s - monotonic())
        waiting.append(Request(pools, path, body, tally).done)
    async with asyncio.timeout(30):
        await asyncio.gather(*waiting)
    pools.close()


async def measure(case: Case, site: Site, options: argparse.Namespace, body: bytes) -> Tally:
    tally = Tally()
    seeds = range(options.pools)
    await asyncio.gather(*(load(case, site, options, body, seed, tally) for seed in seeds))
    return tally


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rtt-ms", type=float, default=150.0)
    parser.add_argument("--loss", type=float, default=0.02, help="of packets, each way")
    parser.add_argument("--rate", type=float, default=20.0, help="requests/s of each pool")
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--pools", type=int, default=4, help="side by side")
    options = parser.parse_args(arguments)
    if reason := missing():
        sys.exit(f"no namespaces with lines: {reason}")
    line = LineSpec("a", rtt_s=options.rtt_ms / 1000, loss=options.loss)
    upload = random.Random(5).randbytes(UPLOAD_BYTES)
    print("| | requests | failed | median ms | mean | p95 | p99 | p99.9 | late | carriers |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as directory:
        site = Site(Path(directory), lines=(line,), caddy=True, edged=False)
        with site, site.lab.edge:
            for title, body in (("GET", b""), ("200 KB POST", upload)):
                for case in CASES:
                    tally = uvloop.run(measure(case, site, options, body))
                    print(f"| {title}, {case.name} | {tally.row(line.rtt_s)} |", flush=True)


if __name__ == "__main__":
    main()
