"""Latency that a proxy adds at a steady 1,000 requests/s, beside going direct and HAProxy.

    python bench/latency.py [--rate 1000] [--seconds 8] [--rounds 3]

Requests leave on a fixed schedule over 20 keep-alive connections, whether or not earlier ones were
answered (no coordinated omission: a request that had to wait for its connection counts from when it
was due).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections import deque
from typing import cast

import uvloop
from proxy import edged, peer
from rig import median, nginx, workspace

_REQUEST = b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
_CONNECTIONS = 20


class Client(asyncio.Protocol):
    """One connection: one request at a time, what is due meanwhile waits."""

    def __init__(self, times_s: list[float]) -> None:
        self.times_s = times_s
        self.due: deque[float] = deque()
        self.busy_since: float | None = None
        self.left = 0
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by type

    def ask(self) -> None:
        """A request is due now."""
        self.due.append(time.perf_counter())
        if self.busy_since is None:
            self._next()

    def _next(self) -> None:
        if self.due:
            self.busy_since = self.due.popleft()
            self.transport.write(_REQUEST)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(body) >= length and self.busy_since is not None:
            self.times_s.append(time.perf_counter() - self.busy_since)
            self.buffer = b""
            self.busy_since = None
            self._next()


async def measure(port: int, rate: float, seconds: float) -> list[float]:
    """Response times in seconds, sorted; the first second is left out."""
    loop = asyncio.get_running_loop()
    times_s: list[float] = []
    clients = [
        (await loop.create_connection(lambda: Client(times_s), "127.0.0.1", port))[1]
        for _ in range(_CONNECTIONS)
    ]
    started = time.perf_counter()
    number = warm = 0
    while (elapsed := time.perf_counter() - started) < seconds + 1:
        while number < elapsed * rate:
            clients[number % _CONNECTIONS].ask()
            number += 1
        if elapsed < 1:
            warm = len(times_s)
        await asyncio.sleep(0.0005)
    for client in clients:
        client.transport.abort()
    return sorted(times_s[warm:])


def main() -> None:
    """Measure in turn and print medians of rounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    figures: dict[str, list[tuple[float, float]]] = {}
    with workspace() as directory, nginx(directory) as origin, contextlib.ExitStack() as stack:
        ports = {"direct": origin}
        through = edged(directory, f"http://127.0.0.1:{origin}", "h1")
        ports["edged"] = stack.enter_context(through)[0]
        if (other := stack.enter_context(peer("haproxy", directory, origin))) is not None:
            ports["haproxy"] = other[0]
        for _ in range(arguments.rounds):
            for name, port in ports.items():
                times = uvloop.run(measure(port, arguments.rate, arguments.seconds))
                row = (times[len(times) // 2] * 1e3, times[int(len(times) * 0.99)] * 1e3)
                figures.setdefault(name, []).append(row)
    direct = median([row[0] for row in figures["direct"]])
    for name, rows in figures.items():
        p50, p99 = median([row[0] for row in rows]), median([row[1] for row in rows])
        print(f"{name:8} p50 {p50:6.3f} ms  p99 {p99:6.3f} ms  added p50 {p50 - direct:+.3f} ms")


if __name__ == "__main__":
    main()
