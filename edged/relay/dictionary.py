"""A conversation's next request as the difference from an earlier one. Both sides use it.

A request body is coded with zstd, an earlier body of the same conversation being the raw dictionary
(as ``dcz`` of RFC 9842). Dictionaries are named by their SHA-256; each side keeps the bodies that
went past it, by scope: a word that the client makes of (client key, upstream), so that no body ever
helps to code, or to guess, one of another key. A name that the relay does not know costs one
resend.

Of a conversation only the last body matters. One that its successor repeats goes to the cold end of
the store on both sides, so that 64 MB hold the last bodies of as many conversations as fit, and not
the history of a few.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator

import zstandard

from edged.compress import CodingError, Decoder, ZstdDecoder

STORE_BYTES = 64 << 20
LEAST_BYTES = 2 << 10
"""A shorter body is neither coded nor kept: it would not pay."""
MOST_BYTES = 4 << 20
"""A longer one is not kept."""
AT_LEISURE_BYTES = 256 << 10
FAST_LEVEL = 3
LARGE_BYTES = 1 << 20
"""Bodies above it (pictures in them, mostly) are coded with `encode_large`: to load a dictionary of
4 MB takes 20 ms."""
AROUND_BYTES = 64 << 10
_STEP_BYTES = 64 << 10
_PIECE_BYTES = 256 << 10
WINDOW_BYTES = 16 << 20
_WINDOW_LOGS = range(10, 25)
_STREAM = zstandard.ZstdCompressionParameters.from_level(
    1, window_log=15, hash_log=12, chain_log=12, write_content_size=False
)
"""A context of some 100 KB, so that thousands of streams can have one each; events of a token
stream shrink to a twelfth with it, as with ten times the memory."""


def name_of(body: bytes) -> bytes:
    """What a body is called as a dictionary."""
    return hashlib.sha256(body).digest()


class Store:
    """Bodies by scope and name; the least recently used go when there are too many bytes."""

    __slots__ = ("_bodies", "_library", "limit_bytes", "used_bytes")

    def __init__(
        self, limit_bytes: int = STORE_BYTES, library: Callable[[], None] | None = None
    ) -> None:
        """``library`` sees to the limit, if it is that of several stores."""
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._library = library
        self._bodies: OrderedDict[tuple[bytes, bytes], bytes] = OrderedDict()

    def peek(self, scope: bytes, name: bytes) -> bytes | None:
        """The body of this name, if it is kept in this very scope."""
        return self._bodies.get((scope, name))

    def get(self, scope: bytes, name: bytes) -> bytes | None:
        """The same, and it was used."""
        body = self._bodies.get((scope, name))
        if body is not None:
            self._bodies.move_to_end((scope, name))
        return body

    def put(self, scope: bytes, body: bytes, past: bytes | None = None) -> bytes | None:
        """Keep ``body``; its name, or ``None`` for one that is too short or too long. ``past``: the
        name of the body that it was coded with, which will not be used again if this repeats it.
        """
        if not LEAST_BYTES <= len(body) <= min(MOST_BYTES, self.limit_bytes):
            return None
        key = (scope, name_of(body))
        if key not in self._bodies:
            self.used_bytes += len(body)
            self._bodies[key] = body
        self._bodies.move_to_end(key)
        if past is not None and past != key[1]:
            old = self._bodies.get((scope, past))
            if old is not None and repeats(body, old):
                self._bodies.move_to_end((scope, past), last=False)
        self._shrink()
        return key[1]

    def _shrink(self) -> None:
        if self._library is not None:
            self._library()
            return
        while self.used_bytes > self.limit_bytes:
            self.drop_oldest()

    def drop_oldest(self) -> tuple[bytes, bytes]:
        """The least recently used goes; its scope and name."""
        key, gone = self._bodies.popitem(last=False)
        self.used_bytes -= len(gone)
        return key

    def forget(self, scope: bytes, name: bytes) -> None:
        """The other side does not know it, and so has dropped what was used before it, too."""
        if (scope, name) in self._bodies:
            while self.drop_oldest() != (scope, name):
                pass

    def clear(self) -> None:
        """The other side knows nothing."""
        self._bodies.clear()
        self.used_bytes = 0


class Library:
    """The stores of several clients, within one limit: who holds most gives up first, so that none
    can drive out what belongs to others.
    """

    __slots__ = ("_stores", "limit_bytes")

    def __init__(self, limit_bytes: int = STORE_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._stores: list[Store] = []

    @property
    def used_bytes(self) -> int:
        """What all of them hold."""
        return sum(store.used_bytes for store in self._stores)

    def store(self) -> Store:
        """One more."""
        store = Store(self.limit_bytes, self._shrink)
        self._stores.append(store)
        return store

    def discard(self, store: Store) -> None:
        """Its client is gone."""
        self._stores.remove(store)

    def resize(self, limit_bytes: int) -> None:
        """Use another limit."""
        self.limit_bytes = limit_bytes
        for store in self._stores:
            store.limit_bytes = limit_bytes
        self._shrink()

    def _shrink(self) -> None:
        excess = self.used_bytes - self.limit_bytes
        while excess > 0:
            largest = max(self._stores, key=lambda store: store.used_bytes)
            before = largest.used_bytes
            largest.drop_oldest()
            excess -= before - largest.used_bytes


def repeats(body: bytes, old: bytes) -> bool:
    """Whether ``body`` has all but the end of ``old``, and can stand for it as a dictionary."""
    return 4 * common_prefix(body, old) >= 3 * len(old)


def common_prefix(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    low, end = 0, min(len(one), len(other))
    while low < end and one[low : low + _STEP_BYTES] == other[low : low + _STEP_BYTES]:
        low += _STEP_BYTES
    if low >= end:
        return end
    high = min(low + _STEP_BYTES, end)
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def encode(body: bytes, dictionary: bytes | None, level: int = 6) -> bytes:
    """``body`` as a zstd frame, with ``dictionary`` as its past. It is coded faster than at
    ``level`` if so much is new that it would hold up everybody else, and if there is a past: most
    of the time goes into that then, and level 6 takes twice as long as 3 for 6% fewer bytes.
    """
    past = dictionary or b""
    new = len(body) - common_prefix(body, past)
    if past or new > AT_LEISURE_BYTES:
        level = min(level, FAST_LEVEL if new <= LARGE_BYTES else 1)
    window = next((log for log in _WINDOW_LOGS if 1 << log >= len(past) + len(body)), 24)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        source_size=len(past) + len(body),
        window_log=window,
        write_checksum=True,
    )
    raw = zstandard.ZstdCompressionDict(past, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    compressor = zstandard.ZstdCompressor(
        dict_data=raw if past else None, compression_params=parameters
    )
    coded: bytes = compressor.compress(body)
    return coded


def encode_large(body: bytes, dictionary: bytes, level: int) -> tuple[bytes, int]:
    """``body`` without the beginning that it shares with ``dictionary``, as a zstd frame; and how
    long that is. Its time depends on what is new, and hardly on all the rest.
    """
    prefix = common_prefix(body, dictionary)
    assert prefix, "they have nothing in common"
    return encode(body[prefix:], _around(dictionary, prefix), level), prefix


def _around(dictionary: bytes, prefix: int) -> bytes:
    """The past of what follows ``prefix`` bytes of ``dictionary``."""
    return dictionary[max(0, prefix - AROUND_BYTES) : prefix + AROUND_BYTES]


def decoder(dictionary: bytes | None, prefix: int = 0) -> Decoder:
    """What `encode` with the same dictionary is undone by; with a ``prefix``, `encode_large`."""
    if dictionary is None or not prefix:
        return ZstdDecoder(dictionary, max_window_bytes=WINDOW_BYTES)
    return _AfterPrefix(dictionary, prefix)


class _AfterPrefix:
    """The beginning of a dictionary, and then what a frame says."""

    __slots__ = ("_prefix", "_rest")

    def __init__(self, dictionary: bytes, prefix: int) -> None:
        self._prefix = dictionary[:prefix]
        past = _around(dictionary, prefix)
        self._rest = ZstdDecoder(past, max_window_bytes=WINDOW_BYTES)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """See `Decoder`."""
        prefix, self._prefix = self._prefix, b""
        for at in range(0, len(prefix), _PIECE_BYTES):
            yield prefix[at : at + _PIECE_BYTES]
        yield from self._rest.feed(data)

    def finish(self) -> None:
        """See `Decoder`."""
        if self._prefix:
            raise CodingError("zstd body without a frame")
        self._rest.finish()


class Keeper:
    """Gathers a body that passes, to keep it as a dictionary when it is complete."""

    __slots__ = ("_pieces", "_size")

    def __init__(self) -> None:
        self._pieces: list[bytes] | None = []
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes gathered."""
        return self._size if self._pieces is not None else 0

    def add(self, piece: bytes) -> None:
        """The next bytes."""
        self._size += len(piece)
        if self._pieces is not None:
            self._pieces.append(piece)
            if self._size > MOST_BYTES:
                self._pieces = None

    def give_up(self) -> None:
        """There is no room for it."""
        self._pieces = None

    def body(self) -> bytes | None:
        """All of it, if it was gathered."""
        return None if self._pieces is None else b"".join(self._pieces)


class FlushingEncoder:
    """zstd for a response: what has come can be decoded at once, with one context for all of it."""

    __slots__ = ("_state",)

    def __init__(self) -> None:
        compressor = zstandard.ZstdCompressor(compression_params=_STREAM)
        self._state = compressor.compressobj()

    def feed(self, data: bytes) -> bytes:
        """Coded bytes; ``data`` is complete in them."""
        coded: bytes = self._state.compress(data)
        coded += self._state.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        return coded

    def finish(self) -> bytes:
        """The end of the frame."""
        coded: bytes = self._state.flush()
        return coded
