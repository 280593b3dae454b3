"""TCP connect probe against real listeners on loopback."""

from __future__ import annotations

import asyncio
import socket

import pytest

from edged.dialer import LineDialer
from policies.model import Endpoint, Kind, Line, Outcome, Path
from probes.base import DialError
from probes.tcp import TcpProbe

LINE = Line("cn2", source="127.0.0.2")


def path_to(port, host="127.0.0.1", line=LINE, address=None):
    return Path(line, Endpoint("u", "e", "https", host, port, address=address))


def run(path, timeout_s=2.0, dialer=None):
    async def main():
        own = dialer or LineDialer()
        return await TcpProbe(own).run(path, timeout_s=timeout_s)

    return asyncio.run(main())


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(5)
        yield sock


def test_measures_the_handshake_from_the_line_and_closes_in_the_ordinary_way(listener):
    (sample,) = run(path_to(listener.getsockname()[1]))
    assert (sample.path, sample.kind, sample.outcome) == ("cn2>u/e", Kind.TCP, Outcome.OK)
    assert 0 < sample.rtt_s < 0.5
    assert (sample.packets_sent, sample.packets_lost) == (1, 0)
    peer, address = listener.accept()
    with peer:
        assert address[0] == "127.0.0.2"
        assert peer.recv(1) == b""  # FIN; a reset would raise


def test_a_fixed_address_replaces_dns(listener):
    (sample,) = run(path_to(listener.getsockname()[1], "nowhere.invalid", address="127.0.0.1"))
    assert sample.outcome is Outcome.OK


def test_refused_is_the_endpoints_and_unreachable_the_lines():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        (refused,) = run(path_to(closed.getsockname()[1]))
    assert (refused.outcome, refused.rtt_s) == (Outcome.REFUSED, None)
    (unreachable,) = run(path_to(80, line=Line("gone", source="10.71.1.2")))
    assert unreachable.outcome is Outcome.UNREACHABLE


def test_silence_is_a_timeout_and_a_repeated_syn_a_packet_lost_not_a_slow_answer():
    """A full accept queue drops SYNs: the kernel repeats after a second, when there is room."""

    async def main():
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        fillers = []
        for _ in range(2):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            fillers.append(filler)
        await asyncio.sleep(0.05)
        probe = TcpProbe(LineDialer())
        path = path_to(listener.getsockname()[1])
        (silent,) = await probe.run(path, timeout_s=0.1)
        assert silent.outcome is Outcome.TIMEOUT
        late = asyncio.create_task(probe.run(path, timeout_s=10))
        await asyncio.sleep(0.3)
        accepted = [(await loop.sock_accept(listener))[0] for _ in range(2)]
        (sample,) = await late
        for sock in (*accepted, *fillers, listener):
            sock.close()
        return sample

    sample = asyncio.run(main())
    assert sample.outcome is Outcome.OK
    assert sample.packets_lost >= 1
    assert sample.packets_sent == 1 + sample.packets_lost
    assert sample.rtt_s is None  # Karn: a repeated SYN's round trip is not known


def test_the_syn_is_announced_once_it_is_out_and_never_when_none_went(listener):
    announced = []

    async def main():
        probe = TcpProbe(LineDialer(), sent=lambda *args: announced.append(args))
        path = path_to(listener.getsockname()[1])
        (sample,) = await probe.run(path, timeout_s=2)
        assert announced == [(path.name, Kind.TCP, sample.sent_at)]
        await probe.run(path_to(80, line=Line("gone", source="10.71.1.2")), timeout_s=2)
        await probe.run(path_to(80, host="::1"), timeout_s=2)
        await asyncio.sleep(0)
        assert len(announced) == 1

    asyncio.run(main())


def test_when_this_host_is_exhausted_there_is_no_sample():
    class Exhausted:
        async def resolve(self, line, host):
            return [host]

        async def connect_tcp(self, *_, **__):
            raise DialError(Outcome.LOCAL, "no descriptors")

    assert run(path_to(1), dialer=Exhausted()) == ()


def test_a_name_server_that_keeps_an_old_answer_waiting_is_not_held_against_the_line(listener):
    class Stale(LineDialer):
        waited = False

        async def resolve(self, line, host, **options):
            if not self.waited:
                await asyncio.sleep(0.3)
            self.waited = True
            return await super().resolve(line, host, **options)

    path = path_to(listener.getsockname()[1])
    (sample,) = run(path, dialer=Stale(), timeout_s=0.1)
    assert sample.outcome is Outcome.OK
    assert sample.rtt_s < 0.1
