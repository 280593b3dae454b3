"""The server side of the two QUIC engines behind one face (`edged.upstream.quic_engines` has the
client side): datagrams and time in, datagrams and calls on a `Sink` out, no I/O.

Credit is given as there: on aioquic a held stream's window is not moved; on qh3 the pump is stalled
for all streams of the connection when too much is held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from edged.quic import Address
from edged.upstream.engines import FAST, chosen

CID_BYTES = 8
"""Length of the connection ids that the server chooses."""
TICKETS = 4096
"""Session tickets kept; each serves once, so that no 0-RTT data is taken twice."""


class Sink(Protocol):
    """Who gets what an engine has to say, in the order in which it happened."""

    def handshake_done(self, alpn: str | None) -> None:
        """TLS is complete: what comes from now on is no replay."""

    def cid_issued(self, cid: bytes) -> None:
        """Datagrams with this connection id belong here, too."""

    def cid_retired(self, cid: bytes) -> None:
        """They do not any more."""

    def stream_data(self, stream_id: int, data: bytes, fin: bool) -> None:
        """The next bytes of a stream, in order; ``fin``: the last ones."""

    def stream_reset(self, stream_id: int, code: int) -> None:
        """RESET_STREAM (RFC 9000 section 19.4)."""

    def stop_sending(self, stream_id: int, code: int) -> None:
        """STOP_SENDING; the engine has reset the sending side."""

    def terminated(self) -> None:
        """The connection is over."""


class Engine(Protocol):
    """A server connection's state machine. ``now`` is any monotonic clock in s, always the same."""

    exact_credit: bool
    """`hold` alone withholds a stream's credit; otherwise ``stalled`` has to, for all of them."""
    stalled: bool
    """Set by the user: take no more events (and give no more credit) until it is unset."""
    cid: bytes
    """The first connection id of the server's choice."""

    def receive(self, datagrams: list[bytes], address: Address, now: float) -> None:
        """Datagrams that came from ``address``; what they mean comes with the next `pump`."""

    def pump(self, sink: Sink) -> None:
        """Tell ``sink`` all that happened."""

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]:
        """What may be sent now, and where to."""

    def get_timer(self) -> float | None:
        """When `handle_timer` is due."""

    def handle_timer(self, now: float) -> None:
        """Time passed."""

    def next_stream_id(self) -> int:
        """The id of the unidirectional stream that the next `send` opens."""

    def send(self, stream_id: int, data: bytes, fin: bool) -> None:
        """Queue bytes on a stream."""

    def reset(self, stream_id: int, code: int) -> None:
        """RESET_STREAM, if the sending side is still open."""

    def stop(self, stream_id: int, code: int) -> None:
        """STOP_SENDING, if the receiving side is still open."""

    def close(self, code: int) -> None:
        """CONNECTION_CLOSE with an application error code goes out with the next datagrams."""

    def message(self, data: bytes, *, waiting: int, spare: bool) -> bool:
        """Send a DATAGRAM frame, if the peer takes them and the congestion window has room
        (`edged.quic.message_fits`): whether it does. They would pile up, and before streams at
        that.
        """

    def unsent(self, stream_id: int) -> int:
        """Bytes queued on a stream that were never sent (flow control, congestion, pacing)."""

    def hold(self, stream_id: int, held: bool) -> None:
        """Give a stream no further credit."""


def tell(event: Any, events: ModuleType, sink: Sink) -> None:
    """Pass on an event of either library; ``events``: its ``quic.events``."""
    kind = type(event)
    if kind is events.StreamDataReceived:
        sink.stream_data(event.stream_id, event.data, event.end_stream)
    elif kind is events.StreamReset:
        sink.stream_reset(event.stream_id, event.error_code)
    elif kind is events.StopSendingReceived:
        sink.stop_sending(event.stream_id, event.error_code)
    elif kind is events.ConnectionIdIssued:
        sink.cid_issued(event.connection_id)
    elif kind is events.ConnectionIdRetired:
        sink.cid_retired(event.connection_id)
    elif kind is events.HandshakeCompleted:
        sink.handshake_done(event.alpn_protocol)


@dataclass(frozen=True, slots=True)
class Initial:
    """How a connection begins."""

    destination_cid: bytes
    """The connection id in the client's first datagram that is taken."""
    original_cid: bytes
    """The one in its very first; another one after a Retry."""
    retried: bool


class Tickets:
    """Session tickets by label; each is handed out once."""

    def __init__(self) -> None:
        self._tickets: dict[bytes, Any] = {}

    def put(self, ticket: Any) -> None:
        """Keep a ticket that was issued; the oldest goes when there are too many."""
        if len(self._tickets) >= TICKETS:
            del self._tickets[next(iter(self._tickets))]
        self._tickets[ticket.ticket] = ticket

    def take(self, label: bytes) -> Any:
        """The ticket, unless it was used before."""
        return self._tickets.pop(label, None)


class Factory(Protocol):
    """Makes engines of one kind with one certificate."""

    def __init__(self, chain_file: Path, key_file: Path, idle_timeout_s: float) -> None: ...

    def __call__(self, initial: Initial, tickets: Tickets) -> Engine:
        """An engine for a new connection."""


def make_factory(
    chain_file: Path, key_file: Path, *, idle_timeout_s: float, name: str | None = None
) -> Factory:
    """`qh3` or `aioquic` as `engines.chosen` says. Raises `EngineError`."""
    return _factory(chosen(name))(chain_file, key_file, idle_timeout_s)


@cache
def _factory(name: str) -> Callable[[Path, Path, float], Factory]:
    if name == FAST:
        from edged.downstream.quic_qh3 import Qh3Factory

        return Qh3Factory
    from edged.downstream.quic_aioquic import AioquicFactory

    return AioquicFactory
