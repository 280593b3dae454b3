"""The network's one seam: connected sockets that belong to a line.

Binds to the line, resolves over it, races address families and addresses (RFC 8305), keeps the
deadline, and turns every failure into a `DialError` that says whom to blame and what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

from edged.binding import bind, dial_error, families, family_of, sockaddr
from edged.line_sockets import LineSockets
from edged.race import RaceLost, race
from edged.resolver import Resolver
from policies.model import Line, Outcome
from probes import kernel
from probes.base import Dialed, DialError

ATTEMPT_DELAY_S = 0.25
"""Between attempts on different addresses while the RTT is unknown (RFC 8305, 5)."""
MIN_ATTEMPT_DELAY_S = 0.01
MAX_ATTEMPT_DELAY_S = 2.0
MIN_SPARE_DELAY_S = 0.1
"""Before a second SYN goes to the only address: a peer's busy kernel is no lost packet."""
USER_TIMEOUT_S = 30.0
"""TCP_USER_TIMEOUT. Not shorter: it also ends a connection whose peer keeps a zero window."""
KEEPALIVE_IDLE_S = 15
KEEPALIVE_INTERVAL_S = 5
RTO_MIN_US = 50_000
"""TCP_RTO_MIN_US (Linux 6.15), instead of 200 ms: a request that was lost alone on its way goes
again after two round trips and so much. Receivers delay their ACK less (Linux: 40 ms)."""
UDP_BUFFER_BYTES = 1 << 20
MAX_FAMILIES_KEPT = 1024
MOST_UDP_CHOICES = 4
"""Handshakes are dearer than SYNs."""

_TCP_USER_TIMEOUT = 18
_TCP_RTO_MIN_US = 45
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_PMTUDISC_PROBE = 3

_BLAME_ORDER = (
    Outcome.FORBIDDEN,
    Outcome.LOCAL,
    Outcome.PROTOCOL,
    Outcome.REFUSED,
    Outcome.TLS,
    Outcome.RESET,
    Outcome.TIMEOUT,
    Outcome.UNREACHABLE,
    Outcome.NO_NAME,
    Outcome.DNS,
)
"""Of several addresses' failures the first of these speaks: the one that got furthest."""

_FamilyKey = tuple[str, str, socket.SocketKind]
"""Line, host and transport."""
Guard = Callable[[str, str], str | None]
"""``guard(host, address)``: why this address must not be dialled for that host, or ``None``."""


class DialForbidden(DialError):
    """The guard refused every address. Speaks against the client, not the line or endpoint."""

    def __init__(self, detail: str) -> None:
        super().__init__(Outcome.FORBIDDEN, detail)


class LineDialer:
    """The `probes.base.Dialer` of the daemon. One object; needs no closing but `close`."""

    def __init__(
        self,
        resolver: Resolver | None = None,
        *,
        guard: Guard | None = None,
        rtt_s: Callable[[Line, str], float | None] | None = None,
        congestion: str = "bbr",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``rtt_s(line, host)`` is the measured round trip, for the delay between attempts."""
        self.resolver = resolver or Resolver(clock=clock, bind=self.bind)
        self._guard = guard
        self._rtt_s = rtt_s
        self._clock = clock
        self._congestion: bytes | None = congestion.encode() or None
        self._sockets: dict[str, LineSockets] = {}
        self._family: OrderedDict[_FamilyKey, socket.AddressFamily] = OrderedDict()

    async def close(self) -> None:
        """Give up what is being resolved."""
        await self.resolver.close()

    def bind(self, sock: socket.socket, line: Line) -> None:
        """Bind ``sock`` to ``line``. Raises `DialError` (UNREACHABLE or LOCAL)."""
        bind(sock, line)
        self.sockets(line.name).track(sock)

    def sockets(self, line: str) -> LineSockets:
        """All that were bound to the line of this name."""
        sockets = self._sockets.get(line)
        if sockets is None:
            sockets = self._sockets[line] = LineSockets()
        return sockets

    async def resolve(self, line: Line, host: str, *, timeout_s: float = 5.0) -> Sequence[str]:
        """Addresses of ``host`` as seen from ``line``: the family that last worked first, the
        families in turn (RFC 8305, 4). Raises `DialError` (DNS)."""
        addresses = await self.resolver.resolve(line, host, timeout_s=timeout_s)
        return self._ordered(line, host, addresses)

    def cached(self, line: Line, host: str) -> Sequence[str]:
        """What `resolve` would say if it had to answer at once; empty: nothing is known."""
        return self._ordered(line, host, self.resolver.cached(line, host))

    async def connect_tcp(
        self, line: Line, host: str, port: int, *, address: str | None = None, timeout_s: float
    ) -> Dialed:
        """Connect over ``line``; ``address`` saves DNS, ``timeout_s`` covers DNS and connect.

        The socket is non-blocking, with TCP_NODELAY, keep-alives and TCP_USER_TIMEOUT.
        Raises `DialError`.
        """
        start = self._clock()
        addresses = await self._addresses(line, host, address, timeout_s)
        resolved = self._clock()
        deadline = start + timeout_s
        where = _text(host, port)
        try:
            async with asyncio.timeout(max(0.0, deadline - resolved)):
                sock, began, spare = await self._race(line, host, addresses, port)
        except TimeoutError:
            raise DialError(
                Outcome.TIMEOUT,
                f"line {line.name}: no answer from {where} ({', '.join(addresses)}) "
                f"within {timeout_s:g} s",
            ) from None
        except RaceLost as lost:
            raise most_telling(lost) from lost
        connected = self._clock()
        if len(addresses) > 1:
            self._remember(line, host, sock.family, socket.SOCK_STREAM)
        info = kernel.read(sock)
        syn_lost = spare + (info.total_retrans if info is not None else 0)
        try:
            peer = sock.getpeername()[:2]
        except OSError as error:  # reset since
            sock.close()
            raise dial_error(line, error, where) from error
        return Dialed(
            sock,
            peer,
            dns_s=resolved - start,
            connect_s=connected - began,
            rtt_s=info.rtt_s if info is not None and not syn_lost else None,
            syn_lost=syn_lost,
            wire=self.sockets(line.name),
        )

    def stagger_s(self, line: Line, host: str) -> float:
        """Between attempts on different addresses."""
        rtt_s = self._rtt_s(line, host) if self._rtt_s is not None else None
        if rtt_s is None:
            return ATTEMPT_DELAY_S
        # An answer on time needs one round trip; half of one more is for variation.
        return min(max(1.5 * rtt_s, MIN_ATTEMPT_DELAY_S), MAX_ATTEMPT_DELAY_S)

    async def connect_udp(
        self, line: Line, host: str, port: int, *, address: str | None = None, timeout_s: float
    ) -> Dialed:
        """A connected, non-blocking UDP socket to the first address that has a route.

        Fragmentation is off (RFC 9000, 14). Which address answers, only a handshake tells: see
        `udp_choices`. Raises `DialError`.
        """
        start = self._clock()
        addresses = await self._addresses(line, host, address, timeout_s)
        addresses = self._ordered(line, host, addresses, socket.SOCK_DGRAM)
        dns_s = self._clock() - start
        errors: list[DialError] = []
        for candidate in addresses:
            try:
                sock = self._open_udp(line, candidate, port)
            except DialError as error:
                errors.append(error)
            else:
                return Dialed(sock, sock.getpeername()[:2], dns_s=dns_s, connect_s=0.0)
        raise most_telling(RaceLost(errors))

    async def udp_choices(
        self, line: Line, host: str, *, address: str | None = None, timeout_s: float
    ) -> Sequence[str]:
        """Addresses for datagrams, the families in turn, to be tried ``stagger_s`` apart in this
        order. Raises `DialError`."""
        addresses = await self._addresses(line, host, address, timeout_s)
        return self._ordered(line, host, addresses, socket.SOCK_DGRAM)[:MOST_UDP_CHOICES]

    def udp_worked(self, line: Line, host: str, address: str) -> None:
        """Datagrams to ``address`` were answered: its family leads from now on."""
        self._remember(line, host, family_of(address), socket.SOCK_DGRAM)

    def open_udp(self, line: Line, host: str, address: str, port: int) -> socket.socket:
        """As `connect_udp` at once, to a literal ``address`` of ``host``. Raises `DialError`."""
        if self._guard is not None and (reason := self._guard(host, address)) is not None:
            raise DialForbidden(f"{host} is refused: {reason}")
        return self._open_udp(line, address, port)

    async def _race(
        self, line: Line, host: str, addresses: Sequence[str], port: int
    ) -> tuple[socket.socket, float, bool]:
        """The first to connect, when its SYN was sent, and whether an equal one was lost.

        A lost SYN is sent again only after a second (RFC 6298, 2.1). Where the round trip is known
        a second connection is tried long before.
        """
        attempts = [partial(self._connect, line, a, port) for a in addresses]
        if len(addresses) > 1:
            sock, began = await race(attempts, self.stagger_s(line, host), _dispose)
            return sock, began, False
        if self._rtt_s is None or self._rtt_s(line, host) is None:
            return *await attempts[0](), False
        delay_s = max(self.stagger_s(line, host), MIN_SPARE_DELAY_S)
        started = self._clock()
        sock, began = await race(attempts * 2, delay_s, _dispose, after_failure=False)
        return sock, began, began - started >= delay_s / 2

    # --- addresses --------------------------------------------------------------------------

    async def _addresses(
        self, line: Line, host: str, address: str | None, timeout_s: float
    ) -> Sequence[str]:
        """What may be dialled, in order; never empty. Raises `DialError`."""
        addresses = await self.resolve(line, address or host, timeout_s=timeout_s)
        if self._guard is None:
            return addresses
        allowed: list[str] = []
        reasons: list[str] = []
        for candidate in addresses:
            reason = self._guard(host, candidate)
            if reason is None:
                allowed.append(candidate)
            else:
                reasons.append(reason)
        if not allowed:
            raise DialForbidden(f"{host} is refused: {'; '.join(reasons)}")
        return allowed

    def _ordered(
        self,
        line: Line,
        host: str,
        addresses: Sequence[str],
        kind: socket.SocketKind = socket.SOCK_STREAM,
    ) -> Sequence[str]:
        """By the family that last worked for this transport, else for TCP."""
        if len(addresses) < 2:
            return addresses
        known = self._family
        first = known.get((line.name, host, kind)) or known.get(
            (line.name, host, socket.SOCK_STREAM), families(line)[0]
        )
        preferred = [a for a in addresses if family_of(a) == first]
        others = [a for a in addresses if family_of(a) != first]
        ordered: list[str] = []
        for i in range(max(len(preferred), len(others))):
            ordered += preferred[i : i + 1] + others[i : i + 1]
        return ordered

    def _remember(self, line: Line, host: str, family: int, kind: socket.SocketKind) -> None:
        key = (line.name, host, kind)
        self._family[key] = socket.AddressFamily(family)
        self._family.move_to_end(key)
        if len(self._family) > MAX_FAMILIES_KEPT:
            self._family.popitem(last=False)

    # --- sockets ----------------------------------------------------------------------------

    async def _connect(self, line: Line, address: str, port: int) -> tuple[socket.socket, float]:
        """One attempt: the socket, and when its SYN was sent."""
        sock = self._open(line, address, socket.SOCK_STREAM)
        try:
            self._tune_tcp(sock)
            await self.sockets(line.name).passage()
            began = self._clock()
            await asyncio.get_running_loop().sock_connect(sock, sockaddr(address, port))
        except OSError as error:
            sock.close()
            raise dial_error(line, error, _text(address, port)) from error
        except BaseException:
            sock.close()
            raise
        return sock, began

    def _open(self, line: Line, address: str, kind: socket.SocketKind) -> socket.socket:
        try:
            sock = socket.socket(family_of(address), kind)
        except OSError as error:
            raise dial_error(line, error, address) from error
        try:
            sock.setblocking(False)
            self.bind(sock, line)
        except BaseException:
            sock.close()
            raise
        return sock

    def _open_udp(self, line: Line, address: str, port: int) -> socket.socket:
        sock = self._open(line, address, socket.SOCK_DGRAM)
        try:
            _tune_udp(sock)
            sock.connect(sockaddr(address, port))
        except OSError as error:
            sock.close()
            raise dial_error(line, error, _text(address, port)) from error
        return sock

    def _tune_tcp(self, sock: socket.socket) -> None:
        """Options that help; a kernel without one of them still connects."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
            (socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
            (_TCP_USER_TIMEOUT, int(USER_TIMEOUT_S * 1000)),
            (_TCP_RTO_MIN_US, RTO_MIN_US),
        ):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        if self._congestion is not None:
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, self._congestion)
            except OSError:  # ENOENT: not in this kernel; EPERM: not allowed to us. Ask once.
                self._congestion = None


def _dispose(late: tuple[socket.socket, float]) -> None:
    late[0].close()


def _tune_udp(sock: socket.socket) -> None:
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, UDP_BUFFER_BYTES)
    with contextlib.suppress(OSError):
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)


def most_telling(lost: RaceLost) -> DialError:
    """What all failures of a race come to."""
    failures = [error for error in lost.errors if isinstance(error, DialError)]
    if len(failures) < len(lost.errors):
        raise lost  # a bug: attempts raise DialError only
    best = min(failures, key=lambda failure: _BLAME_ORDER.index(failure.outcome))
    details = dict.fromkeys(failure.detail for failure in failures)
    return DialError(best.outcome, "; ".join(details))


def _text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
