"""The chunked coding by its short ways and its long one: the same body, the same defects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.chunked import ChunkedDecoder
from edged.downstream.limits import Limits

PIECES = [
    b"1\r\na\r\n",
    b"0a\r\n0123456789\r\n",
    b"C\r\n\r\n0\r\n\r\nabcde\r\n",
    b"3;ext=1\r\nabc\r\n",
    b"1;x=" + b"y" * 900 + b"\r\nz\r\n",
    b"5\r\nab",
    b"0\r\n\r\n",
    b"0\r\nx: y\r\n\r\n",
    b"\r\n",
    b"2\r\nabc\r\n",
    b"-1\r\na\r\n",
    b"0x1\r\na\r\n",
    b"1 \r\na\r\n",
    b"1_0\r\n0123456789abcdef\r\n",
    b"1\na\r\n",
]


def decoded(pieces, *, short):
    decoder = ChunkedDecoder(Limits())
    body = b""
    rest = b""
    for piece in pieces:
        if decoder.done:
            rest += piece
        elif decoder.failed is None:
            if short and (part := decoder.whole(piece)):
                body += part
                continue
            part, after = decoder.feed(piece)
            body += part
            rest += after
    return body, rest, decoder.done, decoder.failed and decoder.failed.code, decoder.trailers


@given(st.lists(st.sampled_from(PIECES), max_size=6), st.lists(st.integers(0, 2000), max_size=6))
def test_short_ways_come_to_what_single_bytes_come_to(pieces, places):
    data = b"".join(pieces)
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    cut = [data[a:b] for a, b in zip([0, *ends], ends, strict=False) if a < b]
    expected = decoded([data[i : i + 1] for i in range(len(data))], short=False)
    for short in (False, True):
        assert decoded(pieces, short=short) == expected
        assert decoded(cut, short=short) == expected


@pytest.mark.parametrize("first", [b"", b"5\r\nab", b"5"], ids=["boundary", "body", "size"])
def test_a_whole_chunk_is_one_only_at_a_boundary(first):
    decoder = ChunkedDecoder(Limits())
    decoder.feed(first)
    assert decoder.whole(b"3\r\nabc\r\n") == (b"" if first else b"abc")


def test_framing_that_outweighs_its_body_is_refused_across_short_ways():
    heavy = b"1;x=" + b"y" * 900 + b"\r\nz\r\n"
    light = b"8\r\nabcdefgh\r\n"
    body, _, done, failed, _ = decoded([heavy, light, light] * 200, short=True)
    assert (done, failed) == (False, "bad_chunk")
    assert body
