"""HTTP/3 framing for a client (RFC 9114) and its field compression (RFC 9204), without I/O.

One `Session` a connection: the control and QPACK streams. One `Reader` a request stream. Both QUIC
engines bring an HTTP/3 layer of their own; neither is used, because one hides GOAWAY and 1xx, both
close the whole connection for one malformed message, and a proxy needs neither push nor datagrams.

QPACK: our encoder uses the dynamic table that the peer allows, within its limit of blocked streams.
Our decoder allows a table but no blocked streams, so a lost packet of the encoder stream never
holds up a response.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

import pylsqpack

from edged.messages import Headers, RequestHead, ResponseHead

NO_ERROR = 0x100
GENERAL_PROTOCOL_ERROR = 0x101
INTERNAL_ERROR = 0x102
STREAM_CREATION_ERROR = 0x103
CLOSED_CRITICAL_STREAM = 0x104
FRAME_UNEXPECTED = 0x105
FRAME_ERROR = 0x106
EXCESSIVE_LOAD = 0x107
ID_ERROR = 0x108
SETTINGS_ERROR = 0x109
MISSING_SETTINGS = 0x10A
REQUEST_REJECTED = 0x10B
REQUEST_CANCELLED = 0x10C
REQUEST_INCOMPLETE = 0x10D
MESSAGE_ERROR = 0x10E
CONNECT_ERROR = 0x10F
VERSION_FALLBACK = 0x110
QPACK_DECOMPRESSION_FAILED = 0x200
QPACK_ENCODER_STREAM_ERROR = 0x201
QPACK_DECODER_STREAM_ERROR = 0x202

ERROR_NAMES = {
    value: f"H3_{name}" if value < 0x200 else name
    for name, value in list(globals().items())
    if isinstance(value, int) and name.isupper()
}

MAX_HEAD_BYTES = 256 << 10
"""Largest encoded field section accepted, and announced (decoded) as MAX_FIELD_SECTION_SIZE."""

_TABLE_BYTES = 4096
_DATA, _HEADERS, _SETTINGS, _PUSH_PROMISE, _GOAWAY = 0x0, 0x1, 0x4, 0x5, 0x7
_RESERVED_FRAMES = frozenset({0x2, 0x6, 0x8, 0x9})
_CONTROL_ONLY = frozenset({0x3, _SETTINGS, _GOAWAY, 0xD}) | _RESERVED_FRAMES
_CONTROL, _PUSH, _QPACK_ENCODER, _QPACK_DECODER = 0x0, 0x1, 0x2, 0x3
_BAD_NAME = re.compile(rb"[^!#$%&'*+\-.^_`|~0-9a-z]")
_BAD_VALUE = re.compile(rb"[\x00\r\n]")
_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_BODY_METHODS = frozenset({b"POST", b"PUT", b"PATCH"})


class ConnectionBroken(Exception):
    """The peer broke HTTP/3 in a way that ends the connection, with this error code."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class StreamBroken(Exception):
    """The peer broke one message: its stream is over, with this error code."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


def varint(value: int) -> bytes:
    """RFC 9000 section 16."""
    if value < 0x40:
        return bytes((value,))
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2, "big")
    if value < 0x40000000:
        return (value | 0x80000000).to_bytes(4, "big")
    return (value | 0xC000000000000000).to_bytes(8, "big")


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The integer at ``at`` and the position after it; ``(-1, at)`` when ``data`` ends before."""
    if at >= len(data):
        return -1, at
    first = data[at]
    if first < 0x40:
        return first, at + 1
    size = 1 << (first >> 6)
    end = at + size
    if end > len(data):
        return -1, at
    return int.from_bytes(data[at:end], "big") & ((1 << (8 * size - 2)) - 1), end


def data_frame_header(length: int) -> bytes:
    """What precedes ``length`` bytes of body."""
    return b"\x00" + varint(length)


def check_fields(headers: Headers) -> None:
    """Refuse what could be smuggled into HTTP/1.1 (RFC 9114, 10.3). Raises `StreamBroken`."""
    names, values = zip(*headers, strict=True) if headers else ((), ())
    if _BAD_NAME.search(b"".join(names)) or b"" in names:
        raise StreamBroken(MESSAGE_ERROR, "malformed field name in the response")
    if _BAD_VALUE.search(b"".join(values)):
        raise StreamBroken(MESSAGE_ERROR, "malformed field value in the response")


def request_fields(head: RequestHead) -> Headers:
    """The field section of a request: pseudo-header fields first."""
    if head.method == b"CONNECT":
        fields = [(b":method", head.method), (b":authority", head.authority)]
    else:
        fields = [
            (b":method", head.method),
            (b":scheme", head.scheme),
            (b":authority", head.authority),
            (b":path", head.path),
        ]
    fields += head.headers
    if head.body_length:
        fields.append((b"content-length", b"%d" % head.body_length))
    elif head.body_length == 0 and head.method in _BODY_METHODS:
        fields.append((b"content-length", b"0"))
    return fields


def response_head(fields: Headers, method: bytes) -> ResponseHead:
    """A response's head from its field section. Raises `StreamBroken` if it is malformed."""
    if not fields or fields[0][0] != b":status":
        raise StreamBroken(MESSAGE_ERROR, "the response has no :status")
    code = fields[0][1]
    if len(code) != 3 or not code.isdigit() or code < b"100":
        raise StreamBroken(MESSAGE_ERROR, "the response's :status is malformed")
    status = int(code)
    headers = fields[1:]
    check_fields(headers)
    length: int | None = None
    drop = False
    for name, value in headers:
        if name == b"content-length":
            if not value.isdigit() or (length is not None and length != int(value)):
                raise StreamBroken(MESSAGE_ERROR, "the response's content-length is malformed")
            length = int(value)
            drop = True
        elif name in _HOP_BY_HOP:
            drop = True
    if drop:
        headers = [f for f in headers if f[0] != b"content-length" and f[0] not in _HOP_BY_HOP]
    framing = length
    if method == b"HEAD" or status in (204, 304) or status < 200:
        framing = 0
    elif method == b"CONNECT" and status < 300:
        framing = None
    return ResponseHead(
        status,
        headers,
        framing,
        version=b"3",
        declared_length=length,
    )


class Reader:
    """Cuts one request stream into heads and body bytes, as they come.

    ``feed`` calls ``on_fields`` with each encoded field section and ``on_body`` with body bytes,
    and stops at once when ``stopped`` turns true, returning what it did not look at.
    """

    __slots__ = ("_partial", "_skip", "body_left", "on_body", "on_fields", "stopped")

    def __init__(
        self, on_fields: Callable[[bytes], None], on_body: Callable[[bytes], None]
    ) -> None:
        self.on_fields = on_fields
        self.on_body = on_body
        self.stopped = False
        self.body_left = 0
        """Bytes that the current DATA frame still has."""
        self._skip = 0
        self._partial = b""

    @property
    def mid_frame(self) -> bool:
        """A stream that ends here ends inside a frame."""
        return bool(self.body_left or self._skip or self._partial)

    def feed(self, data: bytes) -> bytes:
        """Take the stream's next bytes. Raises `StreamBroken` and `ConnectionBroken`."""
        if self._partial:
            data = self._partial + data
            self._partial = b""
        at, size = 0, len(data)
        while at < size:
            if self.stopped:
                return data[at:]
            if self.body_left:
                end = min(size, at + self.body_left)
                self.body_left -= end - at
                self.on_body(data if end - at == size else data[at:end])
                at = end
            elif self._skip:
                end = min(size, at + self._skip)
                self._skip -= end - at
                at = end
            else:
                end = self._frame(data, at)
                if end < 0:
                    self._partial = data[at:]
                    break
                at = end
        return b""

    def _frame(self, data: bytes, at: int) -> int:
        """Begin the frame at ``at``: the position after what was taken, or -1 for more bytes."""
        kind, body = read_varint(data, at)
        length, body = read_varint(data, body) if kind >= 0 else (-1, at)
        if length < 0:
            return -1
        if kind == _DATA:
            self.body_left = length
        elif kind == _HEADERS:
            if length > MAX_HEAD_BYTES:
                raise StreamBroken(EXCESSIVE_LOAD, "the response's field section is too large")
            end = body + length
            if end > len(data):
                return -1
            self.on_fields(data[body:end])
            return end
        elif kind == _PUSH_PROMISE:
            raise ConnectionBroken(ID_ERROR, "the server pushed without permission")
        elif kind in _CONTROL_ONLY:
            raise ConnectionBroken(FRAME_UNEXPECTED, f"frame type {kind} on a request stream")
        else:
            self._skip = length
        return body


class SessionEvents(Protocol):
    """What a `Session` needs from its connection."""

    def send_on(self, stream_id: int, data: bytes) -> None:
        """Queue bytes on one of our unidirectional streams."""

    def goaway(self, last_id: int) -> None:
        """Requests with ``last_id`` and above were not and will not be processed."""


class Session:
    """The control and QPACK streams of one connection, both ways."""

    def __init__(
        self,
        events: SessionEvents,
        stream_ids: tuple[int, int, int],
        *,
        table_bytes: int = _TABLE_BYTES,
        head_bytes: int = MAX_HEAD_BYTES,
        datagrams: bool = False,
    ) -> None:
        """``table_bytes`` and ``head_bytes`` are what the peer may use of our memory.
        ``datagrams``: HTTP datagrams are taken, and may be sent (RFC 9297).
        """
        self._events = events
        control, self._encoder_id, self._decoder_id = stream_ids
        self._encoder = pylsqpack.Encoder()
        self._decoder = pylsqpack.Decoder(table_bytes, 0)
        self._settings_seen = False
        self._goaway_id: int | None = None
        self._kinds: dict[int, int] = {}
        self._buffers: dict[int, bytes] = {}
        values = [(0x1, table_bytes), (0x6, head_bytes), *([(0x33, 1)] if datagrams else ())]
        settings = b"".join(varint(key) + varint(value) for key, value in values)
        frame = b"\x00" + varint(_SETTINGS) + varint(len(settings)) + settings
        events.send_on(control, frame)
        events.send_on(self._encoder_id, bytes((_QPACK_ENCODER,)))
        events.send_on(self._decoder_id, bytes((_QPACK_DECODER,)))

    def encode(self, stream_id: int, fields: Headers) -> bytes:
        """A HEADERS frame."""
        instructions, section = self._encoder.encode(stream_id, fields)
        if instructions:
            self._events.send_on(self._encoder_id, instructions)
        return b"\x01" + varint(len(section)) + section

    def decode(self, stream_id: int, section: bytes) -> Headers:
        """The fields of a section. Raises `ConnectionBroken`."""
        try:
            instructions, fields = self._decoder.feed_header(stream_id, section)
        except (
            pylsqpack.DecompressionFailed,
            pylsqpack.DecoderStreamError,
            pylsqpack.StreamBlocked,
        ) as error:
            raise ConnectionBroken(
                QPACK_DECOMPRESSION_FAILED, "the response's fields cannot be decompressed"
            ) from error
        if instructions:
            self._events.send_on(self._decoder_id, instructions)
        return fields

    def cancelled(self, stream_id: int) -> None:
        """A response will not be read to its end (RFC 9204 section 2.2.2.2)."""
        instructions = self._decoder.cancel_stream(stream_id)
        if instructions:
            self._events.send_on(self._decoder_id, instructions)

    def receive(self, stream_id: int, data: bytes, fin: bool) -> None:
        """Bytes of a stream that the server opened. Raises `ConnectionBroken`."""
        kind = self._kinds.get(stream_id)
        if kind is None:
            data = self._buffers.pop(stream_id, b"") + data
            kind, at = read_varint(data, 0)
            if kind < 0:
                if not fin:
                    self._buffers[stream_id] = data
                return
            data = data[at:]
            self._opened(stream_id, kind)
        if fin and kind in (_CONTROL, _QPACK_ENCODER, _QPACK_DECODER):
            raise ConnectionBroken(CLOSED_CRITICAL_STREAM, "the server closed a critical stream")
        try:
            if kind == _CONTROL:
                self._control(stream_id, data)
            elif kind == _QPACK_ENCODER and data:
                self._decoder.feed_encoder(data)
            elif kind == _QPACK_DECODER and data:
                self._encoder.feed_decoder(data)
        except pylsqpack.EncoderStreamError as error:
            raise ConnectionBroken(QPACK_ENCODER_STREAM_ERROR, "QPACK encoder stream") from error
        except pylsqpack.DecoderStreamError as error:
            raise ConnectionBroken(QPACK_DECODER_STREAM_ERROR, "QPACK decoder stream") from error

    def reset(self, stream_id: int) -> None:
        """The server reset a stream of its own. Raises `ConnectionBroken` for a critical one."""
        if self._kinds.get(stream_id) in (_CONTROL, _QPACK_ENCODER, _QPACK_DECODER):
            raise ConnectionBroken(CLOSED_CRITICAL_STREAM, "the server reset a critical stream")

    def _opened(self, stream_id: int, kind: int) -> None:
        if kind == _PUSH:
            raise ConnectionBroken(ID_ERROR, "the server pushed without permission")
        if kind <= _QPACK_DECODER and kind in self._kinds.values():
            raise ConnectionBroken(
                STREAM_CREATION_ERROR, "the server opened a critical stream twice"
            )
        self._kinds[stream_id] = kind

    def _control(self, stream_id: int, data: bytes) -> None:
        data = self._buffers.pop(stream_id, b"") + data
        at = 0
        while True:
            kind, body = read_varint(data, at)
            length, body = read_varint(data, body) if kind >= 0 else (-1, at)
            if length > MAX_HEAD_BYTES:
                raise ConnectionBroken(EXCESSIVE_LOAD, "oversized frame on the control stream")
            if length < 0 or body + length > len(data):
                break
            at = body + length
            self._control_frame(kind, data[body:at])
        if at < len(data):
            self._buffers[stream_id] = data[at:]

    def _control_frame(self, kind: int, payload: bytes) -> None:
        if kind == _SETTINGS:
            if self._settings_seen:
                raise ConnectionBroken(FRAME_UNEXPECTED, "SETTINGS came twice")
            self._settings_seen = True
            self._apply(payload)
        elif not self._settings_seen:
            raise ConnectionBroken(MISSING_SETTINGS, "the control stream begins without SETTINGS")
        elif kind == _GOAWAY:
            last_id, end = read_varint(payload, 0)
            if last_id < 0 or end != len(payload) or last_id & 3:
                raise ConnectionBroken(ID_ERROR, "malformed GOAWAY")
            if self._goaway_id is not None and last_id > self._goaway_id:
                raise ConnectionBroken(ID_ERROR, "GOAWAY went up")
            self._goaway_id = last_id
            self._events.goaway(last_id)
        elif kind in (_DATA, _HEADERS, _PUSH_PROMISE, 0xD) or kind in _RESERVED_FRAMES:
            raise ConnectionBroken(FRAME_UNEXPECTED, f"frame type {kind} on the control stream")

    def _apply(self, payload: bytes) -> None:
        settings: dict[int, int] = {}
        at = 0
        while at < len(payload):
            key, at = read_varint(payload, at)
            value, after = read_varint(payload, at)
            if key < 0 or value < 0 or key in settings or key in (0x0, 0x2, 0x3, 0x4, 0x5):
                raise ConnectionBroken(SETTINGS_ERROR, "malformed SETTINGS")
            settings[key] = value
            at = after
        table = min(settings.get(0x1, 0), _TABLE_BYTES)
        instructions = self._encoder.apply_settings(table, settings.get(0x7, 0))
        if instructions:
            self._events.send_on(self._encoder_id, instructions)
