"""What a request's fields ask of edged."""

import pytest

from edged.preferences import read


def test_nothing_is_asked_by_an_empty_head():
    assert read([]) == ([], None, False, False, False)


def test_what_is_not_read_is_forwarded_in_order():
    headers = [(b"x-a", b"1"), (b"authorization", b"B"), (b"x-a", b"2"), (b"via", b"1.1 c")]
    assert read(headers).forwarded == headers


def test_credentials_for_this_proxy_and_the_clients_codings_are_not_forwarded():
    headers = [(b"proxy-authorization", b"Basic x"), (b"accept-encoding", b"gzip"), (b"a", b"b")]
    preferences = read(headers)
    assert preferences.forwarded == [(b"a", b"b")]
    assert preferences.accept_encoding == b"gzip"


def test_field_lines_of_one_name_are_one_list():
    assert read([(b"accept-encoding", b"gzip"), (b"accept-encoding", b"br")]).accept_encoding == (
        b"gzip,br"
    )


@pytest.mark.parametrize(
    "field",
    [(b"cache-control", b"No-Transform"), (b"range", b"bytes=0-1"), (b"if-range", b'"a"')],
)
def test_one_representation_is_meant(field):
    preferences = read([field])
    assert preferences.one_representation
    assert preferences.forwarded == [field]


def test_other_cache_control_means_nothing():
    assert not read([(b"cache-control", b"no-cache")]).one_representation


def test_streaming_and_idempotency():
    headers = [(b"accept", b"text/event-stream"), (b"idempotency-key", b"k")]
    preferences = read(headers)
    assert preferences.streaming
    assert preferences.idempotency_key
    assert preferences.forwarded == headers
    assert not read([(b"accept", b"application/json")]).streaming
