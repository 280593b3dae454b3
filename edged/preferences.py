"""What a request's fields ask of edged, read in one pass."""

from __future__ import annotations

from typing import NamedTuple

from edged.headers import NOT_FORWARDED
from edged.messages import Headers


class Preferences(NamedTuple):
    """The fields that matter to exchanges, and the others."""

    forwarded: Headers
    """What goes upstream as it came; Accept-Encoding is not in it."""
    accept_encoding: bytes | None
    streaming: bool
    """The client waits for server-sent events."""
    idempotency_key: bool
    one_representation: bool
    """Offsets or lengths of one representation are meant, or transforming is forbidden: edged must
    not ask for another content coding (Range, If-Range, Cache-Control: no-transform)."""


_NONE = Preferences([], None, False, False, False)


def read(headers: Headers) -> Preferences:
    """Read ``headers`` (names in lower case)."""
    if not headers:
        return _NONE
    forwarded: Headers = []
    accept_encoding: bytes | None = None
    streaming = idempotency_key = one_representation = False
    for field in headers:
        name = field[0]
        if name not in _READ:
            forwarded.append(field)
            continue
        value = field[1]
        if name == b"accept-encoding":
            accept_encoding = value if accept_encoding is None else accept_encoding + b"," + value
            continue
        if name in NOT_FORWARDED:
            continue
        forwarded.append(field)
        if name == b"accept":
            streaming = value.startswith(b"text/event-stream")
        elif name == b"idempotency-key":
            idempotency_key = True
        elif name != b"cache-control" or b"no-transform" in value.lower():
            one_representation = True
    return Preferences(forwarded, accept_encoding, streaming, idempotency_key, one_representation)


_READ = NOT_FORWARDED | {
    b"accept",
    b"accept-encoding",
    b"cache-control",
    b"idempotency-key",
    b"if-range",
    b"range",
}
