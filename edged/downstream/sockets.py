"""Sockets of the client side: bound ones, whose address, and how to break a connection."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct

_LINGER_ZERO = struct.pack("ii", 1, 0)


def bind(host: str, port: int) -> socket.socket:
    """A bound stream socket. Raises `OSError` with a text for people."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, explain(error, host, port)) from error
    return sock


def explain(error: OSError, host: str, port: int) -> str:
    """Why an address cannot be bound, for people."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use by another process; stop it or choose another port"
    if error.errno == errno.EACCES:
        return f"no permission to listen on {where}; ports below 1024 need CAP_NET_BIND_SERVICE"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{where} is no address of this host"
    reason = os.strerror(error.errno) if error.errno else str(error)
    return f"can't listen on {where}: {reason}"


def client_address(transport: asyncio.BaseTransport) -> str:
    """The peer as ``address:port``, an IPv6 address in brackets."""
    peer = transport.get_extra_info("peername")
    if not isinstance(peer, tuple):
        return "unknown"
    host, port = peer[0], peer[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def client_certificate(transport: asyncio.BaseTransport) -> bytes | None:
    """The client's certificate in DER, if it was asked for one and that was verified."""
    tls = transport.get_extra_info("ssl_object")
    return None if tls is None else tls.getpeercert(binary_form=True)


def reset(transport: asyncio.Transport) -> None:
    """Close with a RST, which no client takes for the end of a message."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    transport.abort()
