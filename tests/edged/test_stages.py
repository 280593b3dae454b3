"""Access and Route, alone and together."""

import base64
import ipaddress
import json

import pytest

from edged.headers import ANSWERED
from edged.messages import RequestHead, header
from edged.routes import RouteEntry, RouteTable, split_authority
from edged.stages import Access, AccessRules, Route, forbidden_target, literal_address
from policies.model import Carrier

NODE = b"bj-1"
SINK = object()


class Client:
    """A responder that keeps what it is told."""

    def __init__(self, client="127.0.0.1:5"):
        self.client = client
        self.response = None
        self.payload = b""
        self.ended = False

    def head(self, head):
        self.response = head

    def data(self, data):
        self.payload += data

    def end(self, trailers=None):
        self.ended = True

    @property
    def code(self):
        return json.loads(self.payload)["error"]["code"]


class Next:
    """What stands behind a stage."""

    def __init__(self):
        self.calls = []

    def __call__(self, *args):
        self.calls.append(args)
        return SINK


class Known:
    def accepts(self, pair):
        return pair == b"me:secret"


def request(method=b"GET", authority=b"127.0.0.1:7070", path=b"/", headers=(), **more):
    return RequestHead(method, b"http", authority, path, list(headers), **more)


def explicit(authority, scheme=b"http", **more):
    return RequestHead(b"GET", scheme, authority, b"/x", [], absolute_form=True, **more)


def connect(authority):
    return RequestHead(b"CONNECT", b"", authority, b"", [])


def networks(*texts):
    return tuple(ipaddress.ip_network(text) for text in texts)


def ask(rules, head, client="127.0.0.1:5"):
    """The answer's status and error code, or ``None`` if it was passed on."""
    following, responder = Next(), Client(client)
    sink = Access(rules, following)(head, responder)
    if responder.response is None:
        assert sink is SINK
        assert following.calls == [(head, responder)]
        return None
    assert sink is ANSWERED
    assert responder.ended
    assert not following.calls
    assert header(responder.response.headers, b"proxy-status").startswith(b"edged; error=")
    return responder.response.status, responder.code


# Access.


@pytest.mark.parametrize(
    ("client", "allow", "passes"),
    [
        ("127.0.0.1:1", (), True),
        ("[::1]:1", (), True),
        ("[::ffff:127.0.0.1]:1", (), True),
        ("10.1.2.3:1", (), False),
        ("10.1.2.3:1", ("10.0.0.0/8",), True),
        ("[::ffff:10.1.2.3]:1", ("10.0.0.0/8",), True),
        ("11.1.2.3:1", ("10.0.0.0/8", "192.168.0.0/16"), False),
        ("127.0.0.1:1", ("10.0.0.0/8",), True),
        ("[fd00::1]:1", ("fd00::/8",), True),
        ("[fe80::1%eth0]:1", ("fe80::/10",), True),
        ("unknown", ("0.0.0.0/0", "::/0"), False),
    ],
)
def test_clients_are_allowed_by_network(client, allow, passes):
    answer = ask(AccessRules(NODE, networks(*allow)), request(), client)
    assert answer == (None if passes else (403, "client_not_allowed"))


def basic(pair):
    return (b"proxy-authorization", b"bAsIc " + base64.b64encode(pair))


@pytest.mark.parametrize(
    ("fields", "passes"),
    [
        ([basic(b"me:secret")], True),
        ([basic(b"me:wrong")], False),
        ([basic(b"me")], False),
        ([(b"proxy-authorization", b"Basic !!!")], False),
        ([(b"proxy-authorization", b"Bearer me:secret")], False),
        ([(b"authorization", basic(b"me:secret")[1])], False),
        ([], False),
    ],
)
def test_credentials(fields, passes):
    rules = AccessRules(NODE, credentials=Known())
    for client in ("127.0.0.1:1", "203.0.113.9:1"):
        proxied = explicit(b"api.example")
        proxied.headers = fields
        assert ask(rules, proxied, client) == (None if passes else (407, "credentials_missing"))
        plain = ask(rules, request(headers=fields), client)
        assert plain == (None if passes else (401, "credentials_missing"))


@pytest.mark.parametrize(
    ("head", "name"),
    [(explicit(b"h"), b"proxy-authenticate"), (request(), b"www-authenticate")],
)
def test_challenge_goes_with_the_status(head, name):
    responder = Client()
    Access(AccessRules(NODE, credentials=Known()), Next())(head, responder)
    assert header(responder.response.headers, name).startswith(b'Basic realm="edged"')


def test_allow_list_and_credentials_are_both_needed():
    rules = AccessRules(NODE, networks("10.0.0.0/8"), Known())
    good = request(headers=[basic(b"me:secret")])
    assert ask(rules, good, "10.0.0.1:1") is None
    assert ask(rules, good, "11.0.0.1:1") == (403, "client_not_allowed")
    assert ask(rules, request(), "10.0.0.1:1") == (401, "credentials_missing")


def test_loops_are_cut():
    rules = AccessRules(NODE)
    assert ask(rules, request(headers=[(b"via", b"1.1 x, 1.1 bj-1")])) == (508, "loop")
    assert ask(rules, request(headers=[(b"via", b"1.1 x")])) is None


def test_trace_is_not_served():
    assert ask(AccessRules(NODE), request(b"TRACE")) == (405, "method_not_allowed")


@pytest.mark.parametrize(
    "host",
    [
        b"169.254.169.254",
        b"169.254.1.1",
        b"2852039166",
        b"0xa9fea9fe",
        b"0xA9.0xFE.0xA9.0xFE",
        b"0251.0376.0251.0376",
        b"169.254.43518",
        b"169.16689662",
        b"[::ffff:169.254.169.254]",
        b"[::ffff:a9fe:a9fe]",
        b"[64:ff9b::a9fe:a9fe]",
        b"[fe80::1]",
        b"[fd00:ec2::254]",
        b"100.100.100.200",
        b"168.63.129.16",
        b"metadata.google.internal",
        b"METADATA.google.internal.",
        b"metadata",
        b"0.0.0.0",
        b"0",
        b"[::]",
        b"224.0.0.1",
    ],
)
def test_metadata_and_link_local_targets_are_refused_to_proxy_clients(host):
    rules = AccessRules(NODE)
    assert ask(rules, explicit(host)) == (403, "target_not_allowed")
    assert ask(rules, connect(host + b":80")) == (403, "target_not_allowed")
    assert ask(rules, request(authority=host)) is None  # no target in gateway mode


@pytest.mark.parametrize("host", [b"api.example", b"10.0.0.1", b"[2001:db8::1]", b"1.2.3.4.5"])
def test_other_targets_pass(host):
    assert ask(AccessRules(NODE), explicit(host)) is None


@pytest.mark.parametrize("host", [b"localhost", b"x.localhost", b"127.0.0.1", b"127.1", b"[::1]"])
def test_this_host_is_a_target_for_local_clients_only(host):
    rules = AccessRules(NODE, networks("10.0.0.0/8"))
    assert ask(rules, explicit(host)) is None
    assert ask(rules, explicit(host), "10.0.0.1:1") == (403, "target_not_allowed")


def test_literal_addresses():
    assert literal_address("2130706433") == "127.0.0.1"
    assert literal_address("api.example") is None
    assert literal_address("1.2.3.4.5") is None
    assert literal_address("999999999999") is None
    assert literal_address("::1") == "::1"
    assert literal_address(":::") is None
    assert forbidden_target("8.8.8.8", client_is_local=False) is None


def test_rules_are_replaced_at_once():
    following = Next()
    access = Access(AccessRules(NODE, networks("10.0.0.0/8")), following)
    for rules, count in ((access.rules, 1), (AccessRules(NODE), 1), (access.rules, 2)):
        access.rules = rules
        access(request(), Client("10.0.0.1:1"))
        assert len(following.calls) == count


def test_many_clients_do_not_fill_the_memory():
    access = Access(AccessRules(NODE), Next())
    for n in range(10_000):
        access(request(), Client(f"10.0.{n >> 8}.{n & 255}:1"))
    assert len(access._clients) <= 4096


# Route.

TABLE = RouteTable(
    [
        RouteEntry(
            "openai", ("api.openai.com", "*.openai.azure.com"), "/openai", frozenset({8443})
        ),
        RouteEntry("beta", ("*.com", "[::1]"), "/openai/beta"),
        RouteEntry("rest", ("Exact.Example",), "/"),
    ]
)


def route(head, table=TABLE, allowed=True):
    """(Routed, path) or (status, code)."""
    following, responder = Next(), Client()
    sink = Route(table, following, unlisted_allowed=allowed)(head, responder)
    if responder.response is not None:
        assert sink is ANSWERED
        return responder.response.status, responder.code
    assert sink is SINK
    ((routed, passed, _),) = following.calls
    assert passed is head
    return routed, head.path


@pytest.mark.parametrize(
    ("path", "upstream", "rewritten", "prefix"),
    [
        (b"/openai/v1/chat", "openai", b"/v1/chat", b"/openai"),
        (b"/openai", "openai", b"/", b"/openai"),
        (b"/openai/", "openai", b"/", b"/openai"),
        (b"/openai?a=/b", "openai", b"/?a=/b", b"/openai"),
        (b"/openai/?a", "openai", b"/?a", b"/openai"),
        (b"/openai//x", "openai", b"//x", b"/openai"),
        (b"/openai/beta/x?y", "beta", b"/x?y", b"/openai/beta"),
        (b"/openai/betamax", "openai", b"/betamax", b"/openai"),
        (b"/openaix/v1", "rest", b"/openaix/v1", b""),
        (b"/other", "rest", b"/other", b""),
        (b"/x?/openai/v1", "rest", b"/x?/openai/v1", b""),
        (b"/", "rest", b"/", b""),
        (b"/v1.5/..a/b..c/...", "rest", b"/v1.5/..a/b..c/...", b""),
        (b"/x?p=/../y", "rest", b"/x?p=/../y", b""),
    ],
)
def test_gateway_by_longest_prefix(path, upstream, rewritten, prefix):
    routed, got = route(request(path=path))
    assert (routed.upstream, got, routed.prefix) == (upstream, rewritten, prefix)
    assert routed.gateway
    assert routed.endpoint is None


@pytest.mark.parametrize(
    "path",
    [
        b"/openai/../secret",
        b"/openai/..",
        b"/openai/./x",
        b"/openai/%2e%2E/x",
        b"/openai/.%2e/x",
        b"/openai/a%2f..%2fx",
        b"/openai/..%2fx",
        b"/openai/..\\x",
        b"/openai/x/%2E",
        b"/../x",
    ],
)
def test_dot_segments_are_refused_behind_a_prefix(path):
    assert route(request(path=path)) == (400, "dot_segments")


def test_options_asterisk_goes_where_the_rest_goes():
    routed, path = route(request(b"OPTIONS", path=b"*"))
    assert (routed.upstream, path) == ("rest", b"*")


@pytest.mark.parametrize(
    ("host", "upstream"),
    [
        (b"api.openai.com", "openai"),
        (b"api.openai.com:7070", "openai"),
        (b"api.openai.com.", "openai"),
        (b"eu.openai.azure.com", "openai"),
        (b"a.b.openai.azure.com", "openai"),
        (b"openai.azure.com", "beta"),
        (b"exact.example", "rest"),
        (b"[::1]:7070", "beta"),
    ],
)
def test_gateway_by_host_leaves_the_path(host, upstream):
    routed, path = route(request(authority=host, path=b"/openai/v1"))
    assert (routed.upstream, path, routed.prefix) == (upstream, b"/openai/v1", b"")
    assert routed.gateway


def test_gateway_without_a_match_names_the_prefixes():
    table = RouteTable([RouteEntry("a", (), "/a"), RouteEntry("b", (), "/b")])
    responder = Client()
    Route(table, Next())(request(path=b"/c/d"), responder)
    assert responder.response.status == 404
    assert "/a, /b" in json.loads(responder.payload)["error"]["hint"]
    assert route(request(), RouteTable([])) == (404, "no_route")


@pytest.mark.parametrize(
    ("head", "upstream"),
    [
        (explicit(b"api.openai.com"), "openai"),
        (explicit(b"api.openai.com:443"), "openai"),
        (explicit(b"api.openai.com", b"https"), "openai"),
        (explicit(b"api.openai.com:8443", b"https"), "openai"),
        (connect(b"api.openai.com:443"), "openai"),
        (connect(b"eu.openai.azure.com:443"), "openai"),
        (connect(b"[::1]:443"), "beta"),
    ],
)
def test_explicit_proxy_by_target(head, upstream):
    routed, path = route(head)
    assert routed.upstream == upstream
    assert routed.endpoint is None
    assert not routed.gateway
    assert path == head.path


@pytest.mark.parametrize(
    ("head", "origin"),
    [
        (explicit(b"other.example"), ("http", "other.example", 80, (Carrier.H1,))),
        (explicit(b"other.example:81"), ("http", "other.example", 81, (Carrier.H1,))),
        (
            explicit(b"other.example", b"https"),
            ("https", "other.example", 443, (Carrier.H2, Carrier.H1)),
        ),
        (connect(b"api.openai.com:22"), ("https", "api.openai.com", 22, (Carrier.H2, Carrier.H1))),
        (connect(b"[2001:db8::1]:443"), ("https", "2001:db8::1", 443, (Carrier.H2, Carrier.H1))),
    ],
)
def test_unlisted_targets_get_an_endpoint_of_their_own(head, origin):
    routed, _ = route(head)
    endpoint = routed.endpoint
    assert routed.upstream == ""
    assert (endpoint.scheme, endpoint.host, endpoint.port, endpoint.protocols) == origin
    assert route(head)[0] is routed  # memoised
    assert route(head, allowed=False) == (403, "host_not_listed")


def test_unlisted_hosts_do_not_fill_the_memory():
    table = RouteTable([])
    for n in range(5000):
        table.unlisted("https", f"h{n}", 443)
    assert len(table._unlisted) <= 1024


def test_first_upstream_with_a_host_or_prefix_keeps_it():
    table = RouteTable([RouteEntry("a", ("h",), "/p"), RouteEntry("b", ("h",), "/p/")])
    assert route(request(path=b"/p/x"), table)[0].upstream == "a"
    assert route(connect(b"h:443"), table)[0].upstream == "a"


def test_table_is_replaced_at_once():
    following = Next()
    stage = Route(TABLE, following)
    stage.table = RouteTable([RouteEntry("new", (), "/")])
    stage(request(), Client())
    assert following.calls[0][0].upstream == "new"


def test_stages_compose():
    following = Next()
    handler = Access(AccessRules(NODE), Route(TABLE, following))
    assert handler(request(path=b"/openai/v1"), Client()) is SINK
    assert following.calls[0][0].upstream == "openai"
    assert handler(request(), Client("203.0.113.1:1")) is ANSWERED


@pytest.mark.parametrize(
    ("authority", "split"),
    [
        (b"h", ("h", 80)),
        (b"H.x.:8", ("h.x", 8)),
        (b"h:", ("h", 80)),
        (b"[::1]", ("::1", 80)),
        (b"[::1]:9", ("::1", 9)),
        (b"", ("", 80)),
    ],
)
def test_split_authority(authority, split):
    assert split_authority(authority, 80) == split


# What is remembered changes how fast requests pass, and nothing else.


def twice(access, head, client="127.0.0.1:5"):
    """The codes of the first and the second answer, ``None`` where it was passed on."""
    responders = [Client(client), Client(client)]
    for responder in responders:
        access(head, responder)
    return [None if r.response is None else r.code for r in responders]


def indexed(method=b"GET", headers=(), **more):
    return request(method, headers=headers, first=dict(headers), **more)


def test_known_client_is_still_asked_what_each_request_must_answer():
    access = Access(AccessRules(NODE), Next())
    assert twice(access, indexed()) == [None, None]
    assert twice(access, indexed(b"TRACE")) == ["method_not_allowed"] * 2
    assert twice(access, indexed(headers=[(b"via", b"1.1 bj-1")])) == ["loop"] * 2
    assert twice(access, request(headers=[(b"via", b"1.1 bj-1")])) == ["loop"] * 2
    assert twice(access, explicit(b"169.254.169.254", first={})) == ["target_not_allowed"] * 2
    assert twice(access, indexed(), "192.0.2.1:5") == ["client_not_allowed"] * 2


def test_known_client_is_judged_anew_by_other_rules():
    access = Access(AccessRules(NODE, networks("192.0.2.0/24")), Next())
    assert twice(access, indexed(), "192.0.2.1:5") == [None, None]
    access.rules = AccessRules(NODE)
    assert twice(access, indexed(), "192.0.2.1:5") == ["client_not_allowed"] * 2


def test_credentials_are_asked_for_with_every_request():
    access = Access(AccessRules(NODE, credentials=Known()), Next())
    good = [(b"proxy-authorization", b"Basic " + base64.b64encode(b"me:secret"))]
    assert twice(access, indexed(headers=good)) == [None, None]
    assert twice(access, indexed()) == ["credentials_missing"] * 2


def test_known_ways_are_those_first_found():
    following = Next()
    table = RouteTable([RouteEntry("a", ("a.example",)), RouteEntry("b", prefix="/b")])
    route = Route(table, following)
    for _ in range(2):
        for authority, path in (
            (b"a.example", b"/b/x"),
            (b"edged", b"/b/x"),
            (b"edged", b"/b/x?y"),
        ):
            route(request(authority=authority, path=path), Client())
        refused, unknown = Client(), Client()
        route(request(path=b"/b/../x"), refused)
        route(request(path=b"/c"), unknown)
        assert (refused.code, unknown.code) == ("dot_segments", "no_route")
    went = [(routed.upstream, head.path) for routed, head, _ in following.calls]
    assert went == [("a", b"/b/x"), ("b", b"/x"), ("b", b"/x?y")] * 2
    route(explicit(b"edged"), Client())
    assert not following.calls[-1][0].gateway


def test_memos_are_bounded():
    access = Access(AccessRules(NODE), Next())
    table = RouteTable([RouteEntry("all", prefix="/")])
    route = Route(table, Next())
    for n in range(5000):
        access(indexed(), Client(f"127.0.0.1:{n}"))
        route(request(path=b"/%d" % n), Client())
    assert 0 < len(access._free) <= 4096
    assert 0 < len(table.ways) <= 1024
