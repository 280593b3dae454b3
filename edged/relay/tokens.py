"""Who a request comes from: bearer tokens and client certificates, and what each may do.

Tokens are known by their SHA-256 only. They are looked up by a keyed hash of that, under a key made
at start, so that neither the time of a look-up nor that of a comparison tells anything of them;
and every request costs the same hashes, whatever it brings or lacks.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

from edged.messages import Headers
from edged.relay import wire
from edged.relay.flows import ClientLimits
from edged.relay.targets import AllowList

_BEARER = b"bearer "


@dataclass(frozen=True, slots=True)
class Client:
    """One client of the relay. With tokens and certificates it must show one of each."""

    name: str
    tokens: frozenset[bytes] = field(repr=False)
    """SHA-256 of each token it may use (32 bytes)."""
    certificates: frozenset[bytes]
    """SHA-256 of each certificate it may use, in DER."""
    allow: AllowList
    limits: ClientLimits


class Register:
    """The clients of a relay. Immutable; a reload makes another one."""

    __slots__ = ("_by_certificate", "_by_token", "_key", "asks_certificates", "clients")

    def __init__(self, clients: Iterable[Client]) -> None:
        self.clients = {client.name: client for client in clients}
        self._key = secrets.token_bytes(32)
        self._by_token: dict[bytes, Client] = {}
        self._by_certificate: dict[bytes, Client] = {}
        for client in self.clients.values():
            for digest in client.tokens:
                self._by_token[self._blind(digest)] = client
            for digest in client.certificates if not client.tokens else ():
                self._by_certificate[self._blind(digest)] = client
        self.asks_certificates = any(client.certificates for client in self.clients.values())
        """Some client is known by its certificate."""

    def identify(self, headers: Headers, certificate: bytes | None) -> Client | None:
        """The client that sent these fields over a connection with this certificate (DER)."""
        token = b""
        for name, value in headers:
            if name == wire.AUTHORIZATION and value[: len(_BEARER)].lower() == _BEARER:
                token = value[len(_BEARER) :].strip()
        client = self._by_token.get(self._blind(hashlib.sha256(token).digest()))
        if not self.asks_certificates:
            return client
        shown = hashlib.sha256(certificate or b"").digest()
        if client is None:
            return self._by_certificate.get(self._blind(shown))
        if client.certificates and shown not in client.certificates:
            return None
        return client

    def _blind(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._key, digest_size=16).digest()
