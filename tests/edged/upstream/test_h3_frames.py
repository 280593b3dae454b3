"""HTTP/3 framing, cut at any place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.messages import RequestHead
from edged.upstream import h3_frames as h3

VARINTS = st.integers(0, 2**62 - 1)


@given(VARINTS, st.binary(max_size=3))
def test_varints_come_back(value, rest):
    data = b"x" + h3.varint(value) + rest
    assert h3.read_varint(data, 1) == (value, len(data) - len(rest))
    assert h3.read_varint(data[: -len(rest) - 1], 1) == (-1, 1)


def frame(kind, payload):
    return h3.varint(kind) + h3.varint(len(payload)) + payload


FRAMES = st.lists(
    st.tuples(st.sampled_from([0, 1, 0x21, 0x1F * 7 + 0x21]), st.binary(max_size=300)), max_size=8
)


@given(FRAMES, st.data())
def test_a_reader_sees_the_same_however_the_stream_is_cut(frames, data):
    stream = b"".join(frame(kind, payload) for kind, payload in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    seen = []

    def on_body(part):
        if seen and isinstance(seen[-1], bytearray):
            seen[-1] += part
        else:
            seen.append(bytearray(part))

    reader = h3.Reader(seen.append, on_body)
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        assert reader.feed(stream[start:end]) == b""
    assert not reader.mid_frame
    expected = []
    for kind, payload in frames:
        if kind == 1:
            expected.append(payload)
        elif kind == 0 and payload:
            if expected and isinstance(expected[-1], bytearray):
                expected[-1] += payload
            else:
                expected.append(bytearray(payload))
    assert seen == expected


@given(st.binary(min_size=1, max_size=200), st.data())
def test_a_stream_that_ends_inside_a_frame_is_known_to(payload, data):
    stream = frame(data.draw(st.sampled_from([0, 1, 0x21])), payload)
    reader = h3.Reader(lambda section: None, lambda part: None)
    reader.feed(stream[: data.draw(st.integers(1, len(stream) - 1))])
    assert reader.mid_frame


def test_a_stopped_reader_gives_back_what_it_did_not_look_at():
    seen = []

    def on_body(part):
        seen.append(part)
        reader.stopped = True

    reader = h3.Reader(lambda section: None, on_body)
    rest = reader.feed(frame(0, b"one") + frame(0, b"two"))
    assert (seen, rest) == ([b"one"], frame(0, b"two"))


def test_oversized_heads_and_forbidden_frames():
    reader = h3.Reader(lambda section: None, lambda part: None)
    with pytest.raises(h3.StreamBroken) as broken:
        reader.feed(b"\x01" + h3.varint(h3.MAX_HEAD_BYTES + 1))
    assert broken.value.code == h3.EXCESSIVE_LOAD
    for kind, code in ((0x5, h3.ID_ERROR), (0x4, h3.FRAME_UNEXPECTED), (0x2, h3.FRAME_UNEXPECTED)):
        with pytest.raises(h3.ConnectionBroken) as fatal:
            h3.Reader(lambda section: None, lambda part: None).feed(frame(kind, b""))
        assert fatal.value.code == code


@pytest.mark.parametrize(
    ("head", "fields"),
    [
        (
            RequestHead(b"GET", b"https", b"a", b"/p", [(b"x", b"1")]),
            [
                (b":method", b"GET"),
                (b":scheme", b"https"),
                (b":authority", b"a"),
                (b":path", b"/p"),
                (b"x", b"1"),
            ],
        ),
        (
            RequestHead(b"CONNECT", b"", b"a:1", b"", [], None),
            [(b":method", b"CONNECT"), (b":authority", b"a:1")],
        ),
    ],
)
def test_request_fields(head, fields):
    assert h3.request_fields(head) == fields


@pytest.mark.parametrize(
    ("method", "length", "expected"),
    [
        (b"POST", 0, b"0"),
        (b"POST", 7, b"7"),
        (b"POST", None, None),
        (b"GET", 0, None),
        (b"GET", 7, b"7"),
    ],
)
def test_content_length_is_the_body_length(method, length, expected):
    fields = h3.request_fields(RequestHead(method, b"https", b"a", b"/", [], length))
    assert dict(fields).get(b"content-length") == expected


@pytest.mark.parametrize(
    ("method", "status", "framing"),
    [(b"GET", b"200", 5), (b"HEAD", b"200", 0), (b"GET", b"204", 0), (b"CONNECT", b"200", None)],
)
def test_response_framing(method, status, framing):
    head = h3.response_head([(b":status", status), (b"content-length", b"5")], method)
    assert (head.body_length, head.declared_length) == (framing, 5)
    assert head.headers == []


def test_connection_fields_of_a_response_are_dropped():
    fields = [(b":status", b"200"), (b"connection", b"x"), (b"transfer-encoding", b"y")]
    assert h3.response_head([*fields, (b"a", b"b")], b"GET").headers == [(b"a", b"b")]


@pytest.mark.parametrize("status", [b"20", b"2000", b"abc", b"099", b"+20"])
def test_malformed_status(status):
    with pytest.raises(h3.StreamBroken):
        h3.response_head([(b":status", status)], b"GET")


class Wire:
    """Takes what a `Session` sends and hears."""

    def __init__(self):
        self.sent = {}
        self.last_id = None

    def send_on(self, stream_id, data):
        self.sent[stream_id] = self.sent.get(stream_id, b"") + data

    def goaway(self, last_id):
        self.last_id = last_id


def session():
    wire = Wire()
    return h3.Session(wire, (2, 6, 10)), wire


SETTINGS = b"\x00" + frame(4, h3.varint(0x1) + h3.varint(4096) + h3.varint(0x7) + h3.varint(16))


@given(st.lists(st.integers(1, 40), max_size=5))
def test_control_frames_cut_anywhere(cuts):
    """A grease setting, a grease frame, GOAWAY, byte by byte or at once."""
    stream = SETTINGS + frame(0x21, b"grease") + frame(7, h3.varint(8))
    peer, wire = session()
    at = 0
    for cut in [*cuts, len(stream)]:
        peer.receive(3, stream[at : at + cut], False)
        at = min(at + cut, len(stream))
    assert wire.last_id == 8


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x00" + frame(7, b"\x00"), h3.MISSING_SETTINGS),
        (SETTINGS + frame(7, b"\x08") + frame(7, b"\x0c"), h3.ID_ERROR),
        (b"\x00" + frame(4, b"\x02\x00"), h3.SETTINGS_ERROR),
        (b"\x00" + frame(4, b"\x01\x00\x01\x00"), h3.SETTINGS_ERROR),
        (b"\x00\x04" + h3.varint(1 << 20), h3.EXCESSIVE_LOAD),
        (b"\x01\x00", h3.ID_ERROR),
        (b"\x02\x3f\xff\xff\x03", h3.QPACK_ENCODER_STREAM_ERROR),  # table beyond what we allow
    ],
)
def test_what_ends_a_connection(data, code):
    peer, _ = session()
    with pytest.raises(h3.ConnectionBroken) as fatal:
        peer.receive(3, data, False)
    assert fatal.value.code == code


def test_critical_streams_stay_open_and_single():
    peer, _ = session()
    peer.receive(3, SETTINGS, False)
    with pytest.raises(h3.ConnectionBroken) as fatal:
        peer.reset(3)
    assert fatal.value.code == h3.CLOSED_CRITICAL_STREAM
    with pytest.raises(h3.ConnectionBroken) as fatal:
        peer.receive(7, b"\x00", False)
    assert fatal.value.code == h3.STREAM_CREATION_ERROR
    with pytest.raises(h3.ConnectionBroken) as fatal:
        peer.receive(3, b"", True)
    assert fatal.value.code == h3.CLOSED_CRITICAL_STREAM
    peer.receive(11, b"\x21anything", True)  # unknown stream types are ignored
    peer.reset(11)


def test_fields_are_compressed_against_earlier_ones_once_the_peer_allows():
    peer, wire = session()
    fields = [(b":method", b"GET"), (b"x-long", b"v" * 200)]
    plain = len(peer.encode(0, fields))
    peer.receive(3, SETTINGS, False)
    sizes = [len(peer.encode(4 * i, fields)) for i in range(1, 6)]
    assert min(sizes) < plain / 4
    assert len(wire.sent[6]) > 1


def test_what_cannot_be_decompressed_ends_the_connection():
    peer, _ = session()
    for section in (b"\xff\xff\xff", b"\x05\x00\x80"):  # garbage; refers to what never came
        with pytest.raises(h3.ConnectionBroken) as fatal:
            peer.decode(0, section)
        assert fatal.value.code == h3.QPACK_DECOMPRESSION_FAILED
