"""QUIC probe: the time of a handshake over a line, and a few PINGs on the connection it made.

`QuicProbe.run` is what the schedule calls. `QuicProbe.inspect` tells people more: whether the
server offers 0-RTT, and takes it (a second connection that sends only HTTP/3 SETTINGS early).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from time import monotonic
from typing import Any

import certifi
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.tls import SessionTicket

from policies.model import Kind, Outcome, Path, Sample
from probes.base import Dialed, Dialer, DialError

PINGS = 3
PING_SPACING_S = 0.02
TICKET_WAIT_S = 0.2
"""How long `QuicProbe.inspect` waits for a session ticket beyond a round trip."""

_INITIAL_RTT_S = 0.2
_SETTINGS = (
    b"\x00\x04\x00"  # control stream, an empty SETTINGS frame (RFC 9114 sections 6.2.1, 7.2.4)
)
_H3_NO_ERROR = 0x100
_READS_PER_WAKE = 32

# The engine logs what a peer does wrong; here that is an outcome.
logging.getLogger("quic").setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class QuicReport:
    """What one inspection found. ``None``: it did not come so far."""

    outcome: Outcome
    detail: str
    """Why it failed, for people; empty when it did not."""
    dns_s: float | None = None
    handshake_s: float | None = None
    """First Initial sent to handshake complete."""
    early_data_offered: bool | None = None
    """The server's session ticket allows 0-RTT."""
    early_data_accepted: bool | None = None
    """It took 0-RTT data on a second connection."""
    pings: tuple[float | None, ...] = ()
    """Round trip of each PING in s, ``None`` when it was lost."""

    @property
    def ping_rtt_s(self) -> float | None:
        """The least round trip of the PINGs."""
        return min((rtt for rtt in self.pings if rtt is not None), default=None)


class QuicProbe:
    """Measures QUIC to a path's endpoint. ``ca_file`` adds trust to the system's store.

    Raises `OSError` if ``ca_file`` cannot be read.
    """

    kind = Kind.QUIC
    cost_bytes = 9000
    """Two padded flights of 1,200 bytes each way, a certificate chain, PINGs and the close."""

    def __init__(self, dialer: Dialer, *, ca_file: str | None = None, pings: int = PINGS) -> None:
        self._dialer = dialer
        self._cadata = FilePath(ca_file).read_bytes() if ca_file is not None else None
        self._pings = pings

    async def run(self, path: Path, *, timeout_s: float) -> Sequence[Sample]:
        """One handshake (`Kind.QUIC`) and, on it, some PINGs (`Kind.PING`)."""
        loop = asyncio.get_running_loop()
        started_at = monotonic()
        samples: list[Sample] = []
        try:
            async with asyncio.timeout(timeout_s):
                dialed = await self._dial(path, timeout_s)
                client = _Client(loop, dialed, self._configuration(path))
                try:
                    rtt_s = await client.handshake()
                    samples.append(Sample(path.name, Kind.QUIC, client.started_at, rtt_s))
                    for sent_at, ping_s in await client.pings(self._pings):
                        outcome = Outcome.TIMEOUT if ping_s is None else Outcome.OK
                        samples.append(Sample(path.name, Kind.PING, sent_at, ping_s, outcome))
                finally:
                    client.close()
        except DialError as error:
            failed = self._failed(path, started_at, samples, error.outcome)
            samples.append(failed._replace(detail=error.detail))
        except TimeoutError:
            samples.append(self._failed(path, started_at, samples, Outcome.TIMEOUT))
        return samples

    async def inspect(self, path: Path, *, timeout_s: float) -> QuicReport:
        """Handshake, PINGs, and whether 0-RTT is offered and accepted. Raises nothing."""
        loop = asyncio.get_running_loop()
        dns_s: float | None = None
        handshake_s: float | None = None
        pings: tuple[float | None, ...] = ()
        offered: bool | None = None
        accepted: bool | None = None
        outcome, detail = Outcome.OK, ""
        try:
            async with asyncio.timeout(timeout_s):
                dialed = await self._dial(path, timeout_s)
                dns_s = dialed.dns_s
                client = _Client(loop, dialed, self._configuration(path))
                try:
                    handshake_s = await client.handshake()
                    pings = tuple(rtt for _, rtt in await client.pings(self._pings))
                    ticket = await client.ticket(handshake_s + TICKET_WAIT_S)
                finally:
                    client.close()
                offered = ticket is not None and bool(ticket.max_early_data_size)
                if offered:
                    again = _Client(
                        loop,
                        await self._dial(path, timeout_s),
                        self._configuration(path, ticket),
                    )
                    try:
                        await again.handshake()
                        accepted = again.early_accepted
                    finally:
                        again.close()
        except DialError as error:
            outcome, detail = error.outcome, error.detail
        except TimeoutError:
            if dns_s is None:
                detail = f"line {path.line.name}: no address within {timeout_s:g} s"
                return QuicReport(Outcome.DNS, detail, None, None, None, None, ())
            outcome = Outcome.TIMEOUT
            detail = f"no answer to QUIC within {timeout_s:g} s (is UDP blocked on this line?)"
        return QuicReport(outcome, detail, dns_s, handshake_s, offered, accepted, pings)

    async def _dial(self, path: Path, timeout_s: float) -> Dialed:
        endpoint = path.endpoint
        return await self._dialer.connect_udp(
            path.line, endpoint.host, endpoint.port, address=endpoint.address, timeout_s=timeout_s
        )

    def _configuration(self, path: Path, ticket: SessionTicket | None = None) -> QuicConfiguration:
        return QuicConfiguration(
            alpn_protocols=["h3"],
            cadata=self._cadata,
            cafile=ssl.get_default_verify_paths().cafile or certifi.where(),
            initial_rtt=_INITIAL_RTT_S,
            server_name=_server_name(path.endpoint.host),
            session_ticket=ticket,
        )

    @staticmethod
    def _failed(
        path: Path, started_at: float, before: Sequence[Sample], outcome: Outcome
    ) -> Sample:
        # A failure after the handshake speaks of the connection, not of the handshake.
        kind = Kind.PING if before else Kind.QUIC
        return Sample(path.name, kind, started_at, None, outcome)


class _Client:
    """One connection over one socket, driven by the loop's reader and one timer."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, dialed: Dialed, configuration: QuicConfiguration
    ) -> None:
        self._loop = loop
        self._sock = dialed.sock
        self._peer = dialed.peer
        self._ticket: asyncio.Future[SessionTicket] = loop.create_future()
        self._shaken: asyncio.Future[None] = loop.create_future()
        self._acked: dict[int, asyncio.Future[float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.early_accepted = False
        self.started_at = monotonic()
        try:
            self._quic = QuicConnection(
                configuration=configuration, session_ticket_handler=self._new_ticket
            )
            self._sock.setblocking(False)
            loop.add_reader(self._sock.fileno(), self._readable)
        except BaseException:
            self._sock.close()
            raise

    async def handshake(self) -> float:
        """Shake hands: its duration in s. Raises `DialError`."""
        self.started_at = monotonic()
        self._quic.connect(self._peer, self.started_at)
        stream_id = self._quic.get_next_available_stream_id(is_unidirectional=True)
        self._quic.send_stream_data(stream_id, _SETTINGS)
        self._flush()
        await self._shaken
        return monotonic() - self.started_at

    async def pings(self, count: int) -> list[tuple[float, float | None]]:
        """When each PING was sent and its round trip, ``None`` when it was lost."""
        patience_s = 2 * (monotonic() - self.started_at) + 0.1
        results: list[tuple[float, float | None]] = []
        for uid in range(1, count + 1):
            sent_at = monotonic()
            future = self._acked[uid] = self._loop.create_future()
            self._quic.send_ping(uid)
            self._flush()
            try:
                async with asyncio.timeout(patience_s):
                    acked_at = await future
            except TimeoutError:
                results.append((sent_at, None))
                continue
            # The engine's newest sample has the peer's ACK delay (up to 25 ms) taken off.
            results.append((sent_at, min(acked_at - sent_at, self._quic._loss._rtt_latest)))
            await asyncio.sleep(PING_SPACING_S)
        return results

    async def ticket(self, wait_s: float) -> SessionTicket | None:
        """The server's session ticket, if one comes."""
        await asyncio.wait([self._ticket], timeout=wait_s)
        return self._ticket.result() if self._ticket.done() else None

    def close(self) -> None:
        """Say goodbye and let go of everything."""
        self._fail(Outcome.RESET, "closed")
        self._quic.close(error_code=_H3_NO_ERROR)
        self._flush()
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def _new_ticket(self, ticket: SessionTicket) -> None:
        if not self._ticket.done():
            self._ticket.set_result(ticket)

    def _readable(self) -> None:
        for _ in range(_READS_PER_WAKE):
            try:
                data = self._sock.recv(65535)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._socket_failed(error)
                return
            self._quic.receive_datagram(data, self._peer, monotonic())
        self._events()
        self._flush()

    def _events(self) -> None:
        while (event := self._quic.next_event()) is not None:
            if isinstance(event, events.HandshakeCompleted):
                self.early_accepted = event.early_data_accepted
                if not self._shaken.done():
                    self._shaken.set_result(None)
            elif isinstance(event, events.PingAcknowledged):
                future = self._acked.pop(event.uid, None)
                if future is not None and not future.done():
                    future.set_result(monotonic())
        ended = self._quic._close_event  # the engine's own event comes only after a closing period
        if ended is not None:
            tls = 0x100 <= ended.error_code < 0x200 and ended.frame_type is not None
            words = "".join(c for c in ended.reason_phrase[:120] if c.isascii() and c.isprintable())
            self._fail(
                Outcome.TLS if tls else Outcome.RESET,
                words or f"the server closed with code {ended.error_code:#x}",
            )

    def _flush(self) -> None:
        now = monotonic()
        for data, address in self._quic.datagrams_to_send(now):
            try:
                if address == self._peer:
                    self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                continue  # a datagram that finds no room is a lost one
            except OSError as error:
                self._socket_failed(error)
        due = self._quic.get_timer()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._wake, due) if due is not None else None

    def _wake(self, due: float) -> None:
        self._quic.handle_timer(max(due, monotonic()))
        self._events()
        self._flush()

    def _socket_failed(self, error: OSError) -> None:
        if isinstance(error, ConnectionRefusedError):
            self._fail(Outcome.REFUSED, "nothing listens on the UDP port")
        else:
            self._fail(Outcome.UNREACHABLE, f"UDP: {error.strerror}")

    def _fail(self, outcome: Outcome, detail: str) -> None:
        waited: list[asyncio.Future[Any]] = [self._shaken, *self._acked.values()]
        for future in waited:
            if not future.done():
                future.set_exception(DialError(outcome, detail))
                future.exception()  # whoever waits gets it; nobody may be waiting
        self._acked.clear()


def _server_name(host: str) -> str:
    """``host`` as certificates have it: an IP address in canonical form, or an IDNA name."""
    host = host.strip("[]").rstrip(".")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host if host.isascii() else host.encode("idna").decode()
