"""HTTP/2 frames of a client connection (RFC 9113), without I/O: bytes in, calls on a sink out.

Why not the engines' own connection objects: with 64 requests open they take 95 us of CPU for a
small request (`jh2`; `h2` 150 us), most of it in per-frame objects and in a scan of all streams for
each new one; this takes a fifth of it with the same HPACK (`bench/upstream.py`). It knows frames,
HPACK, SETTINGS and windows; what a stream's frames mean is `edged.upstream.h2_stream`'s business.

A `WireError` is an error of the connection: its user sends GOAWAY with its code and closes.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, ClassVar, Protocol

from edged.messages import Headers
from edged.upstream.engines import HpackEngine, HpackError, HpackOversizedError

if TYPE_CHECKING:
    from edged.upstream.h2_stream import H2Stream

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WINDOW_INITIAL = 65_535
WINDOW_LARGEST = (1 << 31) - 1
CONTINUATIONS_MAX = 64

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE = 0, 1, 2, 3, 4, 5
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION, ALTSVC = 6, 7, 8, 9, 10
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20
TABLE_SIZE, ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME, MAX_HEADER_LIST = 1, 2, 3, 4, 5, 6

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT = 0, 1, 2, 3, 4
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR = 5, 6, 7, 8, 9
ENHANCE_YOUR_CALM, HTTP_1_1_REQUIRED = 11, 13

CODE_NAMES = {
    NO_ERROR: "NO_ERROR",
    PROTOCOL_ERROR: "PROTOCOL_ERROR",
    INTERNAL_ERROR: "INTERNAL_ERROR",
    FLOW_CONTROL_ERROR: "FLOW_CONTROL_ERROR",
    SETTINGS_TIMEOUT: "SETTINGS_TIMEOUT",
    STREAM_CLOSED: "STREAM_CLOSED",
    FRAME_SIZE_ERROR: "FRAME_SIZE_ERROR",
    REFUSED_STREAM: "REFUSED_STREAM",
    CANCEL: "CANCEL",
    COMPRESSION_ERROR: "COMPRESSION_ERROR",
    10: "CONNECT_ERROR",
    ENHANCE_YOUR_CALM: "ENHANCE_YOUR_CALM",
    12: "INADEQUATE_SECURITY",
    HTTP_1_1_REQUIRED: "HTTP_1_1_REQUIRED",
}

_frame_header = Struct(">HBBBL")
_setting = Struct(">HL")
_number = Struct(">L")
_two_numbers = Struct(">LL")


class WireError(Exception):
    """The peer broke the connection's rules; ``code`` is for the GOAWAY, the text for people."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Sink(Protocol):
    """Who is told what arrived. ``closed`` stops the reading at once."""

    closed: bool
    streams: dict[int, H2Stream]
    """Those whose frames matter; frames of others are accounted for and dropped."""

    def data_counted(self, size: int) -> None:
        """DATA of ``size`` flow-controlled bytes came, for whichever stream."""

    def window_opened(self, stream_id: int) -> None:
        """More may be sent: on one stream, or, for 0, on all."""

    def settings_received(self) -> None:
        """The peer's SETTINGS changed; windows of streams are adjusted already."""

    def settings_acked(self) -> None:
        """The peer has ours."""

    def ping_acked(self, data: bytes) -> None:
        """Our PING came back."""

    def goaway_received(self, last_id: int, code: int) -> None:
        """GOAWAY."""

    def alt_svc_received(self, origin: bytes, value: bytes) -> None:
        """ALTSVC on stream 0 (RFC 7838 section 4)."""


class H2Wire:
    """One connection's framing, both ways."""

    __deletable__: ClassVar = ["_sink"]
    """For mypyc."""

    def __init__(
        self, hpack: HpackEngine, sink: Sink, *, window: int, frame_bytes: int, head_bytes: int
    ) -> None:
        """Announce streams' ``window``, the largest frame and the largest head accepted."""
        self.window = window
        self.out_window = WINDOW_INITIAL
        """What the peer still takes on the whole connection."""
        self.peer_window = WINDOW_INITIAL
        """What it takes at first on each new stream."""
        self.peer_frame_bytes = 16_384
        self.peer_streams: int | None = None
        """How many it takes at once; ``None``: it set no limit."""
        self.next_id = 1
        self._sink = sink
        self._encode = hpack.encoder()
        self._decode = hpack.decoder(head_bytes)
        self._frame_bytes = frame_bytes
        self._head_bytes = head_bytes
        self._in_window = WINDOW_INITIAL
        self._out: list[bytes] = []
        self._rest = b""
        self._settled = False
        self._block: list[bytes] | None = None
        """Fragments of a head that is not complete; only CONTINUATION may follow."""
        self._block_id = 0
        self._block_ends = False

    def release(self) -> None:
        """Nothing comes or goes any more: let go of the sink, which refers to this."""
        del self._sink

    # Out

    def take(self) -> bytes:
        """What is due to be written, once."""
        out = self._out
        if not out:
            return b""
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return data

    def start(self, connection_window: int) -> None:
        """Preface, SETTINGS, and a larger window for the connection."""
        pairs = (
            (ENABLE_PUSH, 0),
            (INITIAL_WINDOW, self.window),
            (MAX_FRAME, self._frame_bytes),
            (MAX_HEADER_LIST, self._head_bytes),
        )
        self._out.append(PREFACE)
        self._frame(SETTINGS, 0, 0, b"".join(_setting.pack(*pair) for pair in pairs))
        self.give_window(0, connection_window - WINDOW_INITIAL)

    def send_headers(self, stream_id: int, fields: Headers, *, end: bool) -> None:
        """HEADERS, with CONTINUATION if the block is larger than a frame of the peer's."""
        block = self._encode(fields)
        flags = END_STREAM if end else 0
        limit = self.peer_frame_bytes
        if len(block) <= limit:
            self._frame(HEADERS, flags | END_HEADERS, stream_id, block)
            return
        self._frame(HEADERS, flags, stream_id, block[:limit])
        for start in range(limit, len(block), limit):
            last = start + limit >= len(block)
            self._frame(
                CONTINUATION, END_HEADERS if last else 0, stream_id, block[start : start + limit]
            )

    def send_data(self, stream: H2Stream, data: bytes, *, end: bool = False) -> None:
        """DATA that fits both windows and one frame."""
        size = len(data)
        stream.out_window -= size
        self.out_window -= size
        self._frame(DATA, END_STREAM if end else 0, stream.id, data)

    def reset(self, stream_id: int, code: int) -> None:
        """RST_STREAM."""
        self._frame(RST_STREAM, 0, stream_id, _number.pack(code))

    def give_window(self, stream_id: int, size: int) -> None:
        """WINDOW_UPDATE; for a stream its user counts."""
        if not stream_id:
            self._in_window += size
        self._frame(WINDOW_UPDATE, 0, stream_id, _number.pack(size))

    def ping(self, data: bytes) -> None:
        """PING with 8 bytes."""
        self._frame(PING, 0, 0, data)

    def goaway(self, code: int) -> None:
        """GOAWAY; no stream of the peer's was ever processed, because it may open none."""
        self._frame(GOAWAY, 0, 0, _two_numbers.pack(0, code))

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self._out.append(_frame_header.pack(size >> 8, size & 0xFF, kind, flags, stream_id))
        if payload:
            self._out.append(payload)

    # In

    def receive(self, data: bytes) -> None:
        """Take bytes from the peer; the sink and its streams are called inside.

        Raises `WireError`.
        """
        if self._rest:
            data = self._rest + data
            self._rest = b""
        position, end = 0, len(data)
        sink = self._sink
        streams = sink.streams
        while end - position >= 9:
            high, low, kind, flags, stream_id = _frame_header.unpack_from(data, position)
            size = (high << 8) | low
            if size > self._frame_bytes:
                raise WireError(FRAME_SIZE_ERROR, "a frame larger than allowed")
            stop = position + 9 + size
            if stop > end:
                break
            payload = data[position + 9 : stop]
            position = stop
            stream_id &= 0x7FFFFFFF
            if self._block is not None and (kind != CONTINUATION or stream_id != self._block_id):
                raise WireError(PROTOCOL_ERROR, "a frame within a head")
            if kind == DATA:
                if flags & PADDED:
                    payload = _unpadded(payload)
                self._count(stream_id, size)
                if (stream := streams.get(stream_id)) is not None:
                    stream.received_data(payload, size)
                    if flags & END_STREAM:
                        stream.received_end()
                sink.data_counted(size)
            elif kind == HEADERS:
                self._receive_headers(stream_id, flags, payload)
            else:
                self._receive_control(kind, flags, stream_id, payload)
            if sink.closed:
                return
        self._rest = data[position:]

    def _count(self, stream_id: int, size: int) -> None:
        self._known(stream_id)
        self._in_window -= size
        if self._in_window < 0:
            raise WireError(FLOW_CONTROL_ERROR, "more data than the connection's window")

    def _known(self, stream_id: int) -> None:
        """Only streams that were opened, by this side, can have frames (section 5.1)."""
        if not self._settled:
            raise WireError(PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if stream_id >= self.next_id or not stream_id & 1:
            raise WireError(PROTOCOL_ERROR, "a frame on a stream that is not open")

    def _receive_headers(self, stream_id: int, flags: int, payload: bytes) -> None:
        self._known(stream_id)
        if flags & PADDED:
            payload = _unpadded(payload)
        if flags & WITH_PRIORITY:
            if len(payload) < 5:
                raise WireError(FRAME_SIZE_ERROR, "HEADERS too short")
            payload = payload[5:]
        if flags & END_HEADERS:
            self._head(stream_id, payload, ends=bool(flags & END_STREAM))
        else:
            self._block = [payload]
            self._block_id = stream_id
            self._block_ends = bool(flags & END_STREAM)

    def _receive_continuation(self, flags: int, payload: bytes) -> None:
        block = self._block
        if block is None:
            raise WireError(PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        block.append(payload)
        if len(block) > CONTINUATIONS_MAX or sum(map(len, block)) > 2 * self._head_bytes:
            raise WireError(ENHANCE_YOUR_CALM, "a head larger than allowed")
        if flags & END_HEADERS:
            self._block = None
            self._head(self._block_id, b"".join(block), ends=self._block_ends)

    def _head(self, stream_id: int, block: bytes, *, ends: bool) -> None:
        try:
            fields = self._decode(block)
        except HpackOversizedError:
            raise WireError(ENHANCE_YOUR_CALM, "a head larger than allowed") from None
        except HpackError:
            raise WireError(COMPRESSION_ERROR, "a head that cannot be decoded") from None
        if (stream := self._sink.streams.get(stream_id)) is not None:
            stream.received_fields(fields, ends=ends)
            if ends:
                stream.received_end()

    def _receive_control(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        if kind == SETTINGS:
            self._receive_settings(flags, stream_id, payload)
        elif not self._settled:
            raise WireError(PROTOCOL_ERROR, "the first frame is not SETTINGS")
        elif kind == WINDOW_UPDATE:
            if size != 4:
                raise WireError(FRAME_SIZE_ERROR, "WINDOW_UPDATE of a wrong size")
            self._receive_window(stream_id, _number.unpack(payload)[0] & 0x7FFFFFFF)
        elif kind == PING:
            if size != 8 or stream_id:
                raise WireError(FRAME_SIZE_ERROR, "PING of a wrong size")
            if flags & ACK:
                self._sink.ping_acked(payload)
            else:
                self._frame(PING, ACK, 0, payload)
        elif kind == RST_STREAM:
            if size != 4:
                raise WireError(FRAME_SIZE_ERROR, "RST_STREAM of a wrong size")
            self._known(stream_id)
            if (stream := self._sink.streams.get(stream_id)) is not None:
                stream.received_reset(_number.unpack(payload)[0])
        elif kind == GOAWAY:
            if size < 8 or stream_id:
                raise WireError(FRAME_SIZE_ERROR, "GOAWAY of a wrong size")
            last_id, code = _two_numbers.unpack_from(payload)
            self._sink.goaway_received(last_id & 0x7FFFFFFF, code)
        elif kind == CONTINUATION:
            self._receive_continuation(flags, payload)
        elif kind == PUSH_PROMISE:
            raise WireError(PROTOCOL_ERROR, "PUSH_PROMISE although push is off")
        elif kind == ALTSVC and not stream_id and size >= 2:
            length = int.from_bytes(payload[:2], "big")
            if length:
                self._sink.alt_svc_received(payload[2 : 2 + length], payload[2 + length :])

    def _receive_window(self, stream_id: int, size: int) -> None:
        if not stream_id:
            self.out_window += size
            if not size or self.out_window > WINDOW_LARGEST:
                raise WireError(FLOW_CONTROL_ERROR, "a WINDOW_UPDATE out of range")
            self._sink.window_opened(0)
            return
        self._known(stream_id)
        if (stream := self._sink.streams.get(stream_id)) is not None:
            stream.out_window += size
            if not size or stream.out_window > WINDOW_LARGEST:
                stream.malformed("a WINDOW_UPDATE out of range", FLOW_CONTROL_ERROR)
            else:
                self._sink.window_opened(stream_id)

    def _receive_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) % 6 or (flags & ACK and payload):
            raise WireError(FRAME_SIZE_ERROR, "SETTINGS of a wrong size")
        if flags & ACK:
            self._sink.settings_acked()
            return
        self._settled = True
        for name, value in _setting.iter_unpack(payload):
            if name == MAX_STREAMS:
                self.peer_streams = value
            elif name == INITIAL_WINDOW:
                if value > WINDOW_LARGEST:
                    raise WireError(FLOW_CONTROL_ERROR, "an initial window out of range")
                change, self.peer_window = value - self.peer_window, value
                for stream in self._sink.streams.values():
                    stream.out_window += change
                    if stream.out_window > WINDOW_LARGEST:
                        raise WireError(FLOW_CONTROL_ERROR, "an initial window out of range")
            elif name == MAX_FRAME:
                if not 16_384 <= value <= 16_777_215:
                    raise WireError(PROTOCOL_ERROR, "a frame size out of range")
                self.peer_frame_bytes = value
            elif name == TABLE_SIZE:
                self._encode.resize(value)
            elif name == ENABLE_PUSH and value:
                raise WireError(PROTOCOL_ERROR, "a server that allows push")
        self._frame(SETTINGS, ACK, 0, b"")
        self._sink.settings_received()


def _unpadded(payload: bytes) -> bytes:
    """Without pad length and padding (section 6.1). Raises `WireError`."""
    if not payload or payload[0] >= len(payload):
        raise WireError(PROTOCOL_ERROR, "padding as long as the frame")
    return payload[1 : len(payload) - payload[0]]
