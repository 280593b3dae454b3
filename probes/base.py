"""What a probe is, and the one seam through which anything reaches the network.

A probe is one file: a class with a `kind`, told a path and given a `Dialer`, that returns samples.
It never judges, never retries and never decides when it runs: `probes.schedule` does.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from policies.model import Kind, Line, Outcome, Path, Sample


class DialError(Exception):
    """A socket could not be had. ``outcome`` tells whom to blame; the text is for people."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.detail = detail


class Wire(Protocol):
    """The line of a connection, which a drill can silence (`edged.line_sockets`)."""

    @property
    def silent(self) -> bool:
        """Whether nothing comes in or may go out."""

    def wrap(self, transport: asyncio.Transport) -> asyncio.Transport:
        """The transport to write to instead of this one."""

    async def passage(self) -> None:
        """Wait until something may go out."""


class FreeWire:
    """A line that nobody silences."""

    silent = False

    def wrap(self, transport: asyncio.Transport) -> asyncio.Transport:
        """The same."""
        return transport

    async def passage(self) -> None:
        """At once."""


_FREE = FreeWire()


@dataclass(frozen=True, slots=True)
class Dialed:
    """A connected, non-blocking socket and what it took. UDP sockets have ``connect_s`` 0."""

    sock: socket.socket
    peer: tuple[str, int]
    dns_s: float
    connect_s: float
    rtt_s: float | None = None
    """SYN to SYN-ACK by the kernel's clock, free of loop lag; ``None``: UDP, or a SYN was lost."""
    syn_lost: int = 0
    """SYN segments of this connection that had to be sent again."""
    wire: Wire = _FREE


class Dialer(Protocol):
    """Sockets bound to a line. Injected everywhere; tests and drills replace it."""

    async def resolve(self, line: Line, host: str) -> Sequence[str]:
        """Addresses of ``host`` as seen from ``line``, preferred first (cached, per line).

        Raises `DialError` (DNS) when there is none.
        """

    async def connect_tcp(
        self, line: Line, host: str, port: int, *, address: str | None = None, timeout_s: float
    ) -> Dialed:
        """Connect over ``line``, racing address families (RFC 8305). Raises `DialError`."""

    async def connect_udp(
        self, line: Line, host: str, port: int, *, address: str | None = None, timeout_s: float
    ) -> Dialed:
        """A connected UDP socket over ``line``. Raises `DialError`."""

    def bind(self, sock: socket.socket, line: Line) -> None:
        """Bind ``sock`` to ``line`` (source address, SO_BINDTODEVICE or SO_MARK).

        Raises `DialError` (UNREACHABLE) with a text that says what is missing.
        """


Announce = Callable[[str, Kind, float], None]
"""``announce(path name, kind, sent_at)``: a packet that ought to be answered just left this host.

The decider counts silence from then on, instead of from the probe's timeout.
"""


class Probe(Protocol):
    """One kind of measurement."""

    @property
    def kind(self) -> Kind:
        """What its samples are."""

    @property
    def cost_bytes(self) -> int:
        """Bytes on the line for one run, both ways, headers included; for the byte budget."""

    async def run(self, path: Path, *, timeout_s: float) -> Sequence[Sample]:
        """Measure ``path`` once. Network failures are samples; only bugs raise."""
