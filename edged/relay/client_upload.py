"""Request bytes of a flow that the relay has not taken yet: they may have to be sent again."""

from __future__ import annotations

from collections import deque

MOST_BYTES = 2 << 20
"""What may be under way: about what a fast line holds, and the most that is ever sent twice."""
_LOW_BYTES = MOST_BYTES // 2


class Outgoing:
    """Bytes from ``taken`` to ``end``, and some before that, for who is still sending them."""

    __slots__ = ("_first", "_pieces", "complete", "end", "taken")

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._first = 0  # the offset of the first piece, at most `taken`
        self.taken = 0
        """The relay has all before it."""
        self.end = 0
        """The offset of the next byte to come."""
        self.complete = False
        """There will be no more."""

    @property
    def full(self) -> bool:
        """No more should come for now."""
        return self.end - self.taken > MOST_BYTES

    @property
    def roomy(self) -> bool:
        """More may come again."""
        return self.end - self.taken <= _LOW_BYTES

    @property
    def done(self) -> bool:
        """The relay has all of it."""
        return self.complete and self.taken == self.end

    def append(self, data: bytes) -> None:
        """The next bytes."""
        self._pieces.append(data)
        self.end += len(data)

    def release(self, offset: int, keep: int | None = None) -> None:
        """The relay has all before ``offset``; bytes from ``keep`` on will still be read."""
        self.taken = max(self.taken, min(offset, self.end))
        keep = self.taken if keep is None else min(keep, self.taken)
        pieces = self._pieces
        while pieces and self._first + len(pieces[0]) <= keep:
            self._first += len(pieces.popleft())

    def read(self, offset: int) -> bytes:
        """Some bytes from ``offset``, which is kept; empty at the end."""
        at = self._first
        for piece in self._pieces:
            if offset < at + len(piece):
                return piece[offset - at :] if offset > at else piece
            at += len(piece)
        return b""

    def clear(self) -> None:
        """Nobody will ask again."""
        self._pieces.clear()
        self._first = self.taken = self.end
