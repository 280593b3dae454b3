"""Any bytes, cut anyhow: no crash, and the same reading however they were cut."""

import itertools

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edged.downstream.h1 import H1Connection
from edged.downstream.limits import Limits
from tests.harness.clients import Recorder, deliver

from .corpus_h1 import CASES, get

LIMITS = Limits(header_bytes=600, uri_bytes=200, header_fields=12)
FAST = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))

ALPHABET = [
    *(b"GET POST / HTTP/1.1 HTTP/1.0".split()),
    *(b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b";", b",", b"0", b"5", b"\x00", b"\xff", b"a"),
    b"Host: h\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: upgrade\r\nUpgrade: ws\r\n",
    b"Expect: 100-continue\r\n",
    b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"3\r\nabc\r\n",
    b"0\r\n\r\n",
    b"0\r\nA: b\r\n\r\n",
    b"\r\n\r\n",
]
streams = st.lists(st.sampled_from(ALPHABET) | st.binary(max_size=8), max_size=20).map(b"".join)
seeds = st.sampled_from([case.data for case in CASES if len(case.data) < 600])


@st.composite
def mutated(draw):
    """A case of the corpus, or two, with some bytes changed, removed or repeated."""
    data = bytearray(draw(seeds) + draw(st.just(b"") | seeds))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data) - 1)) if data else 0
        kind = draw(st.integers(0, 3))
        if kind == 0:
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == 1:
            del data[at : at + draw(st.integers(1, 5))]
        elif kind == 2:
            data[at:at] = draw(st.sampled_from(ALPHABET))
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 30))]
    return bytes(data)


def answer_late(request) -> None:
    def finish(trailers) -> None:
        request.ended = True
        request.trailers = trailers
        request.answer(body=b"ok")

    if request.head.method == b"CONNECT":
        request.answer(403)
    elif request.head.body_length == 0:
        request.answer(body=b"ok")
    else:
        request.body_end = finish


def read(pieces):
    """What handler and client see of a delivery."""
    recorder = Recorder(answer_late)
    transport = deliver(H1Connection, pieces, recorder, LIMITS)
    seen = [
        (
            r.head.method,
            r.head.scheme,
            r.head.authority,
            r.head.path,
            tuple(r.head.headers),
            r.head.body_length,
            r.head.upgrade,
            r.payload,
            r.ended,
            r.trailers,
            r.is_gone,
        )
        for r in recorder.requests
    ]
    statuses = [part[:3] for part in transport.written.split(b"HTTP/1.1 ") if part[3:4] == b" "]
    return seen, statuses, transport.ended or transport.closed


@FAST
@given(data=streams | mutated() | st.binary(max_size=300), cuts=st.lists(st.integers(0, 800)))
@example(data=get(b"Connection: upgrade\r\nUpgrade: ws\r\n") + get(b""), cuts=[])
def test_the_cut_changes_nothing(data, cuts):
    edges = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    whole = read([data] if data else [])
    assert read([data[i : i + 1] for i in range(len(data))]) == whole
    assert read(pieces) == whole


@FAST
@given(data=mutated())
def test_nothing_is_read_after_a_refusal(data):
    poison = b"GET /poison HTTP/1.1\r\nHost: h\r\n\r\n"
    seen, statuses, closed = read([data])
    if closed:
        after, _, _ = read([data, poison])
        assert after == seen
    assert set(statuses) <= {b"200", b"403", b"400", b"414", b"417", b"431", b"501", b"505"}
