"""A line's sockets fall silent, and come back: what peers see, on real sockets."""

import asyncio
import contextlib
import socket

import pytest
import uvloop

from edged.dialer import LineDialer
from edged.line_sockets import HoldingTransport, LineSockets, SilentSocket
from edged.socket_filter import supported
from policies.model import Endpoint, Line, Outcome, Path
from probes.base import DialError
from probes.icmp import IcmpProbe

pytestmark = pytest.mark.skipif(not supported(), reason="this kernel refuses socket filters")

LINE = Line("a", source="127.71.8.2")
OTHER = Line("b", source="127.71.8.3")


class Peer(asyncio.Protocol):
    """A server's side of one connection."""

    def __init__(self, peers):
        self.received = bytearray()
        self.ended = False
        peers.append(self)

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.received += data

    def eof_received(self):
        self.ended = True

    def connection_lost(self, exc):
        self.ended = True


class Client(asyncio.Protocol):
    def __init__(self):
        self.received = bytearray()
        self.calls = []
        self.lost = asyncio.get_running_loop().create_future()

    def data_received(self, data):
        self.received += data

    def pause_writing(self):
        self.calls.append("pause")

    def resume_writing(self):
        self.calls.append("resume")

    def connection_lost(self, exc):
        self.lost.set_result(exc)


async def until(condition, timeout_s=5.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


class Bench:
    """A dialer and a server on loopback."""

    def __init__(self):
        self.dialer = LineDialer()
        self.peers = []

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(lambda: Peer(self.peers), "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()
        await self.dialer.close()

    async def connect(self, line=LINE):
        dialed = await self.dialer.connect_tcp(line, "127.0.0.1", self.port, timeout_s=2)
        loop = asyncio.get_running_loop()
        transport, client = await loop.create_connection(Client, sock=dialed.sock)
        await until(lambda: self.peers)
        return dialed.wire.wrap(transport), client, self.peers[-1]


def run(main):
    """On the loop that the daemon runs on."""
    uvloop.run(main())


def test_nothing_leaves_or_arrives_until_it_is_restored():
    async def main():
        async with Bench() as bench:
            transport, client, peer = await bench.connect()
            transport.write(b"one ")
            await until(lambda: peer.received == b"one ")
            sockets = bench.dialer.sockets("a")
            sockets.silence()
            transport.write(b"two ")
            transport.writelines([b"three ", bytearray(b"four "), memoryview(b"five")])
            peer.transport.write(b"answer")
            await asyncio.sleep(0.3)
            assert peer.received == b"one "
            assert not client.received
            sockets.restore()
            await until(lambda: client.received == b"answer")  # the kernel's own retransmission
            await until(lambda: peer.received == b"one two three four five")
            transport.write(b" six")
            await until(lambda: peer.received.endswith(b" six"))
            transport.abort()

    run(main)


def test_other_lines_go_on():
    async def main():
        async with Bench() as bench:
            await bench.connect()
            transport, _, _ = await bench.connect(OTHER)
            bench.dialer.sockets("a").silence()
            transport.write(b"on")
            await until(lambda: bench.peers[-1].received == b"on")
            transport.abort()

    run(main)


@pytest.mark.parametrize("how", ["abort", "close"])
def test_the_peer_does_not_hear_of_a_connection_that_is_closed_meanwhile(how):
    async def main():
        async with Bench() as bench:
            transport, client, peer = await bench.connect()
            sockets = bench.dialer.sockets("a")
            sockets.silence()
            transport.write(b"lost")
            getattr(transport, how)()
            await client.lost
            await asyncio.sleep(0.2)
            assert not peer.ended
            assert not peer.received
            sockets.restore()
            await until(lambda: peer.ended)
            assert not peer.received

    run(main)


def test_a_half_close_waits_as_well():
    async def main():
        async with Bench() as bench:
            transport, _, peer = await bench.connect()
            sockets = bench.dialer.sockets("a")
            sockets.silence()
            transport.write(b"last")
            transport.write_eof()
            await asyncio.sleep(0.1)
            assert not peer.ended
            sockets.restore()
            await until(lambda: peer.ended)
            assert peer.received == b"last"
            transport.abort()

    run(main)


def test_a_writer_is_paused_as_by_a_full_socket():
    async def main():
        async with Bench() as bench:
            transport, client, peer = await bench.connect()
            transport.set_write_buffer_limits(high=10_000)
            sockets = bench.dialer.sockets("a")
            sockets.silence()
            transport.write(bytes(9_000))
            assert client.calls == []
            transport.write(bytes(9_000))
            transport.write(bytes(9_000))
            assert client.calls == ["pause"]
            assert transport.get_write_buffer_size() == 27_000
            sockets.restore()
            await until(lambda: len(peer.received) == 27_000)
            await until(lambda: client.calls[-1] == "resume")
            transport.abort()

    run(main)


def test_dials_hang_until_their_timeout_or_the_end():
    async def main():
        async with Bench() as bench:
            sockets = bench.dialer.sockets("a")
            sockets.silence()
            with pytest.raises(DialError) as error:
                await bench.dialer.connect_tcp(LINE, "127.0.0.1", bench.port, timeout_s=0.1)
            assert error.value.outcome is Outcome.TIMEOUT
            dial = asyncio.create_task(
                bench.dialer.connect_tcp(LINE, "127.0.0.1", bench.port, timeout_s=5)
            )
            await asyncio.sleep(0.1)
            assert not bench.peers
            sockets.restore()
            (await dial).sock.close()
            await until(lambda: bench.peers)

    run(main)


def test_a_connection_that_ends_its_handshake_meanwhile_is_silent_from_its_first_byte():
    async def main():
        async with Bench() as bench:
            dialed = await bench.dialer.connect_tcp(LINE, "127.0.0.1", bench.port, timeout_s=2)
            sockets = bench.dialer.sockets("a")
            sockets.silence()
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_connection(Client, sock=dialed.sock)
            wrapped = dialed.wire.wrap(transport)
            wrapped.write(b"first")
            await asyncio.sleep(0.1)
            assert not bench.peers[-1].received
            sockets.restore()
            await until(lambda: bench.peers[-1].received == b"first")
            wrapped.abort()

    run(main)


@pytest.mark.parametrize("before", [True, False])
def test_datagrams_vanish_both_ways(before):
    async def main():
        with contextlib.closing(socket.socket(type=socket.SOCK_DGRAM)) as server:
            server.bind(("127.0.0.1", 0))
            server.setblocking(False)
            dialer = LineDialer()
            sockets = dialer.sockets("a")
            if not before:
                sockets.silence()
            dialed = await dialer.connect_udp(
                LINE, "127.0.0.1", server.getsockname()[1], timeout_s=1
            )
            sock = dialed.sock
            if before:
                sock.send(b"hello")
                sockets.silence()
            assert sock.send(b"lost") == 4
            assert sock.sendmsg([b"lost", b"too"]) == 7
            assert sock.sendto(b"lost", server.getsockname()) == 4
            await asyncio.sleep(0.05)
            if before:
                data, client = server.recvfrom(100)
                assert data == b"hello"
                server.sendto(b"answer", client)
            with pytest.raises(BlockingIOError):
                server.recvfrom(100)
            with pytest.raises(BlockingIOError):
                sock.recv(100)
            sockets.restore()
            assert type(sock) is socket.socket
            sock.send(b"again")
            await asyncio.sleep(0.05)
            data, client = server.recvfrom(100)
            assert data == b"again"
            server.sendto(b"back", client)
            await asyncio.sleep(0.05)
            assert sock.recv(100) == b"back"
            sock.close()

    run(main)


def test_name_servers_are_not_asked_either():
    async def main():
        with contextlib.closing(socket.socket(type=socket.SOCK_DGRAM)) as server:
            server.bind(("127.0.0.1", 0))
            server.setblocking(False)
            asked = f"127.0.0.1:{server.getsockname()[1]}"
            line = Line("a", source="127.71.8.2", dns=(asked,))
            dialer = LineDialer()
            dialer.sockets("a").silence()
            with pytest.raises(DialError) as error:
                await dialer.resolve(line, "api.example.com", timeout_s=0.3)
            assert error.value.outcome is Outcome.DNS
            with pytest.raises(BlockingIOError):
                server.recv(1000)
            await dialer.close()

    run(main)


def test_nothing_is_kept_of_what_is_closed():
    async def main():
        async with Bench() as bench:
            transport, client, _ = await bench.connect()
            sockets = bench.dialer.sockets("a")
            assert len(sockets._sockets) == len(sockets._transports) == 1
            sockets.silence()
            sockets.silence()  # once is enough
            transport.abort()
            await client.lost
            del transport, client
            sockets.restore()
            sockets.restore()
            assert not sockets._duplicates
            await asyncio.sleep(0.01)
            assert not sockets._transports
            assert not sockets._sockets

    run(main)


def test_a_silent_socket_counts_bytes_and_no_items():
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.__class__ = SilentSocket
    assert sock.send(memoryview(bytearray(8)).cast("H")) == 8
    sock.close()


def test_a_transport_passes_everything_else_on():
    async def main():
        async with Bench() as bench:
            transport, client, _ = await bench.connect()
            assert isinstance(transport, HoldingTransport)
            assert transport.get_extra_info("peername")[1] == bench.port
            assert transport.get_protocol() is client
            assert transport.can_write_eof()
            transport.pause_reading()
            assert not transport.is_reading()
            transport.resume_reading()
            transport.close()
            assert transport.is_closing()
            assert await client.lost is None

    run(main)


def test_silence_without_sockets_is_harmless():
    sockets = LineSockets()
    sockets.silence()
    assert sockets.silent
    sockets.restore()
    assert not sockets.silent


def test_echoes_are_neither_sent_nor_answered():
    async def main():
        dialer = LineDialer()
        warnings = []
        probe = IcmpProbe(dialer, warn=warnings.append)
        endpoint = Endpoint("u", "e", "http", "127.0.0.1", 80, address="127.0.0.1")
        path = Path(LINE, endpoint)
        first = await probe.run(path, timeout_s=1)
        if probe.permitted is False:
            pytest.skip("this process may not send ICMP")
        assert [s.outcome for s in first] == [Outcome.OK]
        sockets = dialer.sockets("a")
        sockets.silence()
        silent = await probe.run(path, timeout_s=0.2)
        assert [s.outcome for s in silent] == [Outcome.TIMEOUT]
        sockets.restore()
        again = await probe.run(path, timeout_s=1)
        assert [s.outcome for s in again] == [Outcome.OK]
        await probe.close()
        await dialer.close()

    run(main)
