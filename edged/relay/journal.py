"""Response bytes kept from an offset on, until nobody will ask for them again.

A `Journal` belongs to one flow, a `Share` to one client, an `Account` bounds all journals of a
relay together. They only count and keep: whether the origin is read on is the flow's decision.

Of the account a quarter is kept for clients that hold little: each may fill its part of it,
whatever others hold. What one client has left is divided among its flows by the rule that none may
hold more than an eighth of what is still free: those that nobody reads stop early, and leave as
much to the next one as they have themselves.
"""

from __future__ import annotations

from bisect import bisect_right

BLOCK_BYTES = 16 << 10
"""Small pieces are gathered in blocks of this size, so that a byte costs about a byte."""
MOST_BLOCK_BYTES = 64 << 10
"""Larger pieces are cut: a block that was read in part is held as a whole."""
FLOOR_BYTES = 16 << 10
"""A flow may hold this much also when there is no room."""
_OF_FREE = 8
_COMPACT_AT = 64


class Account:
    """What all journals hold."""

    __slots__ = ("limit_bytes", "sharers", "used_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.sharers = 0
        """Clients that hold anything."""


class Share:
    """What the journals of one client hold."""

    __slots__ = ("_account", "used_bytes")

    def __init__(self, account: Account) -> None:
        self._account = account
        self.used_bytes = 0

    @property
    def room(self) -> int:
        """Bytes that the client may still hold; negative if it holds too much."""
        account = self._account
        reserved = account.limit_bytes // 4
        own = reserved // (account.sharers or 1) - self.used_bytes
        return max(own, account.limit_bytes - reserved - account.used_bytes)

    @property
    def scarce(self) -> bool:
        """What need not be kept should be given back."""
        return self.room < self._account.limit_bytes // 16

    def allowance(self, most: int) -> int:
        """What one of its flows may hold now: ``most`` at most, but `FLOOR_BYTES` always."""
        return min(most, max(self.room // _OF_FREE, FLOOR_BYTES))

    def take(self, size: int) -> None:
        """``size`` more bytes are held."""
        account = self._account
        account.sharers -= self.used_bytes > 0
        self.used_bytes += size
        account.used_bytes += size
        account.sharers += self.used_bytes > 0

    def give(self, size: int) -> None:
        """``size`` bytes are not held any more."""
        self.take(-size)


class Journal:
    """Bytes from ``start`` to ``end`` of one response body.

    Memory is given back in whole blocks; ``held_bytes`` is what is really held.
    """

    __slots__ = ("_blocks", "_first", "_offsets", "_share", "end", "start")

    def __init__(self, share: Share) -> None:
        self._share = share
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
            self.end += size
        elif size <= MOST_BLOCK_BYTES:
            blocks.append(data if size >= BLOCK_BYTES // 4 else bytearray(data))
            self._offsets.append(self.end)
            self.end += size
        else:
            for at in range(0, size, MOST_BLOCK_BYTES):
                blocks.append(data[at : at + MOST_BLOCK_BYTES])
                self._offsets.append(self.end + at)
            self.end += size
        self._share.take(size)

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
            self._share.give(freed)

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
