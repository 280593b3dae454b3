"""Inner messages survive being outer ones, whatever fields they have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.messages import RequestHead, ResponseHead
from edged.relay import wire

NAMES = st.sampled_from(
    [
        b"accept",
        b"x-a",
        b"edged-target",
        b"edged-offset",
        b"edged-inner-x",
        b"edged-inner-edged-ack",
        b"edged-request-id",
        b"edged-unprocessed",
        b"upload-offset",
        b"upload-complete",
        b"proxy-authorization",
        b"authorization",
        b"via",
    ]
)
FIELDS = st.lists(st.tuples(NAMES, st.sampled_from([b"1", b"?1", b"x y"])), max_size=6)


@given(
    FIELDS,
    st.sampled_from([b"GET", b"POST", b"DELETE"]),
    st.sampled_from([b"/", b"/a/b?c=d&e=%20", b"/?q"]),
    st.sampled_from([b"api.example.com", b"api.example.com:8443", b"[2001:db8::1]:99"]),
    st.sampled_from([None, 0, 17]),
)
def test_requests_arrive_as_they_were(fields, method, path, authority, length):
    inner = RequestHead(method, b"https", authority, path, fields, length)
    _, outer = wire.outer_request(inner, b"token")
    said, rest = wire.control(outer)
    post = RequestHead(b"POST", b"https", b"relay", b"/x", outer, length)
    found = wire.inner_request(post, said, rest)
    assert (found.method, found.scheme, found.authority) == (method, b"https", authority)
    assert (found.path, found.headers, found.body_length) == (path, fields, length)


def test_connect_and_upgrade_arrive_as_they_were():
    inner = RequestHead(b"CONNECT", b"", b"h:22", b"", [])
    said, rest = wire.control(wire.outer_request(inner)[1])
    found = wire.inner_request(RequestHead(b"POST", b"", b"", b"", [], None), said, rest)
    assert (found.method, found.authority, found.path) == (b"CONNECT", b"h:22", b"")
    inner = RequestHead(b"GET", b"https", b"h", b"/ws", [(b"a", b"b")], upgrade=b"websocket")
    said, rest = wire.control(wire.outer_request(inner)[1])
    found = wire.inner_request(RequestHead(b"POST", b"", b"", b"", [], None), said, rest)
    assert (found.method, found.upgrade, found.body_length) == (b"GET", b"websocket", 0)


@given(
    FIELDS,
    st.sampled_from([200, 204, 304, 404, 502]),
    st.sampled_from([(None, None), (0, None), (0, 100), (100, None)]),
    st.integers(0, 100),
    st.booleans(),
)
def test_responses_arrive_as_they_were(fields, status, lengths, offset, unprocessed):
    length, declared = lengths
    inner = ResponseHead(status, fields, length, declared_length=declared)
    if length is not None:
        offset = min(offset, length)
    outer = wire.outer_response(inner, offset, unprocessed=unprocessed)
    found, at, coded = wire.inner_response(outer)
    assert (at, coded) == (offset, False)
    assert (found.status, found.headers, found.body_length) == (status, fields, length)
    assert found.declared_length == declared
    assert ((wire.UNPROCESSED, wire.TRUE) in outer.headers) is unprocessed


def test_a_switch_of_protocols_arrives_as_one():
    inner = ResponseHead(101, [(b"upgrade", b"websocket"), (b"sec-websocket-accept", b"x")], 0)
    outer = wire.outer_response(inner, 0)
    assert (outer.status, outer.body_length) == (200, None)
    found = wire.inner_response(outer).head
    assert found.status == 101
    assert sorted(found.headers) == sorted(inner.headers)


def test_the_relays_own_answers_are_told_apart():
    assert wire.inner_response(ResponseHead(409, [(b"upload-offset", b"5")], 0)) is None


def test_ids_and_paths():
    flow = bytes(range(16))
    path = wire.flow_path(flow)
    assert path == b"/.well-known/edged/flow/000102030405060708090a0b0c0d0e0f"
    assert wire.flow_id(path) == flow
    for wrong in (path[:-1], path + b"0", path.upper(), path[:-1] + b"g", path[:-1] + b"\n"):
        assert wire.flow_id(wrong) is None


def test_urls_lead_somewhere():
    assert wire.host_and_port(b"https://A.example") == ("a.example", 443)
    assert wire.host_and_port(b"http://a.example/x") == ("a.example", 80)
    assert wire.host_and_port(b"https://[::1]:8/") == ("::1", 8)
    with pytest.raises(wire.BadFlow):
        wire.host_and_port(b"a.example")
