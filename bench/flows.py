"""Flows through a relay over real lines, held against bars: streams whose line dies, flows while
everything happens, large bodies, the deaths of relay and edge.

    python bench/flows.py [ROW ...] [--seed S] [--labs N] [--rounds N] [--streams N]
        [--seconds S] [--keep DIR]

Rows: never always random upload download tunnel relay-killed edge-killed; all of them if none is
named. ``--labs`` of ``--rounds`` with ``--streams`` each are for the rows of streams, ``--seconds``
for "random". Needs root (see tests/netns). Everything runs before whatever else the machine does.
Ends with 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import flows_bulk, flows_deaths, flows_random, flows_streams
from tests.netns.lab import missing

GAPS_S = {"never": (0.45, 0.7), "always": (0.12, 0.12)}
"""Bars of the longest gap by policy: of the median run, and of the worst."""
LEAST_SHARE = 0.7
TWICE_BYTES = 2_000_000
END_S, NEW_S, FREE_S = 2.0, 1.0, 35.0

Row = Callable[[Path, argparse.Namespace], Iterator[str]]
"""Prints its figures, and gives the bars that it misses."""


def streams(policy: str) -> Row:
    """Bar 1."""

    def row(directory: Path, options: argparse.Namespace) -> Iterator[str]:
        seeds = range(options.seed, options.seed + options.labs)
        played = flows_streams.play(directory, policy, seeds, options.rounds, options.streams)
        longest = played.longest()
        median = statistics.median(longest)
        told = ", ".join(f"{gap:.3f}" for gap in longest[-6:][::-1])
        print(f"{policy}: {len(longest)} streams, longest gap median {median:.3f} s, worst {told}")
        calm = played.longest(disturbed=False)
        print(
            f"  {len(calm)} while the machine did not stall: worst {max(calm, default=0.0):.3f} s"
        )
        yield from (f"not every token once: {run}" for run in played.runs if not run.right)
        most_median, most = GAPS_S[policy]
        if median > most_median:
            yield f"{policy}: median {median:.3f} s of {most_median}"
        yield from (f"{policy}: {run}" for run in played.runs if run.longest_s > most)
        if flows_random.BUG.search(played.logs):
            yield "a bug in a log"

    return row


def everything(directory: Path, options: argparse.Namespace) -> Iterator[str]:
    """Bar 2."""
    result = flows_random.run(directory, options.seed, options.seconds)
    print(result.told())
    yield from result.misses()


def bulk(kind: str) -> Row:
    """Bar 3."""

    def row(directory: Path, options: argparse.Namespace) -> Iterator[str]:
        played = flows_bulk.play(directory, kind, options.seed)
        print(played.told())
        for transfer in (played.alone, played.killed):
            if not transfer.got.fine:
                yield f"{kind}: {transfer.got}"
        if played.share < LEAST_SHARE:
            yield f"{kind}: {played.share:.2f} of the goodput alone"
        if played.killed.twice_bytes > TWICE_BYTES:
            yield f"{kind}: {played.killed.twice_bytes / 1e6:.2f} MB sent twice"

    return row


def tunnel(directory: Path, options: argparse.Namespace) -> Iterator[str]:
    """Bar 3."""
    played = flows_bulk.session(directory, options.seed)
    print(played.told())
    if played.error or len(played.changes) < 10:
        yield played.told()


def relay_killed(directory: Path, options: argparse.Namespace) -> Iterator[str]:
    """Bar 4."""
    death = flows_deaths.relay_killed(directory, options.seed)
    print(f"relay killed:\n{death.told()}")
    for got in death.got:
        if got.ask.kind in flows_deaths.BEGUN:
            if got.whole:
                yield f"looks whole: {got}"
            if got.ended > death.at + END_S:
                yield f"ended {got.ended - death.at:.2f} s after: {got}"
        elif not got.fine:
            yield f"was not repeated: {got}"
    for got in death.later:
        if not got.fine or got.took_s > NEW_S:
            yield f"{got.began - death.at:.2f} s after: {got}"


def edge_killed(directory: Path, options: argparse.Namespace) -> Iterator[str]:
    """Bar 4."""
    for vanishes in (False, True):
        there = directory / ("gone" if vanishes else "killed")
        there.mkdir()
        left = flows_deaths.edge_killed(there, options.seed, vanishes=vanishes)
        print(left.told())
        if left.free_s is None or left.free_s > FREE_S:
            yield left.told()


ROWS: dict[str, Row] = {
    "never": streams("never"),
    "always": streams("always"),
    "random": everything,
    "upload": bulk("upload"),
    "download": bulk("download"),
    "tunnel": tunnel,
    "relay-killed": relay_killed,
    "edge-killed": edge_killed,
}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", choices=[*ROWS, []])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--labs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--streams", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--keep", type=Path, help="where logs and configurations stay")
    options = parser.parse_args()
    if reason := missing():
        raise SystemExit(f"bench/flows.py: {reason}")
    # With all it starts. A higher priority alone counts for little between sessions (autogroup).
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    missed = []
    with tempfile.TemporaryDirectory(prefix="edged-flows-") as name:
        for row in options.rows or ROWS:
            there = (options.keep or Path(name)) / row
            there.mkdir(parents=True)
            for miss in ROWS[row](there, options):
                missed.append(miss)
                print(f"MISSED {miss[:700]}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
