"""HTTP/3 on real sockets: both engines on the server's side, and each meets both as a client."""

import asyncio
import hashlib
import os
import socket
from pathlib import Path

import pytest

from edged.downstream.h3 import H3Connection
from edged.downstream.hub import Hub
from edged.downstream.limits import Limits
from edged.downstream.quic_engines import make_factory
from edged.downstream.quic_retry import LIFETIME_S, RetryTokens
from edged.downstream.quic_server import QuicServer
from edged.messages import ResponseHead
from tests.harness.h3 import FAST, Certificates, strictly, until
from tests.harness.h3client import connect

CERTIFICATES = Certificates()
ENGINES = pytest.mark.parametrize("engine", [FAST, "pure"])
BOTH = pytest.mark.parametrize(
    ("engine", "client"),
    [
        pytest.param("fast", "qh3", marks=FAST.marks),
        pytest.param("fast", "aioquic", marks=FAST.marks),
        pytest.param("pure", "qh3", marks=FAST.marks),
        ("pure", "aioquic"),
    ],
)


class Request:
    """What the handler of a test saw and did."""

    def __init__(self, head, responder):
        self.head, self.responder = head, responder
        self.received = hashlib.sha256()
        self.size = 0
        self.ended = head.body_length == 0
        self.trailers = None
        self.left = False
        self.slow = False
        self.pauses = 0
        self.most_unread = 0

    def body(self, data):
        self.received.update(data)
        self.size += len(data)

    def body_end(self, trailers):
        self.ended = True
        self.trailers = trailers

    def gone(self):
        self.left = True

    def pause_response(self):
        self.slow = True
        self.pauses += 1

    def resume_response(self):
        self.slow = False

    def answer(self, body=b"", status=200, headers=(), length=...):
        size = len(body) if length is ... else length
        self.responder.head(ResponseHead(status, list(headers), size))
        self.responder.data(body)
        self.responder.end()

    async def stream(self, total):
        """Send ``total`` bytes, waiting while the client is slow; their hash."""
        sent = hashlib.sha256()
        block = os.urandom(64 << 10)
        self.responder.head(ResponseHead(200, [], total))
        for at in range(0, total, len(block)):
            piece = block[: total - at]
            while self.slow:
                await asyncio.sleep(0.001)
            sent.update(piece)
            self.responder.data(piece)
        self.responder.end()
        return sent.hexdigest()


class House:
    """A QUIC server whose requests wait in ``requests``, or are handled by ``script``."""

    def __init__(self, engine, script=None, *, host="127.0.0.1", **limits):
        self.requests = []
        self.host = host
        self.script = script
        loop = asyncio.get_running_loop()
        self.hub = Hub(self.handle, Limits(**{"duplex": True, **limits}), loop)
        factory = make_factory(
            Path(CERTIFICATES.cert), Path(CERTIFICATES.key), idle_timeout_s=20, name=engine
        )
        self.server = QuicServer(self.hub, factory)

    def handle(self, head, responder):
        request = Request(head, responder)
        self.requests.append(request)
        if self.script is not None:
            self.script(request)
        return request

    async def __aenter__(self):
        self.hub.start()
        self.port = self.server.start(self.host, 0)[1]
        return self

    async def __aexit__(self, *_):
        for connection in list(self.hub.connections):
            connection.kill()
        self.server.close()
        self.hub.stop()
        assert not self.hub.connections
        assert self.hub.requests_open == 0

    def connect(self, client="aioquic", **options):
        return connect(self.port, ca=CERTIFICATES.ca, engine=client, **options)

    async def request(self, number=0):
        await until(lambda: len(self.requests) > number)
        return self.requests[number]


def go(scenario, engine, script=None, **more):
    async def main():
        async with House(engine, script, **more) as house:
            await scenario(house)

    asyncio.run(strictly(main()))


@BOTH
def test_request_and_response_with_all_their_parts(engine, client):
    def script(request):
        if request.head.body_length == 0:
            request.answer(b"hello", headers=[(b"etag", b"x")])

    async def scenario(house):
        async with house.connect(client) as connection:
            reply = await connection.request("GET", "/a?b", [("x-y", "z")]).until()
            assert (reply.status, reply.body, reply.ended) == (200, b"hello", "end")
            assert reply.headers[b"etag"] == b"x"
            assert reply.headers[b"content-length"] == b"5"
            head = house.requests[0].head
            assert (head.method, head.path, head.authority) == (b"GET", b"/a?b", b"a")
            assert (head.version, head.body_length, head.early) == (b"3", 0, False)
            assert (b"x-y", b"z") in head.headers

            sent = connection.request("POST", "/up", body=b"part", end=False)
            request = await house.request(1)
            assert request.head.body_length is None
            sent.send(b"more")
            sent.trail([(b"sum", b"1")])
            await until(lambda: request.ended)
            assert request.size == 8
            assert request.trailers == [(b"sum", b"1")]
            request.responder.informational(103, [(b"link", b"x")])
            request.responder.head(ResponseHead(201, []))
            request.responder.data(b"ab")
            request.responder.end([(b"t", b"2")])
            await sent.until()
            assert (sent.interim, sent.status, sent.body) == ([103], 201, b"ab")
            assert sent.trailers[b"t"] == b"2"

    go(scenario, engine, script)


@ENGINES
def test_responses_without_a_body(engine):
    def script(request):
        status = int(request.head.path[1:])
        # A declared length is left out here: this client takes it for the body's.
        request.responder.head(ResponseHead(status, [], 0))
        request.responder.data(b"ignored" if request.head.method == b"HEAD" else b"")
        request.responder.end()

    async def scenario(house):
        async with house.connect() as connection:
            for method, status in (("HEAD", 200), ("GET", 304), ("GET", 204)):
                reply = await connection.request(method, f"/{status}").until()
                assert (reply.status, reply.body, reply.ended) == (status, b"", "end")

    go(scenario, engine, script)


@BOTH
def test_large_bodies_both_ways_with_backpressure(engine, client):
    async def scenario(house):
        async with house.connect(client) as connection:
            body = os.urandom(512 << 10)
            reply = connection.request("POST", "/", body=body)
            request = await house.request()
            await until(lambda: request.ended)
            assert request.received.digest() == hashlib.sha256(body).digest()
            digest = await request.stream(1 << 20)
            await reply.until()
            assert hashlib.sha256(reply.body).hexdigest() == digest
            assert request.pauses > 0

    go(scenario, engine)


@ENGINES
def test_a_paused_upload_stops_its_client_and_loses_nothing(engine):
    async def scenario(house):
        async with house.connect() as connection:
            body = os.urandom(6 << 20)
            paused = []

            def script(request):
                request.responder.pause_body()
                paused.append(request)

            house.script = script
            reply = connection.request("POST", "/", body=body)
            await until(lambda: paused)
            stream = next(iter(house.hub.connections))._streams[reply.id]
            unsent = connection._quic._streams[reply.id].sender
            # Its window is all that it gets rid of.
            await until(lambda: stream._held._memory_bytes >= 2 << 20 or stream._held.full)
            await asyncio.sleep(0.3)
            assert paused[0].size < 20_000
            assert unsent.highest_offset <= (4 << 20) + (1 << 16)
            paused[0].responder.resume_body()
            await until(lambda: paused[0].ended, 25)
            assert paused[0].received.digest() == hashlib.sha256(body).digest()
            paused[0].answer(b"ok")
            assert (await reply.until()).body == b"ok"

    go(scenario, engine)


@ENGINES
def test_a_body_cut_short_is_a_reset(engine):
    def script(request):
        if request.head.path == b"/short":
            request.responder.head(ResponseHead(200, [], 10))
            request.responder.data(b"12345")
            request.responder.end()
        else:
            request.responder.head(ResponseHead(200, []))
            request.responder.data(b"12345")
            request.responder.abort()

    async def scenario(house):
        async with house.connect() as connection:
            for path in ("/short", "/open"):
                reply = await connection.request("GET", path).until()
                assert reply.ended == 0x102
            assert connection.closed is None

    go(scenario, engine, script)


@ENGINES
def test_a_client_that_resets_or_vanishes_is_told_of(engine):
    async def scenario(house):
        async with house.connect() as connection:
            reply = connection.request("POST", "/", body=b"x", end=False)
            request = await house.request()
            reply.reset()
            await until(lambda: request.left)
            reply = connection.request("GET", "/")
            second = await house.request(1)
            second.responder.head(ResponseHead(200, []))
            await reply.until(lambda r: r.status)
            connection._quic.stop_stream(reply.id, 0x10C)
            connection.transmit()
            await until(lambda: second.left)
            connection.request("GET", "/")
            third = await house.request(2)
        await until(lambda: third.left)
        assert not house.hub.connections
        assert not house.server._connections

    go(scenario, engine)


@ENGINES
def test_malformed_requests_cost_only_themselves(engine):
    async def scenario(house):
        async with house.connect() as connection:
            good = connection.request("GET", "/")
            for headers in ([("transfer-encoding", "chunked")], [("content-length", "x")]):
                bad = await connection.request("GET", "/", headers).until()
                assert bad.ended == 0x10E
            short = connection.request(
                "POST", "/", [("content-length", "5")], body=b"123", end=False
            )
            request = await house.request(1)
            short.send(b"", True)
            assert (await short.until()).ended == 0x10E
            assert request.left
            long = connection.request("POST", "/", [("content-length", "2")], body=b"123")
            assert (await long.until()).ended == 0x10E
            huge = await connection.request("GET", "/", [("x", "y" * 40000)]).until()
            assert (huge.status, huge.ended) == (431, "end")
            half = connection.request("POST", "/", end=False)
            half.raw(b"\x00\x0aabc", True)
            assert (await half.until()).ended == 0x10D
            house.requests[0].answer(b"fine")
            assert (await good.until()).body == b"fine"

    go(scenario, engine)


@ENGINES
def test_breaking_the_protocol_ends_the_connection(engine):
    async def scenario(house):
        async with house.connect() as connection:
            reply = connection.request("GET", "/")
            request = await house.request()
            connection._quic.send_stream_data(connection.http._local_control_stream_id, b"\x04\x00")
            connection.transmit()
            await until(lambda: connection.closed is not None)
            assert connection.closed == 0x105
            assert reply.ended == "gone"
            assert request.left

    go(scenario, engine)


@ENGINES
def test_draining_takes_nothing_new_and_finishes_the_rest(engine):
    async def scenario(house):
        async with house.connect() as connection:
            reply = connection.request("GET", "/")
            request = await house.request()
            (served,) = house.hub.connections
            served.drain()
            late = await connection.request("GET", "/late").until()
            assert late.ended == 0x10B
            request.answer(b"done")
            await reply.until(lambda r: r.body == b"done")
            await until(lambda: not house.hub.connections)

    go(scenario, engine)


@BOTH
def test_requests_in_0rtt_say_so_and_a_ticket_serves_once(engine, client):
    def script(request):
        request.answer(b"early" if request.head.early else b"late")

    async def scenario(house):
        tickets = []
        async with house.connect(client, on_ticket=tickets.append) as connection:
            assert (await connection.request("GET", "/").until()).body == b"late"
            await until(lambda: tickets)
        for said in (b"early", b"late"):
            async with house.connect(client, ticket=tickets[0]) as connection:
                first = connection.request("GET", "/")
                await connection.wait_connected()
                if said == b"late":  # refused: the client's own engine may not repeat it
                    first = connection.request("GET", "/")
                assert (await first.until()).body == said

    go(scenario, engine, script)


@ENGINES
def test_a_client_may_change_its_address(engine):
    async def scenario(house):
        async with house.connect() as connection:
            reply = connection.request("GET", "/")
            request = await house.request()
            request.responder.head(ResponseHead(200, []))
            request.responder.data(b"one")
            await reply.until(lambda r: r.body == b"one")
            before = request.responder.client
            # The datagrams leave from another port from now on, as after a change of line.
            loop = asyncio.get_running_loop()
            sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(("::", 0))
            old = connection._transport
            connection._transport, _ = await loop.create_datagram_endpoint(
                lambda: connection, sock=sock
            )
            old.abort()
            connection._quic.send_ping(7)
            connection.transmit()
            await until(lambda: request.responder.client != before)
            request.responder.data(b"two")
            await reply.until(lambda r: r.body == b"onetwo")
            request.responder.end()
            await reply.until()
            assert reply.ended == "end"

    go(scenario, engine)


@ENGINES
@pytest.mark.parametrize(("host", "there"), [("0.0.0.0", "127.0.0.7"), ("::", "::1")])
def test_answers_leave_from_the_address_that_was_asked(engine, host, there):
    """On a socket of all addresses the kernel would choose: here 127.0.0.1."""

    async def scenario(house):
        asked = (there, house.port)
        with socket.socket(
            socket.AF_INET6 if ":" in there else socket.AF_INET, socket.SOCK_DGRAM
        ) as sock:
            sock.connect(asked)
            sock.setblocking(False)
            sock.send(b"\xc0\x0a\x0a\x0a\x0a\x08" + bytes(8) + b"\x08" + bytes(1200))
            loop = asyncio.get_running_loop()
            answer = await asyncio.wait_for(loop.sock_recv(sock, 2000), 5)
            assert answer[1:5] == bytes(4), "it speaks another version"
        async with house.connect(host=there) as client:
            told, sources = client.datagram_received, set()

            def received(data, address):
                sources.add(address[0].removeprefix("::ffff:"))
                told(data, address)

            client.datagram_received = received
            await client.request("GET", "/").until()
            assert sources == {there}

    go(scenario, engine, lambda request: request.answer(bytes(100_000)), host=host)


class BreaksOnSending:
    """A core whose next flight fails: one did with "reserved stream is missing"."""

    def __init__(self, core):
        self.core = core

    def __getattr__(self, name):
        return getattr(self.core, name)

    def poll_transmit(self, now):
        raise ValueError("reserved stream is missing")


@pytest.mark.parametrize("engine", [FAST])
def test_a_core_that_breaks_ends_its_connection_and_no_other(engine):
    async def scenario(house):
        async with house.connect() as one, house.connect() as other:
            one.request("GET", "/")
            lost = await house.request(0)
            engine = lost.responder.connection.engine
            engine._core = BreaksOnSending(engine._core)
            lost.responder.head(ResponseHead(200, [], 5))
            await until(lambda: lost.left)
            sent = other.request("GET", "/")
            (await house.request(1)).answer(b"whole")
            await sent.until()
            assert sent.body == b"whole"

    go(scenario, engine)


@BOTH
def test_many_open_handshakes_make_clients_show_where_they_are(engine, client, monkeypatch):
    monkeypatch.setattr("edged.downstream.quic_server.HALF_OPEN", 0)

    def script(request):
        request.answer(b"ok")

    async def scenario(house):
        async with house.connect(client) as connection:
            assert (await connection.request("GET", "/").until()).body == b"ok"

    go(scenario, engine, script)


@ENGINES
def test_strangers_datagrams_begin_nothing(engine):
    async def scenario(house):
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect(("127.0.0.1", house.port))
        initial = bytes([0xC3, 0, 0, 0, 1, 8]) + os.urandom(8) + bytes([0]) + bytes([0])
        for junk in (
            b"",
            b"\x40",
            b"\xc0\x00\x00\x00\x01",
            os.urandom(50),
            os.urandom(1300),
            b"\x40" + os.urandom(1300),
            initial.ljust(400, b"x"),
            bytes([0xC3, 0, 0, 0, 1, 3]) + os.urandom(1300),
            bytes([0xC3, 0, 0, 0, 0, 8]) + os.urandom(1300),
            bytes([0xE3, 0, 0, 0, 1, 8]) + os.urandom(1300),
        ):
            sock.send(junk)
        other = bytes([0xC3, 0xBA, 0xBA, 0xBA, 0xBA, 8]) + b"12345678" + bytes([4]) + b"abcd"
        sock.send(other.ljust(1200, b"\0"))
        said = b""
        while b"12345678" not in said:  # random bytes may ask for a version as well
            said = await asyncio.wait_for(loop.sock_recv(sock, 2000), 5)
            assert said[1:5] == bytes(4)  # version negotiation
        assert b"abcd" in said
        assert not house.server._connections
        # An Initial that cannot be read holds a place until its time is over.
        sock.send(initial.ljust(1200, b"x"))
        await until(lambda: house.hub.connections)
        (connection,) = house.hub.connections
        connection.expired(house.hub.now + 100)
        assert not house.server._connections
        sock.close()

    go(scenario, engine)


@ENGINES
def test_a_stalled_body_is_timed_out_and_a_long_answer_is_not(engine):
    async def scenario(house):
        async with house.connect() as connection:
            stalled = connection.request("POST", "/", body=b"x", end=False)
            both = connection.request("POST", "/", body=b"x", end=False)
            request = await house.request(1)
            request.responder.head(ResponseHead(200, []))
            (served,) = house.hub.connections
            served.expired(house.hub.now + 100)
            await stalled.until()
            assert stalled.status == 408
            assert house.requests[0].left
            assert not request.left
            request.responder.end()
            assert (await both.until()).ended == "end"

    go(scenario, engine)


@ENGINES
def test_a_hundred_requests_at_once(engine):
    def script(request):
        request.answer(request.head.path)

    async def scenario(house):
        async with house.connect() as connection:
            replies = [connection.request("GET", f"/{n}") for n in range(100)]
            for n, reply in enumerate(replies):
                assert (await reply.until()).body == b"/%d" % n
        assert house.hub.requests_total == 100

    go(scenario, engine, script)


class Silent:
    """An engine and a port that only note."""

    exact_credit = True
    stalled = False
    cid = b"c"

    def __init__(self):
        self.calls = []
        self.next = 3

    def next_stream_id(self):
        return self.next

    def send(self, stream_id, data, fin):
        if stream_id & 3 == 3:
            self.next = max(self.next, stream_id + 4)

    def reset(self, stream_id, code):
        self.calls.append(("reset", stream_id, code))

    def stop(self, stream_id, code):
        self.calls.append(("stop", stream_id, code))

    def touch(self, connection): ...


def test_streams_may_overtake_each_other():
    async def main():
        loop = asyncio.get_running_loop()
        hub = Hub(lambda head, responder: None, Limits(), loop)
        engine = Silent()
        connection = H3Connection(hub, engine, engine, ("127.0.0.1", 1))
        connection.stream_data(8, b"\x01", False)
        connection.stream_data(0, b"\x01", False)
        assert set(connection._streams) == {8, 0}
        connection.stream_reset(0, 0x10C)
        connection.stream_data(0, b"\x01", False)  # late: it is done
        connection.stream_data(4, b"\x01", False)
        assert set(connection._streams) == {8, 4}
        assert connection._overtaken == set()

    asyncio.run(main())


def test_retry_tokens_are_bound_to_address_id_and_time():
    tokens = RetryTokens()
    peer = ("192.0.2.1", 4711)
    token = tokens.make(peer, b"original", b"chosen12", 100.0)
    assert tokens.read(token, peer, b"chosen12", 101.0) == b"original"
    assert tokens.read(token, ("192.0.2.2", 4711), b"chosen12", 101.0) is None
    assert tokens.read(token, ("192.0.2.1", 4712), b"chosen12", 101.0) is None
    assert tokens.read(token, peer, b"chosen13", 101.0) is None
    assert tokens.read(token, peer, b"chosen12", 101.0 + LIFETIME_S) is None
    assert tokens.read(b"", peer, b"chosen12", 101.0) is None
    assert tokens.read(b"x" * 60, peer, b"chosen12", 101.0) is None
    assert RetryTokens().read(token, peer, b"chosen12", 101.0) is None


@ENGINES
def test_what_nobody_wants_any_more_is_dropped_before_it_is_told(engine):
    """Two datagrams at once: a request that is answered on a stream given up in the other."""
    held = []

    def script(request):
        if request.head.path == b"/held":
            held.append(request)
            request.responder.head(ResponseHead(200, []))
        else:
            for other in held:
                other.responder.data(b"too late")
                other.responder.end()
            request.answer(b"ok")

    async def scenario(house):
        async with house.connect() as connection:
            given_up = connection.request("GET", "/held")
            await given_up.until(lambda r: r.status)
            now, transmit = connection._loop.time(), connection.transmit
            connection.transmit = lambda: None
            later = connection.request("GET", "/other")
            datagrams = connection._quic.datagrams_to_send(now)
            connection._quic.stop_stream(given_up.id, 0x10C)
            datagrams += connection._quic.datagrams_to_send(now)
            for data, address in datagrams:
                connection._transport.sendto(data, address)
            connection.transmit = transmit
            assert (await later.until()).body == b"ok"
            assert connection.closed is None

    go(scenario, engine, script)
