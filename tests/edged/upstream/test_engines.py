"""The choice of engines, and what both must offer alike."""

from __future__ import annotations

import importlib.util

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.upstream import engines
from edged.upstream.engines import (
    EngineError,
    HpackError,
    HpackOversizedError,
    chosen,
    h2_engine,
    hpack_engine,
)
from tests.harness.h2client import (
    END_HEADERS,
    END_STREAM,
    GET,
    HEADERS,
    PREFACE,
    SETTINGS,
    WINDOW,
    frame,
)


def test_the_fast_engines_serve_when_installed(monkeypatch):
    monkeypatch.delenv(engines.ENVIRONMENT, raising=False)
    assert chosen() == "fast"
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("jh2", "qh3") else object()
    )
    assert chosen() == "pure"
    with pytest.raises(EngineError, match="pip install"):
        chosen("fast")


def test_environment_and_argument_force_one(monkeypatch):
    monkeypatch.setenv(engines.ENVIRONMENT, "pure")
    assert chosen() == "pure"
    assert chosen("fast") == "fast"
    assert h2_engine().events.__name__ == "h2.events"
    assert h2_engine("fast").events.__name__ == "jh2.events"
    assert hpack_engine().name == "pure"
    monkeypatch.setenv(engines.ENVIRONMENT, "quick")
    with pytest.raises(EngineError, match="quick"):
        chosen()


FIELDS = [(b":status", b"200"), (b"x-a", b"1"), (b"x-b", b"\xff" * 20), (b"x-a", b"1")]


@pytest.mark.parametrize("encodes", ["pure", "fast"])
@pytest.mark.parametrize("decodes", ["pure", "fast"])
def test_each_hpack_engine_reads_what_the_other_wrote(encodes, decodes):
    encode = hpack_engine(encodes).encoder()
    decode = hpack_engine(decodes).decoder(1 << 16)
    sizes = []
    for _ in range(3):
        block = encode(FIELDS)
        sizes.append(len(block))
        assert decode(block) == FIELDS
        assert all(type(field) is tuple for field in decode(b"\x88"))
    assert sizes[1] < sizes[0], "a field seen before is an index"
    encode.resize(0)
    assert decode(encode(FIELDS)) == FIELDS


@pytest.mark.parametrize("name", ["pure", "fast"])
def test_a_head_larger_than_the_limit_is_told_apart(name):
    engine = hpack_engine(name)
    bomb = engine.encoder()([(b"x", b"y" * 4000)]) + b"\xbe" * 100
    with pytest.raises(HpackOversizedError):
        engine.decoder(1 << 16)(bomb)


@settings(deadline=None)  # the first panic of a Rust core takes its time to print
@given(blocks=st.lists(st.binary(max_size=60), max_size=5))
@pytest.mark.parametrize("name", ["pure", "fast"])
def test_whatever_is_decoded_raises_nothing_else(name, blocks):
    decode = hpack_engine(name).decoder(1 << 16)
    for block in blocks:
        try:
            fields = decode(block)
        except HpackError:
            return
        assert all(type(n) is bytes and type(v) is bytes for n, v in fields)


@pytest.mark.parametrize("engine", ["fast", "pure"])
def test_a_new_stream_costs_the_same_however_many_there_are(engine):
    """The engines walk over all streams at each new one; thousands are usual at a relay."""
    if engine == "fast":
        pytest.importorskip("jh2")
    module = h2_engine(engine)
    server = module.server(1 << 16, 100_000, 1 << 16)
    base = type(server).__mro__[1]
    walk, walks = base._open_streams, []

    def counted(self, remainder):
        walks.append(len(self.streams))
        return walk(self, remainder)

    base._open_streams = counted
    try:
        server.receive_data(PREFACE + frame(SETTINGS, 0, 0))
        block = b"\x82\x86\x84\x41\x01h"  # GET, http, /, :authority h
        for stream_id in range(1, 6001, 2):
            server.receive_data(frame(HEADERS, END_HEADERS | END_STREAM, stream_id, block))
            if stream_id % 4 == 1:
                server.reset_stream(stream_id, module.ErrorCodes.CANCEL)
        server.clear_outbound_data_buffer()
    finally:
        base._open_streams = walk
    assert sum(walks) < 4 * 3000
    assert len(server.streams) < 3000


@pytest.mark.parametrize("name", ["pure", "fast"])
def test_a_client_that_says_nothing_has_the_windows_of_the_rfc(name):
    connection = h2_engine(name).server(1 << 20, 100, 32768)
    head = hpack_engine(name).encoder()(GET)
    connection.receive_data(PREFACE + frame(SETTINGS, 0, 0))
    connection.receive_data(frame(HEADERS, END_HEADERS | END_STREAM, 1, head))
    connection.receive_data(frame(WINDOW, 0, 0, (1 << 20).to_bytes(4, "big")))
    assert connection.local_flow_control_window(1) == 65535
    assert connection.max_outbound_frame_size == 16384
    smaller = (4).to_bytes(2, "big") + (1000).to_bytes(4, "big")
    connection.receive_data(frame(SETTINGS, 0, 0, smaller))
    assert connection.local_flow_control_window(1) == 1000
