"""The record of one exchange, and the access log: one JSON line a record.

`ExchangeRecord` is the single thing the exchange says about itself when it is over; the access
log, the metrics and ``/why/<id>`` all read it. It names no header, no body and no query string.

The log never slows the loop down: lines are formatted when written, handed over once a tick, and
put on disk by a thread. What cannot be written (disk full, a reader that stopped) is dropped and
counted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import threading
import time
from functools import lru_cache
from typing import NamedTuple

from policies.model import Carrier, Failure, Ranking

_log = logging.getLogger("edged.accesslog")


class AttemptRecord(NamedTuple):
    """One try of an exchange on one path. Times are seconds since the exchange started."""

    path: str
    carrier: Carrier | None
    """``None``: no stream was ever had."""
    started_s: float
    ended_s: float
    failure: Failure | None = None
    """``None``: it gave the response, or it was cancelled."""
    why: str = "first"
    """`policies.commands.Why`."""
    cancelled: bool = False
    """Given up by edged: another was quicker, or the client left."""
    reason: str = ""
    """The sentence that explains ``why``: what happened before; empty for the first."""
    moved: bool = False
    """It was not over: it went on, unrepeated, as the next entry with ``why`` ``migration``."""


class ExchangeRecord:
    """One exchange, over. ``None`` means "not known" or "never came to that"."""

    __slots__ = (
        "attempts",
        "authority",
        "bytes_down",
        "bytes_down_wire",
        "bytes_up",
        "bytes_up_wire",
        "carrier",
        "client",
        "error",
        "hedged",
        "method",
        "path_name",
        "path_without_query",
        "ranking",
        "replayed",
        "request_id",
        "started",
        "status",
        "total_s",
        "ttfb_s",
        "upstream",
    )

    def __init__(
        self,
        request_id: str,
        started: float,
        upstream: str,
        method: str,
        authority: str,
        path_without_query: str,
        *,
        client: str = "",
        status: int | None = None,
        path_name: str | None = None,
        carrier: Carrier | None = None,
        attempts: tuple[AttemptRecord, ...] = (),
        bytes_up: int = 0,
        bytes_down: int = 0,
        bytes_up_wire: int = 0,
        bytes_down_wire: int = 0,
        ttfb_s: float | None = None,
        total_s: float = 0.0,
        error: str | None = None,
        hedged: bool = False,
        replayed: bool = False,
        ranking: Ranking | None = None,
    ) -> None:
        self.request_id = request_id
        self.started = started
        """Wall time in seconds since 1970."""
        self.upstream = upstream
        """Name of the upstream; of an unlisted host, the name `PathTable` keeps it under."""
        self.method = method
        self.authority = authority
        self.path_without_query = path_without_query
        """Empty for CONNECT."""
        self.client = client
        self.status = status
        """What the client got; ``None``: it left before a head was sent."""
        self.path_name = path_name
        """The path whose response the client got."""
        self.carrier = carrier
        self.attempts = attempts
        """Every try in the order of their ends; empty if there was one and it gave the response."""
        self.bytes_up = bytes_up
        """Request body as the client sent it."""
        self.bytes_down = bytes_down
        """Response body as the client got it."""
        self.bytes_up_wire = bytes_up_wire
        """Request body as it went upstream, all attempts together."""
        self.bytes_down_wire = bytes_down_wire
        """Response body as it came from upstream, before decoding."""
        self.ttfb_s = ttfb_s
        """Request head received to response head received."""
        self.total_s = total_s
        self.error = error
        """A Proxy-Status error type (RFC 9209) or a short word for a client that left."""
        self.hedged = hedged
        self.replayed = replayed
        """A request that was already (partly) sent went out again on another path."""
        self.ranking = ranking
        """The ranking it was decided by, for ``/why``."""

    @property
    def tries(self) -> tuple[AttemptRecord, ...]:
        """Every try, also where there was only the one that gave the response."""
        if self.attempts or self.path_name is None:
            return self.attempts
        return (AttemptRecord(self.path_name, self.carrier, 0.0, self.total_s),)


_quote = json.encoder.encode_basestring_ascii
_LINE = (
    '{"time":"%s%s","id":"%s","client":%s,"upstream":%s,"method":%s,"authority":%s'
    ',"target":%s,"status":%s,"path":%s,"carrier":%s,"attempts":%d,"ttfb_ms":%s,"total_ms":%.1f'
    ',"bytes_up":%d,"bytes_down":%d,"bytes_up_wire":%d,"bytes_down_wire":%d%s}\n'
)
_MILLISECOND = tuple(f".{ms:03d}Z" for ms in range(1000))


def format_line(record: ExchangeRecord) -> str:
    """``record`` as one line of JSON, with its line feed. Times are ms; no query, no header."""
    r = record
    ms = int(r.started * 1e3)
    second = ms // 1000
    attempts = r.attempts
    plain = r.error is None and not attempts
    # One format of everything: this runs for each request.
    return _LINE % (
        _second_text(second),
        _MILLISECOND[ms % 1000],
        r.request_id,
        _quote(r.client),
        _quote(r.upstream),
        _quote(r.method),
        _quote(r.authority),
        _quote(r.path_without_query),
        "null" if r.status is None else r.status,
        _word(r.path_name),
        _word(r.carrier),
        len(r.tries),
        "null" if r.ttfb_s is None else "%.1f" % (r.ttfb_s * 1e3),
        r.total_s * 1e3,
        r.bytes_up,
        r.bytes_down,
        r.bytes_up_wire,
        r.bytes_down_wire,
        "" if plain else _extras(r),
    )


def _word(value: str | None) -> str:
    return "null" if value is None else _quote(value)


def _extras(record: ExchangeRecord) -> str:
    """What most lines need not say."""
    text = ""
    if record.error is not None:
        text += f',"error":{_quote(record.error)}'
    if record.hedged:
        text += ',"hedged":true'
    if record.replayed:
        text += ',"replayed":true'
    if len(record.attempts) > 1 or any(a.failure or a.cancelled for a in record.attempts):
        text += f',"tried":{json.dumps([attempt_json(a) for a in record.attempts])}'
    return text


def attempt_json(attempt: AttemptRecord) -> dict[str, object]:
    """An attempt as JSON data, for the log and ``/why``."""
    return {
        "path": attempt.path,
        "carrier": attempt.carrier,
        "why": attempt.why,
        "reason": attempt.reason,
        "started_ms": round(attempt.started_s * 1e3, 1),
        "ended_ms": round(attempt.ended_s * 1e3, 1),
        "outcome": _outcome(attempt),
        "detail": "" if attempt.failure is None else attempt.failure.detail,
    }


def _outcome(attempt: AttemptRecord) -> str:
    if attempt.failure is not None:
        return attempt.failure.outcome
    if attempt.moved:
        return "moved"
    return "cancelled" if attempt.cancelled else "ok"


@lru_cache(maxsize=4)
def _second_text(second: int) -> str:
    """RFC 3339 in UTC, without the fraction."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


class AccessLog:
    """Writes records to ``stdout``, ``stderr`` or a file from a thread of its own.

    `write` is for the loop's thread only. ``dropped`` counts the lines that never reached the
    target.
    """

    def __init__(
        self,
        target: str,
        loop: asyncio.AbstractEventLoop,
        *,
        flush_s: float = 0.1,
        max_pending_bytes: int = 4 << 20,
    ) -> None:
        """Open ``target``. Raises OSError."""
        self.target = target
        self._loop = loop
        self._flush_s = flush_s
        self._max_pending_bytes = max_pending_bytes
        self._lines: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._queued_bytes = 0
        self._refused = 0
        self._sink = _Sink(target)
        self._sink.start()

    @property
    def dropped(self) -> int:
        """Lines that were not written since the start."""
        return self._refused + self._sink.lost

    def write(self, record: ExchangeRecord) -> None:
        """Log one exchange, within the next tick."""
        self._lines.append(format_line(record))
        if self._timer is None:
            self._timer = self._loop.call_later(self._flush_s, self.flush)

    def flush(self) -> None:
        """Hand over what was written since the last tick."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, []
        if not lines:
            return
        if self._queued_bytes - self._sink.taken_bytes > self._max_pending_bytes:
            self._refused += len(lines)
            return
        data = "".join(lines).encode("ascii")
        self._queued_bytes += len(data)
        self._sink.put(data)

    def reopen(self) -> None:
        """Open the file anew, after it was renamed by a rotation."""
        self.flush()
        self._sink.put(_REOPEN)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is left, but wait no longer than ``timeout_s`` for a blocked target."""
        self.flush()
        self._sink.put(_CLOSE)
        self._sink.join(timeout_s)


_REOPEN = b""
_CLOSE = None
_LINE_FEED = 0x0A
_STANDARD = {"stdout": 1, "stderr": 2}


class _Sink:
    """Puts bytes on disk. A write may block for as long as it likes; only its own thread waits."""

    def __init__(self, target: str) -> None:
        self._writer = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._file = target
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._fd = _open(target)
        self._torn = False  # the last line on disk is incomplete
        self._complained = False
        self.taken_bytes = 0
        """Bytes no longer waiting: written or lost."""
        self.lost = 0
        """Lines that the target did not take."""

    def start(self) -> None:
        self._writer.start()

    def put(self, data: bytes | None) -> None:
        self._queue.put(data)

    def join(self, timeout_s: float) -> None:
        self._writer.join(timeout_s)

    def _run(self) -> None:
        while (data := self._queue.get()) is not _CLOSE:
            if data:
                self._write(data)
                self.taken_bytes += len(data)
            else:
                self._reopen()
        os.close(self._fd)

    def _write(self, data: bytes) -> None:
        if self._torn:
            data = b"\n" + data  # ends the incomplete line, which was counted as lost already
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:] if done else data)
            self._torn = False
        except OSError as error:
            self.lost += data.count(b"\n", max(done, self._torn))
            self._torn = data[done - 1] != _LINE_FEED if done else self._torn
            if not self._complained:
                self._complained = True
                _log.warning("access log %s: %s; lines are lost", self._file, error.strerror)

    def _reopen(self) -> None:
        try:
            fd = _open(self._file)
        except OSError as error:
            _log.warning("access log %s: not reopened: %s", self._file, error.strerror)
            return
        os.close(self._fd)
        self._fd, self._torn, self._complained = fd, False, False


def _open(target: str) -> int:
    if target in _STANDARD:
        return os.dup(_STANDARD[target])
    return os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
