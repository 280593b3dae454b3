"""Strict reading of HTTP/1.1 heads and trailers (RFC 9110 section 5, RFC 9112 sections 2 to 6).

One rule for everything ambiguous: refuse it. What another parser on the way might read otherwise
(bare LF, folded lines, two lengths, a second Host) is answered with 400 and a closed connection.

The parser is our own because strictness needs the raw bytes, and it keeps no object per idle
connection. Measured beside httptools with callbacks that do no more than collect the fields: a
minimal head 2.2 against 1.5 us, one of an SDK with 16 fields, indexed, 7.4 against 4.7 us.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from edged.downstream.limits import Limits
from edged.messages import Headers, RequestHead, index


class BadMessage(Exception):
    """A request that is refused; its connection is closed after the answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


ParsedHead = tuple[RequestHead, bool, bool]
"""A request head; whether its client wants the connection kept; whether nothing but status and
length decides how its response is framed (HTTP/1.1, no upgrade, neither HEAD nor CONNECT)."""
Field = tuple[bytes, bytes]

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(rb"[!-\"$-~]+")
"""VCHAR without the fragment mark. Browsers send more than RFC 3986 allows, but never these."""
_ABSOLUTE = re.compile(rb"(?i:(https?))://([^/?]*)(/?[^?]*)(\?.*)?", re.DOTALL)
_AUTHORITY = re.compile(
    rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=%]+|\[[0-9A-Fa-f:.]+(?:%25[A-Za-z0-9\-._~]+)?\])(?::[0-9]{0,5})?"
)
_VERSION = re.compile(rb"HTTP/([0-9])\.([0-9])")
_BAD_CONTROL = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_HARMLESS: Final = bytes(b for b in range(256) if b == 9 or (b >= 32 and b != 127))
"""Without these a block must be nothing but the CRLF pairs it was split at."""

_USUAL_LINE = re.compile(
    rb"(GET|POST|HEAD|PUT|PATCH|DELETE|OPTIONS) (/[!-\"$-~]*) HTTP/1\.1"
).fullmatch
_SPECIAL: Final = frozenset(
    (
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"http2-settings",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    )
)
"""Fields the connection reads itself; none of them is passed on as it is."""
_NOT_IN_TRAILERS = _SPECIAL | {
    b"authorization",
    b"cache-control",
    b"content-encoding",
    b"content-range",
    b"content-type",
    b"max-forwards",
    b"proxy-authorization",
    b"range",
    b"trailer",
}
"""Framing, routing and control data; dropped from trailers (RFC 9110 section 6.5.1)."""

# Memos. Clients repeat themselves: all but a few lines of a head are, byte for byte, lines met
# before, and what one of them was read as needs no second reading. A memo that is full starts anew.
_CACHE_SIZE: Final = 1024
_KEPT_BYTES: Final = 200
_names: Final[dict[bytes, bytes]] = {}
_authorities: Final[dict[bytes, bytes]] = {}
_host_lines: Final[dict[bytes, bytes]] = {}
_field_lines: Final[dict[bytes, Field | tuple[()]]] = {}
"""Good lines as HTTP/1.1 reads them, none of them special; ``()``: one that says nothing new."""
_known_field: Final[Callable[[bytes], Any]] = _field_lines.get
_KEPT: Final = frozenset(
    (
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"anthropic-beta",
        b"anthropic-version",
        b"cache-control",
        b"content-type",
        b"dnt",
        b"openai-beta",
        b"origin",
        b"pragma",
        b"priority",
        b"upgrade-insecure-requests",
        b"user-agent",
        b"via",
    )
)
_KEPT_PREFIXES: Final = (b"x-stainless-", b"sec-ch-", b"sec-fetch-")
"""What clients say alike in every request. Nothing else is kept: a secret would outlive its own."""


def field_name(raw: bytes) -> bytes:
    """``raw`` in lower case. Raises `BadMessage` when it is no token (RFC 9110 section 5.1)."""
    if not _TOKEN.fullmatch(raw):
        raise BadMessage(400, "bad_field", "A header line has no valid field name.")
    name = raw.lower()
    if len(raw) < 64:
        if len(_names) >= _CACHE_SIZE:
            _names.clear()
        _names[raw] = name
    return name


def authority(raw: bytes) -> bytes:
    """``host[:port]`` in lower case. Raises `BadMessage` when it is none (RFC 3986 section 3.2)."""
    known = _authorities.get(raw)
    if known is not None:
        return known
    if not _AUTHORITY.fullmatch(raw) or _port_too_large(raw):
        raise BadMessage(400, "bad_authority", "The host name or port is not valid.")
    value = raw.lower()
    if len(raw) <= _KEPT_BYTES:
        if len(_authorities) >= _CACHE_SIZE:
            _authorities.clear()
        _authorities[raw] = value
    return value


def _port_too_large(raw: bytes) -> bool:
    _, colon, port = raw.rpartition(b":")
    return bool(colon) and not raw.endswith(b"]") and port != b"" and int(port) > 65535


def valid_target(target: bytes) -> bool:
    """Whether ``target`` has only characters that a request target may have."""
    return _TARGET.fullmatch(target) is not None


TLS_SPOKEN: Final = "tls"
"""`BadMessage.code` of a client that speaks TLS to a port that does not."""
_TLS_HANDSHAKE = b"\x16\x03"
"""How a TLS record with a ClientHello begins (RFC 8446 section 5.1)."""


def first_defect(buffer: bytes, limits: Limits, start: int = 0) -> BadMessage | None:
    """What is already wrong with an incomplete head, or ``None`` while it may become good.

    The verdict depends on the bytes alone, not on how they were cut; ``start`` skips what an
    earlier call has seen.
    """
    if _BAD_CONTROL.search(buffer, start, limits.header_bytes + 4):
        return _bad_control(buffer)
    if len(buffer) >= limits.header_bytes + 4:
        if buffer.find(b"\r\n", 0, limits.header_bytes) < 0:
            return BadMessage(414, "uri_too_long", "The request target is too long.")
        return BadMessage(431, "headers_too_large", "The request header is too large.")
    return None


def parse_head(block: bytes, limits: Limits) -> ParsedHead:
    """Read a complete head, without the empty line that ends it.

    Raises `BadMessage` with the status that RFC 9110 or 9112 names.
    """
    try:
        request_line, host_line, *lines = block.split(b"\r\n")
    except ValueError:
        return _parse_unusual(block, limits)  # without a field
    usual = _USUAL_LINE(request_line)
    host = _host_lines.get(host_line)
    if usual is not None and host is not None and len(lines) < limits.header_fields:
        method, target = usual.groups()
        if len(target) <= limits.uri_bytes:
            fields: Headers = list(map(_known_field, lines))
            length = 0
            if not all(fields):
                special = _fill_in(lines, fields)
                if special:
                    if len(special) > 1 or special[0][0] != b"content-length":
                        special.append((b"host", host))
                        return _complete(method, target, b"1.1", fields, special)
                    length = content_length(special[0][1])
            first = dict(reversed(fields))
            head = RequestHead(method, b"http", host, target, fields, length, first=first)
            return head, True, method != b"HEAD"
    return _parse_unusual(block, limits)


def _parse_unusual(block: bytes, limits: Limits) -> ParsedHead:
    """Read a head in which nothing is taken for granted."""
    lines = block.split(b"\r\n")
    if block.translate(None, _HARMLESS) != b"\r\n" * (len(lines) - 1):
        raise _bad_control(block)
    parts = lines[0].split(b" ")
    if len(parts) != 3:
        raise BadMessage(400, "bad_request_line", "The request line is not METHOD TARGET VERSION.")
    method, target, version = parts
    if not _TOKEN.fullmatch(method):
        raise BadMessage(400, "bad_method", "The method is not a token.")
    minor = _minor(version)
    if len(target) > limits.uri_bytes:
        raise BadMessage(414, "uri_too_long", "The request target is too long.")
    if not _TARGET.fullmatch(target):
        raise BadMessage(
            400, "bad_target", "The request target has a character that is not allowed."
        )
    if len(lines) > limits.header_fields + 1:
        raise BadMessage(431, "too_many_fields", "The request has too many header fields.")
    del lines[0]
    fields: list[Any] = [None] * len(lines)
    special = _fill_in(lines, fields)
    parsed = _complete(method, target, minor, fields, special)
    if lines:
        _learn_host(lines[0])
    return parsed


def _bad_control(head: bytes = b"") -> BadMessage:
    if head.startswith(_TLS_HANDSHAKE):
        return BadMessage(
            400,
            TLS_SPOKEN,
            "This looks like TLS: the proxy speaks plain HTTP. Write its address as http://.",
        )
    return BadMessage(400, "bad_control", "The head has a bare CR or LF or a control character.")


def _fill_in(lines: list[bytes], fields: list[Any]) -> Headers:
    """Read the ``lines`` whose place in ``fields`` is open; the special ones among them.

    These, and those known to say nothing, are gone from ``fields`` afterwards.
    """
    unread = [at for at, field in enumerate(fields) if field is None]
    if b"".join([lines[at] for at in unread]).translate(None, _HARMLESS):
        raise _bad_control()
    special: Headers = []
    for at in unread:
        line = lines[at]
        raw, colon, value = line.partition(b":")
        name = _names.get(raw) or field_name(raw)
        if not colon:
            raise BadMessage(400, "bad_field", "A header line has no colon.")
        field = (name, value.strip(b" \t"))
        if name in _SPECIAL:
            special.append(field)
            if name == b"connection" and field[1].lower() == b"keep-alive":
                _learn(line, ())
        else:
            fields[at] = field
            if name in _KEPT or name.startswith(_KEPT_PREFIXES):
                _learn(line, field)
    fields[:] = filter(None, fields)
    return special


def _learn(line: bytes, field: Field | tuple[()]) -> None:
    if len(line) <= _KEPT_BYTES:
        if len(_field_lines) >= _CACHE_SIZE:
            _field_lines.clear()
        _field_lines[line] = field


def _learn_host(line: bytes) -> None:
    """Keep the line after the request line, of a good head, if it is Host."""
    name, _, value = line.partition(b":")
    if name.lower() == b"host" and len(line) <= _KEPT_BYTES:
        if len(_host_lines) >= _CACHE_SIZE:
            _host_lines.clear()
        value = value.strip(b" \t")
        _host_lines[line] = authority(value) if value else b""


def _minor(version: bytes) -> bytes:
    match = _VERSION.fullmatch(version)
    if match is None:
        raise BadMessage(400, "bad_version", "The request line has no HTTP version.")
    if match[1] != b"1":
        raise BadMessage(505, "version_not_supported", "Only HTTP/1.x is spoken in this form.")
    return b"1.0" if match[2] == b"0" else b"1.1"


def _complete(
    method: bytes, target: bytes, minor: bytes, headers: Headers, special: Headers
) -> ParsedHead:
    """Build the head from its parts, with all that the special fields say."""
    values: dict[bytes, list[bytes]] = {}
    for name, value in special:
        values.setdefault(name, []).append(value)
    host = _host(values.get(b"host"), minor)
    options = _options(values.get(b"connection"))
    length = _body_length(values, minor)
    if method == b"CONNECT":
        if length != 0:
            raise BadMessage(400, "connect_body", "CONNECT has no body.")
        head = RequestHead(method, b"", _connect_target(target), b"", headers, 0, version=minor)
    else:
        head = _with_target(method, target, host, headers)
        head.version = minor
        head.body_length = length
    if length != 0 and method == b"TRACE":
        raise BadMessage(400, "trace_body", "TRACE has no body.")
    if options:
        head.headers = [f for f in head.headers if f[0] not in options]
    if minor == b"1.0":
        head.first = index(head.headers)
        return head, b"keep-alive" in options and b"close" not in options, False
    if b"te" in values and any(b"trailers" in _list(v.lower()) for v in values[b"te"]):
        head.headers.append((b"te", b"trailers"))
    head.first = index(head.headers)
    if b"upgrade" in options and length == 0 and method != b"CONNECT":
        head.upgrade = _upgrade(values.get(b"upgrade"))
    for expectation in values.get(b"expect", ()):
        if expectation.lower() != b"100-continue":
            raise BadMessage(417, "expectation_failed", "Only Expect: 100-continue is known.")
        head.expects_continue = length != 0
    plain = head.upgrade is None and method != b"HEAD" and method != b"CONNECT"
    return head, b"close" not in options, plain


def _list(value: bytes) -> list[bytes]:
    return [item.strip(b" \t") for item in value.split(b",")]


def _options(values: list[bytes] | None) -> frozenset[bytes]:
    """The connection options (RFC 9110 section 7.6.1), also names of fields to drop."""
    if not values:
        return frozenset()
    return frozenset(option for value in values for option in _list(value.lower()) if option)


def _upgrade(values: list[bytes] | None) -> bytes | None:
    """The protocols asked for, but for h2c: that way to HTTP/2 is gone (RFC 9113 section 3.1)."""
    wanted = [p for v in values or () for p in _list(v) if p and not p.lower().startswith(b"h2")]
    return b", ".join(wanted) or None


def _host(values: list[bytes] | None, minor: bytes) -> bytes:
    """RFC 9112 section 3.2: exactly one valid Host, which HTTP/1.0 may omit."""
    if values is None:
        if minor == b"1.0":
            return b""
        raise BadMessage(400, "host_missing", "An HTTP/1.1 request needs a Host field.")
    if len(values) != 1:
        raise BadMessage(400, "host_repeated", "The request has more than one Host field.")
    return authority(values[0]) if values[0] else b""


def _body_length(values: dict[bytes, list[bytes]], minor: bytes) -> int | None:
    """RFC 9112 section 6.3, and refusal where it leaves a choice. ``None``: chunked."""
    codings = values.get(b"transfer-encoding")
    lengths = values.get(b"content-length")
    if codings is not None:
        if lengths is not None:
            raise BadMessage(400, "two_lengths", "Content-Length beside Transfer-Encoding.")
        if minor == b"1.0":
            raise BadMessage(400, "http10_coding", "HTTP/1.0 has no Transfer-Encoding.")
        named = [coding for value in codings for coding in _list(value.lower())]
        if named == [b"chunked"]:
            return None
        if named[-1] == b"chunked" and b"chunked" not in named[:-1] and b"" not in named:
            raise BadMessage(501, "unknown_coding", "The only transfer coding known is chunked.")
        raise BadMessage(400, "bad_coding", "The Transfer-Encoding does not delimit the body.")
    if lengths is None:
        return 0
    if len(lengths) != 1:
        raise BadMessage(400, "bad_length", "The request has more than one Content-Length.")
    return content_length(lengths[0])


def content_length(value: bytes) -> int:
    """1*DIGIT (RFC 9110 section 8.6), below 10^18. Raises `BadMessage`."""
    if not value.isdigit() or len(value) > 18:
        raise BadMessage(400, "bad_length", "The Content-Length is not a plain number.")
    return int(value)


def _connect_target(target: bytes) -> bytes:
    """``host:port`` (RFC 9110 section 9.3.6)."""
    value = authority(target)
    port = value.rpartition(b":")[2]
    if b":" not in value or not port.isdigit() or int(port) == 0:
        raise BadMessage(400, "bad_target", "CONNECT needs host:port.")
    return value


def _with_target(method: bytes, target: bytes, host: bytes, headers: Headers) -> RequestHead:
    """Read origin-, absolute- and asterisk-form (RFC 9112 section 3.2)."""
    if target[0] == 47:  # "/"
        return RequestHead(method, b"http", host, target, headers)
    if target == b"*":
        if method != b"OPTIONS":
            raise BadMessage(400, "bad_target", "Only OPTIONS takes the target *.")
        return RequestHead(method, b"http", host, target, headers)
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise BadMessage(400, "bad_target", "The request target is neither a path nor an http URL.")
    path = match[3]
    if not path and not match[4] and method == b"OPTIONS":
        path = b"*"
    path = (path or b"/") + (match[4] or b"")
    # The target's authority wins over Host (RFC 9112 section 3.2.2); user info is refused by it.
    return RequestHead(
        method, match[1].lower(), authority(match[2]), path, headers, absolute_form=True
    )


def parse_trailers(block: bytes, limits: Limits) -> Headers:
    """Read the field lines of a trailer section. Raises `BadMessage`."""
    lines = block.split(b"\r\n")
    if block.translate(None, _HARMLESS) != b"\r\n" * (len(lines) - 1):
        raise BadMessage(400, "bad_control", "A trailer has a control character.")
    if len(lines) > limits.header_fields:
        raise BadMessage(431, "too_many_fields", "The request has too many trailer fields.")
    trailers: Headers = []
    for line in lines:
        raw, colon, value = line.partition(b":")
        name = _names.get(raw) or field_name(raw)
        if not colon:
            raise BadMessage(400, "bad_field", "A trailer line has no colon.")
        if name not in _NOT_IN_TRAILERS:
            trailers.append((name, value.strip(b" \t")))
    return trailers
