"""What one plain request costs in Python, counted instead of timed: bytecodes and calls.

    python bench/hotpath.py [--requests N] [--functions N] [--time]

A client connection and an upstream connection of the real daemon, with transports that only take
bytes: head parsed, routed, exchanged, pooled, answered, recorded. Bytecodes do not depend on the
machine or its other tenants, so that a change of a few per cent shows; `tests/test_hotpath.py`
holds the sums to a budget. ``--time`` adds the CPU time, in us, least of several rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import uvloop

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edged.config import load  # noqa: E402  # after the path
from edged.daemon import Daemon  # noqa: E402
from edged.downstream.h1 import H1Connection as ClientConnection  # noqa: E402
from edged.upstream.h1 import H1Connection as OriginConnection  # noqa: E402

_CONFIG = """
node: {name: bench}
listen: {proxy: "127.0.0.1:0", admin: null}
lines:
  - {name: lo, kind: bgp, bind: {source: 127.0.0.1}}
upstreams:
  - name: origin
    prefix: /
    endpoints:
      - {name: o, url: "http://127.0.0.1:1", protocols: [h1]}
log: {access: null}
"""
_REQUEST = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:7070\r\n\r\n"
_RESPONSE = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sat, 21 Nov 2026 21:20:58 GMT\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 1024\r\nConnection: keep-alive\r\n\r\n"
) + b"x" * 1024
_ROUNDS = 5
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_EVENT = b'38\r\ndata: {"choices":[{"delta":{"content":" word"}}]}     \n\n\r\n'


class Transport:
    """Takes bytes and counts writes."""

    def __init__(self, on_write: Callable[[], object] | None = None) -> None:
        self.writes = 0
        self.on_write = on_write

    def write(self, data: bytes) -> None:
        self.writes += 1
        if self.on_write is not None:
            self.on_write()

    def writelines(self, parts: list[bytes]) -> None:
        self.write(b"")

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("127.0.0.1", 50000) if name == "peername" else default

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def _ignored(self, *_: object, **__: object) -> None:
        pass

    set_write_buffer_limits = close = abort = pause_reading = resume_reading = _ignored


class Rig:
    """One daemon that never listens, one client connection, one upstream connection."""

    def __init__(self, directory: Path) -> None:
        file = directory / "edged.yaml"
        file.write_text(_CONFIG)
        loop = asyncio.get_running_loop()
        daemon = self.daemon = Daemon(load(file))
        policies = {name: upstream.policy for name, upstream in daemon.config.upstreams.items()}
        daemon.exchanges.configure(policies, daemon.config.unlisted_policy)
        (state,) = daemon.table.snapshot.paths.values()
        pool: Any = daemon.pools._pool(state.path)
        origin = self.origin = OriginConnection(state.path, pool, loop=loop)
        self.asked = Transport(lambda: loop.call_soon(origin.data_received, _RESPONSE))
        origin.connection_made(self.asked)  # type: ignore[arg-type]  # a transport by its shape
        pool.connections[origin] = None
        pool.capacity_changed(origin)
        self.answers = Transport()
        self.client = ClientConnection(daemon.proxy.hub)
        self.client.connection_made(self.answers)  # type: ignore[arg-type]  # the same

    def open_stream(self) -> None:
        """A response of server-sent events begins."""
        self.asked.on_write = None
        self.client.data_received(_REQUEST)
        self.origin.data_received(_STREAM_HEAD)

    async def events(self, number: int) -> None:
        """So many events of the open stream, each in a segment of its own."""
        for _ in range(number):
            self.origin.data_received(_EVENT)

    async def run(self, requests: int) -> None:
        """So many requests, one after another."""
        for _ in range(requests):
            answered = self.answers.writes
            self.client.data_received(_REQUEST)
            while self.answers.writes == answered:
                await asyncio.sleep(0)


class Counts:
    """Bytecodes and calls by function, while `sys.settrace` is on."""

    def __init__(self) -> None:
        self.bytecodes: Counter[CodeType] = Counter()
        self.calls: Counter[CodeType] = Counter()

    def trace(self, frame: FrameType, event: str, argument: object) -> Any:
        """The trace function."""
        code = frame.f_code
        if code.co_filename == __file__:
            return None
        if event == "call":
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
            self.calls[code] += 1
        elif event == "opcode":
            self.bytecodes[code] += 1
        return self.trace


async def count(requests: int, *, events: bool = False) -> Counts:
    """Counts of ``requests`` plain requests (or events of one stream) on a warm daemon.

    The least of several rounds: a round in which the daemon's clockwork did its work, or on a
    machine so slow that answers no longer come in quick succession, counts that too.
    """
    with tempfile.TemporaryDirectory() as name:
        rig = Rig(Path(name))
        try:
            await rig.run(50)
            if events:
                rig.open_stream()
            rounds = []
            for _ in range(_ROUNDS):
                counts = Counts()
                sys.settrace(counts.trace)
                try:
                    await (rig.events if events else rig.run)(requests)
                finally:
                    sys.settrace(None)
                rounds.append(counts)
        finally:
            rig.daemon.pools.close()
    return min(rounds, key=lambda counts: counts.bytecodes.total())


async def garbage(requests: int) -> Counter[str]:
    """Objects by type that ``requests`` requests leave to the cycle collector."""
    with tempfile.TemporaryDirectory() as name:
        rig = Rig(Path(name))
        try:
            await rig.run(50)
            gc.collect()
            gc.disable()
            gc.set_debug(gc.DEBUG_SAVEALL)
            await rig.run(requests)
            gc.collect()
            return Counter(type(thing).__name__ for thing in gc.garbage)
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
            rig.daemon.pools.close()


async def cpu_us(requests: int, rounds: int = 9) -> float:
    """CPU time of one request, least of ``rounds``; no system calls are in it."""
    with tempfile.TemporaryDirectory() as name:
        rig = Rig(Path(name))
        try:
            await rig.run(500)
            times = []
            for _ in range(rounds):
                start = time.process_time()
                await rig.run(requests)
                times.append((time.process_time() - start) / requests * 1e6)
        finally:
            rig.daemon.pools.close()
    return min(times)


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--functions", type=int, default=30)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    requests = arguments.requests
    counts = uvloop.run(count(requests))
    if arguments.json:
        stream = uvloop.run(count(requests, events=True))
        figures = {
            "request": sum(counts.bytecodes.values()) / requests,
            "event": sum(stream.bytecodes.values()) / requests,
            "garbage": dict(uvloop.run(garbage(requests))),
        }
        print(json.dumps(figures))
        return
    files: Counter[str] = Counter()
    for code, number in counts.bytecodes.items():
        files[code.co_filename.removeprefix(f"{ROOT}/")] += number
    print(f"{sum(counts.bytecodes.values()) / requests:.0f} bytecodes a request")
    print(f"{sum(counts.calls.values()) / requests:.0f} Python calls a request")
    stream = uvloop.run(count(requests, events=True))
    print(f"{sum(stream.bytecodes.values()) / requests:.0f} bytecodes an event of a stream")
    print(f"{sum(stream.calls.values()) / requests:.0f} Python calls an event")
    print(f"garbage: {dict(uvloop.run(garbage(requests))) or 'none'} in {requests} requests")
    if arguments.time:
        print(f"{uvloop.run(cpu_us(2000)):.1f} us CPU a request, without system calls")
    for file, number in files.most_common(arguments.functions):
        print(f"{number / requests:8.0f}  {file}")
    print()
    for code, number in counts.bytecodes.most_common(arguments.functions):
        print(f"{number / requests:8.0f}  {counts.calls[code] / requests:4.1f} {code.co_qualname}")


if __name__ == "__main__":
    main()
