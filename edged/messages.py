"""HTTP messages as both sides see them (RFC 9110): heads with lower-case byte names.

Bodies never appear here: they travel as `bytes` through callbacks.
"""

from __future__ import annotations

Headers = list[tuple[bytes, bytes]]
"""Field lines in order; names lower-case, values without surrounding white space."""


def header(headers: Headers, name: bytes) -> bytes | None:
    """The first value of ``name`` (lower-case), or ``None``."""
    for key, value in headers:
        if key == name:
            return value
    return None


def index(headers: Headers) -> dict[bytes, bytes]:
    """The first value of each name."""
    return dict(reversed(headers))


class RequestHead:
    """A request's head: control data and fields.

    ``path`` is origin-form (path and query), or ``b"*"``; for CONNECT it is empty and ``authority``
    is the target. ``body_length`` is the number of body bytes, 0 for none, ``None`` when it is not
    known beforehand (chunked, or HTTP/2 without Content-Length). ``headers`` holds no
    Host, Content-Length, Transfer-Encoding, pseudo or hop-by-hop fields: each version's codec
    writes its own from the other attributes. (``te: trailers`` stays.)
    """

    __slots__ = (
        "absolute_form",
        "authority",
        "body_length",
        "early",
        "expects_continue",
        "first",
        "headers",
        "method",
        "path",
        "scheme",
        "upgrade",
        "version",
    )

    def __init__(
        self,
        method: bytes,
        scheme: bytes,
        authority: bytes,
        path: bytes,
        headers: Headers,
        body_length: int | None = 0,
        *,
        version: bytes = b"1.1",
        absolute_form: bool = False,
        expects_continue: bool = False,
        upgrade: bytes | None = None,
        first: dict[bytes, bytes] | None = None,
    ) -> None:
        self.method = method
        self.scheme = scheme
        self.authority = authority
        self.path = path
        self.headers = headers
        self.body_length = body_length
        self.version = version
        """``1.0``, ``1.1``, ``2`` or ``3``: what the sender spoke, for Via."""
        self.absolute_form = absolute_form
        """The client addressed edged as an explicit proxy."""
        self.expects_continue = expects_continue
        self.upgrade = upgrade
        """The Upgrade field's value when the request asks for another protocol, else ``None``."""
        self.early = False
        """It came as 0-RTT data: it may be a replay (RFC 8470)."""
        self.first = first
        """The first value of each name in ``headers``, so that nobody scans them; ``None`` where
        the fields were not indexed. See `index`."""


class ResponseHead:
    """A final or interim response's head. ``body_length`` as in `RequestHead`.

    ``headers`` holds no Transfer-Encoding and no hop-by-hop fields. Content-Length stays out too:
    ``body_length`` is the framing; for responses without a body (HEAD, 304) ``declared_length``
    keeps what the origin said about the length.
    """

    __slots__ = ("body_length", "declared_length", "headers", "reason", "status", "version")

    def __init__(
        self,
        status: int,
        headers: Headers,
        body_length: int | None = None,
        *,
        reason: bytes = b"",
        version: bytes = b"1.1",
        declared_length: int | None = None,
    ) -> None:
        self.status = status
        self.headers = headers
        self.body_length = body_length
        self.reason = reason
        self.version = version
        self.declared_length = declared_length
