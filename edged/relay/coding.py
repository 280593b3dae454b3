"""What is coded on the way between client and relay: request bodies in, response bodies out."""

from __future__ import annotations

from collections.abc import Callable

from edged.compress import CodingError, Decoder
from edged.delivery import Decoding
from edged.downstream.base import RequestSink
from edged.messages import Headers, ResponseHead, header
from edged.relay.dictionary import FlushingEncoder, Keeper
from edged.relay.journal import Share

LEAST_RESPONSE_BYTES = 512
_TEXT = (b"text/", b"application/json", b"application/javascript", b"application/xml")
_SUFFIXES = (b"+json", b"+xml")


class Inflow:
    """A coded request body on its way to the origin.

    ``broken(text)`` is called, once, if it cannot be decoded or is not as long as was said;
    ``keep(body)`` with the whole body, if there is room for that; ``count(plain, coded)`` with
    what passed.
    """

    __slots__ = (
        "_count",
        "_decoding",
        "_keep",
        "_keeper",
        "_length",
        "_share",
        "sink",
        "size",
    )

    def __init__(
        self,
        decoder: Decoder,
        length: int | None,
        broken: Callable[[str], None],
        share: Share,
        keep: Callable[[bytes], None] | None,
        count: Callable[[int, int], None],
    ) -> None:
        self.sink: RequestSink | None = None
        """The exchange, once it has begun."""
        self.size = 0
        """Bytes decoded so far."""
        self._length = length
        self._count = count
        self._share = share
        self._keep = keep
        self._keeper = Keeper() if keep is not None else None
        self._decoding: Decoding | None = Decoding(decoder, self._plain, self._ended, broken)

    def data(self, data: bytes) -> None:
        """Coded bytes."""
        if self._decoding is not None:
            self._count(0, len(data))
            self._decoding.data(data)

    def end(self, trailers: Headers | None) -> None:
        """They are complete."""
        if self._decoding is not None:
            self._decoding.end(trailers)

    def pause(self) -> None:
        """The origin takes no more for now."""
        if self._decoding is not None:
            self._decoding.pause()

    def resume(self) -> None:
        """It does again."""
        if self._decoding is not None:
            self._decoding.resume()

    def close(self) -> None:
        """Nobody wants the rest."""
        if self._decoding is not None:
            self._decoding.pause()
            self._decoding = None  # it calls us: a cycle would wait for the garbage collector
        self.sink = None
        self._drop()

    def _plain(self, piece: bytes) -> None:
        self.size += len(piece)
        self._count(len(piece), 0)
        if self._length is not None and self.size > self._length:
            raise CodingError(f"the body has more than the {self._length} bytes that were said")
        if self._keeper is not None:
            if self._share.room <= 0:
                self._drop()
            else:
                before = self._keeper.size
                self._keeper.add(piece)
                self._share.take(self._keeper.size - before)
        if self.sink is not None:
            self.sink.body(piece)

    def _ended(self, trailers: Headers | None) -> None:
        if self._length is not None and self.size != self._length:
            raise CodingError(f"the body has {self.size} bytes, not the {self._length} said")
        body = self._keeper.body() if self._keeper is not None else None
        self._drop()
        if body is not None and self._keep is not None:
            self._keep(body)
        if self.sink is not None:
            self.sink.body_end(trailers)

    def _drop(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            self._share.give(keeper.size)


def response_encoder(head: ResponseHead) -> FlushingEncoder | None:
    """What codes this response's body for the line, or ``None`` where that would not pay."""
    length = head.body_length
    if head.status in (101, 204, 206, 304) or (
        length is not None and length < LEAST_RESPONSE_BYTES
    ):
        return None
    if header(head.headers, b"content-encoding") is not None:
        return None
    kind = (header(head.headers, b"content-type") or b"").partition(b";")[0].strip().lower()
    if not (kind.startswith(_TEXT) or kind.endswith(_SUFFIXES)):
        return None
    if b"no-transform" in (header(head.headers, b"cache-control") or b"").lower():
        return None
    return FlushingEncoder()
