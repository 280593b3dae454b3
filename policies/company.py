"""When the live attempts of one exchange get another beside them, and on which path.

Races. While nothing was sent nothing can happen twice: when the only attempt is pending for longer
than ``race_delay_s``, another may start on a path that is fit. When that takes long, too, or none
is fit, all others follow, one by one, those that are DOWN last; sooner where every path is DOWN,
and handshakes are no load to anybody.

Hedges. At most one per exchange, from the hedge budget: at once when the path becomes SUSPECT,
unless it has waited for long (the service thinks, and will for longer than the doubt lasts);
else ``hedge_delay_s`` after the request was sent, if the upstream answered another exchange since.
Where nobody is answered it is no tail: the service thinks, or the detector will tell.
"""

from __future__ import annotations

from policies.budget import HedgeBudget
from policies.commands import Why
from policies.itinerary import Itinerary
from policies.live import LiveAttempt

LONG_DELAYS = 2.0
LONG_S = 1.0
"""The greater of both is long: a server that has much to do is not to be dialled from all sides."""
DARK_DELAY_S = 0.25
"""RFC 8305, section 8: what was measured of paths that are DOWN says little now."""
THINKING_S = 1.0
"""Who waits for longer, and for twice the tail, waits for a service that thinks."""


class Company:
    """See the module. ``hedge_delay_s`` and ``race_delay_s``: `None` means never. ``live``: oldest
    first; where one was sent it stands alone, or beside a hedge.
    """

    __slots__ = ("_hedge_delay_s", "_hedges", "_paths", "_race_delay_s", "hedged")

    def __init__(
        self,
        paths: Itinerary,
        hedges: HedgeBudget,
        hedge_delay_s: float | None,
        race_delay_s: float | None,
    ) -> None:
        self._paths = paths
        self._hedges = hedges
        self._hedge_delay_s = hedge_delay_s
        self._race_delay_s = race_delay_s
        self.hedged = False

    def hedge_at(self, sent_at: float) -> float | None:
        """When a request sent then is hedged; ``None``: never."""
        delay_s = self._hedge_delay_s
        return None if delay_s is None or self.hedged else sent_at + delay_s

    def due_at(self, live: list[LiveAttempt], *, dark: bool) -> float | None:
        """When ``live`` get company; ``None``: never. ``dark``: every path is DOWN."""
        if not live:
            return None
        first, newest = live[0], live[-1]
        if first.sent_at is not None:
            return None if len(live) > 1 or first.answering else self.hedge_at(first.sent_at)
        delay_s = self._race_delay_s
        if delay_s is None or newest.sent_at is not None:
            return None
        taken = [attempt.path for attempt in live]
        fit = self._paths.pick_fit(but=taken) is not None
        if not fit and self._unfit(taken) is None:
            return None
        if dark:
            delay_s = min(delay_s, DARK_DELAY_S)
        elif not fit or len(live) > 1:
            delay_s = max(LONG_DELAYS * delay_s, LONG_S)
        return newest.pending_at + delay_s

    def in_vain(self, live: list[LiveAttempt]) -> bool:
        """Whether what is due now would be a hedge, and nobody was answered since."""
        sent_at = live[0].sent_at
        return sent_at is not None and self._hedges.answered_at <= sent_at

    def thinks(self, attempt: LiveAttempt, now: float) -> bool:
        """Whether ``attempt`` has waited so long that its service thinks."""
        waited_s = 0.0 if attempt.sent_at is None else now - attempt.sent_at
        return waited_s > max(THINKING_S, 2 * (self._hedge_delay_s or 0.0))

    def take(self, live: list[LiveAttempt], now: float) -> tuple[str, Why] | None:
        """The path of one more attempt, and what that is; a hedge is paid for."""
        taken = [attempt.path for attempt in live]
        path = self._paths.pick_fit(but=taken)
        if live[0].sent_at is None:
            path = path or self._unfit(taken)
            return None if path is None else (path, "race")
        if path is None or self._hedge_delay_s is None or self.hedged:
            return None
        self.hedged = self._hedges.take(now)
        return (path, "hedge") if self.hedged else None

    def _unfit(self, taken: list[str]) -> str | None:
        return self._paths.pick(but=taken) or self._paths.resort(taken)
