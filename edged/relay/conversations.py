"""Which earlier body a client's next one is most like: what a difference is made from."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator

from edged.relay.dictionary import LARGE_BYTES, LEAST_BYTES, Store, common_prefix

LAST = 16
"""The last bodies of one path that are compared."""
_MARKS = tuple(int(512 * 2 ** (n / 2)) for n in range(24))
"""Where beginnings are compared with those of all bodies ever kept: up to 1.4 MB, so close that at
most three tenths of what two bodies share are overlooked."""
_MARK_BYTES = 64
"""So much before a mark tells one beginning from another; what is found is compared in full."""
_MOST_MARKS = 1 << 16
_HITS = 4
"""Bodies found by marks that are compared."""
_LIKE = 4
"""Bodies that are compared string by string where none begins alike."""
_STRING_BYTES = 24
_LEAST_COMMON = LEAST_BYTES // 4


class Conversations:
    """The bodies that went to a relay, and where to find them."""

    __slots__ = ("_begins", "_recent", "store")

    def __init__(self, store: Store | None = None) -> None:
        self.store = store or Store()
        self._recent: OrderedDict[tuple[bytes, bytes], OrderedDict[bytes, None]] = OrderedDict()
        self._begins: OrderedDict[bytes, bytes] = OrderedDict()
        """By a place and what stands before it, the last body that has it there: one key may hold
        thousands of conversations at once, all with the same first words."""

    def sent(self, scope: bytes, path: bytes, body: bytes, past: bytes | None = None) -> None:
        """``body`` went to the relay, coded with ``past`` (a name), and will be known there."""
        name = self.store.put(scope, body, past)
        if name is None:
            return
        recent = self._recent.setdefault((scope, path), OrderedDict())
        recent[name] = None
        recent.move_to_end(name)
        if len(recent) > LAST:
            recent.popitem(last=False)
        self._recent.move_to_end((scope, path))
        if len(self._recent) > 4096:
            self._recent.popitem(last=False)
        for mark in _marks(scope, path, body):
            self._begins[mark] = name
            self._begins.move_to_end(mark)
        while len(self._begins) > _MOST_MARKS:
            self._begins.popitem(last=False)

    def best(self, scope: bytes, path: bytes, body: bytes) -> tuple[bytes, bytes] | None:
        """Name and content of the body with the longest common prefix, or with the most strings in
        common if that is short; ``None``: there is none that would help.
        """
        known = self._candidates(scope, path, body)
        best: tuple[bytes, bytes] | None = None
        longest = _LEAST_COMMON - 1
        for name, other in reversed(known.items()):
            # Of equals the newest: it has more of the rest. Those that cannot be better go by fast.
            before, beyond = max(0, longest + 1 - _MARK_BYTES), longest + 1
            if len(other) > longest < len(body) and other[before:beyond] == body[before:beyond]:
                common = common_prefix(body, other)
                if common > longest:
                    best, longest = (name, other), common
        short = best is None or 2 * longest < min(len(body), len(best[1]))
        if short and len(body) <= LARGE_BYTES:
            best = _most_alike(body, known, longest) or best
        if best is not None:
            self.store.get(scope, best[0])
        return best

    def _candidates(self, scope: bytes, path: bytes, body: bytes) -> dict[bytes, bytes]:
        """Bodies to compare, oldest first."""
        names: list[bytes] = []
        for mark in reversed([*_marks(scope, path, body)]):
            name = self._begins.get(mark)
            if name is not None and name not in names:
                names.append(name)
                if len(names) == _HITS:
                    break
        names.reverse()
        recent = self._recent.get((scope, path), OrderedDict())
        found: dict[bytes, bytes] = {}
        for name in (*names, *recent):
            found.pop(name, None)
            kept = self.store.peek(scope, name)
            if kept is not None:
                found[name] = kept
        return found

    def missed(self, scope: bytes, name: bytes) -> None:
        """The relay does not know this one any more."""
        self.store.forget(scope, name)

    def forget(self) -> None:
        """The relay knows nothing any more."""
        self.store.clear()
        self._recent.clear()
        self._begins.clear()


def _marks(scope: bytes, path: bytes, body: bytes) -> Iterator[bytes]:
    """A word for each of the body's beginnings, shortest first."""
    for at in _MARKS:
        if at > len(body):
            return
        word = hashlib.blake2b(scope, digest_size=16, key=b"%d" % at)
        word.update(b"\0%b\0%b" % (path, body[at - _MARK_BYTES : at]))
        yield word.digest()


def _most_alike(body: bytes, known: dict[bytes, bytes], least: int) -> tuple[bytes, bytes] | None:
    """The one of the newest that has more than ``least`` bytes of strings in common with ``body``,
    and the most. What stands between quotation marks is a string: the bodies are JSON, and some
    begin with what is new each time.
    """
    strings = _strings(body)
    best = None
    for name, other in [*known.items()][-_LIKE:]:
        common = sum(map(len, strings & _strings(other)))
        if common >= max(least, _LEAST_COMMON):
            best, least = (name, other), common
    return best


def _strings(body: bytes) -> set[bytes]:
    return {text for text in body.split(b'"') if len(text) >= _STRING_BYTES}
