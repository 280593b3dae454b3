"""An HTTP/2 client made of frames, which can do what it should not."""

from __future__ import annotations

import struct

from hpack import Decoder, Encoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4

GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"h"), (b":path", b"/")]
POST = [(b":method", b"POST"), *GET[1:]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return (
        struct.pack(">I", len(payload))[1:]
        + bytes((kind, flags))
        + struct.pack(">I", stream)
        + payload
    )


class H2Client:
    """Sends frames over a `Raw` client and keeps what comes back, by stream."""

    def __init__(self, raw, settings: dict[int, int] | None = None) -> None:
        self.raw = raw
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.buffer = b""
        self.heads: dict[int, list[list[tuple[bytes, bytes]]]] = {}
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.goaway: tuple[int, int] | None = None
        self.windows: dict[int, int] = {}
        self.closed = False
        payload = b"".join(struct.pack(">HI", *item) for item in (settings or {}).items())
        raw.send(PREFACE + frame(SETTINGS, 0, 0, payload))

    def block(self, fields) -> bytes:
        return self.encoder.encode([(n, v) for n, v in fields], huffman=False)

    def headers(self, stream: int, fields, *, end: bool = True) -> None:
        flags = END_HEADERS | (END_STREAM if end else 0)
        self.raw.send(frame(HEADERS, flags, stream, self.block(fields)))

    def data(self, stream: int, data: bytes, *, end: bool = False) -> None:
        for at in range(0, len(data) or 1, 16384):
            last = at + 16384 >= len(data)
            flags = END_STREAM if end and last else 0
            self.raw.send(frame(DATA, flags, stream, data[at : at + 16384]))

    def window(self, stream: int, size: int) -> None:
        self.raw.send(frame(WINDOW, 0, stream, struct.pack(">I", size)))

    def rst(self, stream: int, code: int = 8) -> None:
        self.raw.send(frame(RST, 0, stream, struct.pack(">I", code)))

    async def until(self, condition) -> None:
        """Read frames until ``condition()`` holds or the server closes."""
        while not condition() and not self.closed:
            try:
                data = await self.raw.reader.read(65536)
            except ConnectionError:
                data = b""
            if not data:
                self.closed = True
                return
            self.buffer += data
            self._parse()

    def _parse(self) -> None:
        while len(self.buffer) >= 9:
            size = int.from_bytes(self.buffer[:3], "big")
            if len(self.buffer) < 9 + size:
                return
            kind, flags = self.buffer[3], self.buffer[4]
            stream = int.from_bytes(self.buffer[5:9], "big")
            payload, self.buffer = self.buffer[9 : 9 + size], self.buffer[9 + size :]
            self._frame(kind, flags, stream, payload)

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == HEADERS:
            self.heads.setdefault(stream, []).append(
                [(bytes(n), bytes(v)) for n, v in self.decoder.decode(payload, raw=True)]
            )
        elif kind == DATA:
            self.bodies[stream] = self.bodies.get(stream, b"") + payload
        elif kind == RST:
            self.resets[stream] = int.from_bytes(payload, "big")
        elif kind == GOAWAY:
            self.goaway = struct.unpack(">II", payload[:8])
        elif kind == WINDOW:
            self.windows[stream] = self.windows.get(stream, 0) + int.from_bytes(payload, "big")
        elif kind == SETTINGS and not flags & ACK:
            self.raw.send(frame(SETTINGS, ACK, 0))
        if kind in (HEADERS, DATA) and flags & END_STREAM:
            self.ended.add(stream)

    def status(self, stream: int) -> int | None:
        """Of the final response on ``stream``."""
        for fields in self.heads.get(stream, ()):
            status = dict(fields).get(b":status")
            if status is not None and status[:1] != b"1":
                return int(status)
        return None

    async def response(self, stream: int) -> tuple[int | None, bytes]:
        """Wait for the whole response on ``stream``, or its reset."""
        await self.until(lambda: stream in self.ended or stream in self.resets)
        return self.status(stream), self.bodies.get(stream, b"")
