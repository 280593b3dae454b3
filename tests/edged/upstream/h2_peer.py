"""An HTTP/2 server made of single frames, to say what a real one would not."""

from __future__ import annotations

import hpack
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Peer:
    """One connection's frames, both ways."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.window_updates = 0
        self.frames = []

    async def start(self, **settings):
        assert await self.reader.readexactly(len(PREFACE)) == PREFACE
        frame = SettingsFrame(0)
        frame.settings = {getattr(SettingsFrame, name): v for name, v in settings.items()}
        self.send(frame)
        return self

    def send(self, *frames):
        self.writer.write(b"".join(frame.serialize() for frame in frames))

    async def read(self):
        header = await self.reader.readexactly(9)
        frame, length = Frame.parse_frame_header(memoryview(header))
        frame.parse_body(memoryview(await self.reader.readexactly(length)))
        self.frames.append(frame)
        return frame

    async def next(self, kind):
        """The next frame of ``kind``; PINGs, SETTINGS on the way are answered."""
        while True:
            frame = await self.read()
            if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
                self.send(SettingsFrame(0, flags=["ACK"]))
            if isinstance(frame, PingFrame) and "ACK" not in frame.flags and kind is not PingFrame:
                self.send(PingFrame(0, frame.opaque_data, flags=["ACK"]))
            if isinstance(frame, kind):
                return frame

    async def request(self):
        """The next request's stream id and fields."""
        frame = await self.next(HeadersFrame)
        return frame.stream_id, self.decoder.decode(bytes(frame.data), raw=True)

    def headers(self, stream_id, *fields, status=200, end=False):
        frame = HeadersFrame(stream_id, flags=["END_HEADERS"] + (["END_STREAM"] if end else []))
        named = [(":status", str(status))] if status else []
        frame.data = self.encoder.encode(named + list(fields))
        return frame

    def data(self, stream_id, data=b"", *, end=False):
        return DataFrame(stream_id, data, flags=["END_STREAM"] if end else [])

    def reset(self, stream_id, code):
        return RstStreamFrame(stream_id, error_code=code)

    def goaway(self, last, code=0):
        return GoAwayFrame(0, last_stream_id=last, error_code=code)

    def window(self, stream_id, size):
        return WindowUpdateFrame(stream_id, window_increment=size)
