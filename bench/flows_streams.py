"""Rows "never" and "always" of `bench/flows.py`: token streams whose line is silenced for good.

A round is one blackhole of the line in use under several streams, which begin within half a second.
Each lab plays several rounds after one another, the line restored in between.

A gap in which the machine did not let anybody run, as a witness saw, says nothing of a stream: such
runs are told apart.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
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
_WITHIN_S = 0.5
_LIMIT_S = 30.0
LABS = 2
"""At the same time: more disturb one another on two cores."""
_LOOK_S = 0.005
_STALL_S = 0.01


@dataclass(slots=True)
class Run:
    """One stream and its blackhole."""

    seed: int
    number: int
    shot: Shot
    line: str = ""
    died_at: float = 0.0
    tokens: int = TOKENS
    stalled_s: float = 0.0
    """For how long nobody ran during its longest gap."""

    @property
    def right(self) -> bool:
        """Every token came once and in order."""
        return self.shot.ok and self.shot.lost_and_doubled(self.tokens) == (0, 0)

    @property
    def disturbed(self) -> bool:
        """By the machine."""
        return self.stalled_s > _STALL_S

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
        stalled = f", the machine stalled {self.stalled_s:.3f} s in it" if self.disturbed else ""
        return (
            f"{self.seed}/{self.number} {self.line} {shot.status} {shot.error or ''} gaps {told}"
            f"{stalled}"
        )


@dataclass(slots=True)
class Streams:
    """All runs of one policy."""

    policy: str
    runs: list[Run] = field(default_factory=list)
    logs: str = ""

    def longest(self, *, disturbed: bool = True) -> list[float]:
        """The longest gap of each run, sorted."""
        return sorted(run.longest_s for run in self.runs if disturbed or not run.disturbed)


class Witness:
    """A thread that wants to run every few milliseconds, and notes when it could not."""

    def __init__(self) -> None:
        self._stalls: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.is_set():
            due = time.monotonic() + _LOOK_S
            time.sleep(_LOOK_S)
            now = time.monotonic()
            if now > due + _LOOK_S:
                self._stalls.append((due, now))

    def stalled_s(self, begun: float, ended: float) -> float:
        """For how long, in that time."""
        return sum(max(0.0, min(b, ended) - max(a, begun)) for a, b in self._stalls)


def play(
    directory: Path,
    policy: str,
    seeds: Sequence[int],
    rounds: int,
    at_once: int = 1,
    *,
    tokens: int = TOKENS,
    config: dict[str, Any] | None = None,
) -> Streams:
    """``rounds`` of ``at_once`` streams on each of as many labs as there are seeds; `LABS` of them
    run at the same time.
    """
    streams = Streams(policy)

    def lab(seed: int) -> None:
        there = directory / f"{policy}-{seed}"
        there.mkdir(parents=True)
        rules = {"redundancy": {"small_streams": policy}, **(config or {})}
        with RelaySite(there, seed=seed, policy=rules) as site, site.lab.edge:
            for run in runs_of(site, seed, rounds, at_once, tokens):
                at, gap = next(iter(run.gaps()), (0.0, 0.0))
                run.stalled_s = witness.stalled_s(at, at + gap)
                streams.runs.append(run)
                with (directory / "runs.txt").open("a") as file:
                    print(run, file=file)
        streams.logs += site.edged.log + (there / "relay.log").read_text(errors="replace")

    with Witness() as witness, ThreadPoolExecutor(LABS) as pool:
        list(pool.map(lab, seeds))
    return streams


def runs_of(
    site: RelaySite, seed: int, rounds: int, at_once: int, tokens: int = TOKENS
) -> Iterator[Run]:
    """Play rounds one after another; their runs, each round's as it ends."""
    rng = random.Random(f"flows/{seed}/streams")
    for number in range(rounds):
        yield from asyncio.run(_round(site, seed, number, at_once, tokens, rng))


async def _round(
    site: RelaySite, seed: int, number: int, at_once: int, tokens: int, rng: random.Random
) -> list[Run]:
    await well(site)
    client = Client(plainly("127.0.0.1", site.edged.port), "/llm")
    begun = time.monotonic()

    async def stream(number: int, after_s: float) -> Run:
        await asyncio.sleep(after_s)
        run = Run(seed, number, Shot("sse", f"s{seed}-{number}", time.monotonic()), tokens=tokens)
        await client.shoot(
            run.shot, "GET", f"/sse?n={tokens}&rate={RATE}",
            headers={"host": "edge.lab"}, limit_s=tokens / RATE + _LIMIT_S,
        )  # fmt: skip
        return run

    dies_s = rng.uniform(0.2, 0.5) * tokens / RATE
    starts_s = [0.0, *(rng.uniform(0.0, _WITHIN_S) for _ in range(at_once - 1))]
    going = [
        asyncio.ensure_future(stream(number * at_once + one, after_s))
        for one, after_s in enumerate(starts_s)
    ]
    await asyncio.sleep(begun + dies_s - time.monotonic())
    line = await asyncio.to_thread(used, site)
    died_at = await asyncio.to_thread(site.lab.set, line, blackhole=True)
    runs = await asyncio.gather(*going)
    for run in runs:
        run.line, run.died_at = line, died_at
    client.close()
    await asyncio.to_thread(site.lab.restore, line)
    return runs


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
