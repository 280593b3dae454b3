"""Connection migration of an `aioquic` client (RFC 9000 section 9), which the engine has not.

It has what a server needs for migrating clients, and a client for a preferred address: paths with
connection ids and challenges of their own, told apart by the peer's address. Here that address is
of two or three parts, the third being the number of the path: several paths lead to one peer, and
each is another local socket.

Rests on these insides of aioquic 1.7; `tests/edged/upstream/test_quic_paths.py` fails when they
change: ``_network_paths`` (the one in use first, probing frames are written for the others),
`QuicNetworkPath`, ``_peer_cid`` and ``_peer_cid_available``, the frame handlers' names, and the
fields of `QuicPacketRecovery` that its constructor sets.
"""

from __future__ import annotations

import math
from time import monotonic
from typing import Any

from aioquic._buffer import Buffer
from aioquic.quic.congestion.base import create_congestion_control
from aioquic.quic.connection import QuicConnection, QuicNetworkPath
from aioquic.quic.packet import pull_quic_transport_parameters
from aioquic.quic.recovery import QuicPacketPacer
from aioquic.tls import Epoch

from edged.quic import Address
from edged.upstream.quic_base import limit_payload

_ABLE = all(
    hasattr(QuicConnection, name)
    for name in ("_send_probing_frames", "_use_reserved_peer_cid", "_path_validation_deadline")
)
"""Older than 1.7 it has less than is needed here."""
_UNLIMITED = 1 << 60
_RESET_BYTES = 21
_TOKEN_BYTES = 16


class _Path(QuicNetworkPath):
    """A path that this client opened. It may send there what it likes: the peer's address was
    validated by the handshake (RFC 9000 section 9.1), so no amplification limit holds.
    """

    def __init__(self, number: int, peer: Address) -> None:
        super().__init__((*peer, number))
        self.number = number
        self.challenged_at: float | None = None
        self.bytes_received = _UNLIMITED
        self.local_challenge_sent = True
        self.validation_deadline = math.inf


class PathConnection(QuicConnection):
    """A client connection that can use several paths, one at a time."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.validated: list[tuple[int, float | None]] = []
        """Paths whose challenge was answered, and how fast, since the user looked."""
        self.unproven = False
        """There is a path that the peer has not answered on: a stateless reset is possible."""
        self.preferred_address: Any = None
        self._migration_refused = False

    def _serialize_transport_parameters(self) -> bytes:
        return limit_payload(super()._serialize_transport_parameters())

    @property
    def may_migrate(self) -> bool:
        """See `quic_engines.Engine`."""
        refused = self._migration_refused and self.preferred_address is None
        return _ABLE and self._handshake_confirmed and not refused and bool(self._peer_cid.cid)

    def address_of(self, number: int) -> Any:
        """What the engine is to be told that datagrams of that path come from."""
        for path in self._network_paths:
            if getattr(path, "number", 0) == number:
                return path.addr
        return None

    def number_of(self, address: Any) -> int:
        """The number of the path with that address."""
        number: int = address[2] if len(address) == 3 else 0
        return number

    def challenge(self, number: int, peer: Address) -> bool:
        """See `quic_engines.Engine`."""
        path = self._path(number, peer)
        if path is not self._network_paths[0]:
            if path.peer_cid is None and not self._peer_cid_available:
                return False
            if path not in self._network_paths:
                self._network_paths.append(path)
        path.is_validated = False
        path.local_challenge_sent = False
        path.challenged_at = None if path.local_challenges else monotonic()
        self.unproven = True
        return True

    def migrate(self, number: int, peer: Address, now: float) -> bool:
        """See `quic_engines.Engine`."""
        path, old = self._path(number, peer), self._network_paths[0]
        if path.peer_cid is None:
            if not self._peer_cid_available:
                return False
            path.peer_cid = self._peer_cid_available.pop(0)
        self._use_reserved_peer_cid(path)
        if path in self._network_paths:
            self._network_paths.remove(path)
        self._network_paths.insert(0, path)
        old.is_validated = True  # nothing more is to be asked there
        if not path.is_validated:
            self.challenge(number, peer)
        self._begin_anew(now)
        return True

    def forget_path(self, number: int) -> None:
        """See `quic_engines.Engine`."""
        for path in self._network_paths[1:]:
            if getattr(path, "number", 0) == number:
                self._network_paths.remove(path)
                if path.peer_cid is not None:
                    self._retire_peer_cid(path.peer_cid)
        self._prove()

    def is_reset(self, datagram: bytes) -> bool:
        """Whether ``datagram`` is a stateless reset (section 10.3.1); if so, the end has come."""
        if len(datagram) < _RESET_BYTES or datagram[0] & 0xC0 != 0x40:
            return False
        ids = [self._peer_cid, *(path.peer_cid for path in self._network_paths)]
        tokens = {cid.stateless_reset_token for cid in ids if cid is not None}
        if datagram[-_TOKEN_BYTES:] not in tokens:
            return False
        self.close(0, 0, "stateless reset")
        self._close_pending = False
        self._close_end()
        return True

    # Inside

    def _path(self, number: int, peer: Address) -> _Path:
        for path in self._network_paths:
            if isinstance(path, _Path) and path.number == number:
                return path
        return _Path(number, peer)

    def _begin_anew(self, now: float) -> None:
        """What was sent on the old path counts as lost, but not as congestion (section 9.4)."""
        recovery, space = self._loss, self._spaces[Epoch.ONE_RTT]
        recovery._on_packets_lost(
            congestion_event=False,
            now=now,
            packets=tuple(space.sent_packets.values()),
            space=space,
        )
        space.loss_time = None
        recovery._cc = create_congestion_control(
            self._configuration.congestion_control_algorithm,
            max_datagram_size=self._max_datagram_size,
        )
        recovery._pacer = QuicPacketPacer(max_datagram_size=self._max_datagram_size)
        recovery._pto_count = 0
        recovery._rtt_initialized = False
        recovery._rtt_latest = recovery._rtt_smoothed = recovery._rtt_variance = 0.0
        recovery._rtt_min = math.inf
        self._pacing_at = None

    def _prove(self) -> None:
        self.unproven = any(path.local_challenges for path in self._network_paths)

    def _send_probing_frames(self, network_path: Any, now: float) -> list[tuple[bytes, Any]]:
        # Acknowledged on another path than they were sent on, probes tell nothing of either one's
        # round trip or congestion, and who sent a challenge repeats it: recovery forgets them.
        recovery, space = self._loss, self._spaces[Epoch.ONE_RTT]
        last_sent, first = recovery._time_of_last_sent_ack_eliciting_packet, self._packet_number
        sent = super()._send_probing_frames(network_path=network_path, now=now)
        recovery._time_of_last_sent_ack_eliciting_packet = last_sent
        recovery._on_packets_lost(
            congestion_event=False,
            now=now,
            packets=[space.sent_packets[n] for n in range(first, self._packet_number)],
            space=space,
        )
        return sent

    def _handle_path_response_frame(self, context: Any, frame_type: int, buf: Any) -> None:
        # The base class would use a path as soon as it is validated.
        data = buf.pull_bytes(8)
        for path in self._network_paths:
            if isinstance(path, _Path) and data in path.local_challenges:
                path.is_validated = True
                path.local_challenge_sent = True
                path.local_challenges.clear()
                sent_at = path.challenged_at
                rtt_s = None if sent_at is None else context.time - sent_at
                self.validated.append((path.number, rtt_s))
        self._prove()

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        super()._parse_transport_parameters(data, from_session_ticket)
        if not from_session_ticket:
            found = pull_quic_transport_parameters(Buffer(data=data))
            self._migration_refused = bool(found.disable_active_migration)
            self.preferred_address = found.preferred_address
            # The base class would probe it from here; it is for those who leave.
            self._remote_preferred_address = None
