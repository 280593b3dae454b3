"""TCP connect: the round trip of SYN and SYN-ACK to the endpoint's own port.

It reaches the host that serves, crosses every firewall that requests cross, and is timed by the
kernel, so that a busy loop adds nothing to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from policies.model import Kind, Outcome, Path, Sample
from probes.base import Dialer, DialError


class TcpProbe:
    """Connects and closes at once, in the ordinary way (FIN)."""

    kind = Kind.TCP
    cost_bytes = 7 * 60
    """SYN, SYN-ACK, ACK and two FINs with their ACKs, over IPv4 with options or bare IPv6."""

    def __init__(self, dialer: Dialer, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._dialer = dialer
        self._clock = clock

    async def run(self, path: Path, *, timeout_s: float) -> Sequence[Sample]:
        """Connect once. A SYN that had to be repeated counts as a packet lost, not as a slow
        round trip: the wait for its repetition is the kernel's, not the path's."""
        endpoint = path.endpoint
        sent_at = self._clock()
        try:
            dialed = await self._dialer.connect_tcp(
                path.line,
                endpoint.host,
                endpoint.port,
                address=endpoint.address,
                timeout_s=timeout_s,
            )
        except DialError as error:
            if error.outcome is Outcome.LOCAL:
                return ()
            return (Sample(path.name, Kind.TCP, sent_at, None, error.outcome),)
        dialed.sock.close()
        return (
            Sample(
                path.name,
                Kind.TCP,
                sent_at + dialed.dns_s,
                dialed.rtt_s if dialed.rtt_s is not None or dialed.syn_lost else dialed.connect_s,
                packets_sent=1 + dialed.syn_lost,
                packets_lost=dialed.syn_lost,
            ),
        )
