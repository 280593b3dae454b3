"""Response bytes kept from an offset on, until nobody will ask for them again.

A `Journal` belongs to one flow; an `Account` bounds all journals of a relay together. Both only
count and keep: whether the origin is read on is the flow's decision.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Protocol

BLOCK_BYTES = 16 << 10
"""Small pieces are gathered in blocks of this size, so that a byte costs about a byte."""
_COMPACT_AT = 64


class Waiter(Protocol):
    """Who waits for room in an `Account`."""

    def room(self) -> None:
        """There may be some."""


class Account:
    """What all journals hold, and who waits until it is less.

    Invariant: nobody waits while ``used_bytes`` is at most the low mark.
    """

    __slots__ = ("_low_bytes", "_waiting", "limit_bytes", "used_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._low_bytes = limit_bytes - limit_bytes // 8
        self.used_bytes = 0
        self._waiting: dict[Waiter, None] = {}

    @property
    def full(self) -> bool:
        """All of the room is taken."""
        return self.used_bytes >= self.limit_bytes

    def wait(self, waiter: Waiter) -> None:
        """Call ``waiter.room()`` once there is room; who waits longest is first."""
        self._waiting[waiter] = None

    def forget(self, waiter: Waiter) -> None:
        """It waits no longer."""
        self._waiting.pop(waiter, None)

    def resize(self, limit_bytes: int) -> None:
        """Use another limit."""
        self.limit_bytes = limit_bytes
        self._low_bytes = limit_bytes - limit_bytes // 8
        self.give(0)

    def take(self, size: int) -> None:
        """``size`` more bytes are held."""
        self.used_bytes += size

    def give(self, size: int) -> None:
        """``size`` bytes are not held any more."""
        self.used_bytes -= size
        # One at a time: whoever goes on fills it again before the others are asked.
        while self._waiting and self.used_bytes <= self._low_bytes:
            waiter = next(iter(self._waiting))
            del self._waiting[waiter]
            waiter.room()


class Journal:
    """Bytes from ``start`` to ``end`` of one response body.

    Memory is given back in whole blocks; ``held_bytes`` is what is really held.
    """

    __slots__ = ("_account", "_blocks", "_first", "_offsets", "end", "start")

    def __init__(self, account: Account) -> None:
        self._account = account
        self._blocks: list[bytes | bytearray] = []
        self._offsets: list[int] = []
        self._first = 0  # blocks before it are given back
        self.start = 0
        """The oldest offset that can be read."""
        self.end = 0
        """The offset of the next byte to come."""

    @property
    def held_bytes(self) -> int:
        """Memory taken by what is kept."""
        return self.end - self._offsets[self._first] if self._first < len(self._offsets) else 0

    def append(self, data: bytes) -> None:
        """Keep ``data`` behind what is there."""
        size = len(data)
        blocks = self._blocks
        last = blocks[-1] if len(blocks) > self._first else None
        if isinstance(last, bytearray) and len(last) + size <= BLOCK_BYTES:
            last += data
        else:
            blocks.append(data if size >= BLOCK_BYTES // 4 else bytearray(data))
            self._offsets.append(self.end)
        self.end += size
        self._account.take(size)

    def release(self, offset: int) -> None:
        """Nobody will read what is before ``offset``."""
        offset = min(offset, self.end)
        if offset <= self.start:
            return
        self.start = offset
        first, held = self._first, self.held_bytes
        while first < len(self._blocks) and self._offsets[first] + len(self._blocks[first]) <= (
            offset
        ):
            self._blocks[first] = b""
            first += 1
        self._first = first
        freed = held - self.held_bytes
        if first >= _COMPACT_AT and first * 2 >= len(self._blocks):
            del self._blocks[:first]
            del self._offsets[:first]
            self._first = 0
        if freed:
            self._account.give(freed)

    def read(self, offset: int, most: int) -> bytes:
        """Up to ``most`` bytes from ``offset``, at least one if there is any; empty at the end.

        Raises `ValueError` for an offset that is not kept.
        """
        if not self.start <= offset <= self.end:
            raise ValueError("these bytes of the response are not kept")
        if offset == self.end:
            return b""
        at = bisect_right(self._offsets, offset, self._first) - 1
        block = self._blocks[at]
        inside = offset - self._offsets[at]
        if not inside and len(block) <= most and isinstance(block, bytes):
            return block
        return bytes(block[inside : inside + most])

    def close(self) -> None:
        """Give everything back."""
        self.release(self.end)
