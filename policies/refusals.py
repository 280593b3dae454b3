"""Which servers do not follow a client to another line (RFC 9000 section 9)."""

from __future__ import annotations

from collections import OrderedDict

from policies.model import Path

REFUSED_S = 600.0
REFUSED_MOST_S = 86_400.0
LINES_TO_CONVICT_AN_ORIGIN = 2
FAILURES_AFTER_SUCCESS = 4
"""In a row, until an origin that followed before has refused."""
_MOST_REFUSALS = 1024


class Refusals:
    """Which origins did not take a migrated client, and over which line; forgotten after a time
    that doubles. Bounded. Pure: ``now`` is an argument.

    Two lines convict the origin for all of them, and a success on any acquits it.
    """

    def __init__(self) -> None:
        self._refused: OrderedDict[tuple[str, str, int], tuple[float, float]] = OrderedDict()
        self._followed: OrderedDict[tuple[str, int], int] = OrderedDict()
        """Origins that did, with the failures since."""

    def allowed(self, path: Path, now: float) -> bool:
        """Whether a move to ``path`` may be tried."""
        origin = _origin(path)
        lines = [
            key[0] for key, (until, _) in self._refused.items() if key[1:] == origin and until > now
        ]
        return path.line.name not in lines and len(lines) < LINES_TO_CONVICT_AN_ORIGIN

    def failed(self, path: Path, now: float) -> None:
        """``path`` did not validate although it is UP."""
        origin = _origin(path)
        failures = self._followed.pop(origin, None)
        if failures is not None and failures + 1 < FAILURES_AFTER_SUCCESS:
            self._followed[origin] = failures + 1
            return
        key = (path.line.name, *origin)
        _, seconds = self._refused.pop(key, (0.0, 0.0))
        seconds = min(max(2 * seconds, REFUSED_S), REFUSED_MOST_S)
        self._refused[key] = (now + seconds, seconds)
        if len(self._refused) > _MOST_REFUSALS:
            self._refused.popitem(last=False)

    def worked(self, path: Path) -> None:
        """It did."""
        origin = _origin(path)
        for key in [key for key in self._refused if key[1:] == origin]:
            del self._refused[key]
        self._followed.pop(origin, None)
        self._followed[origin] = 0
        if len(self._followed) > _MOST_REFUSALS:
            self._followed.popitem(last=False)


def _origin(path: Path) -> tuple[str, int]:
    return path.endpoint.host, path.endpoint.port
