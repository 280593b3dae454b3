"""Makes h1 and h2 connections: dial over the line, TLS with ALPN, the codec that was agreed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import cast

from edged.upstream.connection import Owner, Report
from edged.upstream.dialed import dial
from edged.upstream.engines import HpackEngine, hpack_engine
from edged.upstream.h1 import H1Connection
from edged.upstream.h2 import STREAMS_ASSUMED, H2Connection
from edged.upstream.sockets import describe, outcome_of
from edged.upstream.tls import Handshake, Tls
from policies.model import Carrier, Kind, Outcome, Path, Sample
from probes.base import Dialed, Dialer, DialError, Wire

_ALPN = {Carrier.H2: "h2", Carrier.H1: "http/1.1"}
_NAME_BYTES = 16


def alpn_names(path: Path, *, upgrade: bool, only: Carrier | None = None) -> tuple[str, ...]:
    """What to offer: h2 before h1 as far as the endpoint speaks them; upgrades need h1 alone.

    Where h2 alone is wanted h1 is offered all the same: better that than no connection.
    """
    if upgrade or only is Carrier.H1:
        return (_ALPN[Carrier.H1],)
    names = tuple(name for carrier, name in _ALPN.items() if carrier in path.endpoint.protocols)
    return names or tuple(_ALPN.values())


class TcpConnector:
    """The `Connector` of h1 and h2."""

    def __init__(
        self, dialer: Dialer, report: Report, tls: Tls, *, hpack: HpackEngine | None = None
    ) -> None:
        self._dialer = dialer
        self._report = report
        self._tls = tls
        self._hpack = hpack or hpack_engine()
        self._stream_limits: dict[tuple[str, int], int] = {}
        """By host and port, as their SETTINGS last said."""
        self.paced = True
        """Whether the congestion control of the latest connection measures bandwidth."""

    async def connect(
        self,
        path: Path,
        owner: Owner,
        *,
        timeout_s: float,
        early_data: bool = False,
        upgrade: bool = False,
        only: Carrier | None = None,
    ) -> H1Connection | H2Connection:
        """A ready connection (see `Connector.connect`); TCP knows no early data here."""
        began_at = monotonic()
        opening = _Opening(self, path, owner, upgrade=upgrade)
        if path.endpoint.scheme == "https":
            opening.handshake = self._tls.handshake(
                path, alpn_names(path, upgrade=upgrade, only=only)
            )
        dialed = await self._dial(path, timeout_s)
        opened_at = monotonic()
        try:
            async with asyncio.timeout(max(timeout_s - (opened_at - began_at), 0.001)):
                await self._open(path, dialed, opening)
        except (OSError, EOFError) as error:
            raise self._failed(path, error, opened_at) from None
        if opening.handshake is not None:
            rtt_s = (monotonic() - opened_at) / opening.handshake.round_trips
            self._report(Sample(path.name, Kind.TLS, opened_at, rtt_s))
        if opening.connection is None:
            opening.abort()
            text = f"{path.endpoint.host} does not speak any of its protocols over TCP"
            raise DialError(Outcome.PROTOCOL, text)
        return opening.connection

    async def _dial(self, path: Path, timeout_s: float) -> Dialed:
        sent_at = monotonic()
        dialed = await dial(self._dialer.connect_tcp, self._report, Kind.TCP, path, timeout_s)
        self._report(Sample(path.name, Kind.TCP, sent_at, dialed.connect_s))
        self.paced = _measures_bandwidth(dialed.sock)
        return dialed

    async def _open(self, path: Path, dialed: Dialed, opening: _Opening) -> None:
        # The loop owns the socket from here on, and closes it when this fails or is cancelled.
        opening.wire = dialed.wire
        loop = asyncio.get_running_loop()
        if opening.handshake is None:
            await loop.create_connection(lambda: opening, sock=dialed.sock)
        else:
            await loop.create_connection(
                lambda: opening,
                sock=dialed.sock,
                ssl=opening.handshake.as_context(),
                server_hostname=path.endpoint.host,
            )

    def _failed(self, path: Path, error: Exception, began_at: float) -> DialError:
        outcome = outcome_of(error)
        if path.endpoint.scheme == "https":
            self._report(Sample(path.name, Kind.TLS, began_at, None, outcome))
        if isinstance(error, TimeoutError):
            text = "the TLS handshake took too long"
        else:
            text = f"TLS handshake with {path.endpoint.host} failed: {describe(error)}"
        return DialError(outcome, text)

    def make(
        self, path: Path, owner: Owner, handshake: Handshake | None, *, upgrade: bool
    ) -> H1Connection | H2Connection | None:
        """The codec for what was agreed; ``None`` when the endpoint is not to be spoken to so."""
        loop = asyncio.get_running_loop()
        protocols = path.endpoint.protocols
        settled: Callable[[], None] | None = None
        cleanly: Callable[[], bool] | None = None
        if handshake is None:
            use_h2 = not upgrade and Carrier.H2 in protocols and Carrier.H1 not in protocols
        else:
            settled, cleanly = handshake.settled, handshake.closed_cleanly
            use_h2 = handshake.alpn == "h2"
            if not use_h2 and not upgrade and protocols == (Carrier.H2,):
                return None
        if use_h2:
            origin = (path.endpoint.host, path.endpoint.port)
            return H2Connection(
                path,
                owner,
                self._hpack,
                loop=loop,
                report=self._report,
                settled=settled,
                limit=self._stream_limits.get(origin, STREAMS_ASSUMED),
                on_limit=partial(self._stream_limits.__setitem__, origin),
            )
        return H1Connection(path, owner, loop=loop, closed_cleanly=cleanly, settled=settled)


def _measures_bandwidth(sock: socket.socket) -> bool:
    try:
        name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _NAME_BYTES)
    except OSError:
        return False
    return name.startswith(b"bbr")


class _Opening(asyncio.Protocol):
    """Stands on the transport until ALPN is known; then the codec takes its place."""

    def __init__(self, connector: TcpConnector, path: Path, owner: Owner, *, upgrade: bool) -> None:
        self.upgrade = upgrade
        self.handshake: Handshake | None = None
        self.wire: Wire | None = None
        self.connection: H1Connection | H2Connection | None = None
        self._connector = connector
        self._path = path
        self._owner = owner
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Choose the codec before a byte can arrive."""
        transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses
        if self.wire is not None:
            transport = self.wire.wrap(transport)
        self._transport = transport
        connection = self._connector.make(
            self._path, self._owner, self.handshake, upgrade=self.upgrade
        )
        if connection is not None:
            self.connection = connection
            transport.set_protocol(connection)
            connection.connection_made(transport)

    def abort(self) -> None:
        """Close the transport."""
        if self._transport is not None:
            self._transport.abort()
