"""CONNECT over real loopback sockets: bytes both ways, half-close, racing, and DOWN."""

import asyncio
import contextlib
import socket

from edged.dialer import LineDialer
from edged.driver import UPGRADED_IDLE_S
from edged.messages import RequestHead
from edged.routes import Routed
from edged.tunnel import ANSWER_S, DRAIN_REST_S
from policies.model import Blame, Change, Kind, Outcome, Verdict
from tests.harness.scripted import Client, Stage, make_path, staged


class Server:
    """A loopback TCP server that remembers what it got; ``echo`` says it back."""

    def __init__(self, echo=True):
        self.got, self.writers, self.echo = bytearray(), [], echo
        self.eof = asyncio.Event()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc):
        self.server.close()
        for writer in self.writers:
            writer.close()

    async def serve(self, reader, writer):
        self.writers.append(writer)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                self.got += data
                if self.echo:
                    writer.write(data)
                    await writer.drain()
            self.eof.set()


def connect(stage, port):
    head = RequestHead(b"CONNECT", b"", b"e1.example:%d" % port, b"", [], None)
    client = Client()
    client.sink = stage.exchanges(Routed("up", None, False, b""), head, client)
    return client


def tunnel_stage(*ports, **kw):
    lines = ["cn2", "bgp", "hk"]
    paths = [
        make_path(line, port=port, address="127.0.0.1")
        for line, port in zip(lines, ports, strict=False)
    ]
    return Stage(paths, dialer=LineDialer(), **kw)


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


def closed_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@staged
async def test_bytes_flow_both_ways_also_those_sent_before_the_answer():
    async with Server() as server:
        stage = tunnel_stage(server.port)
        client = connect(stage, server.port)
        client.sink.body(b"early ")
        assert client.status is None
        await until(lambda: client.status == 200)
        client.sink.body(b"late")
        await until(lambda: bytes(client.body) == b"early late")
        assert client.headers[b"proxy-status"].startswith(b"edged")
        assert [s.kind for s in stage.table.samples] == [Kind.TCP]
        client.sink.gone()
        await until(server.eof.is_set)
        assert stage.idle()
        (record,) = stage.records
        assert (record.bytes_up, record.bytes_down) == (10, 10)


@staged
async def test_each_side_can_close_its_half_first():
    async with Server(echo=False) as server:
        stage = tunnel_stage(server.port)
        client = connect(stage, server.port)
        await until(lambda: client.status == 200)
        client.sink.body(b"question")
        client.sink.body_end(None)
        await until(server.eof.is_set)
        assert client.over is None
        server.writers[0].write(b"answer")
        server.writers[0].close()
        await until(lambda: client.over == "end")
        assert (bytes(server.got), bytes(client.body)) == (b"question", b"answer")
        await until(stage.idle)


@staged
async def test_what_the_client_sends_before_it_leaves_still_arrives():
    async with Server(echo=False) as server:
        stage = tunnel_stage(server.port)
        client = connect(stage, server.port)
        await until(lambda: client.status == 200)
        client.sink.body(b"x" * 300_000)
        client.sink.gone()
        await until(server.eof.is_set)
        assert len(server.got) == 300_000


@staged
async def test_a_refused_connection_moves_to_the_next_path():
    async with Server() as server:
        stage = tunnel_stage(closed_port(), server.port)
        client = connect(stage, server.port)
        await until(lambda: client.status == 200)
        assert stage.exchanges.live
        client.sink.gone()
        (record,) = stage.records
        assert record.path_name == "bgp>up/e1"
        assert [a.failure and a.failure.outcome for a in record.attempts] == [
            Outcome.REFUSED,
            None,
        ]


@staged
async def test_no_connection_anywhere_is_a_502_that_says_why():
    stage = tunnel_stage(closed_port(), closed_port())
    client = connect(stage, 443)
    await until(lambda: client.status is not None)
    assert client.status == 502
    assert b"connection_refused" in client.headers[b"proxy-status"]
    assert stage.idle()


@staged
async def test_an_established_tunnel_is_cut_at_once_when_its_line_goes_down():
    async with Server() as server:
        stage = tunnel_stage(server.port, server.port)
        client = connect(stage, server.port)
        await until(lambda: client.status == 200)
        stage.exchanges.path_changed(
            Change("cn2>up/e1", Verdict.UP, Verdict.DOWN, Blame.LINE, "silence", 0.0)
        )
        assert client.over == "abort"
        assert stage.idle()


@staged
async def test_a_slow_client_pauses_the_upstream():
    async with Server(echo=False) as server:
        stage = tunnel_stage(server.port)
        client = connect(stage, server.port)
        await until(lambda: client.status == 200)
        client.sink.pause_response()
        await until(lambda: server.writers)
        server.writers[0].write(b"z" * (32 << 20))
        await asyncio.sleep(0.05)
        seen = len(client.body)
        assert seen < 8 << 20
        client.sink.resume_response()
        await until(lambda: len(client.body) == 32 << 20)
        client.sink.gone()


@staged
async def test_only_endpoints_of_the_named_host_will_do_if_there_are_any():
    async with Server() as server:
        other = make_path("cn2", "e2", port=closed_port(), address="127.0.0.1")
        named = make_path("bgp", "e1", port=server.port, address="127.0.0.1")
        stage = Stage([other, named], dialer=LineDialer())
        client = connect(stage, server.port)
        await until(lambda: client.status == 200)
        client.sink.gone()
        assert [a.path for a in stage.records[0].attempts] == ["bgp>up/e1"]


@staged
async def test_an_address_that_edged_refuses_to_dial_is_403():
    async with Server() as server:
        stage = tunnel_stage(server.port)
        stage.exchanges.dialer = LineDialer(guard=lambda host, address: f"{address} is not for you")
        client = connect(stage, server.port)
        await until(lambda: client.status is not None)
        assert client.status == 403
        assert b"destination_ip_prohibited" in client.headers[b"proxy-status"]
        assert stage.idle()


@staged
async def test_a_drain_closes_tunnels_once_they_carry_nothing():
    async with Server() as server:
        stage = tunnel_stage(server.port)
        idle, busy = connect(stage, server.port), connect(stage, server.port)
        await until(lambda: idle.status == busy.status == 200)
        stage.exchanges.drain()
        assert idle.over is None
        now = asyncio.get_running_loop().time()
        next(t for t in stage.exchanges.live if t.responder is busy).touch(UPGRADED_IDLE_S + 2)
        stage.exchanges.tick(now + DRAIN_REST_S + 1)
        assert (idle.over, busy.over) == ("end", None)
        busy.sink.body(b"still here")
        await until(lambda: bytes(busy.body) == b"still here")
        stage.exchanges.tick(now + 2 * DRAIN_REST_S)
        assert busy.over == "end"
        assert stage.idle()
        assert [r.error for r in stage.records] == [None, None]


@staged
async def test_a_tunnel_waits_for_an_answer_longer_than_for_nothing_in_particular():
    async with Server(echo=False) as server:
        stage = tunnel_stage(server.port)
        client = connect(stage, server.port)
        await until(lambda: client.status == 200)
        (tunnel,) = stage.exchanges.live
        client.sink.body(b"ask")
        await until(lambda: server.got == b"ask")
        asked_at = tunnel.deadline - UPGRADED_IDLE_S
        assert tunnel.waits(asked_at + ANSWER_S - 1)
        assert not tunnel.waits(asked_at + ANSWER_S + 1)
        server.writers[0].write(b"answer")
        await until(lambda: client.body)
        answered_at = tunnel.deadline - UPGRADED_IDLE_S
        assert tunnel.waits(answered_at + DRAIN_REST_S - 1)
        assert not tunnel.waits(answered_at + DRAIN_REST_S + 1)
        tunnel.gone()
