"""TCP connect: the round trip of SYN and SYN-ACK to the endpoint's own port.

It reaches the host that serves, crosses every firewall that requests cross, and is timed by the
kernel, so that a busy loop adds nothing to it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from policies.model import Kind, Outcome, Path, Sample
from probes.base import Announce, Dialed, Dialer, DialError

DNS_PATIENCE_S = 1.0
"""Not that of the connect, which suits the line: a dead name server delays an answer that is known
by more than that, and must not be held against the line."""


class TcpProbe:
    """Connects and closes at once, in the ordinary way (FIN)."""

    kind = Kind.TCP
    cost_bytes = 7 * 60
    """SYN, SYN-ACK, ACK and two FINs with their ACKs, over IPv4 with options or bare IPv6."""

    def __init__(
        self,
        dialer: Dialer,
        *,
        sent: Announce | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dialer = dialer
        self._sent = sent
        self._clock = clock

    async def run(self, path: Path, *, timeout_s: float) -> Sequence[Sample]:
        """Connect once. A SYN that had to be repeated counts as a packet lost, not as a slow
        round trip: the wait for its repetition is the kernel's, not the path's."""
        sent_at = self._clock()
        try:
            if path.endpoint.address is None:
                # The dialer keeps the answer, so that the connect below sends its SYN at once.
                await self._resolve(path)
                sent_at = self._clock()
            dialed = await self._connect(path, sent_at, timeout_s)
        except DialError as error:
            if error.outcome is Outcome.LOCAL:
                return ()
            return (Sample(path.name, Kind.TCP, sent_at, None, error.outcome, detail=error.detail),)
        dialed.sock.close()
        return (
            Sample(
                path.name,
                Kind.TCP,
                sent_at,
                dialed.rtt_s if dialed.rtt_s is not None or dialed.syn_lost else dialed.connect_s,
                packets_sent=1 + dialed.syn_lost,
                packets_lost=dialed.syn_lost,
            ),
        )

    async def _resolve(self, path: Path) -> None:
        try:
            async with asyncio.timeout(DNS_PATIENCE_S):
                await self._dialer.resolve(path.line, path.endpoint.host)
        except TimeoutError:
            raise DialError(Outcome.DNS, f"no address for {path.endpoint.host} in time") from None

    async def _connect(self, path: Path, sent_at: float, timeout_s: float) -> Dialed:
        endpoint = path.endpoint
        # In the next turn, when the SYN is out; not at all if there is none to wait for.
        announcement = (
            asyncio.get_running_loop().call_soon(self._sent, path.name, Kind.TCP, sent_at)
            if self._sent is not None
            else None
        )
        try:
            return await self._dialer.connect_tcp(
                path.line,
                endpoint.host,
                endpoint.port,
                address=endpoint.address,
                timeout_s=timeout_s,
            )
        finally:
            if announcement is not None:
                announcement.cancel()
