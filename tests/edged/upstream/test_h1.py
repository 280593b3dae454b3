"""HTTP/1.1 to upstreams against raw sockets that say exactly what a test needs."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct

import pytest
import trustme
import uvloop

from edged.upstream.h1 import H1Connection
from edged.upstream.tls import Tls
from policies.model import Carrier, Outcome
from tests.edged.upstream.support import Events, eventually, get, path_to, server, setup

RUNNERS = [pytest.param(asyncio.run, id="asyncio"), pytest.param(uvloop.run, id="uvloop")]


async def read_head(reader):
    return await reader.readuntil(b"\r\n\r\n")


def answering(*replies, keep=True, seen=None):
    """A server that answers each head with the next of ``replies``, then waits or closes."""

    async def handler(reader, writer):
        for reply in replies:
            head = await read_head(reader)
            if seen is not None:
                seen.append(head)
            writer.write(reply)
        if keep:
            await reader.read()

    return handler


def fetch(handler, head=None, body=None, *, run=asyncio.run, times=1, **options):
    """The events of ``times`` sequential requests to ``handler`` through a pool."""

    async def main():
        async with server(handler) as port, setup() as pools:
            path = path_to(port, protocols=(Carrier.H1,))
            return [await pools.fetch(path, head or get(), body, **options) for _ in range(times)]

    return run(main())


def ok(body=b"hello", *fields):
    lines = b"".join(field + b"\r\n" for field in fields)
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%b\r\n%b" % (len(body), lines, body)


@pytest.mark.parametrize("run", RUNNERS)
def test_a_request_and_its_response(run):
    seen = []
    head = get(b"/a?b=c", headers=[(b"x-one", b"1"), (b"te", b"trailers")])
    reply = ok(b"hello", b"X-Two:  2 ", b"Keep-Alive: timeout=5", b"Connection: x-hop", b"X-Hop: 1")
    (events,) = fetch(answering(reply, seen=seen), head, run=run)
    assert seen == [b"GET /a?b=c HTTP/1.1\r\nhost: localhost\r\nx-one: 1\r\nte: trailers\r\n\r\n"]
    assert events.calls == ["ready", "head", "data", "end"]
    assert events.response.status == 200
    assert events.response.reason == b"OK"
    assert events.response.headers == [(b"x-two", b"2")]
    assert events.response.body_length == 5
    assert events.content == b"hello"
    assert events.stream.carrier is Carrier.H1


@pytest.mark.parametrize("run", RUNNERS)
def test_a_connection_is_kept_alive_and_says_so(run):
    events = fetch(answering(ok(b"1"), ok(b"2"), ok(b"3")), run=run, times=3)
    assert [e.content for e in events] == [b"1", b"2", b"3"]
    assert [e.stream.reused for e in events] == [False, True, True]


@pytest.mark.parametrize(
    "reply",
    [
        ok(b"x", b"Connection: close"),
        b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\nx",
        ok(b"x") + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
        ok(b"x") + b"garbage",
    ],
    ids=["close", "http-1.0", "a second response", "garbage"],
)
def test_a_connection_that_must_not_serve_again(reply):
    events = fetch(answering(reply), times=2)
    assert [e.content for e in events] == [b"x", b"x"]
    assert [e.stream.reused for e in events] == [False, False]


def test_bytes_on_an_idle_connection_close_it():
    async def main():
        async def handler(reader, writer):
            await read_head(reader)
            writer.write(ok(b"x"))
            await asyncio.sleep(0.02)
            writer.write(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
            await reader.read()

        async with server(handler) as port, setup() as pools:
            path = path_to(port, protocols=(Carrier.H1,))
            await pools.fetch(path, get())
            await eventually(lambda: not pools.stat(path).connections)

    asyncio.run(main())


def test_chunked_both_ways_with_trailers():
    async def main():
        received = []

        async def handler(reader, writer):
            head = await read_head(reader)
            received.append(head)
            received.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n"
                b"3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 5\r\nKeep-Alive: 9\r\n\r\n"
            )
            await reader.read()

        async with server(handler) as port, setup() as pools:
            path = path_to(port, protocols=(Carrier.H1,))
            head = get(method=b"POST", length=None)
            big = b"y" * 20_000
            events = await pools.fetch(path, head, [b"abc", b"", big], trailers=[(b"x-t", b"1")])
            return received, events, big

    (head, body), events, big = asyncio.run(main())
    assert b"transfer-encoding: chunked\r\n" in head
    assert b"content-length" not in head
    assert body == b"3\r\nabc\r\n4e20\r\n" + big + b"\r\n0\r\nx-t: 1\r\n\r\n"
    assert events.content == b"abcde"
    assert events.response.body_length is None
    assert events.trailers == [(b"x-sum", b"5")]


@pytest.mark.parametrize(
    ("head", "body", "line"),
    [
        (get(method=b"POST", length=3), [b"ab", b"c"], b"content-length: 3"),
        (get(method=b"POST"), None, b"content-length: 0"),
        (get(method=b"DELETE"), None, None),
    ],
)
def test_request_framing(head, body, line):
    seen = []
    fetch(answering(ok(), seen=seen), head, body)
    framing = [x for x in seen[0].split(b"\r\n") if x.startswith((b"content-l", b"transfer"))]
    assert framing == ([line] if line else [])


@pytest.mark.parametrize(
    ("length", "pieces", "written"),
    [
        (3, [b"abc"], [b"content-length: 3\r\n\r\nabc"]),
        (None, [b"abc"], [b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", b"0\r\n\r\n"]),
        (3, [], [b"content-length: 3\r\n\r\n"]),
    ],
)
def test_what_is_small_leaves_with_its_head(length, pieces, written):
    """Two packets are two to lose, and nothing follows the second."""

    class Transport:
        writes = ()

        def set_write_buffer_limits(self, high):
            pass

        def write(self, data):
            self.writes += (bytes(data),)

    async def main():
        loop, transport = asyncio.get_running_loop(), Transport()
        connection = H1Connection(path_to(1, protocols=(Carrier.H1,)), None, loop=loop)
        connection.connection_made(transport)
        stream = connection.open_stream(Events())
        stream.send_head(get(method=b"POST", length=length), end=False)
        for piece in pieces:
            stream.send_data(piece)
        if pieces:
            stream.send_end()
        await asyncio.sleep(0)
        return transport.writes

    first, *more = asyncio.run(main())
    assert first.startswith(b"POST / HTTP/1.1\r\n")
    assert first.endswith(written[0])
    assert more == written[1:]


@pytest.mark.parametrize("body", [[b"abcd"], [b"ab"]], ids=["longer", "shorter"])
def test_a_request_body_unlike_its_length_breaks_the_connection(body):
    (events,) = fetch(answering(), get(method=b"POST", length=3), body)
    assert events.failure.outcome is Outcome.LOCAL
    assert not events.failure.unprocessed


def test_a_line_break_in_a_head_is_not_sent():
    seen = []
    head = get(headers=[(b"x", b"1\r\nhost: evil")])
    (events,) = fetch(answering(ok(), seen=seen), head)
    assert events.failure.unprocessed
    assert events.failure.outcome is Outcome.LOCAL
    assert seen == []


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize(
    ("method", "reply", "declared"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n", 1000),
        (b"HEAD", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", None),
        (b"HEAD", b"HTTP/1.1 200 OK\r\n\r\n", None),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", None),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n", 7),
    ],
)
def test_responses_without_a_body(method, reply, declared, run):
    events = fetch(answering(reply, reply), get(method=method), times=2, run=run)
    for e in events:
        assert e.calls == ["ready", "head", "end"]
        assert e.response.body_length == 0
        assert e.response.declared_length == declared
    assert events[1].stream.reused


def test_a_body_after_a_head_response_is_not_the_next_response():
    reply = ok(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    events = fetch(answering(reply), get(method=b"HEAD"), times=2)
    assert [e.stream.reused for e in events] == [False, False]


def test_interim_responses_come_before_the_head():
    reply = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + ok(
        b"x", b"a: b"
    )
    (events,) = fetch(answering(reply))
    assert events.interim == [(100, []), (103, [(b"link", b"</a>")])]
    assert events.response.headers == [(b"a", b"b")]
    assert events.calls == ["ready", "informational", "informational", "head", "data", "end"]


@pytest.mark.parametrize("run", RUNNERS)
def test_a_body_that_the_close_delimits(run):
    (events,) = fetch(answering(b"HTTP/1.1 200 OK\r\n\r\nall of it", keep=False), run=run)
    assert events.ended
    assert events.content == b"all of it"


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\n0\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nshort",
    ],
)
def test_a_short_body_is_never_a_clean_end(reply, run):
    (events,) = fetch(answering(reply, keep=False), run=run)
    assert events.content == b"short"
    assert not events.ended
    assert events.failure.outcome is Outcome.RESET
    assert not events.failure.unprocessed
    assert "middle" in events.failure.detail


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 200 OK\r\n\r\npart"], ids=["none", "part"])
def test_a_reset_is_a_failure_even_if_the_close_delimits(reply, run):
    async def handler(reader, writer):
        await read_head(reader)
        writer.write(reply)
        await asyncio.sleep(0.02)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    (events,) = fetch(handler, run=run)
    assert events.failure.outcome is Outcome.RESET
    assert not events.failure.unprocessed


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nabc",
        b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\nx: a\n\n",
        b"HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx : a\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        b"SSH-2.0-server\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 300_000,
    ],
)
def test_what_is_malformed_or_ambiguous_is_refused(reply):
    (events,) = fetch(answering(reply))
    assert events.response is None
    assert events.failure.outcome is Outcome.PROTOCOL
    assert not events.failure.unprocessed


def test_a_stale_connection_is_a_reset_on_a_reused_stream():
    async def handler(reader, writer):
        await read_head(reader)
        writer.write(ok())
        await read_head(reader)  # the second request arrives and is not answered

    events = fetch(handler, times=2)
    assert events[1].failure.outcome is Outcome.RESET
    assert events[1].stream.reused
    assert not events[1].failure.unprocessed


def test_upgrade_switches_to_raw_bytes_both_ways():
    async def main():
        async def handler(reader, writer):
            head = await read_head(reader)
            assert b"connection: upgrade\r\nupgrade: websocket\r\n" in head
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
                b"Upgrade: websocket\r\nsec-websocket-accept: x\r\n\r\nfirst"
            )
            while data := await reader.read(100):
                writer.write(data.upper())

        async with server(handler) as port, setup() as pools:
            path = path_to(port, protocols=(Carrier.H1,))
            events = pools.open(path, get(upgrade=b"websocket"), upgrade=True)
            await events.until(lambda e: e.content == b"first")
            assert events.response.status == 101
            assert (b"upgrade", b"websocket") in events.response.headers
            events.stream.send_data(b"abc")
            await events.until(lambda e: e.content == b"firstABC")
            events.stream.send_end()
            await eventually(lambda: not pools.stat(path).connections)

    asyncio.run(main())


def test_a_refused_upgrade_is_an_ordinary_response():
    (events,) = fetch(answering(ok(b"no")), get(upgrade=b"websocket"), upgrade=True)
    assert events.response.status == 200
    assert events.content == b"no"


def test_an_early_response_ends_the_exchange_and_the_connection():
    async def main():
        async def handler(reader, writer):
            await read_head(reader)
            writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
            await reader.read()

        async with server(handler) as port, setup() as pools:
            path = path_to(port, protocols=(Carrier.H1,))
            events = Events()
            pools.pools.open(path, events, early_data=False)
            await events.until(lambda e: e.stream)
            events.stream.send_head(get(method=b"POST", length=10_000_000), end=False)
            events.stream.send_data(b"x" * 1000)
            await events.done()
            events.stream.send_data(b"x" * 1000)  # too late: ignored
            events.stream.send_end()
            assert events.response.status == 413
            assert events.ended
            assert not pools.stat(path).connections

    asyncio.run(main())


@pytest.mark.parametrize("run", RUNNERS)
def test_a_slow_reader_holds_the_server_back(run):
    async def main():
        sent = 0
        size = 30_000_000

        async def handler(reader, writer):
            nonlocal sent
            await read_head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
            for _ in range(size // 100_000):
                writer.write(b"x" * 100_000)
                sent += 100_000
                await writer.drain()
            await reader.read()

        class Slow(Events):
            def head(self, head):
                super().head(head)
                self.stream.pause_reading()

        async with server(handler) as port, setup() as pools:
            path = path_to(port, protocols=(Carrier.H1,))
            events = Slow(get())
            pools.pools.open(path, events, early_data=True)
            await events.until(lambda e: e.response)
            before = -1
            while before != sent:  # until the kernel's buffers are full
                before = sent
                await asyncio.sleep(0.05)
            assert sent < size
            held = len(events.content)
            assert held < 1_000_000
            events.stream.resume_reading()
            await events.done()
            assert len(events.content) == size

    run(main())


@pytest.mark.parametrize("run", RUNNERS)
def test_a_slow_server_holds_the_request_body_back(run):
    async def main():
        go = asyncio.Event()

        async def handler(reader, writer):
            await read_head(reader)
            await go.wait()
            await reader.readexactly(30_000_000)
            writer.write(ok(b"thanks"))
            await reader.read()

        async with server(handler) as port, setup() as pools:
            path = path_to(port, protocols=(Carrier.H1,))
            events = Events()
            pools.pools.open(path, events, early_data=False)
            await events.until(lambda e: e.stream)
            events.stream.send_head(get(method=b"PUT", length=30_000_000), end=False)
            sent = 0
            while sent < 30_000_000:
                if events.pauses > events.resumes:
                    go.set()
                    await events.until(lambda e: e.resumes == e.pauses)
                events.stream.send_data(b"x" * 100_000)
                sent += 100_000
            events.stream.send_end()
            await events.done()
            assert events.content == b"thanks"
            assert events.pauses > 0

    run(main())


def test_cancel_closes_a_used_connection_and_frees_an_unused_one():
    async def main():
        async with server(answering(ok(), ok())) as port, setup() as pools:
            path = path_to(port, protocols=(Carrier.H1,))
            idle = pools.open(path)
            await idle.until(lambda e: e.stream)
            idle.stream.cancel()
            assert pools.stat(path).connections == {"h1": 1}
            used = await pools.fetch(path, get())
            assert not used.stream.reused
            busy = pools.open(path, get(b"/slow"))
            busy.stream.cancel()
            assert pools.stat(path).connections == {}
            await asyncio.sleep(0.02)
            assert busy.calls == ["ready"]

    asyncio.run(main())


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize("cleanly", [True, False], ids=["close_notify", "cut"])
def test_over_tls_only_close_notify_delimits_a_body(cleanly, run, tmp_path):
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(context)
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    def serve(listener):
        plain, _ = listener.accept()
        secure = context.wrap_socket(plain, server_side=True)
        secure.recv(1000)
        secure.sendall(b"HTTP/1.1 200 OK\r\n\r\nbody")
        if cleanly:
            secure.unwrap().close()
        else:
            socket.socket(fileno=secure.detach()).close()

    async def main():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = asyncio.create_task(asyncio.to_thread(serve, listener))
            async with setup(tls=Tls(str(tmp_path / "ca.pem"))) as pools:
                path = path_to(listener.getsockname()[1], scheme="https", protocols=(Carrier.H1,))
                events = await pools.fetch(path, get(scheme=b"https"))
                await thread
        assert events.content == b"body"
        assert events.ended is cleanly
        if not cleanly:
            assert events.failure.outcome is Outcome.RESET

    run(main())
