"""Content codings: what is asked for, what is decoded, and what is never touched."""

import gzip
import json
import statistics

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from edged.compress import (
    CodingError,
    accepted_codings,
    decoder,
    encoder,
    request_coding,
    response_decoder,
)
from edged.messages import RequestHead, ResponseHead
from policies.schema import Compression
from tests.harness import texts

ENCODE = {
    "gzip": gzip.compress,
    "br": brotli.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


def request(*fields, method=b"POST", length=5000, upgrade=None):
    return RequestHead(method, b"https", b"h", b"/", list(fields), length, upgrade=upgrade)


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
@given(body=st.binary(max_size=3000), cuts=st.lists(st.integers(1, 200), max_size=20))
def test_any_chunking_decodes_to_the_same_body(coding, body, cuts):
    coded = ENCODE[coding](body * 3)
    codec, out, at = decoder(coding), bytearray(), 0
    for cut in [*cuts, len(coded)]:
        for piece in codec.feed(coded[at : at + cut]):
            out += piece
        at += cut
    codec.finish()
    assert bytes(out) == body * 3


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
@pytest.mark.parametrize("lost", [1, 4, 12])
def test_a_truncated_body_is_an_error(coding, lost):
    coded = ENCODE[coding](bytes(range(256)) * 40)
    codec = decoder(coding)
    list(codec.feed(coded[:-lost]))
    with pytest.raises(CodingError):
        codec.finish()


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_a_corrupt_body_is_an_error(coding):
    with pytest.raises(CodingError):
        list(decoder(coding).feed(b"this is not a coded body at all" * 10))


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_an_event_can_be_decoded_as_soon_as_it_was_flushed(coding):
    if coding == "gzip":
        import zlib

        state = zlib.compressobj(6, zlib.DEFLATED, 31)
        part = state.compress(b"data: x\n\n") + state.flush(zlib.Z_SYNC_FLUSH)
    elif coding == "br":
        state = brotli.Compressor()
        part = state.process(b"data: x\n\n") + state.flush()
    else:
        state = zstandard.ZstdCompressor().compressobj()
        part = state.compress(b"data: x\n\n") + state.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    assert b"".join(decoder(coding).feed(part)) == b"data: x\n\n"


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_a_bomb_comes_out_in_small_pieces(coding):
    coded = ENCODE[coding](bytes(64 << 20))
    sizes = [len(piece) for piece in decoder(coding).feed(coded)]
    assert sum(sizes) == 64 << 20
    assert max(sizes) <= 4 << 20


def test_concatenated_members_and_frames_are_one_body():
    for coding in ("gzip", "zstd"):
        codec = decoder(coding)
        out = b"".join(codec.feed(ENCODE[coding](b"one") + ENCODE[coding](b"two")))
        codec.finish()
        assert out == b"onetwo"


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
@pytest.mark.parametrize("level", [1, 6, 11])
@pytest.mark.parametrize("size", [None, 10_000, 300])
def test_what_is_encoded_decodes(coding, level, size):
    body = b"the quick brown fox " * 500
    codec = encoder(coding, level, size)
    coded = codec.feed(body[:777]) + codec.feed(body[777:]) + codec.finish()
    assert len(coded) < len(body) / 5
    back = decoder(coding)
    assert b"".join(back.feed(coded)) == body
    back.finish()


def saved(coding, body):
    codec = encoder(coding, Compression().level, len(body))
    return 1 - len(codec.feed(body) + codec.finish()) / len(body)


@pytest.mark.parametrize("coding", ["br", "zstd"])
def test_what_the_default_level_saves(coding):
    """As docs/decisions/compression-level.md has it: less than that is a step back."""
    assert saved(coding, texts.api_json()) >= 0.93
    sources = [saved(coding, body) for body in texts.python_source()]
    assert statistics.median(sources) >= 0.73
    prose = texts.chinese_prose()
    assert saved(coding, prose) >= 0.55
    assert saved(coding, json.dumps(prose.decode()).encode()[: len(prose)]) >= 0.72


@pytest.mark.parametrize(
    ("value", "codings"),
    [
        (None, set()),
        (b"", set()),
        (b"gzip, deflate, br", {"gzip", "br"}),
        (b"GZIP;q=0.5 , zstd ; q=0", {"gzip"}),
        (b"*", {"gzip", "br", "zstd"}),
        (b"*;q=0, br", {"br"}),
        (b"identity", set()),
        (b"x-gzip", {"gzip"}),
        (b"gzip;q=nonsense", set()),
    ],
)
def test_accept_encoding(value, codings):
    assert accepted_codings(value) == codings


def test_a_response_the_client_can_decode_is_not_touched():
    head = ResponseHead(200, [(b"content-encoding", b"gzip"), (b"etag", b'"a"')], 10)
    assert response_decoder(head, frozenset({"gzip"})) is None
    assert head.body_length == 10
    assert (b"etag", b'"a"') in head.headers


def test_a_decoded_response_is_another_representation():
    head = ResponseHead(
        200, [(b"content-encoding", b"br"), (b"etag", b'"a"'), (b"content-type", b"x/y")], 10
    )
    assert response_decoder(head, frozenset({"gzip"})) is not None
    assert head.body_length is None
    assert head.headers == [(b"etag", b'W/"a"'), (b"content-type", b"x/y")]


@pytest.mark.parametrize(
    "head",
    [
        ResponseHead(206, [(b"content-encoding", b"br")], 10),
        ResponseHead(304, [(b"content-encoding", b"br")], 0),
        ResponseHead(200, [(b"content-encoding", b"br, gzip")], 10),
        ResponseHead(200, [(b"content-encoding", b"aes128gcm")], 10),
        ResponseHead(200, [], 10),
    ],
)
def test_responses_passed_as_they_are(head):
    fields = list(head.headers)
    assert response_decoder(head, frozenset()) is None
    assert head.headers == fields


def test_request_bodies_are_coded_for_endpoints_that_say_so():
    assert request_coding(request(), ("zstd", "gzip"), 1024) == "zstd"
    assert request_coding(request(), ("deflate", "gzip"), 1024) == "gzip"
    assert request_coding(request(length=None), ("br",), 1024) == "br"
    assert request_coding(request(), (), 1024) is None
    assert request_coding(request(length=1000), ("zstd",), 1024) is None


@pytest.mark.parametrize(
    "field",
    [
        (b"content-encoding", b"gzip"),
        (b"content-type", b"video/mp4"),
        (b"content-type", b"Application/ZIP"),
        (b"cache-control", b"no-transform"),
        (b"content-digest", b"sha-256=:x:"),
    ],
)
def test_request_bodies_that_stay_plain(field):
    assert request_coding(request(field), ("zstd",), 1024) is None


def test_json_with_a_charset_is_coded():
    field = (b"content-type", b"application/json; charset=utf-8")
    assert request_coding(request(field), ("zstd",), 1024) == "zstd"
