"""Reading and writing the field sections of HTTP/2 (RFC 9113 section 8), strictly.

The engines' own validation is off: it differs between them, answers a malformed request by closing
the whole connection, and costs more than these checks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from edged.downstream.fields import BadMessage, authority, content_length, valid_target
from edged.downstream.limits import Limits
from edged.messages import Headers, RequestHead, index

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_UNSAFE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]|\A[ \t]|[ \t]\Z")
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_PSEUDO = frozenset((b":method", b":scheme", b":authority", b":path"))
_CONNECTION_SPECIFIC = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_READ_HERE = frozenset((b"content-length", b"host", b"te", b"cookie", b"expect", b"http2-settings"))
_CACHE_SIZE = 2048
_known_names: set[bytes] = set()


class Malformed(Exception):
    """The field section breaks RFC 9113 section 8: a stream error of type PROTOCOL_ERROR."""


def _check(name: bytes, value: bytes) -> None:
    if name not in _known_names:
        if not _NAME.fullmatch(name) or name in _CONNECTION_SPECIFIC:
            raise Malformed(f"field name {name[:40]!r}")
        if len(_known_names) < _CACHE_SIZE and len(name) < 64:
            _known_names.add(name)
    if _UNSAFE.search(value):
        raise Malformed(f"value of {name[:40]!r}")


def request_head(
    fields: Iterable[tuple[bytes, bytes]], limits: Limits, *, ended: bool
) -> RequestHead:
    """The head of a request. ``ended``: no body follows.

    Raises `Malformed`, and `BadMessage` for what is well-formed but refused with a status.
    """
    pseudo: dict[bytes, bytes] = {}
    headers: Headers = []
    special: Headers = []
    count = 0
    for name, value in fields:
        if name[:1] == b":":
            if name not in _PSEUDO or name in pseudo or count or _UNSAFE.search(value):
                raise Malformed(f"pseudo-header {name[:40]!r}")
            pseudo[name] = value
            continue
        count += 1
        _check(name, value)
        if name in _READ_HERE:
            special.append((name, value))
        else:
            headers.append((name, value))
    if count > limits.header_fields:
        raise BadMessage(431, "too_many_fields", "The request has too many header fields.")
    host, length, expects = _read_special(special, headers)
    if ended:
        if length:
            raise Malformed("content-length without content")
        length = 0
    head = _addressed(pseudo, host, headers, limits)
    head.body_length = length
    if head.method == b"CONNECT":
        if length is not None and not ended:
            raise Malformed("CONNECT with content-length")
        head.body_length = 0
    if head.method == b"TRACE" and length != 0:
        raise Malformed("TRACE with content")
    head.expects_continue = expects and length != 0
    head.first = index(headers)
    return head


def _read_special(special: Headers, headers: Headers) -> tuple[bytes | None, int | None, bool]:
    """Host, Content-Length and Expect; te and joined cookies go back into ``headers``."""
    host: bytes | None = None
    length: int | None = None
    expects = False
    cookies: list[bytes] = []
    for name, value in special:
        if name == b"cookie":
            cookies.append(value)
        elif name == b"te":
            if value.lower() != b"trailers":
                raise Malformed("te")
            headers.append((name, b"trailers"))
        elif name == b"host":
            if host is not None:
                raise Malformed("host repeated")
            host = value
        elif name == b"content-length":
            if length is not None:
                raise Malformed("content-length repeated")
            try:
                length = content_length(value)
            except BadMessage as error:
                raise Malformed("content-length") from error
        elif name == b"expect":
            if value.lower() != b"100-continue":
                raise BadMessage(417, "expectation_failed", "Only Expect: 100-continue is known.")
            expects = True
    if cookies:  # RFC 9113 section 8.2.3: one field again for those who don't know crumbs
        headers.append((b"cookie", b"; ".join(cookies)))
    return host, length, expects


def _addressed(
    pseudo: dict[bytes, bytes], host: bytes | None, headers: Headers, limits: Limits
) -> RequestHead:
    """Check the control data (RFC 9113 sections 8.3.1 and 8.5) and build the head on it."""
    method = pseudo.get(b":method")
    named = pseudo.get(b":authority", host)
    if method is None or not _METHOD.fullmatch(method) or not named:
        raise Malformed("method or authority missing")
    try:
        target = authority(named)
        if host is not None and authority(host) != target:
            raise Malformed("host differs from :authority")
    except BadMessage as error:
        raise Malformed("authority") from error
    if method == b"CONNECT":
        port = target.rpartition(b":")[2]
        if b":path" in pseudo or b":scheme" in pseudo or not port.isdigit() or int(port) == 0:
            raise Malformed("CONNECT takes host:port and nothing else")
        return RequestHead(method, b"", target, b"", headers, version=b"2")
    scheme = pseudo.get(b":scheme", b"").lower()
    path = pseudo.get(b":path", b"")
    if scheme not in (b"http", b"https") or not path:
        raise Malformed("scheme or path missing")
    if len(path) > limits.uri_bytes:
        raise BadMessage(414, "uri_too_long", "The request target is too long.")
    if not valid_target(path) or (path[0] != 47 and not (path == b"*" and method == b"OPTIONS")):
        raise Malformed("path")
    # On a connection without TLS, https can only be meant for a proxy.
    proxied = scheme == b"https"
    return RequestHead(method, scheme, target, path, headers, version=b"2", absolute_form=proxied)


def trailers(fields: Iterable[tuple[bytes, bytes]], limits: Limits) -> Headers:
    """A request's trailers. Raises `Malformed`."""
    result: Headers = []
    for name, value in fields:
        _check(name, value)
        if name not in _READ_HERE:
            result.append((name, value))
    if len(result) > limits.header_fields:
        raise Malformed("too many trailers")
    return result


def response_fields(status: int, headers: Headers, length: int | None) -> Headers | None:
    """The field section of a response, or ``None`` if a field would be malformed."""
    fields: Headers = [(b":status", b"%d" % status)]
    for field in headers:
        if _UNSAFE.search(field[1]) or field[0] in _CONNECTION_SPECIFIC or field[0][:1] == b":":
            return None
        fields.append(field)
    if length is not None:
        fields.append((b"content-length", b"%d" % length))
    return fields
