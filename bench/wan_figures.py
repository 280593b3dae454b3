"""What is read off a run of `bench/wan.py`. Seconds, counts, shares; `None` where there is nothing
to read."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.wan_traffic import Shot, Thinkers

Figures = dict[str, float | None]
_FOUND_OUT_S = 0.9
_SETTLED_S = 2.0
"""After an event, what is due later counts as after."""


@dataclass(slots=True)
class Run:
    """Everything that was seen of one scenario with one peer and one seed."""

    row: Any
    peer: str
    begun: float
    shots: list[Shot]
    happened: list[float]
    """When each event took effect."""
    executions: dict[str, int]
    bytes_at: dict[str, dict[str, int]]
    """IP bytes by line, at ``begin``, ``event`` (the first) and ``end``, and at the ends of the
    row's ``span``."""
    ended: float
    cpu_s: float | None
    sources: dict[str, str]
    """The edge's address by line."""
    access_log: list[dict[str, Any]] = field(default_factory=list)
    reference: dict[str, Figures] = field(default_factory=dict)
    """By key, the best medians of rows measured before: what a line alone does."""

    @property
    def died(self) -> float | None:
        """When the first event took effect."""
        return self.happened[0] if self.happened else None


def percentile(values: Iterable[float], share: float) -> float | None:
    """The smallest value that at least ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def common(run: Run) -> Figures:
    """Of every row."""
    shots = run.shots
    died = run.died if run.died is not None else math.inf
    before = [s.took_s for s in shots if s.ok and s.ended is not None and s.ended < died]
    after = [s.took_s for s in shots if s.ok and s.due > died + _SETTLED_S]
    # A line that is dead one way lets requests arrive until that is found out.
    known = died + (_FOUND_OUT_S if run.row.kills else 0)
    flying = {s.id for s in shots if s.due <= known and (s.ended is None or s.ended >= died)}
    twice = {i: n - 1 for i, n in run.executions.items() if n > 1}
    seconds = run.ended - run.begun
    at = run.bytes_at
    until = "event" if "event" in at else "end"
    standby = list(run.sources)[-1]
    span = (run.happened[0] if run.happened else run.ended) - run.begun
    probes = (at[until][standby] - at["begin"][standby]) * 8 / span / 1000
    sent = sum(at["end"].values()) - sum(at["begin"].values())
    answered = sum(s.ok for s in shots)
    return {
        "requests": len(shots),
        "failed": sum(not s.ok for s in shots),
        "longest": max((s.took_s for s in shots if not s.tokens), default=None),
        "slow": sum(s.took_s > 1 for s in shots),
        "p50 before": percentile(before, 0.5),
        "p99 before": percentile(before, 0.99),
        "p50 after": percentile(after, 0.5),
        "p99 after": percentile(after, 0.99),
        "doubled in flight": sum(n for i, n in twice.items() if i in flying),
        "doubled": sum(n for i, n in twice.items() if i not in flying),
        "bytes per request": sent / answered if answered else None,
        "standby kbit/s": probes if len(run.sources) > 1 else None,
        "cpu": run.cpu_s / seconds if run.cpu_s is not None else None,
    }


def first_after(run: Run) -> Figures:
    """The first request after the event."""
    later = [s for s in run.shots if run.died is not None and s.due > run.died]
    return {"first": later[0].took_s if later and later[0].ok else math.inf}


def touched(run: Run) -> Figures:
    """Requests, due over 1 s after the event, for which the dead line was tried (edged only)."""
    if run.peer != "edged" or run.died is None:
        return {"touched": None}
    dead = run.row.events[0].line
    ids = {s.request_id for s in run.shots if s.due > run.died + 1}
    late = [entry for entry in run.access_log if entry["id"] in ids]
    count = 0
    for entry in late:
        paths = [t["path"] for t in entry.get("tried", [])] or [entry.get("path") or ""]
        count += any(path.split(">")[0] == dead for path in paths)
    return {"touched": count}


def streams(run: Run) -> Figures:
    """Of token streams."""
    shots = [s for s in run.shots if s.flow == "s"]
    expected = next(f.tokens for f in run.row.flows if f.name == "s")
    lost = [s.lost_and_doubled(expected) for s in shots]
    return {
        "lost": sum(a for a, _ in lost),
        "again": sum(b for _, b in lost),
        "gap": max((s.longest_gap_s() if s.ok else math.inf) for s in shots),
    }


def _line_of(run: Run, shot: Shot) -> str | None:
    names = {address: line for line, address in run.sources.items()}
    return names.get(shot.line_address or "")


def moved(run: Run) -> Figures:
    """Time from the event until the last request for a while took the line, and moves per run.

    ``moved``: when the first of ten consecutive requests left by another line than the one that
    the event hit. ``moves``: changes of line between runs of at least three requests.
    """
    assert run.died is not None
    hit = run.row.events[0].line
    after = [(s.due - run.died, _line_of(run, s)) for s in run.shots if s.ok and s.due > run.died]
    away = next(
        (
            at
            for n, (at, _) in enumerate(after)
            if all(line != hit for _, line in after[n : n + 10])
        ),
        math.inf,
    )
    lines = [_line_of(run, s) for s in run.shots if s.ok]
    settled: list[str | None] = []
    for n in range(len(lines) - 2):
        if lines[n] == lines[n + 1] == lines[n + 2] and (not settled or settled[-1] != lines[n]):
            settled.append(lines[n])
    return {"moved": away, "moves": len(settled) - 1}


def against_b(run: Run) -> Figures:
    """p99 from 2 s after the event on, beside that of line B alone."""
    assert run.died is not None
    later = [s.took_s for s in run.shots if s.due > run.died + _SETTLED_S]
    own = run.reference.get("B", {}).get("p99 before")
    p99 = percentile(later, 0.99)
    return {"p99 ratio": p99 / own if own and p99 else None}


def uploads(run: Run) -> Figures:
    """Of one large upload."""
    return {"upload": max(s.took_s if s.ok else math.inf for s in run.shots if s.flow == "u")}


def upload_against_b(run: Run) -> Figures:
    """The upload's time beside that on line B alone."""
    own = run.reference.get("B upload", {}).get("upload")
    took = uploads(run)["upload"]
    return {"upload ratio": took / own if own and took else None}


def broken(run: Run) -> Figures:
    """Answers that looked whole though the origin broke them off; and here none may be whole."""
    return {"whole": sum(s.ok for s in run.shots), "failed": None}


def steady_state(run: Run) -> Figures:
    """Without any event: the median beyond the round trip, and requests carried out in excess."""
    took = [s.took_s for s in run.shots]
    median = statistics.median(took)
    ids = {s.id for s in run.shots}
    extra = sum(n - 1 for i, n in run.executions.items() if i in ids)
    rtt_s = next(iter(run.row.site["lines"])).rtt_s
    return {
        "p50 over RTT": median - rtt_s,
        "p99": percentile(took, 0.99),
        "more": extra / len(took),
        "doubled": None,
    }


def documents(run: Run) -> Figures:
    """Uploads one after the other."""
    return {"document": statistics.median(s.took_s if s.ok else math.inf for s in run.shots)}


def thinkers(run: Run) -> Figures:
    """How long after the line's death requests were whole at the origin again, by another line, or
    were refused where they may not be repeated; ``failed`` leaves out those that must be.

    ``answered in``: the same by when the answer was whole, less the time to think: what happens to
    the answer on the other line counts there, too.
    """
    allowed = [s for s in run.shots if s.flow != "never"]
    figures: Figures = {"failed": sum(not s.ok for s in allowed)}
    if run.died is None:
        return figures
    died = run.died
    thinking = {f.name: f.think_s for f in run.row.flows if isinstance(f, Thinkers)}
    asked = [
        (s, at)
        for s in allowed
        if s.flow in thinking and s.ok and (at := json.loads(s.body)["asked_at"]) > died
    ]
    refused = [s.ended - died for s in run.shots if s.status == 502 and s.ended]
    figures["repeated"], figures["refused"] = len(asked), len(refused)
    figures["moved in"] = max((at - died for _, at in asked), default=None)
    figures["answered in"] = max(
        (s.ended - died - thinking[s.flow] for s, _ in asked if s.ended), default=None
    )
    figures["refused in"] = max(refused, default=None)
    return figures


def idle(run: Run) -> Figures:
    """Bytes of the busiest line with nobody asking, as MB a day."""
    begin, end = run.bytes_at["first"], run.bytes_at["last"]
    most = max(end[line] - begin[line] for line in end)
    return {"MB a day": most / run.row.span_s * 86400 / 1e6}


def waiting(run: Run) -> Figures:
    """kbit/s of the busiest line while one exchange waits."""
    begin, end = run.bytes_at["first"], run.bytes_at["last"]
    most = max(end[line] - begin[line] for line in end)
    return {"probes": most * 8 / run.row.span_s / 1000}


def spread(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Median and worst (largest) of those that there are."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return statistics.median(there), max(there)


def middle(runs: Sequence[Figures]) -> Figures:
    """The median of each figure."""
    names = dict.fromkeys(name for run in runs for name in run)
    spreads = {name: spread([run.get(name) for run in runs]) for name in names}
    return {name: both[0] if both else None for name, both in spreads.items()}
