from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import pytest
from lab_clients import BGP, CN2

from edged.lab.lines import Impairment, Lines, LineSpec
from edged.lab.udp import UdpFront


class Echo(asyncio.DatagramProtocol):
    def __init__(self):
        self.peers = []

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, peer):
        self.peers.append(peer)
        self.transport.sendto(data, peer)


@contextlib.asynccontextmanager
async def echo_front(*specs):
    loop = asyncio.get_running_loop()
    transport, echo = await loop.create_datagram_endpoint(Echo, local_addr=("127.73.0.9", 0))
    lines = Lines(specs, seed=1)
    front = UdpFront(lines, transport.get_extra_info("sockname"))
    port = front.start("127.72.9.2", 0)
    try:
        yield lines, echo, front, ("127.72.9.2", port)
    finally:
        front.stop()
        transport.close()


def client(source, address):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((source, 0))
    sock.connect(address)
    sock.setblocking(False)
    return sock


async def answers(sock, wait_s):
    """What arrives until nothing has for ``wait_s``."""
    got = []
    with contextlib.suppress(TimeoutError):
        while True:
            recv = asyncio.get_running_loop().sock_recv(sock, 2048)
            got.append(await asyncio.wait_for(recv, wait_s))
    return got


def test_the_round_trip_comes_out_as_set_and_the_origin_sees_the_line():
    async def main():
        specs = [
            LineSpec.symmetric("cn2", CN2, rtt_s=0.04),
            LineSpec.symmetric("bgp", BGP, rtt_s=0.1),
        ]
        async with echo_front(*specs) as (_, echo, front, address):
            for source, rtt_s in ((CN2, 0.04), (BGP, 0.1)):
                with client(source, address) as sock:
                    start = time.monotonic()
                    sock.send(b"ping")
                    assert (
                        await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 10), 5)
                        == b"ping"
                    )
                    assert rtt_s <= time.monotonic() - start < rtt_s + 0.04
            assert [peer[0] for peer in echo.peers] == [CN2, BGP]
            assert front.flows == 2

    asyncio.run(main())


def test_datagrams_are_lost_for_good_at_the_set_share():
    async def main():
        one_way = Impairment(loss=0.2)
        async with echo_front(LineSpec("cn2", CN2, "x", one_way, one_way)) as (*_, address):
            with client(CN2, address) as sock:
                got = []
                for _ in range(20):  # small batches: a receive buffer holds few datagrams
                    for _ in range(50):
                        sock.send(b"x")
                    got += await answers(sock, 0.05)
                assert 570 < len(got) < 710  # 0.8 * 0.8

    asyncio.run(main())


def test_the_rate_drops_what_its_queue_cannot_hold():
    async def main():
        one_way = Impairment(rate_bps=800_000, queue_s=0.1)
        spec = LineSpec("cn2", CN2, "x", one_way, Impairment())
        async with echo_front(spec) as (*_, address):
            with client(CN2, address) as sock:
                for _ in range(100):  # 1 s worth, at once
                    sock.send(bytes(1000))
                got = await answers(sock, 0.3)
                assert 9 <= len(got) <= 14

    asyncio.run(main())


@pytest.mark.parametrize("direction", ["both", "up", "down"])
def test_a_dead_line_is_silent_and_returns(direction):
    async def main():
        specs = [LineSpec.symmetric("cn2", CN2, rtt_s=0.02), LineSpec("bgp", BGP)]
        async with echo_front(*specs) as (lines, echo, _, address):
            with client(CN2, address) as dead, client(BGP, address) as alive:
                dead.send(b"under way")
                lines.blackhole("cn2", direction=direction)
                dead.send(b"dead")
                alive.send(b"alive")
                assert await answers(alive, 0.1) == [b"alive"]
                assert await answers(dead, 0.1) == []
                assert len(echo.peers) == (3 if direction == "down" else 1)
                lines.blackhole("cn2", False)
                dead.send(b"back")
                assert await answers(dead, 0.2) == [b"back"]

    asyncio.run(main())


@pytest.mark.parametrize("reorder", [0.0, 0.3])
def test_jitter_keeps_the_order_and_reordering_breaks_it(reorder):
    async def main():
        one_way = Impairment(delay_s=0.02, jitter_s=0.01, reorder=reorder)
        spec = LineSpec("cn2", CN2, "x", one_way, Impairment())
        async with echo_front(spec) as (*_, address):
            with client(CN2, address) as sock:
                sent = [bytes([i]) for i in range(50)]
                for data in sent:
                    sock.send(data)
                    await asyncio.sleep(0.0002)
                got = await answers(sock, 0.2)
                assert sorted(got) == sent
                assert (got != sent) == (reorder > 0)

    asyncio.run(main())
