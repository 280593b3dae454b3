"""Rows "never" and "always" of `bench/flows.py`: token streams whose line is silenced for good.

Each run is one blackhole of the line in use under a stream of its own; labs of one worker each play
several runs after one another, the line restored in between.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.wan_traffic import Client, Shot, plainly
from tests.netns.relay_site import RelaySite

TOKENS, RATE = 200, 20.0
_REST_S = 2.0
"""Between a line's return and the next run."""
_LIMIT_S = 30.0


@dataclass(slots=True)
class Run:
    """One stream and its blackhole."""

    seed: int
    number: int
    shot: Shot
    line: str = ""
    died_at: float = 0.0
    tokens: int = TOKENS

    @property
    def right(self) -> bool:
        """Every token came once and in order."""
        return self.shot.ok and self.shot.lost_and_doubled(self.tokens) == (0, 0)

    def gaps(self) -> list[tuple[float, float]]:
        """(when it began, how long) between what came, the end included; the longest first."""
        times = [at for _, at in self.shot.tokens]
        if self.shot.ended is not None:
            times.append(self.shot.ended)
        pairs = [(a, b - a) for a, b in itertools.pairwise(times)]
        return sorted(pairs, key=lambda pair: -pair[1])

    @property
    def longest_s(self) -> float:
        """Of all gaps."""
        gaps = self.gaps()
        return gaps[0][1] if gaps else float("inf")

    def __str__(self) -> str:
        told = ", ".join(
            f"{gap:.3f} at {at - self.died_at:+.2f}" for at, gap in self.gaps()[:3]
        )  # seconds after the blackhole
        shot = self.shot
        return f"{self.seed}/{self.number} {self.line} {shot.status} {shot.error or ''} gaps {told}"


@dataclass(slots=True)
class Streams:
    """All runs of one policy."""

    policy: str
    runs: list[Run] = field(default_factory=list)
    logs: str = ""

    def longest(self) -> list[float]:
        """The longest gap of each run, sorted."""
        return sorted(run.longest_s for run in self.runs)


def play(
    directory: Path,
    policy: str,
    seeds: Sequence[int],
    runs: int,
    *,
    tokens: int = TOKENS,
    config: dict[str, Any] | None = None,
) -> Streams:
    """``runs`` on each of as many labs as there are seeds, which run at the same time."""
    streams = Streams(policy)

    def lab(seed: int) -> None:
        there = directory / f"{policy}-{seed}"
        there.mkdir(parents=True)
        rules = {"redundancy": {"small_streams": policy}, **(config or {})}
        with RelaySite(there, seed=seed, policy=rules) as site, site.lab.edge:
            for run in runs_of(site, seed, runs, tokens):
                streams.runs.append(run)
                with (directory / "runs.txt").open("a") as file:
                    print(run, file=file)
        streams.logs += site.edged.log + (there / "relay.log").read_text(errors="replace")

    with ThreadPoolExecutor(len(seeds)) as pool:
        list(pool.map(lab, seeds))
    return streams


def runs_of(site: RelaySite, seed: int, count: int, tokens: int) -> Iterator[Run]:
    """Play them one after another, each as it ends."""
    rng = random.Random(f"flows/{seed}/streams")
    for number in range(count):
        yield asyncio.run(_run(site, seed, number, rng.uniform(0.2, 0.5), tokens))


async def _run(site: RelaySite, seed: int, number: int, when: float, tokens: int) -> Run:
    await well(site)
    run = Run(seed, number, Shot("sse", f"s{seed}-{number}", time.monotonic()), tokens=tokens)
    client = Client(plainly("127.0.0.1", site.edged.port), "/llm")
    stream = asyncio.ensure_future(
        client.shoot(
            run.shot, "GET", f"/sse?n={tokens}&rate={RATE}",
            headers={"host": "edge.lab"}, limit_s=tokens / RATE + _LIMIT_S,
        )
    )  # fmt: skip
    await asyncio.sleep(when * tokens / RATE)
    run.line = await asyncio.to_thread(used, site)
    run.died_at = await asyncio.to_thread(site.lab.set, run.line, blackhole=True)
    await stream
    client.close()
    await asyncio.to_thread(site.lab.restore, run.line)
    return run


def used(site: RelaySite) -> str:
    """The line of an exchange in flight."""
    paths = site.edged.status()["upstreams"][0]["paths"]
    return next((path["line"] for path in paths if path["in_flight"]), "a")


async def well(site: RelaySite, rest_s: float = _REST_S) -> None:
    """All lines are UP again, and have been for a while, with both carriers where there is time
    for that (``rest_s``).
    """
    end = time.monotonic() + _LIMIT_S
    while time.monotonic() < end:
        status = await asyncio.to_thread(site.edged.status)
        up = all(path["verdict"] == "UP" for path in status["upstreams"][0]["paths"])
        legs = [pool["connections"] for pool in status["pools"] if ">relay:" in pool["path"]]
        if up and (not rest_s or all(leg.get("h3") and leg.get("h2") for leg in legs)):
            break
        await asyncio.sleep(0.2)
    await asyncio.sleep(rest_s)
