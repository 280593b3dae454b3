"""Addresses that no client may reach through edged, whatever name led to them.

Cloud-metadata services answer on link-local and a few odd addresses and hand out credentials; a
proxy that can be talked into asking them gives those away. Names are no protection (DNS
rebinding), so the check runs on the address that is about to be dialled.
"""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_METADATA = {
    ipaddress.ip_address("100.100.100.200"): "Alibaba Cloud metadata",
    ipaddress.ip_address("168.63.129.16"): "Azure platform",
    ipaddress.ip_address("192.0.0.192"): "Oracle Cloud metadata",
    ipaddress.ip_address("fd00:ec2::254"): "AWS metadata",
    ipaddress.ip_address("fd20:ce::254"): "Google Cloud metadata",
}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")


def forbidden(address: str) -> str | None:
    """Why ``address`` (a literal IP) is refused to explicit-proxy clients; ``None``: it is not.

    Refused: link-local, cloud metadata, multicast, unspecified and reserved addresses, also when
    they are wrapped in IPv6 (mapped, NAT64, 6to4). Loopback and private addresses are allowed:
    an operator's own services live there.
    """
    ip = unwrapped(ipaddress.ip_address(address.partition("%")[0]))
    if ip in _METADATA:
        return f"{ip} is a {_METADATA[ip]} address"
    if ip.is_link_local:
        return f"{ip} is link-local (cloud metadata lives there)"
    if ip.is_multicast:
        return f"{ip} is a multicast address"
    if ip.is_unspecified or (isinstance(ip, ipaddress.IPv4Address) and ip.packed[0] in (0, 255)):
        return f"{ip} is no address of a host"
    return None


def unwrapped(ip: Address) -> Address:
    """The IPv4 address inside ``ip`` (mapped, NAT64, 6to4), or ``ip`` itself."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    if ip in _NAT64:
        return ipaddress.IPv4Address(ip.packed[12:])
    if ip in _SIX_TO_FOUR:
        return ipaddress.IPv4Address(ip.packed[2:6])
    return ip
