"""rtnetlink messages about links, addresses and default routes: bytes in, facts out. Pure.

An interface is known by its index.

Layouts: ``linux/netlink.h``, ``linux/rtnetlink.h``, ``linux/if_link.h``, ``linux/if_addr.h``
(rtnetlink(7)). Unknown messages and attributes are skipped, garbage ends the datagram.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
"""RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE."""
NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE = 16, 17, 20, 21, 24, 25
GETLINK, GETADDR, GETROUTE = 18, 22, 26
_DONE: Final = 3
_REQUEST, _REQUEST_DUMP = 0x1, 0x1 | 0x300
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_IFLA_IFNAME, _IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 3, 1, 2, 8
_RTA_DST, _RTA_OIF, _RTA_MARK = 1, 4, 16
_OUTSIDE: Final = "192.0.2.1"
"""TEST-NET-1 (RFC 5737): asked for a route, never sent to."""
_TENTATIVE: Final = 0x40
"""IFA_F_TENTATIVE: not usable before duplicate address detection ends (RFC 4862)."""
_BYTES_OF: Final = {socket.AF_INET: 4, socket.AF_INET6: 16}

_header = Struct("=IHHII")
_link = Struct("=BxHiII")
_address = Struct("=BBBBI")
_route = Struct("=BBBBBBBBI")
_attribute = Struct("=HH")
_u32 = Struct("=I")


class Link(NamedTuple):
    """An interface: ``usable`` if it is up and has a carrier."""

    interface: int
    name: str
    usable: bool
    gone: bool


class Address(NamedTuple):
    """An address of an interface."""

    interface: int
    address: str
    gone: bool


class DefaultRoute(NamedTuple):
    """A default route came or left; ``interface`` is 0 if it has several."""

    interface: int
    gone: bool


Fact = Link | Address | DefaultRoute


def request(kind: int) -> bytes:
    """Ask for all of ``GETLINK`` or ``GETADDR``, of every family."""
    body = bytes(16)
    return _header.pack(_header.size + len(body), kind, _REQUEST_DUMP, 1, 0) + body


def route_request(mark: int) -> bytes:
    """Ask by which interface packets with this fwmark (0: none) leave for the outside."""
    body = _route.pack(socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, 0)
    body += _attribute.pack(8, _RTA_DST) + socket.inet_aton(_OUTSIDE)
    body += _attribute.pack(8, _RTA_MARK) + _u32.pack(mark)
    return _header.pack(_header.size + len(body), GETROUTE, _REQUEST, 1, 0) + body


def way_out(datagram: bytes) -> int | None:
    """The interface that answers a `route_request`; ``None``: there is no route."""
    for kind, body in messages(datagram):
        if kind == NEWROUTE and len(body) >= _route.size:
            out = _attributes(body, _route.size).get(_RTA_OIF)
            return None if out is None else int(_u32.unpack(out)[0])
    return None


def parse(datagram: bytes) -> Iterator[Fact]:
    """The facts of one datagram."""
    for kind, body in messages(datagram):
        fact = _fact(kind, body)
        if fact is not None:
            yield fact


def messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each message."""
    at = 0
    while at + _header.size <= len(datagram):
        size, kind, _, _, _ = _header.unpack_from(datagram, at)
        if size < _header.size or at + size > len(datagram):
            return
        yield kind, datagram[at + _header.size : at + size]
        at += (size + 3) & ~3


def ends(datagram: bytes) -> bool:
    """Whether a dump ends with this datagram."""
    return any(kind == _DONE for kind, _ in messages(datagram))


def _fact(kind: int, body: bytes) -> Fact | None:
    if kind in (NEWLINK, DELLINK) and len(body) >= _link.size:
        return _link_fact(body, gone=kind == DELLINK)
    if kind in (NEWADDR, DELADDR) and len(body) >= _address.size:
        return _address_fact(body, gone=kind == DELADDR)
    if kind in (NEWROUTE, DELROUTE) and len(body) >= _route.size:
        return _route_fact(body, gone=kind == DELROUTE)
    return None


def _link_fact(body: bytes, *, gone: bool) -> Link | None:
    family, _, index, flags, _ = _link.unpack_from(body)
    name = _attributes(body, _link.size).get(_IFLA_IFNAME)
    if name is None or family != socket.AF_UNSPEC:
        return None  # AF_BRIDGE: a port's affair
    usable = not gone and flags & _IFF_UP and flags & _IFF_RUNNING
    return Link(index, name.rstrip(b"\0").decode("utf-8", "replace"), bool(usable), gone)


def _address_fact(body: bytes, *, gone: bool) -> Address | None:
    family, _, flags, _, index = _address.unpack_from(body)
    attributes = _attributes(body, _address.size)
    raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
    if raw is None or len(raw) != _BYTES_OF.get(socket.AddressFamily(family), -1):
        return None
    more = attributes.get(_IFA_FLAGS)
    if more is not None and len(more) == 4:
        (flags,) = _u32.unpack(more)
    if flags & _TENTATIVE and not gone:
        return None
    return Address(index, socket.inet_ntop(family, raw), gone)


def _route_fact(body: bytes, *, gone: bool) -> DefaultRoute | None:
    destination_bits = body[1]
    if destination_bits:
        return None
    out = _attributes(body, _route.size).get(_RTA_OIF)
    return DefaultRoute(_u32.unpack(out)[0] if out is not None and len(out) == 4 else 0, gone)


def _attributes(body: bytes, at: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while at + _attribute.size <= len(body):
        size, kind = _attribute.unpack_from(body, at)
        if size < _attribute.size or at + size > len(body):
            break
        found[kind & 0x3FFF] = body[at + _attribute.size : at + size]
        at += (size + 3) & ~3
    return found
