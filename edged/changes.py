"""Who hears that a verdict changed or a carrier was blocked, in which order, and the log lines."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from edged.exchanges import Exchanges
from edged.records import Choice
from edged.table import PathTable
from edged.upstream.pool import Pools
from policies.model import Blame, CarrierChange, Change, RequestClass, Verdict

_log = logging.getLogger("edged")


LAST_RESORT_S: Final = 60.0
"""Which of the paths in the dark is tried first changes all the time: told so often at most."""
_MOST_KEPT = 1024


class ChoiceLog:
    """The log lines of choices."""

    def __init__(self) -> None:
        self._quiet_until: dict[tuple[str, RequestClass], float] = {}

    def __call__(self, choice: Choice) -> None:
        """A ranking has a new first path."""
        key = (choice.upstream, choice.request_class)
        level = logging.INFO
        if choice.new.state.usable:
            self._quiet_until.pop(key, None)
        elif choice.at < self._quiet_until.get(key, choice.at):
            level = logging.DEBUG
        else:
            if len(self._quiet_until) >= _MOST_KEPT:
                self._quiet_until.clear()
            self._quiet_until[key] = choice.at + LAST_RESORT_S
        _log.log(level, "%s", choice)


def gate_turned(path: str, why: str) -> None:
    """The log line of a breaker: a name that DNS does not know opens one and changes no verdict."""
    if why:
        _log.warning("%s: breaker open: %s", path, why)
    else:
        _log.info("%s: breaker closed again", path)


class Changes:
    """Passes what ``table`` finds on to everyone, in the loop turn in which it is found.

    First whoever can go on over another line does. Then exchanges: they must know the new order
    before the pools fail their streams.
    """

    def __init__(
        self, table: PathTable, pools: Pools, exchanges: Exchanges, nudge: Callable[[], None]
    ) -> None:
        """``nudge``: the schedule of probes looks anew at what is due."""
        self._pools = pools
        self._exchanges = exchanges
        self._nudge = nudge
        table.subscribe(self._path_changed)
        table.subscribe_carriers(self._carrier_changed)

    def _path_changed(self, change: Change) -> None:
        self._pass_on(change)
        self._nudge()
        level = logging.INFO if change.new is Verdict.UP else logging.WARNING
        _log.log(
            level, "%s: %s -> %s: %s", change.path, change.old.name, change.new.name, change.reason
        )

    def _pass_on(self, change: Change) -> None:
        self._pools.path_leaving(change)
        self._exchanges.path_changed(change)
        self._pools.path_changed(change)

    def _carrier_changed(self, change: CarrierChange) -> None:
        if self._pools.can_spare(change):
            self._pools.carrier_leaving(change)
            self._exchanges.carrier_changed(change)
            self._pools.carrier_changed(change)
        else:
            # Others work there, but the endpoint speaks none of them.
            old, new = (Verdict.UP, Verdict.DOWN)[:: 1 if change.blocked else -1]
            self._pass_on(Change(change.path, old, new, Blame.UNKNOWN, change.reason, change.at))
        names = " and ".join(change.carriers)
        if change.blocked:
            _log.warning("%s: %s blocked: %s", change.path, names, change.reason)
        else:
            _log.info("%s: %s works: %s", change.path, names, change.reason)
