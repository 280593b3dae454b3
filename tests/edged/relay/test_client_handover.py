"""Large flows that go over to a better way while nothing is wrong with the one they take."""

from time import monotonic
from types import SimpleNamespace

import pytest

from edged.relay import client_handover
from edged.relay.client import RelayClient
from edged.relay.client_flow import Ask
from edged.relay.client_handover import Handover
from edged.relay.client_leg import Leg
from edged.relay.client_stream import FlowStream
from edged.relay.client_visit import Visit
from edged.relay.visit import Visit as RelayVisit
from edged.upstream.pool import Pools
from policies.model import Carrier
from tests.edged.relay.edge import edge_relay_origin
from tests.edged.relay.live import content, run, sha, until

SIZE = 20_000_000
ALONE = {"redundancy": {"small_streams": "never"}}


class Moves:
    """Where flows are wanted, and the bytes that the relay sent and was sent."""

    def __init__(self, monkeypatch):
        self.line = None
        self.carrier = None
        self.begun = []
        self.sent = self.taken = 0
        monkeypatch.setattr(client_handover, "WELL_S", 0.0)
        monkeypatch.setattr(RelayClient, "best", lambda *arguments: self.best(*arguments))
        monkeypatch.setattr(Pools, "carrier_of", lambda *_: self.carrier)
        self.count(monkeypatch, client_handover.Handover, "_begin", self.begins)
        self.count(monkeypatch, RelayVisit, "pass_on", self.sends)
        resume = FlowStream.resume_reading

        def resumed(flow):
            resume(flow)
            if (self.line or self.carrier) and not flow.paused and not self.begun:
                self.look_around(flow)

        monkeypatch.setattr(FlowStream, "resume_reading", resumed)
        self.count(monkeypatch, RelayVisit, "body", self.takes)

    def count(self, monkeypatch, owner, name, note):
        was = getattr(owner, name)

        def call(of, *arguments):
            note(of, *arguments)
            was(of, *arguments)

        monkeypatch.setattr(owner, name, call)

    def best(self, client, path, here, request_class):
        return client.legs[self.line or here.name]

    def look_around(self, flow):
        if self.line is not None and len(flow.visits) == 1:
            self.line = "b" if next(iter(flow.visits)).startswith("a") else "a"
        flow.handover.look_around(monotonic())

    def begins(self, handover, visit, way, now):
        self.begun.append(way)

    def sends(self, visit, data):
        self.sent += len(data)

    def takes(self, visit, data):
        if visit.sends:
            self.taken += len(data)


@pytest.fixture
def moves(monkeypatch):
    return Moves(monkeypatch)


@pytest.fixture
def quiet(monkeypatch):
    """No line falls silent, as one does for a moment on a busy machine."""
    monkeypatch.setattr(Leg, "_arm", lambda leg, now: None)


@pytest.fixture
def undisturbed(monkeypatch, quiet):
    """Nor is one suspected."""
    monkeypatch.setattr(RelayClient, "verdict", lambda client, leg, verdict: None)


def scenario(tmp_path):
    def decorate(body):
        async def main():
            async with edge_relay_origin(tmp_path, policy=ALONE) as (edge, relay, origin):
                await edge.connected()
                await body(edge, relay, origin)

        run(main())

    return decorate


def other(flow):
    return "b" if flow.path.line.name == "a" else "a"


async def download(edge):
    """One under way: the answer, what has come, and its flow."""
    answer = await edge.call("GET", f"/stream/5/{SIZE}", [("x-id", "1")])
    await answer.head()
    first, _ = await answer.read(900_000)
    (flow,) = edge.client.flows.values()
    return answer, bytearray(first), flow


async def read_until_moved(answer, data, flow, moves):
    while not moves.begun:
        data += (await answer.read(50_000))[0]
        assert len(data) < SIZE
        if flow.large and not flow.paused:
            moves.look_around(flow)


def test_a_download_goes_over_and_nothing_comes_twice(tmp_path, moves, undisturbed):
    @scenario(tmp_path)
    async def _(edge, relay, origin):
        answer, data, flow = await download(edge)
        moves.line = other(flow)
        await read_until_moved(answer, data, flow, moves)
        rest, clean = await answer.read()
        assert clean
        assert data + rest == content(5, SIZE)
        assert moves.begun == [moves.line]
        assert moves.sent == SIZE
        assert origin.executed == {"1": 1}
        answer.writer.close()


def test_a_download_goes_over_to_the_carrier_that_suits_it(tmp_path, moves, undisturbed):
    @scenario(tmp_path)
    async def _(edge, relay, origin):
        answer, data, flow = await download(edge)
        ((way, visit),) = flow.visits.items()
        moves.carrier = Carrier.H2 if visit.stream.carrier is Carrier.H3 else Carrier.H3
        await read_until_moved(answer, data, flow, moves)
        rest, clean = await answer.read()
        assert clean
        assert data + rest == content(5, SIZE)
        assert moves.begun == [f"{way}+"], "once, whatever carrier it came to"
        assert moves.sent == SIZE
        answer.writer.close()


@pytest.mark.parametrize("which", ["old", "new"])
def test_a_line_that_dies_in_between_costs_no_byte(tmp_path, moves, quiet, which):
    @scenario(tmp_path)
    async def _(edge, relay, origin):
        answer, data, flow = await download(edge)
        moves.line = other(flow)
        await read_until_moved(answer, data, flow, moves)
        dies = moves.line if which == "new" else "b" if moves.line == "a" else "a"
        moves.line = None
        await edge.silence(dies)
        rest, clean = await answer.read()
        assert clean
        assert data + rest == content(5, SIZE)
        assert origin.executed == {"1": 1}
        answer.writer.close()


def test_an_upload_goes_over_and_nothing_is_sent_twice(tmp_path, moves, undisturbed):
    @scenario(tmp_path)
    async def _(edge, relay, origin):
        body = content(7, SIZE)
        fields = [("x-id", "1"), ("content-length", str(SIZE))]
        answer = await edge.call("POST", "/hash", fields)
        half = SIZE // 2
        answer.writer.write(body[:half])
        await until(lambda: moves.taken > half // 2)
        (flow,) = edge.client.flows.values()
        moves.line = other(flow)
        await until(lambda: list(flow.visits) == [moves.line])
        answer.writer.write(body[half:])
        await answer.head()
        assert await answer.read() == (f"{sha(body)} {SIZE}".encode(), True)
        assert moves.begun == [moves.line]
        assert moves.taken == SIZE
        assert origin.executed == {"1": 1}
        answer.writer.close()


@pytest.mark.parametrize("carrier", [Carrier.H3, Carrier.H2])
def test_an_upload_waits_for_what_is_under_way_and_not_for_a_window_of_h3(carrier):
    done = []
    flow = SimpleNamespace(
        machine=SimpleNamespace(uploaded=False, ask=lambda way: f"ask {way}"),
        outgoing=SimpleNamespace(taken=0),
        drop=done.append,
        carry_out=done.append,
    )
    visit = Visit(flow, None, Ask("b", True, 0))
    visit.stream = SimpleNamespace(carrier=carrier)
    visit._up = 1 << 20
    visit.pause_body()
    handover = Handover(flow)
    handover._begin(visit, "b+", 100.0)
    assert done == (["b", "ask b+"] if carrier is Carrier.H3 else [])
    assert visit.held is handover.active is (carrier is Carrier.H2)


def test_a_line_that_is_full_for_a_moment_sends_no_upload_over_another(
    tmp_path, moves, undisturbed
):
    @scenario(tmp_path)
    async def _(edge, relay, origin):
        body = content(7, SIZE)
        answer = await edge.call("POST", "/hash", [("content-length", str(SIZE))])
        answer.writer.write(body[: SIZE // 2])
        await until(lambda: moves.taken > SIZE // 4)
        (flow,) = edge.client.flows.values()
        leg = edge.client.legs[flow.path.line.name]
        leg.silent = True
        edge.client.silent(leg)
        assert len(flow.visits) == 2
        leg.heard()
        assert list(flow.visits) == [leg.name]
        answer.writer.write(body[SIZE // 2 :])
        await answer.head()
        assert await answer.read() == (f"{sha(body)} {SIZE}".encode(), True)
        assert moves.taken == SIZE
        answer.writer.close()


@pytest.mark.parametrize(
    ("costs", "here", "there"),
    [
        ({"a": 100, "b": 300}, "b", "a"),
        ({"a": 100, "b": 300}, "a", "a"),
        ({"a": 100, "b": 110}, "b", "b"),  # not worth it
        ({"a": 300}, "b", "a"),  # b is down
        ({}, "b", None),
    ],
)
def test_a_flow_goes_where_it_is_clearly_cheaper(costs, here, there):
    relay = SimpleNamespace(name="hk")

    def candidate(line, cost_ms, *, relay=relay, filtered=""):
        path = SimpleNamespace(
            line=SimpleNamespace(name=line), relay=relay, endpoint=SimpleNamespace(name="e")
        )
        return SimpleNamespace(state=SimpleNamespace(path=path), cost_ms=cost_ms, filtered=filtered)

    order = [candidate("a", 1, relay=None), candidate("b", 1, filtered="down")]
    order.append(candidate("b", 1, filtered="hot"))
    order += [candidate(line, cost) for line, cost in costs.items()]
    legs = {line: SimpleNamespace(name=line) for line in "ab"}
    table = SimpleNamespace(peek=lambda upstream, cls: SimpleNamespace(order=order))
    path = SimpleNamespace(relay=relay, endpoint=SimpleNamespace(name="e", upstream="u"))
    found = RelayClient.best(SimpleNamespace(table=table, legs=legs), path, legs[here], None)
    assert (found and found.name) == there
