"""Small pieces of a response once more, as datagrams: what a stream cannot do for a token stream.

On a stream a lost packet holds up all that follow until it was sent again, which takes a round trip
and more. A datagram (RFC 9221) holds up nothing. So whoever asks for it (`wire.REPEAT`, over h3)
gets a piece and the last ones before it that were not acknowledged yet as datagrams, too: in the
packet that has the piece on its stream, so that what was lost before holds up nothing, and in
another one a moment later. A gap then takes several losses in a row.

They count against the congestion window, which on a line with loss is a few packets, and all flows
of the connection share it. So they are small, what finds no room is tried again, and a second one
leaves only where there is room to spare.

A datagram is a byte of flags, the offset of its first byte as a variable-length integer, and bytes.
Flag 1: the response is complete with the last of them, and has no trailers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from edged.datagrams import Messenger
from edged.quic import MESSAGE_BYTES
from edged.upstream.h3_frames import read_varint, varint

if TYPE_CHECKING:
    from edged.relay.pulse import Timer
    from edged.relay.visit import Visit

AFTER_S = 0.01
"""Between datagrams: what is lost in a row is mostly lost within less, and what comes later is
felt."""
SENDS, TRIES = 2, 5
"""Of a piece: datagrams that leave, and those that are tried."""
PIECES = 3
"""In a datagram at most; those that came fast after one another count as one."""
_BYTES = MESSAGE_BYTES - 9
_COMPLETE = 1


class Repeat(NamedTuple):
    """What a datagram says."""

    offset: int
    data: bytes
    complete: bool
    """The response ends here."""

    def encode(self) -> bytes:
        """As a datagram."""
        return bytes((_COMPLETE if self.complete else 0,)) + varint(self.offset) + self.data

    @classmethod
    def decode(cls, message: bytes) -> Repeat | None:
        """``None``: it is none."""
        offset, at = read_varint(message, 1)
        return None if offset < 0 else cls(offset, message[at:], message[0] == _COMPLETE)


class Repeats:
    """The repeats of what one visit passes on. ``later(delay_s, call)`` arms a timer."""

    __slots__ = (
        "_begins",
        "_fresh",
        "_later",
        "_messenger",
        "_sends",
        "_timer",
        "_tries",
        "_visit",
    )

    def __init__(
        self,
        visit: Visit,
        messenger: Messenger,
        later: Callable[[float, Callable[[], None]], Timer],
    ) -> None:
        self._visit = visit
        self._messenger = messenger
        self._later = later
        self._begins: deque[int] = deque((0,), maxlen=PIECES)
        """Offsets of the last pieces."""
        self._fresh = 0
        """Bytes passed on since the last datagram."""
        self._sends = 0
        self._tries = 0
        self._timer: Timer | None = None

    def passed(self, size: int) -> None:
        """The visit has passed on bytes, or (0) the end."""
        self._fresh += size
        self._sends, self._tries = SENDS, TRIES
        if self._timer is None:
            self._send()

    def stop(self) -> None:
        """Nobody wants them any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send(self) -> None:
        self._timer = None
        visit = self._visit
        flow = visit.flow
        end = visit.offset
        fresh, self._fresh = self._fresh, 0
        if fresh:
            self._begins.append(end - fresh)
        if fresh > _BYTES or visit.slow or not flow.kept:
            return
        offset = max(flow.journal.start, end - _BYTES, self._begins[0])
        data = b""
        while offset + len(data) < end:
            data += flow.journal.read(offset + len(data), end - offset - len(data))
        message = Repeat(offset, data, flow.ends_plainly and end == flow.journal.end).encode()
        flow.ledger.spend(len(message), flow.flows.clock())
        self._tries -= 1
        self._sends -= self._messenger.message(message, spare=self._sends < SENDS)
        if self._sends and self._tries:
            self._timer = self._later(AFTER_S, self._send)
