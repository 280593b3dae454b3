"""HTTP/2 frames: what is written, what breaks the connection, and that nothing else is raised."""

from __future__ import annotations

import struct

import hpack
import pytest
from hyperframe.frame import (
    AltSvcFrame,
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.upstream import h2_wire as w
from edged.upstream.engines import hpack_engine
from edged.upstream.h2_wire import H2Wire, WireError

pytestmark = [pytest.mark.sources, pytest.mark.parametrize("engine", ["pure", "fast"])]

FRAME_BYTES = 16_384


class Stream:
    """Records what the wire says of one stream."""

    def __init__(self, stream_id):
        self.id = stream_id
        self.out_window = 65_535
        self.told = []

    def received_fields(self, fields, *, ends):
        self.told.append(("fields", fields, ends))

    def received_data(self, data, size):
        self.told.append(("data", data, size))

    def received_end(self):
        self.told.append(("end",))

    def received_reset(self, code):
        self.told.append(("reset", code))

    def malformed(self, why, code=1):
        self.told.append(("malformed", code))


class Sink:
    """Records what the wire says of the connection."""

    closed = False

    def __init__(self):
        self.streams = {}
        self.told = []

    def data_counted(self, size):
        self.told.append(("data", size))

    def window_opened(self, stream_id):
        self.told.append(("window", stream_id))

    def settings_received(self):
        self.told.append(("settings",))

    def settings_acked(self):
        self.told.append(("acked",))

    def ping_acked(self, data):
        self.told.append(("ping", data))

    def goaway_received(self, last_id, code):
        self.told.append(("goaway", last_id, code))

    def alt_svc_received(self, origin, value):
        self.told.append(("alt-svc", origin, value))


def made(engine, *, settled=True, open_streams=(1,)):
    sink = Sink()
    wire = H2Wire(
        hpack_engine(engine), sink, window=1 << 20, frame_bytes=FRAME_BYTES, head_bytes=1 << 16
    )
    wire.start(1 << 24)
    wire.next_id = 9
    for stream_id in open_streams:
        sink.streams[stream_id] = Stream(stream_id)
    if settled:
        wire.receive(SettingsFrame(0).serialize())
    wire.take()
    sink.told.clear()
    return wire, sink


def settings_frame(**values):
    frame = SettingsFrame(0)
    frame.settings = {getattr(SettingsFrame, name): value for name, value in values.items()}
    return frame.serialize()


def head_frame(stream_id=1, *, flags=("END_HEADERS",), fields=((":status", "200"),), data=None):
    frame = HeadersFrame(stream_id, flags=list(flags))
    frame.data = hpack.Encoder().encode(list(fields)) if data is None else data
    return frame.serialize()


def raw(kind, flags, stream_id, payload=b""):
    return (
        struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream_id) + payload
    )


def test_the_preface_comes_first(engine):
    sink = Sink()
    wire = H2Wire(hpack_engine(engine), sink, window=1000, frame_bytes=20_000, head_bytes=3000)
    wire.start(100_000)
    expected = SettingsFrame(0)
    expected.settings = {2: 0, 4: 1000, 5: 20_000, 6: 3000}
    window = WindowUpdateFrame(0, window_increment=100_000 - 65_535)
    assert wire.take() == w.PREFACE + expected.serialize() + window.serialize()
    assert wire.take() == b""


def test_settings_are_applied_and_acknowledged(engine):
    wire, sink = made(engine, settled=False)
    wire.receive(
        settings_frame(
            MAX_CONCURRENT_STREAMS=7,
            INITIAL_WINDOW_SIZE=1_000_000,
            MAX_FRAME_SIZE=20_000,
            HEADER_TABLE_SIZE=0,
        )
    )
    assert (wire.peer_streams, wire.peer_window, wire.peer_frame_bytes) == (7, 1_000_000, 20_000)
    assert sink.streams[1].out_window == 1_000_000
    assert wire.take() == SettingsFrame(0, flags=["ACK"]).serialize()
    wire.receive(settings_frame(INITIAL_WINDOW_SIZE=0))
    assert sink.streams[1].out_window == 0
    wire.receive(SettingsFrame(0, flags=["ACK"]).serialize())
    assert sink.told[-1] == ("acked",)


def test_bytes_may_come_one_by_one(engine):
    wire, sink = made(engine)
    frames = head_frame() + DataFrame(1, b"hello", flags=["END_STREAM"]).serialize()
    for value in frames:
        wire.receive(bytes([value]))
    assert sink.streams[1].told == [
        ("fields", [(b":status", b"200")], False),
        ("data", b"hello", 5),
        ("end",),
    ]


def test_padding_and_priority_are_taken_off(engine):
    wire, sink = made(engine)
    block = hpack.Encoder().encode([(":status", "200")])
    flags = w.END_HEADERS | w.PADDED | w.WITH_PRIORITY
    wire.receive(raw(w.HEADERS, flags, 1, b"\x03" + b"\0\0\0\0\x10" + block + b"pad"))
    data = DataFrame(1, b"hello", pad_length=10, flags=["PADDED"]).serialize()
    wire.receive(data)
    assert sink.streams[1].told == [
        ("fields", [(b":status", b"200")], False),
        ("data", b"hello", 16),
    ]
    assert sink.told == [("data", 16)]


def test_a_large_head_is_split_and_joined(engine):
    wire, sink = made(engine)
    fields = [(b":status", b"200"), (b"x", bytes(range(32, 127)) * 400)]
    wire.send_headers(1, fields, end=True)
    out = wire.take()
    assert out[3] == w.HEADERS
    assert out[4] == w.END_STREAM
    wire.receive(out)
    assert sink.streams[1].told == [("fields", fields, True), ("end",)]


def test_heads_of_forgotten_streams_keep_the_table_in_step(engine):
    wire, sink = made(engine)
    encoder = hpack.Encoder()
    for stream_id in (3, 1):  # 3 was cancelled: nobody listens
        frame = HeadersFrame(stream_id, flags=["END_HEADERS"])
        frame.data = encoder.encode([(":status", "200"), ("x-long-name", "value")])
        wire.receive(frame.serialize())
    assert sink.streams[1].told == [
        ("fields", [(b":status", b"200"), (b"x-long-name", b"value")], False)
    ]


def test_data_of_forgotten_streams_is_counted(engine):
    wire, sink = made(engine)
    wire.receive(DataFrame(3, b"late").serialize())
    assert sink.told == [("data", 4)]


def test_other_frames(engine):
    wire, sink = made(engine)
    wire.receive(PingFrame(0, b"12345678").serialize())
    assert wire.take() == PingFrame(0, b"12345678", flags=["ACK"]).serialize()
    wire.receive(PingFrame(0, b"abcdefgh", flags=["ACK"]).serialize())
    wire.receive(GoAwayFrame(0, last_stream_id=5, error_code=11).serialize())
    wire.receive(AltSvcFrame(0, b"https://o", b'h3=":443"').serialize())
    wire.receive(PriorityFrame(1).serialize())
    wire.receive(raw(99, 0xFF, 1, b"unknown"))
    wire.receive(WindowUpdateFrame(0, window_increment=5).serialize())
    wire.receive(WindowUpdateFrame(1, window_increment=7).serialize())
    wire.receive(RstStreamFrame(1, error_code=8).serialize())
    assert sink.told == [
        ("ping", b"abcdefgh"),
        ("goaway", 5, 11),
        ("alt-svc", b"https://o", b'h3=":443"'),
        ("window", 0),
        ("window", 1),
    ]
    assert wire.out_window == 65_540
    assert sink.streams[1].out_window == 65_542
    assert sink.streams[1].told == [("reset", 8)]


def test_a_bad_window_of_a_stream_is_its_own_error(engine):
    wire, sink = made(engine, open_streams=(1, 3))
    wire.receive(raw(w.WINDOW_UPDATE, 0, 1, b"\0\0\0\0"))
    wire.receive(raw(w.WINDOW_UPDATE, 0, 3, b"\x7f\xff\xff\xff"))
    assert sink.streams[1].told == sink.streams[3].told == [("malformed", w.FLOW_CONTROL_ERROR)]


def test_what_was_sent_fits_the_windows(engine):
    wire, sink = made(engine)
    wire.send_data(sink.streams[1], b"x" * 1000, end=True)
    assert wire.out_window == sink.streams[1].out_window == 64_535
    assert wire.take() == DataFrame(1, b"x" * 1000, flags=["END_STREAM"]).serialize()


def test_nothing_is_read_after_the_sink_closed(engine):
    wire, sink = made(engine)
    sink.data_counted = lambda size: setattr(sink, "closed", True)
    wire.receive(DataFrame(3, b"x").serialize() + head_frame())
    assert sink.streams[1].told == []


def broken():
    block = hpack.Encoder().encode([(":status", "200")])
    unfinished = head_frame(flags=())
    return {
        "data on no stream": (DataFrame(0x7FFFFFFF, b"x").serialize(), w.PROTOCOL_ERROR),
        "data on stream 0": (raw(w.DATA, 0, 0, b"x"), w.PROTOCOL_ERROR),
        "a stream of the server's": (head_frame(2), w.PROTOCOL_ERROR),
        "a stream not opened": (head_frame(11), w.PROTOCOL_ERROR),
        "reset of a stream not opened": (raw(w.RST_STREAM, 0, 11, b"\0" * 4), w.PROTOCOL_ERROR),
        "window of a stream not opened": (
            raw(w.WINDOW_UPDATE, 0, 11, b"\0\0\0\1"),
            w.PROTOCOL_ERROR,
        ),
        "a frame too large": (raw(w.DATA, 0, 1, b"x" * 16_385), w.FRAME_SIZE_ERROR),
        "only padding": (raw(w.DATA, w.PADDED, 1, b"\5abcd"), w.PROTOCOL_ERROR),
        "no room for padding": (raw(w.DATA, w.PADDED, 1), w.PROTOCOL_ERROR),
        "no room for priority": (
            raw(w.HEADERS, w.END_HEADERS | w.WITH_PRIORITY, 1, b"\0"),
            w.FRAME_SIZE_ERROR,
        ),
        "a frame within a head": (unfinished + raw(w.PING, 0, 0, b"12345678"), w.PROTOCOL_ERROR),
        "another head within a head": (unfinished + head_frame(3), w.PROTOCOL_ERROR),
        "continuation of another": (
            unfinished + ContinuationFrame(3, block).serialize(),
            w.PROTOCOL_ERROR,
        ),
        "continuation of nothing": (ContinuationFrame(1, block).serialize(), w.PROTOCOL_ERROR),
        "endless continuation": (
            unfinished + ContinuationFrame(1, b"").serialize() * 100,
            w.ENHANCE_YOUR_CALM,
        ),
        "a head that grows": (
            unfinished + ContinuationFrame(1, b"x" * 16_384).serialize() * 20,
            w.ENHANCE_YOUR_CALM,
        ),
        "a bad index": (head_frame(data=b"\xfe\x7f"), w.COMPRESSION_ERROR),
        "a truncated block": (head_frame(data=b"\x40\x05ab"), w.COMPRESSION_ERROR),
        "push": (
            PushPromiseFrame(1, 2, block, flags=["END_HEADERS"]).serialize(),
            w.PROTOCOL_ERROR,
        ),
        "push allowed": (settings_frame(ENABLE_PUSH=1), w.PROTOCOL_ERROR),
        "settings on a stream": (raw(w.SETTINGS, 0, 1), w.FRAME_SIZE_ERROR),
        "settings of a wrong size": (raw(w.SETTINGS, 0, 0, b"12345"), w.FRAME_SIZE_ERROR),
        "an acknowledgement with settings": (
            raw(w.SETTINGS, w.ACK, 0, b"123456"),
            w.FRAME_SIZE_ERROR,
        ),
        "a window out of range": (
            raw(w.SETTINGS, 0, 0, b"\0\4\x80\0\0\0"),
            w.FLOW_CONTROL_ERROR,
        ),
        "frames too small": (raw(w.SETTINGS, 0, 0, b"\0\5\0\0\0\1"), w.PROTOCOL_ERROR),
        "a window of nothing": (raw(w.WINDOW_UPDATE, 0, 0, b"\0" * 4), w.FLOW_CONTROL_ERROR),
        "a window that overflows": (
            raw(w.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"),
            w.FLOW_CONTROL_ERROR,
        ),
        "a short window": (raw(w.WINDOW_UPDATE, 0, 0, b"\0"), w.FRAME_SIZE_ERROR),
        "a short ping": (raw(w.PING, 0, 0, b"1"), w.FRAME_SIZE_ERROR),
        "a ping on a stream": (raw(w.PING, 0, 1, b"12345678"), w.FRAME_SIZE_ERROR),
        "a short reset": (raw(w.RST_STREAM, 0, 1, b"1"), w.FRAME_SIZE_ERROR),
        "a short goaway": (raw(w.GOAWAY, 0, 0, b"1"), w.FRAME_SIZE_ERROR),
        "more than the window": (
            raw(w.DATA, 0, 1, b"x" * 16_384) * 1025,
            w.FLOW_CONTROL_ERROR,
        ),
    }


@pytest.mark.parametrize("case", broken())
def test_what_breaks_the_connection(engine, case):
    frames, code = broken()[case]
    wire, _ = made(engine)
    with pytest.raises(WireError) as caught:
        wire.receive(frames)
    assert caught.value.code == code


def test_the_first_frame_is_settings(engine):
    for frame in (raw(w.PING, 0, 0, b"12345678"), head_frame(), DataFrame(1, b"x").serialize()):
        wire, _ = made(engine, settled=False)
        with pytest.raises(WireError):
            wire.receive(frame)


frames = st.builds(
    raw,
    st.integers(0, 12),
    st.sampled_from([0, 1, 4, 5, 8, 0x20, 0x2D, 0xFF]),
    st.sampled_from([0, 1, 3, 2, 9, 0xFFFFFFFF]),
    st.binary(max_size=40),
)


@settings(deadline=None)  # the first panic of a Rust core takes its time to print
@given(st.lists(frames, max_size=12), st.lists(st.integers(1, 50), max_size=8))
def test_whatever_comes_raises_nothing_but_wire_errors(engine, sent, cuts):
    wire, sink = made(engine, open_streams=(1, 3))
    data = b"".join(sent)
    try:
        for cut in cuts:
            wire.receive(data[:cut])
            data = data[cut:]
        wire.receive(data)
    except WireError:
        pass
    else:
        assert wire.out_window <= w.WINDOW_LARGEST
        assert all(stream.out_window <= w.WINDOW_LARGEST for stream in sink.streams.values())
