"""One DNS question over one line: the wire, and nothing kept.

dnspython makes and reads the messages; the sockets are the caller's, bound to the line. UDP first
with a fresh port and id a query (RFC 5452), TCP after truncation (RFC 7766), the next way after a
wait or a failure. Garbage and forged answers are skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype

from edged.binding import UNREACHABLE, sockaddr
from edged.race import RaceLost, race

UDP_PAYLOAD_BYTES = 1232  # passes everywhere without fragments (DNS Flag Day 2020)
RETRY_S = 0.6


class Server(NamedTuple):
    """A name server's literal address and port."""

    address: str
    port: int = 53

    def __str__(self) -> str:
        shown = f"[{self.address}]" if ":" in self.address else self.address
        return shown if self.port == 53 else f"{shown}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Server:
        """Read ``address``, ``address:port``, ``[v6]`` or ``[v6]:port``."""
        if text.startswith("["):
            address, _, port = text[1:].partition("]")
            return cls(address, int(port.removeprefix(":") or 53))
        if text.count(":") == 1:
            address, _, port = text.partition(":")
            return cls(address, int(port))
        return cls(text)


class Answer(NamedTuple):
    """What a server said of a name; ``addresses`` is empty when there are none of that type."""

    addresses: tuple[str, ...]
    ttl_s: float
    exists: bool
    """False: NXDOMAIN."""


class QueryFailed(Exception):
    """No server gave a usable answer; the text says what each did."""

    def __init__(self, text: str, *, answered: bool = False) -> None:
        """``answered``: a server did answer, if not usably."""
        super().__init__(text)
        self.answered = answered


OpenSocket = Callable[[Server, int], socket.socket]
"""Opens a non-blocking socket of a type (SOCK_DGRAM, SOCK_STREAM) for a server."""


class Way(NamedTuple):
    """A server, and how it is reached."""

    server: Server
    open_socket: OpenSocket
    via: str
    """For people: ``from 10.71.1.2``."""


async def ask(ways: Sequence[Way], host: str, rdtype: dns.rdatatype.RdataType) -> Answer:
    """Try ``ways`` in turn until a server answers; the caller sets the deadline.

    A server that says nothing for 0.6 s gets company, not a verdict: its answer still counts.
    Raises `QueryFailed`.
    """
    try:
        name = dns.name.from_text(host)
    except (dns.exception.DNSException, UnicodeError) as error:
        raise QueryFailed(f"{host!r} is no host name: {error}", answered=True) from error

    async def attempt(way: Way) -> Answer:
        return await _ask_one(way, name, rdtype)

    try:
        return await race([partial(attempt, way) for way in ways], RETRY_S, lambda _: None)
    except RaceLost as lost:
        said = dict.fromkeys(str(error) or type(error).__name__ for error in lost.errors)
        answered = any(isinstance(e, QueryFailed) and e.answered for e in lost.errors)
        raise QueryFailed("; ".join(said), answered=answered) from lost


async def _ask_one(way: Way, name: dns.name.Name, rdtype: dns.rdatatype.RdataType) -> Answer:
    query = _question(name, rdtype, edns=True)
    reply = await _exchange(way, query)
    if reply.rcode() in (dns.rcode.FORMERR, dns.rcode.NOTIMP):  # before EDNS (RFC 6891, 7)
        query = _question(name, rdtype, edns=False)
        reply = await _exchange(way, query)
    return _read(way.server, reply)


def _question(
    name: dns.name.Name, rdtype: dns.rdatatype.RdataType, *, edns: bool
) -> dns.message.QueryMessage:
    return dns.message.make_query(
        name,
        rdtype,
        use_edns=0 if edns else False,
        payload=UDP_PAYLOAD_BYTES,
        id=secrets.randbelow(65536),
    )


async def _exchange(way: Way, query: dns.message.QueryMessage) -> dns.message.Message:
    server, open_socket, via = way
    try:
        reply = await _over_udp(server, query, open_socket)
        if reply.flags & dns.flags.TC:
            reply = await _over_tcp(server, query, open_socket)
    except OSError as error:
        text = error.strerror or str(error)
        if error.errno in UNREACHABLE:
            raise QueryFailed(f"name server {server} cannot be reached {via} ({text})") from error
        raise QueryFailed(f"name server {server}: {text}") from error
    return reply


async def _over_udp(
    server: Server, query: dns.message.QueryMessage, open_socket: OpenSocket
) -> dns.message.Message:
    loop = asyncio.get_running_loop()
    with contextlib.closing(open_socket(server, socket.SOCK_DGRAM)) as sock:
        # Connected, so that the kernel drops what comes from elsewhere.
        sock.connect(sockaddr(server.address, server.port))
        sock.send(query.to_wire())
        while True:
            reply = _parse(await loop.sock_recv(sock, 65535))
            if reply is not None and query.is_response(reply):
                return reply


async def _over_tcp(
    server: Server, query: dns.message.QueryMessage, open_socket: OpenSocket
) -> dns.message.Message:
    loop = asyncio.get_running_loop()
    with contextlib.closing(open_socket(server, socket.SOCK_STREAM)) as sock:
        await loop.sock_connect(sock, sockaddr(server.address, server.port))
        wire = query.to_wire()
        await loop.sock_sendall(sock, len(wire).to_bytes(2, "big") + wire)
        length = int.from_bytes(await _exactly(sock, 2), "big")
        reply = _parse(await _exactly(sock, length))
    if reply is None or not query.is_response(reply):
        raise QueryFailed(f"name server {server}: garbage over TCP", answered=True)
    return reply


async def _exactly(sock: socket.socket, count: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < count:
        more = await loop.sock_recv(sock, count - len(data))
        if not more:
            raise ConnectionResetError("connection closed within an answer")
        data += more
    return data


def _parse(wire: bytes) -> dns.message.Message | None:
    try:
        # A truncated answer may end in mid-record; its flags are all that counts.
        return dns.message.from_wire(wire, ignore_trailing=True, raise_on_truncation=False)
    except (dns.exception.DNSException, ValueError):
        return None


def _read(server: Server, reply: dns.message.Message) -> Answer:
    rcode = reply.rcode()
    if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        raise QueryFailed(f"name server {server}: {dns.rcode.to_text(rcode)}", answered=True)
    if not isinstance(reply, dns.message.QueryMessage):
        raise QueryFailed(f"name server {server}: not an answer to a query", answered=True)
    try:
        chain = reply.resolve_chaining()
    except dns.exception.DNSException as error:
        raise QueryFailed(f"name server {server}: {error}", answered=True) from error
    addresses = tuple(record.address for record in chain.answer) if chain.answer else ()
    return Answer(addresses, float(chain.minimum_ttl), rcode != dns.rcode.NXDOMAIN)
