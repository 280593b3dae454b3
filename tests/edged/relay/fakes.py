"""A client's requests and an origin's exchange that record what flows tell them."""

from edged.messages import ResponseHead
from edged.relay.flow import Flow
from edged.relay.flows import ClientLimits, FlowLimits, Flows
from edged.relay.upload import Upload
from edged.relay.visit import Visit


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class FakeResponder:
    """One request's connection: what it was sent, and whether it has room."""

    client = "c:1"

    def __init__(self, room=1 << 60):
        self.room = room
        self.visit = None
        self.status = None
        self.headers = {}
        self.interim = []
        self.received = b""
        self.ended = None
        self.trailers = None
        self.paused = False
        self.continues = 0

    def informational(self, status, headers):
        assert self.status is None
        self.interim.append(status)

    def head(self, head):
        assert self.status is None
        self.status = head.status
        self.headers = dict(head.headers)
        self.length = head.body_length

    def data(self, data):
        assert self.status is not None
        assert self.ended is None
        assert data
        self.received += data
        self.room -= len(data)
        if self.room <= 0 and self.visit is not None:
            self.visit.pause_response()

    def end(self, trailers=None):
        assert self.ended is None
        self.ended = "end"
        self.trailers = trailers

    def abort(self):
        assert self.ended is None
        self.ended = "abort"

    def pause_body(self):
        self.paused = True

    def resume_body(self):
        self.paused = False
        self.continues += 1


class FakeSink:
    """The inner exchange."""

    def __init__(self):
        self.received = b""
        self.ends = 0
        self.trailers = None
        self.left = False
        self.paused = False
        self.flow = None
        self.echo = False

    def body(self, data):
        assert not self.ends
        self.received += data

    def body_end(self, trailers):
        self.ends += 1
        self.trailers = trailers

    def gone(self):
        assert not self.left
        self.left = True

    def pause_response(self):
        assert not self.paused
        self.paused = True

    def resume_response(self):
        assert self.paused
        self.paused = False


def flows(clock=None, **limits):
    return Flows(clock or Clock(), at_once, FlowLimits(**limits))


def at_once(call):
    """The next turn of the loop."""
    call()


def client(house, name="t", **limits):
    return house.ledger(name, ClientLimits(**limits))


def open_flow(house, ledger, number=1, length=None, **options):
    """A flow whose exchange has begun."""
    flow = Flow(house, ledger, number.to_bytes(16, "big"), Upload(length), **options)
    house.add(flow)
    sink = FakeSink()
    flow.begin(sink)
    return flow, sink


def visit(flow, offset=0, at=None, last=True, room=1 << 60):
    """A request about ``flow``; its responder."""
    responder = FakeResponder(room)
    responder.visit = Visit(flow, responder, offset=offset, at=at, last=last)
    flow.join(responder.visit)
    return responder


def ok(length=None, **headers):
    return ResponseHead(200, [(k.encode(), v.encode()) for k, v in headers.items()], length)
