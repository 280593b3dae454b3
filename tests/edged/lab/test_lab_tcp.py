from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
from lab_clients import BGP, CN2, connect, retransmits, unacked, until

from edged.lab.lines import Impairment, Lines, LineSpec
from edged.lab.tcp import TcpFront


@contextlib.asynccontextmanager
async def echo_front(*specs, kernel=True):
    """A front before a server that echoes; yields lines, front and its address."""

    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.73.0.9", 0)
    lines = Lines(specs, seed=1)
    front = TcpFront(lines, server.sockets[0].getsockname())
    front.kernel = front.kernel and kernel
    port = front.start("127.72.9.2")
    try:
        yield lines, front, ("127.72.9.2", port)
    finally:
        await front.stop()
        server.close()


async def exchange(sock, data, timeout_s=10.0):
    """Send, and receive as many bytes; returns them and the time it took."""
    loop = asyncio.get_running_loop()
    start = time.monotonic()
    await loop.sock_sendall(sock, data)
    got = await receive(sock, len(data), timeout_s)
    return got, time.monotonic() - start


async def receive(sock, size, timeout_s=10.0):
    loop = asyncio.get_running_loop()
    got = b""
    async with asyncio.timeout(timeout_s):
        while len(got) < size and (chunk := await loop.sock_recv(sock, 1 << 20)):
            got += chunk
    return got


def test_the_round_trip_of_each_line_comes_out_as_set():
    async def main():
        specs = [
            LineSpec.symmetric("cn2", CN2, rtt_s=0.04),
            LineSpec.symmetric("bgp", BGP, rtt_s=0.12),
        ]
        async with echo_front(*specs) as (_, _, address):
            for source, rtt_s in ((CN2, 0.04), (BGP, 0.12), ("127.0.0.1", 0.0)):
                with await connect(source, address) as sock:
                    times = [(await exchange(sock, b"x"))[1] for _ in range(5)]
                    assert rtt_s <= min(times) < rtt_s + 0.03

    asyncio.run(main())


def test_a_rate_limits_each_direction():
    async def main():
        spec = LineSpec.symmetric("cn2", CN2, rtt_s=0.0, rate_bps=8e6)
        async with echo_front(spec) as (_, _, address):
            with await connect(CN2, address) as sock:
                data = bytes(500_000)  # 0.5 s at 8 Mbit/s; both directions overlap
                sending = asyncio.ensure_future(exchange(sock, data))
                got, took = await sending
                assert len(got) == len(data)
                assert 0.45 < took < 1.5

    asyncio.run(main())


def test_bytes_keep_their_order_under_jitter_and_loss():
    async def main():
        wild = Impairment(delay_s=0.002, jitter_s=0.002, loss=0.02)
        async with echo_front(LineSpec("cn2", CN2, "x", wild, wild)) as (_, _, address):
            with await connect(CN2, address) as sock:
                data = b"".join(i.to_bytes(4, "big") for i in range(20_000))
                got, _ = await exchange(sock, data)
                assert got == data

    asyncio.run(main())


def test_downward_loss_shows_as_a_wait():
    async def main():
        async with echo_front(LineSpec("cn2", CN2)) as (lines, _, address):
            with await connect(CN2, address) as sock:
                lines.set("cn2", down=Impairment(loss=0.5))
                times = [(await exchange(sock, b"x"))[1] for _ in range(20)]
                late = sum(t >= 0.19 for t in times)
                assert 4 <= late <= 16
                assert all(t < 0.1 or t >= 0.19 for t in times)

    asyncio.run(main())


def test_upward_loss_makes_the_clients_kernel_retransmit():
    async def main():
        async with echo_front(LineSpec("cn2", CN2)) as (lines, front, address):
            if not front.kernel:
                pytest.skip("this kernel refuses socket filters")
            with await connect(CN2, address) as sock:
                lines.set("cn2", up=Impairment(loss=0.3))
                for _ in range(20):
                    await exchange(sock, b"x")
                assert retransmits(sock) > 0

    asyncio.run(main())


def test_an_established_connection_hears_nothing_from_a_dead_line_and_recovers():
    async def main():
        async with echo_front(LineSpec("cn2", CN2), LineSpec("bgp", BGP)) as (
            lines,
            front,
            address,
        ):
            if not front.kernel:
                pytest.skip("this kernel refuses socket filters")
            with await connect(CN2, address) as dead, await connect(BGP, address) as alive:
                await exchange(dead, b"before")
                lines.blackhole("cn2")
                for _ in range(3):
                    dead.send(b"x")
                await until(lambda: unacked(dead) > 0 and retransmits(dead) > 1)
                with pytest.raises(BlockingIOError):
                    dead.recv(1)
                assert (await exchange(alive, b"alive"))[0] == b"alive"
                lines.restore("cn2")
                assert await receive(dead, 3) == b"xxx"
                await until(lambda: unacked(dead) == 0)
                assert (await exchange(dead, b"after"))[0] == b"after"

    asyncio.run(main())


def test_new_connections_hang_on_a_dead_line_and_work_on_another():
    async def main():
        async with echo_front(LineSpec("cn2", CN2), LineSpec("bgp", BGP)) as (
            lines,
            front,
            address,
        ):
            if not front.kernel:
                pytest.skip("this kernel refuses socket filters")
            lines.blackhole("cn2")
            with pytest.raises(TimeoutError):
                await connect(CN2, address, timeout_s=0.3)
            (await connect(BGP, address)).close()
            lines.restore("cn2")
            (await connect(CN2, address)).close()

    asyncio.run(main())


def test_bytes_under_way_when_the_line_dies_arrive_only_after_its_return():
    async def main():
        spec = LineSpec.symmetric("cn2", CN2, rtt_s=0.1)
        async with echo_front(spec) as (lines, _, address):
            with await connect(CN2, address) as sock:
                await exchange(sock, b"warm")
                sock.send(b"late")
                await asyncio.sleep(0.07)  # the echo is on its way back
                lines.blackhole("cn2")
                await asyncio.sleep(0.15)
                with pytest.raises(BlockingIOError):
                    sock.recv(10)
                lines.restore("cn2")
                assert await receive(sock, 4) == b"late"

    asyncio.run(main())


def test_without_filters_a_dead_line_stalls_in_user_space():
    async def main():
        async with echo_front(LineSpec("cn2", CN2), kernel=False) as (lines, _, address):
            with await connect(CN2, address) as sock:
                await exchange(sock, b"before")
                lines.blackhole("cn2")
                sock.send(b"x")
                await asyncio.sleep(0.1)
                with pytest.raises(BlockingIOError):
                    sock.recv(1)
                lines.restore("cn2")
                assert await receive(sock, 1) == b"x"

    asyncio.run(main())


def test_a_silent_endpoint_is_silent_on_every_line():
    async def main():
        async with echo_front(LineSpec("cn2", CN2), LineSpec("bgp", BGP)) as (_, front, address):
            if not front.kernel:
                pytest.skip("this kernel refuses socket filters")
            front.silence(True)
            for source in (CN2, BGP):
                with pytest.raises(TimeoutError):
                    await connect(source, address, timeout_s=0.2)
            front.silence(False)
            (await connect(BGP, address)).close()

    asyncio.run(main())


def test_ends_and_resets_travel_and_nothing_is_left_behind():
    async def main():
        async with echo_front(LineSpec.symmetric("cn2", CN2, rtt_s=0.02)) as (_, front, address):
            loop = asyncio.get_running_loop()
            with await connect(CN2, address) as sock:
                sock.send(b"bye")
                sock.shutdown(1)
                assert await receive(sock, 3) == b"bye"
                assert await loop.sock_recv(sock, 1) == b""
            await until(lambda: front.connections == 0)
            for _ in range(5):
                (await connect(CN2, address)).close()
            await until(lambda: front.connections == 0)

    asyncio.run(main())


def test_a_dead_origin_resets_the_client():
    async def main():
        lines = Lines([LineSpec("cn2", CN2)])
        front = TcpFront(lines, ("127.73.0.9", 1))
        port = front.start("127.72.9.3")
        sock = await connect(CN2, ("127.72.9.3", port))
        with sock, pytest.raises(ConnectionResetError):
            await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 1), 5)
        assert front.connections == 0
        await front.stop()

    asyncio.run(main())
