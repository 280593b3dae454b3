"""The choice of engines, and what both must offer alike."""

from __future__ import annotations

import importlib.util

import pytest

from edged.upstream import engines
from edged.upstream.engines import EngineError, chosen, h2_engine, quic_engine


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
    monkeypatch.setenv(engines.ENVIRONMENT, "quick")
    with pytest.raises(EngineError, match="quick"):
        chosen()


@pytest.mark.parametrize("name", ["pure", "fast"])
def test_both_h2_engines_have_what_the_codec_uses(name):
    engine = h2_engine(name)
    for event in (
        "ResponseReceived",
        "InformationalResponseReceived",
        "DataReceived",
        "TrailersReceived",
        "StreamEnded",
        "StreamReset",
        "WindowUpdated",
        "ConnectionTerminated",
        "RemoteSettingsChanged",
        "SettingsAcknowledged",
        "PingAckReceived",
        "AlternativeServiceAvailable",
    ):
        assert hasattr(engine.events, event)
    h2 = engine.client(1 << 20, 1 << 16, 1 << 16)
    h2.initiate_connection()
    assert h2.data_to_send().startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")


@pytest.mark.parametrize("name", ["pure", "fast"])
def test_a_frame_after_goaway_is_no_protocol_error(name):
    engine = h2_engine(name)
    h2 = engine.client(1 << 20, 1 << 16, 1 << 16)
    h2.initiate_connection()
    h2.send_headers(1, [(b":method", b"GET"), (b":path", b"/"), (b":scheme", b"http")])
    h2.data_to_send()
    settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    goaway = b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + b"\x00\x00\x00\x01" + b"\x00\x00\x00\x00"
    head = b"\x00\x00\x01\x01\x04\x00\x00\x00\x01\x88"
    names = [type(event).__name__ for event in h2.receive_data(settings + goaway + head)]
    assert names == ["RemoteSettingsChanged", "ConnectionTerminated", "ResponseReceived"]
    assert h2.data_to_send(), "the acknowledgement of SETTINGS must survive the GOAWAY"


@pytest.mark.parametrize("name", ["pure", "fast"])
def test_both_quic_engines_load(name):
    engine = quic_engine(name)
    assert engine.name == name
    assert engine.QuicConfiguration(is_client=True, alpn_protocols=["h3"])
