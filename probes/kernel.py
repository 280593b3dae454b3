"""TCP_INFO of live sockets: RTT, retransmissions and delivery rate, free of any packet.

The kernel times every acknowledged segment, so a busy connection measures its path better than
any probe. The sampler turns what changed since its last `take` into one `Sample` a path; it never
takes silence for life: without an acknowledgement there is a TIMEOUT sample (something was sent
again) or none at all. What silence is evidence of, `probes.watch` tells.

Source of the layout: ``struct tcp_info`` in ``include/uapi/linux/tcp.h``. It only ever grew at its
end, so a shorter answer (an older kernel) lacks the later fields: they are ``None``.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from policies.model import Kind, Outcome, Sample

_IPPROTO_TCP = 6
_TCP_INFO = 11
_MAX_BYTES = 256

_BASE = struct.Struct("=8B24I")  # up to tcpi_total_retrans; every kernel since 2.6 has it
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")


class HasFileno(Protocol):
    """A socket, a transport's socket, or anything else that knows its descriptor."""

    def fileno(self) -> int:
        """The descriptor, -1 when closed."""


class TcpInfo(NamedTuple):
    """What ``TCP_INFO`` says of one socket now. Times in seconds; ``None``: no data."""

    state: int
    retransmits: int
    """Retransmissions of the oldest unacknowledged segment that are still without an answer."""
    backoff: int
    """Doublings of the retransmission timeout; above 0 the peer has been silent for a while."""
    app_limited: bool
    """The delivery rate shows how little there was to send, not what the path can carry."""
    rto_s: float
    unacked: int
    """Segments in flight, those received beyond a gap included."""
    sacked: int
    """Of them, those that the peer has beyond a gap."""
    lost: int
    """Segments in flight that are believed lost."""
    last_data_sent_s: float
    """Time since data was last sent, or sent again."""
    last_data_recv_s: float
    last_ack_recv_s: float
    """Time since the last ACK arrived."""
    rtt_s: float | None
    """Smoothed round trip; ``None`` before the first measurement."""
    rttvar_s: float
    total_retrans: int
    bytes_acked: int | None
    bytes_received: int | None
    """In order: it stands still while a gap is open."""
    segs_out: int | None
    data_segs_out: int | None
    delivery_rate_bps: float | None
    """Bits per second."""
    delivered: int | None
    """Segments delivered, the retransmitted ones counted once."""
    dsack_dups: int | None
    """Segments that the peer reported as received twice: retransmissions nobody needed."""
    rcv_ooopack: int | None
    """Segments received beyond a gap."""


def parse(raw: bytes) -> TcpInfo | None:
    """Read ``struct tcp_info``; ``None`` when it is shorter than any kernel's."""
    if len(raw) < _BASE.size:
        return None
    base = _BASE.unpack_from(raw)
    rate = _u64(raw, 160)
    return TcpInfo(
        state=base[0],
        retransmits=base[2],
        backoff=base[4],
        app_limited=bool(base[7] & 1),
        rto_s=base[8] / 1e6,
        unacked=base[12],
        sacked=base[13],
        lost=base[14],
        last_data_sent_s=base[17] / 1e3,
        last_data_recv_s=base[19] / 1e3,
        last_ack_recv_s=base[20] / 1e3,
        rtt_s=base[23] / 1e6 if base[23] else None,
        rttvar_s=base[24] / 1e6,
        total_retrans=base[31],
        bytes_acked=_u64(raw, 120),
        bytes_received=_u64(raw, 128),
        segs_out=_u32(raw, 136),
        data_segs_out=_u32(raw, 156),
        delivery_rate_bps=None if not rate else rate * 8.0,
        delivered=_u32(raw, 192),
        dsack_dups=_u32(raw, 216),
        rcv_ooopack=_u32(raw, 224),
    )


def _u32(raw: bytes, offset: int) -> int | None:
    return _U32.unpack_from(raw, offset)[0] if len(raw) >= offset + 4 else None


def _u64(raw: bytes, offset: int) -> int | None:
    return _U64.unpack_from(raw, offset)[0] if len(raw) >= offset + 8 else None


# `socket.getsockopt` needs a socket object, and a transport under uvloop offers a duplicate made
# for the call; the C function needs a descriptor only, and takes a microsecond.
_getsockopt = ctypes.CDLL(None, use_errno=True).getsockopt
_buffer = ctypes.create_string_buffer(_MAX_BYTES)
_length = ctypes.c_uint32()


def read(sock: int | HasFileno) -> TcpInfo | None:
    """``TCP_INFO`` of a socket or descriptor; ``None`` if it is closed or no TCP socket."""
    fd = sock if isinstance(sock, int) else sock.fileno()
    if fd < 0:
        return None
    _length.value = _MAX_BYTES
    if _getsockopt(fd, _IPPROTO_TCP, _TCP_INFO, _buffer, ctypes.byref(_length)) != 0:
        return None
    return parse(_buffer.raw[: _length.value])


class _Counters(NamedTuple):
    """A socket's running totals at the last look."""

    path: str
    sent: int
    resent: int
    acked: int

    @classmethod
    def of(cls, path: str, info: TcpInfo) -> _Counters:
        sent = info.data_segs_out if info.data_segs_out is not None else info.segs_out
        acked = info.delivered if info.delivered is not None else info.bytes_acked
        return cls(path, sent or 0, max(0, info.total_retrans - (info.dsack_dups or 0)), acked or 0)

    def follows(self, before: _Counters) -> bool:
        """False when the descriptor now belongs to another connection."""
        return self.path == before.path and self.sent >= before.sent and self.acked >= before.acked


@dataclass(slots=True)
class _Tally:
    """What one path's sockets add up to in one look."""

    sent: int = 0
    lost: int = 0
    acked: bool = False
    rtt_s: float | None = None
    heard_at: float = float("-inf")
    goodput_bps: float | None = None


class KernelSampler:
    """Turns looks at sockets into samples of what happened since the last `take`."""

    __slots__ = ("_before", "_noted", "_tallies")

    def __init__(self) -> None:
        self._before: dict[int, _Counters] = {}
        self._noted: set[int] = set()
        self._tallies: dict[str, _Tally] = {}

    def note(self, path: str, fd: int, info: TcpInfo, now: float) -> None:
        """One look at one socket.

        Segments that are still on their way are counted by the look that knows their fate.
        """
        self._noted.add(fd)
        after = _Counters.of(path, info)
        before = self._before.get(fd)
        if before is None or not after.follows(before):
            # A connection seen for the first time counts from its beginning.
            before = _Counters(path, 0, 0, 0)
        progressed = after.acked > before.acked
        if progressed or after.resent > before.resent:
            tally = self._tallies.setdefault(path, _Tally())
            _add(tally, before, after, info, now if progressed else None)
            self._before[fd] = after
        else:
            self._before[fd] = before

    def take(self, now: float) -> list[Sample]:
        """One sample a path at most; none of a path whose sockets were idle. Sockets that nobody
        noted since the last call are forgotten."""
        tallies, self._tallies = self._tallies, {}
        noted, self._noted = self._noted, set()
        self._before = {fd: known for fd, known in self._before.items() if fd in noted}
        return [_to_sample(path, tally, now) for path, tally in tallies.items() if tally.sent]

    def sample(self, sockets: Iterable[tuple[str, int | HasFileno]], now: float) -> list[Sample]:
        """Look at each ``(path name, socket or descriptor)`` once, and `take`."""
        for path, sock in sockets:
            fd = sock if isinstance(sock, int) else sock.fileno()
            info = read(fd)
            if info is not None:
                self.note(path, fd, info, now)
        return self.take(now)


def _add(
    tally: _Tally, before: _Counters, after: _Counters, info: TcpInfo, now: float | None
) -> None:
    """``now``: when segments were seen to be acknowledged; ``None``: none were."""
    tally.sent += after.sent - before.sent
    tally.lost += max(0, after.resent - before.resent)
    if now is None:
        return
    tally.acked = True
    if now - info.last_ack_recv_s > tally.heard_at:
        tally.heard_at = now - info.last_ack_recv_s
        tally.rtt_s = info.rtt_s
    if info.delivery_rate_bps is not None and not info.app_limited:
        # Sockets on one path share it: what they carry together is at least the sum.
        tally.goodput_bps = (tally.goodput_bps or 0.0) + info.delivery_rate_bps


def _to_sample(path: str, tally: _Tally, now: float) -> Sample:
    return Sample(
        path,
        Kind.KERNEL,
        tally.heard_at if tally.acked else now,
        tally.rtt_s if tally.acked else None,
        Outcome.OK if tally.acked else Outcome.TIMEOUT,
        packets_sent=tally.sent,
        packets_lost=min(tally.lost, tally.sent),
        goodput_bps=tally.goodput_bps,
    )
