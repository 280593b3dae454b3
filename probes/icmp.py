"""ICMP echo: many targets at once on one socket a line and family.

A raw socket where this process may have one, else an unprivileged ICMP datagram socket
(``net.ipv4.ping_group_range``), else one warning and no samples: the other probes carry on.
Answers are matched by identifier, sequence number and an unguessable token. An error message
(destination unreachable) is an answer, too; time exceeded, redirects and garbage are not.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import secrets
import socket
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import icmplib
from icmplib.sockets import ICMPv4Socket, ICMPv6Socket

from policies.model import Kind, Line, Outcome, Path, Sample
from probes import echo
from probes.base import Announce, Dialer, DialError

log = logging.getLogger(__name__)

ADDRESS_S = 30.0
"""How long an endpoint's address is used before the dialer is asked again (it caches by TTL)."""
_BATCH = 64
_RECEIVE_BUFFER_BYTES = 1 << 20  # answers that arrive while the loop is busy must not be "lost"
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35
_SCM_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@ll")
_SOL_RAW, _ICMP_FILTER = 255, 1
_ICMPV6_FILTER = 1
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_EXTENDED_ERROR = struct.Struct("@IBBBxII")
_ORIGIN_ICMP, _ORIGIN_ICMP6 = 2, 3
_TYPE_V4_UNREACHABLE, _TYPE_V6_UNREACHABLE = 3, 1
_NO_ROUTE = frozenset(
    {
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.EADDRNOTAVAIL,
        errno.ENODEV,
        errno.ENXIO,
        errno.EPERM,
        errno.EACCES,
        errno.EINVAL,
    }
)
_BINDING_LOST = frozenset({errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENXIO, errno.EINVAL})

NOT_PERMITTED = (
    "ICMP probes are off: this process may open neither raw nor unprivileged ICMP sockets. "
    "Allow one with `sysctl -w net.ipv4.ping_group_range='0 2147483647'` or with CAP_NET_RAW "
    "(systemd: AmbientCapabilities=CAP_NET_RAW). All other probes carry on."
)

Report = Callable[[Sample], None]


class _Waiting(NamedTuple):
    """One echo request in flight."""

    path: str
    target: str
    sent_at: float
    sent_wall_ns: int
    report: Report
    timer: asyncio.TimerHandle


class _Channel:
    """One socket of one line and family, and what is in flight on it."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        raw: bool,
        clock: Callable[[], float],
        sent: Announce | None,
        owner: object,
    ) -> None:
        self._sent = sent
        self._owner = owner  # keeps icmplib's socket object, which closes on collection, alive
        self._sock = sock
        self._family = sock.family
        self._raw = raw
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._ident = secrets.randbelow(0xFFFF) + 1
        self._token = secrets.token_bytes(echo.TOKEN_BYTES)
        self._sequence = secrets.randbelow(0x10000)
        self._waiting: dict[int, _Waiting] = {}
        sock.setblocking(False)
        _prefer_answers(sock, raw=raw)
        self._loop.add_reader(sock.fileno(), self._readable)

    def send(self, path: str, target: str, timeout_s: float, report: Report) -> bool:
        """Send one request; one sample follows, unless this host's own queues are full.

        False: the line has lost what the socket was bound to; open another one.
        """
        sequence = self._free_sequence()
        if sequence is None:
            return True
        packet = echo.request(self._family, self._ident, sequence, self._token)
        sent_at = self._clock()
        wall_ns = time.time_ns()
        try:
            self._sock.sendto(packet, (target, 0))
        except OSError as error:
            # Anything else (ENOBUFS, EAGAIN) says something of this host's queues only.
            if error.errno in _NO_ROUTE:
                report(Sample(path, Kind.ICMP, sent_at, None, Outcome.UNREACHABLE))
            return error.errno not in _BINDING_LOST
        timer = self._loop.call_later(timeout_s, self._expire, sequence)
        self._waiting[sequence] = _Waiting(path, target, sent_at, wall_ns, report, timer)
        if self._sent is not None:
            self._sent(path, Kind.ICMP, sent_at)
        return True

    def close(self) -> None:
        """Close the socket and forget what is in flight."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
        for waiting in self._waiting.values():
            waiting.timer.cancel()
        self._waiting.clear()

    def _free_sequence(self) -> int | None:
        for _ in range(16):
            self._sequence = (self._sequence + 1) & 0xFFFF
            if self._sequence not in self._waiting:
                return self._sequence
        return None

    def _expire(self, sequence: int) -> None:
        waiting = self._waiting.pop(sequence)
        waiting.report(Sample(waiting.path, Kind.ICMP, waiting.sent_at, None, Outcome.TIMEOUT))

    def _readable(self) -> None:
        if not self._raw:
            self._read_errors()
        for _ in range(_BATCH):
            try:
                packet, ancillary, _, source = self._sock.recvmsg(2048, 64)
            except BlockingIOError:
                return
            except OSError:  # an error pending on the socket; reading it has cleared it
                continue
            reply = echo.parse(
                self._family, packet, ip_header=self._raw and self._family == socket.AF_INET
            )
            if reply is not None:
                self._settle(reply, str(source[0]), _kernel_time_ns(ancillary))

    def _read_errors(self) -> None:
        """Take ICMP errors off a datagram socket's error queue (ip(7), IP_RECVERR)."""
        for _ in range(_BATCH):
            try:
                packet, ancillary, _, _ = self._sock.recvmsg(512, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return
            # uvloop's poll handle stops at POLLERR; setting it up again is harmless elsewhere.
            self._loop.remove_reader(self._sock.fileno())
            self._loop.add_reader(self._sock.fileno(), self._readable)
            if _says_unreachable(ancillary):
                reply = echo.own_request(self._family, packet)
                if reply is not None:
                    self._settle(reply._replace(ident=self._ident), None, None)

    def _settle(self, reply: echo.Reply, source: str | None, received_ns: int | None) -> None:
        # The kernel puts its own identifier into datagram sockets' requests and demultiplexes.
        if self._raw and reply.ident != self._ident:
            return
        if reply.token is not None and reply.token != self._token:
            return
        waiting = self._waiting.get(reply.sequence)
        if waiting is None:
            return
        if not reply.unreachable and (
            reply.token is None or source is None or not _same(source, waiting.target)
        ):
            return
        del self._waiting[reply.sequence]
        waiting.timer.cancel()
        if reply.unreachable:
            sample = Sample(waiting.path, Kind.ICMP, waiting.sent_at, None, Outcome.UNREACHABLE)
        else:
            rtt_s = _rtt_s(waiting, self._clock() - waiting.sent_at, received_ns)
            sample = Sample(waiting.path, Kind.ICMP, waiting.sent_at, rtt_s)
        waiting.report(sample)


class IcmpProbe:
    """The ICMP probe of all lines. Create and `close` it in the loop that uses it."""

    kind = Kind.ICMP
    cost_bytes = 2 * (40 + 8 + echo.TOKEN_BYTES)
    """Of IPv6; IPv4 takes 40 bytes less."""

    def __init__(
        self,
        dialer: Dialer,
        *,
        sent: Announce | None = None,
        clock: Callable[[], float] = time.monotonic,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        self._sent = sent
        self._dialer = dialer
        self._clock = clock
        self._warn = warn
        self._channels: dict[tuple[Line, int], _Channel] = {}
        self._addresses: dict[str, tuple[str, float]] = {}
        self._resolving: dict[str, asyncio.Task[None]] = {}
        self.permitted: bool | None = None
        """Whether this process may send echo requests; ``None``: not tried yet."""

    def start(self, path: Path, *, timeout_s: float, report: Report) -> None:
        """Send one echo request to ``path``'s endpoint; its sample goes to ``report``.

        Costs no task once the endpoint's address is known. Nothing is reported where ICMP is not
        permitted.
        """
        if self.permitted is False:
            return
        endpoint = path.endpoint
        if endpoint.address is not None:
            self._send(path, endpoint.address, timeout_s, report)
            return
        known = self._addresses.get(path.name)
        if known is not None:
            self._send(path, known[0], timeout_s, report)
        if known is None or self._clock() >= known[1]:
            self._resolve(path, timeout_s, report if known is None else None)

    async def run(self, path: Path, *, timeout_s: float) -> Sequence[Sample]:
        """One echo request; no samples where ICMP is not permitted."""
        if self.permitted is False:
            return ()
        target = path.endpoint.address
        sent_at = self._clock()
        if target is None:
            try:
                target = (await self._dialer.resolve(path.line, path.endpoint.host))[0]
            except DialError as error:
                return (_failed(path, sent_at, error),)
        future: asyncio.Future[Sample] = asyncio.get_running_loop().create_future()

        def report(sample: Sample) -> None:
            if not future.done():
                future.set_result(sample)

        self._send(path, target, timeout_s, report)
        done, _ = await asyncio.wait({future}, timeout=timeout_s + 0.1)
        return (future.result(),) if done else ()

    def retain(self, paths: Iterable[Path]) -> None:
        """Close what no path of ``paths`` needs (after a reload)."""
        keep = {path.name: path for path in paths}
        lines = {path.line for path in keep.values()}
        for key in [key for key in self._channels if key[0] not in lines]:
            self._channels.pop(key).close()
        for name in [name for name in self._addresses if name not in keep]:
            del self._addresses[name]

    async def close(self) -> None:
        """Close all sockets and end what is being resolved."""
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()
        tasks = list(self._resolving.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- addresses --------------------------------------------------------------------------

    def _resolve(self, path: Path, timeout_s: float, report: Report | None) -> None:
        """Learn the endpoint's address; with ``report`` also send the probe that waits for it."""
        if path.name not in self._resolving:
            task = asyncio.get_running_loop().create_task(self._learn(path, timeout_s, report))
            self._resolving[path.name] = task
            task.add_done_callback(lambda _: self._resolving.pop(path.name, None))

    async def _learn(self, path: Path, timeout_s: float, report: Report | None) -> None:
        asked_at = self._clock()
        try:
            addresses = await self._dialer.resolve(path.line, path.endpoint.host)
        except DialError as error:
            if report is not None and error.outcome is not Outcome.LOCAL:
                report(_failed(path, asked_at, error))
            return
        self._addresses[path.name] = (addresses[0], self._clock() + ADDRESS_S)
        if report is not None:
            self._send(path, addresses[0], timeout_s, report)

    # --- sockets ----------------------------------------------------------------------------

    def _send(self, path: Path, target: str, timeout_s: float, report: Report) -> None:
        family = socket.AF_INET6 if ":" in target else socket.AF_INET
        key = (path.line, int(family))
        channel = self._channels.get(key)
        if channel is None:
            try:
                channel = self._open(path.line, family)
            except DialError as error:
                if error.outcome is not Outcome.LOCAL:
                    report(_failed(path, self._clock(), error))
                return
            if channel is None:
                return
            self._channels[key] = channel
        if not channel.send(path.name, target, timeout_s, report):
            del self._channels[key]
            channel.close()

    def _open(self, line: Line, family: int) -> _Channel | None:
        """A bound socket, raw if possible. Raises `DialError` when the line cannot be bound."""
        kind = ICMPv4Socket if family == socket.AF_INET else ICMPv6Socket
        for raw in (True, False):
            try:
                owner = kind(privileged=raw)
            except icmplib.SocketPermissionError:
                continue
            except icmplib.ICMPLibError:
                return None  # the family is off on this host: its addresses do not work anyway
            try:
                self._dialer.bind(owner.sock, line)
            except BaseException:
                owner.close()
                raise
            self.permitted = True
            return _Channel(owner.sock, raw=raw, clock=self._clock, sent=self._sent, owner=owner)
        if self.permitted is not False:
            self.permitted = False
            self._warn(NOT_PERMITTED)
        return None


def _prefer_answers(sock: socket.socket, *, raw: bool) -> None:
    """Ask for receive times and errors; keep the host's other ICMP traffic off a raw socket."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
    with contextlib.suppress(OSError):  # beyond net.core.rmem_max, with CAP_NET_ADMIN
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    if sock.family == socket.AF_INET:
        if raw:
            wanted = 1 << 0 | 1 << 3  # echo reply, destination unreachable; a set bit blocks
            sock.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", ~wanted & 0xFFFFFFFF))
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        return
    if raw:
        blocked = bytearray(b"\xff" * 32)  # RFC 3542, 3.2
        for kind in (1, 129):
            word = (kind >> 5) * 4
            (value,) = struct.unpack_from("=I", blocked, word)
            struct.pack_into("=I", blocked, word, value & ~(1 << (kind & 31)))
        sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, bytes(blocked))
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)


def _kernel_time_ns(ancillary: Iterable[tuple[int, int, bytes]]) -> int | None:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == _SCM_TIMESTAMPNS and len(data) >= _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return None


def _rtt_s(waiting: _Waiting, elapsed_s: float, received_ns: int | None) -> float:
    """The kernel's receive time leaves out how late the loop came to read; a clock step shows
    as a value outside of what the monotonic clock allows, and is ignored."""
    if received_ns is None:
        return elapsed_s
    by_kernel_s = (received_ns - waiting.sent_wall_ns) / 1e9
    return by_kernel_s if 0.0 < by_kernel_s <= elapsed_s else elapsed_s


def _says_unreachable(ancillary: Iterable[tuple[int, int, bytes]]) -> bool:
    for _, _, data in ancillary:
        if len(data) >= _EXTENDED_ERROR.size:
            _, origin, kind, _, _, _ = _EXTENDED_ERROR.unpack_from(data)
            if (origin, kind) in (
                (_ORIGIN_ICMP, _TYPE_V4_UNREACHABLE),
                (_ORIGIN_ICMP6, _TYPE_V6_UNREACHABLE),
            ):
                return True
    return False


def _same(source: str, target: str) -> bool:
    return source.partition("%")[0] == target.partition("%")[0] or (
        ":" in target
        and socket.inet_pton(socket.AF_INET6, source.partition("%")[0])
        == socket.inet_pton(socket.AF_INET6, target.partition("%")[0])
    )


def _failed(path: Path, at: float, error: DialError) -> Sample:
    """Nothing was sent."""
    return Sample(path.name, Kind.ICMP, at, None, error.outcome, detail=error.detail)
