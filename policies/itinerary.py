"""Which path one exchange takes next: the order of its ranking, and what the exchange itself learnt
of each path since.

A path is avoided for good that failed this exchange by itself, until nothing else is left; one that
is DOWN while the ranking that says so counts. While every path is DOWN each is a last resort, once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


class Itinerary:
    """The paths of one exchange. ``order``: their names, best first; the first ``eligible`` of them
    (`None`: all) are fit for races and hedges, those after the first ``reachable`` (`None`: all)
    are DOWN.
    """

    __slots__ = ("_down", "_eligible", "_failed", "_resorts", "order", "reachable")

    def __init__(
        self, order: Sequence[str], eligible: int | None = None, reachable: int | None = None
    ) -> None:
        self.order = order
        self.reachable = reachable
        self._eligible = eligible
        # Made on demand: most exchanges learn nothing.
        self._failed: set[str] | None = None
        self._down: set[str] | None = None
        """Declared DOWN since the ranking."""
        self._resorts: set[str] | None = None
        """Tried although they are DOWN."""

    def reroute(self, order: Sequence[str], eligible: int | None, reachable: int | None) -> None:
        """A new ranking, which knows what is DOWN."""
        self.order = order
        self._eligible = eligible
        self.reachable = reachable
        self._down = None

    def failed(self, path: str) -> None:
        """It failed this exchange by itself."""
        self._failed = {path, *(self._failed or ())}

    def went_down(self, path: str) -> None:
        """It was declared DOWN."""
        self._down = {path, *(self._down or ())}

    def is_down(self, path: str) -> bool:
        """Whether it was declared DOWN since the ranking."""
        return self._down is not None and path in self._down

    def tries(self, path: str) -> None:
        """It is tried; if it is DOWN, as a last resort."""
        if path not in self.order[: self.reachable] or self.is_down(path):
            self._resorts = {path, *(self._resorts or ())}

    def found_again(self) -> None:
        """A path can be reached: last resorts may be tried anew when none can."""
        self._resorts = None

    def pick(self, *, repeat: bool = False, but: Collection[str] = ()) -> str | None:
        """The best path that is not DOWN and, unless ``repeat``, did not fail before; none of
        ``but``."""
        return self._first(self.order[: self.reachable], but, repeat=repeat)

    def pick_fit(self, *, but: Collection[str]) -> str | None:
        """The same of those that are fit for races and hedges."""
        return self._first(self.order[: self.reachable][: self._eligible], but, repeat=False)

    def _first(self, paths: Sequence[str], but: Collection[str], *, repeat: bool) -> str | None:
        down = self._down
        failed = None if repeat else self._failed
        for path in paths:
            if path in but or (down is not None and path in down):
                continue
            if failed is None or path not in failed:
                return path
        return None

    def resort(self, live: Collection[str]) -> str | None:
        """The best path that is DOWN, was neither tried so nor failed by itself, and is not
        ``live``.
        """
        known = {*(self._failed or ()), *(self._resorts or ()), *live}
        return next((path for path in self.order if path not in known), None)
