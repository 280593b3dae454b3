"""The QUIC probe against a server of the engine's own, with and without faults."""

import asyncio

import pytest

from policies.model import Kind, Outcome
from probes.base import Dialer, DialError, Probe
from probes.quic import QuicProbe, QuicReport
from tests.harness.h3 import (
    Certificates,
    Client,
    Forwarder,
    LoopbackDialer,
    Origin,
    answering,
    strictly,
)


@pytest.fixture(scope="module")
def certificates():
    return Certificates()


def run(certificates, body, *, host="localhost", ca=True, **faults):
    """``await body(probe, path, origin, forwarder)``; then no socket may be open."""

    async def main():
        async with (
            Origin(certificates, answering) as origin,
            Forwarder(origin.port, **faults) as forwarder,
        ):
            dialer = LoopbackDialer()
            probe = QuicProbe(dialer, ca_file=certificates.ca if ca else None)
            await body(probe, Client.path_to(forwarder.port, host), origin, forwarder)
            assert dialer.all_closed()

    asyncio.run(strictly(main()))


def test_a_run_is_a_handshake_and_pings(certificates):
    async def body(probe, path, origin, forwarder):
        samples = await probe.run(path, timeout_s=5)
        assert [s.kind for s in samples] == [Kind.QUIC, Kind.PING, Kind.PING, Kind.PING]
        assert all(s.outcome is Outcome.OK and s.path == path.name for s in samples)
        assert all(0.039 < s.rtt_s < 1 for s in samples)
        assert sorted(s.sent_at for s in samples) == [s.sent_at for s in samples]
        assert forwarder.forwarded * 1200 < 20 * probe.cost_bytes

    run(certificates, body, delay_s=0.02)


def test_the_cost_covers_the_bytes(certificates):
    async def body(probe, path, origin, forwarder):
        sent = []
        original = forwarder._pass
        forwarder._pass = lambda send, data: (sent.append(len(data) + 28), original(send, data))
        await probe.run(path, timeout_s=5)
        assert probe.cost_bytes / 3 < sum(sent) <= probe.cost_bytes

    run(certificates, body)


def test_silence_is_a_lost_handshake(certificates):
    async def body(probe, path, origin, forwarder):
        forwarder.dead = True
        (sample,) = await probe.run(path, timeout_s=0.2)
        assert (sample.kind, sample.rtt_s, sample.outcome) == (Kind.QUIC, None, Outcome.TIMEOUT)
        report = await probe.inspect(path, timeout_s=0.2)
        assert report.outcome is Outcome.TIMEOUT
        assert "UDP" in report.detail
        assert report.handshake_s is None

    run(certificates, body)


def test_silence_after_the_handshake_is_lost_pings(certificates):
    async def body(probe, path, origin, forwarder):
        shake = probe._dial

        async def dial(*arguments):
            dialed = await shake(*arguments)

            async def kill():
                while not (origin.protocols and origin.protocols[-1]._quic._handshake_confirmed):
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.01)
                forwarder.dead = True

            probe.killer = asyncio.create_task(kill())
            return dialed

        probe._dial = dial
        samples = await probe.run(path, timeout_s=5)
        assert samples[0].outcome is Outcome.OK
        assert samples[-1].kind is Kind.PING
        assert samples[-1].rtt_s is None
        assert samples[-1].outcome is Outcome.TIMEOUT

    run(certificates, body)


def test_an_inspection_tells_of_early_data(certificates):
    async def body(probe, path, origin, forwarder):
        report = await probe.inspect(path, timeout_s=5)
        assert report.outcome is Outcome.OK
        assert report.detail == ""
        assert report.early_data_offered
        assert report.early_data_accepted
        assert report.ping_rtt_s == min(report.pings)  # none was lost
        assert report.handshake_s > 0

    run(certificates, body)


def test_early_data_that_is_offered_but_not_taken(certificates):
    async def body(probe, path, origin, forwarder):
        class Forgetful(dict):
            def get(self, key, default=None):
                return None

        origin.tickets = Forgetful()
        origin._server._session_ticket_fetcher = origin.tickets.get
        report = await probe.inspect(path, timeout_s=5)
        assert report.early_data_offered
        assert report.early_data_accepted is False

    run(certificates, body)


def test_a_server_without_tickets_offers_none(certificates):
    async def body(probe, path, origin, forwarder):
        origin._server._session_ticket_handler = None
        report = await probe.inspect(path, timeout_s=5)
        assert report.outcome is Outcome.OK
        assert report.early_data_offered is False
        assert report.early_data_accepted is None

    run(certificates, body)


@pytest.mark.parametrize(
    ("options", "text"), [({"host": "other.test"}, "other.test"), ({"ca": False}, "issuer")]
)
def test_certificates_are_verified(certificates, options, text):
    async def body(probe, path, origin, forwarder):
        (sample,) = await probe.run(path, timeout_s=5)
        assert (sample.kind, sample.outcome) == (Kind.QUIC, Outcome.TLS)
        report = await probe.inspect(path, timeout_s=5)
        assert report.outcome is Outcome.TLS
        assert text in report.detail

    run(certificates, body, **options)


def test_a_port_without_a_server_refuses(certificates):
    async def main():
        async with Origin(certificates, answering) as origin:
            pass
        dialer = LoopbackDialer()
        probe = QuicProbe(dialer, ca_file=certificates.ca)
        (sample,) = await probe.run(Client.path_to(origin.port), timeout_s=5)
        assert sample.outcome is Outcome.REFUSED
        assert dialer.all_closed()

    asyncio.run(main())


def test_a_failing_dial_is_a_sample(certificates):
    class NoName(LoopbackDialer):
        async def connect_udp(self, *_, **__):
            raise DialError(Outcome.DNS, "no such name")

    async def main():
        probe = QuicProbe(NoName())
        (sample,) = await probe.run(Client.path_to(1), timeout_s=5)
        assert sample.outcome is Outcome.DNS
        assert (await probe.inspect(Client.path_to(1), timeout_s=5)).detail == "no such name"

    asyncio.run(main())


def test_lost_pings_have_no_round_trip():
    report = QuicReport(Outcome.OK, "", pings=(0.2, None, 0.1, None))
    assert report.ping_rtt_s == 0.1
    assert QuicReport(Outcome.DNS, "").ping_rtt_s is None


def test_it_is_a_probe():
    dialer: Dialer = LoopbackDialer()
    probe: Probe = QuicProbe(dialer)
    assert probe.kind is Kind.QUIC
