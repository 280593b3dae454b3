"""HTTP datagrams (RFC 9297): what those can and take besides who run on h3. They may be lost, and
overtake or follow anything.

This module is left out where the hot ones are compiled: mypyc checks no protocols at run time.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Messenger(Protocol):
    """A `Responder` that can send them."""

    def message(self, data: bytes, *, spare: bool = False) -> bool:
        """Send one about the request, of at most `edged.quic.MESSAGE_BYTES`; False: it cannot leave
        now. ``spare``: it is to leave only if much more could.
        """


@runtime_checkable
class MessageEvents(Protocol):
    """`StreamEvents` that take them."""

    def message(self, data: bytes) -> None:
        """One came about the stream, any time between ``stream_ready`` and the end."""
