"""How large our datagrams are, and an engine that cannot make one any more."""

import pytest

from edged.upstream.quic_engines import ClientSettings, make_engine
from tests.harness.h3 import Certificates, both_engines, request, run, until

SMALLEST_PATH = 1200
"""Every path carries so much (RFC 9000 section 14)."""


@pytest.fixture(scope="module")
def certificates():
    return Certificates()


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
