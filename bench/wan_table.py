"""Figures of `bench/wan.py` as lines and as the table of docs/failover.md."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from bench.wan_figures import Figures, spread
from bench.wan_rows import Bar, Row

Results = dict[str, dict[str, list[Figures]]]
_BEGIN, _END = "<!-- bench/wan.py: begin -->", "<!-- bench/wan.py: end -->"
_SECONDS = frozenset(
    [
        *("longest", "first", "gap", "upload", "document", "moved", "p99", "p50 over RTT"),
        *(
            "p50 before",
            "p99 before",
            "p50 after",
            "p99 after",
            "moved in",
            "answered in",
            "refused in",
            "found in",
            "found at the latest in",
        ),
    ]
)
_COLUMNS = (
    ("failed", ("failed",)),
    ("longest", ("longest",)),
    ("p50 before / after", ("p50 before", "p50 after")),
    ("p99 before / after", ("p99 before", "p99 after")),
    ("executed twice (in flight)", ("doubled", "doubled in flight")),
    ("bytes a request", ("bytes per request",)),
    ("standby kbit/s", ("standby kbit/s",)),
    ("CPU", ("cpu",)),
)
_COMMON = {name for _, names in _COLUMNS for name in names} | {"requests", "slow"}


def show(name: str, value: float | None) -> str:
    """One figure with its unit."""
    if value is None:
        return "-"
    if math.isinf(value):
        return "never"
    if name in _SECONDS:
        return f"{value * 1000:.0f} ms" if value < 0.995 else f"{value:.2f} s"
    if name in ("cpu", "more"):
        return f"{value * 100:.1f}%"
    return f"{value:.0f}" if value == int(value) or value >= 100 else f"{value:.2f}"


def line(row: Row, peer: str, seed: int, figures: Figures) -> str:
    """One run, for the screen."""
    told = [f"{n} {show(n, v)}" for n, v in figures.items() if v is not None and n != "requests"]
    misses = [bar.figure for bar in row.bars if _over(figures.get(bar.figure), bar.worst)]
    mark = f"  MISSES {', '.join(misses)}" if misses else ""
    return f"{row.key:8} {peer:8} seed {seed}: {', '.join(told)}{mark}"


def _over(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value > limit + 1e-9


def verdict(bar: Bar, runs: Sequence[Figures]) -> str:
    """Whether a bar is met, with the limits and what came out."""
    values = spread([run.get(bar.figure) for run in runs])
    if values is None:
        return f"{bar.figure}: not measured"
    median, worst = values
    met = not _over(median, bar.median) and not _over(worst, bar.worst)
    limits = " / ".join(show(bar.figure, x) for x in (bar.median, bar.worst) if x is not None)
    came = f"{show(bar.figure, median)} / {show(bar.figure, worst)}"
    return f"{'met' if met else '**missed**'}: {bar.figure} {came} (bar {limits})"


def _cell(names: Sequence[str], runs: Sequence[Figures]) -> str:
    parts = []
    for name in names:
        values = spread([run.get(name) for run in runs])
        if values is None:
            parts.append("-")
        elif name in ("cpu", "bytes per request", "standby kbit/s", "p50 before", "p50 after"):
            parts.append(show(name, values[0]))
        else:
            shown = [show(name, value) for value in values]
            parts.append(shown[0] if shown[0] == shown[1] else f"{shown[0]}..{shown[1]}")
    return " / ".join(parts)


def _own(row: Row, runs: Sequence[Figures]) -> str:
    names = [name for name in runs[0] if name not in _COMMON]
    return ", ".join(f"{name} {_cell([name], runs)}" for name in names)


def markdown(rows: Sequence[Row], results: Results) -> str:
    """The tables: what was measured, and the bars of edged."""
    heads = ["row", "scenario", "who", *(head for head, _ in _COLUMNS), "besides"]
    text = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in rows:
        for peer, runs in results.get(row.key, {}).items():
            cells = [row.key, row.title, f"{peer} x{len(runs)}"]
            cells += [_cell(names, runs) for _, names in _COLUMNS]
            text.append("| " + " | ".join([*cells, _own(row, runs)]) + " |")
    text += ["", "| row | bars of edged: median / worst |", "| --- | --- |"]
    for row in rows:
        runs = results.get(row.key, {}).get("edged")
        if runs and row.bars:
            told = "<br>".join(verdict(bar, runs) for bar in row.bars)
            text.append(f"| {row.key} | {told} |")
    return "\n".join(text) + "\n"


def write(file: Path, rows: Sequence[Row], results: Results) -> None:
    """Put the tables into a page between its marks, keeping rows and peers that were not run:
    their figures are kept beside it."""
    store = file.with_name("failover.json")
    kept: Results = json.loads(store.read_text()) if store.exists() else {}
    for key, by_peer in results.items():
        kept.setdefault(key, {}).update(by_peer)
    store.write_text(json.dumps(kept, indent=0) + "\n")
    before, _, rest = file.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    file.write_text(f"{before}{_BEGIN}\n{markdown(rows, kept)}{_END}{after}")
