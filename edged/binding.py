"""What it means that a socket belongs to a line, and what an error of such a socket says.

A line binds by source address, interface (SO_BINDTODEVICE) or fwmark (SO_MARK), or not at all.
Each failure becomes a `DialError` whose outcome says whom to blame and whose text says what to do.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket

from policies.model import Line, Outcome
from probes.base import DialError

SO_BINDTODEVICE = 25
SO_MARK = 36
IP_BIND_ADDRESS_NO_PORT = 24

_LOCAL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
UNREACHABLE = frozenset(
    {
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.EHOSTDOWN,
        errno.ENODEV,
        errno.ENXIO,
        errno.EPERM,
        errno.EACCES,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
        errno.EINVAL,
    }
)
"""No way there from where the socket is bound."""
_RESET = frozenset(
    {errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ESHUTDOWN, errno.ENOTCONN}
)


def family_of(address: str) -> socket.AddressFamily:
    """The address family of a literal IP address. Raises `ValueError` for anything else."""
    version = ipaddress.ip_address(address).version
    return socket.AF_INET if version == 4 else socket.AF_INET6


def families(line: Line) -> tuple[socket.AddressFamily, ...]:
    """The families that ``line`` can carry: its source address's, else both, IPv6 first."""
    if line.source is not None:
        return (family_of(line.source),)
    return (socket.AF_INET6, socket.AF_INET)


def is_bound(line: Line) -> bool:
    """Whether ``line`` differs from the host's default way out."""
    return line.source is not None or line.interface is not None or line.mark is not None


def via(line: Line) -> str:
    """How ``line`` sends, for people: ``from 10.71.1.2``."""
    if line.source is not None:
        return f"from {line.source}"
    if line.interface is not None:
        return f"out of {line.interface}"
    return "by the system's route" if line.mark is None else f"with fwmark {line.mark}"


def sockaddr(address: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """What ``connect`` takes for a literal address; a zone (``fe80::1%eth0``) becomes its index.

    Raises `OSError` when the zone names no interface.
    """
    bare, _, zone = address.partition("%")
    if ":" not in bare:
        return (bare, port)
    if not zone:
        return (bare, port, 0, 0)
    return (bare, port, 0, int(zone) if zone.isdigit() else socket.if_nametoindex(zone))


def bind(sock: socket.socket, line: Line) -> None:
    """Bind ``sock`` to ``line``. Raises `DialError` (UNREACHABLE) that says what is missing.

    A port is not taken until ``connect``, so that a source address is not limited to 28,000
    connections to all destinations together (IP_BIND_ADDRESS_NO_PORT).
    """
    try:
        if line.source is not None:
            with contextlib.suppress(OSError):  # before Linux 4.2; a mere optimisation
                sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind(sockaddr(line.source, 0))
        elif line.interface is not None:
            sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, line.interface.encode() + b"\0")
        elif line.mark is not None:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, line.mark)
    except OSError as error:
        raise _bind_error(line, error) from error


def _bind_error(line: Line, error: OSError) -> DialError:
    code = error.errno
    if code in _LOCAL:
        return _exhausted(error)
    if line.source is not None:
        if code == errno.EADDRNOTAVAIL:
            problem = f"source address {line.source} is not on this host: see `ip addr`"
        else:
            problem = f"cannot bind to source address {line.source}: {_text(error)}"
    elif line.interface is not None:
        if code == errno.ENODEV:
            problem = f"interface {line.interface} does not exist on this host: see `ip link`"
        elif code == errno.EPERM:
            problem = (
                f"may not bind to interface {line.interface}: "
                "run with CAP_NET_RAW (systemd: AmbientCapabilities=CAP_NET_RAW)"
            )
        else:
            problem = f"cannot bind to interface {line.interface}: {_text(error)}"
    elif code == errno.EPERM:
        problem = (
            f"may not set fwmark {line.mark}: "
            "run with CAP_NET_ADMIN (systemd: AmbientCapabilities=CAP_NET_ADMIN)"
        )
    else:
        problem = f"cannot set fwmark {line.mark}: {_text(error)}"
    return DialError(Outcome.UNREACHABLE, f"line {line.name}: {problem}")


def dial_error(line: Line, error: OSError, peer: str) -> DialError:
    """Say what an error of a socket on ``line`` to ``peer`` (for people) means.

    Works for errors of ``connect`` and of an established connection alike.
    """
    code = error.errno
    if isinstance(error, TimeoutError) or code == errno.ETIMEDOUT:
        return DialError(Outcome.TIMEOUT, f"line {line.name}: no answer from {peer}")
    if code == errno.ECONNREFUSED:
        return DialError(Outcome.REFUSED, f"line {line.name}: {peer} refused the connection")
    if code in _RESET:
        return DialError(Outcome.RESET, f"line {line.name}: {peer} reset the connection")
    if code in _LOCAL:
        return _exhausted(error)
    if code == errno.EADDRNOTAVAIL and line.source is not None:
        # The address itself was there at bind time: what is missing is a free port.
        return DialError(
            Outcome.LOCAL,
            f"line {line.name}: no free port on {line.source} towards {peer}: "
            "see `sysctl net.ipv4.ip_local_port_range`",
        )
    if code in UNREACHABLE:
        return DialError(Outcome.UNREACHABLE, _unreachable(line, error, peer))
    return DialError(Outcome.RESET, f"line {line.name}: {peer}: {_text(error)}")


def _unreachable(line: Line, error: OSError, peer: str) -> str:
    address = peer.rpartition(":")[0].strip("[]") or peer
    if error.errno in (errno.EPERM, errno.EACCES):
        hint = "a local firewall rule forbids it: see `nft list ruleset`"
    elif line.source is not None:
        hint = f"no way from {line.source}: see `ip route get {address} from {line.source}`"
    elif line.interface is not None:
        hint = (
            f"no way out of {line.interface}: see `ip -br link show {line.interface}` "
            f"and `ip route get {address} oif {line.interface}`"
        )
    elif line.mark is not None:
        hint = f"no way for fwmark {line.mark}: see `ip route get {address} mark {line.mark}`"
    else:
        hint = f"no way there: see `ip route get {address}`"
    return f"line {line.name}: cannot reach {peer} ({_text(error)}): {hint}"


def _exhausted(error: OSError) -> DialError:
    hint = (
        "raise LimitNOFILE or `ulimit -n`"
        if error.errno in (errno.EMFILE, errno.ENFILE)
        else "see `dmesg` and the memory limits of the unit"
    )
    return DialError(Outcome.LOCAL, f"this host ran out of resources ({_text(error)}): {hint}")


def _text(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
