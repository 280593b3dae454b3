"""Content codings as the origin uses them, written apart from edged's own so that each checks the
other: streaming encoders that can flush, and streaming decoders."""

from __future__ import annotations

import zlib
from typing import Protocol

import brotli
import zstandard

CODINGS = ("zstd", "br", "gzip")


class Encoder(Protocol):
    """One response body's encoder."""

    def encode(self, data: bytes, *, flush: bool) -> bytes:
        """Encoded bytes; with ``flush`` all that came so far can be decoded."""

    def finish(self) -> bytes:
        """The rest."""


class _Zstd:
    def __init__(self) -> None:
        self._it = zstandard.ZstdCompressor(level=3).compressobj()

    def encode(self, data: bytes, *, flush: bool) -> bytes:
        out = self._it.compress(data)
        return out + self._it.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) if flush else out

    def finish(self) -> bytes:
        return self._it.flush()


class _Brotli:
    def __init__(self) -> None:
        self._it = brotli.Compressor(quality=4)

    def encode(self, data: bytes, *, flush: bool) -> bytes:
        out = self._it.process(data)
        return bytes(out + self._it.flush() if flush else out)

    def finish(self) -> bytes:
        return bytes(self._it.finish())


class _Gzip:
    def __init__(self) -> None:
        self._it = zlib.compressobj(6, zlib.DEFLATED, 31)

    def encode(self, data: bytes, *, flush: bool) -> bytes:
        out = self._it.compress(data)
        return out + self._it.flush(zlib.Z_SYNC_FLUSH) if flush else out

    def finish(self) -> bytes:
        return self._it.flush()


_ENCODERS: dict[str, type[Encoder]] = {"zstd": _Zstd, "br": _Brotli, "gzip": _Gzip}


def negotiate(accept_encoding: str) -> str | None:
    """The coding to answer with, by q-value and then by our order (RFC 9110, 12.5.3)."""
    best: tuple[float, int] | None = None
    chosen = None
    for item in accept_encoding.split(","):
        name, _, parameters = item.strip().partition(";")
        weight = 1.0
        if parameters.strip().startswith("q="):
            try:
                weight = float(parameters.strip()[2:])
            except ValueError:
                continue
        name = name.strip().lower()
        if weight > 0 and name in CODINGS:
            rank = (weight, -CODINGS.index(name))
            if best is None or rank > best:
                best, chosen = rank, name
    return chosen


def encoder(name: str) -> Encoder:
    """A fresh encoder. Raises `KeyError` for an unknown coding."""
    return _ENCODERS[name]()


class Decoder(Protocol):
    """One request body's decoder."""

    def decode(self, data: bytes) -> bytes:
        """Plain bytes. Raises `ValueError` when broken."""

    def finish(self) -> None:
        """Raises `ValueError` when the body was cut short."""


class _Unzstd:
    def __init__(self) -> None:
        self._it = zstandard.ZstdDecompressor().decompressobj()

    def decode(self, data: bytes) -> bytes:
        try:
            return self._it.decompress(data)
        except zstandard.ZstdError as error:
            raise ValueError("broken zstd body") from error

    def finish(self) -> None:
        if not self._it.eof:
            raise ValueError("zstd body cut short")


class _Unbrotli:
    def __init__(self) -> None:
        self._it = brotli.Decompressor()

    def decode(self, data: bytes) -> bytes:
        try:
            return bytes(self._it.process(data))
        except brotli.error as error:
            raise ValueError("broken br body") from error

    def finish(self) -> None:
        if not self._it.is_finished():
            raise ValueError("br body cut short")


class _Ungzip:
    def __init__(self) -> None:
        self._it = zlib.decompressobj(31)

    def decode(self, data: bytes) -> bytes:
        try:
            return self._it.decompress(data)
        except zlib.error as error:
            raise ValueError("broken gzip body") from error

    def finish(self) -> None:
        if not self._it.eof:
            raise ValueError("gzip body cut short")


_DECODERS: dict[str, type[Decoder]] = {"zstd": _Unzstd, "br": _Unbrotli, "gzip": _Ungzip}


def decoder(name: str) -> Decoder:
    """A fresh decoder. Raises `KeyError` for an unknown coding."""
    return _DECODERS[name]()
