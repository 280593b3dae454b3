"""The contract between a pool and its connections, the same for h1, h2 and h3.

A `Connector` makes connections; a `Connection` carries streams; its `Owner` (the pool) is told, by
plain calls in the loop turn in which it happened, what changed. Rules:

* A connection that `Connector.connect` returned is ready: handshake complete, or ``early`` (0-RTT).
* ``capacity`` and ``in_flight`` are attributes that the connection keeps current; ``capacity`` is 0
  whenever no stream may be opened now, whatever the reason. The owner may call `open_stream` only
  while ``capacity > 0``; the call lowers it by one and raises ``in_flight`` before it returns, and
  does not call the owner back.
* `Owner.capacity_changed` is called whenever either number changed otherwise (a stream ended, the
  peer changed its limit, early became confirmed), once per change, after the attributes are set.
* `Owner.draining` is called at most once, when the connection takes no new streams for good
  (GOAWAY, ``Connection: close``, stream ids used up): ``draining`` is True and ``capacity`` 0.
* `Owner.closed` is called exactly once, after every stream's ``failed``; nothing is called later.
* A stream calls nothing on its events after ``end``, ``failed`` or its own ``cancel``. An exchange
  that ends calls its events first and `Owner.capacity_changed` after, so that what the events
  object does sees the old number; neither call may be made from inside `open_stream`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from edged.upstream.base import Stream, StreamEvents
from policies.model import Carrier, Failure, Path, Sample

Report = Callable[[Sample], None]
"""Where passive samples go (`PathTable.observe` behind it)."""


class Rest(NamedTuple):
    """How a connection's last rest ended."""

    seconds: float
    lost: bool
    """With a request that was given to it and never answered."""


class Connection(Protocol):
    """One upstream connection of any carrier."""

    carrier: Carrier
    path: Path
    capacity: int
    """Streams that can be opened now; O(1)."""
    in_flight: int
    """Streams open now."""
    served: int
    """Streams opened so far; above 0 a new one is ``reused``."""
    idle_since: float | None
    """Loop time since when no stream is open; ``None`` while one is."""
    heard_at: float
    """Loop time when the peer was last heard (bytes or packets received)."""
    draining: bool
    """Takes no new stream for good; closes when the last one ended."""
    early: bool
    """0-RTT: only streams opened with ``early_data`` may be put on it until this turns False."""
    settled: bool
    """False while the connection itself waits for a sign that what was sent on it has arrived:
    another one is better, if there is one. `Owner.capacity_changed` is called when it changes."""
    rest: Rest | None
    """Set before the owner hears of it when the peer closed it idle, or closed it instead of
    answering the first request after a rest."""
    announced_s: float | None
    """How long the peer keeps an idle connection, by its own words; ``None``: it said nothing."""

    def open_stream(self, events: StreamEvents) -> Stream:
        """A stream for one exchange; the owner passes it to ``events.stream_ready``."""

    def ping(self, done: Callable[[float | None], None], timeout_s: float) -> bool:
        """Ask for a sign of life; False if the carrier has none (h1) or it is closed.

        ``done`` gets the round trip in s, or ``None`` after ``timeout_s`` or when the connection
        closed first. The sample (`Kind.PING`) is reported as well.
        """

    def expect_loss(self, *, expected: bool) -> None:
        """The path loses packets, or no longer: where that makes losses show sooner, a little more
        is sent behind what would be alone on its way."""

    def drain(self) -> None:
        """Take nothing new, finish what is in flight, then close. Calls `Owner.draining`."""

    def close(self, failure: Failure | None = None) -> None:
        """Close at once. Streams in flight get ``failed(failure)``.

        ``unprocessed`` is set for each stream by what was sent on it, whatever ``failure`` says.
        ``None`` stands for a local shutdown. Does not wait for the peer.
        """

    def doubt(self) -> None:
        """Its path is SUSPECT: whoever can run on another path looks whether one answers sooner."""

    def leave(self) -> bool:
        """Its path is DOWN. True: it goes on over another path, and said so (`Owner.moved`,
        `StreamEvents.moved`) inside this call; False: it is of no use any more."""

    def fileno(self) -> int | None:
        """The TCP socket's descriptor for the kernel prober; ``None`` for QUIC or when closed."""


class Owner(Protocol):
    """What a pool offers to its connections. A connection keeps no other reference to its pool."""

    def capacity_changed(self, connection: Connection) -> None:
        """``capacity``, ``in_flight`` or ``early`` changed other than by `open_stream`."""

    def draining(self, connection: Connection) -> None:
        """It takes no new streams any more."""

    def closed(self, connection: Connection, failure: Failure | None) -> None:
        """It is gone; ``failure`` is ``None`` for an orderly end without streams in flight."""

    def moved(self, connection: Connection, path: Path) -> Owner:
        """It runs on ``path`` now: the owner forgets it and answers whose it is from here on.

        Its ``capacity`` is 0 until the new path is proven; then `capacity_changed` follows.
        """

    def alt_svc(self, connection: Connection, value: bytes) -> None:
        """An Alt-Svc field value (RFC 7838) came from the origin of this connection."""


class Connector(Protocol):
    """Makes connections of one kind (TCP with h1 and h2 by ALPN, or QUIC with h3)."""

    async def connect(
        self,
        path: Path,
        owner: Owner,
        *,
        timeout_s: float,
        early_data: bool = False,
        upgrade: bool = False,
        only: Carrier | None = None,
    ) -> Connection:
        """Dial, shake hands, and return a connection that has reported to nobody yet.

        ``timeout_s`` covers DNS, connect and TLS together. With ``early_data`` it may return an
        ``early`` connection before the handshake ends (if a ticket permits). ``upgrade`` asks for
        h1, ``only`` for one of several carriers that the connector makes. Passive samples
        (`Kind.TCP`, `Kind.TLS`, `Kind.QUIC`), lost ones included, go to the connector's report.
        Raises `probes.base.DialError`; cancellation leaves no socket behind.
        """
