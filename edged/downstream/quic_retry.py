"""Tokens by which a client shows that it can receive where it says it is (RFC 9000, 8.1.2)."""

from __future__ import annotations

import ipaddress
import os
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

LIFETIME_S = 30.0
_NONCE_BYTES = 12
_TIME = struct.Struct(">d")


class RetryTokens:
    """Makes and reads tokens, sealed with a key that nobody else has and that dies with us."""

    def __init__(self) -> None:
        self._aead = AESGCM(AESGCM.generate_key(bit_length=128))

    def make(self, peer: tuple[str, int], original: bytes, chosen: bytes, now: float) -> bytes:
        """A token for ``peer``, whose first datagram went to the connection id ``original``; the
        next must go to ``chosen``.
        """
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, _TIME.pack(now) + original, _bound(peer, chosen))

    def read(
        self, token: bytes, peer: tuple[str, int], destination: bytes, now: float
    ) -> bytes | None:
        """The original connection id, or ``None`` for a token that is not ours, or of another."""
        try:
            plain = self._aead.decrypt(
                token[:_NONCE_BYTES], token[_NONCE_BYTES:], _bound(peer, destination)
            )
        except (InvalidTag, ValueError):
            return None
        (made,) = _TIME.unpack_from(plain)
        return plain[_TIME.size :] if 0 <= now - made <= LIFETIME_S else None


def _bound(peer: tuple[str, int], chosen: bytes) -> bytes:
    """What a token is good for."""
    address = ipaddress.ip_address(peer[0].partition("%")[0]).packed
    return address + peer[1].to_bytes(2, "big") + chosen
