"""An HTTP/3 endpoint with addresses of two families, of which one does not answer."""

import asyncio
import socket

import pytest

from edged.upstream import h3
from edged.upstream.h3 import H3Connector
from policies.model import Kind, Outcome
from probes.base import DialError
from tests.harness.h3 import LoopbackDialer, answering, both_engines, run

pytestmark = both_engines
V6, V4 = "2001:db8::1", "192.0.2.1"


class TwoFamilies(LoopbackDialer):
    """Both addresses are the origin's, but for those in ``silent`` and ``routeless``."""

    def __init__(self, silent=(), routeless=(), after_s=0.02):
        super().__init__()
        self.silent, self.routeless, self.after_s = silent, routeless, after_s
        self.dialled, self.worked, self.holes, self.sent = [], [], [], []

    async def udp_choices(self, line, host, *, address=None, timeout_s):
        return (V6, V4)

    def stagger_s(self, line, host):
        return self.after_s

    def udp_worked(self, line, host, address):
        self.worked.append(address)

    async def connect_udp(self, line, host, port, *, address=None, timeout_s):
        self.dialled.append(address)
        if address in self.routeless:
            raise DialError(Outcome.UNREACHABLE, "no route")
        dialed = await super().connect_udp(line, host, port, timeout_s=timeout_s)
        if address in self.silent:
            hole = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            hole.bind(("127.0.0.1", 0))
            self.holes.append(hole)
            dialed.sock.connect(hole.getsockname())
        return dialed


def racing(engine, certificates, body, **families):
    """``body(client, dialer)`` beside an origin."""

    async def main(client, origin):
        client.dialer = dialer = TwoFamilies(**families)
        client.connector = H3Connector(
            dialer,
            client.samples.append,
            ca_file=certificates.ca,
            engine=engine,
            families=dialer,
            sent=lambda path, kind, at: dialer.sent.append((path, kind)),
        )
        await body(client, dialer)
        for hole in dialer.holes:
            hole.close()

    run(engine, certificates, answering, main)


def test_the_one_that_answers_serves_and_is_remembered(engine, certificates):
    async def body(client, dialer):
        connection = await client.connect()
        assert (await client.get(connection)).received == b"hello"
        assert dialer.dialled == [V6, V4]
        assert len(dialer.worked) == 1
        assert dialer.sockets[0].fileno() == -1, "the other attempt was given up"
        assert not [s for s in client.samples if s.outcome is Outcome.TIMEOUT]
        connection.close()

    racing(engine, certificates, body, silent=(V6,))


def test_where_the_first_answers_no_other_is_tried(engine, certificates):
    async def body(client, dialer):
        connection = await client.connect()
        assert dialer.dialled == [V6]
        connection.close()

    racing(engine, certificates, body, after_s=5.0)


def test_a_family_without_a_route_says_nothing_of_the_line(engine, certificates):
    async def body(client, dialer):
        connection = await client.connect()
        assert dialer.dialled == [V6, V4]
        assert {s.outcome for s in client.samples} == {Outcome.OK}
        connection.close()

    racing(engine, certificates, body, routeless=(V6,))


def test_that_none_has_a_route_does(engine, certificates):
    async def body(client, dialer):
        with pytest.raises(DialError) as caught:
            await client.connect()
        assert caught.value.outcome is Outcome.UNREACHABLE
        assert [s.outcome for s in client.samples] == [Outcome.UNREACHABLE]

    racing(engine, certificates, body, routeless=(V6, V4))


def test_that_none_answers_is_a_timeout(engine, certificates):
    async def body(client, dialer):
        with pytest.raises(DialError) as caught:
            await client.connect(timeout_s=0.3)
        assert caught.value.outcome is Outcome.TIMEOUT
        assert dialer.worked == []

    racing(engine, certificates, body, silent=(V6, V4))


@pytest.mark.sources
def test_a_line_that_lets_datagrams_pass_again_is_found_by_a_new_handshake(
    engine, certificates, monkeypatch
):
    monkeypatch.setattr(h3, "AGAIN_S", 0.05)

    async def body(client, dialer):
        dialling = asyncio.ensure_future(client.connect())
        while len(dialer.dialled) < 5:
            await asyncio.sleep(0.01)
        dialer.silent = ()
        connection = await asyncio.wait_for(dialling, 0.5)
        assert (await client.get(connection)).received == b"hello"
        assert dialer.sent == [(client.path.name, Kind.QUIC)] * len(dialer.dialled)
        connection.close()

    racing(engine, certificates, body, silent=(V6, V4))
