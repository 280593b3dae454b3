"""A request body kept while it is sent, so that an attempt can be repeated.

Memory up to 256 KiB, then an unnamed temporary file, up to a limit. Beyond the limit (or when the
disk is full) the body still flows, but the spool keeps only what the slowest reader has not read:
it can no longer be replayed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import IO

MEMORY_BYTES = 256 << 10


class Spool:
    """Append at the end, read at any offset still kept. Offsets count from the body's start."""

    __slots__ = (
        "_chunks",
        "_directory",
        "_file",
        "_limit_bytes",
        "_on_disk_error",
        "_tail_start",
        "complete",
        "replayable",
        "size",
    )

    def __init__(
        self,
        limit_bytes: int,
        directory: str | None = None,
        on_disk_error: Callable[[OSError], None] | None = None,
    ) -> None:
        self._limit_bytes = limit_bytes
        self._directory = directory
        self._on_disk_error = on_disk_error
        self._chunks = bytearray()
        self._tail_start = 0  # the body offset of the first byte of _chunks
        self._file: IO[bytes] | None = None
        self.size = 0
        """Bytes of the body so far."""
        self.complete = False
        """Set by the owner when the body has ended."""
        self.replayable = True
        """Whether byte 0 is still kept."""

    def append(self, data: bytes, oldest_needed: int) -> None:
        """Keep ``data``. ``oldest_needed`` is the lowest offset that any reader still wants.

        Check `replayable` afterwards: it may have become false.
        """
        self.size += len(data)
        if not self.replayable:
            self._keep_tail(data, oldest_needed)
            return
        if self.size > self._limit_bytes:
            self._stop_replay(data, oldest_needed)
            return
        if self._file is None and self.size > MEMORY_BYTES:
            self._to_file(data, oldest_needed)
        elif self._file is not None:
            self._write(data, oldest_needed)
        else:
            self._chunks += data

    def read(self, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes from ``offset``; empty at the end.

        Raises `ValueError` when the bytes at ``offset`` are no longer kept.
        """
        if self._file is not None:
            self._file.seek(offset)
            return self._file.read(min(count, self.size - offset))
        start = offset - self._tail_start
        if start < 0:
            raise ValueError("these bytes of the request body are no longer kept")
        return bytes(self._chunks[start : start + count])

    def close(self) -> None:
        """Free memory and disk."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._chunks = bytearray()
        self.replayable = False

    def _to_file(self, data: bytes, oldest_needed: int) -> None:
        kept = bytes(self._chunks)
        try:
            # Unnamed: it lives exactly as long as the exchange, which closes it in `close`.
            self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115
            _write_all(self._file, kept + data)
        except OSError as error:
            self._lose_file(error, kept, data, oldest_needed)
            return
        self._chunks = bytearray()

    def _write(self, data: bytes, oldest_needed: int) -> None:
        assert self._file is not None
        before = self.size - len(data)
        try:
            self._file.seek(before)
            _write_all(self._file, data)
        except OSError as error:
            self._file.seek(oldest_needed)
            kept = self._file.read(before - oldest_needed)
            self._lose_file(error, kept, data, oldest_needed)

    def _lose_file(self, error: OSError, kept: bytes, data: bytes, oldest_needed: int) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        before = self.size - len(data)
        self._chunks = bytearray(kept)
        self._tail_start = before - len(kept)
        self.replayable = False
        self._keep_tail(data, oldest_needed)
        if self._on_disk_error is not None:
            self._on_disk_error(error)

    def _stop_replay(self, data: bytes, oldest_needed: int) -> None:
        before = self.size - len(data)
        kept = self.read(oldest_needed, before - oldest_needed) if oldest_needed < before else b""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._chunks = bytearray(kept)
        self._tail_start = before - len(kept)
        self.replayable = False
        self._keep_tail(data, oldest_needed)

    def _keep_tail(self, data: bytes, oldest_needed: int) -> None:
        drop = min(oldest_needed - self._tail_start, len(self._chunks))
        if drop > 0:
            del self._chunks[:drop]
            self._tail_start += drop
        self._chunks += data


def _write_all(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
