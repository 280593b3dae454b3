"""HTTP/2 with prior knowledge on the same port, on both engines."""

import shutil
import subprocess

import pytest

from edged.downstream.limits import Limits
from edged.messages import ResponseHead
from edged.upstream import engines
from tests.harness.clients import Recorder, Served, ok, run, serving, turns
from tests.harness.h2client import GET, PING, POST, SETTINGS, H2Client, frame

CONNECT = [(b":method", b"CONNECT"), (b":authority", b"h:443")]


@pytest.fixture(params=[engines.PURE, engines.FAST], autouse=True)
def engine(request, monkeypatch):
    monkeypatch.setenv(engines.ENVIRONMENT, request.param)
    try:
        engines.h2_engine()
    except engines.EngineError as error:
        pytest.skip(str(error))


async def client_of(served, settings=None) -> H2Client:
    return H2Client(await served.connect(), settings)


@serving(lambda r: r.answer(200, b"ok", [(b"a", b"b")]))
async def test_head_and_answer(served, recorder):
    client = await client_of(served)
    fields = [
        *GET,
        (b"x", b"y"),
        (b"cookie", b"a=1"),
        (b"te", b"trailers"),
        (b"cookie", b"b=2"),
    ]
    client.headers(1, fields)
    assert await client.response(1) == (200, b"ok")
    assert client.heads[1] == [[(b":status", b"200"), (b"a", b"b"), (b"content-length", b"2")]]
    head = recorder.requests[0].head
    assert (head.method, head.scheme, head.authority, head.path) == (
        b"GET",
        b"http",
        b"h",
        b"/",
    )
    assert head.headers == [(b"x", b"y"), (b"te", b"trailers"), (b"cookie", b"a=1; b=2")]
    assert head.first == dict(head.headers)
    assert (head.version, head.body_length, head.absolute_form) == (b"2", 0, False)
    assert recorder.requests[0].events == []
    assert recorder.requests[0].responder.client.startswith("127.0.0.1:")
    assert (served.hub.requests_total, served.hub.requests_open) == (1, 0)


@serving(ok)
async def test_preface_in_pieces(served):
    raw = await served.connect()
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":
        raw.send(bytes((byte,)))
        await raw.writer.drain()
    await turns()
    raw.send(frame(SETTINGS, 0, 0))
    client = H2Client.__new__(H2Client)
    H2Client.__init__(client, type("Silent", (), {"send": lambda self, data: None})())
    client.raw = raw
    client.headers(1, GET)
    assert await client.response(1) == (200, b"ok")


@serving()
async def test_streams_are_answered_in_any_order(served, recorder):
    client = await client_of(served)
    for stream in (1, 3, 5):
        client.headers(stream, [*GET[:3], (b":path", b"/%d" % stream)])
    await recorder.number(3)
    for request in reversed(recorder.requests):
        request.answer(body=request.head.path)
    for stream in (5, 3, 1):
        assert await client.response(stream) == (200, b"/%d" % stream)


@serving()
async def test_body_and_trailers_both_ways(served, recorder):
    client = await client_of(served)
    client.headers(1, POST, end=False)
    request = await recorder.number(1)
    assert request.head.body_length is None
    client.data(1, b"hello ")
    client.data(1, b"world")
    client.headers(1, [(b"sum", b"1")])
    await request.until("body_end")
    assert (request.payload, request.trailers) == (b"hello world", [(b"sum", b"1")])
    request.answer(200, b"x", trailers=[(b"t", b"u")], length=None)
    assert await client.response(1) == (200, b"x")
    assert client.heads[1] == [[(b":status", b"200")], [(b"t", b"u")]]


@pytest.mark.parametrize(
    ("method", "response", "length"),
    [
        (b"HEAD", ResponseHead(200, [], 0, declared_length=9), b"9"),
        (b"GET", ResponseHead(304, [], 0, declared_length=9), b"9"),
        (b"GET", ResponseHead(204, [], 0), None),
        (b"GET", ResponseHead(200, [], 0), b"0"),
    ],
)
@serving()
async def test_responses_without_a_body(served, recorder, method, response, length):
    def react(request):
        request.responder.head(response)
        request.responder.end()

    recorder.react = react
    client = await client_of(served)
    client.headers(1, [(b":method", method), *GET[1:]])
    assert await client.response(1) == (response.status, b"")
    assert dict(client.heads[1][0]).get(b"content-length") == length
    assert 1 not in client.resets


@serving()
async def test_continue_and_early_hints(served, recorder):
    client = await client_of(served)
    client.headers(1, [*POST, (b"expect", b"100-continue")], end=False)
    request = await recorder.number(1)
    request.responder.resume_body()
    request.responder.informational(103, [(b"link", b"</a>")])
    await client.until(lambda: len(client.heads.get(1, ())) == 2)
    assert client.heads[1] == [
        [(b":status", b"100")],
        [(b":status", b"103"), (b"link", b"</a>")],
    ]
    client.data(1, b"x", end=True)
    await request.until("body_end")
    request.answer()
    assert (await client.response(1))[0] == 200


@serving()
async def test_client_windows_hold_the_response_and_pause_the_handler(served, recorder):
    client = await client_of(served, {4: 1000})  # INITIAL_WINDOW_SIZE
    client.headers(1, GET)
    request = await recorder.number(1)
    await turns()
    request.responder.head(ResponseHead(200, [], None))
    payload = bytes(range(256)) * 800
    request.responder.data(payload)
    request.responder.end()
    assert request.paused
    await client.until(lambda: len(client.bodies.get(1, b"")) >= 1000)
    await turns()
    assert len(client.bodies[1]) == 1000
    client.window(1, 50_000)
    await client.until(lambda: len(client.bodies[1]) >= 51_000)
    client.window(1, 1 << 20)
    client.window(0, 1 << 20)
    assert (await client.response(1)) == (200, payload)
    assert served.hub.requests_open == 0


@serving(lambda r: r.answer(200, b"x" * 5000))
async def test_larger_initial_window_releases_what_waits(served, recorder):
    client = await client_of(served, {4: 0})
    client.headers(1, GET)
    await recorder.number(1)
    client.raw.send(frame(SETTINGS, 0, 0, b"\x00\x04\x00\x01\x00\x00"))
    assert await client.response(1) == (200, b"x" * 5000)


@serving()
async def test_handler_resumes_when_the_queue_drains(served, recorder):
    client = await client_of(served, {4: 0})
    client.headers(1, GET)
    request = await recorder.number(1)
    await turns()
    request.responder.head(ResponseHead(200, [], None))
    request.responder.data(b"x" * 65537)
    assert request.paused
    client.window(1, 65_000)
    await request.until("resume")


@serving(
    lambda r: r.responder.pause_body() if r.head.path == b"/" else None,
    limits=Limits(h2_window_bytes=1 << 16),
)
async def test_paused_body_keeps_its_window_but_not_that_of_others(served, recorder):
    client = await client_of(served)
    client.headers(1, POST, end=False)
    first = await recorder.number(1)
    client.data(1, b"x" * 65535)
    while len(first.payload) < 65535:
        await turns(1)
    client.headers(3, [*POST[:3], (b":path", b"/other")], end=False)
    for turn in range(1, 9):
        client.data(3, b"y" * 32_768)
        owed = turn * 32_768
        await client.until(lambda owed=owed: client.windows.get(3, 0) >= owed)
    assert not client.closed
    assert 1 not in client.windows
    assert client.windows[0] > 3 * (1 << 16) + 8 * 32_768
    first.responder.resume_body()
    await client.until(lambda: 1 in client.windows)


@serving()
async def test_connect_is_a_tunnel(served, recorder):
    client = await client_of(served)
    client.headers(1, CONNECT, end=False)
    request = await recorder.number(1)
    head = request.head
    assert (head.method, head.authority, head.path) == (b"CONNECT", b"h:443", b"")
    client.data(1, b"early")
    await request.until("body")
    request.responder.head(ResponseHead(200, [], None))
    request.responder.data(b"hi")
    await client.until(lambda: client.bodies.get(1) == b"hi")
    assert client.heads[1] == [[(b":status", b"200")]]
    client.data(1, b" late", end=True)
    await request.until("body_end")
    assert request.payload == b"early late"
    request.responder.data(b"!")
    request.responder.end()
    assert await client.response(1) == (200, b"hi!")
    await turns()
    assert served.hub.requests_open == 0
    assert not request.is_gone


@serving()
async def test_tunnel_ended_by_the_far_side_first(served, recorder):
    client = await client_of(served)
    client.headers(1, CONNECT, end=False)
    request = await recorder.number(1)
    request.responder.head(ResponseHead(200, [], None))
    request.responder.end()
    await client.response(1)
    client.data(1, b"still", end=True)
    await request.until("body_end")
    assert request.payload == b"still"
    assert served.hub.requests_open == 0
    assert 1 not in client.resets


@serving(lambda r: r.answer(403, b"no"))
async def test_refused_connect_ends_the_stream(served):
    client = await client_of(served)
    client.headers(1, CONNECT, end=False)
    assert await client.response(1) == (403, b"no")


@serving()
async def test_abort_is_a_reset_and_a_short_body_too(served, recorder):
    client = await client_of(served)
    client.headers(1, GET)
    client.headers(3, GET)
    client.headers(5, GET)
    await recorder.number(3)
    one, three, five = (r.responder for r in recorder.requests)
    one.abort()
    three.head(ResponseHead(200, [], 10))
    three.data(b"short")
    three.end()
    five.head(ResponseHead(200, [], 10))
    five.data(b"much too long")
    await client.until(lambda: len(client.resets) == 3)
    assert client.resets == {1: 2, 3: 2, 5: 2}
    assert not client.ended
    assert not any(r.is_gone for r in recorder.requests)


@pytest.mark.parametrize("body", [b"", b"no"])
@serving()
async def test_early_answer_tells_the_client_to_stop_sending(served, recorder, body):
    recorder.react = lambda r: r.answer(413, body)
    client = await client_of(served)
    client.headers(1, POST, end=False)
    await client.until(lambda: 1 in client.resets)
    assert await client.response(1) == (413, body)
    assert client.resets == {1: 0}  # NO_ERROR
    client.headers(3, GET)
    assert await client.response(3) == (413, body)


@serving()
async def test_reset_by_the_client_and_loss_of_it_tell_the_handler(served, recorder):
    client = await client_of(served)
    client.headers(1, GET)
    client.headers(3, GET)
    await recorder.number(2)
    client.rst(1)
    await recorder.requests[0].until("gone")
    assert recorder.requests[1].events == []
    recorder.requests[0].answer(body=b"late")
    client.raw.close()
    await recorder.requests[1].until("gone")
    assert served.hub.requests_open == 0


@pytest.mark.parametrize("what", ["head", "data", "end", "abort"])
def test_what_one_stream_causes_on_another_that_was_just_reset_harms_nobody(what):
    """The engine knows of the reset, which its exchange has still to be told."""

    def react(request):
        body = request.body

        def caused(data):
            body(data)
            first = recorder.requests[0].responder
            arguments = {"head": (ResponseHead(200, [], 3),), "data": (b"abc",)}
            getattr(first, what)(*arguments.get(what, ()))

        if len(recorder.requests) == 2:
            request.body = caused

    async def scenario():
        async with Served(recorder) as served:
            client = await client_of(served)
            client.headers(1, POST, end=False)
            first = await recorder.number(1)
            if what != "head":
                first.responder.head(ResponseHead(200, [], 3))
            if what == "end":
                first.responder.data(b"abc")
            client.headers(3, POST, end=False)
            second = await recorder.number(2)
            client.data(3, b"x")
            client.rst(1)
            await second.until("body")
            if what in ("head", "data"):
                await first.until("gone")
            second.answer(body=b"whole")
            assert await client.response(3) == (200, b"whole")

    recorder = Recorder(react)
    run(scenario)


@serving(lambda r: r.responder.head(ResponseHead(200, [(b"a", b"b\nc")], 0)))
async def test_field_that_would_be_malformed_is_never_sent(served):
    client = await client_of(served)
    client.headers(1, GET)
    await client.until(lambda: client.resets)
    assert client.heads == {}


@serving()
async def test_drain_finishes_streams_in_flight_and_refuses_new_ones(served, recorder):
    client = await client_of(served)
    client.headers(1, GET)
    request = await recorder.number(1)
    for connection in list(served.hub.connections):
        connection.drain()
    await client.until(lambda: client.goaway)
    assert client.goaway == (1, 0)
    client.headers(3, GET)
    await client.until(lambda: 3 in client.resets)
    assert client.resets == {3: 7}  # REFUSED_STREAM
    request.answer(body=b"done")
    assert await client.response(1) == (200, b"done")
    await client.until(lambda: False)
    assert client.closed


@serving()
async def test_goaway_of_the_client_leaves_its_streams(served, recorder):
    client = await client_of(served)
    client.headers(1, GET)
    request = await recorder.number(1)
    client.raw.send(frame(7, 0, 0, b"\0" * 8))
    await turns()
    request.answer(body=b"still")
    assert await client.response(1) == (200, b"still")


@serving(limits=Limits(body_stall_s=20))
async def test_a_client_that_waits_for_100_owes_nothing_until_it_comes(served, recorder):
    client = await client_of(served)
    client.headers(1, [*POST, (b"expect", b"100-continue")], end=False)
    request = await recorder.number(1)
    served.pass_time(21)
    assert not request.is_gone
    request.responder.resume_body()
    served.pass_time(21)  # a window that was nearly over when the client was told
    assert not request.is_gone
    served.pass_time(21)
    assert request.is_gone


@serving(limits=Limits(idle_s=100, body_stall_s=20, header_time_s=10))
async def test_times(served, recorder):
    silent = await client_of(served)
    stalled = await client_of(served)
    stalled.headers(1, POST, end=False)
    waiting = await client_of(served)
    waiting.headers(1, GET)
    await recorder.number(2)
    served.pass_time(21)
    await silent.until(lambda: False)
    assert silent.goaway == (0, 0)
    assert (await stalled.response(1))[0] == 408
    assert recorder.requests[0].is_gone != recorder.requests[1].is_gone
    for _ in range(10):
        served.pass_time(21)
    (late,) = [r for r in recorder.requests if not r.is_gone]
    late.answer(body=b"thought")
    assert await waiting.response(1) == (200, b"thought")
    served.pass_time(101)
    await waiting.until(lambda: False)
    assert waiting.goaway == (1, 0)


@serving()
async def test_large_bodies_both_ways(served, recorder):
    client = await client_of(served, {4: 1 << 24})
    client.window(0, 1 << 24)
    client.headers(1, [*POST, (b"content-length", b"900000")], end=False)
    request = await recorder.number(1)
    assert request.head.body_length == 900_000
    client.data(1, b"u" * 900_000, end=True)
    await request.until("body_end")
    assert len(request.payload) == 900_000
    request.responder.head(ResponseHead(200, [], 3_000_000))
    for _ in range(30):
        request.responder.data(b"d" * 100_000)
    request.responder.end()
    status, body = await client.response(1)
    assert (status, len(body)) == (200, 3_000_000)


@serving(ok)
async def test_ping_is_answered(served):
    client = await client_of(served)
    seen = []
    client._frame = lambda kind, flags, stream, payload: seen.append((kind, flags, payload))
    client.raw.send(frame(PING, 0, 0, b"12345678"))
    await client.until(lambda: (PING, 1, b"12345678") in seen)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_speaks_it(tmp_path):
    async def scenario():
        import asyncio

        def react(request):
            request.body_end = lambda trailers: request.answer(
                200, b"got %d" % len(request.payload)
            )

        async with Served(Recorder(react)) as served:
            upload = tmp_path / "upload"
            upload.write_bytes(b"x" * 3_000_000)
            process = await asyncio.create_subprocess_exec(
                *("curl", "-sS", "--http2-prior-knowledge", "--data-binary", f"@{upload}"),
                *("-w", " %{http_version}", "http://{}:{}/".format(*served.address)),
                stdout=subprocess.PIPE,
            )
            out = (await process.communicate())[0]
            assert out == b"got 3000000 2"

    run(scenario)
