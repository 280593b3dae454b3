"""Row 6 of `bench/wan.py`: an endpoint dies, on one line or on all, or a line under all endpoints;
whom does edged blame?

One upstream with three endpoints over two lines, and some traffic. A case is right when each path
of the guilty one was found out, and no path of anyone else is unusable then or 2 s later.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bench.wan_figures import Figures
from bench.wan_peers import Peer
from bench.wan_traffic import Shot, Steady
from tests.netns.site import Site

_FIND_LIMIT_S = 25.0
_HEAL_LIMIT_S = 60.0
_SETTLE_S = 2.0
_STEP_S = 0.2


@dataclass(frozen=True, slots=True)
class Case:
    """Whom to silence: an endpoint's number on some lines, or a whole line."""

    lines: tuple[str, ...]
    endpoint: int | None

    def __str__(self) -> str:
        where = "+".join(self.lines)
        return f"line {where}" if self.endpoint is None else f"e{self.endpoint} on {where}"

    def guilty(self, path: dict[str, Any]) -> bool:
        """Whether a path of ``/status`` is dead in this case."""
        if path["line"] not in self.lines:
            return False
        return self.endpoint is None or path["endpoint"].endswith(f"/e{self.endpoint}")


def cases(seed: int, count: int) -> list[Case]:
    """Random ones: as many of lines as of endpoints, half of those on one line only."""
    rng, chosen = random.Random(f"attribution/{seed}"), []
    for number in range(count):
        line = rng.choice("ab")
        if number % 2:
            chosen.append(Case((line,), None))
        else:
            lines = (line,) if rng.random() < 0.5 else ("a", "b")
            chosen.append(Case(lines, rng.randint(1, 3)))
    rng.shuffle(chosen)
    return chosen


async def play(peer: Peer, site: Site, seed: int, count: int) -> Figures:
    """All cases one after the other."""
    shots: list[Shot] = []
    begun = time.monotonic()
    flow = Steady("r", rate=5.0, count=100_000)
    traffic = asyncio.ensure_future(flow.run(peer.client, begun, shots))
    found_s: list[float] = []
    healed_s: list[float] = []
    wrong: list[str] = []
    try:
        await asyncio.sleep(5)
        for case in cases(seed, count):
            found, healed, mistake = await _try(site, case)
            if mistake:
                wrong.append(f"{case}: {mistake}")
            found_s += [found] if found is not None else []
            healed_s += [healed] if healed is not None else []
    finally:
        traffic.cancel()
        await asyncio.gather(traffic, return_exceptions=True)
        peer.client.close()
    ended = [shot for shot in shots if shot.ended is not None]
    failed = [shot for shot in ended if not shot.ok]
    for text in wrong + [f"{s.id} {s.status} {s.error} {s.body.decode()}" for s in failed]:
        print(f"         wrong: {text}", flush=True)
    return {
        "failed": len(failed),
        "longest": max(shot.took_s for shot in ended),
        "cases": count,
        "wrong": len(wrong),
        "found in": sorted(found_s)[len(found_s) // 2] if found_s else None,
        "found at the latest in": max(found_s, default=None),
        "trusted again in": sorted(healed_s)[len(healed_s) // 2] if healed_s else None,
    }


async def _try(site: Site, case: Case) -> tuple[float | None, float | None, str | None]:
    """Seconds until the guilty was found out, and until it was used again; what went wrong."""
    _silence(site, case)
    died, found_s, mistake = time.monotonic(), None, None
    while found_s is None and time.monotonic() - died < _FIND_LIMIT_S:
        await asyncio.sleep(_STEP_S)
        paths = await _paths(site)
        if not any(_usable(path) for path in paths if case.guilty(path)):
            found_s = time.monotonic() - died
        mistake = mistake or _mistake(case, paths)
    if found_s is None:
        mistake = mistake or "not found out"
    else:
        await asyncio.sleep(_SETTLE_S)
        mistake = mistake or _mistake(case, await _paths(site))
    for line in case.lines:
        site.lab.restore(line)
    back = time.monotonic()
    while time.monotonic() - back < _HEAL_LIMIT_S:
        await asyncio.sleep(_STEP_S)
        if all(_usable(path) for path in await _paths(site)):
            return found_s, time.monotonic() - back, mistake
    return found_s, None, mistake or "not healed"


def _silence(site: Site, case: Case) -> None:
    for line in case.lines:
        if case.endpoint is None:
            site.lab.set(line, blackhole=True)
        else:
            site.lab.set(line, silent_hosts=(site.lab.addresses[case.endpoint - 1],))


async def _paths(site: Site) -> list[dict[str, Any]]:
    status = await asyncio.to_thread(site.edged.status)
    paths: list[dict[str, Any]] = status["upstreams"][0]["paths"]
    return paths


def _usable(path: dict[str, Any]) -> bool:
    return path["usable"] and path["verdict"] != "DOWN"


def _mistake(case: Case, paths: Iterable[dict[str, Any]]) -> str | None:
    for path in paths:
        if not case.guilty(path) and (not _usable(path) or path["ejected_for_s"]):
            return f"{path['path']} is {path['verdict']}, {path['breaker']}: {path['reason']}"
    return None
