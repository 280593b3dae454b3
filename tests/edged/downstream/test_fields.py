"""What is remembered of heads changes how fast they are read, and nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.downstream import fields
from edged.downstream.fields import BadMessage, parse_head
from edged.downstream.limits import Limits

LIMITS = Limits(header_fields=6, uri_bytes=40)
SDK = (
    b"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1:7070\r\nAccept-Encoding: gzip, deflate\r\n"
    b"Connection: keep-alive\r\nAccept: application/json\r\nUser-Agent: Anthropic/Python 0.40\r\n"
    b"X-Stainless-Lang: python\r\nX-Api-Key: sk-secret\r\nContent-Length: 12"
)


@pytest.fixture(autouse=True)
def forgetful():
    forget()


def forget():
    fields._names.clear()
    fields._authorities.clear()
    fields._host_lines.clear()
    fields._field_lines.clear()


def read(block, limits=LIMITS):
    """All that a head says, or why it is refused."""
    try:
        head, keep_alive, plain = parse_head(block, limits)
    except BadMessage as error:
        return error.status, error.code
    said = {name: getattr(head, name) for name in dir(head) if not name.startswith("_")}
    return said, keep_alive, plain


request_lines = st.builds(
    lambda method, target, version: b"%b %b %b" % (method, target, version),
    st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"TRACE", b"CONNECT", b"X", b"G T"]),
    st.sampled_from(
        [b"/", b"/a?b", b"*", b"x:1", b"http://y/z", b"/" + b"a" * 40, b"/#", b"/\x80"]
    ),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.1 "]),
)
field_lines = st.sampled_from(
    [
        b"Host: a",
        b"Host: a",
        b"Host:",
        b"host: B:1 ",
        b"Host: a/b",
        b"Accept: x",
        b"accept:x\t",
        b"X: a\nb",
        b"X: a\x00",
        b"X : a",
        b"X",
        b": a",
        b" folded",
        b"Connection: keep-alive",
        b"connection: Keep-Alive",
        b"Connection: close",
        b"Connection: accept, upgrade, te",
        b"Content-Length: 3",
        b"Content-Length: 3",
        b"Content-Length: +3",
        b"Transfer-Encoding: chunked",
        b"Expect: 100-continue",
        b"TE: trailers",
        b"Upgrade: websocket",
        b"Authorization: secret",
        b"Via: 1.1 a",
        b"Via: 1.1 b",
    ]
)
usual_lines = st.sampled_from([b"GET / HTTP/1.1", b"POST /a HTTP/1.1", b"HEAD / HTTP/1.1"])
hosts = st.sampled_from([[b"Host: a"], [b"host: B:1 "], [b"Host:"], []])
good_lines = st.sampled_from(
    [b"Accept: x", b"Connection: keep-alive", b"Content-Length: 3", b"Via: 1.1 a", b"Via: 1.1 b"]
)
heads = st.builds(
    lambda first, host, good, other: b"\r\n".join([first, *host, *good, *other]),
    usual_lines | request_lines,
    hosts,
    st.lists(good_lines, max_size=3, unique=True),
    st.lists(field_lines, max_size=1) | st.lists(field_lines, max_size=8),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(heads, min_size=1, max_size=6))
def test_a_head_reads_the_same_whatever_came_before(blocks):
    alone = []
    for block in blocks:
        forget()
        alone.append(read(block))
    forget()
    assert [read(block) for block in blocks] == alone
    assert [read(block) for block in blocks] == alone


def test_line_of_http11_means_more_in_http10():
    old = b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive"
    assert read(old)[1] is True
    assert read(old.replace(b"1.0", b"1.1"))[1] is True
    assert read(old)[1] is True
    assert read(b"GET / HTTP/1.0\r\nHost: a")[1] is False


def test_head_of_an_sdk():
    limits = Limits()
    first = read(SDK, limits)
    assert first == read(SDK, limits)
    said, keep_alive, plain = first
    assert (keep_alive, plain, said["body_length"]) == (True, True, 12)
    assert [name for name, _ in said["headers"]] == [
        b"accept-encoding",
        b"accept",
        b"user-agent",
        b"x-stainless-lang",
        b"x-api-key",
    ]


def test_secrets_and_long_lines_are_not_kept():
    read(
        SDK
        + b"\r\nAuthorization: Bearer sk-secret\r\nCookie: a=sk-secret\r\nAccept: "
        + b"l" * 300,
        Limits(),
    )
    read(b"GET / HTTP/1.1\r\nHost: a\r\nX-Any-Name: secret\r\nSec-WebSocket-Key: secret")
    assert not [line for line in fields._field_lines if b"secret" in line or len(line) > 200]
    assert b"Accept: application/json" in fields._field_lines


def test_memos_are_bounded():
    for n in range(5000):
        read(b"GET / HTTP/1.1\r\nHost: h%d\r\nX%d: 1\r\nAccept: %d" % (n, n, n))
    for memo in ("_names", "_authorities", "_host_lines", "_field_lines"):
        assert 0 < len(getattr(fields, memo)) <= 1024
