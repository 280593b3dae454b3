"""Many long deadlines that nearly all are met: one timer for all of them, second by second.

Waiting limits are minutes, and almost no exchange reaches one. A loop timer each would cost more
than the exchange's parsing, so members are kept in buckets of one second and looked at when their
second comes: whoever has moved its deadline meanwhile moves on to a later bucket.
"""

from __future__ import annotations

from typing import Protocol


class Member(Protocol):
    """What has a deadline."""

    deadline: float
    """Monotonic s; may be moved later at any time, and earlier before `Deadlines.add` only."""
    bucket: int
    """Kept by `Deadlines`."""

    def deadline_passed(self, now: float) -> None:
        """Called once; the member is no longer kept."""


class Deadlines:
    """Members by the second of their deadline. Late by up to ``tick`` intervals, never early."""

    __slots__ = ("_buckets", "_swept")

    def __init__(self, now: float) -> None:
        self._buckets: dict[int, dict[Member, None]] = {}
        self._swept = int(now)

    def add(self, member: Member) -> None:
        """Keep ``member`` until its deadline passes or it is removed."""
        second = max(int(member.deadline) + 1, self._swept + 1)
        member.bucket = second
        bucket = self._buckets.get(second)
        if bucket is None:
            self._buckets[second] = {member: None}
        else:
            bucket[member] = None

    def remove(self, member: Member) -> None:
        """Forget ``member``; unknown ones are ignored."""
        bucket = self._buckets.get(member.bucket)
        if bucket is not None and bucket.pop(member, self) is None and not bucket:
            del self._buckets[member.bucket]

    def tick(self, now: float) -> None:
        """Tell those whose deadline passed. Call about once a second."""
        while self._swept < int(now):
            self._swept += 1
            for member in self._buckets.pop(self._swept, ()):
                if member.deadline <= now:
                    member.deadline_passed(now)
                else:
                    self.add(member)

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values())
