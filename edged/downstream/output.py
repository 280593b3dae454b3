"""Writing to a client with as few calls as possible, and never later than this loop turn."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from edged.downstream.hub import Hub

_LARGE: Final = 16384


class HeldOutput(asyncio.Protocol):
    """A protocol that joins what it writes: a small response leaves in one call.

    While ``_corked`` (inside a parser callback) everything waits for the callback's end. Else a
    head waits for the first body bytes or the end of the loop turn; what follows leaves at once.
    """

    __slots__ = ("_corked", "_hub", "_transport", "held")

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # until made
        self._corked = False
        self.held: list[bytes] = []
        """What waits to be written."""

    @property
    def transport(self) -> asyncio.Transport:
        """Where it writes to."""
        return self._transport

    def write_now(self, data: bytes) -> None:
        """Write, together with what is held; within a parser callback, when that returns."""
        held = self.held
        if not held and not self._corked:
            self._transport.write(data)
            return
        held.append(data)
        if len(data) >= _LARGE:
            self.flush()

    def write_many(self, parts: Sequence[bytes]) -> None:
        """Write large pieces without joining them."""
        if self.held:
            self.flush()
        self._transport.writelines(parts)

    def hold(self, data: bytes) -> None:
        """Write at the latest at the end of this loop turn."""
        self.held.append(data)
        if not self._corked:
            holding = self._hub.holding
            if not holding:  # one callback for all who hold something in this turn
                self._hub.loop.call_soon(self._hub.flush)
            holding.append(self)

    def flush(self) -> None:
        """Write what is held, of which there is some, at once."""
        held = self.held
        self._transport.write(b"".join(held))
        held.clear()
