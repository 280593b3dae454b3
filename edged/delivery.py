"""A coded response body on its way to a client that wants it plain.

Decoding may produce far more than came in, so it stops while the client is slow: what is decoded
lies in the client's write buffer, what is not stays coded, and the upstream is paused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from edged.compress import CodingError, Decoder
from edged.messages import Headers


class Decoding:
    """Coded bytes in, plain bytes to ``send``, then exactly one of ``ended`` and ``broken``."""

    __slots__ = (
        "_broken",
        "_decoder",
        "_ended",
        "_over",
        "_paused",
        "_pieces",
        "_send",
        "_waiting",
    )

    def __init__(
        self,
        decoder: Decoder,
        send: Callable[[bytes], None],
        ended: Callable[[Headers | None], None],
        broken: Callable[[str], None],
    ) -> None:
        self._decoder = decoder
        self._send = send
        self._ended = ended
        self._broken = broken
        self._paused = False
        self._over = False
        self._pieces: Iterator[bytes] | None = None
        self._waiting: deque[bytes | tuple[Headers | None]] = deque()

    def data(self, data: bytes) -> None:
        """Coded bytes came."""
        self._waiting.append(data)
        self._run()

    def end(self, trailers: Headers | None) -> None:
        """The coded body is complete."""
        self._waiting.append((trailers,))
        self._run()

    def pause(self) -> None:
        """The client is slow. May be called from inside ``send``."""
        self._paused = True

    def resume(self) -> None:
        """The client caught up."""
        self._paused = False
        self._run()

    def _run(self) -> None:
        try:
            while not (self._paused or self._over):
                if self._pieces is not None:
                    piece = next(self._pieces, None)
                    if piece is None:
                        self._pieces = None
                    else:
                        self._send(piece)
                elif not self._waiting:
                    return
                else:
                    self._take(self._waiting.popleft())
        except CodingError as error:
            self._over = True
            self._broken(str(error))

    def _take(self, item: bytes | tuple[Headers | None]) -> None:
        if isinstance(item, bytes):
            self._pieces = self._decoder.feed(item)
        else:
            self._decoder.finish()
            self._over = True
            self._ended(item[0])
