"""The response bytes of a flow on their way to its attempt: decoded, told to the relay, missed."""

from __future__ import annotations

from collections.abc import Iterable

from edged.compress import ZstdDecoder

ACK_AT_BYTES = 256 << 10
"""So much unacknowledged is told at once and not with the next pulse: journals are small."""
STALE_S, STALE_MOST_S = 3.0, 30.0
"""A response that pauses for so long is asked for anew, at first and at most: whatever it is that
brings nothing, nobody waits for it longer than for the next look."""


class Arrivals:
    """One flow's. Times are monotonic."""

    __slots__ = ("_acked", "_decoder", "_fresh_at", "_stale_s")

    def __init__(self, now: float) -> None:
        self._decoder: ZstdDecoder | None = None
        self._acked = 0
        self._fresh_at = now
        self._stale_s = STALE_S

    def coded(self) -> None:
        """They are, with zstd."""
        self._decoder = ZstdDecoder()

    def came(self, received: int, now: float) -> bool:
        """All before ``received`` is here: whether the relay should hear that at once."""
        self._fresh_at, self._stale_s = now, STALE_S
        if received - self._acked < ACK_AT_BYTES:
            return False
        self._acked = received
        return True

    def plain(self, data: bytes) -> Iterable[bytes]:
        """The next bytes as they were before coding. Raises `edged.compress.CodingError`."""
        return (data,) if self._decoder is None else self._decoder.feed(data)

    def finish(self) -> None:
        """These were all. Raises `edged.compress.CodingError`."""
        if self._decoder is not None:
            self._decoder.finish()

    def rest(self, now: float) -> None:
        """None are expected now."""
        self._fresh_at = now

    def missed(self, now: float) -> bool:
        """Whether they are to be asked for anew; ever more rarely while none come."""
        if now - self._fresh_at <= self._stale_s:
            return False
        self._fresh_at, self._stale_s = now, min(2 * self._stale_s, STALE_MOST_S)
        return True
