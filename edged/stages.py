"""What stands between a client connection and the exchange: each stage has one reason to exist.

A stage is a `Handler` that answers or passes on to the next one, which it knows only by the shape
of its call. `Access` decides who may ask, `Route` for which upstream. Both read their rules from
one attribute, which a reload replaces.

    handler = Access(rules, Route(table, exchanges))
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Final, Protocol

from edged.downstream.base import Handler, RequestSink, Responder
from edged.guard import forbidden
from edged.headers import answer, error_response, has_passed
from edged.messages import Headers, RequestHead, ResponseHead, header
from edged.routes import Routed, RouteTable, split_authority

__all__ = ["Access", "AccessRules", "Credentials", "Route", "Routed", "forbidden_target"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MOST_CLIENTS: Final = 4096
_USUAL: Final = frozenset((b"GET", b"POST", b"HEAD", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
_METADATA_NAMES = frozenset(
    (
        "instance-data",
        "instance-data.ec2.internal",
        "metadata",
        "metadata.azure.internal",
        "metadata.goog",
        "metadata.google.internal",
        "metadata.tencentyun.com",
    )
)
_NUMERIC = re.compile(r"(?:0[xX][0-9a-fA-F]*|[0-9]+)(?:\.(?:0[xX][0-9a-fA-F]*|[0-9]+)){0,3}")
_SLASH = rb"(?:/|\\|%2[fF]|%5[cC])"
_DOT_SEGMENT = re.compile(_SLASH + rb"(?:\.|%2[eE]){1,2}(?:" + _SLASH + rb"|\Z)")


class Credentials(Protocol):
    """Who may use the proxy."""

    def accepts(self, pair: bytes) -> bool:
        """Whether ``user:password`` is known, in a time that does not tell how nearly."""


class RoutedHandler(Protocol):
    """A `Handler` that is told where the request goes. ``head.path`` is already rewritten."""

    def __call__(self, routed: Routed, head: RequestHead, responder: Responder) -> RequestSink: ...


@dataclass(frozen=True, slots=True)
class AccessRules:
    """Who may ask, and for what."""

    pseudonym: bytes
    """This daemon's name in Via."""
    networks: tuple[Network, ...] = ()
    """Clients allowed besides loopback; empty: all, if ``credentials`` are asked for."""
    credentials: Credentials | None = None
    """Asked of every client, loopback included, in Proxy-Authorization (Basic)."""


def literal_address(host: str) -> str | None:
    """The IP address that ``host`` spells, or ``None`` if it is a name.

    The system's resolver also takes decimal, octal, hexadecimal and shortened IPv4 addresses, so
    they are addresses here too. ``host`` has no brackets.
    """
    if ":" in host:
        try:
            return str(ipaddress.IPv6Address(host.partition("%")[0]))
        except ValueError:
            return None
    if _NUMERIC.fullmatch(host):
        try:
            return socket.inet_ntoa(socket.inet_aton(host))
        except OSError:
            return None
    return None


def forbidden_target(host: str, *, client_is_local: bool) -> str | None:
    """Why a client may not ask for ``host`` through edged, judged by what it wrote.

    Names that resolve to a forbidden address are found by `edged.guard.forbidden` when they are
    dialled. Clients on other hosts may not reach this host's loopback services either.
    """
    if host in _METADATA_NAMES:
        return f"{host} is a cloud metadata service"
    address = literal_address(host)
    if address is None:
        if not client_is_local and (host == "localhost" or host.endswith(".localhost")):
            return f"{host} is edged's own host"
        return None
    reason = forbidden(address)
    if reason is None and not client_is_local and ipaddress.ip_address(address).is_loopback:
        return f"{address} is edged's own host"
    return reason


class Access:
    """Refuses clients, loops and targets that are not allowed."""

    __slots__ = ("_clients", "_free", "_next", "_rules")

    def __init__(self, rules: AccessRules, proceed: Handler) -> None:
        self._rules = rules
        self._next = proceed
        self._clients: dict[str, tuple[bool, bool]] = {}
        self._free: set[str] = set()
        """Connections' clients (address and port) who may ask without credentials."""

    @property
    def rules(self) -> AccessRules:
        """What it goes by."""
        return self._rules

    @rules.setter
    def rules(self, rules: AccessRules) -> None:
        self._rules = rules
        self._clients = {}
        self._free = set()

    def __call__(self, head: RequestHead, responder: Responder) -> RequestSink:
        """Handle one request."""
        first = head.first
        if (
            responder.client in self._free
            and first is not None
            and b"via" not in first
            and not head.absolute_form
            and head.method in _USUAL
        ):
            return self._next(head, responder)
        return self._judge(head, responder)

    def _judge(self, head: RequestHead, responder: Responder) -> RequestSink:
        """Handle a request of which nothing is known yet, or that is not a plain one."""
        rules = self._rules
        client = responder.client
        address = client.rpartition(":")[0]
        known = self._clients.get(address)
        if known is None:
            known = self._judge_client(address)
        allowed, local = known
        if not allowed:
            return answer(responder, _client_refused())
        if rules.credentials is None:
            if len(self._free) >= _MOST_CLIENTS:
                self._free.clear()
            self._free.add(client)
        explicit = head.absolute_form or head.method == b"CONNECT"
        if rules.credentials is not None and not _authorised(rules.credentials, head.headers):
            return answer(responder, _unauthorised(explicit))
        if has_passed(head.headers, rules.pseudonym):
            return answer(responder, _loop())
        if head.method == b"TRACE":
            return answer(responder, _trace())
        if explicit:
            host = split_authority(head.authority, 0)[0]
            reason = forbidden_target(host, client_is_local=local)
            if reason is not None:
                return answer(responder, _target_refused(reason))
        return self._next(head, responder)

    def _judge_client(self, address: str) -> tuple[bool, bool]:
        """Whether a client may use edged at all, and whether it is on this host."""
        if len(self._clients) >= _MOST_CLIENTS:
            self._clients.clear()
        try:
            ip = ipaddress.ip_address(address.strip("[]").partition("%")[0])
        except ValueError:
            return False, False
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        rules = self._rules
        if rules.networks:
            allowed = any(ip in network for network in rules.networks)
        else:
            allowed = rules.credentials is not None
        verdict = (allowed or ip.is_loopback, ip.is_loopback)
        self._clients[address] = verdict
        return verdict


def _authorised(credentials: Credentials, headers: Headers) -> bool:
    value = header(headers, b"proxy-authorization")
    if value is None:
        return False
    scheme, _, encoded = value.partition(b" ")
    if scheme.lower() != b"basic":
        return False
    try:
        return credentials.accepts(base64.b64decode(encoded.strip(), validate=True))
    except binascii.Error:
        return False


class Route:
    """Finds the upstream and rewrites the path."""

    __slots__ = ("_next", "table", "unlisted_allowed")

    def __init__(
        self, table: RouteTable, proceed: RoutedHandler, *, unlisted_allowed: bool = True
    ) -> None:
        self.table = table
        self._next = proceed
        self.unlisted_allowed = unlisted_allowed

    def __call__(self, head: RequestHead, responder: Responder) -> RequestSink:
        """Handle one request."""
        if head.absolute_form:
            return self._explicit(head, responder)
        way = self.table.ways.get((head.authority, head.path))
        if way is not None:  # never for CONNECT, which has no path
            routed, head.path = way
            return self._next(routed, head, responder)
        if head.method == b"CONNECT":
            return self._explicit(head, responder)
        return self._gateway(head, responder)

    def _gateway(self, head: RequestHead, responder: Responder) -> RequestSink:
        table = self.table
        authority, path = head.authority, head.path
        by_authority = table.by_authority(authority)
        if by_authority is not None:
            table.remember(authority, path, (by_authority, path))
            return self._next(by_authority, head, responder)
        by_prefix = table.by_prefix(path)
        if by_prefix is None:
            return answer(responder, _no_route(path, table))
        dotted = b"." in path or b"%2" in path
        if dotted and _DOT_SEGMENT.search(path.partition(b"?")[0]):
            return answer(responder, _dot_segments())
        head.path = _stripped(path, by_prefix.prefix)
        table.remember(authority, path, (by_prefix, head.path))
        return self._next(by_prefix, head, responder)

    def _explicit(self, head: RequestHead, responder: Responder) -> RequestSink:
        plain = head.scheme == b"http"
        host, port = split_authority(head.authority, 80 if plain else 443)
        routed = self.table.by_target(host, port)
        if routed is None:
            if not self.unlisted_allowed:
                return answer(responder, _not_listed(host))
            routed = self.table.unlisted("http" if plain else "https", host, port)
        return self._next(routed, head, responder)


def _stripped(path: bytes, prefix: bytes) -> bytes:
    rest = path[len(prefix) :]
    return rest if rest[:1] in (b"/", b"*") else b"/" + rest


# Answers. Each says what is wrong and what to do about it.


Answer = tuple[ResponseHead, bytes]


def _client_refused() -> Answer:
    return error_response(
        403,
        "client_not_allowed",
        "This client's address may not use edged.",
        "Add its network to access.allow, or set access.credentials_file.",
        proxy_error="http_request_denied",
    )


def _unauthorised(explicit: bool) -> Answer:
    challenge = b'Basic realm="edged", charset="UTF-8"'
    return error_response(
        407 if explicit else 401,
        "credentials_missing",
        "Credentials are missing or not known.",
        "Send Proxy-Authorization: Basic with a user and password of access.credentials_file.",
        proxy_error="http_request_denied",
        fields=[(b"proxy-authenticate" if explicit else b"www-authenticate", challenge)],
    )


def _loop() -> Answer:
    return error_response(
        508,
        "loop",
        "This request has come through this edged before.",
        "An upstream's address, or its DNS, leads back to edged: check the endpoint's URL.",
        proxy_error="proxy_loop_detected",
    )


def _trace() -> Answer:
    return error_response(
        405,
        "method_not_allowed",
        "TRACE would show a request's secrets and is not served.",
        "Use `edged why` to see which way a request takes.",
        proxy_error="http_request_denied",
        fields=[(b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, CONNECT")],
    )


def _target_refused(reason: str) -> Answer:
    return error_response(
        403,
        "target_not_allowed",
        f"This target is refused: {reason}.",
        "Ask for it without the proxy, or make it an upstream with a prefix.",
        proxy_error="destination_ip_prohibited",
    )


def _not_listed(host: str) -> Answer:
    return error_response(
        403,
        "host_not_listed",
        f"{host} is in no upstream.",
        "Add it to an upstream's hosts, or set unlisted_hosts: allow.",
        proxy_error="http_request_denied",
    )


def _no_route(path: bytes, table: RouteTable) -> Answer:
    known = ", ".join(table.prefixes) or "none"
    return error_response(
        404,
        "no_route",
        f"No upstream has a prefix of {path[:100].decode('latin-1')} or this Host.",
        f"Prefixes: {known}. To reach other hosts, use edged as a proxy (HTTPS_PROXY).",
        proxy_error="destination_not_found",
    )


def _dot_segments() -> Answer:
    return error_response(
        400,
        "dot_segments",
        "The path has dot segments.",
        "Send the path without /./ and /../: they could leave the upstream's prefix.",
        proxy_error="http_request_error",
    )
