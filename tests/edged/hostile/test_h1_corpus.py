"""Every case of the corpus, in one piece, byte by byte, and over a socket."""

import itertools
import re

import pytest

from edged.downstream.h1 import H1Connection
from edged.messages import ResponseHead
from tests.harness.clients import Recorder, Served, deliver, run

from .corpus_h1 import CASES, CLOSED_AFTER_SERVING, Case

STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) [^\n]*\r\n")
POISON = b"GET /poison HTTP/1.1\r\nHost: h\r\n\r\n"


def test_corpus_is_large_and_names_are_unique():
    assert len(CASES) >= 150
    assert len({case.name for case in CASES}) == len(CASES)


def answer_at_end(request) -> None:
    """A handler that answers when the whole request is there, as most do."""
    if request.head.body_length == 0:
        request.answer(body=b"ok")
    else:

        def body_end(trailers) -> None:
            request.ended = True
            request.answer(body=b"ok")

        request.body_end = body_end


def check(case: Case, recorder: Recorder, output: bytes) -> None:
    seen = [
        (r.head.method, r.head.authority, r.head.path, r.payload)
        for r in recorder.requests
        if r.ended or r.head.body_length == 0
    ]
    expected = list(case.served)
    poisoned = case.poison and case.status is None and case.name not in CLOSED_AFTER_SERVING
    if poisoned:
        expected.append((b"GET", b"h", b"/poison", b""))
    assert seen == expected
    wanted = [200] * len(expected) + ([case.status] if case.status else [])
    heads = list(STATUS_LINE.finditer(output))
    assert [int(head[1]) for head in heads] == wanted
    assert not any(b"/smuggled" in r.head.path for r in recorder.requests)
    if case.status:
        error = output[heads[-1].start() :]
        assert b"connection: close\r\n" in error
        assert b"content-type: application/json\r\n" in error
        assert b"proxy-status: edged; error=http_request_error" in error


def crumbs(data: bytes) -> list[bytes]:
    """Single bytes; of long input the middle in small pieces."""
    middle = range(2000, max(2000, len(data) - 1000))
    cuts = [i for i in range(len(data) + 1) if i not in middle or i % 61 == 0]
    pieces = [data[a:b] for a, b in itertools.pairwise(cuts)]
    assert b"".join(pieces) == data
    return pieces


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_in_one_piece_and_byte_by_byte(case):
    data = case.data + (POISON if case.poison else b"")
    for pieces in ([data], crumbs(data)):
        recorder = Recorder(answer_at_end)
        transport = deliver(H1Connection, pieces, recorder)
        check(case, recorder, transport.written)
        if case.status or case.name in CLOSED_AFTER_SERVING:
            assert transport.ended or transport.closed
        else:
            assert not transport.closed


def test_over_a_socket():
    """All cases again with a real peer: the answer can be read, then the connection ends."""

    async def scenario():
        recorder = Recorder(answer_at_end)
        async with Served(recorder) as served:
            for case in CASES:
                recorder.requests.clear()
                client = await served.connect(case.data + (POISON if case.poison else b""))
                if case.status is None and case.name not in CLOSED_AFTER_SERVING:
                    client.send(b"GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
                    output = await client.rest()
                    last = recorder.requests.pop()
                    assert last.head.path == b"/last"
                    output = output[: output.rindex(b"HTTP/1.1 200 ")]
                else:
                    output = await client.rest()
                check(case, recorder, output)
                client.close()

    run(scenario)


@pytest.mark.parametrize("name", ["h2c upgrade is ignored", "h2c upgrade without Connection"])
def test_h2c_is_not_passed_on(name):
    (case,) = [case for case in CASES if case.name == name]
    recorder = Recorder(answer_at_end)
    deliver(H1Connection, [case.data], recorder)
    head = recorder.requests[0].head
    assert head.upgrade is None
    assert head.headers == []


def test_body_refused_midway_ends_the_exchange_without_its_end():
    recorder = Recorder()
    data = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n"
    transport = deliver(H1Connection, [data], recorder)
    assert recorder.requests[0].events == ["body", "gone"]
    assert transport.written.startswith(b"HTTP/1.1 400 ")


def test_body_refused_after_the_response_began_is_cut():
    recorder = Recorder(lambda r: r.responder.head(ResponseHead(200, [], None)))
    data = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n"
    transport = deliver(H1Connection, [data], recorder)
    assert recorder.requests[0].events == ["body", "gone"]
    assert transport.aborted
    assert b"0\r\n\r\n" not in transport.written
