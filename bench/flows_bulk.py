"""Rows "upload", "download" and "tunnel" of `bench/flows.py`: large bodies while the line in use is
killed three times, and one TLS session through CONNECT over ten changes of line.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import random
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.flows_client import Ask, Got, fetch
from bench.flows_streams import used, well
from bench.wan_rows import WIDE
from bench.wan_traffic import noise, plainly, tunnelled
from edged.lab.resources import content_sha256
from tests.netns.origin_side import PORT
from tests.netns.relay_site import RelaySite

SIZE = 50_000_000
KILLS = 3
_DEAD_S = 2.0
"""How long a line is dead."""
_LIMIT_S = 120.0


@dataclass(slots=True)
class Transfer:
    """One body, alone or killed."""

    got: Got
    wire_bytes: int
    """IP bytes that were sent in the body's direction."""
    twice_bytes: int
    """Of the body, as the relay counts: handed to a connection again, or taken again."""
    kills: list[tuple[float, str]] = field(default_factory=list)
    """When, from its beginning, and which line."""

    def goodput_bps(self, size: int) -> float:
        """Of the body."""
        return 8 * size / self.got.took_s

    def stalls(self) -> list[tuple[float, float]]:
        """(when, how long): the three longest pauses of what arrives."""
        times = [at - self.got.began for at, _ in self.got.arrivals]
        pairs = sorted(((b - a, a) for a, b in itertools.pairwise(times)), reverse=True)
        return [(round(at, 2), round(gap, 2)) for gap, at in pairs[:4]]


@dataclass(slots=True)
class Bulk:
    """A row's two transfers."""

    kind: str
    size: int
    alone: Transfer
    killed: Transfer

    @property
    def share(self) -> float:
        """Of the goodput of the best line alone."""
        return self.alone.got.took_s / self.killed.got.took_s

    def told(self) -> str:
        """Figures for people."""
        alone, killed = self.alone, self.killed
        return (
            f"{self.kind} of {self.size / 1e6:g} MB: alone {alone.got.took_s:.2f} s "
            f"({alone.goodput_bps(self.size) / 1e6:.1f} Mbit/s), with {len(killed.kills)} kills "
            f"{killed.got.took_s:.2f} s ({killed.goodput_bps(self.size) / 1e6:.1f} Mbit/s), "
            f"{100 * self.share:.0f}% of it; {killed.twice_bytes / 1e6:.2f} MB twice ("
            f"alone {alone.twice_bytes / 1e6:.2f}), wire {killed.wire_bytes / self.size:.3f} "
            f"times its size (alone {alone.wire_bytes / self.size:.3f}); kills "
            + ", ".join(f"{line} at {at:.1f}" for at, line in killed.kills)
            + f"; right: {alone.got.fine and killed.got.fine}; pauses {killed.stalls()}"
        )


def play(directory: Path, kind: str, seed: int, size: int = SIZE) -> Bulk:
    """``kind``: upload or download."""
    with RelaySite(directory, lines=WIDE, seed=seed) as site, site.lab.edge:
        return asyncio.run(_both(site, kind, seed, size))


async def _both(site: RelaySite, kind: str, seed: int, size: int) -> Bulk:
    alone = await _transfer(site, kind, f"{kind}-alone", size, [])
    await well(site)
    rng = random.Random(f"flows/{seed}/kills")
    span_s = alone.got.took_s / KILLS
    kills = [span_s * (n + rng.uniform(0.2, 0.6)) for n in range(KILLS)]
    return Bulk(kind, size, alone, await _transfer(site, kind, f"{kind}-killed", size, kills))


async def _transfer(
    site: RelaySite, kind: str, id_: str, size: int, kills: list[float]
) -> Transfer:
    if kind == "upload":
        body = noise(size)
        digest = hashlib.sha256(body).hexdigest()
        ask = Ask(
            id_, kind, "POST", "/upload", body, keeps=True, limit_s=_LIMIT_S,
            right=lambda answer: json.loads(answer)["sha256"] == digest,
        )  # fmt: skip
    else:
        sha256 = content_sha256(size)
        ask = Ask(id_, kind, "GET", f"/bytes/{size}", sha256=sha256, limit_s=_LIMIT_S)
    way = "up" if kind == "upload" else "down"
    before = await asyncio.to_thread(_sent, site, way)
    begun = time.monotonic()
    going = asyncio.ensure_future(fetch(ask, plainly("127.0.0.1", site.edged.port), "/llm"))
    happened = []
    for at in kills:
        await asyncio.sleep(begun + at - time.monotonic())
        if going.done():
            break
        line = await asyncio.to_thread(used, site)
        died_at = await asyncio.to_thread(site.lab.set, line, blackhole=True)
        happened.append((died_at - begun, line))
        await asyncio.sleep(_DEAD_S)
        await asyncio.to_thread(site.lab.restore, line)
    got = await going
    after = await asyncio.to_thread(_sent, site, way)
    return Transfer(got, after[0] - before[0], after[1] - before[1], happened)


def _sent(site: RelaySite, way: str) -> tuple[int, int]:
    """Bytes on the wire, and those that the relay counted twice."""
    client = site.relay_status()["relay"]["clients"][0]
    wire = sum(line[way]["offered"]["bytes"] for line in site.lab.counters().values())
    return wire, client["taken_twice" if way == "up" else "sent_twice"]


# -- a session that outlives its lines -------------------------------------------------------------


@dataclass(slots=True)
class Session:
    """One TLS session through CONNECT."""

    changes: list[tuple[float, str]] = field(default_factory=list)
    echoes: int = 0
    slowest_s: float = 0.0
    error: str | None = None

    def told(self) -> str:
        """Figures for people."""
        return (
            f"TLS through CONNECT: {self.echoes} echoes over {len(self.changes)} changes of line, "
            f"the slowest {self.slowest_s:.2f} s; {self.error or 'all right'}"
        )


def session(directory: Path, seed: int, changes: int = 10) -> Session:
    """Echoes without a pause while the line in use dies again and again."""
    with RelaySite(directory, seed=seed) as site, site.lab.edge:
        return asyncio.run(_session(site, seed, changes))


async def _session(site: RelaySite, seed: int, changes: int) -> Session:
    context = ssl.create_default_context(cafile=str(site.certificates.ca_file))
    connect = tunnelled(site.edged.port, f"e1.lab.test:{PORT}", context)
    reader, writer = await connect()
    done = Session()

    async def echoes() -> None:
        rng = random.Random(f"flows/{seed}/echoes")
        while True:
            body = rng.randbytes(int(30_000 ** rng.random()))
            began = time.monotonic()
            writer.write(
                b"POST /echo HTTP/1.1\r\nhost: e1.lab.test\r\ncontent-length: %d\r\n\r\n%b"
                % (len(body), body)
            )
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            said = json.loads(await reader.readexactly(length))
            if said["sha256"] != hashlib.sha256(body).hexdigest():
                raise ValueError("another body than was sent")
            done.echoes += 1
            done.slowest_s = max(done.slowest_s, time.monotonic() - began)

    echoing = asyncio.ensure_future(echoes())
    begun = time.monotonic()
    for _ in range(changes):
        await asyncio.wait([echoing], timeout=0.5)
        line = await asyncio.to_thread(used, site)
        at = await asyncio.to_thread(site.lab.set, line, blackhole=True)
        done.changes.append((at - begun, line))
        await asyncio.wait([echoing], timeout=1.5)
        await asyncio.to_thread(site.lab.restore, line)
        await well(site, rest_s=0.0)
    await asyncio.wait([echoing], timeout=1.0)
    if echoing.done():
        done.error = repr(echoing.exception())
    echoing.cancel()
    writer.transport.abort()
    return done
