"""Many token streams and many idle clients through one edged process.

    python bench/streams.py [--streams 2000] [--seconds 20] [--idle 5000] [--json]

Streams: each event carries its sequence number and the time it left the origin; every one must
arrive once, in order. The delay is compared with the same load taken directly from the origin in
the same run: the difference of the percentiles is what edged adds. Idle clients: the resident
memory of the process before and after so many keep-alive connections did one request each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import resource
import time
from typing import Any, cast

import uvloop
from proxy import edged
from rig import PYTHON, ROOT, free_port, nginx, process, rss_bytes, wait_for_port, workspace

_EVENT = re.compile(rb"data: (\d+) (\d+)\n\n")


class Reader(asyncio.Protocol):
    """One stream: checks the order, collects delays."""

    def __init__(self, delays: list[int], faults: list[str]) -> None:
        self.delays, self.faults = delays, faults
        self.next, self.counting, self.tail = 1, False, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by type
        transport.write(b"GET /sse HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        data = self.tail + data
        end = 0
        for match in _EVENT.finditer(data):
            if int(match[1]) != self.next:
                self.faults.append(f"event {int(match[1])} came, {self.next} was due")
            self.next = int(match[1]) + 1
            if self.counting:
                self.delays.append(now - int(match[2]))
            end = match.end()
        self.tail = data[end:]

    def connection_lost(self, exc: Exception | None) -> None:
        if self.counting:
            self.faults.append(f"a stream ended: {exc}")


async def listen(port: int, streams: int, seconds: float) -> tuple[list[int], list[str]]:
    """Open ``streams``, let them settle, and collect for ``seconds``."""
    loop = asyncio.get_running_loop()
    delays: list[int] = []
    faults: list[str] = []
    readers = []
    for _ in range(streams):
        _, reader = await loop.create_connection(lambda: Reader(delays, faults), "127.0.0.1", port)
        readers.append(reader)
    await asyncio.sleep(3)
    for reader in readers:
        reader.counting = True
    await asyncio.sleep(seconds)
    silent = sum(1 for reader in readers if reader.next < 10)
    if silent:
        faults.append(f"{silent} streams were silent")
    for reader in readers:
        reader.counting = False
        reader.transport.abort()
    await asyncio.sleep(0.2)
    return delays, faults


def percentile(values: list[int], share: float) -> float:
    """In ms, of nanoseconds."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] / 1e6


def measure_streams(streams: int, seconds: float, events_per_s: float) -> dict[str, Any]:
    """Through edged and directly, in one run."""
    origin = free_port()
    script = str(ROOT / "bench" / "sse_origin.py")
    result: dict[str, Any] = {"streams": streams, "events_per_s": events_per_s}
    with (
        workspace() as directory,
        process([PYTHON, script, str(origin), str(events_per_s)]),
        edged(directory, f"http://127.0.0.1:{origin}", "h1") as (port, pid),
    ):
        wait_for_port(origin)
        before = rss_bytes(pid)
        for name, target in (("direct", origin), ("edged", port)):
            delays, faults = uvloop.run(listen(target, streams, seconds))
            result[name] = {
                "events": len(delays),
                "faults": len(faults),
                "first_fault": faults[0] if faults else None,
                "p50_ms": percentile(delays, 0.5),
                "p99_ms": percentile(delays, 0.99),
                "max_ms": percentile(delays, 1.0),
            }
            if name == "edged":
                result["rss_mib"] = rss_bytes(pid) / 2**20
                result["rss_before_mib"] = before / 2**20
    result["added_p99_ms"] = result["edged"]["p99_ms"] - result["direct"]["p99_ms"]
    return result


async def _park(port: int, clients: int) -> list[asyncio.StreamWriter]:
    writers = []
    for _ in range(clients):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writers.append(writer)
    return writers


def measure_idle(clients: int) -> dict[str, Any]:
    """Memory per idle keep-alive client, in bytes of resident memory."""

    async def run(port: int, pid: int) -> dict[str, Any]:
        warm = await _park(port, 200)
        before = rss_bytes(pid)
        parked = await _park(port, clients)
        await asyncio.sleep(1)
        after = rss_bytes(pid)
        for writer in warm + parked:
            writer.transport.abort()
        return {"clients": clients, "bytes_per_client": (after - before) / clients}

    with (
        workspace() as directory,
        nginx(directory) as origin,
        edged(directory, f"http://127.0.0.1:{origin}", "h1") as (port, pid),
    ):
        return uvloop.run(run(port, pid))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--idle", type=int, default=5000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    streams = measure_streams(arguments.streams, arguments.seconds, arguments.rate)
    idle = measure_idle(arguments.idle)
    if arguments.json:
        print(json.dumps({"streams": streams, "idle": idle}))
        return
    for name in ("direct", "edged"):
        row = streams[name]
        print(
            f"{name:7} {row['events']} events, {row['faults']} faults, p50 {row['p50_ms']:.1f} ms, "
            f"p99 {row['p99_ms']:.1f} ms, max {row['max_ms']:.1f} ms"
        )
    print(f"added p99 {streams['added_p99_ms']:.1f} ms, RSS {streams['rss_mib']:.0f} MiB")
    print(f"{idle['clients']} idle clients: {idle['bytes_per_client']:.0f} bytes each")


if __name__ == "__main__":
    main()
