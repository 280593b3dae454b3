"""The record of one exchange, and the access log: one JSON line a record.

`ExchangeRecord` is the single thing the exchange says about itself when it is over; the access
log, the metrics and ``/why/<id>`` all read it. It names no header, no body and no query string.

The log never slows the loop down: lines are formatted when written, handed over once a tick, and
put on disk by a thread. What cannot be written (disk full, a reader that stopped) is dropped and
counted.
"""

from __future__ import annotations

from typing import NamedTuple

from policies.model import Carrier, Failure, Ranking


class AttemptRecord(NamedTuple):
    """One try of an exchange on one path. Times are seconds since the exchange started."""

    path: str
    carrier: Carrier | None
    """``None``: no stream was ever had."""
    started_s: float
    ended_s: float
    failure: Failure | None = None
    """``None``: it gave the response, or it was cancelled as a loser."""
    why: str = "first"
    """``first``, ``retry`` or ``hedge``."""


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
