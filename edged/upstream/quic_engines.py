"""The two QUIC engines behind one face: `aioquic` (pure) and `qh3` (fast).

An engine is a state machine without I/O: datagrams and time in, datagrams and calls on a `Sink`
out. Their `QuicConnection`s have the same API; what a proxy needs beyond it stands here, because
neither offers it in public: flow-control credit that is given only for what was consumed, bytes
not sent yet, the peer's stream credit, and loss counters. The tests run on both, and fail if an
engine's inside changes.

Credit. On aioquic it is exact for each stream: a held stream's window is not moved. On qh3 credit
is given when an event is taken out of its core, in one order for all streams: a held stream is
buffered by its user, on disk if need be, and when that is too much, ``stalled`` stops the pump for
all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

from edged.quic import Address
from edged.upstream.engines import FAST, chosen

INITIAL_RTT_S = 0.2
"""Before the first sample. RFC 9002 suggests 333 ms; a lost first packet costs twice this."""


# The engines log peers' misbehaviour as warnings; here it becomes a Failure with a text instead.
logging.getLogger("quic").setLevel(logging.CRITICAL)


class Sink(Protocol):
    """Who gets what an engine has to say, in the order in which it happened."""

    def handshake_done(self, alpn: str | None, early_accepted: bool) -> None:
        """TLS is complete. ``early_accepted``: 0-RTT data was sent and taken."""

    def stream_data(self, stream_id: int, data: bytes, fin: bool) -> None:
        """The next bytes of a stream, in order; ``fin``: the last ones."""

    def stream_reset(self, stream_id: int, code: int) -> None:
        """RESET_STREAM (RFC 9000 section 19.4) with the application's error code."""

    def stop_sending(self, stream_id: int, code: int) -> None:
        """STOP_SENDING; the engine has reset the sending side."""

    def message(self, data: bytes) -> None:
        """The payload of a DATAGRAM frame."""

    def ping_acked(self, uid: int) -> None:
        """The packet with this PING was acknowledged."""

    def path_validated(self, path: int, rtt_s: float | None) -> None:
        """The peer answered a PATH_CHALLENGE sent on ``path`` (RFC 9000 section 8.2).

        ``rtt_s`` is what that took; ``None``: not known.
        """

    def terminated(self, code: int, frame_type: int | None, reason: str) -> None:
        """The connection is over: an application's code when ``frame_type`` is ``None``."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """What a client connection is made with."""

    server_name: str
    """Host name for SNI and certificate check, or an IP address (checked, not sent)."""
    alpn: tuple[str, ...]
    cafile: str | None
    """PEM file of the system's trust store."""
    cadata: bytes | None
    """Further PEM certificates to trust."""
    idle_timeout_s: float
    ticket: Any = None
    """The engine's own session ticket, or ``None``."""
    moves: bool = True
    """The connection may go on over other lines."""
    messages: bool = False
    """DATAGRAM frames are taken."""


class Counters(NamedTuple):
    """An engine's view of its path since the start."""

    srtt_s: float | None
    latest_rtt_s: float | None
    """Newest sample, the peer's ACK delay taken off."""
    packets_lost: int
    packets_sent: int | None
    """Ack-eliciting packets; ``None``: the engine does not count, its datagrams have to do."""


class Engine(Protocol):
    """A client connection's state machine. ``now`` is any monotonic clock in s, always the same.

    Paths (RFC 9000 section 9) are numbered by their user; the handshake's is 0. What is sent and
    received belongs to the path in use unless it says otherwise.
    """

    exact_credit: bool
    """`hold` alone withholds a stream's credit; otherwise ``stalled`` has to, for all of them."""
    probes: bool
    """`challenge` works on a path that is not in use."""
    stalled: bool
    """Set by the user: take no more events (and give no more credit) until it is unset."""

    def connect(self, peer: Address, now: float) -> None:
        """Start the handshake."""

    def receive(self, datagrams: list[bytes], now: float, path: int = 0) -> None:
        """Datagrams that came from the peer; what they mean comes with the next `pump`."""

    def pump(self, sink: Sink) -> None:
        """Tell ``sink`` all that happened."""

    def datagrams_to_send(self, now: float) -> list[bytes]:
        """What may be sent to the peer now, on the path in use."""

    def take_elsewhere(self) -> list[tuple[int, bytes]]:
        """What the last `datagrams_to_send` had for other paths, with their numbers."""

    def get_timer(self) -> float | None:
        """When `handle_timer` is due."""

    def handle_timer(self, now: float) -> None:
        """Time passed."""

    def next_stream_id(self, *, unidirectional: bool = False) -> int:
        """The id of the stream that the next `send` of this kind opens."""

    def send(self, stream_id: int, data: bytes, fin: bool) -> None:
        """Queue bytes on a stream, opening it if it is new."""

    def reset(self, stream_id: int, code: int) -> None:
        """RESET_STREAM, if the sending side is still open."""

    def stop(self, stream_id: int, code: int) -> None:
        """STOP_SENDING, if the receiving side is still open."""

    def ping(self, uid: int) -> None:
        """Send a PING; `Sink.ping_acked` follows."""

    def close(self, code: int) -> None:
        """CONNECTION_CLOSE with an application error code goes out with the next datagrams."""

    def unsent(self, stream_id: int) -> int:
        """Bytes queued on a stream that were never sent (flow control, congestion, pacing)."""

    def streams_allowed(self) -> int:
        """How many bidirectional streams the peer lets us open over the connection's life."""

    def peer_idle_timeout_s(self) -> float | None:
        """How long the peer keeps a silent connection; ``None``: it did not say."""

    def hold(self, stream_id: int, held: bool) -> None:
        """Give a stream no further credit (exact on aioquic, see above for qh3)."""

    def counters(self) -> Counters:
        """RTT and loss."""

    def may_migrate(self) -> bool:
        """The handshake is confirmed and the peer permits it (``disable_active_migration``, RFC
        9000 section 18.2, binds the address of the handshake only), as far as can be told.
        """

    def preferred_address(self, *, ipv6: bool) -> Address | None:
        """Where the server wants to be spoken to from another path (section 9.6)."""

    def challenge(self, path: int) -> bool:
        """Send a PATH_CHALLENGE on ``path``, with a connection id of its own; False: it cannot
        be done (no unused connection id). Needs ``probes`` unless the path is in use.
        """

    def migrate(self, path: int, now: float) -> bool:
        """Use ``path`` from now on, with a connection id not used elsewhere; what was in flight is
        sent again, congestion control and RTT begin anew (sections 9.4 and 9.5).

        A path that was not validated is, beside being used. False: there is no unused connection
        id, and nothing changed.
        """

    def forget_path(self, path: int) -> None:
        """A path not in use is gone: its connection id is retired."""

    def release(self) -> None:
        """The connection is over, and nothing is asked any more: free what it held. Its parts refer
        to each other, and would wait for the garbage collector.
        """


def make_engine(
    settings: ClientSettings, on_ticket: Callable[[Any], None], name: str | None = None
) -> Engine:
    """A client's engine, `qh3` or `aioquic` as `engines.chosen` says. Raises `EngineError`."""
    return _factory(chosen(name))(settings, on_ticket)


@cache
def _factory(name: str) -> Callable[[ClientSettings, Callable[[Any], None]], Engine]:
    if name == FAST:
        from edged.upstream.quic_qh3 import Qh3Engine

        return Qh3Engine
    from edged.upstream.quic_aioquic import AioquicEngine

    return AioquicEngine
