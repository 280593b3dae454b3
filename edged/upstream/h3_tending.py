"""What an HTTP/3 connection needs while it has streams in flight: signs of life, and another line
made ready.

An origin that thinks is not silent: its server acknowledges a PING within a round trip. So where
none of several is answered over a line that is well, the server does not know the connection: it
was started anew (few send a stateless reset, RFC 9000 section 10.3, for which they would have to
keep a key). Others find a path that is DOWN, and a connection that moves has a patience of its own.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from edged.upstream.quic import PING_OF_NOBODY
from policies.model import Failure, Outcome

if TYPE_CHECKING:
    from edged.upstream.h3_connection import H3Connection

TEND_S = 1.0
"""How often it is looked at, and how long streams must be open until a move is prepared."""
ASK_S = 1.5
"""Silence after which it is asked, at each look."""
GONE_S = 5.0
"""Silence after which nobody is there: even where every tenth packet is lost one answer in eight
questions and what QUIC repeats of them comes."""
LEAST_ASKED = 3
"""A loop that stood still for as long has not asked."""


class Tending:
    """The timer of one connection."""

    def __init__(self, connection: H3Connection) -> None:
        self._connection = connection
        self._timer: asyncio.TimerHandle | None = None
        self._asked = 0
        """PINGs since it fell silent."""

    def begin(self) -> None:
        """There is a stream in flight: tend the connection until there is none."""
        if self._timer is None:
            self._wait(self._often_s())

    def stop(self) -> None:
        """The connection is over."""
        if self._timer is not None:
            self._timer.cancel()

    def _due(self) -> None:
        connection = self._connection
        if not connection.in_flight:
            self._timer = None
            self._asked = 0
            connection.migration.rest()
            return
        often_s = self._often_s()
        silent_s = monotonic() - connection.heard_at
        if silent_s < min(ASK_S, 1.5 * often_s) or connection.migration.moving:
            self._asked = 0
        elif silent_s >= GONE_S and self._asked >= LEAST_ASKED and self._is_gone():
            detail = f"the server does not know this connection: no answer for {silent_s:.1f} s"
            connection.close(Failure(Outcome.RESET, detail))
            return
        else:
            self._asked += 1
            connection.engine.ping(PING_OF_NOBODY)
            connection.driver.touch()
        connection.migration.tend()
        self._wait(often_s)

    def _is_gone(self) -> bool:
        """It is not the line, nor a handshake, which has a limit of its own."""
        return self._connection.ready.done() and self._connection.migration.line_is_up

    def _often_s(self) -> float:
        idle_timeout_s = self._connection.engine.peer_idle_timeout_s()
        return TEND_S if idle_timeout_s is None else min(TEND_S, idle_timeout_s / 3)

    def _wait(self, seconds: float) -> None:
        self._timer = self._connection.loop.call_later(seconds, self._due)
