"""What the demo shows: a live table of the paths on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from edged.lab.lab import Lab
from edged.lab.traffic import Tally
from edged.table import PathTable
from policies.model import Candidate, Estimate, Path, PathState, RequestClass, Verdict

_COLOURS = {Verdict.UP: "green", Verdict.SUSPECT: "yellow", Verdict.DOWN: "red"}
_EVENTS = 8
SHOWN = RequestClass.of(1000)
"""The class of the demo's small requests."""
UPSTREAM = "llm"


class View:
    """Shows paths, events and hints; ``live`` redraws, else events are printed as they come."""

    def __init__(self, lab: Lab, table: PathTable, tally: Tally, hints: list[str], *, live: bool):
        self._lab = lab
        self._table = table
        self._tally = tally
        self._hints = hints
        self._events: deque[str] = deque(maxlen=_EVENTS)
        self._live: Live | None = None
        if live:
            console = Console(highlight=False)
            self._live = Live(self._render(), console=console, refresh_per_second=4)

    def __enter__(self) -> View:
        print("Try:", *self._hints, "", sep="\n", flush=True)  # plain, so that they can be copied
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.update(self._render(), refresh=True)
            self._live.stop()

    def event(self, at_s: float, text: str) -> None:
        """Something happened ``at_s`` after the start."""
        line = f"{at_s:6.2f} s  {text}"
        self._events.append(line)
        if not self._live:
            print(line, flush=True)

    def refresh(self) -> None:
        """Redraw."""
        if self._live:
            self._live.update(self._render())

    def status_line(self) -> str:
        """The choice and the counts, as one line."""
        ranking = self._table.peek(UPSTREAM, SHOWN)
        chosen = ranking.order[0].state.path.name if ranking.order else "none"
        verdicts = ", ".join(
            f"{state.path.line.name} {state.verdict.name}" for state in self._best_by_line()
        )
        t = self._tally
        return (
            f"choice {chosen}; {verdicts}; {t.requests} requests, {t.failed} failed, "
            f"longest {t.longest_s:.2f} s; {t.streams} streams, {t.streams_broken} broken"
        )

    def _best_by_line(self) -> list[PathState]:
        best: dict[str, PathState] = {}
        for state in self._table.snapshot.paths.values():
            name = state.path.line.name
            if name not in best or state.verdict < best[name].verdict:
                best[name] = state
        return list(best.values())

    def _render(self) -> RenderableType:
        t = self._tally
        counts = Text.assemble(
            f"{t.requests} requests, ",
            (f"{t.failed} failed", "bold red" if t.failed else "bold green"),
            f", longest {t.longest_s:.2f} s; {t.streams} streams, {t.streams_broken} broken, "
            f"{t.tokens} tokens, {t.tokens_lost} lost",
        )
        events = Text("\n".join(self._events) or "warming up")
        return Group(self._paths(), Panel(Group(counts, events), title="traffic"))

    def _paths(self) -> RenderableType:
        ranking = self._table.peek(UPSTREAM, SHOWN)
        rows = [
            (candidate, self._truth(candidate.state.path), place == 0)
            for place, candidate in enumerate(ranking.order)
        ]
        return _Fitting(rows)

    def _truth(self, path: Path) -> Text:
        """What the lab does to the path now."""
        line = self._lab.lines[path.line.name]
        up, down = line.up.impairment, line.down.impairment
        if up.blackhole and down.blackhole:
            return Text("BLACKHOLE", style="bold red")
        rtt_s = line.rtt_s + self._lab.endpoints[path.endpoint.name].spec.extra_rtt_s
        return Text(f"{rtt_s * 1e3:.0f} ms, {up.loss:.1%} loss")


_LEAST_RTT_S = 0.001
"""No emulated line is as short."""

_Row = tuple[Candidate, Text, bool]
"""A path, what the lab does to it, and whether it is the choice."""


class _Fitting:
    """The table of paths with as many columns as the terminal has room for."""

    def __init__(self, rows: list[_Row]) -> None:
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Asked by rich."""
        wide = options.update(width=1000)
        for least in range(_MOST_DISPENSABLE + 1):
            table = self._table([c for c in _COLUMNS if c.dispensable <= _MOST_DISPENSABLE - least])
            if Measurement.get(console, wide, table).maximum <= options.max_width:
                break
        table.expand = True
        yield table

    def _table(self, columns: list[_Column]) -> Table:
        table = Table()
        for column in columns:
            table.add_column(column.heading, justify=column.justify, no_wrap=True)
        for row in self._rows:
            table.add_row(*(column.cell(*row) for column in columns))
        return table


class _Column(NamedTuple):
    heading: str
    dispensable: int
    """Columns with the greatest number are left out first."""
    justify: Literal["left", "right"]
    cell: Callable[[Candidate, Text, bool], RenderableType]


_COLUMNS = (
    _Column("", 0, "left", lambda c, truth, first: Text("▶" if first else "", "bold green")),
    _Column("path", 0, "left", lambda c, truth, first: c.state.path.name),
    _Column("set to", 3, "left", lambda c, truth, first: truth),
    _Column(
        *("verdict", 0, "left"),
        lambda c, truth, first: Text(c.state.verdict.name, f"bold {_COLOURS[c.state.verdict]}"),
    ),
    _Column("RTT", 0, "right", lambda c, truth, first: _rtt(c.state.estimate)),
    _Column("loss at most", 5, "right", lambda c, truth, first: _share(c.state.estimate.loss)),
    _Column("cost", 1, "right", lambda c, truth, first: f"{c.cost_ms:.0f} ms"),
    _Column("carrier", 2, "right", lambda c, truth, first: c.state.warm or ""),
    _Column("in flight", 4, "right", lambda c, truth, first: str(c.state.in_flight)),
)
_MOST_DISPENSABLE = max(column.dispensable for column in _COLUMNS)


def _share(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1%}"


def _rtt(estimate: Estimate) -> str:
    """Nothing is known until something went all the way: echoes to emulated lines are answered by
    this host at once."""
    rtt_s = estimate.rtt_s
    return "-" if rtt_s is None or rtt_s < _LEAST_RTT_S else _ms(rtt_s)


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.0f} ms"
