"""Request bodies on their way to a relay: as the difference from an earlier one, where that pays.

A conversation's next request repeats all that was said before. Bodies are held until they are
complete, and coded with the earlier body of the same client key, upstream and path that has the
longest common beginning. Without a key in the request nothing is taken from, or kept for, others.

A relay that lacks an earlier body costs a round trip. Should it lack one after the other, because
it has no room to keep any, the next 1, 2, 4 ... bodies are coded by themselves.
"""

from __future__ import annotations

import secrets
from hashlib import blake2b
from typing import NamedTuple

from edged.messages import Headers, RequestHead
from edged.relay import wire
from edged.relay.conversations import Conversations
from edged.relay.dictionary import LARGE_BYTES, LEAST_BYTES, encode, encode_large
from policies.schema import Compression

MOST_HELD_BYTES = 4 << 20
"""A longer body goes as it is, and at once."""
_KEYS = frozenset((b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"cookie"))
_MOST_DOUBTED = 64
_PAYS = 0.9
"""A coded body that is hardly smaller only costs time."""


class Coded(NamedTuple):
    """A body as it goes to the relay."""

    fields: Headers
    data: bytes
    scope: bytes | None
    path: bytes
    dictionary: bytes | None
    """The name of the earlier body."""


class Bodies:
    """All request bodies for one relay."""

    def __init__(self) -> None:
        self.plain_bytes = 0
        """Of bodies that were coded, before."""
        self.coded_bytes = 0
        """And after."""
        self.missed = 0
        """Dictionaries that the relay did not have any more."""
        self._conversations = Conversations()
        self._missed_in_a_row = 0
        self._doubted = 0  # so many bodies are still to be coded by themselves
        self._secret = secrets.token_bytes(16)

    def codes(self, head: RequestHead, compression: Compression) -> bool:
        """Whether the body that follows ``head`` is to be held and coded."""
        length = head.body_length
        if (
            not compression.requests
            or length is None
            or not LEAST_BYTES <= length <= MOST_HELD_BYTES
        ):
            return False
        if head.upgrade is not None or head.method == b"CONNECT":
            return False
        return all(name != b"content-encoding" for name, _ in head.headers)

    def code(
        self, head: RequestHead, upstream: str, body: bytes, level: int, *, alone: bool = False
    ) -> Coded | None:
        """``body`` coded, or ``None`` if it is better sent as it is. ``alone``: without another."""
        scope = self._scope(head.headers, upstream)
        path = head.path.partition(b"?")[0]
        best = None
        if scope is not None and not alone:
            if self._doubted:
                self._doubted -= 1
            else:
                best = self._conversations.best(scope, path, body)
        name, past = (None, None) if best is None else best
        prefix = 0
        if past is not None and len(body) > LARGE_BYTES:
            data, prefix = encode_large(body, past, level)
        else:
            data = encode(body, past, level)
        if len(data) > _PAYS * len(body):
            return None
        self.plain_bytes += len(body)
        self.coded_bytes += len(data)
        fields = [(wire.CODING, wire.ZSTD), (wire.LENGTH, b"%d" % len(body))]
        if scope is not None:
            fields.append((wire.SCOPE, scope))
        if name is not None:
            fields.append((wire.DICTIONARY, name.hex().encode()))
        if prefix:
            fields.append((wire.PREFIX, b"%d" % prefix))
        return Coded(fields, data, scope, path, name)

    def arrived(self, coded: Coded, body: bytes) -> None:
        """The relay has decoded it, and keeps it."""
        if coded.dictionary is not None:
            self._missed_in_a_row = 0
        if coded.scope is not None:
            self._conversations.sent(coded.scope, coded.path, body, coded.dictionary)

    def unknown(self, coded: Coded) -> None:
        """The relay does not have the dictionary."""
        self.missed += 1
        self._missed_in_a_row += 1
        if self._missed_in_a_row > 1:
            self._doubted = min(2 ** (self._missed_in_a_row - 2), _MOST_DOUBTED)
        if coded.scope is not None and coded.dictionary is not None:
            self._conversations.missed(coded.scope, coded.dictionary)

    def forget(self) -> None:
        """The relay was restarted: it has no earlier bodies."""
        self._conversations.forget()
        self._missed_in_a_row = self._doubted = 0

    def _scope(self, headers: Headers, upstream: str) -> bytes | None:
        """A word for (client key, upstream) that tells nobody the key."""
        keys = [b"%b=%b" % field for field in headers if field[0] in _KEYS]
        if not keys:
            return None
        digest = blake2b(upstream.encode(), digest_size=16, key=self._secret)
        for key in keys:
            digest.update(b"\0" + key)
        return digest.hexdigest().encode()


class Held:
    """One request whose body is held until it is complete."""

    __slots__ = ("_bodies", "_coded", "_head", "_level", "_pieces", "_upstream")

    def __init__(self, bodies: Bodies, head: RequestHead, upstream: str, level: int) -> None:
        self._bodies = bodies
        self._head = head
        self._upstream = upstream
        self._level = level
        self._pieces: list[bytes] = []
        self._coded: Coded | None = None

    @property
    def head(self) -> RequestHead:
        """The request's."""
        return self._head

    def add(self, data: bytes) -> None:
        """The next bytes."""
        self._pieces.append(data)

    def coded(self, *, alone: bool = False) -> tuple[Headers, bytes]:
        """The body is complete: what is sent, and the fields that say how."""
        body = b"".join(self._pieces)
        self._pieces = [body]
        code = self._bodies.code
        self._coded = code(self._head, self._upstream, body, self._level, alone=alone)
        return ([], body) if self._coded is None else (self._coded.fields, self._coded.data)

    def arrived(self) -> None:
        """The relay answers: it has the body."""
        if self._coded is not None:
            self._bodies.arrived(self._coded, self._pieces[0])
        self._pieces = []

    def unknown(self) -> None:
        """The relay does not have the earlier body."""
        if self._coded is not None:
            self._bodies.unknown(self._coded)
