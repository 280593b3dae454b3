"""The requests of one pool that wait for a stream: first come, first served."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

from edged.upstream.base import StreamEvents
from policies.model import Failure


class Waiter:
    """A request that waits for a stream (`edged.upstream.base.Pending`)."""

    __slots__ = ("deadline", "early_data", "events", "group", "queue")

    def __init__(
        self,
        events: StreamEvents,
        queue: OrderedDict[Waiter, None],
        deadline: float,
        *,
        early_data: bool,
        group: int,
    ) -> None:
        self.events = events
        self.queue = queue
        self.deadline = deadline
        self.early_data = early_data
        self.group = group
        """`policies.carriers.group_of` its class."""

    def cancel(self) -> None:
        """Stop waiting."""
        self.queue.pop(self, None)


class Waiting:
    """Two queues: those that any carrier serves, and upgrades, which need h1."""

    __slots__ = ("plain", "upgrades")

    def __init__(self) -> None:
        self.plain: OrderedDict[Waiter, None] = OrderedDict()
        self.upgrades: OrderedDict[Waiter, None] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self.plain or self.upgrades)

    def __len__(self) -> int:
        return len(self.plain) + len(self.upgrades)

    def add(
        self,
        events: StreamEvents,
        deadline: float,
        *,
        early_data: bool,
        upgrade: bool,
        group: int,
    ) -> Waiter:
        """Wait until loop time ``deadline`` at least; `expire` ends it."""
        queue = self.upgrades if upgrade else self.plain
        waiter = Waiter(events, queue, deadline, early_data=early_data, group=group)
        queue[waiter] = None
        return waiter

    def expire(self, now: float, failure: Failure) -> None:
        """Fail those whose deadline has come."""
        told = replace(failure, unprocessed=True)
        for queue in (self.plain, self.upgrades):
            while queue and next(iter(queue)).deadline <= now:
                waiter, _ = queue.popitem(last=False)
                waiter.events.failed(told)

    def fail_first(self, failure: Failure, *, upgrade: bool = False) -> None:
        """Fail the one that waits longest, if any does."""
        queue = self.upgrades if upgrade else self.plain
        if queue:
            waiter, _ = queue.popitem(last=False)
            waiter.events.failed(failure)

    def fail_all(self, failure: Failure) -> None:
        """Fail everyone: nothing of their requests was sent."""
        told = replace(failure, unprocessed=True)
        for queue in (self.plain, self.upgrades):
            waiters = list(queue)
            queue.clear()
            for waiter in waiters:
                waiter.events.failed(told)
