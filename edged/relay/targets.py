"""Where a client of the relay may go: names, addresses and ports, before and after DNS.

A relay is never an open proxy. What a client asks for must be on its list; what a name leads to
must be a public address, or in a network that the operator has named. The second check runs on the
address that is about to be dialled (`edged.dialer`), so that no answer of DNS gets around it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from edged.config_file import host_pattern
from edged.guard import Address, forbidden, unwrapped
from edged.stages import literal_address

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_PORT = 443
_ENTRY = re.compile(r"(\[[^\]]*\](?:/\d+)?|[^\[\]:]*)(?::(\d{1,5}|\*))?")


@dataclass(frozen=True, slots=True)
class Allowed:
    """One entry: a host pattern or a network, and a port (``None``: any)."""

    host: str | None
    network: Network | None
    port: int | None


def parse(entry: str) -> Allowed:
    """An entry of a list: ``host``, ``*.host``, ``*``, an address or a network, and ``:port`` or
    ``:*``. Without a port it is 443. Raises ValueError with a text for people.
    """
    match = _ENTRY.fullmatch(entry)
    if match is None:
        try:
            ipaddress.ip_network(entry)
        except ValueError:
            raise ValueError("write host, *.host, address or network, and :port or :*") from None
        raise ValueError("an IPv6 address or network stands in brackets, as [2001:db8::]/32:443")
    host, port = match[1], _port(match[2])
    if "/" in host or host.startswith("["):
        return Allowed(None, _network(host.replace("[", "").replace("]", "")), port)
    if host == "*":
        return Allowed("*", None, port)
    address = literal_address(host)
    if address is not None:
        return Allowed(None, ipaddress.ip_network(address), port)
    return Allowed(host_pattern(host), None, port)


def _port(text: str | None) -> int | None:
    if text is None:
        return DEFAULT_PORT
    if text == "*":
        return None
    if not 0 < int(text) < 65536:
        raise ValueError("a port is 1 to 65535")
    return int(text)


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        if "host bits" in str(error):
            net = ipaddress.ip_network(text, strict=False)
            raise ValueError(f"has host bits set; the network is {net}") from None
        raise ValueError("not an address or network, as 10.0.0.0/8") from None


class AllowList:
    """What one client may ask for."""

    __slots__ = ("_entries", "_hosts", "_networks")

    def __init__(self, entries: Iterable[Allowed]) -> None:
        self._entries = tuple(entries)
        hosts: dict[str, set[int | None]] = {}
        for entry in self._entries:
            if entry.host is not None:
                hosts.setdefault(entry.host, set()).add(entry.port)
        self._hosts = hosts
        self._networks = tuple((e.network, e.port) for e in self._entries if e.network is not None)

    def permits(self, host: str, port: int) -> bool:
        """Whether the client may ask for ``host`` (lower-case, without brackets) and ``port``."""
        literal = literal_address(host)
        if literal is not None:
            ip = unwrapped(ipaddress.ip_address(literal))
            if self._named(ip, port):
                return True
            return _has(self._hosts.get("*"), port) and not_public(str(ip)) is None
        if _has(self._hosts.get(host), port) or _has(self._hosts.get("*"), port):
            return True
        dot = host.find(".")
        while dot >= 0:
            if _has(self._hosts.get("*" + host[dot:]), port):
                return True
            dot = host.find(".", dot + 1)
        return False

    def names(self, address: Address) -> bool:
        """Whether an entry spells this address, or a network that it is in."""
        return any(_contains(network, address) for network, _ in self._networks)

    def _named(self, address: Address, port: int) -> bool:
        return any(
            _contains(network, address) and allowed in (None, port)
            for network, allowed in self._networks
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AllowList) and self._entries == other._entries

    def __hash__(self) -> int:
        return hash(self._entries)


def _has(ports: set[int | None] | None, port: int) -> bool:
    return ports is not None and (port in ports or None in ports)


def _contains(network: Network, address: Address) -> bool:
    return network.version == address.version and address in network


def not_public(address: str) -> str | None:
    """Why ``address`` (a literal) is nowhere on the internet, or ``None``."""
    reason = forbidden(address)
    if reason is None:
        ip = unwrapped(ipaddress.ip_address(address.partition("%")[0]))
        if not ip.is_global:
            reason = f"{ip} is no public address"
    return reason


class Guard:
    """Judges addresses that are about to be dialled, for whatever client.

    ``private``: networks that names may lead to. ``lists``: an address that stands in a client's
    list may be dialled when it is asked for as such, which that client's list has been asked about.
    """

    __slots__ = ("_lists", "_private")

    def __init__(self, private: Iterable[Network], lists: Iterable[AllowList]) -> None:
        self._private = tuple(private)
        self._lists = tuple(lists)

    def __call__(self, host: str, address: str) -> str | None:
        """Why ``address`` must not be dialled for ``host``, or ``None``."""
        reason = not_public(address)
        if reason is None:
            return None
        ip = unwrapped(ipaddress.ip_address(address.partition("%")[0]))
        if any(_contains(network, ip) for network in self._private):
            return None
        if literal_address(host) is not None and any(names.names(ip) for names in self._lists):
            return None
        return reason
