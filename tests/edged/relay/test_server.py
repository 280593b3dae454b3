"""The relay's door in virtual time: who is let in, and what each request about a flow does."""

import hashlib

import pytest

from edged.headers import answer, error_response
from edged.messages import RequestHead, ResponseHead
from edged.relay.flows import ClientLimits, FlowLimits, Flows
from edged.relay.server import Relay
from edged.relay.targets import AllowList, parse
from edged.relay.tokens import Client, Register

from .fakes import Clock, FakeResponder, FakeSink, at_once, ok

A, B = "a" * 32, "b" * 32
TARGET = ("edged-target", "https://api.example.com/v1?x=1")


def make_client(name="one", token="token-one", allow=("api.example.com",), **limits):
    digest = hashlib.sha256(token.encode()).digest()
    return Client(
        name,
        frozenset([digest]),
        frozenset(),
        AllowList(map(parse, allow)),
        ClientLimits(**limits),
    )


class Handle:
    """A timer."""

    def __init__(self):
        self.cancelled = False

    def cancel(self):
        self.cancelled = True


class House:
    """A relay with fake exchanges and a clock of its own."""

    instance = "boot-1"
    draining = False

    def __init__(self, *clients, **limits):
        self.clock = Clock()
        self.flows = Flows(self.clock, at_once, FlowLimits(**limits))
        self.inner = []
        self.on_open = None
        self.timers = []
        self.relay = Relay(
            Register(clients or [make_client(), make_client("two", "token-two")]),
            self.flows,
            self,
            self.proceed,
            pseudonym=b"hk-1",
            later=self.later,
        )

    def proceed(self, head, responder):
        sink = FakeSink()
        sink.head, sink.responder = head, responder
        self.inner.append(sink)
        if self.on_open:
            self.on_open(head, responder)
        return sink

    def later(self, delay_s, call):
        handle = Handle()
        self.timers.append((self.clock.now + delay_s, call, handle))
        return handle

    def load(self):
        load = {"flows": self.flows.count}
        return load | {"draining": True} if self.draining else load

    def far(self, host, port):
        return [{"endpoint": f"{host}:{port}", "rtt_ms": 9.0}]

    def pass_time(self, seconds):
        end = self.clock.now + seconds
        while True:
            due = [t for t in self.timers if t[0] <= end and not t[2].cancelled]
            if not due:
                break
            timer = min(due, key=lambda t: t[0])
            self.timers.remove(timer)
            self.clock.now = timer[0]
            timer[1]()
        self.clock.now = end
        self.flows.tick(end)

    def ask(self, method, path, *headers, token="token-one", body=None, length=..., early=False):
        """Send a request; its responder. ``body=None`` leaves an announced body to come."""
        fields = [(n.encode(), v.encode()) for n, v in headers]
        if token:
            fields.append((b"proxy-authorization", b"Bearer " + token.encode()))
        size = len(body or b"") if length is ... else length
        head = RequestHead(method.encode(), b"https", b"relay", path.encode(), fields, size)
        head.early = early
        responder = FakeResponder()
        responder.certificate = None
        responder.visit = sink = self.relay(head, responder)
        responder.sink = sink
        if body:
            sink.body(body)
            sink.body_end(None)
        return responder

    def flow(self, method, *headers, flow_id=A, **options):
        return self.ask(method, f"/.well-known/edged/flow/{flow_id}", *headers, **options)


def test_a_post_opens_a_flow_for_the_inner_request():
    house = House()
    reader = house.flow(
        "POST",
        TARGET,
        ("edged-method", "PUT"),
        ("authorization", "Bearer inner"),
        ("edged-inner-upload-offset", "7"),
        ("x", "y"),
        body=b"hello",
    )
    (inner,) = house.inner
    head = inner.head
    assert (head.method, head.scheme, head.authority) == (b"PUT", b"https", b"api.example.com")
    assert (head.path, head.body_length, head.absolute_form) == (b"/v1?x=1", 5, True)
    assert head.headers == [
        (b"authorization", b"Bearer inner"),
        (b"upload-offset", b"7"),
        (b"x", b"y"),
    ]
    assert (inner.received, inner.ends) == (b"hello", 1)
    inner.responder.head(ok(2, upload_offset="1"))
    inner.responder.data(b"ok")
    inner.responder.end()
    assert (reader.status, reader.received, reader.ended) == (200, b"ok", "end")
    assert reader.headers[b"edged-offset"] == b"0"


def test_a_second_post_joins():
    house = House()
    first = house.flow("POST", TARGET, length=10)
    first.sink.body(b"01234")
    second = house.flow("POST", TARGET, length=10)
    second.sink.body(b"0123456789")
    second.sink.body_end(None)
    assert len(house.inner) == 1
    assert house.relay.joined == 1
    assert house.inner[0].received == b"0123456789"
    house.inner[0].responder.head(ok(1))
    house.inner[0].responder.data(b"x")
    house.inner[0].responder.end()
    assert first.received == second.received == b"x"
    late = house.flow("POST", TARGET, ("upload-offset", "5"), length=5)
    assert (late.received, late.ended) == (b"x", "end")
    assert len(house.inner) == 1


def test_reading_on_from_an_offset():
    house = House()
    first = house.flow("POST", TARGET)
    flow = house.inner[0].responder
    flow.head(ok(6))
    flow.data(b"abc")
    first.sink.gone()
    again = house.flow("GET", ("edged-offset", "2"))
    flow.data(b"def")
    flow.end()
    assert (again.status, again.length, again.received) == (200, 4, b"cdef")
    too_far = house.flow("GET", ("edged-offset", "7"))
    assert too_far.status == 416
    assert too_far.headers[b"edged-kept"] == b"0-6"
    assert b"edged-offset" not in too_far.headers


def test_acknowledged_bytes_are_gone_and_not_missed():
    """What was acknowledged over a faster line while a request was under way is not wanted."""
    house = House()
    house.flow("POST", TARGET, ("edged-ack", "0"))
    flow = house.inner[0].responder
    flow.head(ok())
    flow.data(b"abcdef")
    assert house.flow("GET", ("edged-ack", "3"), ("edged-offset", "3")).received == b"def"
    overtaken = house.flow("GET", ("edged-offset", "2"))
    assert (overtaken.received, overtaken.headers[b"edged-offset"]) == (b"def", b"3")
    # To read from an offset is to have all before it.
    assert house.flow("GET", ("edged-offset", "5")).received == b"f"
    overtaken = house.flow("POST", ("edged-offset", "4"))
    assert (overtaken.received, overtaken.headers[b"edged-offset"]) == (b"f", b"5")


def test_what_is_left_comes_over_one_visit_instead_of_others():
    house = House()
    first = house.flow("POST", TARGET)
    flow = house.inner[0].responder
    flow.head(ok(6))
    flow.data(b"abc")
    second = house.flow("GET", ("edged-offset", "1"), ("edged-instead", "?1"))
    assert (second.headers[b"edged-offset"], second.length) == (b"3", 3)
    flow.data(b"def")
    flow.end()
    assert (first.received, first.ended) == (b"abc", None)
    assert (second.received, second.ended) == (b"def", "end")
    # Should what was on its way over the first be lost, it is there still.
    assert house.flow("GET", ("edged-offset", "1")).received == b"bcdef"
    first.sink.gone()


def test_what_is_left_begins_where_the_slowest_of_others_ends():
    """A visit that is further may be one that its client has given up."""
    house = House()
    slow = house.flow("POST", TARGET)
    slow.sink.pause_response()
    flow = house.inner[0].responder
    flow.head(ok(6))
    flow.data(b"abc")
    given_up = house.flow("GET", ("edged-offset", "0"))
    assert (slow.received, given_up.received) == (b"", b"abc")
    rest = house.flow("GET", ("edged-offset", "0"), ("edged-instead", "?1"))
    assert rest.received == b"abc"


def test_uploads_resume_from_the_offset_that_head_tells():
    house = House()
    first = house.flow("POST", TARGET, length=10)
    first.sink.body(b"0123")
    first.sink.gone()
    told = house.flow("HEAD")
    assert told.status == 204
    assert told.headers[b"upload-offset"] == b"4"
    assert told.headers[b"upload-complete"] == b"?0"
    gap = house.flow("PATCH", ("upload-offset", "5"), body=b"56789")
    assert gap.status == 409
    assert gap.headers[b"upload-offset"] == b"4"
    wrong = house.flow("PATCH", ("upload-offset", "4"), body=b"456")
    assert wrong.status == 400
    rest = house.flow("PATCH", ("upload-offset", "3"), body=b"3456789")
    assert rest.status == 204
    assert rest.headers[b"upload-offset"] == b"10"
    assert (house.inner[0].received, house.inner[0].ends) == (b"0123456789", 1)
    again = house.flow("PATCH", ("upload-offset", "3"), body=b"3456789")
    assert again.status == 204
    assert house.inner[0].ends == 1


def test_a_body_in_parts():
    house = House()
    house.flow("POST", TARGET, ("upload-complete", "?0"), ("upload-length", "6"), body=b"ab")
    assert house.inner[0].head.body_length == 6
    house.flow("PATCH", ("upload-offset", "2"), ("upload-complete", "?0"), body=b"cd")
    assert house.inner[0].ends == 0
    house.flow("PATCH", ("upload-offset", "4"), body=b"ef")
    assert (house.inner[0].received, house.inner[0].ends) == (b"abcdef", 1)


def test_an_empty_last_part_ends_the_body():
    house = House()
    house.flow("POST", TARGET, ("upload-complete", "?0"), body=b"ab")
    assert house.inner[0].head.body_length is None
    done = house.flow("PATCH", ("upload-offset", "2"))
    assert (done.status, house.inner[0].ends) == (204, 1)


def test_delete_cancels_and_the_id_is_used_up():
    house = House()
    reader = house.flow("POST", TARGET)
    assert house.flow("DELETE").status == 204
    assert house.inner[0].left
    assert reader.ended == "abort"
    for method in ("GET", "HEAD", "PATCH", "POST"):
        assert house.flow(method, TARGET).status == 410
    assert len(house.inner) == 1


def test_a_delete_that_overtakes_its_post_wins():
    house = House()
    assert house.flow("DELETE").status == 204
    assert house.flow("POST", TARGET).status == 410
    assert house.inner == []


def test_an_id_is_not_executed_again_while_it_is_remembered():
    house = House()
    house.flow("POST", TARGET).sink.gone()
    house.pass_time(31)
    assert house.inner[0].left
    assert house.flow("POST", TARGET).status == 410
    assert house.flow("GET").status == 410
    house.pass_time(121)
    assert house.flow("GET").status == 404


def test_only_what_begins_at_the_beginning_opens_a_flow():
    house = House()
    assert house.flow("POST", TARGET, ("upload-offset", "5"), body=b"x").status == 404
    assert house.flow("POST", TARGET, ("edged-offset", "5")).status == 404
    assert house.flow("GET").status == 404
    assert house.inner == []


def test_early_data_may_join_but_never_open():
    house = House()
    assert house.flow("POST", TARGET, early=True).status == 425
    assert house.inner == []
    house.flow("POST", TARGET)
    house.inner[0].responder.head(ok())
    house.inner[0].responder.data(b"x")
    assert house.flow("POST", TARGET, early=True).received == b"x"
    assert house.flow("GET", early=True).received == b"x"
    assert len(house.inner) == 1
    house.flow("DELETE")
    assert house.flow("POST", TARGET, early=True).status == 410


def test_connect_and_upgrades_are_opaque():
    house = House(make_client(allow=("api.example.com:*",)))
    both = house.flow(
        "POST", ("edged-target", "api.example.com:22"), ("edged-method", "CONNECT"), length=None
    )
    (inner,) = house.inner
    assert (inner.head.method, inner.head.authority) == (b"CONNECT", b"api.example.com:22")
    both.sink.body(b"early")
    assert inner.received == b"early"
    inner.responder.head(ok())
    inner.responder.data(b"hi")
    assert both.received == b"hi"
    both = house.flow(
        "POST",
        TARGET,
        ("edged-method", "GET"),
        ("edged-upgrade", "websocket"),
        ("sec-websocket-key", "k"),
        length=None,
        flow_id=B,
    )
    inner = house.inner[1]
    assert (inner.head.upgrade, inner.head.body_length) == (b"websocket", 0)
    both.sink.body(b"frame")
    assert inner.received == b""
    inner.responder.head(ResponseHead(101, []))
    assert inner.received == b"frame"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("edged-target", "ftp://api.example.com/")],
        [("edged-target", "https://user@api.example.com/")],
        [("edged-target", "https:///x")],
        [("edged-target", "https://api.example.com/ x")],
        [("edged-target", "https://api.example.com/#x")],
        [("edged-target", "api.example.com"), ("edged-method", "CONNECT")],
        [("edged-target", "https://api.example.com"), ("edged-method", "CONNECT")],
        [TARGET, ("edged-target", "https://other.example.com/")],
        [TARGET, ("edged-method", "G T")],
        [TARGET, ("edged-method", "TRACE")],
        [TARGET, ("edged-upgrade", "a b")],
        [TARGET, ("upload-offset", "-1")],
        [TARGET, ("upload-offset", "1e3")],
        [TARGET, ("upload-complete", "yes")],
        [TARGET, ("upload-length", "5"), ("content-type", "x")],
        [TARGET, ("edged-inner-transfer-encoding", "chunked")],
        [TARGET, ("edged-inner-host", "evil")],
        [TARGET, ("edged-ack", "x")],
    ],
)
def test_what_cannot_be_understood_is_refused(headers):
    house = House()
    assert house.flow("POST", *headers, body=b"123").status == 400
    assert house.inner == []
    assert house.flows.count == 0


def test_a_relays_own_answer_is_a_response_like_any_other():
    house = House()

    def fail(head, flow):
        flow.unprocessed = True
        answer(flow, error_response(502, "x", "y", proxy_error="connection_refused"))

    house.on_open = fail
    reader = house.flow("POST", TARGET, body=b"hello")
    assert (reader.status, reader.ended) == (502, "end")
    assert reader.headers[b"edged-unprocessed"] == b"?1"
    assert reader.headers[b"edged-offset"] == b"0"
    assert house.flow("GET").status == 502


def test_an_origin_cannot_speak_for_the_relay():
    house = House()
    reader = house.flow("POST", TARGET)
    house.inner[0].responder.head(
        ResponseHead(502, [(b"edged-unprocessed", b"?1"), (b"edged-offset", b"99")], 0)
    )
    assert b"edged-unprocessed" not in reader.headers
    assert reader.headers[b"edged-offset"] == b"0"
    assert reader.headers[b"edged-inner-edged-offset"] == b"99"
