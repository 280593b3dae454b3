"""What a daemon holds while `bench/chaos.py` runs, and what it holds when all is over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from tests.harness.live import Edged

_EVERY_S = 0.5
_GROWTH_BYTES = 4 << 20
_GROWTH_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Holding:
    """What there was at one moment. Pools and exchanges as the daemon tells."""

    rss_bytes: int
    tcp: int
    udp: int
    h3_paths: int
    """Pools with a connection over QUIC."""
    files: int
    """Open descriptors of all kinds."""
    spools: int
    """Open files that have no name any more."""
    tasks: int
    open_requests: int
    """Of clients, and of paths."""
    waiting: int
    """For a stream or a connection."""


def holding(edged: Edged) -> Holding:
    """Ask the kernel and the daemon."""
    process, status = edged.usage, edged.status()
    sockets = [connection.type.name for connection in process.net_connections("inet")]
    in_flight = [path["in_flight"] for up in status["upstreams"] for path in up["paths"]]
    per_upstream = [up["in_flight"] for up in status["upstreams"]]
    pools = status["pools"]
    return Holding(
        rss_bytes=process.memory_info().rss,
        tcp=sockets.count("SOCK_STREAM"),
        udp=sockets.count("SOCK_DGRAM"),
        h3_paths=sum(pool["connections"].get("h3", 0) > 0 for pool in pools),
        files=process.num_fds(),
        spools=_nameless(process.pid),
        tasks=status["tasks"],
        open_requests=status["clients"]["requests_open"]
        + sum(in_flight)
        + sum(per_upstream)
        + sum(pool["in_flight"] for pool in pools),
        waiting=sum(pool["waiting"] + pool["dialing"] for pool in pools),
    )


def _nameless(pid: int) -> int:
    found = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = os.readlink(link)
            found += target.startswith("/") and target.endswith("(deleted)")
    return found


@dataclass(slots=True)
class Memory:
    """RSS over time, and CPU."""

    process: psutil.Process
    samples: list[tuple[float, int]] = field(default_factory=list)

    async def watch(self) -> None:
        """For as long as the task lives."""
        while True:
            self.samples.append((time.monotonic(), self.process.memory_info().rss))
            await asyncio.sleep(_EVERY_S)

    def quarters(self, begin: float, end: float) -> list[float]:
        """The median of each, in MB."""
        step = (end - begin) / 4
        found = []
        for number in range(4):
            first, last = begin + number * step, begin + (number + 1) * step
            rss = [size for at, size in self.samples if first <= at < last]
            found.append(statistics.median(rss) / 1e6 if rss else 0.0)
        return found


def flat(quarters: list[float]) -> bool:
    """Whether the last is no more than the second and a little: the first is for warming up."""
    return quarters[3] * 1e6 <= quarters[1] * 1e6 * (1 + _GROWTH_SHARE) + _GROWTH_BYTES


async def left_behind(
    edged: Edged, warm: Holding, limit_s: float, pulses: int = 0
) -> tuple[Holding, list[str]]:
    """What is held with nobody asking, once it is as little as it should be, or after
    ``limit_s``; and what is too much. ``pulses`` between an edge and a relay stay open."""
    end = time.monotonic() + limit_s
    while True:
        try:
            now = await asyncio.to_thread(holding, edged)
        except OSError as error:
            if time.monotonic() > end:
                return warm, [f"the daemon does not answer: {error}"]
            continue
        if not (excess := too_much(now, warm, pulses)) or time.monotonic() > end:
            return now, excess
        await asyncio.sleep(_EVERY_S)


def too_much(now: Holding, warm: Holding, pulses: int = 0) -> list[str]:
    """More than after warming up, or anything of what belongs to requests. One connection over
    QUIC may stay on each path, also on those that were not yet needed then."""
    bounds: dict[str, int] = {
        "tcp": warm.tcp,
        "udp": max(warm.udp, now.h3_paths),
        "files": warm.files,
        "tasks": warm.tasks,
        "spools": 0,
        "open_requests": pulses,
        "waiting": 0,
    }
    held = asdict(now)
    return [f"{name}: {held[name]} of {most}" for name, most in bounds.items() if held[name] > most]
