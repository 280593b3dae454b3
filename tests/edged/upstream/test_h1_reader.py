"""Responses of HTTP/1.1 servers, byte by byte and all at once: the same events, or refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.upstream import h1_head
from edged.upstream.h1_reader import HEAD_BYTES_MAX, Progress, ResponseReader

OK = b"HTTP/1.1 200 OK\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"


class Recorder:
    """What the reader says; ``stop_at`` cancels inside the event of that name."""

    def __init__(self, stop_at=None):
        self.said = []
        self.stop_at = stop_at
        self.reader = None

    def _say(self, *event):
        assert not self.reader.stopped
        self.said.append(event)
        if event[0] == self.stop_at:
            self.reader.stopped = True

    def informational(self, status, headers):
        self._say("informational", status, tuple(headers))

    def head(self, head):
        values = (head.status, head.reason, head.version, head.body_length, head.declared_length)
        self._say("head", *values, tuple(head.headers))

    def data(self, data):
        assert data
        self._say("data", bytes(data))


def reader_of(*, stop_at=None, head_request=False, upgrade=False):
    recorder = Recorder(stop_at)
    reader = recorder.reader = ResponseReader(recorder)
    reader.head_request = head_request
    reader.upgrade = upgrade
    return reader, recorder


def read(pieces, **options):
    """How it ended, what was said (data joined), and whether the connection may serve again."""
    reader, recorder = reader_of(**options)
    left = list(pieces)
    progress = Progress.MORE
    raw = b""
    while left and progress is Progress.MORE:
        progress = reader.feed(left.pop(0))
    rest = b"".join(left)
    if progress is Progress.SWITCHED:
        raw, rest = reader.rest + rest, b""
    heads = [event for event in recorder.said if event[0] != "data"]
    body = b"".join(event[1] for event in recorder.said if event[0] == "data")
    again = None
    if progress is Progress.COMPLETE:
        again = reader.reusable and not rest
    return progress, heads, body, again, reader.until_close, reader.trailers, raw


def cut(data, places):
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[a:b] for a, b in zip([0, *ends], ends, strict=False) if a < b]


def bytewise(data):
    return [data[i : i + 1] for i in range(len(data))]


def whole(data, **options):
    """As one piece, after checking that single bytes come to the same."""
    result = read([data], **options)
    assert read(bytewise(data), **options) == result
    assert read([data], **options) == result  # now that its lines are known
    return result


STARTS = [
    OK,
    b"HTTP/1.1 200\r\n",
    b"HTTP/1.0 200 OK\r\n",
    b"HTTP/1.1 204 No Content\r\n",
    b"HTTP/1.1 304 Not Modified\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: close\r\n\r\n"
    b"HTTP/1.1 404 Not\tFound\r\n",
    SWITCH,
    b"HTTP/2.0 200 OK\r\n",
    b"HTTP/1.1 99 Low\r\n",
    b"\r\n" + OK,
]
FIELDS = [
    b"Content-Length: 5\r\n",
    b"content-length:5\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length: 6\r\n",
    b"Content-Length: +5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: Chunked \r\n",
    b"Transfer-Encoding: gzip\r\n",
    b"Connection: keep-alive\r\n",
    b"Connection: close\r\n",
    b"Connection: x-hop, keep-alive\r\n",
    b"X-Hop: 1\r\n",
    b"Keep-Alive: timeout=5\r\n",
    b"Upgrade: h2c\r\n",
    b'Alt-Svc: h3=":443"\r\n',
    b"Server:  nginx \t\r\n",
    b"Set-Cookie: a=\xff\r\n",
    b"Empty:\r\n",
    b" folded\r\n",
    b"bad : name\r\n",
    b"nul: a\0b\r\n",
    b"cr: a\rb\r\n",
    b"lf: a\nb\r\n",
    b"no colon\r\n",
    b": no name\r\n",
]
BODIES = [
    b"",
    b"hello",
    b"hello!",
    b"hel",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"2\r\nhe\r\n3;a=b\r\nllo\r\n0\r\nX-Sum: 1\r\nAlt-Svc: x\r\n\r\n",
    b"5\r\nhello\r\n0\r\n\r\nmore",
    b"5\r\nhelloo\r\n",
    b"0x5\r\nhello\r\n",
    b"005\r\nhello\r\n3\r\nyou\r\n",
    b"5\nhello\r\n",
]


@given(
    start=st.sampled_from(STARTS),
    fields=st.lists(st.sampled_from(FIELDS), max_size=4),
    body=st.sampled_from(BODIES),
    places=st.lists(st.integers(0, 400), max_size=5),
    head_request=st.booleans(),
    upgrade=st.booleans(),
)
def test_the_outcome_does_not_depend_on_the_cut(start, fields, body, places, head_request, upgrade):
    data = start + b"".join(fields) + b"\r\n" + body
    options = {"head_request": head_request, "upgrade": upgrade}
    result = whole(data, **options)
    assert read(cut(data, places), **options) == result


@given(
    data=st.binary(max_size=60).map(lambda tail: OK + tail),
    places=st.lists(st.integers(0, 80), max_size=4),
)
def test_any_bytes_come_to_the_same_however_they_are_cut(data, places):
    assert read(cut(data, places)) == whole(data)


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=300), max_size=8),
    places=st.lists(st.integers(0, 3000), max_size=12),
)
def test_a_chunked_body_arrives_as_it_was_sent(chunks, places):
    coded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    data = OK + b"Transfer-Encoding: chunked\r\n\r\n" + coded + b"0\r\n\r\n"
    result = whole(data)
    assert read(cut(data, places)) == result
    assert result[2] == b"".join(chunks)
    assert result[0] is Progress.COMPLETE
    assert result[3]


@pytest.mark.parametrize(
    "data",
    [
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        OK + b"Content-Length: 5, 5\r\n\r\nhello",
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Content-Length: +1\r\n\r\nx",
        OK + b"Content-Length: 0x1\r\n\r\nx",
        OK + b"Content-Length: 1_0\r\n\r\nx",
        OK + b"Content-Length:\r\n\r\n",
        OK + b"Content-Length: 9999999999999999999\r\n\r\n",
        OK + b"Content-Length: \xb2\r\n\r\n",
        OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        OK + b"Transfer-Encoding: identity\r\n\r\n",
        OK + b"Transfer-Encoding:\r\n\r\n",
        OK + b"Transfer-Encoding: \x0bchunked\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"x: a\r\n b\r\n\r\n",
        OK + b"x: a\r\n\tb\r\n\r\n",
        OK + b" x: a\r\n\r\n",
        OK + b"x : a\r\n\r\n",
        OK + b"x\t: a\r\n\r\n",
        OK + b": a\r\n\r\n",
        OK + b"x\r\n\r\n",
        OK + b"server\r\n\r\n",
        OK + b"x(: a\r\n\r\n",
        OK + b"\xe4: a\r\n\r\n",
        OK + b"x: a\0\r\n\r\n",
        OK + b"x: a\x7f\r\n\r\n",
        OK + b"x: a\rb: c\r\n\r\n",
        OK + b"x: a\nb: c\r\n\r\n",
        OK + b"x: a\r\r\n\r\n",
        OK + b"x: a\n\r\n\r\n",
        b"HTTP/1.1 200 OK\nx: a\n\n",
        b"HTTP/1.1 200 OK\r\nx: a\n\n",
        b"HTTP/1.1 200 O\0K\r\n\r\n",
        b"HTTP/1.1 200 OK\rX\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1\t200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 20x OK\r\n\r\n",
        b"HTTP/1.1 200OK\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.2 200 OK\r\n\r\n",
        b"HTTP/0.9 200 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"http/1.1 200 OK\r\n\r\n",
        b" HTTP/1.1 200 OK\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"SSH-2.0-server\r\n",
        b"\x16\x03\x01",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\nx: a\n\n",
        b"HTTP/1.1 100 Continue\r\nContent-Length: x\r\n\r\n",
        SWITCH,
    ],
)
def test_what_is_malformed_or_ambiguous_is_refused_before_its_head(data):
    progress, heads, body, *_ = whole(data)
    assert progress is Progress.BROKEN
    assert [event[0] for event in heads] in ([], ["informational"])
    assert body == b""


def test_a_refusal_says_why_without_quoting_the_server():
    reader, _ = reader_of()
    assert reader.feed(OK + b"content-length: secret\r\n\r\n") is Progress.BROKEN
    assert reader.fault == "malformed response: the Content-Length is not a plain number"


@pytest.mark.parametrize(
    "coded",
    [
        b"5\r\nhellooo\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5 \r\nhello\r\n",
        b"-5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"\r\nhello\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\r\nbad : x\r\n\r\n",
        b"5\r\nhello\r\n0\r\nx: y\n\r\n",
        b"1" * 20 + b"\r\nhello",
    ],
)
def test_bad_chunks_break_the_body(coded):
    progress, heads, body, *_ = whole(OK + b"Transfer-Encoding: chunked\r\n\r\n" + coded)
    assert progress is Progress.BROKEN
    assert heads[0][0] == "head"
    assert body in (b"", b"hello")


def head_of(data, **options):
    (head,) = whole(data, **options)[1]
    names = ("status", "reason", "version", "body_length", "declared_length", "headers")
    return dict(zip(names, head[1:], strict=True))


def test_fields_are_read_as_they_were_sent():
    head = head_of(
        b"HTTP/1.1 200 It's \xc3\xa4 day\r\nSERVER: a\r\nX-One:\t1 \r\nserver:b\r\n"
        b"Set-Cookie: a=1\r\nKeep-Alive: 5\r\nTE: x\r\nProxy-Connection: close\r\n"
        b"Set-Cookie: b=\x80\r\nConnection: X-Gone , close\r\nX-Gone: 1\r\nEmpty:\r\n"
        b"Alt-Svc: h3\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc"
    )
    assert head == {
        "status": 200,
        "reason": b"It's \xc3\xa4 day",
        "version": b"1.1",
        "body_length": 3,
        "declared_length": None,
        "headers": (
            (b"server", b"a"),
            (b"x-one", b"1"),
            (b"server", b"b"),
            (b"set-cookie", b"a=1"),
            (b"set-cookie", b"b=\x80"),
            (b"empty", b""),
            (b"alt-svc", b"h3"),
        ),
    }


@pytest.mark.parametrize(
    ("head", "again"),
    [
        (OK, True),
        (OK + b"Connection: keep-alive\r\n", True),
        (OK + b"Connection: close\r\n", False),
        (OK + b"Connection: Close\r\n", False),
        (OK + b"Connection: x,close\r\n", False),
        (OK + b"Connection: keep-alive\r\nConnection: close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n", True),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive, close\r\n", False),
        (b"HTTP/1.1 100 Continue\r\nConnection: close\r\n\r\n" + OK, True),
    ],
)
@pytest.mark.parametrize("body", [b"", b"x"])
def test_whether_the_connection_serves_again(head, body, again):
    data = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    assert whole(data)[3] is again
    assert whole(data + b"!")[3] is False


@pytest.mark.parametrize(
    ("data", "length", "declared", "options"),
    [
        (OK + b"Content-Length: 0\r\n\r\n", 0, 0, {}),
        (OK + b"Content-Length: 7\r\n\r\n", 0, 7, {"head_request": True}),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", 0, None, {"head_request": True}),
        (OK + b"\r\n", 0, None, {"head_request": True}),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 0, None, {}),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", 0, 7, {}),
        (b"HTTP/1.1 304\r\nTransfer-Encoding: chunked\r\n\r\n", 0, None, {}),
    ],
)
def test_a_response_without_a_body_is_complete_with_its_head(data, length, declared, options):
    progress, (head,), body, again, *_ = whole(data, **options)
    assert progress is Progress.COMPLETE
    assert head[4:6] == (length, declared)
    assert body == b""
    assert again
    assert whole(data + b"x", **options)[3] is False


def test_without_a_length_the_close_delimits():
    progress, (head,), body, _, until_close, *_ = whole(OK + b"\r\nall of it")
    assert (progress, head[4], body, until_close) == (Progress.MORE, None, b"all of it", True)


def test_a_switch_of_protocols():
    progress, (head,), body, *_, raw = whole(SWITCH + b"\0raw\r\n\r\n", upgrade=True)
    assert progress is Progress.SWITCHED
    assert head[-1] == ((b"upgrade", b"x"),)
    assert (body, raw) == (b"", b"\0raw\r\n\r\n")


def test_raw_bytes_after_a_switch_are_data():
    reader, recorder = reader_of(upgrade=True)
    assert reader.feed(SWITCH) is Progress.SWITCHED
    assert reader.feed(b"\0raw") is Progress.MORE
    assert recorder.said[1:] == [("data", b"\0raw")]


def test_a_switch_without_the_connection_option_is_refused():
    data = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"
    assert whole(data, upgrade=True)[0] is Progress.BROKEN


def filled(size):
    """A head of ``size`` bytes that announces no body."""
    start, end = OK + b"x: ", b"\r\ncontent-length: 0\r\n\r\n"
    return start + b"y" * (size - len(start) - len(end)) + end


@pytest.mark.parametrize("step", [1 << 20, 60_001, 4096])
def test_heads_are_bounded_together(step):
    interim = b"HTTP/1.1 102 Processing\r\n\r\n"
    for before in (b"", interim, interim * 100):
        exact = before + filled(HEAD_BYTES_MAX - len(before))
        larger = before + filled(HEAD_BYTES_MAX - len(before) + 1)
        for data, expected in ((exact, Progress.COMPLETE), (larger, Progress.BROKEN)):
            pieces = [data[i : i + step] for i in range(0, len(data), step)]
            assert read(pieces)[0] is expected
    endless = interim * (HEAD_BYTES_MAX // len(interim) + 1)
    assert read([endless])[0] is Progress.BROKEN
    assert read([OK + b"x: " + b"y" * HEAD_BYTES_MAX])[0] is Progress.BROKEN


@pytest.mark.parametrize("stop_at", ["informational", "head", "data"])
@pytest.mark.parametrize(
    "rest",
    [
        b"content-length: 5\r\n\r\nhello",
        b"content-length: 9\r\n\r\nhello",
        b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n2\r\nyo\r\n0\r\n\r\n",
        b"\r\nhello",
    ],
)
def test_nothing_is_said_once_it_is_stopped(stop_at, rest):
    reader, recorder = reader_of(stop_at=stop_at)
    reader.feed(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK + rest)
    assert recorder.said[-1][0] == stop_at


def test_each_event_of_a_stream_leaves_at_once():
    reader, recorder = reader_of()
    reader.feed(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    for number in range(20):
        event = b"data: %d\n\n" % number
        reader.feed(b"%X\r\n%b\r\n" % (len(event), event))
        assert recorder.said[-1] == ("data", event)
    assert reader.feed(b"0\r\n\r\n") is Progress.COMPLETE


@pytest.mark.sources
def test_alternatives_are_told_of_heads_that_are_good():
    told = []

    class Reader(ResponseReader):
        def advertised(self, value):
            told.append(value)

    def feed(data):
        recorder = Recorder()
        recorder.reader = Reader(recorder)
        recorder.reader.feed(data)

    feed(OK + b"alt-svc: bad\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n")
    assert told == []
    feed(OK + b"alt-svc: good\r\ncontent-length: 1\r\n\r\nx")
    assert told == [b"good"]


def test_what_is_remembered_is_bounded_and_holds_no_secret():
    for number in range(3 * h1_head._REMEMBERED):
        data = OK + b"Server: %d\r\nSet-Cookie: s=%d\r\nX-%d: 1\r\n\r\n" % (number, number, number)
        assert read([data])[1][0][-1][0] == (b"server", b"%d" % number)
    read([b"HTTP/1.1 200 " + b"x" * 1000 + b"\r\nserver: " + b"y" * 1000 + b"\r\n\r\n"])
    for memory in (h1_head._lines, h1_head._status_lines, h1_head._names):
        assert 0 < len(memory) <= h1_head._REMEMBERED
        assert all(len(key) <= h1_head._REMEMBERED_BYTES for key in memory)
    assert not any(line.lower().startswith(b"set-cookie") for line in h1_head._lines)


def test_a_full_memory_loses_nothing_of_the_head_being_read():
    h1_head._lines.clear()
    for number in range(h1_head._REMEMBERED - 1):
        h1_head.read_line(b"Server: %d" % number)
    data = OK + b"Content-Length: 5\r\nServer: new\r\nDate: now\r\n\r\nhello"
    progress, (head,), body, *_ = read([data])
    assert (progress, head[4], body) == (Progress.COMPLETE, 5, b"hello")
    assert head[-1] == ((b"server", b"new"), (b"date", b"now"))
