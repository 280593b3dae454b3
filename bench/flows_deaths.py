"""Rows "relay killed" and "edge killed" of `bench/flows.py`: one of the two processes ends as in a
crash, with every kind of exchange in flight.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench.flows_client import Ask, Got, fetch
from bench.flows_streams import used
from bench.wan_rows import WIDE
from bench.wan_traffic import noise, plainly
from edged.lab.resources import content_sha256
from tests.netns.relay_site import RelaySite

_SIZE = 30_000_000
_LIMIT_S = 60.0
BEGUN = ("stream", "download")
"""Whose response has begun when it happens: it ends broken."""


def in_flight(prefix: str) -> list[Ask]:
    """One exchange of each kind, long enough to be in flight."""
    fields = {"content-type": "application/octet-stream"}
    return [
        Ask(f"{prefix}-stream", "stream", "GET", "/sse?n=400&rate=20", limit_s=_LIMIT_S),
        Ask(
            f"{prefix}-download", "download", "GET", f"/bytes/{_SIZE}",
            sha256=content_sha256(_SIZE), limit_s=_LIMIT_S,
        ),
        Ask(f"{prefix}-thinks", "thinks", "POST", "/slow?s=6", b"x" * 99, fields=fields),
        Ask(f"{prefix}-asks", "asks", "GET", "/slow?s=6"),
        Ask(f"{prefix}-upload", "upload", "POST", "/upload", noise(_SIZE), fields=fields),
    ]  # fmt: skip


@dataclass(slots=True)
class Death:
    """What the death of a relay did."""

    at: float
    got: list[Got] = field(default_factory=list)
    """Those in flight."""
    later: list[Got] = field(default_factory=list)
    """Asked for afterwards, one after another."""
    executions: dict[str, int] = field(default_factory=dict)

    def told(self) -> str:
        """Figures for people."""
        lines = []
        for got in sorted(self.got, key=lambda got: got.ask.kind):
            how = "whole" if got.fine else f"{got.status} {got.error or ''}".strip()
            lines.append(
                f"  {got.ask.kind}: {how}, {got.ended - self.at:+.2f} s after; "
                f"carried out {self.executions.get(got.ask.id, 0)} times"
            )
        slow = max(self.later, key=lambda got: got.took_s)
        bad = [got for got in self.later if not got.fine]
        lines.append(
            f"  {len(self.later)} new ones, {len(bad)} refused, the slowest {slow.took_s:.2f} s, "
            f"{slow.began - self.at:.2f} s after"
        )
        return "\n".join([*lines, *(f"  refused: {got}" for got in bad[:5])])


def relay_killed(directory: Path, seed: int) -> Death:
    """Two relays; the one in use is killed."""
    with RelaySite(directory, lines=WIDE, seed=seed, relays=2) as site:
        with site.lab.edge:
            death = asyncio.run(_relay_killed(site))
        death.executions = site.executions()
    return death


async def _relay_killed(site: RelaySite) -> Death:
    connect = plainly("127.0.0.1", site.edged.port)
    # Those that may be repeated are: the default of a gateway's upstream.
    going = [asyncio.ensure_future(fetch(ask, connect, "/llm")) for ask in in_flight("k")]
    await asyncio.sleep(2.0)
    name = await asyncio.to_thread(_relay_in_use, site)
    await asyncio.to_thread(site.kill_relay, name)
    death = Death(time.monotonic())
    number = 0
    while time.monotonic() < death.at + 4.0:
        number += 1
        ask = Ask(f"new-{number}", "new", "GET", "/echo", limit_s=10.0)
        death.later.append(await fetch(ask, connect, "/llm"))
        await asyncio.sleep(0.1)
    death.got = await asyncio.gather(*going)
    return death


def _relay_in_use(site: RelaySite) -> str:
    for path in site.edged.status()["upstreams"][0]["paths"]:
        if path["in_flight"]:
            return str(path["path"].split(">")[1])
    raise RuntimeError("nothing is in flight")


# -- the edge -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Left:
    """What a relay still held, some seconds after its edge's death."""

    how: str
    held: dict[float, str] = field(default_factory=dict)
    flows_free_s: float | None = None
    """When no flow, and no byte of one, was left."""
    free_s: float | None = None
    """When all was as before the edge came, connections included."""

    def told(self) -> str:
        """Figures for people."""
        flows, all_ = (
            "never" if at is None else f"after {at:.1f} s"
            for at in (self.flows_free_s, self.free_s)
        )
        return f"edge {self.how}: flows are free {flows}, all is {all_}; " + "; ".join(
            f"{at:.0f} s: {held}" for at, held in self.held.items()
        )


def edge_killed(
    directory: Path,
    seed: int,
    *,
    vanishes: bool,
    limit_s: float = 45.0,
    relay: dict[str, Any] | None = None,
) -> Left:
    """``vanishes``: with its host, so that no kernel says that it is gone."""
    with RelaySite(directory, lines=WIDE, seed=seed, relay=relay) as site, site.lab.edge:
        return asyncio.run(_edge_killed(site, vanishes, limit_s))


async def _edge_killed(site: RelaySite, vanishes: bool, limit_s: float) -> Left:
    left = Left("host gone" if vanishes else "killed")
    connect = plainly("127.0.0.1", site.edged.port)
    going = [asyncio.ensure_future(fetch(ask, connect, "/llm")) for ask in in_flight("e")]
    await asyncio.sleep(2.0)
    await asyncio.to_thread(used, site)
    if vanishes:
        for line in site.lab.lines:
            await asyncio.to_thread(site.lab.set, line, blackhole=True)
    os.kill(site.edged.process.pid, signal.SIGKILL)
    began = time.monotonic()
    await asyncio.gather(*going)
    while (since := time.monotonic() - began) < limit_s:
        held = await asyncio.to_thread(_held, site)
        if left.flows_free_s is None and not held["flows"] and not held["journal bytes"]:
            left.flows_free_s = since
        if not any(held.values()):
            left.free_s = since
            break
        if int(since) // 5 > len(left.held) - 1:
            left.held[since] = ", ".join(f"{name} {n}" for name, n in held.items() if n)
        await asyncio.sleep(0.25)
    return left


def _held(site: RelaySite) -> dict[str, int]:
    """Of a client's; connections are those of clients alone."""
    status = site.relay_status()
    sockets = psutil.Process(site.relay.pid).net_connections("tcp")
    edge = {site.lab.source(line) for line in site.lab.lines}
    return {
        "flows": status["relay"]["flows"],
        "journal bytes": status["relay"]["journal_bytes"],
        "pulses": site.pulses(),
        "requests": status["clients"]["requests_open"],
        "upstream": sum(pool["in_flight"] for pool in status["pools"]),
        "TCP": sum(bool(s.raddr) and s.raddr.ip in edge for s in sockets),
    }
