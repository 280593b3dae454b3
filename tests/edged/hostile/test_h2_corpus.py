"""What an HTTP/2 client may try, and what it gets (RFC 9113), on both engines.

``RESET``: the stream is reset with that error and the connection lives on; ``GOAWAY``: the
connection ends with that error; a number is the status of the answer. The handler sees nothing.
"""

import struct

import pytest

from edged.downstream.limits import Limits
from edged.upstream import engines
from tests.harness.clients import Recorder, Served, ok, run, serving, turns
from tests.harness.h2client import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GET,
    HEADERS,
    PING,
    POST,
    PREFACE,
    PRIORITY,
    PUSH,
    RST,
    SETTINGS,
    WINDOW,
    H2Client,
    frame,
)

PROTOCOL, FLOW, CALM, REFUSED = 1, 3, 11, 7
CONNECT = [(b":method", b"CONNECT"), (b":authority", b"h:1")]


@pytest.fixture(params=[engines.PURE, engines.FAST], autouse=True)
def engine(request, monkeypatch):
    monkeypatch.setenv(engines.ENVIRONMENT, request.param)
    try:
        engines.h2_engine()
    except engines.EngineError as error:
        pytest.skip(str(error))


def without(fields, name):
    return [field for field in fields if field[0] != name]


def changed(fields, name, value):
    return [(n, value if n == name else v) for n, v in fields]


MALFORMED = {
    "no method": without(GET, b":method"),
    "no scheme": without(GET, b":scheme"),
    "no path": without(GET, b":path"),
    "no authority": without(GET, b":authority"),
    "method twice": [*GET, (b":method", b"GET")],
    "path twice": [GET[0], *GET],
    "authority twice": [*GET, (b":authority", b"evil")],
    "unknown pseudo": [*GET, (b":proto", b"x")],
    "extended CONNECT": [*CONNECT, (b":protocol", b"websocket"), *GET[1:2], GET[3]],
    "status in a request": [*GET, (b":status", b"200")],
    "pseudo after a field": [*GET[:3], (b"x", b"y"), GET[3]],
    "empty path": changed(GET, b":path", b""),
    "relative path": changed(GET, b":path", b"x"),
    "absolute path": changed(GET, b":path", b"http://evil/"),
    "asterisk with GET": changed(GET, b":path", b"*"),
    "blank in path": changed(GET, b":path", b"/a b"),
    "fragment": changed(GET, b":path", b"/a#b"),
    "CRLF in path": changed(GET, b":path", b"/ HTTP/1.1\r\nHost: evil\r\n\r\n"),
    "non-ASCII path": changed(GET, b":path", b"/\xc3\xa9"),
    "NUL in path": changed(GET, b":path", b"/\x00"),
    "empty method": changed(GET, b":method", b""),
    "method with blank": changed(GET, b":method", b"GET /evil"),
    "method with CRLF": changed(GET, b":method", b"GET / HTTP/1.1\r\n\r\n"),
    "other scheme": changed(GET, b":scheme", b"ftp"),
    "scheme with CRLF": changed(GET, b":scheme", b"http\r\n"),
    "authority with user": changed(GET, b":authority", b"a@h"),
    "authority with path": changed(GET, b":authority", b"h/x"),
    "authority with CRLF": changed(GET, b":authority", b"h\r\nX: y"),
    "authority with port too large": changed(GET, b":authority", b"h:99999"),
    "host differs": [*GET, (b"host", b"evil")],
    "host twice": [*without(GET, b":authority"), (b"host", b"h"), (b"host", b"h")],
    "host invalid": [*GET, (b"host", b"a b")],
    "upper-case name": [*GET, (b"X-Y", b"z")],
    "empty name": [*GET, (b"", b"z")],
    "blank in name": [*GET, (b"x y", b"z")],
    "colon in name": [*GET, (b"x:y", b"z")],
    "CRLF in name": [*GET, (b"x\r\ny", b"z")],
    "NUL in name": [*GET, (b"x\x00", b"z")],
    "non-ASCII name": [*GET, (b"\xe9", b"z")],
    "CRLF in value": [*GET, (b"x", b"y\r\nevil: 1")],
    "LF in value": [*GET, (b"x", b"y\nz")],
    "CR in value": [*GET, (b"x", b"y\rz")],
    "NUL in value": [*GET, (b"x", b"y\x00")],
    "leading blank in value": [*GET, (b"x", b" y")],
    "trailing tab in value": [*GET, (b"x", b"y\t")],
    "connection": [*GET, (b"connection", b"close")],
    "keep-alive": [*GET, (b"keep-alive", b"1")],
    "proxy-connection": [*GET, (b"proxy-connection", b"close")],
    "transfer-encoding": [*GET, (b"transfer-encoding", b"chunked")],
    "upgrade": [*GET, (b"upgrade", b"h2c")],
    "te other than trailers": [*GET, (b"te", b"gzip")],
    "content-length not a number": [*POST, (b"content-length", b"x")],
    "content-length negative": [*POST, (b"content-length", b"-1")],
    "content-length list": [*POST, (b"content-length", b"1,1")],
    "content-length twice": [*POST, (b"content-length", b"0"), (b"content-length", b"0")],
    "content-length without content": [*POST, (b"content-length", b"5")],
    "CONNECT with path": [*CONNECT, GET[3]],
    "CONNECT with scheme": [*CONNECT, GET[1]],
    "CONNECT without port": changed(CONNECT, b":authority", b"h"),
    "CONNECT to port 0": changed(CONNECT, b":authority", b"h:0"),
    "CONNECT without authority": CONNECT[:1],
}


@pytest.mark.parametrize("name", MALFORMED)
@serving(ok)
async def test_malformed_head_resets_its_stream_only(served, recorder, name):
    client = H2Client(await served.connect())
    client.headers(1, MALFORMED[name])
    client.headers(3, GET)
    assert await client.response(3) == (200, b"ok")
    assert client.resets == {1: PROTOCOL}
    assert len(recorder.requests) == 1
    assert served.hub.requests_bad == 1


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (changed(GET, b":path", b"/" + b"a" * 9000), 414),
        ([*GET, *[(b"x", b"y")] * 200], 431),
        ([*POST, (b"expect", b"200-ok")], 417),
    ],
)
@serving(ok)
async def test_refused_with_a_status(served, recorder, fields, status):
    client = H2Client(await served.connect())
    client.headers(1, fields)
    got, body = await client.response(1)
    assert got == status
    assert b'"request_id"' in body
    assert not recorder.requests


def mismatch_longer(client):
    client.headers(1, [*POST, (b"content-length", b"3")], end=False)
    client.data(1, b"four", end=True)


def mismatch_shorter(client):
    client.headers(1, [*POST, (b"content-length", b"5")], end=False)
    client.data(1, b"four", end=True)


def mismatch_before_trailers(client):
    client.headers(1, [*POST, (b"content-length", b"5")], end=False)
    client.data(1, b"four")
    client.headers(1, [(b"a", b"b")])


def mismatch_zero(client):
    client.headers(1, [*POST, (b"content-length", b"0")], end=False)
    client.data(1, b"x")


def trailer_pseudo(client):
    client.headers(1, POST, end=False)
    client.headers(1, [(b":path", b"/evil")])


def trailer_crlf(client):
    client.headers(1, POST, end=False)
    client.headers(1, [(b"a", b"b\r\n")])


def trailer_coding(client):
    client.headers(1, POST, end=False)
    client.headers(1, [(b"transfer-encoding", b"chunked")])


@pytest.mark.parametrize(
    "attack",
    [
        mismatch_longer,
        mismatch_shorter,
        mismatch_before_trailers,
        mismatch_zero,
        trailer_pseudo,
        trailer_crlf,
        trailer_coding,
    ],
)
@serving()
async def test_request_that_turns_out_malformed_never_ends(served, recorder, attack):
    client = H2Client(await served.connect())
    attack(client)
    await client.until(lambda: client.resets or client.goaway)
    assert client.resets == {1: PROTOCOL}
    (request,) = recorder.requests
    assert request.events[-1] == "gone"
    client.headers(3, GET)
    (await recorder.number(2)).answer(body=b"alive")
    assert await client.response(3) == (200, b"alive")


def settings(*pairs):
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *p) for p in pairs))


# One case, one line, however long.
# ruff: noqa: E501 -- the same
CONNECTION_ERRORS = {
    "trailers without end": (PROTOCOL, lambda c: [headers(c, 1, POST, end=False), headers(c, 1, [(b"a", b"b")], end=False)]),
    "stream id even": (PROTOCOL, lambda c: [headers(c, 2, GET)]),
    "stream id goes back": (None, lambda c: [headers(c, 5, GET), headers(c, 3, GET)]),
    "stream id 0": (PROTOCOL, lambda c: [headers(c, 0, GET)]),
    "DATA on stream 0": (PROTOCOL, lambda c: [frame(DATA, 0, 0, b"x")]),
    "DATA on idle stream": (None, lambda c: [frame(DATA, 0, 1, b"x")]),
    "RST on idle stream": (PROTOCOL, lambda c: [frame(RST, 0, 1, b"\0" * 4)]),
    "RST on stream 0": (PROTOCOL, lambda c: [frame(RST, 0, 0, b"\0" * 4)]),
    "WINDOW_UPDATE of 0": (None, lambda c: [frame(WINDOW, 0, 0, b"\0" * 4)]),
    "WINDOW_UPDATE overflow": (FLOW, lambda c: [frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff")] * 2),
    "SETTINGS on a stream": (PROTOCOL, lambda c: [frame(SETTINGS, 0, 1)]),
    "SETTINGS of odd size": (None, lambda c: [frame(SETTINGS, 0, 0, b"abc")]),
    "SETTINGS push 2": (PROTOCOL, lambda c: [settings((2, 2))]),
    "SETTINGS window too large": (None, lambda c: [settings((4, 1 << 31))]),
    "SETTINGS frame size too small": (PROTOCOL, lambda c: [settings((5, 100))]),
    "PING of odd size": (None, lambda c: [frame(PING, 0, 0, b"abc")]),
    "PING on a stream": (PROTOCOL, lambda c: [frame(PING, 0, 1, b"12345678")]),
    "PUSH_PROMISE by a client": (PROTOCOL, lambda c: [headers(c, 1, GET), frame(PUSH, END_HEADERS, 1, b"\0\0\0\2\x82")]),
    "CONTINUATION alone": (PROTOCOL, lambda c: [frame(CONTINUATION, END_HEADERS, 1, b"\x82")]),
    "DATA inside a header block": (PROTOCOL, lambda c: [frame(HEADERS, 0, 1, c.block(GET)), frame(DATA, 0, 1, b"x")]),
    "CONTINUATION of another stream": (PROTOCOL, lambda c: [frame(HEADERS, 0, 1, c.block(GET)), frame(CONTINUATION, END_HEADERS, 3, b"")]),
    "CONTINUATION flood": (None, lambda c: [frame(HEADERS, 0, 1, c.block(GET))] + [frame(CONTINUATION, 0, 1, b"")] * 1000),
    "frame too large": (None, lambda c: [frame(DATA, 0, 1, b"x" * 20_000)]),
    "padding longer than the frame": (PROTOCOL, lambda c: [headers(c, 1, POST, end=False), frame(DATA, 8, 1, b"\xffab")]),
    "HPACK index out of table": (None, lambda c: [frame(HEADERS, 5, 1, b"\xff\xff\xff\x0f")]),
    "HPACK truncated": (None, lambda c: [frame(HEADERS, 5, 1, b"\x00\x7f")]),
    "HPACK table size too large": (None, lambda c: [frame(HEADERS, 5, 1, b"\x3f\xff\xff\xff\x07")]),
    "HPACK bomb": (None, lambda c: [frame(HEADERS, 5, 1, b"\x40\x01a\x7f\x80\x1f" + b"b" * 4095 + b"\xbe" * 12_000)]),
    "header list too large": (None, lambda c: [headers(c, 1, [*GET, *((b"x%d" % i, b"y" * 200) for i in range(60))])]),
    "PRIORITY on itself": (None, lambda c: [headers(c, 1, POST, end=False), frame(PRIORITY, 0, 1, struct.pack(">IB", 1, 1))]),
}  # fmt: skip


def headers(client, stream, fields, *, end=True):
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, client.block(fields))


@pytest.mark.parametrize("name", CONNECTION_ERRORS)
def test_connection_errors(name):
    """The error code is checked where RFC 9113 leaves one choice and both engines follow it."""
    code, attack = CONNECTION_ERRORS[name]

    async def scenario():
        recorder = Recorder()
        async with Served(recorder, Limits(header_bytes=8192)) as served:
            client = H2Client(await served.connect())
            client.raw.send(b"".join(attack(client)))
            await client.until(lambda: client.goaway or client.resets)
            if client.resets:  # a stream error where a connection error is not required
                assert code is None
            else:
                assert client.goaway is not None
                assert client.goaway[1] == (code or client.goaway[1]) != 0
                await client.until(lambda: False)
                await turns()
                assert not served.hub.connections
            assert not any(r.ended for r in recorder.requests)

    run(scenario)


@serving(ok)
async def test_wrong_preface(served):
    client = await served.connect(PREFACE[:18] + b"XX\r\n\r\n")
    answer = await client.rest()
    assert b"HTTP/1.1 2" not in answer
    assert not served.hub.connections


@serving(limits=Limits(h2_streams=5))
async def test_streams_beyond_the_limit_are_refused_and_the_others_live(served, recorder):
    client = H2Client(await served.connect())
    for stream in range(1, 41, 2):
        client.headers(stream, GET)
    await client.until(lambda: len(client.resets) == 15)
    assert set(client.resets.values()) == {REFUSED}
    assert len(recorder.requests) == 5
    recorder.requests[4].answer(body=b"ok")
    assert await client.response(9) == (200, b"ok")
    client.headers(41, GET)
    await recorder.number(6)


FLOODS = {
    "rapid reset": lambda c, n: headers(c, 2 * n + 1, GET) + frame(RST, 0, 2 * n + 1, b"\0\0\0\x08"),
    "ping": lambda c, n: frame(PING, 0, 0, b"12345678"),
    "settings": lambda c, n: settings((3, 100)),
    "priority": lambda c, n: frame(PRIORITY, 0, 2 * n + 1, struct.pack(">IB", 0, 1)),
    "unknown frames": lambda c, n: frame(200, 0, 0, b"x"),
    "empty data": lambda c, n: (headers(c, 1, POST, end=False) if n == 0 else b"") + frame(DATA, 0, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOODS)
@serving()
async def test_floods_end_the_connection(served, recorder, name):
    client = H2Client(await served.connect())
    for n in range(6000):
        if client.raw.writer.is_closing():
            break
        client.raw.send(FLOODS[name](client, n))
        if n % 200 == 0:
            await turns(1)
    await client.until(lambda: client.goaway)
    assert client.goaway is None or client.goaway[1] == CALM
    await client.until(lambda: False)
    await turns()
    assert not served.hub.connections
    assert served.hub.requests_open == 0
    assert len(recorder.requests) <= 501
    assert all(r.is_gone for r in recorder.requests)


@serving()
async def test_resets_and_pings_over_a_long_time_are_no_flood(served, recorder):
    client = H2Client(await served.connect())
    for n in range(20):
        for k in range(100):
            stream = 2 * (n * 100 + k) + 1
            client.headers(stream, GET)
            client.rst(stream)
        await recorder.number(n * 100 + 100)
        await turns(1)
        served.pass_time(3)
    client.headers(5001, GET)
    (await recorder.number(2001)).answer(body=b"ok")
    assert await client.response(5001) == (200, b"ok")
