"""HTTP/3 to upstreams: the `Connector` for QUIC, and the tickets it resumes with."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import ssl
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache, partial
from time import monotonic
from typing import Any, Protocol

import certifi

from edged.dialer import most_telling
from edged.race import RaceLost, race
from edged.upstream.connection import Owner, Report
from edged.upstream.dialed import dial, reporting
from edged.upstream.h3_connection import H3Connection
from edged.upstream.migration import NO_MIGRATION, MigrationTools
from edged.upstream.quic import Driver
from edged.upstream.quic_engines import ClientSettings, make_engine
from policies.model import Carrier, Kind, Line, Outcome, Path
from probes.base import Announce, Dialed, Dialer, DialError

IDLE_TIMEOUT_S = 120.0
"""Our side of the idle timeout; the smaller of both counts, and servers commonly say 30 s."""
AGAIN_S = 1.0
"""A handshake without an answer gets company so often; two round trips and a packet that is lost
and sent again take less on most lines."""
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


class Families(Protocol):
    """Which addresses to race (`edged.dialer.LineDialer`)."""

    async def udp_choices(
        self, line: Line, host: str, *, address: str | None = None, timeout_s: float
    ) -> Sequence[str]:
        """Addresses, best first, the families in turn. Raises `DialError`."""

    def stagger_s(self, line: Line, host: str) -> float:
        """How much later the next one is tried."""

    def udp_worked(self, line: Line, host: str, address: str) -> None:
        """That one answered."""


class H3Connector:
    """Makes HTTP/3 connections (see `edged.upstream.connection.Connector`).

    ``ca_file`` adds trust to the system's store. ``engine`` forces ``pure`` or ``fast``. Without
    ``migration`` connections end with their line; without ``families`` the first address is the
    only one and is asked once (else RFC 8305, section 5, with handshakes in place of connects, and
    in silence anew every `AGAIN_S`). ``sent`` hears of each handshake. Raises `OSError` if
    ``ca_file`` cannot be read and `EngineError` if the engine cannot be had.
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
        families: Families | None = None,
        sent: Announce | None = None,
    ) -> None:
        self._dialer = dialer
        self._sent = sent
        self._families = families
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
        deadline = asyncio.get_running_loop().time() + timeout_s
        ticket = self.tickets.get(path)
        early = early_data and ticket is not None and bool(ticket.max_early_data_size)
        if self._families is not None and not early:
            addresses = await self._choices(self._families, path, timeout_s)
            connection = await self._race(self._families, path, owner, addresses, deadline)
        else:
            dialed = await dial(self._dialer.connect_udp, self._report, Kind.QUIC, path, timeout_s)
            connection = await self._shake(path, owner, dialed, deadline, early=early)
        connection.owned = True
        return connection

    async def _choices(self, families: Families, path: Path, timeout_s: float) -> Sequence[str]:
        endpoint = path.endpoint
        with reporting(self._report, Kind.QUIC, path):
            return await families.udp_choices(
                path.line, endpoint.host, address=endpoint.address, timeout_s=timeout_s
            )

    async def _race(
        self,
        families: Families,
        path: Path,
        owner: Owner,
        addresses: Sequence[str],
        deadline: float,
    ) -> H3Connection:
        """The first of ``addresses`` that answers. That one has no route says nothing of the line;
        that none has, does.

        A line that lets datagrams pass again does not say so, and a handshake sends its first
        packet ever more rarely: a new one asks sooner.
        """
        line, host = path.line, path.endpoint.host
        attempts = [partial(self._try, path, owner, address, deadline) for address in addresses]
        stagger_s = families.stagger_s(line, host)
        again_s = max(AGAIN_S, 2 * stagger_s)
        try:
            connection = await race(attempts, stagger_s, H3Connection.close, again_s=again_s)
        except RaceLost as lost:
            error = most_telling(lost)
            if error.outcome is not Outcome.UNREACHABLE:
                raise error from None  # the handshakes were reported
            with reporting(self._report, Kind.QUIC, path):
                raise error from None
        families.udp_worked(line, host, connection.peer[0])
        return connection

    async def _try(self, path: Path, owner: Owner, address: str, deadline: float) -> H3Connection:
        left_s = max(deadline - asyncio.get_running_loop().time(), 0.0)
        endpoint = path.endpoint
        dialed = await self._dialer.connect_udp(
            path.line, endpoint.host, endpoint.port, address=address, timeout_s=left_s
        )
        return await self._shake(path, owner, dialed, deadline, early=False)

    async def _shake(
        self, path: Path, owner: Owner, dialed: Dialed, deadline: float, *, early: bool
    ) -> H3Connection:
        """Shake hands on a fresh socket; with ``early`` the connection is ready before that."""
        loop = asyncio.get_running_loop()
        try:
            engine = make_engine(
                ClientSettings(
                    server_name=server_name(path.endpoint.host),
                    alpn=_ALPN,
                    cafile=system_store(),
                    cadata=self._cadata,
                    idle_timeout_s=IDLE_TIMEOUT_S,
                    ticket=self.tickets.get(path),
                    moves=not path.endpoint.is_door,
                    messages=path.endpoint.is_door,
                ),
                lambda new: self.tickets.put(path, new),
                self._engine,
            )
            connection = H3Connection(path, owner, engine, self._report, loop, self._migration)
            driver = Driver(loop, engine, dialed.sock, connection)
        except BaseException:
            dialed.sock.close()
            raise
        left_s = max(deadline - loop.time(), 0.0)
        if self._sent is not None:
            self._sent(path.name, Kind.QUIC, monotonic())
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
