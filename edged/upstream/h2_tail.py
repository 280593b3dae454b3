"""A PING behind what would be alone on its way, so that a loss shows after a round trip.

A sender learns that a packet was lost from what arrives after it (RFC 8985). A small request or
response is often the last thing on its connection for a while: then only the retransmission timer
tells, 200 ms and more beyond a round trip. On a path that loses packets a PING follows `TAIL_S`
after the last bytes: its segment shows the loss of the request, and its answer, unless the server
thinks for longer, that of the response. As with RFC 8985's own probe, one follows each silence.

A PING or its answer may be lost as well, and would hold up whatever comes next on the connection:
until it is answered the connection is not settled, and others are taken first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from policies.carriers import TAIL_S

TAIL_DATA = b"edged\0\0\0"
"""Of a PING whose answer nobody waits for."""


class Tail:
    """The timer of one connection."""

    __slots__ = ("_loop", "_send", "_timer", "_wrote_at", "unanswered", "wanted")

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Callable[[], None]) -> None:
        """``send`` writes a PING with `TAIL_DATA` if any stream is open."""
        self.wanted = False
        """The path loses packets."""
        self.unanswered = 0
        """PINGs sent and not answered."""
        self._loop = loop
        self._send = send
        self._timer: asyncio.TimerHandle | None = None
        self._wrote_at = 0.0

    def wrote(self) -> None:
        """Bytes of requests left."""
        self._wrote_at = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(TAIL_S, self._due)

    def stop(self) -> None:
        """The connection is over: it is not referred to any more."""
        self._send = _nothing
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        left_s = self._wrote_at + TAIL_S - self._loop.time()
        if left_s > TAIL_S / 10:
            self._timer = self._loop.call_later(left_s, self._due)
        else:
            self._timer = None
            self._send()


def _nothing() -> None:
    """Of a connection that is over."""
