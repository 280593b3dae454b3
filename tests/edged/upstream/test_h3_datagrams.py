"""How large datagrams are both ways, and an engine that cannot make one any more."""

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import (
    QuicTransportParameters,
    pull_quic_transport_parameters,
    push_quic_transport_parameters,
)

from edged.upstream.quic_base import limit_payload
from edged.upstream.quic_engines import ClientSettings, make_engine
from tests.harness.h3 import both_engines, request, run, until

SMALLEST_PATH = 1200
"""Every path carries so much (RFC 9000 section 14)."""


@both_engines
def test_a_path_that_drops_large_datagrams_is_not_even_noticed(engine, certificates):
    content = bytes(300_000)

    async def body(client, origin, forwarder):
        sizes = []
        pass_on = forwarder.datagram_received

        def narrow(data, peer):
            sizes.append(len(data))
            if len(data) <= SMALLEST_PATH:
                pass_on(data, peer)

        forwarder.datagram_received = narrow
        connection = await client.connect()
        for _ in range(2):  # the second with what was learnt of the path
            head = request(b"POST", body_length=len(content))
            attempt = client.send(connection, head, end=False)
            attempt.stream.send_data(content)
            attempt.stream.send_end()
            await until(lambda attempt=attempt: attempt.done.done())
            assert attempt.failure is None
        assert max(sizes) <= SMALLEST_PATH
        connection.close()

    run(engine, certificates, lambda e: e.answer(b"ok"), body, through={"delay_s": 0.005})


@both_engines
def test_the_server_is_asked_for_small_datagrams(engine, certificates, monkeypatch):
    asked = []
    parse = QuicConnection._parse_transport_parameters

    def noting(connection, data, *rest, **options):
        if not connection._is_client:
            asked.append(pull_quic_transport_parameters(Buffer(data=data)).max_udp_payload_size)
        return parse(connection, data, *rest, **options)

    monkeypatch.setattr(QuicConnection, "_parse_transport_parameters", noting)

    async def body(client, origin):
        connection = await client.connect()
        assert (await client.get(connection)).received == b"ok"
        connection.close()

    run(engine, certificates, lambda e: e.answer(b"ok"), body)
    assert asked == [SMALLEST_PATH]


@pytest.mark.parametrize("before", [None, 1472, 65527])
def test_the_limit_takes_the_place_of_another_and_leaves_the_rest(before):
    parameters = QuicTransportParameters(
        max_udp_payload_size=before,
        initial_max_data=1 << 40,
        initial_source_connection_id=bytes(range(8)),
        disable_active_migration=True,
    )
    buffer = Buffer(capacity=200)
    push_quic_transport_parameters(buffer, parameters)
    limited = pull_quic_transport_parameters(Buffer(data=limit_payload(buffer.data)))
    parameters.max_udp_payload_size = SMALLEST_PATH
    assert limited == parameters


class Exhausted:
    """A core that cannot build its next packet."""

    def poll_transmit(self, now):
        raise RuntimeError("packet builder capacity exhausted")

    def handle_timer(self, now):
        raise RuntimeError("it is broken")

    def next_event(self):
        return None


class Sink:
    def __init__(self):
        self.ended = []

    def terminated(self, code, frame_type, reason):
        self.ended.append(reason)


def test_an_engine_that_cannot_send_ends_its_connection_and_tells_why():
    pytest.importorskip("qh3")
    settings = ClientSettings(
        server_name="x", alpn=("h3",), cafile=None, cadata=None, idle_timeout_s=9.0, ticket=None
    )
    engine = make_engine(settings, lambda ticket: None, "fast")
    engine._core = Exhausted()
    assert engine.datagrams_to_send(5.0) == []
    assert engine.get_timer() == 5.0, "nobody may have to wait for what will not come"
    engine.handle_timer(5.0)
    sink = Sink()
    engine.pump(sink)
    engine.pump(sink)
    assert sink.ended == ["packet builder capacity exhausted"]
    assert engine.datagrams_to_send(6.0) == [], "nor is it asked again in vain"


@pytest.mark.parametrize(("refusal", "ends"), [("no room", 1), ("missing OneRtt packet key", 0)])
def test_what_a_core_refuses_during_the_handshake(refusal, ends):
    qh3 = pytest.importorskip("qh3.quic.connection")
    settings = ClientSettings(
        server_name="x", alpn=("h3",), cafile=None, cadata=None, idle_timeout_s=9.0, ticket=None
    )
    engine = make_engine(settings, lambda ticket: None, "fast")
    # Packets that came before the refusal, and those that come when it is asked again, go out.
    told = [(b"initial",), qh3.QuicConnectionError(1, None, refusal), (b"early",), None]

    class Core:
        def poll_transmit(self, now):
            answer = told.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    engine._quic._core = Core()
    assert engine.datagrams_to_send(5.0) == ([b"initial"] if ends else [b"initial", b"early"])
    if ends:
        assert engine.get_timer() == 5.0, "nobody may have to wait for what will not come"
        sink = Sink()
        engine.pump(sink)
        assert len(sink.ended) == 1
