"""When the detector must look again: slots that will be overdue, lines whose patience ends.

Lag of the loop moves all of them. Slots are stored without it, so that it need not be added to
each.
"""

from __future__ import annotations

import heapq

from policies.ledger import LineState, Slot


class Deadlines:
    """See the module. True while any slot is outstanding."""

    __slots__ = ("_patient", "_shift_s", "_slots")

    def __init__(self) -> None:
        self._slots: list[Slot] = []
        self._shift_s = 0.0
        """What lag has added."""
        self._patient: dict[LineState, float] = {}
        """When lines are to be judged again although nothing more fell silent."""

    def __bool__(self) -> bool:
        return bool(self._slots)

    def add(self, slot: Slot) -> None:
        """A slot was sent."""
        slot.due -= self._shift_s
        heapq.heappush(self._slots, slot)

    def wait(self, line: LineState, until: float | None) -> None:
        """Judge ``line`` again then; ``None``: not unless something happens."""
        if until is not None:
            self._patient[line] = until
        elif self._patient:
            self._patient.pop(line, None)

    def next(self) -> float | None:
        """The earliest of all; ``None`` while there is none."""
        while self._slots and not self._slots[0].open:
            heapq.heappop(self._slots)
        patient = min(self._patient.values(), default=None)
        if not self._slots:
            return patient
        due = self._slots[0].due + self._shift_s
        return due if patient is None else min(due, patient)

    def take(self, now: float) -> tuple[list[Slot], list[LineState]]:
        """Slots that are overdue, now closed, and lines whose time has come."""
        slots = []
        while self._slots and self._slots[0].due + self._shift_s <= now:
            slot = heapq.heappop(self._slots)
            if slot.open:
                slot.open = False
                slots.append(slot)
        return slots, [line for line, at in self._patient.items() if at <= now]

    def delay(self, lag_s: float) -> None:
        """All come so much later."""
        self._shift_s += lag_s
        for line in self._patient:
            self._patient[line] += lag_s
