"""What may stand in ``edged.yaml``: every key with its type, default and meaning.

These models mirror the file and check one value at a time. `edged.config` checks what spans
several values and turns them into the frozen types that the daemon works with.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from policies.model import Carrier
from policies.schema import Seconds

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("a name has letters, digits, '.', '_' and '-' and starts with one of them")
    return value


def host_name(value: str) -> str:
    """A host name or IP literal in lower case, IDNs as A-labels (RFC 5890). Raises ValueError."""
    host = value.strip("[]") if value.startswith("[") else value
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        host = host.rstrip(".").lower().encode("idna").decode("ascii") if host else ""
    except UnicodeError:
        host = ""
    labels = host.split(".")
    numeric = labels[-1].isdigit()
    if len(host) > 253 or numeric or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("not a host name or IP address")
    return host


def host_pattern(value: str) -> str:
    """A host name, or ``*.`` and a host name for everything below it."""
    if any(c in value for c in "/?#") or "://" in value:
        raise ValueError("a host name alone, without scheme and path")
    if value.startswith("*."):
        return "*." + host_name(value[2:])
    return host_name(value)


def split_address(value: str) -> tuple[str, int]:
    """``address:port`` or ``[v6]:port`` as IP and port. ``localhost`` is 127.0.0.1."""
    host, colon, port = value.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("write address:port, as 127.0.0.1:7070 or [::1]:7070")
    if host.startswith("[") != host.endswith("]") or (":" in host and not host.startswith("[")):
        raise ValueError("an IPv6 address stands in brackets, as [::1]:7070")
    host = "127.0.0.1" if host == "localhost" else host.strip("[]")
    return _ip(host), int(port)


def _ip(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError("not an IP address") from None


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError as error:
        if "host bits" in str(error):
            net = ipaddress.ip_network(value, strict=False)
            raise ValueError(f"has host bits set; the network is {net}") from None
        raise ValueError("not an IP address or network, as 10.0.0.0/8") from None


def _listen_address(value: str) -> str:
    split_address(value)
    return value


def _name_server(value: str) -> str:
    try:
        return _ip(value)
    except ValueError:
        host, port = split_address(value)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_url(value: str, *, schemes: tuple[str, ...] = ("https", "http")) -> SplitResult:
    """A checked service URL: scheme, host, port and base path. Raises ValueError."""
    if value != value.strip() or any(c.isspace() or not c.isprintable() for c in value):
        raise ValueError("a URL has no white space")
    try:
        url = urlsplit(value)
        port = url.port
    except ValueError:
        raise ValueError("not a URL, as https://api.example.com:443/base") from None
    if url.scheme not in schemes or not url.netloc:
        raise ValueError(f"a URL that starts with {' or '.join(s + '://' for s in schemes)}")
    if "@" in url.netloc:
        raise ValueError("a URL without user and password; clients send their own credentials")
    if url.query or url.fragment or value.endswith(("?", "#")):
        raise ValueError("a URL without '?' and '#'")
    if port == 0 or url.netloc.endswith(":"):
        raise ValueError("a port is 1 to 65535")
    host_name(url.hostname or "")
    if url.path and not _PATH.fullmatch(url.path):
        raise ValueError("its path has characters that must be percent-encoded")
    return url


def _url(value: str) -> str:
    split_url(value)
    return value


def _relay_url(value: str) -> str:
    split_url(value, schemes=("https",))
    return value


def _prefix(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError(f"starts with '/', as /{value.strip('/') or 'openai'}")
    if not _PATH.fullmatch(value) or "//" in value or "/../" in value + "/":
        raise ValueError("a path without '?', '#', '//' and '..'")
    return value.rstrip("/") or "/"


def _interface(value: str) -> str:
    if not 0 < len(value) < 16 or "/" in value or any(c.isspace() for c in value):
        raise ValueError("an interface name has 1 to 15 characters, no '/' and no space")
    return value


def _listed(value: object) -> object:
    """One item may stand without the brackets of a list."""
    return [value] if isinstance(value, str) else value


def _location(value: object) -> object:
    if isinstance(value, str):
        return value
    ok = (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    )
    if not ok:
        raise ValueError("write [latitude, longitude] in degrees or a region name")
    assert isinstance(value, list)
    if not -90 <= value[0] <= 90 or not -180 <= value[1] <= 180:
        raise ValueError("latitude is -90 to 90 and longitude -180 to 180, in this order")
    return [float(v) for v in value]


def _text(check: Callable[[str], str]) -> AfterValidator:
    return AfterValidator(check)


Name = Annotated[str, _text(_name)]
Ip = Annotated[str, _text(_ip)]
Place = Annotated[list[float] | str, BeforeValidator(_location)]
Listen = Annotated[str, _text(_listen_address)]
Count = Annotated[int, Field(strict=True, ge=1)]
Coding = Literal["zstd", "br", "gzip"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class NodeSection(_Section):
    """This host."""

    name: Name = "edge"
    """Stands in Via, Proxy-Status and the metrics."""
    location: Place | None = None
    """[latitude, longitude] or a cloud region's name; a prior for paths without samples."""


class ListenSection(_Section):
    """Where edged listens."""

    proxy: Annotated[tuple[Listen, ...], BeforeValidator(_listed), Field(min_length=1)] = (
        "127.0.0.1:7070",
    )
    """Explicit proxy and gateway, one port: an address or a list of them."""
    admin: Listen | None = "127.0.0.1:7071"
    """Status, why, health, metrics, reload; null: none."""


class AccessSection(_Section):
    """Who may use the listeners. Needed as soon as one of them is not on loopback."""

    allow: tuple[Annotated[str, _text(_network)], ...] = ()
    """Client networks, as 10.0.0.0/8; loopback is always allowed. Empty: any, if credentials are
    given."""
    credentials_file: str | None = None
    """Lines of user:password, asked of proxy clients (Proxy-Authorization: Basic)."""


class BindSection(_Section):
    """What ties sockets to the line: one of the three, or none for the system's route."""

    source: Ip | None = None
    """Source address."""
    interface: Annotated[str, _text(_interface)] | None = None
    """SO_BINDTODEVICE; needs CAP_NET_RAW."""
    mark: Annotated[int, Field(strict=True, ge=1, le=0xFFFFFFFF)] | None = None
    """SO_MARK, for `ip rule fwmark`; needs CAP_NET_ADMIN."""


class LineSection(_Section):
    """One way out of this host."""

    name: Name
    """Unique."""
    kind: Name = "bgp"
    """cn2, bgp, cmi, hk ...: a word for people and metrics."""
    bind: BindSection = BindSection()
    """How sockets are put on this line."""
    capacity_mbps: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] | None = None
    """Bounds probe traffic and fills the load filter; null: unknown."""
    price_per_gb: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] = 0.0
    """In the unit of money that weights.cost uses."""
    dns: tuple[Annotated[str, _text(_name_server)], ...] = ()
    """Name servers asked over this line, address or address:port; empty: the system's servers."""


class EndpointSection(_Section):
    """One address of an upstream service."""

    name: Name | None = None
    """Unique in its upstream; default: the URL's host."""
    url: Annotated[str, _text(_url)]
    """Scheme, host, port and a base path that is put before request paths."""
    location: Place | None = None
    """[latitude, longitude] or a cloud region's name."""
    protocols: tuple[Carrier, ...] | None = None
    """What it is spoken to with: h3, h2, h1. Default: h2 and h1 for https, and h3 once its Alt-Svc
    says so; h1 for http."""
    accepts_encoding: tuple[Coding, ...] = ()
    """Content codings it takes in request bodies."""
    lines: tuple[str, ...] | None = None
    """Lines it may be reached over; null: all."""
    address: Ip | None = None
    """Fixed IP address instead of DNS."""
    relays: tuple[str, ...] | None = None
    """Relays it may be reached through; null: all, []: none."""
    direct: bool = True
    """Whether it is reached without a relay, too."""


class UpstreamSection(_Section):
    """One logical service."""

    name: Name
    """Unique."""
    hosts: tuple[Annotated[str, _text(host_pattern)], ...] = ()
    """Explicit proxy, and gateway by Host: names, or *.name for all below; the longest wins."""
    prefix: Annotated[str, _text(_prefix)] | None = None
    """Gateway: requests whose path begins so, with it removed; the longest wins, / is the rest."""
    policy: str = "balanced"
    """A file of policies_dir without .yaml, or a preset."""
    endpoints: Annotated[tuple[EndpointSection, ...], Field(min_length=1)]
    """At least one."""


class RelaySection(_Section):
    """A remote host running `edged relay`, through which endpoints are reached as well."""

    name: Name
    """Unique."""
    url: Annotated[str, _text(_relay_url)]
    """https."""
    location: Place | None = None
    """[latitude, longitude] or a cloud region's name."""
    token_file: str | None = None
    """Holds the bearer token; read anew with every reload."""
    lines: tuple[str, ...] | None = None
    """Lines it may be reached over; null: all."""
    address: Ip | None = None
    """Fixed IP address instead of DNS."""


class TlsSection(_Section):
    """TLS towards upstreams."""

    ca_file: str | None = None
    """PEM certificates trusted in addition to the system's."""


class LimitsSection(_Section):
    """What clients may hold of this process."""

    header_bytes: Annotated[int, Field(strict=True, ge=1024, le=1 << 24)] = 65536
    """Largest request head (431 beyond)."""
    connections: Count = 16384
    """Client connections at a time."""
    idle_s: Seconds = 300.0
    """A keep-alive connection without a request is closed after this."""
    header_s: Seconds = 15.0
    """A request head must be complete within this."""
    drain_s: Seconds = 30.0
    """At SIGTERM, exchanges in flight get this long to finish."""
    spool_dir: str | None = None
    """Where request bodies above 256 KiB wait for a possible replay; null: the system's tmp."""


class LogSection(_Section):
    """What is written where."""

    access: str | None = "stdout"
    """One JSON line an exchange: stdout, stderr or a file; null: none."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Of the daemon's own log, on stderr."""


class ConfigFile(_Section):
    """edged.yaml"""

    node: NodeSection = NodeSection()
    """This host."""
    listen: ListenSection = ListenSection()
    """Where edged listens."""
    access: AccessSection = AccessSection()
    """Who may use it."""
    lines: Annotated[tuple[LineSection, ...], Field(min_length=1)] = (LineSection(name="default"),)
    """The ways out; default: one, named default, that follows the system's routes."""
    upstreams: tuple[UpstreamSection, ...] = ()
    """The services."""
    relays: tuple[RelaySection, ...] = ()
    """Remote hosts running `edged relay`."""
    unlisted_hosts: Literal["allow", "deny"] = "allow"
    """Explicit-proxy requests to hosts in no upstream."""
    unlisted_policy: str = "balanced"
    """Their policy."""
    tls: TlsSection = TlsSection()
    """TLS towards upstreams."""
    limits: LimitsSection = LimitsSection()
    """What clients may hold."""
    log: LogSection = LogSection()
    """What is written where."""
    policies_dir: str | None = None
    """Policy files, read from here again when they change; default: policies.d beside this file,
    if it exists."""
