"""Strict reading of HTTP/1.1 response heads (RFC 9112 sections 2 to 6): lines in, fields out.

One rule for everything ambiguous: refuse it. Servers repeat themselves: what a line means is
remembered, so that most lines of most heads cost one look-up. Remembered are status lines, and
lines of fields that say the same in many responses and hold no secret; the memory is bounded.
"""

from __future__ import annotations

import re
from operator import itemgetter
from typing import Final, NamedTuple

from edged.messages import Headers

Special = tuple[bytes, bytes, int]
"""A field about framing or the connection: name, value, and the number of a Content-Length."""
Line = tuple[tuple[bytes, bytes] | None, Special | None]
"""The field to hand over, if any, and the field that the connection reads itself, if any."""


class Malformed(Exception):
    """A response that is refused; the text says why, without quoting it."""


class StatusLine(NamedTuple):
    """The first line of a head."""

    status: int
    reason: bytes
    version: bytes
    """``1.0`` or ``1.1``."""
    plain: bool
    """HTTP/1.1, and a final status whose responses have a body."""


_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_STATUS_LINE = re.compile(rb"HTTP/(1\.[01]) ([1-9][0-9]{2})(?: ([\t -~\x80-\xff]*))?")
_BAD_CONTROL = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_HARMLESS: Final = bytes(b for b in range(256) if b == 9 or (b >= 32 and b != 127))
_START = b"HTTP/1."

_READ_HERE: Final = frozenset(
    (b"alt-svc", b"connection", b"content-length", b"transfer-encoding", b"upgrade")
)
_DROPPED: Final = frozenset((b"keep-alive", b"proxy-connection", b"te"))
_REPEATING: Final = frozenset(
    (
        b"accept-ranges",
        b"access-control-allow-credentials",
        b"access-control-allow-headers",
        b"access-control-allow-methods",
        b"access-control-allow-origin",
        b"access-control-expose-headers",
        b"cache-control",
        b"content-encoding",
        b"content-language",
        b"content-type",
        b"cross-origin-opener-policy",
        b"cross-origin-resource-policy",
        b"date",
        b"expires",
        b"openai-version",
        b"pragma",
        b"referrer-policy",
        b"server",
        b"strict-transport-security",
        b"vary",
        b"via",
        b"x-accel-buffering",
        b"x-content-type-options",
        b"x-frame-options",
        b"x-powered-by",
        b"x-xss-protection",
    )
)
_REMEMBERED: Final = 2048
_REMEMBERED_BYTES: Final = 128

_SELDOM: Final = 0
_OFTEN: Final = 1
_HERE: Final = 2
"""How a field is treated: read anew each time, remembered, remembered and read by the connection
or dropped."""

_names: Final[dict[bytes, tuple[bytes, int]]] = {}


def _field_name(raw: bytes) -> tuple[bytes, int]:
    """``raw`` in lower case. Raises `Malformed` when it is no token (a folded line, a space)."""
    if not _TOKEN.fullmatch(raw):
        raise Malformed("a field line without a valid name")
    name = raw.lower()
    here = name in _READ_HERE or name in _DROPPED
    known = name, _HERE if here else _OFTEN if name in _REPEATING else _SELDOM
    if len(_names) < _REMEMBERED and len(raw) < _REMEMBERED_BYTES:
        _names[raw] = known
    return known


class _Lines(dict[bytes, Line]):
    """Field lines and what they mean. ``[]`` reads a line not known yet. Raises `Malformed`."""

    def __missing__(self, line: bytes) -> Line:
        raw, colon, value = line.partition(b":")
        name, kind = _names.get(raw) or _field_name(raw)
        if not colon or value.translate(None, _HARMLESS):
            raise Malformed("a field line without a colon or with a control character")
        field = name, value.strip(b" \t")
        if kind == _SELDOM:
            return field, None
        read = (field, None) if kind == _OFTEN else _read_here(field)
        if len(line) <= _REMEMBERED_BYTES:
            if len(self) >= _REMEMBERED:
                self.clear()
            self[line] = read
        return read


def _read_here(field: tuple[bytes, bytes]) -> Line:
    name, value = field
    if name == b"content-length":
        # 1*DIGIT (RFC 9110 section 8.6); a list of equal numbers is refused as well.
        if not value.isdigit() or len(value) > 18:
            raise Malformed("the Content-Length is not a plain number")
        return None, (name, value, int(value))
    if name in _DROPPED or (name == b"connection" and value.lower() == b"keep-alive"):
        return None, None  # keeping is what HTTP/1.1 does anyway; see `keeps_alive` for 1.0
    return field if name == b"alt-svc" else None, (name, value, -1)


class _StatusLines(dict[bytes, StatusLine]):
    """Status lines. ``[]`` reads one not known yet. Raises `Malformed`."""

    def __missing__(self, line: bytes) -> StatusLine:
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            raise Malformed("no HTTP/1.1 status line")
        status = int(match[2])
        plain = match[1] == b"1.1" and status >= 200 and status not in (204, 304)
        read = StatusLine(status, match[3] or b"", match[1], plain)
        if len(self) < _REMEMBERED and len(line) <= _REMEMBERED_BYTES:
            self[line] = read
        return read


_lines = _Lines()
_status_lines = _StatusLines()

read_line: Final = _lines.__getitem__
"""What a field line means. Raises `Malformed`."""
read_status_line: Final = _status_lines.__getitem__
"""What a status line says. Raises `Malformed`."""
field_of: Final = itemgetter(0)
"""Of a `Line`."""
special_of: Final = itemgetter(1)
"""Of a `Line`."""


def keeps_alive(lines: list[bytes]) -> bool:
    """Whether the field lines of a good HTTP/1.0 head ask to keep the connection."""
    options = [
        option.strip(b" \t")
        for name, _, value in (line.lower().partition(b":") for line in lines)
        if name == b"connection"
        for option in value.split(b",")
    ]
    return b"keep-alive" in options and b"close" not in options


def first_defect(buffer: bytes | bytearray, start: int) -> str:
    """What is already wrong with an incomplete head, or nothing while it may become good.

    The verdict depends on the bytes alone, not on how they were cut; ``start`` skips what an
    earlier call has seen.
    """
    if not buffer.startswith(_START[: len(buffer)]):
        return "no HTTP/1.1 status line"
    if _BAD_CONTROL.search(buffer, start):
        return "a bare CR or LF or a control character in the head"
    return ""


class Framing(NamedTuple):
    """What the special fields of a head say together."""

    length: int | None
    chunked: bool
    """A transfer coding is named, and it is ``chunked`` alone."""
    coded: bool
    """A transfer coding is named."""
    options: frozenset[bytes]
    """Connection options: also names of fields to drop (RFC 9110 section 7.6.1)."""
    closes: bool
    protocol: bytes | None
    """The Upgrade field."""
    alternatives: list[bytes]
    """Alt-Svc values."""


def read_special(special: list[Special]) -> Framing:
    """Put the special fields together. Raises `Malformed` where they contradict each other."""
    lengths: list[int] = []
    codings: list[bytes] = []
    options: set[bytes] = set()
    protocols: list[bytes] = []
    alternatives: list[bytes] = []
    for name, value, number in special:
        if number >= 0:
            lengths.append(number)
        elif name == b"transfer-encoding":
            codings.append(value.lower())
        elif name == b"connection":
            options.update(option.strip(b" \t") for option in value.lower().split(b","))
        elif name == b"upgrade":
            protocols.append(value)
        else:
            alternatives.append(value)
    if len(lengths) > 1:
        raise Malformed("more than one Content-Length")
    if lengths and codings:
        raise Malformed("Content-Length beside Transfer-Encoding")
    return Framing(
        lengths[0] if lengths else None,
        codings == [b"chunked"],
        bool(codings),
        frozenset(options),
        b"close" in options,
        b", ".join(protocols) if protocols else None,
        alternatives,
    )


def without(headers: Headers, options: frozenset[bytes]) -> Headers:
    """``headers`` but for the fields that Connection names."""
    return [field for field in headers if field[0] not in options]
