"""Failover over real lossy lines: edged beside HAProxy, Envoy and sing-box, scenario by scenario.

    python bench/wan.py [--only 1,3,5a] [--peers edged,envoy] [--seeds 5] [--write] [--keep DIR]

Needs root (network namespaces, see tests/netns). Each run has lines, an origin and a proxy of its
own. Prints a table with the median and the worst of the seeds; ``--write`` puts it into
docs/failover.md, for the rows and peers that were run. ``--keep``: logs and figures of every run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import wan_attribution, wan_figures, wan_table
from bench.wan_figures import Figures, Run
from bench.wan_peers import Peer, installed, running
from bench.wan_rows import ROWS, Row
from bench.wan_traffic import Shot, play
from tests.netns.lab import missing
from tests.netns.site import Site

ROOT = Path(__file__).resolve().parents[1]
_STARTING = threading.Lock()
"""Runs may overlap, but their interpreters do not all start at once."""
NAMES = ("edged", "haproxy", "envoy", "sing-box", "direct")


def measure(
    row: Row, name: str, seed: int, directory: Path, reference: dict[str, Figures] | None = None
) -> tuple[Figures, Run | None]:
    """One run; ``reference``: the least medians of rows measured before, by key."""
    options = {
        k: v
        for k, v in row.site.items()
        if name == "edged" or k in ("lines", "caddy", "congestion")
    }
    site = Site(directory, seed=seed, edged=name == "edged", **options)
    with contextlib.ExitStack() as stack:
        with _STARTING:
            stack.enter_context(site)
            peer = stack.enter_context(running(name, site, row.prefix))
        stack.enter_context(site.lab.edge)
        if row.cases:
            return asyncio.run(wan_attribution.play(peer, site, seed, row.cases)), None
        run = asyncio.run(_act(row, peer, site, seed))
        run.reference = reference or {}
        run.executions = site.executions()
        if name == "edged":
            time.sleep(0.3)  # its access log is written behind the requests
            run.access_log = site.access_log()
    figures = wan_figures.common(run)
    for read in row.read:
        figures |= read(run)
    return figures, run


async def _act(row: Row, peer: Peer, site: Site, seed: int) -> Run:
    lab, shots, happened = site.lab, list[Shot](), list[float]()
    begun = time.monotonic() + row.lead_s
    bytes_at: dict[str, dict[str, int]] = {}

    async def look(name: str, at_s: float) -> None:
        await asyncio.sleep(begun + at_s - time.monotonic())
        bytes_at.setdefault(name, lab.offered_bytes())

    async def happen() -> None:
        cpu_s.append(peer.cpu_s())
        for at_s, event in row.times(seed):
            await look("event", at_s)
            if event.changes:
                happened.append(lab.set(event.line, event.direction, **event.changes))
            else:
                happened.append(lab.restore(event.line))

    async def looks() -> None:
        await look("begin", 0)
        for name, at_s in zip(("first", "last"), row.span or (), strict=False):
            await look(name, at_s)

    cpu_s: list[float | None] = []
    looking = asyncio.ensure_future(looks())
    await play(peer.client, row.flows, begun, shots, happen)
    await looking
    ended, now = time.monotonic(), peer.cpu_s()
    bytes_at["end"] = lab.offered_bytes()
    return Run(
        row=row,
        peer=peer.name,
        begun=begun,
        shots=shots,
        happened=happened,
        executions={},
        bytes_at=bytes_at,
        ended=ended,
        cpu_s=now - cpu_s[0] if now is not None and cpu_s[0] is not None else None,
        sources={line: lab.source(line) for line in lab.lines},
    )


class Bench:
    """All runs that were asked for, and what came of them."""

    def __init__(self, rows: Sequence[Row], peers: Sequence[str], seeds: int) -> None:
        self.rows, self.peers, self.seeds = rows, peers, seeds
        self.results: dict[str, dict[str, list[Figures]]] = {}

    def run(self, keep: Path | None) -> None:
        """One seed after the other, so that a busy minute of the machine hits everybody."""
        for seed in range(1, self.seeds + 1):
            for row in self.rows:
                for name in self.peers:
                    if name in row.peers and seed <= (row.seeds or self.seeds):
                        self._one(row, name, seed, keep)

    def _one(self, row: Row, name: str, seed: int, keep: Path | None) -> None:
        with tempfile.TemporaryDirectory(prefix="edged-wan-") as directory:
            try:
                figures, run = measure(row, name, seed, Path(directory), self._reference())
            except (AssertionError, OSError, RuntimeError) as error:
                print(f"{row.key} {name} seed {seed} could not be measured: {error}", flush=True)
                return
            if keep is not None:
                there = keep / f"{row.key}-{name}-{seed}".replace(" ", "-")
                shutil.rmtree(there, ignore_errors=True)
                shutil.copytree(directory, there, ignore=shutil.ignore_patterns("*.key", "*.pem"))
                if run is not None:
                    (there / "run.json").write_text(json.dumps(_account(run, figures), indent=1))
        self.results.setdefault(row.key, {}).setdefault(name, []).append(figures)
        print(wan_table.line(row, name, seed, figures), flush=True)

    def _reference(self) -> dict[str, Figures]:
        """What a line alone does: of whoever does best on it."""
        found: dict[str, Figures] = {}
        for key, by_peer in self.results.items():
            if key.startswith("B"):
                middles = [wan_figures.middle(runs) for runs in by_peer.values()]
                found[key] = {
                    name: min((v for m in middles if (v := m.get(name)) is not None), default=None)
                    for name in middles[0]
                }
        return found


def _account(run: Run, figures: Figures) -> dict[str, Any]:
    shots = [
        {
            **{k: v for k, v in asdict(shot).items() if k not in ("body", "tokens")},
            "due": shot.due - run.begun,
            "ended": shot.ended and shot.ended - run.begun,
            "took_s": shot.took_s,
            "tokens": [(number, at - run.begun) for number, at in shot.tokens],
        }
        for shot in run.shots
    ]
    happened = [at - run.begun for at in run.happened]
    return {"figures": figures, "happened": happened, "bytes_at": run.bytes_at, "shots": shots}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="rows, by key or by its beginning: 1,3,5a")
    parser.add_argument("--peers", default="edged,haproxy,envoy,sing-box,direct")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="update docs/failover.md")
    parser.add_argument("--keep", type=Path, help="where logs and figures of each run go")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    rows = [row for row in ROWS if _wanted(row.key, arguments.only)]
    if arguments.list:
        for row in rows:
            print(f"{row.key:10} {row.title}")
        return
    if reason := missing():
        raise SystemExit(f"bench/wan.py: {reason}")
    peers = [name for name in arguments.peers.split(",") if name]
    if unknown := set(peers) - set(NAMES):
        raise SystemExit(f"bench/wan.py: no such peer: {', '.join(unknown)}")
    for name in [name for name in peers if not installed(name)]:
        print(f"{name} is not installed and left out", file=sys.stderr)
        peers.remove(name)
    bench = Bench(rows, peers, arguments.seeds)
    try:
        bench.run(arguments.keep)
    finally:
        print(wan_table.markdown(ROWS, bench.results))
        if arguments.write:
            wan_table.write(ROOT / "docs" / "failover.md", ROWS, bench.results)


def _wanted(key: str, only: str | None) -> bool:
    if not only:
        return True
    return any(key == one or key.rstrip("abcdef") == one for one in only.split(","))


if __name__ == "__main__":
    main()
