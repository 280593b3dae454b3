"""Any frames: no crash, no exchange left behind, the same requests however the bytes were cut."""

import struct

import pytest
from hpack import Encoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edged.downstream.h1 import H1Connection
from edged.downstream.limits import Limits
from edged.upstream import engines
from tests.harness.clients import Recorder, deliver
from tests.harness.h2client import GET, PREFACE, frame

LIMITS = Limits(header_bytes=2000, h2_streams=4)
FAST = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))

names = st.sampled_from(
    [b":path", b":method", b":authority", b"x", b"host", b"content-length", b"te", b"X"]
)
values = st.sampled_from([b"GET", b"POST", b"/", b"h", b"3", b"", b" a", b"a\r\nb", b"trailers"])
fields = st.just(GET) | st.lists(st.sampled_from(GET) | st.tuples(names, values), max_size=8)
blocks = fields.map(lambda f: Encoder().encode(f, huffman=False)) | st.binary(max_size=20)
payloads = st.binary(max_size=12) | st.just(b"\0" * 4) | st.just(b"\0\0\0\1") | blocks
any_frames = st.builds(frame, st.integers(0, 12), st.integers(0, 63), st.integers(0, 9), payloads)
requests = st.builds(
    lambda stream, block, end: frame(1, 4 | end, stream, block),
    st.sampled_from([1, 3, 5, 7]),
    blocks,
    st.integers(0, 1),
)
bodies = st.builds(
    lambda stream, data, end: frame(0, end, stream, data),
    st.sampled_from([1, 3, 5]),
    st.binary(max_size=6),
    st.integers(0, 1),
)
settings_frames = st.builds(
    lambda code, value: frame(4, 0, 0, struct.pack(">HI", code, value)),
    st.integers(0, 9),
    st.sampled_from([0, 1, 4096, 65535, 1 << 31]),
)
streams = st.lists(
    requests | bodies | settings_frames | any_frames | st.binary(max_size=12), max_size=12
).map(lambda parts: PREFACE + frame(4, 0, 0) + b"".join(parts))


def answer_late(request) -> None:
    if request.head.body_length == 0:
        request.answer(body=b"ok")
    else:

        def body_end(trailers) -> None:
            request.ended = True
            request.answer(body=b"ok", length=None, trailers=trailers)

        request.body_end = body_end


@pytest.mark.parametrize("engine", [engines.PURE, engines.FAST])
@FAST
@given(data=streams)
def test_any_frames(engine, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(engines.ENVIRONMENT, engine)
        recorder = Recorder(answer_late)
        transport = deliver(H1Connection, [data], recorder, LIMITS)
        connection = transport.protocol
        assert connection is not None
        connection.connection_lost(None)
        assert all(r.ended or r.is_gone or r.head.body_length == 0 for r in recorder.requests)
        # Byte by byte nothing is lost that one piece had; an error at the end of the piece may
        # hide requests before it, which were then not answered either.
        crumbs = Recorder(answer_late)
        deliver(H1Connection, [data[i : i + 1] for i in range(len(data))], crumbs, LIMITS)
        whole = [(r.head.path, r.payload) for r in recorder.requests]
        assert [(r.head.path, r.payload) for r in crumbs.requests][: len(whole)] == whole
