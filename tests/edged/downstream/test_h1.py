"""HTTP/1.1 on real sockets, on both kinds of loop."""

import asyncio
import functools
import socket

import pytest

from edged.downstream.limits import Limits
from edged.messages import ResponseHead
from tests.harness import clients
from tests.harness.clients import LOOPS, ok, turns

serving = functools.partial(clients.serving, loops=LOOPS)

GET = b"GET /a?b HTTP/1.1\r\nHost: Example.COM:7070\r\n\r\n"


@serving(ok)
async def test_head_is_read_and_answered_on_a_kept_connection(served, recorder):
    client = await served.connect(GET)
    head, body = await client.response()
    client.send(b"GET /2 HTTP/1.1\r\nHost: x\r\nX-A:  b \t\r\nConnection: close\r\n\r\n")
    second = await client.rest()
    first, last = recorder.requests
    assert head == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"
    assert body == b"ok"
    assert second == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
    assert (first.head.method, first.head.scheme) == (b"GET", b"http")
    assert (first.head.authority, first.head.path) == (b"example.com:7070", b"/a?b")
    assert first.head.headers == []
    assert first.head.body_length == 0
    assert last.head.headers == [(b"x-a", b"b")]
    assert first.events == []
    assert (served.hub.requests_total, served.hub.requests_open) == (2, 0)


@serving(ok)
async def test_connection_fields_stay_on_the_connection(served, recorder):
    client = await served.connect(
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, X-Secret\r\nX-Secret: 1\r\n"
        b"Keep-Alive: timeout=5\r\nProxy-Connection: close\r\nTE: trailers, deflate\r\n"
        b"HTTP2-Settings: abc\r\nX-Kept: 2\r\n\r\n"
    )
    await client.response()
    assert recorder.requests[0].head.headers == [(b"x-kept", b"2"), (b"te", b"trailers")]


@serving()
async def test_pipelined_requests_are_handled_one_after_another_in_order(served, recorder):
    client = await served.connect(
        b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in range(5))
    )
    for n in range(5):
        request = await recorder.number(n + 1)
        await turns(1)
        assert len(recorder.requests) == n + 1
        assert request.head.path == b"/%d" % n
        request.answer(body=b"%d" % n)
        assert (await client.response())[1] == b"%d" % n


@serving(limits=Limits(read_ahead_bytes=1000))
async def test_reading_stops_while_pipelined_requests_wait(served, recorder):
    client = await served.connect(GET)
    await recorder.number(1)
    client.writer.transport.set_write_buffer_limits(0)
    flood = b"GET /n HTTP/1.1\r\nHost: x\r\n\r\n" * 400_000
    client.send(flood)
    await turns(30)
    # Bounded by the kernel's buffers: the rest stays with the client.
    assert client.writer.transport.get_write_buffer_size() > 1 << 20
    assert len(recorder.requests) == 1


@serving()
async def test_body_with_length_and_what_follows_it(served, recorder):
    client, request = await served.ask(
        b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n01234"
    )
    await request.until("body")
    assert request.head.body_length == 10
    client.send(b"56789" + GET)
    await request.until("body_end")
    assert request.payload == b"0123456789"
    assert request.trailers is None
    request.answer(body=b"1")
    (await recorder.number(2)).answer(body=b"2")
    assert [(await client.response())[1] for _ in range(2)] == [b"1", b"2"]


@serving()
async def test_chunked_body_with_extensions_and_trailers(served, recorder):
    client, request = await served.ask(
        b"POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n"
        b'5;a=b;c="d;e"\r\nhello\r\n'
    )
    await request.until("body")
    assert request.head.body_length is None
    assert request.head.headers == []
    client.send(b"6 ; x\r\n world\r\n0\r\nX-Sum: 9\r\nContent-Length: 3\r\n\r\n" + GET)
    await request.until("body_end")
    assert request.payload == b"hello world"
    assert request.trailers == [(b"x-sum", b"9")]
    request.answer()
    await client.response()
    assert (await recorder.number(2)).head.path == b"/a?b"


@serving()
async def test_response_of_unknown_length_is_chunked_with_trailers(served):
    client, request = await served.ask(GET)
    request.responder.head(ResponseHead(200, [(b"a", b"b")], None))
    assert await client.head() == (b"HTTP/1.1 200 OK\r\na: b\r\ntransfer-encoding: chunked\r\n\r\n")
    request.responder.data(b"event 1")
    assert await client.reader.readexactly(12) == b"7\r\nevent 1\r\n"
    request.responder.data(b"x" * 100_000)
    big = await client.reader.readexactly(100_000 + 9)
    assert big == b"186a0\r\n" + b"x" * 100_000 + b"\r\n"
    request.responder.end([(b"x-sum", b"1")])
    assert await client.head() == b"0\r\nx-sum: 1\r\n\r\n"


@serving(lambda r: r.answer(body=b"abc", length=None))
async def test_http10_gets_a_body_ended_by_the_close(served, recorder):
    client = await served.connect(b"GET / HTTP/1.0\r\n\r\n")
    assert await client.rest() == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc"
    assert recorder.requests[0].head.version == b"1.0"


@serving(ok)
async def test_http10_keep_alive_is_confirmed(served):
    client = await served.connect(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
    head, _ = await client.response()
    assert b"connection: keep-alive\r\n" in head
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    assert b"connection: close\r\n" in await client.rest()


@pytest.mark.parametrize(
    ("method", "response", "fields"),
    [
        (b"HEAD", ResponseHead(200, [], 0, declared_length=42), b"content-length: 42\r\n"),
        (b"HEAD", ResponseHead(200, [], 0), b""),
        (b"GET", ResponseHead(304, [], 0, declared_length=7), b"content-length: 7\r\n"),
        (b"GET", ResponseHead(204, [], 0), b""),
        (b"GET", ResponseHead(200, [], 0), b"content-length: 0\r\n"),
        (b"GET", ResponseHead(299, [], 0, reason=b"Fine"), b"content-length: 0\r\n"),
    ],
)
@serving()
async def test_responses_without_a_body(served, recorder, method, response, fields):
    def react(request):
        request.responder.head(response)
        request.responder.end()

    recorder.react = react
    client = await served.connect(method + b" / HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
    head = await client.head()
    line, rest = head.split(b"\r\n", 1)
    assert line.startswith(b"HTTP/1.1 %d " % response.status)
    assert line.endswith(response.reason or line[-1:])
    assert rest == fields + b"\r\n"
    assert (await client.head()).startswith(b"HTTP/1.1 ")  # the next request's


@serving()
async def test_continue_is_sent_when_the_handler_wants_the_body(served):
    client, request = await served.ask(
        b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n"
    )
    assert request.head.expects_continue
    assert request.head.headers == []
    request.responder.resume_body()
    request.responder.resume_body()
    assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"hi")
    await request.until("body_end")
    request.answer(body=b"!")
    assert (await client.response())[0].startswith(b"HTTP/1.1 200")


@serving(lambda r: r.answer(413))
async def test_final_answer_without_continue_closes(served):
    client = await served.connect(
        b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    )
    answer = await client.rest()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close\r\n" in answer


@serving()
async def test_informational_responses_pass_but_not_to_http10(served, recorder):
    def react(request):
        request.responder.informational(103, [(b"link", b"</a>")])
        request.answer(body=b"ok")

    recorder.react = react
    client = await served.connect(GET)
    assert await client.head() == b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    assert (await client.response())[1] == b"ok"
    old = await served.connect(b"GET / HTTP/1.0\r\n\r\n")
    assert (await old.rest()).startswith(b"HTTP/1.1 200 OK")


@serving()
async def test_connect_carries_raw_bytes_and_half_closes_both_ways(served):
    client, request = await served.ask(
        b"CONNECT Example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\nearly"
    )
    assert (request.head.authority, request.head.path) == (b"example.com:443", b"")
    assert request.chunks == []
    request.responder.head(ResponseHead(200, [(b"via", b"1.1 e")], None))
    assert await client.head() == b"HTTP/1.1 200 OK\r\nvia: 1.1 e\r\n\r\n"
    await request.until("body")
    client.send(b" late\r\n\r\n")
    client.writer.write_eof()
    await request.until("body_end")
    assert request.payload == b"early late\r\n\r\n"
    request.responder.data(b"after your end")
    assert await client.reader.readexactly(14) == b"after your end"
    request.responder.end()
    assert await client.reader.read() == b""
    await turns()
    assert not served.hub.connections
    assert not request.is_gone
    assert served.hub.requests_open == 0


@serving()
async def test_tunnel_goes_on_after_its_response_direction_ended(served):
    client, request = await served.ask(b"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n")
    request.responder.head(ResponseHead(200, [], None))
    request.responder.data(b"bye")
    request.responder.end()
    assert (await client.head()).endswith(b"\r\n\r\n")
    assert await client.reader.read() == b"bye"
    client.send(b"still here")
    await request.until("body")
    client.writer.write_eof()
    await request.until("body_end")
    await turns()
    assert not served.hub.connections


@serving()
async def test_tunnel_abort_is_a_reset(served):
    client, request = await served.ask(b"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n")
    request.responder.head(ResponseHead(200, [], None))
    await client.head()
    request.responder.abort()
    assert await client.reset()
    assert not request.is_gone


@serving(lambda r: r.answer(403))
async def test_refused_connect_closes_and_never_reads_on(served, recorder):
    client = await served.connect(
        b"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n" + GET,
    )
    assert b"connection: close" in await client.rest()
    assert len(recorder.requests) == 1


@serving()
async def test_upgrade_switches_to_raw_bytes(served):
    client, request = await served.ask(
        b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: k\r\n\r\n"
    )
    assert request.head.upgrade == b"websocket"
    request.responder.head(ResponseHead(101, [(b"sec-websocket-accept", b"a")], None))
    assert await client.head() == (
        b"HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: a\r\n"
        b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"
    )
    client.send(b"\x81\x05hello")
    await request.until("body")
    assert request.payload == b"\x81\x05hello"
    request.responder.data(b"\x81\x02hi")
    assert await client.reader.readexactly(4) == b"\x81\x02hi"


@serving()
async def test_protocol_that_the_origin_chose_is_named_once(served, recorder):
    def react(request):
        request.responder.head(ResponseHead(101, [(b"upgrade", b"b")], None))

    recorder.react = react
    client = await served.connect(
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: a, b\r\n\r\n"
    )
    head = await client.head()
    assert head.endswith(b"\r\nupgrade: b\r\nconnection: upgrade\r\n\r\n")
    assert head.count(b"upgrade: ") == 1


@serving(lambda r: r.answer(200, b"no"))
async def test_refused_upgrade_closes_and_never_reads_on(served, recorder):
    client = await served.connect(
        b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n" + GET
    )
    assert b"connection: close" in await client.rest()
    assert len(recorder.requests) == 1


@serving(ok)
async def test_absolute_form_wins_over_host(served, recorder):
    client = await served.connect(
        b"GET http://API.example:81?q HTTP/1.1\r\nHost: other\r\n\r\n"
        b"OPTIONS https://h HTTP/1.1\r\nHost: h\r\n\r\n"
        b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n"
    )
    for _ in range(3):
        await client.response()
    one, two, three = (r.head for r in recorder.requests)
    assert (one.scheme, one.authority, one.path) == (b"http", b"api.example:81", b"/?q")
    assert one.absolute_form
    assert (two.scheme, two.path, two.absolute_form) == (b"https", b"*", True)
    assert (three.path, three.absolute_form) == (b"*", False)


@serving(lambda r: r.responder.pause_body())
async def test_paused_body_stops_the_client(served):
    size = 32 << 20
    client, request = await served.ask(
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
    )
    client.send(b"x" * size)
    await turns(20)
    assert len(request.payload) < 1 << 20
    assert client.writer.transport.get_write_buffer_size() > 1 << 20
    request.responder.resume_body()
    await request.until("body_end")
    assert len(request.payload) == size
    request.answer()
    await client.response()


@serving()
async def test_slow_client_pauses_the_handler_and_resumes_it(served, recorder):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    running = asyncio.get_running_loop()
    await running.sock_connect(sock, served.address)
    await running.sock_sendall(sock, GET)
    request = await recorder.number(1)
    request.responder.head(ResponseHead(200, [], None))
    sent = 0
    while not request.paused:
        request.responder.data(b"x" * 16384)
        sent += 16384
        await asyncio.sleep(0)
        assert sent < 64 << 20
    request.responder.end()
    received = 0
    while "resume" not in request.events and received < sent:
        received += len(await running.sock_recv(sock, 65536))
    assert not request.paused or served.hub.requests_open == 0
    sock.close()


@serving()
async def test_client_that_vanishes_is_told_to_the_handler_once(served):
    client, request = await served.ask(GET)
    client.close()
    await request.until("gone")
    request.responder.head(ResponseHead(200, [], 3))  # late: ignored
    request.responder.data(b"abc")
    request.responder.end()
    assert served.hub.requests_open == 0


@pytest.mark.parametrize("length", [10, None])
@serving()
async def test_abort_never_looks_complete(served, length):
    client, request = await served.ask(GET)
    request.responder.head(ResponseHead(200, [], length))
    request.responder.data(b"abc")
    request.responder.abort()
    answer = await client.rest()
    assert not answer.endswith(b"0\r\n\r\n")
    assert len(answer.partition(b"\r\n\r\n")[2]) < 10
    assert not request.is_gone


@serving()
async def test_abort_behind_the_last_byte_costs_the_next_request_nothing(served, recorder):
    """The client has all of the response, and has asked for the next thing already; the origin's
    END_STREAM was still to come when its line died."""
    client, request = await served.ask(GET)
    request.responder.head(ResponseHead(200, [], 3))
    request.responder.data(b"abc")
    assert (await client.response())[1] == b"abc"
    client.send(GET)
    request.responder.abort()
    second = await recorder.number(2)
    second.responder.head(ResponseHead(200, [], 3))
    second.responder.data(b"def")
    second.responder.end()
    assert (await client.response())[1] == b"def"


@serving()
async def test_abort_of_a_body_ended_by_the_close_is_a_reset(served):
    client, request = await served.ask(b"GET / HTTP/1.0\r\n\r\n")
    request.responder.head(ResponseHead(200, [], None))
    request.responder.data(b"abc")
    request.responder.abort()
    assert await client.reset()


@pytest.mark.parametrize("sent", [b"short", b"much too long"])
@serving()
async def test_body_of_another_length_than_announced_is_an_abort(served, sent):
    client, request = await served.ask(GET)
    request.responder.head(ResponseHead(200, [], 10))
    request.responder.data(sent)
    request.responder.end()
    body = (await client.rest()).partition(b"\r\n\r\n")[2]
    assert len(body) < 10
    assert not served.hub.connections


@serving()
async def test_field_that_would_split_the_response_is_never_sent(served):
    client, request = await served.ask(GET)
    request.responder.head(ResponseHead(200, [(b"a", b"b\r\nset-cookie: c")], 0))
    assert await client.rest() == b""


@serving(lambda r: r.answer(403) if r.head.method == b"POST" else ok(r))
async def test_early_answer_drops_a_short_rest_and_keeps_the_connection(served, recorder):
    client = await served.connect(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
    assert (await client.response())[0].startswith(b"HTTP/1.1 403")
    client.send(b"x" * 1000 + GET)
    assert (await client.response())[1] == b"ok"
    assert recorder.requests[0].chunks == []


@serving(lambda r: r.answer(413, b"too much"))
async def test_early_answer_to_a_long_body_closes_but_can_be_read(served):
    client = await served.connect(
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 500_000
    )
    assert (await client.rest()).endswith(b"too much")


@serving(ok, host="::1")
async def test_ipv6_client_has_brackets(served, recorder):
    client = await served.connect(GET)
    await client.response()
    address = recorder.requests[0].responder.client
    assert address.startswith("[::1]:")


@serving()
async def test_tunnel_has_backpressure_both_ways(served):
    client, request = await served.ask(b"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n")
    request.responder.head(ResponseHead(200, [], None))
    await client.head()
    request.responder.pause_body()
    client.send(b"x" * (16 << 20))
    client.writer.write_eof()
    await turns(20)
    assert request.payload == b""
    request.responder.resume_body()
    await request.until("body_end")
    assert len(request.payload) == 16 << 20
    client.writer.transport.pause_reading()
    while not request.paused:
        request.responder.data(b"y" * 100_000)
        await asyncio.sleep(0)
    client.writer.transport.resume_reading()
    reading = asyncio.ensure_future(client.reader.read(-1))
    await request.until("resume")
    request.responder.end()
    assert set(await reading) == {ord("y")}
    assert served.hub.requests_open == 0


@serving()
async def test_bytes_that_came_before_the_switch_stay_in_order(served):
    client, request = await served.ask(b"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n1")
    for n in b"234":
        client.send(bytes((n,)))
        await turns(1)
    request.responder.head(ResponseHead(200, [], None))
    request.responder.pause_body()
    client.send(b"56789")
    await turns()
    assert request.payload == b""
    request.responder.resume_body()
    client.writer.write_eof()
    await request.until("body_end")
    assert request.payload == b"123456789"


@serving()
async def test_client_of_a_tunnel_that_vanishes_is_told_to_the_handler(served):
    client, request = await served.ask(b"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n")
    request.responder.head(ResponseHead(200, [], None))
    await client.head()
    client.writer.transport.abort()
    await turns()
    while "gone" not in request.events:
        request.responder.data(b"anyone?")
        await turns(1)
    assert served.hub.requests_open == 0


@serving(ok)
async def test_first_values_are_indexed(served, recorder):
    client = await served.connect(
        b"GET / HTTP/1.1\r\nHost: x\r\nVia: 1.1 a\r\nAccept: b\r\nvia: 1.1 c\r\n\r\n"
    )
    await client.response()
    client.send(
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: Via, TE\r\n"
        b"TE: trailers\r\nVia: 1.1 a\r\nAccept: b\r\n\r\n"
    )
    await client.response()
    first, second = (request.head.first for request in recorder.requests)
    assert first == {b"via": b"1.1 a", b"accept": b"b"}
    assert second == {b"accept": b"b", b"te": b"trailers"}


@serving(ok)
async def test_tls_is_told_for_what_it_is_in_the_answer_and_once_in_the_log(
    served, recorder, caplog
):
    hello = b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + bytes(range(200))
    for _ in range(3):
        client = await served.connect(hello)
        assert b"This looks like TLS: the proxy speaks plain HTTP" in await client.rest()
    assert not recorder.requests
    (told,) = [r for r in caplog.records if "TLS" in r.getMessage()]
    assert told.levelname == "WARNING"
