"""A conversation's next request as the difference from an earlier one. Both sides use it.

A request body is coded with zstd, an earlier body of the same conversation being the raw dictionary
(as ``dcz`` of RFC 9842). Dictionaries are named by their SHA-256; each side keeps the bodies that
went past it, by scope: a word that the client makes of (client key, upstream), so that no body ever
helps to code, or to guess, one of another key. A name that the relay does not know costs one
resend.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator

import zstandard

from edged.compress import ZstdDecoder

STORE_BYTES = 64 << 20
LEAST_BYTES = 2 << 10
"""A shorter body is neither coded nor kept: it would not pay."""
MOST_BYTES = 4 << 20
"""A longer one is not kept."""
CANDIDATES = 16
"""Bodies of one conversation's path that are compared."""
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

    __slots__ = ("_bodies", "limit_bytes", "used_bytes")

    def __init__(self, limit_bytes: int = STORE_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._bodies: OrderedDict[tuple[bytes, bytes], bytes] = OrderedDict()

    def get(self, scope: bytes, name: bytes) -> bytes | None:
        """The body of this name, if it is kept in this very scope."""
        body = self._bodies.get((scope, name))
        if body is not None:
            self._bodies.move_to_end((scope, name))
        return body

    def put(self, scope: bytes, body: bytes) -> bytes | None:
        """Keep ``body``; its name, or ``None`` for one that is too short or too long."""
        if not LEAST_BYTES <= len(body) <= min(MOST_BYTES, self.limit_bytes):
            return None
        key = (scope, name_of(body))
        if key not in self._bodies:
            self.used_bytes += len(body)
            self._bodies[key] = body
        self._bodies.move_to_end(key)
        self._shrink()
        return key[1]

    def resize(self, limit_bytes: int) -> None:
        """Use another limit."""
        self.limit_bytes = limit_bytes
        self._shrink()

    def _shrink(self) -> None:
        while self.used_bytes > self.limit_bytes:
            _, gone = self._bodies.popitem(last=False)
            self.used_bytes -= len(gone)

    def forget(self, scope: bytes, name: bytes) -> None:
        """The other side does not know it."""
        gone = self._bodies.pop((scope, name), None)
        if gone is not None:
            self.used_bytes -= len(gone)


class Conversations:
    """The client's side: which earlier body is most like the next one."""

    __slots__ = ("_recent", "store")

    def __init__(self, store: Store | None = None) -> None:
        self.store = store or Store()
        self._recent: OrderedDict[tuple[bytes, bytes], OrderedDict[bytes, None]] = OrderedDict()

    def sent(self, scope: bytes, path: bytes, body: bytes) -> None:
        """``body`` went to the relay in full, or will be known there when it has been decoded."""
        name = self.store.put(scope, body)
        if name is None:
            return
        recent = self._recent.setdefault((scope, path), OrderedDict())
        recent[name] = None
        recent.move_to_end(name)
        if len(recent) > CANDIDATES:
            recent.popitem(last=False)
        self._recent.move_to_end((scope, path))
        if len(self._recent) > 4096:
            self._recent.popitem(last=False)

    def best(self, scope: bytes, path: bytes, body: bytes) -> tuple[bytes, bytes] | None:
        """Name and content of the body with the longest common prefix; ``None``: there is none
        that would help.
        """
        recent = self._recent.get((scope, path))
        best: tuple[bytes, bytes] | None = None
        longest = LEAST_BYTES // 4 - 1
        for name in list(recent) if recent else ():
            known = self.store.get(scope, name)
            if known is None:
                assert recent is not None
                del recent[name]
                continue
            common = common_prefix(body, known)
            if common >= longest:  # of equals the newest: it has more of what follows
                best, longest = (name, known), common
        return best

    def missed(self, scope: bytes, name: bytes) -> None:
        """The relay does not know this one any more."""
        self.store.forget(scope, name)


def common_prefix(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def encode(body: bytes, dictionary: bytes | None, level: int = 3) -> bytes:
    """``body`` as a zstd frame, with ``dictionary`` as its past."""
    past = dictionary or b""
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


def decoder(dictionary: bytes | None) -> ZstdDecoder:
    """What `encode` with the same dictionary is undone by."""
    return ZstdDecoder(dictionary, max_window_bytes=WINDOW_BYTES)


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


def pieces(coded: bytes, dictionary: bytes | None) -> Iterator[bytes]:
    """A whole coded body, decoded. Raises `CodingError`."""
    state = decoder(dictionary)
    yield from state.feed(coded)
    state.finish()
