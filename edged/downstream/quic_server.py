"""One UDP socket on which many clients speak QUIC: datagrams to connections and back.

* Reading: UDP_GRO where the kernel has it, a bounded number of reads a wake; each datagram goes to
  the connection whose id it names (RFC 9000 section 5.1), so that clients may change address.
* Writing: once a loop turn, batches of equal size to one address with UDP_SEGMENT (GSO). What the
  socket does not take waits for it to become writable; meanwhile no engine is asked for more.
* An answer leaves from the address that was asked (`edged.downstream.quic_source`).
* Strangers: a datagram that begins no connection is dropped without an answer. While many
  handshakes are open, a client must first show with a Retry (section 8.1.2) that it is where it
  says it is.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import deque
from itertools import groupby
from operator import itemgetter
from time import monotonic

from aioquic.quic.packet import encode_quic_retry, encode_quic_version_negotiation

from edged.downstream import quic_source
from edged.downstream.h3 import H3Connection
from edged.downstream.hub import Hub
from edged.downstream.quic_engines import CID_BYTES, Factory, Initial, Tickets
from edged.downstream.quic_retry import RetryTokens
from edged.downstream.quic_source import Source
from edged.downstream.sockets import explain
from edged.quic import Address

SOCKET_BUFFER_BYTES = 4 << 20
"""Asked for both ways; the kernel gives what net.core.rmem_max and wmem_max allow."""
READS_PER_WAKE = 16
TIMER_SLACK_S = 0.001
HALF_OPEN = 256
"""Handshakes open at a time before newcomers get a Retry."""
BACKLOG_DATAGRAMS = 8192
"""Datagrams that may wait for the socket; further ones are lost, as on a wire."""

_VERSION_1 = 1
_INITIAL = 0
_LEAST_INITIAL_BYTES = 1200
_UDP_SEGMENT = 103
_UDP_GRO = 104
_GSO_MAX_SEGMENTS = 64
_GSO_MAX_BYTES = 65000
_READ_BYTES = 65535
_SEGMENT_SIZE = struct.Struct("=H")
_GRO_SIZE = struct.Struct("=i")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_GRO_SIZE.size) + quic_source.BYTES


class QuicServer:
    """Serves HTTP/3 for ``hub`` on one address. ``factory`` may be replaced while it serves."""

    def __init__(self, hub: Hub, factory: Factory) -> None:
        self.factory = factory
        self.datagrams_received = 0
        self.datagrams_sent = 0
        self._hub = hub
        self._loop = hub.loop
        self._sock: socket.socket | None = None
        self._connections: dict[bytes, H3Connection] = {}
        self._shaking: set[H3Connection] = set()
        self._tickets = Tickets()
        self._retry = RetryTokens()
        self._dirty: dict[H3Connection, None] = {}
        self._flush_due = False
        self._gso = True
        self._backlog: deque[tuple[bytes, Address, Source]] = deque()

    def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; the address bound. Raises `OSError` with a text for people."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                if sock.getsockopt(socket.SOL_SOCKET, option) < SOCKET_BUFFER_BYTES:
                    sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
            sock.bind((host, port))
            quic_source.learn(sock)
        except OSError as error:
            sock.close()
            raise OSError(error.errno, explain(error, host, port)) from error
        try:
            sock.setsockopt(socket.SOL_UDP, _UDP_GRO, 1)
        except OSError as error:
            if error.errno not in (errno.ENOPROTOOPT, errno.EINVAL):
                raise
        self._sock = sock
        self._loop.add_reader(sock.fileno(), self._readable)
        bound: tuple[str, int] = sock.getsockname()[:2]
        return bound

    def close(self) -> None:
        """Say what there is to say, and let go of the socket. Connections are the hub's to end."""
        sock = self._sock
        if sock is None:
            return
        self._flush()
        self._sock = None
        self._loop.remove_reader(sock.fileno())
        self._loop.remove_writer(sock.fileno())
        sock.close()
        self._connections.clear()

    # -- what connections ask for (Port) ----------------------------------------------------------

    def touch(self, connection: H3Connection) -> None:
        """Flush it at the end of this loop turn."""
        self._dirty[connection] = None
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def add(self, cid: bytes, connection: H3Connection) -> None:
        """Datagrams with this connection id are its."""
        connection.cids.add(cid)
        self._connections[cid] = connection

    def remove(self, cid: bytes) -> None:
        """They are not any more."""
        connection = self._connections.pop(cid, None)
        if connection is not None:
            connection.cids.discard(cid)

    def closed(self, connection: H3Connection) -> None:
        """It is over: say so to its client, and forget it."""
        self._dirty.pop(connection, None)
        self._shaking.discard(connection)
        for cid in connection.cids:
            self._connections.pop(cid, None)
        connection.cids.clear()
        if connection.timer is not None:
            connection.timer.cancel()
            connection.timer = None
        self._send(connection.engine.datagrams_to_send(monotonic()), connection.source)

    # -- reading ----------------------------------------------------------------------------------

    def _readable(self) -> None:
        received: dict[H3Connection, dict[Address, list[bytes]]] = {}
        for _ in range(READS_PER_WAKE):
            sock = self._sock
            if sock is None:
                return
            try:
                data, ancillary, _, address = sock.recvmsg(_READ_BYTES, _ANCILLARY_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                continue  # what ICMP had to say of some client
            size = len(data)
            segment = _segment(ancillary) or size if ancillary else size
            source = quic_source.source_of(ancillary) if ancillary else ()
            datagrams = (
                (data,)
                if segment >= size
                else [data[i : i + segment] for i in range(0, size, segment)]
            )
            self.datagrams_received += len(datagrams)
            peer = address[:2]
            for datagram in datagrams:
                connection = self._find(datagram, peer, source)
                if connection is not None:
                    connection.source = source
                    of = received.setdefault(connection, {})
                    of.setdefault(peer, []).append(datagram)
        now = monotonic()
        for connection, by_address in received.items():
            for peer, datagrams in by_address.items():
                connection.address = peer
                connection.engine.receive(datagrams, peer, now)
            self._pump(connection)

    def _pump(self, connection: H3Connection) -> None:
        connection.engine.pump(connection)
        if connection.shaken:
            self._shaking.discard(connection)
        if connection.cids:
            self.touch(connection)

    def _find(self, datagram: bytes, peer: Address, source: Source) -> H3Connection | None:
        """The connection that a datagram belongs to, or begins."""
        if not datagram:
            return None
        first = datagram[0]
        if not first & 0x80:
            return self._connections.get(datagram[1 : 1 + CID_BYTES])
        if len(datagram) < 7:
            return None
        end = 6 + datagram[5]
        destination = datagram[6:end]
        connection = self._connections.get(destination)
        if connection is not None or len(datagram) < _LEAST_INITIAL_BYTES:
            return connection
        version = int.from_bytes(datagram[1:5], "big")
        if version == 0 or not 8 <= len(destination) <= 20:
            return None
        source_end = end + 1 + datagram[end]
        peer_cid = datagram[end + 1 : source_end]
        if version != _VERSION_1:
            self._send([(_no_such_version(destination, peer_cid), peer)], source)
            return None
        if first & 0x30 != _INITIAL:
            return None
        return self._begin(destination, peer_cid, _token(datagram, source_end), peer, source)

    def _begin(
        self, destination: bytes, peer_cid: bytes, token: bytes, peer: Address, source: Source
    ) -> H3Connection | None:
        initial = Initial(destination, destination, False)
        if len(self._shaking) >= HALF_OPEN or token:
            original = self._retry.read(token, peer, destination, monotonic())
            if original is not None:
                initial = Initial(destination, original, True)
            elif len(self._shaking) >= HALF_OPEN:
                self._send([(self._ask_again(destination, peer_cid, peer), peer)], source)
                return None
        engine = self.factory(initial, self._tickets)
        connection = H3Connection(self._hub, self, engine, peer)
        if not self._hub.admit(connection):
            return None
        self._shaking.add(connection)
        self.add(destination, connection)
        self.add(engine.cid, connection)
        return connection

    def _ask_again(self, destination: bytes, source: bytes, peer: Address) -> bytes:
        cid = os.urandom(CID_BYTES)
        token = self._retry.make(peer, destination, cid, monotonic())
        return encode_quic_retry(
            version=_VERSION_1,
            source_cid=cid,
            destination_cid=source,
            original_destination_cid=destination,
            retry_token=token,
        )

    # -- writing ----------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._flush_due = False
        if self._backlog or self._sock is None:
            return
        now = monotonic()
        while self._dirty and not self._backlog:
            connection = next(iter(self._dirty))
            del self._dirty[connection]
            self._send(connection.engine.datagrams_to_send(now), connection.source)
            if connection.cids:
                self._arm(connection)
                connection.flushed()

    def _send(self, datagrams: list[tuple[bytes, Address]], source: Source) -> None:
        count = len(datagrams)
        self.datagrams_sent += count
        at = 0
        while at < count:
            data, address = datagrams[at]
            size = len(data)
            end = at + 1
            most = at + min(_GSO_MAX_SEGMENTS, _GSO_MAX_BYTES // size)
            while end < count and end < most and datagrams[end][1] == address:
                length = len(datagrams[end][0])
                if length > size:
                    break
                end += 1
                if length < size:
                    break  # only the last segment of a batch may be shorter
            self._send_group([data for data, _ in datagrams[at:end]], address, source)
            at = end

    def _send_group(self, group: list[bytes], address: Address, source: Source) -> None:
        sock = self._sock
        if sock is None:
            return
        if self._backlog:
            self._wait(group, address, source)
            return
        if len(group) > 1 and self._gso:
            segment = [(socket.SOL_UDP, _UDP_SEGMENT, _SEGMENT_SIZE.pack(len(group[0])))]
            try:
                sock.sendmsg(group, [*segment, *source], 0, address)
                return
            except (BlockingIOError, InterruptedError):
                self._wait(group, address, source)
                return
            except OSError as error:
                # EINVAL, EIO: this kernel or device cannot; EMSGSIZE: below, one by one.
                self._gso = error.errno not in (errno.EINVAL, errno.EIO)
        for i, data in enumerate(group):
            try:
                if source:
                    sock.sendmsg((data,), source, 0, address)
                else:
                    sock.sendto(data, address)
            except (BlockingIOError, InterruptedError):
                self._wait(group[i:], address, source)
                return
            except OSError:
                continue  # a client without a route: its datagrams are lost, as on a wire

    def _wait(self, group: list[bytes], address: Address, source: Source) -> None:
        if self._sock is not None and len(self._backlog) < BACKLOG_DATAGRAMS:
            if not self._backlog:
                self._loop.add_writer(self._sock.fileno(), self._writable)
            self._backlog.extend((data, address, source) for data in group)

    def _writable(self) -> None:
        sock = self._sock
        if sock is None:
            return
        self._loop.remove_writer(sock.fileno())
        waiting = list(self._backlog)
        self._backlog.clear()
        for source, of_one in groupby(waiting, key=itemgetter(2)):
            self._send([one[:2] for one in of_one], source)
        if not self._backlog:
            self._flush()

    # -- time -------------------------------------------------------------------------------------

    def _arm(self, connection: H3Connection) -> None:
        due = connection.engine.get_timer()
        if due is None:
            return
        if connection.timer is not None:
            if connection.timer_at <= due + TIMER_SLACK_S:
                return  # an early wake arms it again
            connection.timer.cancel()
        connection.timer_at = due
        delay_s = max(0.0, due - monotonic())
        connection.timer = self._loop.call_later(delay_s, self._timer_fired, connection)

    def _timer_fired(self, connection: H3Connection) -> None:
        connection.timer = None
        if self._sock is None or not connection.cids:
            return
        now = monotonic()
        due = connection.engine.get_timer()
        if due is None or due > now + TIMER_SLACK_S:
            self._arm(connection)
            return
        # The loop may wake a little early; the engine must see its deadline reached.
        connection.engine.handle_timer(max(now, due))
        self._pump(connection)


def _segment(ancillary: list[quic_source.Ancillary]) -> int | None:
    """The size of each datagram that the kernel has put together."""
    for level, kind, data in ancillary:
        if level == socket.SOL_UDP and kind == _UDP_GRO:
            return int(_GRO_SIZE.unpack_from(data)[0])
    return None


def _no_such_version(destination: bytes, source: bytes) -> bytes:
    return encode_quic_version_negotiation(
        source_cid=destination, destination_cid=source, supported_versions=[_VERSION_1]
    )


def _token(datagram: bytes, at: int) -> bytes:
    """The token of an Initial packet (RFC 9000 section 17.2.2), which begins at ``at``."""
    if at >= len(datagram):
        return b""
    size = 1 << (datagram[at] >> 6)
    length = int.from_bytes(datagram[at : at + size], "big") & ((1 << (8 * size - 2)) - 1)
    return datagram[at + size : at + size + length]
