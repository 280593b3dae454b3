"""An origin of endless server-sent events for `bench/streams.py`.

    python bench/sse_origin.py PORT EVENTS_PER_S

Each request gets a chunked stream of ``data: <sequence> <monotonic ns>``; the streams are spread
evenly over the period, so that events come at a steady pace.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import cast

import uvloop

_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"transfer-encoding: chunked\r\ncache-control: no-store\r\n\r\n"
)
SLOTS = 50


class Source(asyncio.Protocol):
    """One client connection; becomes a stream with its first request."""

    def __init__(self, slots: list[set[Source]]) -> None:
        self.slots = slots
        self.slot: set[Source] = set()
        self.sequence = 0
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by type

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if b"\r\n\r\n" in self.buffer and self.sequence == 0:
            self.transport.write(_HEAD)
            self.sequence = 1
            self.slot = min(self.slots, key=len)
            self.slot.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.slot.discard(self)

    def emit(self) -> None:
        event = b"data: %d %d\n\n" % (self.sequence, time.monotonic_ns())
        self.sequence += 1
        self.transport.write(b"%x\r\n%s\r\n" % (len(event), event))


async def main(port: int, events_per_s: float) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    slots: list[set[Source]] = [set() for _ in range(SLOTS)]
    await loop.create_server(lambda: Source(slots), "127.0.0.1", port, backlog=8192)
    period_s = 1 / events_per_s / SLOTS
    due, turn = loop.time(), 0
    while True:
        due += period_s
        await asyncio.sleep(max(0.0, due - loop.time()))
        for source in tuple(slots[turn % SLOTS]):
            source.emit()
        turn += 1


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
