"""Fields and answers of edged's own."""

import json
from email.utils import parsedate_to_datetime

import pytest

from edged import headers
from edged.headers import error_response, has_passed, proxy_status


def test_request_ids_are_unique_and_short():
    ids = [headers.new_request_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert max(map(len, ids)) < 24


@pytest.mark.parametrize(
    ("version", "value"),
    [(b"1.0", b"1.0 bj-1"), (b"1.1", b"1.1 bj-1"), (b"2", b"2.0 bj-1"), (b"3", b"3.0 bj-1")],
)
def test_via_names_protocol_and_pseudonym(version, value):
    assert headers.via_value(version, b"bj-1") == value


@pytest.mark.parametrize(
    ("via", "passed"),
    [
        ([b"1.1 bj-1"], True),
        ([b"1.1 other, HTTP/2.0 bj-1 (comment)"], True),
        ([b"1.1 other", b"1.1 bj-1"], True),
        ([b"1.1 bj-10"], False),
        ([b"1.1 other (bj-1)"], False),
        ([b"bj-1"], False),
        ([], False),
    ],
)
def test_own_pseudonym_in_via_is_recognised(via, passed):
    assert has_passed([(b"via", value) for value in via], b"bj-1") is passed


def test_proxy_status_is_a_structured_field():
    assert proxy_status() == b"edged"
    assert (
        proxy_status(
            error="connection_timeout",
            line="cn2",
            endpoint="openai/sg",
            details='a "b" \\ \n\u00e9',
        )
        == b"edged; error=connection_timeout; "
        b'line="cn2"; endpoint="openai/sg"; details="a \\"b\\" \\\\ ??"'
    )


def test_date_is_an_imf_fixdate():
    value = headers.http_date()
    assert headers.http_date() is value or parsedate_to_datetime(value.decode())
    assert value.endswith(b" GMT")
    assert parsedate_to_datetime(value.decode()) is not None


def test_error_response_says_what_to_do():
    head, body = error_response(
        502,
        "no_line",
        "All lines are down.",
        "Run edged status.",
        request_id="abc-1",
        proxy_error="destination_unavailable",
        line="cn2",
        endpoint="openai/sg",
        fields=[(b"retry-after", b"5")],
    )
    assert json.loads(body) == {
        "error": {
            "code": "no_line",
            "message": "All lines are down.",
            "hint": "Run edged status.",
            "request_id": "abc-1",
        }
    }
    fields = dict(head.headers)
    assert (head.status, head.body_length) == (502, len(body))
    assert fields[b"content-type"] == b"application/json"
    assert fields[b"cache-control"] == b"no-store"
    assert fields[b"edged-request-id"] == b"abc-1"
    assert fields[b"retry-after"] == b"5"
    assert b"date" in fields
    assert fields[b"proxy-status"] == (
        b'edged; error=destination_unavailable; line="cn2"; endpoint="openai/sg"; details="no_line"'
    )


def test_error_response_makes_an_id_when_there_is_none():
    head, body = error_response(400, "x", "y")
    made = json.loads(body)["error"]["request_id"]
    assert made
    assert dict(head.headers)[b"edged-request-id"] == made.encode()
