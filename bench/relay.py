"""Measures one relay process: small flows, added latency, bulk, and many streams at once.

    python bench/relay.py [--seconds S] [--streams N] [--megabytes M] [--only PART] [--json]

Origin (nginx, or `bench/sse_origin.py`), relay and client are processes of their own on loopback.
The client is edged's upstream side, as an edge's: one or a few connections to the relay, a POST a
flow, a pulse that tells which flows are done. Besides what was reached stands the relay's CPU time
per flow: it says what one core could do, however busy the machine is.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path as FilePath
from random import Random
from typing import Any

import psutil
import uvloop
import yaml

ROOT = FilePath(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.rig import free_port, nginx, process, rss_bytes, wait_for_port, workspace  # noqa: E402
from edged.dialer import LineDialer  # noqa: E402
from edged.lab.certs import make_certificates  # noqa: E402
from edged.messages import RequestHead  # noqa: E402
from edged.relay import wire  # noqa: E402
from edged.relay.beats import ClientBeat  # noqa: E402
from edged.upstream.h3 import H3Connector  # noqa: E402
from edged.upstream.pool import Pools  # noqa: E402
from edged.upstream.tls import Tls  # noqa: E402
from policies.model import Carrier, Endpoint, Line, Path  # noqa: E402

TOKEN = "0123456789abcdef0123456789abcdef"
BEAT_S = 0.05


class Client:
    """Flows through a relay over one carrier."""

    def __init__(self, port: int, ca: str, carrier: str, target: str) -> None:
        dialer = LineDialer()
        self.pools = Pools(
            dialer,
            lambda sample: None,
            tls=Tls(ca),
            h3=H3Connector(dialer, lambda sample: None, ca_file=ca),
        )
        endpoint = Endpoint(
            "relay:r", "r", "https", "localhost", port, address="127.0.0.1",
            protocols=(Carrier(carrier),),
        )  # fmt: skip
        self.path = Path(Line("loop"), endpoint)
        inner = RequestHead(b"GET", b"http", target.split("//")[1].split("/")[0].encode(), b"/", [])
        _, self.fields = wire.outer_request(inner, TOKEN.encode())
        self.fields.append((wire.ACK, b"0"))
        self.random = Random()
        self.ended: list[bytes] = []
        self.beats = 0

    def open(self, events: Any) -> None:
        self.pools.open(self.path, events, early_data=False)

    def head(self, flow: bytes) -> RequestHead:
        return RequestHead(b"POST", b"https", b"localhost", wire.flow_path(flow), self.fields, 0)

    def close(self) -> None:
        Events.closing = True
        self.pools.close()

    async def pulse(self) -> None:
        """Tell the relay which flows are done."""
        pulse = PulseEvents()
        self.open(pulse)
        await pulse.ready.wait()
        fields = [(wire.AUTHORIZATION, b"Bearer " + TOKEN.encode())]
        head = RequestHead(b"POST", b"https", b"localhost", wire.PULSE, fields, None)
        pulse.stream.send_head(head, end=False)
        while True:
            await asyncio.sleep(BEAT_S)
            ended, self.ended = self.ended, []
            for at in range(0, len(ended) or 1, 1000):
                self.beats += 1
                beat = ClientBeat(self.beats, BEAT_S, {}, ended[at : at + 1000])
                pulse.stream.send_data(beat.encode())


class Events:
    """What an attempt offers to its stream; nothing is done with most of it."""

    stream: Any
    closing = False

    def informational(self, status: int, headers: Any) -> None: ...
    def moved(self, *_: Any) -> None: ...
    def stalled(self, reason: str) -> None: ...
    def pause_body(self) -> None: ...
    def resume_body(self) -> None: ...
    def stream_ready(self, stream: Any) -> None: ...
    def head(self, head: Any) -> None: ...
    def data(self, data: bytes) -> None: ...
    def end(self, trailers: Any) -> None: ...

    def failed(self, failure: Any) -> None:
        if not Events.closing:
            print(f"a flow failed: {failure}", file=sys.stderr, flush=True)
            os._exit(1)


class PulseEvents(Events):
    def __init__(self) -> None:
        self.ready = asyncio.Event()

    def stream_ready(self, stream: Any) -> None:
        self.stream = stream
        self.ready.set()


class Small(Events):
    """One small flow after another."""

    def __init__(self, client: Client, times: list[float], until: float, pace_s: float) -> None:
        self.client, self.times, self.until, self.pace_s = client, times, until, pace_s
        self.loop = asyncio.get_running_loop()
        self.over = self.loop.create_future()

    def start(self) -> None:
        self.flow = self.client.random.randbytes(16)
        self.began = time.perf_counter()
        self.client.open(self)

    def stream_ready(self, stream: Any) -> None:
        stream.send_head(self.client.head(self.flow), end=True)

    def head(self, head: Any) -> None:
        if head.status != 200:
            raise SystemExit(f"the relay says {head.status}: {head.headers}")

    def end(self, trailers: Any) -> None:
        now = time.perf_counter()
        self.times.append(now - self.began)
        self.client.ended.append(self.flow)
        if now > self.until:
            self.over.set_result(None)
        elif self.pace_s:
            self.loop.call_later(self.pace_s, self.start)
        else:
            self.loop.call_soon(self.start)


async def small(arguments: argparse.Namespace) -> dict[str, Any]:
    """Flows of 1 KB, ``concurrency`` at a time."""
    client = Client(arguments.port, arguments.ca, arguments.carrier, arguments.target)
    pulse = asyncio.ensure_future(client.pulse())
    times: list[float] = []
    began = time.perf_counter()
    clients = [
        Small(client, times, began + arguments.seconds, arguments.pace)
        for _ in range(arguments.concurrency)
    ]
    for one in clients:
        one.start()
        await asyncio.sleep(0)
    await asyncio.gather(*(one.over for one in clients))
    elapsed = time.perf_counter() - began
    await asyncio.sleep(4 * BEAT_S)
    pulse.cancel()
    client.close()
    times.sort()
    return {
        "flows": len(times),
        "flows_per_s": len(times) / elapsed,
        "p50_ms": 1e3 * times[len(times) // 2],
        "p99_ms": 1e3 * times[int(len(times) * 0.99)],
    }


class Bulk(Events):
    def __init__(self, client: Client) -> None:
        self.client = client
        self.size = 0
        self.over = asyncio.get_running_loop().create_future()
        self.flow = client.random.randbytes(16)

    def stream_ready(self, stream: Any) -> None:
        self.client.fields = [f for f in self.client.fields if f[0] != wire.ACK]
        stream.send_head(self.client.head(self.flow), end=True)

    def data(self, data: bytes) -> None:
        self.size += len(data)

    def end(self, trailers: Any) -> None:
        self.over.set_result(None)


async def bulk(arguments: argparse.Namespace) -> dict[str, Any]:
    """One large download."""
    client = Client(arguments.port, arguments.ca, arguments.carrier, arguments.target)
    one = Bulk(client)
    began = time.perf_counter()
    client.open(one)
    await one.over
    elapsed = time.perf_counter() - began
    client.close()
    return {"megabytes": one.size / 1e6, "mbit_s": one.size * 8e-6 / elapsed}


class Stream(Events):
    def __init__(self, client: Client, delays: deque[float], counts: list[int], at: int) -> None:
        self.client, self.delays, self.counts, self.at = client, delays, counts, at
        self.flow = client.random.randbytes(16)
        self.rest = b""
        self.next = 0

    def stream_ready(self, stream: Any) -> None:
        self.stream = stream
        stream.send_head(self.client.head(self.flow), end=True)

    def data(self, data: bytes) -> None:
        now = time.monotonic_ns()
        *events, self.rest = (self.rest + data).split(b"\n\n")
        for event in events:
            number, sent = event.split()[1:3]
            if self.next and int(number) != self.next:
                raise SystemExit(f"event {number} instead of {self.next}")
            self.next = int(number) + 1
            self.delays.append((now - int(sent)) * 1e-6)
        self.counts[self.at] += len(events)


async def streams(arguments: argparse.Namespace) -> dict[str, Any]:
    """Many streams of server-sent events at once; the client does not acknowledge in between."""
    client = Client(arguments.port, arguments.ca, arguments.carrier, arguments.target)
    client.fields = [field for field in client.fields if field[0] != wire.ACK]
    delays: deque[float] = deque(maxlen=200_000)
    counts = [0] * arguments.concurrency
    all_streams = [Stream(client, delays, counts, n) for n in range(arguments.concurrency)]
    for one in all_streams:
        client.open(one)
        await asyncio.sleep(0.001)
    end = time.monotonic() + 60
    while not all(counts):
        await asyncio.sleep(0.1)
        if time.monotonic() > end:
            raise SystemExit(f"{sum(map(bool, counts))} of {len(counts)} streams began")
    delays.clear()
    before = sum(counts)
    print(json.dumps({"ready": True}), flush=True)
    await asyncio.sleep(arguments.seconds)
    seen, ordered = sum(counts) - before, sorted(delays)
    client.close()
    return {
        "events_per_s": seen / arguments.seconds,
        "delay_p50_ms": ordered[len(ordered) // 2],
        "delay_p99_ms": ordered[int(len(ordered) * 0.99)],
    }


PARTS = {"small": small, "bulk": bulk, "streams": streams}


class Bench:
    """A relay, and clients that load it."""

    def __init__(self, directory: FilePath, allowed: list[int]) -> None:
        self.directory = directory
        certificates = make_certificates(directory, ["localhost", "127.0.0.1"])
        self.ca = str(certificates.ca_file)
        self.port = free_port()
        self.admin = free_port()
        self.file = directory / "relay.yaml"
        config = {
            "listen": {"relay": f"127.0.0.1:{self.port}", "admin": f"127.0.0.1:{self.admin}"},
            "certificate": {"chain_file": "lab.pem", "key_file": "lab.key"},
            "clients": [
                {
                    "name": "bench",
                    "token_sha256": hashlib.sha256(TOKEN.encode()).hexdigest(),
                    "allow": [f"127.0.0.1:{port}" for port in allowed],
                }
            ],
            "log": {"access": None, "level": "warning"},
        }
        self.file.write_text(yaml.safe_dump(config))

    def run(self, part: str, carrier: str, target: str, **options: Any) -> dict[str, Any]:
        """One measurement in a process of its own, beside the relay's CPU and memory."""
        given = {"part": part, "carrier": carrier, "target": target, "port": self.port}
        given |= {"ca": self.ca, **options}
        command = [sys.executable, __file__, "--client", json.dumps(given)]
        before = _cpu_s(self.pid)
        done = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=os.environ)
        assert done.stdout is not None
        result: dict[str, Any] = {}
        for line in done.stdout:
            result = json.loads(line)
            if result.pop("ready", None):
                before = _cpu_s(self.pid)
        if done.wait() or not result:
            raise SystemExit(f"{part} over {carrier} failed")
        used = _cpu_s(self.pid) - before
        result["relay_rss_mb"] = rss_bytes(self.pid) / 1e6
        if "flows" in result:
            result["cpu_us_per_flow"] = used / result["flows"] * 1e6
        elif "megabytes" in result:
            result["cpu_ms_per_mb"] = used / result["megabytes"] * 1e3
        else:
            result["cpu_share"] = used / options["seconds"]
        return result

    pid = 0


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def measure(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Everything, in one run."""
    results: dict[str, dict[str, Any]] = {}

    def note(name: str, result: dict[str, Any]) -> None:
        results[name] = result
        if not arguments.json:
            said = ", ".join(f"{k} {v:,.2f}" for k, v in result.items())
            print(f"{name:<18} {said}", flush=True)

    with workspace() as directory:
        sse = free_port()
        big = directory / "big"
        big.mkdir()
        directory.chmod(0o755)  # nginx's workers are somebody else
        with open(big / "index.html", "wb") as file:
            file.write(Random(1).randbytes(1 << 20) * arguments.megabytes)
        with nginx(directory) as port, nginx_files(directory, big) as files:
            bench = Bench(directory, [port, files, sse])
            log = directory / "relay.log"
            relay = [sys.executable, "-m", "edged", "relay", "-c", str(bench.file)]
            origin = [sys.executable, "bench/sse_origin.py", str(sse), str(arguments.events_per_s)]
            with process(relay, log=log) as child, process(origin):
                wait_for_port(bench.admin)
                wait_for_port(sse)
                bench.pid = child.pid
                small_target, seconds = f"http://127.0.0.1:{port}/", arguments.seconds
                for carrier in ("h1", "h2", "h3"):
                    if arguments.only in (None, "small"):
                        load = {"concurrency": 64, "seconds": seconds, "pace": 0}
                        note(f"small {carrier}", bench.run("small", carrier, small_target, **load))
                    if arguments.only in (None, "latency"):
                        load = {"concurrency": 4, "seconds": seconds, "pace": 0.02}
                        paced = bench.run("small", carrier, small_target, **load)
                        note(f"latency {carrier}", paced)
                    if arguments.only in (None, "bulk"):
                        target = f"http://127.0.0.1:{files}/"
                        note(f"bulk {carrier}", bench.run("bulk", carrier, target))
                    if arguments.only in (None, "streams") and carrier != "h1":
                        load = {"concurrency": arguments.streams, "seconds": seconds}
                        target = f"http://127.0.0.1:{sse}/"
                        note(f"streams {carrier}", bench.run("streams", carrier, target, **load))
            if arguments.show_log:
                print(log.read_text())
    return results


def nginx_files(directory: FilePath, root: FilePath) -> Any:
    """An nginx that serves files."""
    return nginx(directory, tls=f"location = / {{ root {root}; index index.html; }} "
                 f"location = /index.html {{ root {root}; }}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--events-per-s", type=int, default=2)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--only", choices=("small", "latency", "bulk", "streams"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--show-log", action="store_true")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        given = argparse.Namespace(**json.loads(arguments.client))
        print(json.dumps(uvloop.run(PARTS[given.part](given))))
        return
    results = measure(arguments)
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
