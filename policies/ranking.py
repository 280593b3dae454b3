"""Filter, order, hysteresis: from scored paths to the order in which an exchange tries them.

Filters, in this order; who falls to a later row stands behind all before it, by cost within a row:

1. UP, closed breaker;
2. ``hot`` (Prequal's load filter; Wydrowski et al., NSDI 2024): at the concurrency limit, in-flight
   above the 0.84 quantile and half the limit, or without the bandwidth left for this body. When
   all of row 1 are hot, none is. Traffic is meant to gather on the cheapest path, so without a
   limit being the busiest is no heat;
3. ``recovering``: fell and has not been back for long enough (the incumbent is exempt, here and of
   flapping: this is about returning, not about leaving);
4. ``suspect``, ``half-open`` and ``flapping``; but a path that is merely suspect stays in row 1
   where all of row 1 cost more by what a doubt costs;
5. ``ejected``;
6. ``breaker open``;
7. ``down``.

The best row that is usable is eligible. Never empty while a path exists.

Hysteresis, per upstream and class. The incumbent stays first until its *regret* pays for a switch:
each request adds ``C(incumbent) - C(best other) - margin`` (never below 0 in sum, decayed with a
time constant of 10 s), margin = max(5% of C, 2 standard errors of the difference); the price is 2.5
round trips of the other. Requests are counted, and summed up when a new snapshot comes; an idle
upstream counts as one request a second, or it would never return to its better line. A path that
is recovering collects regret, too, so that it need not be waited for twice. An incumbent that is
no longer eligible is left at once; merely hot, or in doubt for the first time in a while, it is
stepped around, and first again when that is over, unless regret has paid for a switch meanwhile.

A handshake is paid once per switch. So between warm and cold paths it counts only where a request
pays it: in a move that is forced, and for an upstream with less than two requests in ten seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from policies.model import (
    Breaker,
    Candidate,
    Part,
    PathState,
    Ranking,
    RequestClass,
    Verdict,
)
from policies.schema import Failover

HOT_QUANTILE = 0.84
REGRET_S = 10.0
"""Time constant of the regret's decay."""
IDLE_PER_S = 1.0
"""Requests a second as which an idle upstream counts."""
QUIET_REQUESTS = 2.0
SUSPECT_MS = 300.0
"""What a doubt costs: one in two comes true, and then it takes half a second to be sure and to
begin again. A path that is worse by more is no way around it."""
FLAPPING = "flapping"
"""What ``held`` says of a path that fell too often to be returned to."""
_SUSPECT = "suspect"
_UP, _HOT, _RECOVERING, _DOUBTFUL, _EJECTED, _OPEN, _DOWN = range(7)


class Scored(NamedTuple):
    """One path with its cost for one class of request, a connection being there."""

    state: PathState
    cost_ms: float
    parts: tuple[Part, ...]
    round_trip_ms: float
    """R, in the unit of the cost: what a switch is priced in."""
    error_ms: float = 0.0
    """Standard error of the cost."""
    cold_ms: float = 0.0
    """What a handshake adds now; 0 while warm."""
    held: str = ""
    """Why it must not be preferred although it is UP; empty: it may be."""
    spare_bps: float | None = None
    """Bandwidth left on its line; `None`: unknown."""


def _row(scored: Scored, incumbent: str | None) -> tuple[int, str]:
    """Row and word of a path, load apart."""
    state = scored.state
    if state.verdict is Verdict.DOWN:
        return _DOWN, "down"
    if state.breaker is Breaker.OPEN:
        return _OPEN, "breaker open"
    if state.ejected_until is not None:
        return _EJECTED, "ejected"
    if state.verdict is Verdict.SUSPECT:
        return _DOUBTFUL, _SUSPECT
    if state.breaker is Breaker.HALF_OPEN:
        return _DOUBTFUL, "half-open"
    if scored.held and state.path.name != incumbent:
        return _DOUBTFUL if scored.held == FLAPPING else _RECOVERING, scored.held
    return _UP, ""


def _worth(suspect: Scored, most_ms: float) -> bool:
    """Whether a path in doubt is worth its risk beside those that are not."""
    sound = suspect.state.breaker is Breaker.CLOSED and not suspect.held
    return sound and suspect.cost_ms < most_ms


def _hot(scored: Scored, quantile: float, up_bytes: int) -> bool:
    state, limit = scored.state, scored.state.limit
    if limit is not None:
        load = state.endpoint_in_flight
        if load >= limit or (load > quantile and load > limit / 2):
            return True
    capacity_bps = state.path.line.capacity_bps
    if scored.spare_bps is None or capacity_bps is None or up_bytes == 0:
        return False
    # No bandwidth left for this body: it would take a second and twice as long as on a free line.
    body_bits = up_bytes * 8
    return body_bits > scored.spare_bps and scored.spare_bps < capacity_bps / 2


def quantile(values: Sequence[float], q: float) -> float:
    """The ``q`` quantile, interpolated; 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


class _Entry(NamedTuple):
    row: int
    cost_ms: float
    word: str
    scored: Scored


def _entries(
    paths: Sequence[Scored], up_bytes: int, incumbent: str | None, *, cold: bool
) -> list[_Entry]:
    """All paths in rows, sorted, handshakes counted if ``cold``."""
    rows = [_row(s, incumbent) for s in paths]
    sound = [s.cost_ms for s, (row, _) in zip(paths, rows, strict=True) if row == _UP]
    worth_ms = min(sound, default=0.0) - SUSPECT_MS
    rows = [
        (_UP, "") if word == _SUSPECT and _worth(s, worth_ms) else (row, word)
        for s, (row, word) in zip(paths, rows, strict=True)
    ]
    fit = [s for s, (row, _) in zip(paths, rows, strict=True) if row == _UP]
    load = quantile([s.state.endpoint_in_flight for s in fit], HOT_QUANTILE)
    hot = {s.state.path.name for s in fit if _hot(s, load, up_bytes)}
    if len(hot) == len(fit):
        hot.clear()
    entries = []
    for scored, (row, word) in zip(paths, rows, strict=True):
        if scored.state.path.name in hot:
            row, word = _HOT, "hot"
        cost_ms = scored.cost_ms + (scored.cold_ms if cold else 0.0)
        entries.append(_Entry(row, cost_ms, word, scored))
    entries.sort(key=lambda e: (e.row, e.cost_ms, e.scored.state.path.name))
    return entries


class Chooser:
    """The hysteresis of one upstream and class. ``rank`` at each new snapshot, with the number of
    requests since the last.
    """

    __slots__ = ("_at", "_gap_ms", "_rate", "_regret_ms", "incumbent")

    def __init__(self) -> None:
        self.incumbent: str | None = None
        """The name of the path that stays first until it is beaten for long enough."""
        self._regret_ms = 0.0
        self._gap_ms = 0.0
        self._rate = 0.0
        self._at: float | None = None

    @property
    def regret_ms(self) -> float:
        """What keeping the incumbent has cost by now, as far as it is not forgotten."""
        return self._regret_ms

    def rank(
        self,
        upstream: str,
        request_class: RequestClass,
        paths: Sequence[Scored],
        failover: Failover,
        *,
        requests: int,
        now: float,
    ) -> Ranking:
        """The order of ``paths`` now; empty when there is none."""
        self._settle(requests, now)
        if not paths:
            self.incumbent = None
            return Ranking(upstream, request_class, (), f"{upstream} has no path")
        quiet = self._rate < QUIET_REQUESTS
        entries = _entries(paths, request_class.up_bytes, self.incumbent, cold=quiet)
        kept = self._kept(entries)
        if kept is not None and kept.row > entries[0].row:
            decided_by = self._step_around(entries[0], kept, failover)
        elif kept is None or entries[0].row >= _EJECTED:
            if self.incumbent is not None:
                entries = _entries(paths, request_class.up_bytes, self.incumbent, cold=True)
            decided_by = self._take_best(entries)
        else:
            decided_by = self._hold_or_move(entries, kept, failover)
        return Ranking(upstream, request_class, _candidates(entries), decided_by)

    def _settle(self, requests: int, now: float) -> None:
        """Add the regret of the requests since the last ranking, at its costs."""
        elapsed = 0.0 if self._at is None else max(0.0, now - self._at)
        self._at = now
        keep = math.exp(-elapsed / REGRET_S)
        self._rate = self._rate * keep + requests
        counted = max(float(requests), elapsed * IDLE_PER_S)
        self._regret_ms = max(0.0, self._regret_ms * keep + counted * self._gap_ms)

    def _kept(self, entries: list[_Entry]) -> _Entry | None:
        """The incumbent's entry if it may stay first, or will soon be first again."""
        best_row = entries[0].row
        for entry in entries:
            if entry.scored.state.path.name == self.incumbent:
                for_now = best_row <= _RECOVERING and (
                    entry.row == _HOT or (entry.word == _SUSPECT and not entry.scored.held)
                )
                return entry if entry.row == best_row or for_now else None
        return None

    def _take_best(self, entries: list[_Entry]) -> str:
        """No incumbent, or it must be left: the least cost, at once."""
        best, left = entries[0], self.incumbent
        name = best.scored.state.path.name
        self.incumbent = name
        self._regret_ms = 0.0
        self._gap_ms = 0.0
        if best.row >= _EJECTED:
            return f"no path is usable; {name} is the last resort ({best.word})"
        if left is None or left == name:
            return _least(entries)
        word = next((e.word for e in entries if e.scored.state.path.name == left), "gone")
        return f"{left} is {word}; " + _least(entries)

    def _step_around(self, best: _Entry, kept: _Entry, failover: Failover) -> str:
        """For now; for good, if it has become the dearer one meanwhile."""
        name, best_name = kept.scored.state.path.name, best.scored.state.path.name
        self._gap_ms = self._gap(kept, best, failover.hysteresis_margin)
        if self._regret_ms > failover.switch_cost_rtts * best.scored.round_trip_ms:
            self.incumbent = best_name
            self._regret_ms = self._gap_ms = 0.0
            return f"moved to {best_name}: {name} is {kept.word}, and costs more by now"
        return f"{name} is {kept.word}: stepped around"

    def _hold_or_move(self, entries: list[_Entry], kept: _Entry, failover: Failover) -> str:
        """The incumbent may stay: does it?"""
        name = kept.scored.state.path.name
        margin = failover.hysteresis_margin
        others = [e for e in entries if e.row in (kept.row, _RECOVERING) and e is not kept]
        if not others:
            self._gap_ms = self._regret_ms = 0.0
            return _least(entries)
        self._gap_ms = self._gap(kept, min(others, key=lambda e: e.cost_ms), margin)
        rival = others[0]
        price_ms = failover.switch_cost_rtts * rival.scored.round_trip_ms
        if rival.row != kept.row or rival.cost_ms >= kept.cost_ms:
            _to_front(entries, kept)
            return _least(entries)
        rival_name = rival.scored.state.path.name
        less = f"{kept.cost_ms - rival.cost_ms:.1f} less than {name}"
        if self._regret_ms > price_ms:
            regret = f"regret {self._regret_ms:.0f} exceeds the price of a switch, {price_ms:.0f}"
            self.incumbent = rival_name
            self._regret_ms = 0.0
            self._gap_ms = self._gap(rival, kept, margin)
            return f"moved to {rival_name}: it costs {less}, and the {regret}"
        _to_front(entries, kept)
        if self._gap_ms <= 0:
            return f"kept {name}: {rival_name} costs {less}, which is within the margin"
        regret = f"regret {self._regret_ms:.0f} of {price_ms:.0f}"
        return f"kept {name}: {rival_name} costs {less}, but {regret} does not pay for a switch yet"

    @staticmethod
    def _gap(kept: _Entry, rival: _Entry, margin: float) -> float:
        """What one request loses by the incumbent, less the margin of doubt."""
        error_ms = math.hypot(kept.scored.error_ms, rival.scored.error_ms)
        return kept.cost_ms - rival.cost_ms - max(margin * kept.cost_ms, 2 * error_ms)


def _least(entries: list[_Entry]) -> str:
    best = entries[0]
    name = best.scored.state.path.name
    others = [e for e in entries[1:] if e.row == best.row]
    if others:
        rival = min(others, key=lambda e: e.cost_ms)
        rival_name = rival.scored.state.path.name
        return f"{name} costs least: {best.cost_ms:.1f} against {rival.cost_ms:.1f} of {rival_name}"
    if len(entries) == 1:
        return f"{name} is the only path"
    return f"{name} is the only one eligible"


def _to_front(entries: list[_Entry], entry: _Entry) -> None:
    entries.remove(entry)
    entries.insert(0, entry)


def _candidates(entries: list[_Entry]) -> tuple[Candidate, ...]:
    best_row = entries[0].row
    candidates = []
    for entry in entries:
        parts = entry.scored.parts
        handshake_ms = entry.cost_ms - entry.scored.cost_ms
        if handshake_ms > 0:
            parts = (*parts, Part("handshake", handshake_ms))
        eligible = entry.row == best_row and best_row < _EJECTED
        word = "" if eligible else entry.word
        candidates.append(Candidate(entry.scored.state, entry.cost_ms, parts, word))
    return tuple(candidates)
