"""Request bytes by offset: each byte is passed on once, whatever is sent again or out of turn.

The words are those of resumable uploads (draft-ietf-httpbis-resumable-upload): Upload-Offset is
how many bytes have been taken, Upload-Complete whether these were all.
"""

from __future__ import annotations


class Gap(Exception):
    """Bytes from beyond the offset: something between is missing."""


class Inconsistent(Exception):
    """The body's length contradicts what was said, or taken, before."""


class Upload:
    """One request body on its way in. Offsets count from the body's start."""

    __slots__ = ("complete", "length", "offset")

    def __init__(self, length: int | None) -> None:
        """``length`` of the whole body, if it is known."""
        self.length = length
        self.offset = 0
        """Bytes taken."""
        self.complete = length == 0

    def check(self, at: int, size: int | None, *, last: bool) -> None:
        """Whether ``size`` bytes (``None``: it is not known) from ``at`` may come.

        ``last``: they end the body. Raises `Gap` and `Inconsistent`.
        """
        if at > self.offset:
            raise Gap
        if size is None:
            return
        end = at + size
        if self.length is not None and (end > self.length or (last and end != self.length)):
            raise Inconsistent(f"the body has {self.length} bytes, not {end}")
        if last and end < self.offset:
            raise Inconsistent(f"{self.offset} bytes were taken, more than {end}")

    def take(self, at: int, data: bytes) -> bytes:
        """The part of ``data``, which begins at ``at``, that is new.

        Raises `Gap` and `Inconsistent`.
        """
        offset = self.offset
        if at > offset:
            raise Gap
        end = at + len(data)
        if self.length is not None and end > self.length:
            raise Inconsistent(f"the body has {self.length} bytes, not {end} or more")
        if end <= offset:
            return b""
        if self.complete:
            raise Inconsistent(f"the body ended after {offset} bytes")
        self.offset = end
        return data if at == offset else data[offset - at :]

    def finish(self, at: int) -> bool:
        """The body ends at ``at``; whether that is news. Raises `Gap` and `Inconsistent`."""
        self.check(at, 0, last=True)
        if self.complete:
            return False
        self.complete = True
        self.length = self.offset
        return True
