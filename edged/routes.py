"""Which upstream a request is for: pure look-ups in tables made once per configuration."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from policies.model import Carrier, Endpoint

_MOST_UNLISTED = 1024
_MOST_WAYS = 1024
_KEPT_BYTES = 200


@dataclass(frozen=True, slots=True)
class RouteEntry:
    """How requests find one upstream."""

    upstream: str
    hosts: tuple[str, ...] = ()
    """Names and IP literals; ``*.`` and a name stands for everything below it."""
    prefix: str | None = None
    """Of gateway paths, without a trailing slash but for ``/`` itself."""
    ports: frozenset[int] = frozenset()
    """Ports, besides 80 and 443, under which an explicit proxy's client may mean it."""


class Routed(NamedTuple):
    """Where a request goes. One object per upstream and way in, shared by its requests."""

    upstream: str
    """Empty for a host in no upstream: ``endpoint`` says where."""
    endpoint: Endpoint | None
    gateway: bool
    """Asked of edged as if it were the origin; else through it as an explicit proxy."""
    prefix: bytes
    """What was stripped from the path (empty or without a trailing slash)."""


def split_authority(authority: bytes, default_port: int) -> tuple[str, int]:
    """Host (lower-case, without brackets and root dot) and port of a valid authority."""
    host, colon, port = authority.rpartition(b":")
    if not colon or authority.endswith(b"]"):
        host, port = authority, b""
    name = host.decode("latin-1").lower()
    if name.startswith("["):
        name = name[1:-1]
    return name.removesuffix("."), int(port) if port else default_port


class RouteTable:
    """Immutable but for memos; a reload makes another one."""

    __slots__ = (
        "_authorities",
        "_gateway_hosts",
        "_hosts",
        "_most_segments",
        "_prefixes",
        "_unlisted",
        "ways",
    )

    def __init__(self, entries: Iterable[RouteEntry]) -> None:
        self._hosts: dict[str, tuple[Routed, frozenset[int]]] = {}
        self._gateway_hosts: dict[str, Routed] = {}
        self._prefixes: dict[bytes, Routed] = {}
        self._unlisted: dict[tuple[str, str, int], Routed] = {}
        self._authorities: dict[bytes, Routed | None] = {}
        self.ways: dict[tuple[bytes, bytes], tuple[Routed, bytes]] = {}
        """Where gateway requests with this authority and path went, and with which path."""
        for entry in entries:
            ports = entry.ports | {80, 443}
            proxied = Routed(entry.upstream, None, False, b"")
            by_host = Routed(entry.upstream, None, True, b"")
            for host in entry.hosts:
                name = host.lower().strip("[]")
                self._hosts.setdefault(name, (proxied, ports))
                self._gateway_hosts.setdefault(name, by_host)
            if entry.prefix is not None:
                prefix = entry.prefix.rstrip("/").encode()
                by_prefix = Routed(entry.upstream, None, True, prefix)
                self._prefixes.setdefault(prefix, by_prefix)
        self._most_segments = max((p.count(b"/") for p in self._prefixes), default=0)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The gateway prefixes, for hints."""
        return tuple(prefix.decode("latin-1") or "/" for prefix in self._prefixes)

    def by_target(self, host: str, port: int) -> Routed | None:
        """The upstream an explicit proxy's client means: exact host, then the nearest wildcard."""
        found = _by_name(self._hosts, host)
        return found[0] if found is not None and port in found[1] else None

    def by_host(self, host: str) -> Routed | None:
        """The upstream whose host a gateway request names; the port is edged's own."""
        return _by_name(self._gateway_hosts, host)

    def by_authority(self, authority: bytes) -> Routed | None:
        """`by_host` for a Host field as it came; the last ones asked for are remembered."""
        try:
            return self._authorities[authority]
        except KeyError:
            if len(self._authorities) >= _MOST_UNLISTED:
                self._authorities.clear()
            found = self.by_host(split_authority(authority, 0)[0])
            self._authorities[authority] = found
            return found

    def remember(self, authority: bytes, path: bytes, way: tuple[Routed, bytes]) -> None:
        """Keep a way, unless its path is unlikely to come again."""
        if len(authority) + len(path) <= _KEPT_BYTES and b"?" not in path:
            if len(self.ways) >= _MOST_WAYS:
                self.ways.clear()
            self.ways[authority, path] = way

    def by_prefix(self, path: bytes) -> Routed | None:
        """The upstream with the longest prefix of ``path``, on a segment's border."""
        query = path.find(b"?")
        end = len(path) if query < 0 else query
        cut = 0
        cuts = []
        for _ in range(self._most_segments):
            cut = path.find(b"/", cut + 1, end)
            if cut < 0:
                cuts.append(end)
                break
            cuts.append(cut)
        for cut in reversed(cuts):
            found = self._prefixes.get(path[:cut])
            if found is not None:
                return found
        return self._prefixes.get(b"")

    def unlisted(self, scheme: str, host: str, port: int) -> Routed:
        """An ephemeral endpoint for a host in no upstream."""
        key = (scheme, host, port)
        found = self._unlisted.get(key)
        if found is None:
            if len(self._unlisted) >= _MOST_UNLISTED:
                self._unlisted.clear()
            protocols = (Carrier.H2, Carrier.H1) if scheme == "https" else (Carrier.H1,)
            name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            endpoint = Endpoint(name, name, scheme, host, port, protocols=protocols)
            found = self._unlisted[key] = Routed("", endpoint, False, b"")
        return found


T = TypeVar("T")


def _by_name(table: dict[str, T], host: str) -> T | None:
    found = table.get(host)
    dot = host.find(".")
    while found is None and dot >= 0:
        found = table.get("*" + host[dot:])
        dot = host.find(".", dot + 1)
    return found
