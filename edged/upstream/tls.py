"""TLS towards upstreams: one context per set of ALPN names, sessions resumed per path and origin.

Verification is always on. asyncio and uvloop give an `ssl.SSLContext` no way to take a session for
one connection, but all they ask of a context is ``wrap_bio``; `Handshake` answers it with the
context's own and the cached session of its path and origin (RFC 8446 section 2.2, RFC 5077).
"""

from __future__ import annotations

import ssl
from collections import OrderedDict
from typing import cast

import certifi

from policies.model import Path

SESSIONS_MAX = 1024
Key = tuple[str, str, int, tuple[str, ...]]


class TlsConfigError(Exception):
    """The additional trust cannot be loaded; the text names the file and the reason."""


class Tls:
    """Contexts and sessions of all upstream connections over TCP."""

    def __init__(self, ca_file: str | None = None) -> None:
        """Trust the system's authorities (Mozilla's where it has none) and those in ``ca_file``.

        Raises `TlsConfigError` when the file cannot be used.
        """
        self.ca_file = ca_file
        self._contexts: dict[tuple[str, ...], ssl.SSLContext] = {}
        self._sessions: OrderedDict[Key, ssl.SSLSession] = OrderedDict()
        self._context(("http/1.1",))  # a bad file is a mistake of the configuration: tell it now

    def handshake(self, path: Path, alpn: tuple[str, ...]) -> Handshake:
        """What to give to the event loop as ``ssl`` for one connection on ``path``."""
        endpoint = path.endpoint
        key = (path.name, endpoint.host, endpoint.port, alpn)
        return Handshake(self, self._context(alpn), key)

    def session(self, key: Key) -> ssl.SSLSession | None:
        """The session to resume, if one is known and its lifetime is not over."""
        return self._sessions.get(key)

    def remember(self, key: Key, session: ssl.SSLSession) -> None:
        """Keep ``session`` for the next connection; the least recently made goes when full."""
        self._sessions[key] = session
        self._sessions.move_to_end(key)
        if len(self._sessions) > SESSIONS_MAX:
            self._sessions.popitem(last=False)

    def _context(self, alpn: tuple[str, ...]) -> ssl.SSLContext:
        context = self._contexts.get(alpn)
        if context is None:
            context = ssl.create_default_context()
            system = ssl.get_default_verify_paths()
            if not (system.cafile or system.capath):
                context.load_verify_locations(cafile=certifi.where())
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.set_alpn_protocols(list(alpn))
            if self.ca_file is not None:
                try:
                    context.load_verify_locations(cafile=self.ca_file)
                except OSError as error:
                    reason = getattr(error, "reason", None) or error.strerror or "not a PEM file"
                    raise TlsConfigError(f"{self.ca_file}: {reason}") from error
            self._contexts[alpn] = context
        return context


class Handshake:
    """One connection's share of a context: offers its session, keeps the new one."""

    __slots__ = ("_context", "_key", "_object", "_tls")

    def __init__(self, tls: Tls, context: ssl.SSLContext, key: Key) -> None:
        self._tls = tls
        self._context = context
        self._key = key
        self._object: ssl.SSLObject | None = None

    def as_context(self) -> ssl.SSLContext:
        """Itself, under the type that ``create_connection(ssl=...)`` is declared to take."""
        return cast(ssl.SSLContext, self)

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """As `ssl.SSLContext.wrap_bio`, with the session known for this path and origin."""
        self._object = self._context.wrap_bio(
            incoming,
            outgoing,
            server_side=server_side,
            server_hostname=server_hostname,
            session=session or self._tls.session(self._key),
        )
        return self._object

    @property
    def alpn(self) -> str | None:
        """What the server chose."""
        return self._object.selected_alpn_protocol() if self._object else None

    @property
    def resumed(self) -> bool:
        """Whether the server took the session."""
        return bool(self._object and self._object.session_reused)

    @property
    def round_trips(self) -> int:
        """Of the handshake: 1 with TLS 1.3 or a resumed session, else 2 (RFC 5246)."""
        if self._object is None or self._object.version() == "TLSv1.3" or self.resumed:
            return 1
        return 2

    def settled(self) -> None:
        """Keep the session; TLS 1.3 sends its tickets with the first response, not before."""
        if self._object is not None and (session := self._object.session) is not None:
            self._tls.remember(self._key, session)

    def closed_cleanly(self) -> bool:
        """Whether close_notify came, asked at the end of the connection when all is read."""
        if self._object is None:
            return False
        try:
            return self._object.read(1) == b""
        except ssl.SSLError:
            return False
