"""Changes of this host's network: links, addresses, default routes, and sleep.

The kernel tells by rtnetlink (no privilege is needed); a suspended host is known by the boot clock,
which runs on while the monotonic one stands still. Changes that come together are told once. Only
interfaces that carry a line count: containers come and go on many a host.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from edged import netlink
from edged.netlink import Address, DefaultRoute, Fact, Link
from policies.model import Line

_log = logging.getLogger("edged.netwatch")

SETTLE_S: Final = 0.05
"""Changes within this time are told together; a line's loss is told at once."""
SLEEP_POLL_S: Final = 1.0
SLEPT_S: Final = 0.5
"""The boot clock's lead grew by more: the host was suspended."""
_BUFFER_BYTES: Final = 1 << 18
_RECEIVE_BUFFER_BYTES: Final = 1 << 20


class NetChange(NamedTuple):
    """What happened, and to which lines."""

    lines: tuple[str, ...]
    what: str
    """For people."""
    slept: bool = False
    """The host was suspended meanwhile."""


class Interfaces:
    """What the kernel told so far, and what it means for lines. Pure."""

    def __init__(self) -> None:
        self._links: dict[int, Link] = {}
        self._addresses: dict[int, set[str]] = {}
        self._bared: set[int] = set()
        """Interfaces that lost their last address."""
        self.ways_out: dict[int, int | None] = {}
        """By fwmark (0: none): the interface that leads out of this host."""

    def take(self, fact: Fact) -> bool:
        """Take a fact; whether it changed anything."""
        if isinstance(fact, Link):
            before = self._links.pop(fact.interface, None)
            if fact.gone:
                self._addresses.pop(fact.interface, None)
                self._bared.discard(fact.interface)
                return before is not None
            self._links[fact.interface] = fact
            return before != fact
        if isinstance(fact, Address):
            return self._take_address(fact)
        return True

    def _take_address(self, fact: Address) -> bool:
        addresses = self._addresses.setdefault(fact.interface, set())
        changed = (fact.address in addresses) == fact.gone
        had = any(map(_reaches, addresses))
        (addresses.discard if fact.gone else addresses.add)(fact.address)
        if any(map(_reaches, addresses)):
            self._bared.discard(fact.interface)
        elif had:
            self._bared.add(fact.interface)
        return changed

    def concerns(self, fact: Fact, line: Line) -> bool:
        """Whether a change of ``fact`` may change what ``line`` does."""
        if line.interface is not None:
            return self._name(fact.interface) == line.interface or _named(fact) == line.interface
        if line.source is not None:
            holder = self._holder(line.source)
            if isinstance(fact, Address):
                return fact.address == str(ipaddress.ip_address(line.source))
            return isinstance(fact, DefaultRoute) or fact.interface == holder
        out = self.ways_out.get(line.mark or 0)
        return isinstance(fact, DefaultRoute) or fact.interface == out

    def fault(self, line: Line) -> str | None:
        """Why ``line`` cannot send; ``None``: nothing is known against it."""
        if line.interface is not None:
            index = next(
                (i for i, link in self._links.items() if link.name == line.interface), None
            )
            if index is None:
                return f"interface {line.interface} does not exist"
            if not self._links[index].usable:
                return f"interface {line.interface} is down"
            if index in self._bared:
                return f"interface {line.interface} has lost its address"
        elif line.source is not None:
            holder = self._holder(line.source)
            if holder is None:
                return f"address {line.source} is on no interface"
            link = self._links.get(holder)
            if link is not None and not link.usable:
                return f"interface {link.name} with address {line.source} is down"
        return None

    def foreign(self, line: Line) -> bool:
        """Whether the line's source address is on no interface."""
        return line.source is not None and self._holder(line.source) is None

    def _holder(self, source: str) -> int | None:
        """The interface that has an address."""
        wanted = ipaddress.ip_address(source)
        if wanted.is_loopback and wanted.version == 4:
            wanted = ipaddress.IPv4Address("127.0.0.1")  # all of 127.0.0.0/8 goes with it
        address = str(wanted)
        return next((i for i, known in self._addresses.items() if address in known), None)

    def _name(self, index: int) -> str | None:
        link = self._links.get(index)
        return None if link is None else link.name


def _reaches(address: str) -> bool:
    """Whether it is good beyond the next router."""
    return not address.startswith("fe80:")


def _bindable(source: str) -> bool:
    """Whether an address that no interface has is this host's nevertheless (a local route)."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((source, 0))
        except OSError:
            return False
    return True


def _named(fact: Fact) -> str | None:
    return fact.name if isinstance(fact, Link) else None


class NetWatch:
    """See the module. `start` it in a loop; `close` it there.

    ``lost(line, why)`` is called in the turn in which the kernel told that a line cannot send, and
    ``changed`` when lines are to be looked at anew, a regained one included.
    """

    def __init__(
        self, lost: Callable[[str, str], None], changed: Callable[[NetChange], None]
    ) -> None:
        self._lost = lost
        self._changed = changed
        self._lines: tuple[Line, ...] = ()
        self._faults: dict[str, str] = {}
        self._interfaces = Interfaces()
        self._sock: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: dict[str, None] = {}
        self._why: dict[str, None] = {}
        self._slept = False
        self._settle: asyncio.TimerHandle | None = None
        self._sleep: asyncio.TimerHandle | None = None
        self._lead_s = _boot_lead_s()

    def start(self, lines: Iterable[Line]) -> None:
        """Watch from now on. Without rtnetlink (never on Linux) only sleep is noticed."""
        self._loop = asyncio.get_running_loop()
        self._lead_s = _boot_lead_s()
        self._sleep = self._loop.call_later(SLEEP_POLL_S, self._look_at_clocks)
        try:
            self._read_all()
        except OSError as error:
            _log.warning("changes of addresses and routes go unnoticed: %s", error)
        self.reload(lines)

    def reload(self, lines: Iterable[Line]) -> None:
        """Watch these lines; what is wrong with one now is told now."""
        self._lines = tuple(lines)
        names = {line.name for line in self._lines}
        self._faults = {name: why for name, why in self._faults.items() if name in names}
        if self._sock is not None:
            self._find_ways_out()
            self._judge()

    def close(self) -> None:
        """Watch no more."""
        for timer in (self._settle, self._sleep):
            if timer is not None:
                timer.cancel()
        if self._sock is not None and self._loop is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None

    # -- rtnetlink -------------------------------------------------------------------------------

    def _read_all(self) -> None:
        """Subscribe first, then ask for what is: nothing falls between."""
        assert self._loop is not None
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            sock.bind((0, netlink.GROUPS))
            self._interfaces = _dump()
            self._find_ways_out()
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        self._sock = sock
        self._loop.add_reader(sock.fileno(), self._readable)

    def _readable(self) -> None:
        touched: dict[str, None] = {}
        while self._sock is not None:
            try:
                datagram = self._sock.recv(_BUFFER_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                # ENOBUFS: more happened than the buffer holds. Begin anew.
                self._interfaces = _dump()
                self._find_ways_out()
                touched = dict.fromkeys(line.name for line in self._lines)
                self._why["more changes than could be followed"] = None
                break
            for fact in netlink.parse(datagram):
                self._take(fact, touched)
        if touched:
            self._judge()
            self._tell_soon(touched)

    def _take(self, fact: Fact, touched: dict[str, None]) -> None:
        before = {line.name for line in self._lines if self._interfaces.concerns(fact, line)}
        if not self._interfaces.take(fact):
            return
        if isinstance(fact, DefaultRoute):
            self._find_ways_out()
        for line in self._lines:
            if line.name in before or self._interfaces.concerns(fact, line):
                touched[line.name] = None
                self._why[_describe(fact)] = None

    def _find_ways_out(self) -> None:
        marks = {line.mark or 0 for line in self._lines if not (line.interface or line.source)}
        self._interfaces.ways_out = _ways_out(marks)

    def _judge(self) -> None:
        """Tell the lines that cannot send any more."""
        for line in self._lines:
            fault = self._interfaces.fault(line)
            if (
                fault is not None
                and self._interfaces.foreign(line)
                and _bindable(line.source or "")
            ):
                fault = None
            if fault is None:
                if self._faults.pop(line.name, None) is not None:
                    self._tell_soon({line.name: None})
            elif line.name not in self._faults:
                self._faults[line.name] = fault
                self._lost(line.name, fault)

    # -- telling ---------------------------------------------------------------------------------

    def _tell_soon(self, lines: Iterable[str]) -> None:
        self._pending.update(dict.fromkeys(lines))
        if self._settle is None and self._loop is not None:
            self._settle = self._loop.call_later(SETTLE_S, self._tell)

    def _tell(self) -> None:
        self._settle = None
        lines = tuple(name for name in self._pending if name not in self._faults)
        what = ", ".join(self._why)
        slept, self._slept = self._slept, False
        self._pending, self._why = {}, {}
        if lines:
            self._changed(NetChange(lines, what, slept))

    # -- sleep -----------------------------------------------------------------------------------

    def _look_at_clocks(self) -> None:
        assert self._loop is not None
        self._sleep = self._loop.call_later(SLEEP_POLL_S, self._look_at_clocks)
        lead_s = _boot_lead_s()
        slept_s, self._lead_s = lead_s - self._lead_s, lead_s
        if slept_s > SLEPT_S:
            self._slept = True
            self._why[f"this host slept for {slept_s:.0f} s"] = None
            self._tell_soon(line.name for line in self._lines)


def _boot_lead_s() -> float:
    """How long the host was suspended since it booted, as far as the clocks tell."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()


def _dump() -> Interfaces:
    """What is now. It takes milliseconds, so that it may block."""
    interfaces = Interfaces()
    with _asking() as sock:
        for kind in (netlink.GETLINK, netlink.GETADDR):
            sock.send(netlink.request(kind))
            done = False
            while not done:
                datagram = sock.recv(_BUFFER_BYTES)
                for fact in netlink.parse(datagram):
                    interfaces.take(fact)
                done = netlink.ends(datagram)
    return interfaces


def _ways_out(marks: Iterable[int]) -> dict[int, int | None]:
    found: dict[int, int | None] = {}
    with _asking() as sock:
        for mark in marks:
            sock.send(netlink.route_request(mark))
            found[mark] = netlink.way_out(sock.recv(_BUFFER_BYTES))
    return found


def _asking() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    sock.settimeout(1.0)
    sock.bind((0, 0))
    return sock


def _describe(fact: Fact) -> str:
    if isinstance(fact, Link):
        state = "gone" if fact.gone else "up" if fact.usable else "down"
        return f"interface {fact.name} {state}"
    if isinstance(fact, Address):
        return f"address {fact.address} {'gone' if fact.gone else 'new'}"
    return f"a default route {'gone' if fact.gone else 'new'}"
