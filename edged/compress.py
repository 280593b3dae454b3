"""Content codings on the long leg: negotiation and streaming codecs (RFC 9110 section 8.4, 12.5.3).

edged asks upstreams for the codings it can decode, whatever the client asked for, and decodes for
a client that did not. Codings are those of the IANA registry: ``zstd`` (RFC 8878), ``br``
(RFC 7932), ``gzip`` (RFC 1952).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

import brotli
import zstandard

from edged.messages import Headers, RequestHead, ResponseHead, header

CODINGS = ("zstd", "br", "gzip")
"""What edged encodes and decodes, best first."""
ACCEPT_ENCODING = b"zstd, br, gzip"

_MAX_WINDOW_BYTES = 8 << 20  # RFC 8878, 3.1.1.1.2: what a decoder should support, and no more
_MIN_SLICE_BYTES = 64
_MAX_SLICE_BYTES = 16 << 10
_BOMB_RATIO = 64  # expansion above which input goes in by the smallest slices
_MAX_STEP_BYTES = 1 << 20

_MOST_BROTLI = 8  # 9 takes ten times as long for a thousandth less
_MOST_GZIP = 9

_ENCODED_MEDIA = (b"image/", b"video/", b"audio/", b"font/woff")
_ENCODED_TYPES = frozenset(
    {
        b"application/zip",
        b"application/gzip",
        b"application/zstd",
        b"application/x-xz",
        b"application/x-bzip2",
        b"application/x-7z-compressed",
        b"application/pdf",
    }
)


class CodingError(Exception):
    """A coded body is corrupt, or ended before its end mark."""


class Decoder(Protocol):
    """Removes one content coding from a stream of bytes."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decoded pieces of at most about 1 MiB. Raises `CodingError`."""

    def finish(self) -> None:
        """Raises `CodingError` unless the coded body ended where a body may end."""


class Encoder(Protocol):
    """Applies one content coding to a stream of bytes."""

    def feed(self, data: bytes) -> bytes:
        """Coded bytes ready to go (may be empty)."""

    def finish(self) -> bytes:
        """The rest."""


class ZstdDecoder:
    """A zstd block of four bytes can stand for 128 KiB, and the library has no output limit per
    call: input goes in by slices that grow only while they do not expand much.
    """

    def __init__(
        self, dictionary: bytes | None = None, *, max_window_bytes: int = _MAX_WINDOW_BYTES
    ) -> None:
        """``dictionary``: the raw content that the encoder had as its past."""
        raw = None
        if dictionary:
            kind = zstandard.DICT_TYPE_RAWCONTENT
            raw = zstandard.ZstdCompressionDict(dictionary, dict_type=kind)
        self._context = zstandard.ZstdDecompressor(dict_data=raw, max_window_size=max_window_bytes)
        self._frame = self._context.decompressobj()
        self._inside = False
        self._slice_bytes = _MIN_SLICE_BYTES

    def feed(self, data: bytes) -> Iterator[bytes]:
        start = 0
        while start < len(data):
            stop = start + self._slice_bytes
            rest = data[start:stop]
            start = stop
            produced = 0
            while rest:
                if self._frame.eof:
                    self._frame = self._context.decompressobj()
                try:
                    out = self._frame.decompress(rest)
                except zstandard.ZstdError as error:
                    raise CodingError(f"corrupt zstd body: {error}") from None
                self._inside = not self._frame.eof
                rest = self._frame.unused_data if self._frame.eof else b""
                produced += len(out)
                if out:
                    yield out
            if produced > _BOMB_RATIO * self._slice_bytes:
                self._slice_bytes = _MIN_SLICE_BYTES
            elif self._slice_bytes < _MAX_SLICE_BYTES:
                self._slice_bytes *= 2

    def finish(self) -> None:
        if self._inside:
            raise CodingError("zstd body ended inside a frame")


class _GzipDecoder:
    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self._inside = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        rest = data
        while rest:
            if self._member.eof:
                self._member = zlib.decompressobj(wbits=31)
            try:
                out = self._member.decompress(rest, _MAX_STEP_BYTES)
            except zlib.error as error:
                raise CodingError(f"corrupt gzip body: {error}") from None
            self._inside = not self._member.eof
            rest = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            if out:
                yield out

    def finish(self) -> None:
        if self._inside:
            raise CodingError("gzip body ended inside a member")


class _BrotliDecoder:
    def __init__(self) -> None:
        self._state = brotli.Decompressor()
        self._started = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        if not data:
            return
        if self._started and self._state.is_finished():
            raise CodingError("bytes after the end of a br body")
        self._started = True
        pending = data
        while True:
            try:
                out = self._state.process(pending, output_buffer_limit=_MAX_STEP_BYTES)
            except brotli.error as error:
                raise CodingError(f"corrupt br body: {error}") from None
            if out:
                yield out
            if self._state.is_finished():
                return
            if self._state.can_accept_more_data() and len(out) < _MAX_STEP_BYTES:
                return
            pending = b""

    def finish(self) -> None:
        if self._started and not self._state.is_finished():
            raise CodingError("br body ended before its last block")


def decoder(coding: str) -> Decoder:
    """A decoder for one of `CODINGS`. Raises `KeyError` for others."""
    return _DECODERS[coding]()


_DECODERS: dict[str, type[ZstdDecoder] | type[_GzipDecoder] | type[_BrotliDecoder]] = {
    "zstd": ZstdDecoder,
    "br": _BrotliDecoder,
    "gzip": _GzipDecoder,
    "x-gzip": _GzipDecoder,
}


class _ZlibEncoder:
    def __init__(self, level: int) -> None:
        self._state = zlib.compressobj(min(level, _MOST_GZIP), zlib.DEFLATED, 31)

    def feed(self, data: bytes) -> bytes:
        return self._state.compress(data)

    def finish(self) -> bytes:
        return self._state.flush()


class _BrotliEncoder:
    def __init__(self, level: int) -> None:
        self._state = brotli.Compressor(quality=min(level, _MOST_BROTLI))

    def feed(self, data: bytes) -> bytes:
        out: bytes = self._state.process(data)
        return out

    def finish(self) -> bytes:
        out: bytes = self._state.finish()
        return out


class _ZstdEncoder:
    def __init__(self, level: int, size: int | None) -> None:
        parameters = zstandard.ZstdCompressionParameters.from_level(level, source_size=size or 0)
        compressor = zstandard.ZstdCompressor(compression_params=parameters)
        self._state = compressor.compressobj()

    def feed(self, data: bytes) -> bytes:
        return self._state.compress(data)

    def finish(self) -> bytes:
        return self._state.flush()


def encoder(coding: str, level: int, size: int | None = None) -> Encoder:
    """An encoder for one of `CODINGS` at ``level`` (zstd's scale, 1 to 11). ``size``: the bytes to
    come, if they are known; a short body then needs no tables for a long one.
    """
    if coding == "zstd":
        return _ZstdEncoder(level, size)
    if coding == "br":
        return _BrotliEncoder(level)
    return _ZlibEncoder(level)


@lru_cache(maxsize=256)
def accepted_codings(value: bytes | None) -> frozenset[str]:
    """The codings of `CODINGS` that a client with this Accept-Encoding takes.

    Without the field RFC 9110 permits any coding, but clients that send none rarely decode one:
    they get the plain body.
    """
    if value is None:
        return frozenset()
    weights: dict[str, float] = {}
    for item in value.decode("latin-1").lower().split(","):
        name, _, parameters = item.strip().partition(";")
        key, _, weight = parameters.strip().partition("=")
        try:
            weights[name.strip()] = float(weight) if key.strip() == "q" else 1.0
        except ValueError:
            weights[name.strip()] = 0.0
    if "x-gzip" in weights:
        weights.setdefault("gzip", weights["x-gzip"])
    default = weights.get("*", 0.0)
    return frozenset(c for c in CODINGS if weights.get(c, default) > 0)


def response_decoder(head: ResponseHead, client_accepts: frozenset[str]) -> Decoder | None:
    """What must decode this response before the client gets it, or ``None`` to pass it untouched.

    Only for answers to requests whose Accept-Encoding edged replaced. Rewrites ``head`` for the
    decoded representation: no Content-Encoding, unknown length, weak entity tag.
    """
    coding = header(head.headers, b"content-encoding")
    if coding is None or head.status in (206, 304) or head.body_length == 0:
        return None
    name = coding.decode("latin-1").strip().lower()
    if name not in _DECODERS or name.removeprefix("x-") in client_accepts:
        return None
    fields: Headers = []
    for key, value in head.headers:
        if key in (b"content-encoding", b"content-md5", b"digest", b"content-digest"):
            continue
        if key == b"etag" and not value.startswith(b"W/"):
            value = b"W/" + value
        fields.append((key, value))
    head.headers = fields
    head.body_length = None
    return _DECODERS[name]()


def request_coding(head: RequestHead, accepts: tuple[str, ...], min_bytes: int) -> str | None:
    """The coding for this request's body to an endpoint that accepts ``accepts``, or ``None``.

    Not for short, already coded or already compressed bodies, nor against no-transform.
    """
    length = head.body_length
    if not accepts or (length is not None and length < min_bytes):
        return None
    for name, value in head.headers:
        if name in (b"content-encoding", b"content-range", b"content-digest", b"digest"):
            return None
        if name == b"cache-control" and b"no-transform" in value.lower():
            return None
        if name == b"content-type" and _is_encoded_media(value):
            return None
    return next((coding for coding in accepts if coding in CODINGS), None)


def _is_encoded_media(content_type: bytes) -> bool:
    kind = content_type.partition(b";")[0].strip().lower()
    return (kind.startswith(_ENCODED_MEDIA) and kind != b"image/svg+xml") or kind in _ENCODED_TYPES
