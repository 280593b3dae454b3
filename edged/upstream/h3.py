"""HTTP/3 to upstreams: the `Connector` for QUIC, and the tickets it resumes with."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import ssl
from collections import OrderedDict
from functools import lru_cache
from typing import Any

import certifi

from edged.upstream.connection import Owner, Report
from edged.upstream.dialed import dial
from edged.upstream.h3_connection import H3Connection
from edged.upstream.migration import NO_MIGRATION, MigrationTools
from edged.upstream.quic import Driver
from edged.upstream.quic_engines import ClientSettings, make_engine
from policies.model import Carrier, Kind, Path
from probes.base import Dialer, DialError

IDLE_TIMEOUT_S = 120.0
"""Our side of the idle timeout; the smaller of both counts, and servers commonly say 30 s."""
TICKETS = 1024

_ALPN = ("h3",)


class TicketStore:
    """The newest TLS session ticket for each (path, origin), bounded; least recently used go first.

    A path's tickets are its own: an address validated over one line says nothing over another.
    """

    def __init__(self, size: int = TICKETS) -> None:
        self._size = size
        self._tickets: OrderedDict[tuple[str, str, int], Any] = OrderedDict()

    def get(self, path: Path) -> Any:
        """A valid ticket, or ``None``."""
        key = self._key(path)
        ticket = self._tickets.get(key)
        if ticket is None:
            return None
        if not ticket.is_valid:
            del self._tickets[key]
            return None
        self._tickets.move_to_end(key)
        return ticket

    def put(self, path: Path, ticket: Any) -> None:
        """Keep ``ticket`` instead of the one before."""
        key = self._key(path)
        self._tickets[key] = ticket
        self._tickets.move_to_end(key)
        if len(self._tickets) > self._size:
            self._tickets.popitem(last=False)

    def forget(self, path: Path) -> None:
        """The ticket did not serve."""
        self._tickets.pop(self._key(path), None)

    @staticmethod
    def _key(path: Path) -> tuple[str, str, int]:
        return path.name, path.endpoint.host, path.endpoint.port


class H3Connector:
    """Makes HTTP/3 connections (see `edged.upstream.connection.Connector`).

    ``ca_file`` adds trust to the system's store. ``engine`` forces ``pure`` or ``fast``. Without
    ``migration`` connections end with their line. Raises `OSError` if ``ca_file`` cannot be read
    and `EngineError` if the engine cannot be had.
    """

    def __init__(
        self,
        dialer: Dialer,
        report: Report,
        *,
        ca_file: str | None = None,
        engine: str | None = None,
        tickets: TicketStore | None = None,
        migration: MigrationTools | None = None,
    ) -> None:
        self._dialer = dialer
        self._report = report
        self._engine = engine
        self._cadata: bytes | None = None
        if ca_file is not None:
            with open(ca_file, "rb") as file:
                self._cadata = file.read()
        self.tickets = tickets or TicketStore()
        self._migration = migration or NO_MIGRATION

    async def connect(
        self,
        path: Path,
        owner: Owner,
        *,
        timeout_s: float,
        early_data: bool = False,
        upgrade: bool = False,
        only: Carrier | None = None,
    ) -> H3Connection:
        """See `Connector.connect`. ``upgrade`` cannot be had here (`DialError`, PROTOCOL)."""
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        dialed = await dial(self._dialer.connect_udp, self._report, Kind.QUIC, path, timeout_s)
        ticket = self.tickets.get(path)
        try:
            engine = make_engine(
                ClientSettings(
                    server_name=server_name(path.endpoint.host),
                    alpn=_ALPN,
                    cafile=system_store(),
                    cadata=self._cadata,
                    idle_timeout_s=IDLE_TIMEOUT_S,
                    ticket=ticket,
                ),
                lambda new: self.tickets.put(path, new),
                self._engine,
            )
            connection = H3Connection(path, owner, engine, self._report, loop, self._migration)
            driver = Driver(loop, engine, dialed.sock, connection)
        except BaseException:
            dialed.sock.close()
            raise
        left_s = max(timeout_s - (loop.time() - started_at), 0.0)
        early = early_data and ticket is not None and bool(ticket.max_early_data_size)
        connection.start(driver, dialed.peer, early=early, timeout_s=left_s)
        if not early:
            try:
                await connection.ready
            except asyncio.CancelledError:
                connection.close()
                raise
        if connection.end is not None:
            self.tickets.forget(path)
            raise DialError(connection.end.outcome, connection.end.detail)
        connection.owned = True
        return connection


def server_name(host: str) -> str:
    """``host`` as certificates and SNI have it: no brackets, no trailing dot, IDNA."""
    host = host.strip("[]").rstrip(".")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host if host.isascii() else host.encode("idna").decode()


@lru_cache(maxsize=1)
def system_store() -> str:
    """The file with the certificates that this host trusts (SSL_CERT_FILE counts)."""
    found = ssl.get_default_verify_paths().cafile
    return found if found is not None and os.path.getsize(found) else certifi.where()


__all__ = ["H3Connection", "H3Connector", "TicketStore", "server_name", "system_store"]
