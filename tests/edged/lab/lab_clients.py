"""Clients of the lab for its tests: TCP from a line's address, and h3 on aioquic."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections import defaultdict

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import StreamReset

CN2, BGP, HK = "127.71.1.2", "127.71.2.2", "127.71.3.2"


async def connect(source, address, timeout_s=5.0):
    """A connected TCP socket from a line's address."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind((source, 0))
    try:
        loop = asyncio.get_running_loop()
        await asyncio.wait_for(loop.sock_connect(sock, address), timeout_s)
    except BaseException:
        sock.close()
        raise
    return sock


def unacked(sock):
    """Segments sent and not acknowledged (tcpi_unacked)."""
    return tcp_info(sock, 24)


def retransmits(sock):
    """Segments retransmitted since the connection began (tcpi_total_retrans)."""
    return tcp_info(sock, 100)


def tcp_info(sock, offset):
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return struct.unpack_from("I", info, offset)[0]


async def until(condition, timeout_s=10.0):
    """Wait for a condition, polled."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        await asyncio.sleep(0.01)


class H3Client(QuicConnectionProtocol):
    """Requests on one QUIC connection."""

    def __init__(self, *args, **named):
        super().__init__(*args, **named)
        self.h3 = H3Connection(self._quic)
        self.heads = defaultdict(list)
        self.bodies = defaultdict(bytearray)
        self.done = {}

    def quic_event_received(self, event):
        if isinstance(event, StreamReset) and event.stream_id in self.done:
            self.done[event.stream_id].set_exception(ConnectionResetError(event.error_code))
        for received in self.h3.handle_event(event):
            if isinstance(received, HeadersReceived):
                self.heads[received.stream_id].append(dict(received.headers))
            elif isinstance(received, DataReceived):
                self.bodies[received.stream_id] += received.data
            if received.stream_ended and not self.done[received.stream_id].done():
                self.done[received.stream_id].set_result(None)

    async def request(self, method, authority, path, headers=(), body=b""):
        """Returns the heads (interim, final, trailers) and the body."""
        stream = self._quic.get_next_available_stream_id()
        self.done[stream] = self._loop.create_future()
        pseudo = [
            (b":method", method.encode()),
            (b":scheme", b"https"),
            (b":authority", authority.encode()),
            (b":path", path.encode()),
        ]
        fields = [(k.encode(), v.encode()) for k, v in headers]
        self.h3.send_headers(stream, pseudo + fields, end_stream=not body)
        if body:
            self.h3.send_data(stream, body, end_stream=True)
        self.transmit()
        await self.done[stream]
        return self.heads[stream], bytes(self.bodies[stream])


@contextlib.asynccontextmanager
async def h3_client(source, address, host, ca_file):
    """A connected h3 client from a line's address."""
    configuration = QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name=host)
    configuration.load_verify_locations(str(ca_file))
    transport, client = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: H3Client(QuicConnection(configuration=configuration)), local_addr=(source, 0)
    )
    try:
        client.connect(address)
        await asyncio.wait_for(client.wait_connected(), 10)
        yield client
    finally:
        client.close()
        transport.close()
