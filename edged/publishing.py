"""From what is known of paths to the `Snapshot` that everyone reads: when a new one is due, and
what it shows."""

from __future__ import annotations

from edged.inventory import Inventory
from edged.records import PathRecord
from policies.detector import Detector
from policies.model import PathState, Snapshot

REPUBLISH_S = 0.1
"""Pure changes of estimates are published at most this often."""
REFRESH_S = 2.0
"""Estimates decay without samples, too: no state in a snapshot is older than this, given ticks."""


class Publisher:
    """Makes the snapshots of one table."""

    def __init__(self, inventory: Inventory, detector: Detector, now: float) -> None:
        self.dirty: set[PathRecord] = set()
        """Records that the last snapshot does not show as they are."""
        self.troubled: set[PathRecord] = set()
        """Records whose gate, ejection or hold will change by itself."""
        self.states: dict[str, PathState] = {}
        """What the last snapshot shows of each path, by name."""
        self.republish_at = now
        """From then on whatever is dirty is published by whatever call comes next."""
        self._inventory = inventory
        self._detector = detector
        self._refresh_at = now
        self._serial = 0

    def forget(self, record: PathRecord) -> None:
        """Its path is gone."""
        self.states.pop(record.path.name, None)
        self.dirty.discard(record)
        self.troubled.discard(record)

    def due(self, now: float) -> bool:
        """Whether time alone calls for a new snapshot."""
        if any(record.due is not None and record.due <= now for record in self.troubled):
            return True
        return now >= self.republish_at and self._stale(now)

    def deadlines(self) -> list[float]:
        """When `due` is to be asked."""
        times = [record.due for record in self.troubled if record.due is not None]
        if self.dirty:
            times.append(self.republish_at)
        return times

    def make(self, now: float) -> Snapshot:
        """One new snapshot with all that changed."""
        for record in self.troubled:
            if record.due is not None and record.due <= now:
                record.gate.tick(now)
                self.dirty.add(record)
        self._serial += 1
        self.republish_at = now + REPUBLISH_S
        self._widen()
        for record in sorted(self.dirty, key=lambda r: r.leg is not None):  # legs come first
            name = record.path.name
            direct = record.leg is None
            record.settle(now)
            record.finding = self._detector.finding(name) if direct else record.relayed_finding()
            self.states[name] = record.state(now)
            record.upstream.serial = self._serial
        self.dirty.clear()
        for record in [r for r in self.troubled if not r.restless(now)]:
            self.troubled.discard(record)
        return Snapshot(now, self._serial, dict(self.states), self._inventory.index)

    def _widen(self) -> None:
        """Add the records that show what a dirty one does."""
        for record in tuple(self.dirty):
            if record.remote.settle():  # a limit concerns all paths of the endpoint
                self.dirty.update(record.siblings())
            if record.dependents:
                self.dirty.update(record.dependents)

    def _stale(self, now: float) -> bool:
        """Whether there is anything to publish; lets all estimates decay now and then."""
        if now >= self._refresh_at:
            self._refresh_at = now + REFRESH_S
            listed = (r for r in self._inventory.records.values() if r.upstream.listed)
            self.dirty.update(r for r in listed if now - r.refreshed_at >= REFRESH_S)
        return bool(self.dirty)
