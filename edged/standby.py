"""What is kept ready before it is needed: which paths have a warm connection, and where one that
is in use could go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic

from edged.admin.views import SHOWN_CLASS
from edged.exchanges import Exchanges
from edged.recent import Recent
from edged.table import PathTable
from edged.upstream.pool import Pools
from policies.model import Path, PathState, RequestClass, Verdict

LATELY_S = 60.0
WARM_S = 600.0
"""An upstream without requests for so long is no longer kept warm."""


class Standby:
    """See the module. ``classes``: by upstream, the class of request that comes most."""

    def __init__(
        self,
        table: PathTable,
        pools: Pools,
        exchanges: Exchanges,
        recent: Recent,
        classes: Callable[[], Mapping[str, RequestClass]],
    ) -> None:
        self._table = table
        self._pools = pools
        self._exchanges = exchanges
        self._recent = recent
        self._classes = classes
        self._used_at: dict[str, tuple[int, float]] = {}
        """By upstream, how many requests it had, and since when it has had no more."""

    def tick(self, now: float) -> None:
        """To be called about once a second."""
        for upstream, request_class in self._classes().items():
            self._keep_warm(upstream, request_class, now)

    def _keep_warm(self, upstream: str, usual: RequestClass, now: float) -> None:
        """A connection on the path in use by the class of request that comes most, and one on
        the best path over another line.
        """
        requests = self._requests(upstream)
        known, used_at = self._used_at.get(upstream, (-1, now))
        if requests != known:
            used_at = now
            self._used_at[upstream] = (requests, now)
        paths = self._table.peek(upstream, usual).paths
        standby = next((p for p in paths[1:] if p.line != paths[0].line), *paths[1:2] or [None])
        wanted = (paths[0], standby) if now - used_at < WARM_S else ()
        for path in paths:
            if path.relay is not None:
                continue  # its pulse keeps it open
            self._pools.keep_warm(path, wanted=path in wanted)

    def in_use(self) -> dict[str, Path]:
        """By upstream that has had a request lately, the path that its usual ones take now."""
        since = monotonic() - LATELY_S
        rankings = {
            upstream: self._table.peek(upstream, request_class)
            for upstream, request_class in self._classes().items()
            if self._requests(upstream) and self._used_at.get(upstream, (0, since))[1] >= since
        }
        return {name: ranking.paths[0] for name, ranking in rankings.items() if ranking.order}

    def alternatives(self, path: Path) -> list[PathState]:
        """Where a connection on ``path`` can go on, best first: other lines to the same endpoint
        that are not DOWN and let UDP pass; off a line that is dead, any other line.
        """
        if path.endpoint.is_door:
            return []  # flows move, and connections to relays stay on their lines
        upstream, now = path.endpoint.upstream, monotonic()
        usual = self._recent.usual_classes().get(upstream, SHOWN_CLASS)
        dead = self._table.line_verdict(path.line.name) is Verdict.DOWN
        try:
            order = self._table.peek(upstream, usual).order
        except KeyError:
            return []  # it went with a reload
        blocked_until = self._pools.carriers.blocked_until
        return [
            state
            for state in (candidate.state for candidate in order)
            if state.path.endpoint.key == path.endpoint.key
            and state.path.line.name != path.line.name
            and (dead or (state.usable and blocked_until(state.path) <= now))
        ]

    def _requests(self, upstream: str) -> int:
        return self._exchanges.services[upstream].counters.requests
