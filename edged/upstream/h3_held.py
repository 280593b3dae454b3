"""Response bytes of a paused stream, on an engine that cannot withhold one stream's credit alone.

Memory up to a limit, then (if allowed) an unnamed temporary file up to a larger one. The order is
kept: while the file has unread bytes, later ones go behind them.
"""

from __future__ import annotations

import tempfile
from collections import deque
from typing import IO

MEMORY_BYTES = 1 << 20
FILE_BYTES = 64 << 20

_READ_BYTES = 64 << 10


class Held:
    """A queue of stream bytes with an end mark."""

    __slots__ = ("_chunks", "_file", "_fin", "_memory_bytes", "_read_at", "_write_at")

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._memory_bytes = 0
        self._file: IO[bytes] | None = None
        self._read_at = self._write_at = 0
        self._fin = False

    def __bool__(self) -> bool:
        return bool(self._chunks or self._read_at < self._write_at or self._fin)

    @property
    def full(self) -> bool:
        """It holds more than it should: no more bytes may come."""
        return self._memory_bytes > MEMORY_BYTES or self._write_at - self._read_at > FILE_BYTES

    @property
    def relaxed(self) -> bool:
        """Enough was taken out for bytes to come again."""
        return (
            self._memory_bytes <= MEMORY_BYTES // 2
            and self._write_at - self._read_at <= FILE_BYTES // 2
        )

    def append(self, data: bytes, fin: bool, *, spill: bool) -> None:
        """Hold ``data``; with ``spill`` a file takes what memory should not."""
        self._fin = self._fin or fin
        in_file = self._read_at < self._write_at
        if in_file or (spill and self._memory_bytes + len(data) > MEMORY_BYTES):
            try:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # closed by clear
                self._file.seek(self._write_at)
                self._write_at += self._file.write(data)
                return
            except OSError:
                if in_file:
                    raise
                # No room on disk: memory takes it, and being full stops the flow.
        self._chunks.append(data)
        self._memory_bytes += len(data)

    def put_back(self, data: bytes, fin: bool) -> None:
        """Return the unread end of what `take` gave."""
        self._fin = self._fin or fin
        self._chunks.appendleft(data)
        self._memory_bytes += len(data)

    def take(self) -> tuple[bytes, bool]:
        """The next bytes, and whether they are the last ones."""
        if self._chunks:
            data = self._chunks.popleft()
            self._memory_bytes -= len(data)
        elif self._read_at < self._write_at and self._file is not None:
            self._file.seek(self._read_at)
            data = self._file.read(min(_READ_BYTES, self._write_at - self._read_at))
            self._read_at += len(data)
            if self._read_at == self._write_at:
                self._close_file()
        else:
            data = b""
        last = self._fin and not self._chunks and self._read_at == self._write_at
        if last:
            self._fin = False
        return data, last

    def clear(self) -> None:
        """Forget everything."""
        self._chunks.clear()
        self._memory_bytes = 0
        self._fin = False
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._read_at = self._write_at = 0
