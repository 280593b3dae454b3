"""What a client's and a server's connection on `qh3` have in common.

qh3's `QuicConnection` turns every event of its Rust core into an object as soon as a datagram
arrives; taking the core's own tuples when they are wanted saves that, and is what gives credit (see
`edged.upstream.quic_engines`). Whatever is not plain traffic is handed back to `QuicConnection`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from qh3.quic.connection import QuicConnection, QuicConnectionError

from edged.quic import message_fits
from edged.upstream.engines import EngineError

Broken = (QuicConnectionError, RuntimeError, ValueError)
"""What the core raises when a connection cannot go on."""


def demand_core() -> None:
    """Raises `EngineError` before qh3 2.1, which has no core to drive."""
    if not hasattr(QuicConnection, "_drain_core"):
        raise EngineError("qh3 is too old for QUIC here: pip install 'qh3>=2.1'")


class _OneEvent:
    """A core whose queue holds one event: lets `QuicConnection` handle just that one."""

    def __init__(self, core: Any, event: tuple[Any, ...]) -> None:
        self._core = core
        self._event: tuple[Any, ...] | None = event

    def next_event(self) -> tuple[Any, ...] | None:
        event, self._event = self._event, None
        return event

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)


class Streams:
    """The part of an engine that concerns one event or one stream at a time."""

    _quic: Any
    _core: Any
    """The native core once the handshake is complete; it is never replaced after that."""
    exact_credit = False

    def _hand_back(self, event: tuple[Any, ...]) -> None:
        """Let `QuicConnection` make what it likes of an event of the core."""
        self._quic._core = _OneEvent(self._core, event)
        try:
            self._quic._drain_core()
        finally:
            self._quic._core = self._core

    def _send(self, stream_id: int, data: bytes, fin: bool) -> None:
        if self._core is None:
            with suppress(QuicConnectionError):  # closed: its end is told soon
                self._quic.send_stream_data(stream_id, data, fin)
            return
        try:
            self._core.send_stream(stream_id, data, fin)
        except QuicConnectionError:
            return  # the same
        except (RuntimeError, ValueError):
            # A STOP_SENDING that came may not be told yet: the bytes have no taker.
            if self._core.can_send_stream(stream_id):
                raise

    def reset(self, stream_id: int, code: int) -> None:
        """RESET_STREAM, if the sending side is still open."""
        with suppress(QuicConnectionError):  # closed: its end is told soon
            if self._quic._stream_can_send(stream_id):
                self._quic.reset_stream(stream_id, code)

    def ping(self, uid: int) -> None:
        """PING, unless the connection is closed already and its end is only to be told."""
        with suppress(*Broken):
            self._quic.send_ping(uid)

    def stop(self, stream_id: int, code: int) -> None:
        """STOP_SENDING, if the receiving side is still open."""
        # The core refuses (ValueError) where all has arrived, which need not have been taken: then
        # there is nothing to stop.
        with suppress(QuicConnectionError, ValueError):
            self._quic.stop_stream(stream_id, code)

    def message(self, data: bytes, *, waiting: int, spare: bool) -> bool:
        """See `Engine.message`."""
        core = self._core
        if core is None:
            return False
        window, in_flight = core.congestion_window, core.bytes_in_flight
        if not message_fits(len(data), window, in_flight, waiting=waiting, spare=spare):
            return False
        try:
            core.send_datagram(data)
        except Broken:  # the peer takes none, or it is closed
            return False
        return True

    def unsent(self, stream_id: int) -> int:
        """Bytes queued on a stream that were never sent (flow control, congestion, pacing)."""
        unsent: int = (self._core or self._quic).get_send_buffer_size(stream_id)
        return unsent

    def hold(self, stream_id: int, held: bool) -> None:
        """Nothing to do: not taking events is what withholds credit."""
