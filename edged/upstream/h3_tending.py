"""What an HTTP/3 connection needs while it has streams in flight: signs of life, and another line
made ready."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from edged.upstream.quic import PING_OF_NOBODY

if TYPE_CHECKING:
    from edged.upstream.h3_connection import H3Connection

TEND_S = 1.0
"""How long streams must be open until a move of the connection is prepared."""
KEEPALIVE_S = 10.0
"""Silence after which a connection with streams in flight is pinged, so that an origin that thinks
is not taken for a dead one; a third of the peer's idle timeout if that is less."""


class Tending:
    """The timer of one connection."""

    def __init__(self, connection: H3Connection) -> None:
        self._connection = connection
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """There is a stream in flight: tend the connection until there is none."""
        if self._timer is None:
            self._wait(min(TEND_S, self._patience_s()))

    def stop(self) -> None:
        """The connection is over."""
        if self._timer is not None:
            self._timer.cancel()

    def _due(self) -> None:
        connection = self._connection
        if not connection.in_flight:
            self._timer = None
            connection.migration.rest()
            return
        patience_s = self._patience_s()
        if monotonic() - connection.heard_at >= patience_s / 2:
            connection.engine.ping(PING_OF_NOBODY)
            connection.driver.touch()
        connection.migration.tend()
        self._wait(patience_s)

    def _patience_s(self) -> float:
        idle_timeout_s = self._connection.engine.peer_idle_timeout_s()
        return KEEPALIVE_S if idle_timeout_s is None else min(KEEPALIVE_S, idle_timeout_s / 3)

    def _wait(self, seconds: float) -> None:
        self._timer = self._connection.loop.call_later(seconds, self._due)
