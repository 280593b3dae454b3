"""What the connections of one listener share: the handler, the limits, counters, one coarse clock.

No connection owns a timer. Each states in ``deadline`` when it wants to be looked at, in the hub's
coarse time; one sweep per interval asks those whose time has come.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from edged.downstream.base import Handler
from edged.downstream.fields import TLS_SPOKEN, BadMessage
from edged.downstream.limits import Limits
from edged.headers import error_response
from edged.messages import ResponseHead

_log = logging.getLogger("edged.downstream")

NEVER: Final = float("inf")
SWEEP_S: Final = 0.5
TLS_TOLD_S: Final = 60.0
"""How often it is logged at most that clients speak TLS."""


class Connection(Protocol):
    """A client connection as the hub sees it."""

    deadline: float

    def expired(self, now: float) -> None:
        """``deadline`` has passed: cut, or set another."""

    def drain(self) -> None:
        """Finish what is in flight, take nothing new."""

    def kill(self) -> None:
        """Close at once; what is in flight breaks visibly."""


class Holding(Protocol):
    """Who holds bytes back until the end of a loop turn."""

    held: list[bytes]

    def flush(self) -> None:
        """Write them."""


def explained(error: BadMessage, hint: str) -> tuple[ResponseHead, bytes]:
    """An answer that says what is wrong and what to do."""
    return error_response(
        error.status, error.code, error.message, hint, proxy_error="http_request_error"
    )


class Hub:
    """Shared by a listener's connections. Counters are plain ints, read by whoever reports."""

    __slots__ = (
        "_timer",
        "connections",
        "connections_refused",
        "connections_total",
        "draining",
        "handler",
        "holding",
        "limits",
        "loop",
        "now",
        "on_empty",
        "refusal",
        "requests_bad",
        "requests_open",
        "requests_total",
        "tls_told_at",
    )

    def __init__(
        self, handler: Handler, limits: Limits, loop: asyncio.AbstractEventLoop, now: float = 0.0
    ) -> None:
        self.handler = handler
        self.limits = limits
        self.loop = loop
        self.now = now
        """Time of the last sweep: at most `SWEEP_S` behind (more only when the loop lags)."""
        self.connections: set[Connection] = set()
        self.connections_total = 0
        self.connections_refused = 0
        self.requests_total = 0
        self.requests_open = 0
        self.requests_bad = 0
        self.draining = False
        self.refusal = explained
        """How a request is answered that cannot be understood."""
        self.on_empty: Callable[[], None] | None = None
        self.holding: list[Holding] = []
        """Who holds bytes back: flushed together at the end of this loop turn."""
        self._timer: asyncio.TimerHandle | None = None
        self.tls_told_at = -TLS_TOLD_S

    def start(self) -> None:
        """Begin to sweep."""
        self.now = self.loop.time()
        self._timer = self.loop.call_later(SWEEP_S, self._tick)

    def stop(self) -> None:
        """Sweep no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = self.loop.call_later(SWEEP_S, self._tick)
        self.sweep(self.loop.time())

    def sweep(self, now: float) -> None:
        """Ask every connection whose deadline has passed."""
        self.now = now
        for connection in [c for c in self.connections if c.deadline <= now]:
            connection.expired(now)

    def note(self, error: BadMessage) -> None:
        """A request could not be understood. Who speaks TLS cannot read the answer: the log can."""
        if error.code == TLS_SPOKEN and self.now - self.tls_told_at >= TLS_TOLD_S:
            self.tls_told_at = self.now
            _log.warning("a client was refused: %s", error.message)

    def flush(self) -> None:
        """Write what is held back."""
        holding = self.holding
        self.holding = []
        try:
            while holding:
                connection = holding.pop()
                if connection.held:
                    connection.flush()
        finally:
            if holding:  # a defect of one must not keep the others waiting
                self.holding += holding
                self.loop.call_soon(self.flush)

    def admit(self, connection: Connection) -> bool:
        """Count a new connection, or refuse it (limit reached, or draining)."""
        self.connections_total += 1
        if self.draining or len(self.connections) >= self.limits.connections:
            self.connections_refused += 1
            return False
        self.connections.add(connection)
        return True

    def replace(self, old: Connection, new: Connection) -> None:
        """The same client goes on under another protocol."""
        self.connections.discard(old)
        self.connections.add(new)

    def leave(self, connection: Connection) -> None:
        """A connection is closed."""
        self.connections.discard(connection)
        if not self.connections and self.on_empty is not None:
            self.on_empty()
