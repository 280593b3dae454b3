"""An edge and its relay: exchanges as flows, over lines that die."""

import asyncio
import base64
from functools import partial
from time import monotonic

import pytest
from rich.console import Console

from edged.admin import views
from edged.admin.text import print_status
from edged.relay import client_copies, client_response
from edged.relay.client_flow import FlowClient
from edged.relay.client_report import RelaysReport
from edged.relay.client_visit import APART, Visit
from edged.relay.flow import State
from policies.model import Verdict
from tests.edged.relay.edge import Answer, Edge, edge_relay_origin
from tests.edged.relay.live import Origin, Relay, content, run, sha, until
from tests.harness import texts


def scenario(tmp_path, **more):
    """Run the decorated coroutine with an edge, a relay and an origin."""

    def decorate(body):
        async def main():
            async with edge_relay_origin(tmp_path, **more) as (edge, relay, origin):
                await body(edge, relay, origin)

        run(main())

    return decorate


def test_a_request_goes_through_the_relay_and_leaves_nothing(tmp_path):
    @scenario(tmp_path)
    async def _(edge, relay, origin):
        body = content(1, 100_000)
        status, fields, got, clean = await edge.fetch("POST", "/hash", [("x-id", "1")], body)
        assert (status, got, clean) == (200, f"{sha(body)} {len(body)}".encode(), True)
        assert "edged-request-id" in fields
        assert origin.executed == {"1": 1}
        method, path, seen = origin.heads[-1]
        assert (method, path) == ("POST", "/hash")
        assert not any(name.startswith("edged-") for name in seen)
        assert "proxy-authorization" not in seen
        status, _, got, clean = await edge.fetch("GET", "/bytes/3/2000000")
        assert (status, got == content(3, 2_000_000), clean) == (200, True, True)
        await until(lambda: relay.flows.count == 0)
        assert relay.flows.account.used_bytes == 0
        assert not edge.client.flows


def test_a_response_goes_on_over_another_line(tmp_path):
    @scenario(tmp_path)
    async def _(edge, relay, origin):
        answer = await edge.call("GET", "/stream/5/4000000", [("x-id", "1")])
        await answer.head()
        first, _ = await answer.read(200_000)
        (flow,) = edge.client.flows.values()
        line = flow.path.line.name
        await edge.silence(line)
        rest, clean = await answer.read()
        assert clean
        assert first + rest == content(5, 4_000_000)
        assert origin.executed == {"1": 1}
        answer.writer.close()


def test_a_line_that_dies_before_the_answer_executes_nothing_twice(tmp_path):
    @scenario(tmp_path)
    async def _(edge, relay, origin):
        answer = await edge.call("POST", "/poll", [("x-id", "1")], b"x")
        await until(lambda: origin.executed)
        (flow,) = edge.client.flows.values()
        await edge.silence(flow.path.line.name)
        await until(lambda: len(flow.machine.lines) > 1 or edge.client.legs["a"].verdict)
        origin.go_on.set()
        await answer.head()
        assert await answer.read() == (b"news", True)
        assert origin.executed == {"1": 1}
        answer.writer.close()


def test_a_pulse_may_overtake_the_request_that_opens_a_flow(tmp_path, monkeypatch):
    """The relay says which of the flows it hears of it does not know: not of one still to come."""

    @scenario(tmp_path)
    async def _(edge, relay, origin):
        begin, under_way = Visit.begin, []
        monkeypatch.setattr(Visit, "begin", lambda self: under_way.append(self))
        answer = await edge.call("POST", "/hash", [("x-id", "1")], b"x")
        await until(lambda: under_way)
        leg = edge.client.legs["b"]
        leg._stream.cancel()
        leg._over()
        await until(lambda: leg.connected)
        heard_at = leg._heard_at
        await until(lambda: leg._heard_at > heard_at)
        monkeypatch.setattr(Visit, "begin", begin)
        for visit in under_way:
            visit.begin()
        await answer.head()
        assert answer.status == 200
        assert relay.flows.ledgers["one"].opened == edge.client.opened == 1
        answer.writer.close()


@pytest.mark.parametrize("replay", ["line-down", "never"])
def test_without_any_line_a_request_waits_for_one_and_is_not_asked_again(tmp_path, replay):
    @scenario(tmp_path, policy={"replay": replay})
    async def _(edge, relay, origin):
        answer = await edge.call("POST", "/poll", [("x-id", "1")], b"x")
        await until(lambda: origin.executed)
        legs = edge.client.legs
        for line in legs:
            await edge.silence(line)
        await until(lambda: all(leg.verdict is Verdict.DOWN for leg in legs.values()))
        origin.go_on.set()
        edge.sockets("b").restore()
        await answer.head()
        assert answer.status == 200
        assert await answer.read() == (b"news", True)
        assert origin.executed == {"1": 1}
        assert edge.client.opened == 1
        answer.writer.close()


def test_a_connection_that_carries_nothing_any_more_is_given_up_though_its_line_is_well(tmp_path):
    @scenario(tmp_path)
    async def _(edge, relay, origin):
        leg = edge.client.legs["a"]
        old = leg._stream
        for pulse in tuple(relay.flows.ledgers["one"].followers):
            pulse.pause_response()
        await until(lambda: leg.silent)
        await until(lambda: leg.connected and leg._stream is not old)
        assert (await edge.fetch("GET", "/hash"))[0] == 200


def test_a_response_that_pauses_for_long_is_asked_for_anew(tmp_path, monkeypatch):
    """Here because the first visit brings nothing that fits."""
    monkeypatch.setattr(client_response, "STALE_S", 0.3)
    head = FlowClient.head

    def beyond(machine, line, offset):
        first = head(machine, line, offset)
        if first:
            machine._visits[line].at += 1 << 30
        return first

    @scenario(tmp_path, policy={"redundancy": {"small_streams": "never"}})
    async def _(edge, relay, origin):
        monkeypatch.setattr(FlowClient, "head", beyond)
        status, _, body, clean = await edge.fetch("GET", "/stream/5/300000", [("x-id", "1")])
        assert (status, body, clean) == (200, content(5, 300_000), True)
        assert origin.executed == {"1": 1}
        assert edge.client.opened == 1


def test_an_upload_is_carried_on(tmp_path):
    @scenario(tmp_path)
    async def _(edge, relay, origin):
        body = content(7, 6_000_000)
        answer = await edge.call("POST", "/hash", [("x-id", "1")], None, chunked=True)
        half = len(body) // 2

        async def send(data):
            for at in range(0, len(data), 50_000):
                piece = data[at : at + 50_000]
                answer.writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await answer.writer.drain()

        await send(body[:half])
        await until(lambda: edge.client.flows)
        (flow,) = edge.client.flows.values()
        await until(lambda: flow.outgoing.taken > 0)
        await edge.silence(flow.path.line.name)
        await send(body[half:])
        answer.writer.write(b"0\r\n\r\n")
        await answer.head()
        got, clean = await answer.read()
        assert (got, clean) == (f"{sha(body)} {len(body)}".encode(), True)
        assert origin.executed == {"1": 1}
        answer.writer.close()


def test_a_response_cut_short_is_broken(tmp_path):
    @scenario(tmp_path)
    async def _(edge, relay, origin):
        for path in ("/cut/100000/50000", "/cutchunked/5000"):
            _, _, body, clean = await edge.fetch("GET", path)
            assert not clean
            assert len(body) <= 50_000


def test_the_relay_hears_that_the_client_left(tmp_path):
    @scenario(tmp_path)
    async def _(edge, relay, origin):
        answer = await edge.call("GET", "/endless")
        await answer.head()
        await answer.read(100_000)
        assert relay.flows.count == 1
        answer.writer.transport.abort()
        await until(lambda: relay.flows.count == 0 and not edge.client.flows)


@pytest.mark.parametrize("when", ["never", "always"])
def test_a_slow_client_stops_the_origin(tmp_path, when):
    @scenario(tmp_path, policy={"redundancy": {"small_streams": when}})
    async def _(edge, relay, origin):
        answer = await edge.call("GET", "/endless")
        await answer.head()
        sent = -1
        while sent != origin.sent:
            sent = origin.sent
            await asyncio.sleep(0.5)
        assert sent < 64 << 20
        answer.writer.transport.abort()


def test_a_relay_that_forgot_its_flows(tmp_path):
    @scenario(tmp_path)
    async def _(edge, relay, origin):
        streaming = await edge.call("GET", "/endless")
        await streaming.head()
        await streaming.read(100_000)
        waiting = await edge.call("POST", "/poll", [("x-id", "1")], b"x")
        await until(lambda: origin.executed)
        origin.go_on.set()
        for flow in list(next(iter(relay.flows.ledgers.values())).flows.values()):
            if flow.state is State.STREAMING:
                relay.flows.remove(flow)
        _, clean = await streaming.read()
        assert not clean
        await waiting.head()
        assert await waiting.read() == (b"news", True)
        waiting.writer.close()
        streaming.writer.close()


def test_a_relay_that_ends_takes_its_flows_with_it(tmp_path):
    @scenario(tmp_path)
    async def _(edge, relay, origin):
        streaming = await edge.call("GET", "/endless")
        await streaming.head()
        await streaming.read(100_000)
        waiting = await edge.call("POST", "/poll", [("x-id", "1")], b"x")
        await until(lambda: origin.executed)
        await relay.daemon.close()
        async with asyncio.timeout(5):
            _, clean = await streaming.read()
            assert not clean
            await waiting.head()
            assert waiting.status in (502, 503)
        assert origin.executed == {"1": 1}
        streaming.writer.close()
        waiting.writer.close()


def test_a_relay_that_does_not_know_us_is_not_used(tmp_path):
    async def stranger():
        async with Origin() as origin, Relay(tmp_path, origin) as relay:
            edge = Edge(tmp_path, origin, relay, direct=True, token="nobody-knows-this-token-here")
            async with edge:
                paths = [f"{line}>hk>o/e" for line in ("a", "b")]
                states = edge.daemon.table
                await until(
                    lambda: all(
                        states.snapshot.paths[path].verdict is Verdict.DOWN for path in paths
                    )
                )
                status, *_ = await edge.fetch("GET", "/bytes/1/10")
                assert status == 200

    run(stranger())


@pytest.mark.parametrize("size", [0, 3000])
def test_methods_and_statuses_pass(tmp_path, size):
    @scenario(tmp_path)
    async def _(edge, relay, origin):
        status, fields, _, clean = await edge.fetch("GET", "/redirect")
        assert (status, fields["location"], clean) == (
            302,
            "http://169.254.169.254/latest/meta-data",
            True,
        )
        data = bytes(size)
        _, _, got, _ = await edge.fetch("PUT", "/hash", [], data)
        assert got == f"{sha(data)} {size}".encode()


def test_both_legs_are_shown(tmp_path):
    @scenario(tmp_path)
    async def _(edge, relay, origin):
        await edge.fetch("GET", "/bytes/1/10")
        states = edge.daemon.table
        await until(
            lambda: all(s.near.rtt_s for s in states.snapshot.paths.values() if s.path.relay)
        )
        await until(lambda: not edge.client.flows)
        shown = views.status(edge.daemon.live, monotonic())
        (hk,) = shown["relays"]
        assert (hk["name"], hk["opened"], hk["flows"]) == ("hk", 1, 0)
        assert all(leg["connected"] for leg in hk["legs"])
        (upstream,) = shown["upstreams"]
        for path in upstream["paths"]:
            assert path["legs"]["relay"] == "hk"
            assert path["legs"]["near_rtt_ms"] > 0
        families = {family.name for family in RelaysReport(edge.daemon.relays).metrics()}
        assert {"edged_flows", "edged_flow_visits"} <= families
        console = Console(record=True, width=160)
        print_status(console, shown)
        assert "relay hk: 0 flows" in console.export_text()


def test_a_small_stream_goes_over_both_lines(tmp_path):
    @scenario(tmp_path, policy={"redundancy": {"small_streams": "always"}})
    async def _(edge, relay, origin):
        answer = await edge.call("GET", "/poll", [("x-id", "1")])
        await until(lambda: origin.executed)
        (flow,) = edge.client.flows.values()
        await until(lambda: relay.daemon.relay.joined)
        assert len(flow.machine.lines) == 2
        origin.go_on.set()
        await answer.head()
        assert await answer.read() == (b"news", True)
        assert origin.executed == {"1": 1}
        answer.writer.close()
        await until(lambda: relay.flows.count == 0)


def test_a_response_that_says_it_is_large_comes_once(tmp_path, monkeypatch):
    monkeypatch.setattr(client_copies, "SETTLE_S", 3600.0)

    @scenario(tmp_path, policy={"redundancy": {"small_streams": "always"}})
    async def _(edge, relay, origin):
        answer = await edge.call("GET", "/bytes/1/3000000")
        await answer.head()
        (flow,) = edge.client.flows.values()
        assert len(flow.machine.lines) == 1
        assert await answer.read() == (content(1, 3_000_000), True)
        answer.writer.close()


def test_a_second_copy_may_go_over_another_connection_of_the_same_line(tmp_path):
    @scenario(tmp_path, policy={"redundancy": {"small_streams": "always"}})
    async def _(edge, relay, origin):
        await edge.silence("b")
        await until(lambda: edge.client.legs["b"].verdict is Verdict.DOWN)
        _, _, body, clean = await edge.fetch("GET", "/bytes/1/10")
        assert (body, clean) == (content(1, 10), True)
        pools = edge.daemon.pools

        def carriers():
            (pool,) = [p for p in pools.stats() if p.path.startswith("a>relay")]
            return set(pool.connections)

        await until(lambda: {"h2", "h3"} <= carriers(), 30)
        answer = await edge.call("GET", "/poll", [("x-id", "1")])
        await until(lambda: edge.client.flows)
        (flow,) = edge.client.flows.values()
        await until(lambda: flow.machine.lines == ("a", "a" + APART))
        origin.go_on.set()
        await answer.head()
        assert await answer.read() == (b"news", True)
        answer.writer.close()
        await until(lambda: relay.flows.count == 0 and not edge.client.flows)


def test_an_upgraded_connection_goes_on_over_another_line(tmp_path):
    @scenario(tmp_path)
    async def _(edge, relay, origin):
        upgrade = [("connection", "upgrade"), ("upgrade", "websocket")]
        answer = await edge.call("GET", "/ws", upgrade)
        await answer.head()
        assert answer.status == 101
        assert answer.headers["upgrade"] == "websocket"
        answer.writer.write(b"first")
        assert await answer.reader.readexactly(5) == b"first"
        (flow,) = edge.client.flows.values()
        await edge.silence(flow.path.line.name)
        answer.writer.write(b"second")
        assert await answer.reader.readexactly(6) == b"second"
        answer.writer.transport.abort()
        await until(lambda: relay.flows.count == 0)


def test_a_conversation_is_sent_as_differences(tmp_path):
    @scenario(tmp_path)
    async def _(edge, relay, origin):
        async def turn(body, key="k1"):
            fields = [("authorization", f"Bearer {key}"), ("content-type", "application/json")]
            status, _, got, clean = await edge.fetch("POST", "/hash", fields, body)
            assert (status, got, clean) == (200, f"{sha(body)} {len(body)}".encode(), True)
            bodies = edge.client.bodies
            return bodies.plain_bytes, bodies.coded_bytes

        said = content(1, 60_000).hex().encode()
        _, first = await turn(said)
        assert first > 50_000
        _, second = await turn(said + b" and one thing more")
        assert second - first < 500
        _, third = await turn(said + b" and one thing more", key="another")
        assert third - second > 50_000
        (ledger,) = [one for one in relay.flows.ledgers.values() if one.bodies_coded]
        relay.flows.library.resize(0)
        relay.flows.library.resize(64 << 20)
        await turn(said + b" once more")
        assert edge.client.bodies.missed == ledger.dictionaries_missed == 1
        before = edge.client.bodies.coded_bytes
        await turn(said + b" once more, and shorter")
        assert edge.client.bodies.coded_bytes - before < 500


def test_a_conversation_about_pictures_sends_each_once(tmp_path):
    @scenario(tmp_path)
    async def _(edge, relay, origin):
        bodies, said = edge.client.bodies, b""
        for turn in range(4):
            said += b'{"image": "' + base64.b64encode(content(turn, 700_000)) + b'"}'
            before = bodies.coded_bytes
            for question in (b"what?", b"why?"):
                body = said + question
                _, _, got, _ = await edge.fetch("POST", "/hash", [("cookie", "k")], body)
                assert got == f"{sha(body)} {len(body)}".encode()
            assert bodies.coded_bytes - before < 702_000
        assert len(said) > 3_700_000


def test_text_is_coded_on_the_leg(tmp_path):
    @scenario(tmp_path)
    async def _(edge, relay, origin):
        status, _, body, clean = await edge.fetch("GET", "/words/200000")
        assert (status, len(body), clean) == (200, 200_000, True)
        assert body == b"word " * 40_000
        await until(lambda: relay.flows.count == 0)
        (ledger,) = [one for one in relay.flows.ledgers.values() if one.bodies_plain]
        assert ledger.bodies_coded * 20 < ledger.bodies_plain == 200_000


def test_each_event_is_there_before_the_next_is_made(tmp_path):
    @scenario(tmp_path)
    async def _(edge, relay, origin):
        body = texts.chat("english", turns=2, largest=20_000)[1]
        answer = await edge.call("POST", "/events", [("authorization", "Bearer k")], body)
        await answer.head()
        assert answer.headers["content-type"] == "text/event-stream"
        for n in range(50):
            origin.go_on.set()
            event = b""
            while not event.endswith(b"\n\n"):
                size = int(await answer.reader.readuntil(b"\r\n"), 16)
                event += (await answer.reader.readexactly(size + 2))[:-2]
            assert b'"w%d"' % n in event
            assert all(flow.coded for flow in relay.flows.ledgers["one"].flows.values())
        assert await answer.reader.readexactly(5) == b"0\r\n\r\n"
        sizes = relay.flows.ledgers["one"]
        assert sizes.bodies_coded * 2 < sizes.bodies_plain


def test_a_policy_may_leave_bodies_plain(tmp_path):
    @scenario(tmp_path, policy={"compression": {"requests": False}})
    async def _(edge, relay, origin):
        body = texts.chat("english", turns=2, largest=20_000)[1]
        for _ in range(2):
            _, _, got, _ = await edge.fetch("POST", "/hash", [("authorization", "k")], body)
            assert got == f"{sha(body)} {len(body)}".encode()
        assert edge.client.bodies.plain_bytes == relay.flows.library.used_bytes == 0


def test_a_relay_that_was_restarted_is_not_asked_for_what_it_had(tmp_path):
    async def main():
        async with Origin() as origin:
            body = texts.chat("english", turns=2, largest=60_000)[1]
            fields = [("authorization", "Bearer k")]

            async def turn(edge, more):
                _, _, got, clean = await edge.fetch("POST", "/hash", fields, body + more)
                assert (got.split()[1], clean) == (b"%d" % len(body + more), True)

            first = Relay(tmp_path, origin)
            async with first:
                edge = Edge(tmp_path, origin, first)
                await edge.__aenter__()
                await edge.connected()
                await turn(edge, b"")
                await turn(edge, b"1")
                assert edge.client.bodies.coded_bytes < 1.2 * len(body)
            second = Relay(tmp_path, origin)
            second.config["listen"]["relay"] = f"127.0.0.1:{first.port}"
            async with second:
                instance = edge.client._instance
                await until(lambda: edge.client._instance != instance)
                await turn(edge, b"12")
                await turn(edge, b"123")
                assert edge.client.bodies.missed == 0
                assert second.flows.ledgers["one"].dictionaries_missed == 0
                await edge.__aexit__()

    run(main())


def outgoing_taken(flow):
    return flow.outgoing.taken


def test_a_tunnel_goes_on_over_another_line(tmp_path):
    @scenario(tmp_path)
    async def _(edge, relay, origin):
        for size in (0, 3_000_000):
            reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
            authority = f"127.0.0.1:{origin.port}"
            writer.write(f"CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            body = content(4, size)
            fields = f"host: o\r\nx-id: {size}\r\ncontent-length: {size}\r\n"
            writer.write(f"POST /stream/9/3000000 HTTP/1.1\r\n{fields}\r\n".encode())
            writer.write(body[: size // 2])
            if size:
                (flow,) = edge.client.flows.values()
                await until(partial(outgoing_taken, flow))
                await edge.silence(flow.path.line.name)
            writer.write(body[size // 2 :])
            answer = Answer(reader, writer)
            await answer.head()
            assert answer.headers["x-hash"] == sha(body)
            assert answer.headers["transfer-encoding"] == "chunked"
            data = bytearray()
            while n := int(await reader.readuntil(b"\r\n"), 16):
                data += (await reader.readexactly(n + 2))[:-2]
            assert data == content(9, 3_000_000)
            writer.transport.abort()
            await until(lambda: relay.flows.count == 0)
        assert origin.executed == {"0": 1, "3000000": 1}
