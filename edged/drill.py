"""A line's death, rehearsed on the live daemon: the state behind ``edged drill``.

`Drill` makes one line's sockets fall silent (`edged.line_sockets`), watches verdicts and exchanges,
brings the line back, watches traffic return to it, and sums up in a `Report`. `Drills` sees to it
that there is one at a time and that somebody else can carry the traffic.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

from edged.accesslog import ExchangeRecord
from edged.line_sockets import LineSockets
from edged.socket_filter import supported
from policies.model import Change, Path, Verdict

if TYPE_CHECKING:
    from edged.exchanges import Exchanges
    from edged.table import PathTable

_log = logging.getLogger("edged")

LONGEST_S = 600.0
RETURN_S = 20.0
"""Longest wait for traffic to return, after the line is back."""
SETTLE_S = 1.0
"""The same, if nobody took it for dead, or somebody asked for the end."""
BEAT_S = 1.0
"""Between signs of life to whoever listens."""

Data = dict[str, Any]
Tell = Callable[[Data], None]


class DrillRefused(Exception):
    """It must not be done now. The text says why."""


@dataclass(slots=True)
class Report:
    """What traffic felt. Times are seconds since the line fell silent, or came back; ``None``: it
    did not happen. Requests are those that began before the line was back.
    """

    line: str
    kind: str = "blackhole"
    silent_s: float = 0.0
    """How long it lasted."""
    ended_by: str = ""
    """``time``, ``request``, ``client gone``, ``reload`` or ``shutdown``."""
    in_use: list[str] = field(default_factory=list)
    """Upstreams whose requests took the line when it began."""
    requests: int = 0
    """Over by the end, whatever path they took."""
    failed: int = 0
    """Answered by edged itself with an error."""
    broken: int = 0
    """Responses cut after they had begun."""
    tunnels_closed: int = 0
    """CONNECT tunnels, which cannot change their line."""
    unfinished: int = 0
    """Begun before the line was back, in contact with it, and not over at the end."""
    errors: dict[str, int] = field(default_factory=dict)
    longest_s: float | None = None
    """Greatest time to the first byte of a response, or to an error."""
    longest_id: str | None = None
    gap_s: float | None = None
    """To the next request completed over another line, of the upstreams in use."""
    moved: int = 0
    """Begun on the line and completed over another."""
    replayed: int = 0
    """Of these, sent again after the first may have been executed."""
    migrated: int = 0
    """Went on over another line, unrepeated."""
    hedged: int = 0
    suspect_s: float | None = None
    down_s: float | None = None
    up_s: float | None = None
    """Since the line was back."""
    returned_s: float | None = None
    """Since the line was back, to the next request completed over it."""

    @property
    def ok(self) -> bool:
        """Whether nobody was failed."""
        return not (self.failed or self.broken or self.tunnels_closed)

    def __str__(self) -> str:
        """One line for the log."""
        longest = "" if self.longest_s is None else f", longest {self.longest_s:.2f} s"
        return (
            f"{self.line} was silent for {self.silent_s:.1f} s ({self.ended_by}): "
            f"{self.requests} requests, {self.failed} failed, {self.broken} broken, "
            f"{self.tunnels_closed} tunnels closed, {self.moved} moved, {self.replayed} sent again"
            f"{longest}"
        )

    def data(self) -> Data:
        """For JSON."""
        return {
            "ok": self.ok,
            **{k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()},
        }


class Drill:
    """One rehearsal, from `__init__` until ``over`` is called."""

    def __init__(
        self,
        line: str,
        for_s: float,
        *,
        sockets: LineSockets,
        table: PathTable,
        exchanges: Exchanges,
        in_use: list[str],
        tell: Tell,
        over: Callable[[Drill], None],
    ) -> None:
        self.line = line
        self.report = Report(line, in_use=in_use)
        self._sockets = sockets
        self._table = table
        self._exchanges = exchanges
        self._tell_one = tell
        self._over = over
        self._loop = asyncio.get_running_loop()
        self._errors: Counter[str] = Counter()
        self._began_at = monotonic()
        self.ends_at = self._began_at + for_s
        self._back_at: float | None = None
        self._done = False
        _log.warning("drill: %s falls silent for %g s", line, for_s)
        self._tell("silent", for_s=for_s, in_use=in_use, inward=supported())
        table.set_drilled(line, True)
        sockets.silence()
        self._timer = self._loop.call_at(self._loop.time() + for_s, self.restore, "time")
        self._beat = self._loop.call_later(BEAT_S, self._show_life)

    @property
    def silent(self) -> bool:
        """Whether the line is silenced; else traffic is watched returning to it."""
        return self._back_at is None

    # -- events ----------------------------------------------------------------------------------

    def path_changed(self, change: Change) -> None:
        """A verdict changed somewhere."""
        if self._done or _line_of(change.path) != self.line:
            return
        report, verdict = self.report, self._table.line_verdict(self.line)
        if self._back_at is None:
            if change.new is not Verdict.UP and report.suspect_s is None:
                report.suspect_s = self._since(self._began_at)
                self._tell("verdict", verdict=change.new.name, reason=change.reason)
            if verdict is Verdict.DOWN and report.down_s is None:
                report.down_s = self._since(self._began_at)
                self._tell("verdict", verdict="DOWN", reason=change.reason)
        elif verdict is Verdict.UP and report.up_s is None:
            report.up_s = self._since(self._back_at)
            self._tell("verdict", verdict="UP", reason=change.reason)
            self._finish_if_back()

    def exchange_over(self, record: ExchangeRecord) -> None:
        """An exchange ended."""
        if self._done:
            return
        report, back_at = self.report, self._back_at
        afterwards = back_at is not None and monotonic() - record.total_s >= back_at
        if not afterwards:
            self._count(record)
        if record.error or record.path_name is None or record.upstream not in report.in_use:
            return
        here = _line_of(record.path_name) == self.line
        if back_at is None:
            if not here and report.gap_s is None:
                report.gap_s = self._since(self._began_at)
                self._tell("moved", path=record.path_name)
        elif here and afterwards and report.returned_s is None:
            report.returned_s = self._since(back_at)
            self._tell("returned", path=record.path_name)
            self._finish_if_back()

    # -- commands --------------------------------------------------------------------------------

    def restore(self, by: str) -> None:
        """Bring the line back."""
        if self._back_at is not None:
            return
        self._timer.cancel()
        self._back_at = monotonic()
        self.report.silent_s = self._back_at - self._began_at
        self.report.ended_by = by
        self._sockets.restore()
        self._table.set_drilled(self.line, False)
        _log.warning("drill: %s is back after %.1f s (%s)", self.line, self.report.silent_s, by)
        worth_it = by == "time" and self.report.suspect_s is not None
        self._tell("back", by=by, watching=worth_it)
        wait_s = RETURN_S if worth_it else SETTLE_S
        self._timer = self._loop.call_later(wait_s, self.finish)

    def stop(self, by: str) -> None:
        """End it: the silence if it lasts, else the wait for the return."""
        if self._back_at is None:
            self.restore(by)
        else:
            self.finish()

    def finish(self) -> None:
        """The end, with a report."""
        if self._done:
            return
        self.restore("request")
        self._done = True
        self._timer.cancel()
        self._beat.cancel()
        self.report.errors = dict(self._errors)
        self.report.unfinished = self._count_unfinished()
        _log.info("drill: %s", self.report)
        self._tell("report", **self.report.data())
        self._over(self)

    # -- parts -----------------------------------------------------------------------------------

    def _count(self, record: ExchangeRecord) -> None:
        report = self.report
        if record.error == "client_gone":
            return
        report.requests += 1
        report.hedged += record.hedged
        if record.error is not None:
            self._errors[record.error] += 1
            if record.path_name is None:
                report.failed += 1
            elif record.method == "CONNECT":
                report.tunnels_closed += 1
            else:
                report.broken += 1
        tries = record.tries
        touched = [t for t in tries if _line_of(t.path) == self.line]
        if touched and record.error is None and record.path_name is not None:
            migrated = any(t.moved for t in touched)
            if _line_of(record.path_name) != self.line:
                report.moved += 1
                report.migrated += migrated
                report.replayed += record.replayed
        waited_s = record.total_s if record.ttfb_s is None else record.ttfb_s
        if report.longest_s is None or waited_s > report.longest_s:
            report.longest_s, report.longest_id = waited_s, record.request_id

    def _count_unfinished(self) -> int:
        back_at = self._back_at
        assert back_at is not None
        return sum(
            1
            for exchange in self._exchanges.live
            if exchange.started_at < back_at
            and any(_line_of(a.target.path.name) == self.line for a in exchange.live.values())
        )

    def _finish_if_back(self) -> None:
        report = self.report
        up = report.up_s is not None or report.down_s is None
        if up and (report.returned_s is not None or not report.in_use):
            # In a turn of its own: whoever told us is not through yet.
            self._timer.cancel()
            self._timer = self._loop.call_later(0, self.finish)

    def _since(self, moment: float) -> float:
        return monotonic() - moment

    def _tell(self, event: str, **more: Any) -> None:
        at_s = round(self._since(self._began_at), 4)
        self._tell_one({"event": event, "at_s": at_s, **more})

    def _show_life(self) -> None:
        self._beat = self._loop.call_later(BEAT_S, self._show_life)
        self._tell("beat", requests=self.report.requests)


class Drills:
    """At most one drill, and what it was asked."""

    def __init__(
        self,
        table: PathTable,
        exchanges: Exchanges,
        sockets: Callable[[str], LineSockets],
        choices: Callable[[], Mapping[str, Path]],
    ) -> None:
        """``choices`` gives the first path by upstream, for the requests it gets."""
        self._table = table
        self._exchanges = exchanges
        self._sockets = sockets
        self._choices = choices
        self.current: Drill | None = None
        self.count = 0
        """Begun since the start of the process."""
        table.subscribe(self._path_changed)

    def begin(self, line: str, for_s: float, *, force: bool, tell: Tell) -> Drill:
        """Begin one; ``tell`` gets its events, the last of which is the report.

        Raises `DrillRefused`.
        """
        if self.current is not None:
            raise DrillRefused(f"there is a drill already: of {self.current.line}")
        if not force and (reason := self._alone(line)) is not None:
            raise DrillRefused(reason)
        self.count += 1
        self.current = Drill(
            line,
            for_s,
            sockets=self._sockets(line),
            table=self._table,
            exchanges=self._exchanges,
            in_use=[name for name, path in self._choices().items() if path.line.name == line],
            tell=tell,
            over=self._ended,
        )
        return self.current

    def record(self, record: ExchangeRecord) -> None:
        """An exchange is over."""
        if self.current is not None:
            self.current.exchange_over(record)

    def reloaded(self, lines: Iterable[str]) -> None:
        """The configuration changed: these lines exist."""
        if self.current is not None and self.current.line not in set(lines):
            self.end("reload")

    def end(self, by: str) -> None:
        """End whatever goes on."""
        if self.current is not None:
            self.current.stop(by)
        if self.current is not None:
            self.current.finish()

    def _alone(self, line: str) -> str | None:
        """Why this line must not die now; ``None``: others can do its work."""
        snapshot = self._table.snapshot
        for upstream, names in snapshot.upstreams.items():
            states = [snapshot.paths[name] for name in names]
            others = [s for s in states if s.path.line.name != line]
            if len(others) == len(states):
                continue
            if not any(s.usable and s.verdict is Verdict.UP for s in others):
                there = ", ".join(f"{s.path.line.name} is {s.verdict.name}" for s in others)
                return (
                    f"upstream {upstream} has no other path that is UP"
                    f"{f' ({there})' if there else ''}; --force does it all the same"
                )
        return None

    def _path_changed(self, change: Change) -> None:
        if self.current is not None:
            self.current.path_changed(change)

    def _ended(self, drill: Drill) -> None:
        self.current = None


def _line_of(path: str) -> str:
    return path.partition(">")[0]
