"""Random events on both lines, the servers and DNS, under 50 requests/s and 20 streams.

    python bench/chaos.py [--seconds 1440] [--seed 1] [--keep DIR] [--plan]

Needs root (network namespaces, see tests/netns) and Caddy. The seed decides what happens and what
is asked for; docs/chaos.md says what counts as a failure. Ends with 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.chaos_schedule import QUIET_S, Event, schedule, steps
from bench.chaos_site import UPSTREAMS, ChaosSite
from bench.chaos_traffic import Traffic
from bench.chaos_verdict import Asked, Timeline, Verdict, judge
from bench.chaos_watch import Holding, Memory, flat, holding, left_behind
from bench.wan_figures import percentile
from bench.wan_traffic import Client, plainly
from tests.netns.lab import missing

RATE, STREAMS = 50.0, 20
_LEFT_LIMIT_S = 45.0
"""Connections idle until their time is over."""
_FINISH_S = 100.0
NOT_EDGED = {
    Verdict.OK,
    Verdict.DARK,
    Verdict.BROKEN_DEAD,
    Verdict.BROKEN_RESTART,
    Verdict.BROKEN_POOR,
    Verdict.BROKEN_RIGHTLY,
    Verdict.REFUSED,
}
"""What a request may come to without edged being at fault."""


@dataclass(slots=True)
class Result:
    """Of one run."""

    seed: int
    events: list[Event]
    timeline: Timeline
    begun: float
    asked: list[Asked]
    verdicts: list[Verdict]
    unfinished: int
    quarters: list[float]
    warm: Holding
    left: Holding
    too_much: list[str]
    executions: dict[str, int] = field(default_factory=dict)
    cpu: float = 0.0
    """Share of a core that edged took."""
    log: str = ""

    def having(self, *verdicts: Verdict) -> list[Asked]:
        """Those requests."""
        return [a for a, v in zip(self.asked, self.verdicts, strict=True) if v in verdicts]

    @property
    def at_fault(self) -> list[tuple[Asked, Verdict]]:
        """Requests that came to what they must not."""
        both = zip(self.asked, self.verdicts, strict=True)
        return [(asked, verdict) for asked, verdict in both if verdict not in NOT_EDGED]

    @property
    def doubled(self) -> list[str]:
        """Requests carried out twice that may only be so where their line died."""
        ids = {a.shot.id for a in self.asked if not a.repeatable}
        return [i for i, count in self.executions.items() if count > 1 and i in ids]

    def misses(self) -> list[str]:
        """Bars that are not met."""
        missed = [_tell(asked, verdict, self.begun) for asked, verdict in self.at_fault]
        if self.unfinished:
            missed.append(f"{self.unfinished} requests never ended")
        if not flat(self.quarters):
            missed.append(f"memory grows: {_quarters(self.quarters)}")
        missed += [f"left behind: {one}" for one in self.too_much]
        for word in ("Traceback", "a bug in edged"):
            if word in self.log:
                missed.append(f"{word!r} in the log")
        return missed


def run(directory: Path, seed: int, seconds: float) -> Result:
    """One run, traffic and all."""
    events = schedule(seed, seconds)
    with ChaosSite(directory, seed) as site:
        with site.lab.edge:
            result = asyncio.run(_play(site, seed, seconds, events))
        result.executions = site.site.executions()
        result.log = site.edged.log
        log = {entry["id"]: entry for entry in site.site.access_log()}
    for asked in result.asked:
        asked.log = log.get(asked.shot.request_id or "", {})
    result.verdicts = [judge(asked, site.timeline) for asked in result.asked]
    return result


async def _play(site: ChaosSite, seed: int, seconds: float, events: list[Event]) -> Result:
    client = Client(plainly("127.0.0.1", site.edged.port), "")
    traffic, memory = Traffic(client, UPSTREAMS, seed), Memory(site.edged.usage)
    begun = time.monotonic()
    until = begun + seconds
    watching = asyncio.ensure_future(memory.watch())
    happening = asyncio.ensure_future(_happen(site, events, begun))
    cpu_s = sum(site.edged.usage.cpu_times()[:2])
    async with asyncio.TaskGroup() as group:
        group.create_task(traffic.requests(RATE, begun, until))
        group.create_task(traffic.streams(STREAMS, begun, until))
        await asyncio.sleep(QUIET_S - 1)
        warm = await asyncio.to_thread(holding, site.edged)
    cpu_s = sum(site.edged.usage.cpu_times()[:2]) - cpu_s
    await happening
    await traffic.finish(_FINISH_S)
    unfinished = traffic.pending
    watching.cancel()
    left, too_much = await left_behind(site.edged, warm, _LEFT_LIMIT_S)
    over = [asked for asked in traffic.asked if asked.shot.ended is not None]
    return Result(
        seed,
        events,
        site.timeline,
        begun,
        over,
        [],
        unfinished + len(traffic.asked) - len(over),
        memory.quarters(begun, until),
        warm,
        left,
        too_much,
        cpu=cpu_s / seconds,
    )


async def _happen(site: ChaosSite, events: list[Event], begun: float) -> None:
    for step in steps(events):
        await asyncio.sleep(begun + step.at_s - time.monotonic())
        await asyncio.to_thread(site.happen, step)
    await asyncio.to_thread(site.settle)


# -- what is printed -------------------------------------------------------------------------------


def report(result: Result) -> str:
    """Figures for people."""
    requests = [a for a in result.asked if a.kind != "stream"]
    fine = [a.shot.took_s for a in requests if a.shot.ok]
    lines = [
        f"seed {result.seed}: {len(result.events)} events, {len(requests)} requests, "
        f"{len(result.asked) - len(requests)} streams",
        f"answered in p50 {percentile(fine, 0.5):.3f} s, p99 {percentile(fine, 0.99):.3f} s, "
        f"at most {max(fine):.3f} s; CPU {result.cpu:.2f} of a core",
    ]
    for verdict in Verdict:
        of = result.having(verdict)
        if of:
            kinds = Counter(
                f"{a.kind} {a.carrier or '-'}" if a.kind == "stream" else a.kind for a in of
            )
            told = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
            lines.append(f"{verdict.value:28} {len(of):6}  {told}")
    lines += [
        f"carried out twice because a line died: {len(result.doubled)}",
        f"memory by quarter: {_quarters(result.quarters)}",
        f"warm: {_held(result.warm)}",
        f"left: {_held(result.left)}",
        *(f"MISSED {one}" for one in result.misses()[:40]),
    ]
    return "\n".join(lines)


def _quarters(quarters: list[float]) -> str:
    return ", ".join(f"{size:.1f}" for size in quarters) + " MB"


def _held(held: Holding) -> str:
    return ", ".join(
        f"{name} {value / 1e6:.1f} MB" if name == "rss_bytes" else f"{name} {value}"
        for name, value in asdict(held).items()
    )


def _tell(asked: Asked, verdict: Verdict, begun: float) -> str:
    shot = asked.shot
    body = shot.body[-300:].decode(errors="replace") if shot.status not in (None, 200) else ""
    return (
        f"{verdict.value} {shot.id} due {shot.due - begun:.2f} took {shot.took_s:.2f} "
        f"status {shot.status} {shot.error or ''} "
        f"{asked.log.get('path')} {asked.carrier} {asked.log.get('error', '')} {body}"
    )


def _account(result: Result) -> dict[str, Any]:
    """Everything that was not fine, and when."""
    happened = [
        {"event": str(event), "at_s": event.at_s, "turns": event.turns} for event in result.events
    ]
    shots = [
        {
            "verdict": verdict.value,
            "id": asked.shot.id,
            "due": asked.shot.due - result.begun,
            "took_s": asked.shot.took_s,
            "status": asked.shot.status,
            "error": asked.shot.error,
            "body": asked.shot.body[-600:].decode(errors="replace"),
            "log": asked.log,
        }
        for asked, verdict in zip(result.asked, result.verdicts, strict=True)
        if verdict is not Verdict.OK or asked.shot.took_s > 2 or len(asked.log.get("tried", ())) > 1
        if asked.kind != "stream" or verdict is not Verdict.OK
    ]
    return {"begun": result.begun, "happened": happened, "shots": shots}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1440.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="where logs and accounts of the run go")
    parser.add_argument("--plan", action="store_true", help="print what would happen, and when")
    arguments = parser.parse_args()
    if arguments.plan:
        print(*schedule(arguments.seed, arguments.seconds), sep="\n")
        return 0
    if reason := missing():
        raise SystemExit(f"bench/chaos.py: {reason}")
    with tempfile.TemporaryDirectory(prefix="edged-chaos-") as name:
        directory = Path(name)
        there = arguments.keep and arguments.keep / f"seed-{arguments.seed}-{arguments.seconds:g}"
        try:
            result = run(directory, arguments.seed, arguments.seconds)
        finally:
            if there:
                shutil.rmtree(there, ignore_errors=True)
                shutil.copytree(directory, there, ignore=shutil.ignore_patterns("*.key", "*.pem"))
        if there:
            (there / "account.json").write_text(json.dumps(_account(result), indent=1))
            (there / "report.txt").write_text(report(result))
    print(report(result))
    return 1 if result.misses() else 0


if __name__ == "__main__":
    sys.exit(main())
