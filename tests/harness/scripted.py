"""A scripted upstream side and a recording client, for playbooks of one exchange."""

import uvloop

from edged.exchanges import Exchanges
from edged.messages import RequestHead, ResponseHead
from edged.routes import Routed
from policies.model import (
    Breaker,
    Candidate,
    Carrier,
    Endpoint,
    Estimate,
    Failure,
    Line,
    Outcome,
    Path,
    PathState,
    Ranking,
    Snapshot,
    Verdict,
)
from policies.schema import Policy


def make_path(line, endpoint="e1", **extra):
    fields = {"scheme": "https", "host": f"{endpoint}.example", "port": 443, **extra}
    return Path(Line(line), Endpoint("up", endpoint, **fields))


class Table:
    """As much of a PathTable as exchanges use; the order of paths is the test's."""

    def __init__(self, paths, ttfb_p95_s=None, rtt_s=0.05):
        self.samples, self.in_flight, self.usage, self.silent = [], {}, {}, {}
        self.ttfb_p95_s, self.rtt_s = ttfb_p95_s, rtt_s
        self.order(paths)

    def order(self, paths, last_resorts=0):
        states = [
            PathState(
                path=path,
                verdict=Verdict.UP,
                breaker=Breaker.CLOSED,
                ejected_until=None,
                estimate=Estimate(rtt_s=self.rtt_s),
                distance_km=None,
                ttfb_p95_s=self.ttfb_p95_s,
                warm=None,
                in_flight=0,
                limit=None,
            )
            for path in paths
        ]
        known = dict(getattr(self, "snapshot", Snapshot(0, 0, {}, {})).paths)
        known.update({s.path.name: s for s in states})
        self.snapshot = Snapshot(0.0, 1, known, {"up": tuple(s.path.name for s in states)})
        fit = len(states) - last_resorts
        order = tuple(
            Candidate(state, 1.0, (), "" if number < fit else "down")
            for number, state in enumerate(states)
        )
        self._order, self._rankings = order, {}

    def ranking(self, upstream, request_class):
        if request_class not in self._rankings:
            ranking = Ranking(upstream, request_class, self._order, "the test said so")
            self._rankings[request_class] = ranking
        return self._rankings[request_class]

    peek = ranking

    def observe(self, sample, now):
        self.samples.append(sample)

    def silent_since(self, path):
        return self.silent.get(path)

    def answered(self, path, answers, now):
        self.held = [*getattr(self, "held", []), *answers]

    def set_line_usage(self, line, used_bps):
        self.usage[line] = used_bps

    def started(self, path):
        self.in_flight[path] = self.in_flight.get(path, 0) + 1
        return self.in_flight[path]

    def finished(self, path):
        self.in_flight[path] -= 1


class Stream:
    carrier = Carrier.H2
    reused = False

    def __init__(self, path, events):
        self.path, self.events = path, events
        self.head = None
        self.body = bytearray()
        self.ended = self.cancelled = self.paused = False
        self.trailers = None

    def send_head(self, head, *, end):
        self.head, self.ended = head, end

    def send_data(self, data):
        assert not self.ended
        assert not self.cancelled
        self.body += data

    def send_end(self, trailers=None):
        assert not self.ended
        self.ended, self.trailers = True, trailers

    def cancel(self):
        self.cancelled = True

    def pause_reading(self):
        self.paused = True

    def resume_reading(self):
        self.paused = False

    # what the test plays
    def answer(self, status=200, headers=(), length=None, body=None):
        if status == 101:
            self.ended = False  # raw bytes both ways from here on
        self.events.head(ResponseHead(status, list(headers), length))
        if body is not None:
            self.events.data(body)
            self.events.end(None)

    def fail(self, outcome=Outcome.RESET, detail="it broke", **kw):
        self.events.failed(Failure(outcome, detail, **kw))


class Pending:
    def __init__(self, path, events):
        self.path, self.events, self.cancelled = path, events, False

    def cancel(self):
        self.cancelled = True

    def fail(self, outcome=Outcome.TIMEOUT, detail="no connection", **kw):
        self.events.failed(Failure(outcome, detail, unprocessed=True, **kw))


class Upstreams:
    """Gives a stream at once, unless the path is in ``busy``."""

    def __init__(self):
        self.streams, self.pending, self.busy, self.asked = [], [], set(), []
        self.prepared = []

    def open(self, path, events, *, early_data, upgrade=False, request_class=None):
        self.asked.append((path.name, early_data, upgrade))
        if path.name in self.busy:
            self.pending.append(Pending(path, events))
            return self.pending[-1]
        self.grant(path, events)
        return None

    def answered(self, path, carrier, request_class, latency_s):
        pass

    def prepare(self, path, streams):
        self.prepared.append((path.name, streams))

    def grant(self, path, events):
        stream = Stream(path, events)
        self.streams.append(stream)
        events.stream_ready(stream)
        return stream


class Client:
    """A recording `Responder`."""

    client = "127.0.0.1:5"

    def __init__(self):
        self.log, self.status, self.headers, self.body = [], None, None, bytearray()
        self.interim = []
        self.over = None
        self.paused = False
        self.trailers = None

    def informational(self, status, headers):
        self.interim.append(status)

    def head(self, head):
        assert self.status is None
        self.status, self.fields, self.length = head.status, head.headers, head.body_length
        self.headers = dict(head.headers)

    def data(self, data):
        assert self.over is None
        self.body += data

    def end(self, trailers=None):
        assert self.over is None
        self.over, self.trailers = "end", trailers

    def abort(self):
        assert self.over is None
        self.over = "abort"

    def pause_body(self):
        self.paused = True

    def resume_body(self):
        self.paused = False
        self.log.append("resume")


class Stage:
    """An `Exchanges` over scripted parts."""

    def __init__(self, paths=None, *, policy=None, dialer=None, **table):
        self.paths = paths or [make_path("cn2"), make_path("bgp")]
        self.table = Table(self.paths, **table)
        self.upstreams = Upstreams()
        self.records = []
        self.exchanges = Exchanges(
            self.table, self.upstreams, dialer, node="t1", record=self.records.append
        )
        self.exchanges.configure({"up": policy or Policy()}, Policy())

    @property
    def counters(self):
        return self.exchanges.services["up"].counters

    @property
    def streams(self):
        return self.upstreams.streams

    def request(self, method=b"GET", headers=(), length=0, path=b"/v1/x", gateway=True, **kw):
        head = RequestHead(method, b"http", b"h", path, list(headers), length, **kw)
        client = Client()
        client.sink = self.exchanges(Routed("up", None, gateway, b"/api"), head, client)
        return client

    def idle(self):
        """Nothing is left behind."""
        return (
            not self.exchanges.live
            and not any(self.table.in_flight.values())
            and not any(self.exchanges.targets.live_on(p.name) for p in self.paths)
        )


def staged(test):
    """Run ``test(...)``, a coroutine function, in a loop of its own, of the daemon's kind."""

    def run(*args, **kwargs):
        uvloop.run(test(*args, **kwargs))

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run
