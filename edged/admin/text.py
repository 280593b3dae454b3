"""The data of the admin pages as text for a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

Data = dict[str, Any]

_VERDICT_STYLE = {"UP": "green", "SUSPECT": "yellow", "DOWN": "red"}


def print_status(console: Console, data: Data) -> None:
    """``edged status``."""
    for part in _status(data):
        console.print(part)


def print_why(console: Console, data: Data) -> None:
    """``edged why``."""
    for part in _why(data):
        console.print(part)


def _status(data: Data) -> Iterator[RenderableType]:
    state = "ready" if data["ready"] else f"not ready: {data['not_ready']}"
    yield Text.assemble(
        (f"edged {data['version']}", "bold"),
        f" on {data['node']}, pid {data['pid']}, up {duration(data['uptime_s'])}, ",
        (state, "green" if data["ready"] else "red"),
    )
    clients, lag = data["clients"], data["loop_lag_ms"]
    yield Text(
        f"listening on {', '.join(data['listening'])}; {clients['connections']} connections, "
        f"{clients['requests_open']} requests open, {clients['requests_total']} in all; "
        f"loop lag p99 {lag['p99']:.1f} ms"
    )
    if (relay := data.get("relay")) is not None:
        yield from _relay(relay)
    for one in data.get("relays", ()):
        yield from _relay_used(one)
    if (drill := data["drill"]) is not None:
        left = f"for {drill['silent_for_s']:.0f} s more" if drill["silent_for_s"] else "no more"
        yield Text(f"drill: {drill['line']} is silenced on purpose {left}", style="yellow")
    reload = data["reload"]
    if not reload["ok"]:
        yield Text(f"the last reload (by {reload['by']}) was refused:", style="red")
        yield from (Text(f"  {mistake}") for mistake in reload["mistakes"])
    yield _lines(data["lines"])
    for line in data["lines"]:
        if line["problem"]:
            yield Text(line["problem"], style="red")
        if line["dns_problem"]:
            yield Text(
                f"line {line['name']}: {line['dns_problem']}: known names keep their old addresses",
                style="yellow",
            )
    for upstream in data["upstreams"]:
        yield from _upstream(upstream)
    if data["unlisted"]["requests"]:
        unlisted = data["unlisted"]
        yield Text(f"unlisted hosts: {_counts(unlisted)}")


def _relay(relay: Data) -> Iterator[RenderableType]:
    kept, limit = relay["journal_bytes"] / 1e6, relay["journal_limit_bytes"] / 1e6
    yield Text(
        f"{relay['flows']} flows, {kept:.1f} of {limit:.0f} MB of responses kept, "
        f"{relay['strangers']} requests of strangers"
    )
    for client in relay["clients"]:
        yield Text(
            f"  {client['name']}: {client['flows']} flows ({client['finished']} finished), "
            f"{client['pulses']} lines, {client['opened']} in all, {client['refused']} refused"
        )


def _relay_used(relay: Data) -> Iterator[RenderableType]:
    legs = ", ".join(
        f"{leg['line']} {ms(leg['rtt_ms'])}" + ("" if leg["connected"] else " (no pulse)")
        for leg in relay["legs"]
    )
    yield Text(
        f"relay {relay['name']}: {relay['flows']} flows, {relay['copies']} of them twice, "
        f"{relay['asked_again']} asked for again; {legs}"
    )


def _lines(lines: Sequence[Data]) -> Table:
    table = _table("line", "kind", "bound to", "usable paths", "probe traffic")
    for line in lines:
        table.add_row(
            line["name"],
            line["kind"],
            line["bind"],
            f"{line['paths_usable']} of {line['paths']}",
            size(line["probe_bytes"]),
        )
    return table


def _upstream(upstream: Data) -> Iterator[RenderableType]:
    ways = [*upstream["hosts"], *([upstream["prefix"]] if upstream["prefix"] else [])]
    yield Text.assemble(
        "\n",
        (upstream["name"], "bold"),
        f"  {', '.join(ways)}  policy {upstream['policy']}  {_counts(upstream)}",
    )
    yield _candidates(upstream["paths"], parts=False)
    yield from _reasons(upstream["paths"])
    yield Text(f"for {_class(upstream['class'])}: {upstream['decided_by']}", style="dim")


def _counts(data: Data) -> str:
    text = f"{data['requests']} requests, {data['in_flight']} in flight"
    errors = sum(data["errors"].values())
    if errors:
        text += f", {errors} errors"
    if (mean := data.get("ttfb_ms", {}).get("mean")) is not None:
        text += f", first byte after {ms(mean)} on average"
    for word in ("retries", "failovers", "migrations", "hedges", "aborted"):
        if data.get(word):
            text += f", {data[word]} {word}"
    return text


def _why(data: Data) -> Iterator[RenderableType]:
    request = data["request"]
    if request is not None:
        yield from _request(request)
        yield _attempts(data["attempts"])
    ranking = data["ranking"]
    if ranking is None:
        forgotten = "Its candidates are no longer known: only the latest requests keep them."
        yield Text(forgotten if data["attempts"] else "It was answered without choosing a path.")
        return
    yield Text.assemble(("upstream ", "bold"), f"{ranking['upstream']}, {_class(ranking['class'])}")
    yield _candidates(ranking["candidates"], parts=True)
    yield from _reasons(ranking["candidates"])
    yield Text(ranking["decided_by"], style="bold")


def _reasons(candidates: Sequence[Data]) -> Iterator[Text]:
    """The sentences behind verdicts and gates."""
    for candidate in candidates:
        if candidate["reason"]:
            yield Text(f"{candidate['path']}: {candidate['reason']}", style="dim")


def _class(cls: Data) -> str:
    up_bytes, streaming = cls["up_bytes"], cls["streaming"]
    body = f"a body of up to {size(up_bytes)}" if up_bytes else "no body"
    return f"requests with {body}{' and a streamed answer' if streaming else ''}"


def _request(request: Data) -> Iterator[Text]:
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(request["started"]))
    status = request["error"] or request["status"]
    yield Text.assemble(
        (f"{request['method']} {request['authority']}{request['target']}", "bold"),
        f"  {request['id']}  {started}  {status}",
    )
    yield Text(
        f"first byte {ms(request['ttfb_ms'])}, total {ms(request['total_ms'])}, "
        f"up {size(request['bytes_up'])} ({size(request['bytes_up_wire'])} on the line), "
        f"down {size(request['bytes_down'])} ({size(request['bytes_down_wire'])} on the line)"
        + (", hedged" if request["hedged"] else "")
        + (", sent again" if request["replayed"] else "")
    )


def _attempts(attempts: Sequence[Data]) -> Table:
    table = _table("attempt", "why", "path", "carrier", "from ms", "to ms", "outcome")
    told = ""
    for number, attempt in enumerate(attempts, 1):
        why, reason = attempt["why"], attempt.get("reason", "")
        if reason and reason != told:  # else the attempt before ended with these very words
            why = f"{why}: {reason}"
        told = attempt["detail"]
        outcome = attempt["outcome"]
        if attempt["detail"]:
            outcome = f"{outcome}: {attempt['detail']}"
        table.add_row(
            str(number),
            Text(why),
            attempt["path"],
            attempt["carrier"] or "-",
            f"{attempt['started_ms']:.0f}",
            f"{attempt['ended_ms']:.0f}",
            Text(outcome),
        )
    return table


def _candidates(candidates: Sequence[Data], *, parts: bool) -> RenderableType:
    names = list(dict.fromkeys(name for c in candidates for name in c["parts"])) if parts else []
    summands = [f"{'+' if place else '='} {name}" for place, name in enumerate(names)]
    table = _table(
        *("", "path", "verdict", "score ms", *summands),
        *("RTT", "loss", "jitter", "warm", "busy", "note"),
    )
    for place, candidate in enumerate(candidates):
        table.add_row(
            Text(">" if place == 0 else "", style="bold green"),
            candidate["path"],
            Text(candidate["verdict"], style=_VERDICT_STYLE.get(candidate["verdict"], "")),
            ms(candidate["cost_ms"], unit=""),
            *(ms(candidate["parts"].get(name), unit="") for name in names),
            ms(candidate["rtt_ms"]),
            percent(candidate["loss"]),
            ms(candidate["jitter_ms"]),
            candidate["warm"] or "-",
            str(candidate["in_flight"]),
            _note(candidate),
        )
    return _Fitting(table, candidates, names) if candidates else Group(Text("no path"))


class _Fitting:
    """A table of candidates; where the terminal is too narrow for it, some lines for each."""

    def __init__(self, table: Table, candidates: Sequence[Data], parts: Sequence[str]) -> None:
        self._table = table
        self._candidates = candidates
        self._parts = parts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Asked by rich."""
        if Measurement.get(console, options.update(width=1000), self._table).maximum <= (
            options.max_width
        ):
            yield self._table
            return
        for place, candidate in enumerate(self._candidates):
            yield from self._lines(candidate, ">" if place == 0 else " ")

    def _lines(self, candidate: Data, mark: str) -> Iterator[Text]:
        verdict = candidate["verdict"]
        yield Text.assemble(
            (f"{mark} ", "bold green"),
            f"{candidate['path']}  ",
            (verdict, _VERDICT_STYLE.get(verdict, "")),
            f"  score {ms(candidate['cost_ms'])}",
        )
        if self._parts:
            parts = candidate["parts"]
            total = " + ".join(f"{name} {ms(parts.get(name), unit='')}" for name in self._parts)
            yield Text(f"    = {total}")
        yield Text(
            f"    RTT {ms(candidate['rtt_ms'])}, loss {percent(candidate['loss'])}, "
            f"jitter {ms(candidate['jitter_ms'])}, warm {candidate['warm'] or '-'}, "
            f"busy {candidate['in_flight']}" + (f"; {note}" if (note := _note(candidate)) else "")
        )


def _note(candidate: Data) -> str:
    notes = []
    if candidate["filtered"]:
        notes.append(candidate["filtered"])
    if candidate["breaker"] != "closed":
        breaker = f"breaker {candidate['breaker'].replace('_', ' ')}"
        if breaker not in notes:
            notes.append(breaker)
    if candidate["ejected_for_s"] is not None:
        notes.append(f"ejected for {candidate['ejected_for_s']:.0f} s")
    if (limit := candidate["limit"]) is not None:
        notes.append(f"{candidate['endpoint_in_flight']} of {limit:.0f} at its endpoint")
    if (legs := candidate.get("legs")) is not None:
        far = ms(legs["far_rtt_ms"]) if legs["far_verdict"] else "unknown"
        notes.append(f"{ms(legs['near_rtt_ms'])} to {legs['relay']}, {far} from there")
    if candidate["rtt_ms"] is None and candidate["distance_km"] is not None:
        notes.append(f"{candidate['distance_km']:.0f} km")
    return ", ".join(notes)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        numeric = column.split(" ")[0] in _RIGHT
        table.add_column(column, justify="right" if numeric else "left", no_wrap=column == "path")
    return table


_RIGHT = {"score", "=", "+", "RTT", "loss", "jitter", "busy", "from", "to", "attempt"}


def ms(value: float | None, *, unit: str = " ms") -> str:
    """Milliseconds with as many digits as tell something."""
    if value is None:
        return "-"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}{unit}"


def percent(value: float | None) -> str:
    """A ratio as a percentage."""
    return "-" if value is None else f"{value * 100:.1f}%"


def size(value: float) -> str:
    """Bytes in powers of 1024."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def duration(seconds: float) -> str:
    """Two units at most: ``3 d 4 h``, ``12 min 5 s``."""
    rest = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])
