"""What strangers and bad clients do to a relay in a process of its own, and what others notice."""

import asyncio
import contextlib
import json
import resource
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from edged.relay.daemon import POOL_LIMITS
from edged.relay.flows import FlowLimits
from edged.relay.journal import FLOOR_BYTES, MOST_BLOCK_BYTES
from tests.harness.live import ROOT, free_port, with_us

from .live import FLOW, OTHER, PULSE, TOKEN, Origin, Relay, content, flow_id, run, sha, until
from .test_doors import h2, opening

BYSTANDER = Path(__file__).with_name("bystander.py")
SLOWER = 10
"""So many times its usual time a bystander's flow may take in the median: the attacker needs one of
the two cores, too."""
NOISE_S = 0.05


class RelayProcess(Relay):
    """``async with RelayProcess(tmp_path, origin) as relay: ...``: `Relay`, but `edged relay`."""

    def __init__(self, directory, origin, **more):
        self.port, self.admin = free_port(), free_port()
        listen = {"relay": f"127.0.0.1:{self.port}", "admin": f"127.0.0.1:{self.admin}"}
        super().__init__(directory, origin, listen=listen, **more)
        self.log = directory / "relay.log"

    async def __aenter__(self):
        self.write()
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "edged", "relay", "-c", str(self.file)]
            self.process = await asyncio.create_subprocess_exec(
                *with_us(command), stdout=log, stderr=log, cwd=ROOT
            )
        self._http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.admin}", timeout=10)
        async with asyncio.timeout(30):
            while not await self.ready():
                await asyncio.sleep(0.05)
        return self

    async def __aexit__(self, *_):
        await self._http.aclose()
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        await self.process.wait()
        assert "Traceback" not in self.log.read_text(), self.log.read_text()

    async def ready(self):
        with contextlib.suppress(httpx.TransportError):
            return (await self._http.get("/readyz")).status_code == 200
        assert self.process.returncode is None, self.log.read_text()
        return False

    async def status(self):
        return (await self._http.get("/status")).json()["relay"]

    async def client(self, name):
        return next(c for c in (await self.status())["clients"] if c["name"] == name)

    async def until(self, condition, limit_s=60):
        """Wait for ``condition(status)``."""
        async with asyncio.timeout(limit_s):
            while not condition(status := await self.status()):
                await asyncio.sleep(0.05)
        return status

    @property
    def memory(self):
        return psutil.Process(self.process.pid).memory_info().rss

    @contextlib.asynccontextmanager
    async def bystander(self, origin):
        """The other client goes about its business, and must not notice anything. Called
        with nothing, what is yielded tells how long its flows took since the last call."""
        given = {
            "port": self.port,
            "ca": str(self.directory / "ca.pem"),
            "token": OTHER,
            "target": f"{origin.url}/hash",
        }

        async def start():
            process = await asyncio.create_subprocess_exec(
                *with_us([sys.executable, str(BYSTANDER), json.dumps(given)]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            assert await process.stdout.readline() == b"ready\n"
            return process

        async def end(process):
            said, _ = await process.communicate(b"")
            assert process.returncode == 0, said
            return json.loads(said)

        process = await start()
        await asyncio.sleep(1)
        usual = statistics.median(await end(process))
        process = await start()
        yield
        took = await end(process)
        during = statistics.median(took)
        print(
            f"{len(took)} flows of a bystander: median {1e3 * usual:.1f} ms before, "
            f"{1e3 * during:.1f} ms meanwhile, {1e3 * max(took):.0f} ms at worst"
        )
        assert len(took) > 2
        assert during < SLOWER * usual + NOISE_S


def attack(directory, body, **more):
    """Run ``body(relay, origin)`` while a bystander is there."""

    async def scenario():
        async with (
            Origin() as origin,
            RelayProcess(directory, origin, **more) as relay,
            relay.bystander(origin),
        ):
            await body(relay, origin)
            await asyncio.sleep(1)  # what comes after counts, too

    run(scenario(), limit_s=40)


@pytest.mark.parametrize("kind", ["the request does not end", "the answer does not come"])
def test_ten_thousand_half_open_flows(tmp_path, kind):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 12_000:
        pytest.skip(f"may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    most = 2000
    assert POOL_LIMITS.h1_connections > FlowLimits().flows

    async def body(relay, origin):
        before = relay.memory
        clients = [await h2(relay) for _ in range(10)]
        readers = [asyncio.ensure_future(c.until(lambda: False)) for c in clients]
        for n in range(10_000):
            fields = opening(origin, "hash", flow_id())
            if kind == "the answer does not come":
                fields = [*opening(origin, "poll", flow_id())[:-1], (b"edged-method", b"GET")]
            unfinished = kind == "the request does not end"
            clients[n % 10].headers(2 * (n // 10) + 1, fields, end=not unfinished)
            if n % 50 == 0:
                await clients[n % 10].raw.writer.drain()
                await asyncio.sleep(0)
        await relay.until(lambda s: s["clients"][0]["refused"] >= 10_000 - most)
        if kind == "the answer does not come":
            await until(lambda: origin.open >= most, 60)
        assert (await relay.client("one"))["flows"] == most
        assert relay.memory - before < 400 << 20
        statuses = {c.status(stream) for c in clients for stream in c.heads}
        assert statuses == {429}
        await asyncio.sleep(1)
        for client in clients:
            client.raw.writer.transport.abort()
        await asyncio.gather(*readers)
        await relay.until(lambda s: s["clients"][0]["flows"] == 0)

    try:
        attack(tmp_path, body, more={"one": {"flows": most}}, journal={"linger_s": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_strangers_in_a_hurry(tmp_path):
    """Wrong tokens and none over many connections, half heads, and handshakes that do not end."""

    async def body(relay, origin):
        mine = FLOW + flow_id()
        await (
            await relay.call("POST", mine, [("edged-target", f"{origin.url}/hash")], b"x")
        ).answer()
        idle = [await asyncio.open_connection("127.0.0.1", relay.port) for _ in range(300)]
        for _, writer in idle[:100]:
            writer.write(b"\x16\x03\x01\x02\x00")  # of a ClientHello
        halves = [await relay.call("POST", mine, length=10) for _ in range(100)]
        executed = len(origin.heads)
        for token in (b"", b"wrong", TOKEN[:-1].encode(), OTHER[1:].encode(), b"\xff" * 200):
            client = await h2(relay)
            fields = opening(origin, "hash", mine[len(FLOW) :])
            fields = [f for f in fields if f[0] not in (b"proxy-authorization", b"content-length")]
            if token:
                fields.append((b"proxy-authorization", b"Bearer " + token))
            for n in range(800):
                client.headers(2 * n + 1, fields)
                if n % 50 == 0:
                    await client.raw.writer.drain()
            await client.until(lambda c=client: len(c.ended) == 800)
            answers = {
                (client.status(stream), client.bodies[stream], len(client.heads[stream]))
                for stream in client.ended
            }
            assert answers == {(404, b"Not Found\n", 1)}
            client.raw.writer.transport.abort()
        # Those who know a token wait for the bodies of their own requests only.
        strangers = (await relay.status())["strangers"]
        assert strangers == 4000
        bodies = len(origin.heads) - executed
        assert all(path == "/hash" for _, path, _ in origin.heads)
        assert bodies < 2000  # the bystander's
        for _, writer in idle:
            writer.transport.abort()
        for call in halves:
            call.hang_up()

    attack(tmp_path, body)


def test_slow_readers_hold_their_journals_and_nobody_up(tmp_path):
    flow_mb, total_mb, readers = 1, 8, 60

    async def body(relay, origin):
        fields = [("edged-target", f"{origin.url}/endless"), ("edged-method", "GET")]
        calls = []
        for n in range(readers):
            asks = [*fields, ("edged-ack", "0")] if n % 2 else fields
            call = await relay.call("POST", FLOW + flow_id(), asks)
            call.writer.transport.pause_reading()
            calls.append(call)
        sent = -(1 << 20)
        while origin.sent - sent > 64 << 10:  # the bystander gets something, too
            sent = origin.sent
            await asyncio.sleep(1)
        held = (await relay.status())["journal_bytes"]
        # What one read of an origin's connection brings cannot be refused any more.
        most = (total_mb << 20) * 3 // 4 + readers * (FLOOR_BYTES + (256 << 10) + MOST_BLOCK_BYTES)
        assert total_mb << 19 < held <= most
        # One that reads gets on, though the journals are full.
        reads = await (await relay.call("POST", FLOW + flow_id(), fields)).head()
        data, _ = await reads.read(4 << 20)
        assert len(data) >= 4 << 20
        for call in (*calls, reads):
            call.hang_up()
        await relay.until(lambda s: s["clients"][0]["flows"] == 0)

    journal = {"flow_mb": flow_mb, "total_mb": total_mb, "linger_s": 1.0}
    attack(tmp_path, body, journal=journal)


def test_a_revoked_token_is_worth_nothing_on_connections_that_are_there(tmp_path):
    async def body(relay, origin):
        client = await h2(relay)
        pulse = await relay.call("POST", PULSE, length="chunked")
        await pulse.head()
        endless = [f for f in opening(origin, "endless", flow_id()) if f[0][:7] != b"content"]
        client.headers(1, [*endless, (b"edged-method", b"GET")])
        client.window(0, 1 << 20)
        await client.until(lambda: len(client.bodies.get(1, b"")) > 10_000)
        mine = FLOW + flow_id()
        target = [("edged-target", f"{origin.url}/hash")]
        await (await relay.call("POST", mine, target, b"x")).answer()
        relay.config["clients"][0]["token_sha256"] = sha(b"another")
        relay.write()
        relay.process.send_signal(signal.SIGHUP)
        await client.until(lambda: 1 in client.resets)
        _, clean = await pulse.read()
        assert not clean
        for stream, method in ((3, b"GET"), (5, b"POST"), (7, b"DELETE")):
            fields = [
                (b":method", method),
                *opening(origin, "hash", mine[len(FLOW) :])[1:-1],
            ]
            client.headers(stream, fields)
            assert await client.response(stream) == (404, b"Not Found\n")
        again = await relay.call("GET", mine)
        assert (await again.head()).status == 404
        again.hang_up()
        # Who has the new one begins anew: what the old one made is gone.
        new = await relay.call("GET", mine, token="another")
        assert (await new.head()).status in (404, 410)
        new.hang_up()
        client.raw.writer.transport.abort()

    attack(tmp_path, body)


def test_ids_of_another_token_lead_nowhere(tmp_path):
    """Whoever hears an id cannot read, join, feed, end or block the flow that has it."""

    async def body(relay, origin):
        for n in range(30):
            mine = FLOW + flow_id()
            target = [("edged-target", f"{origin.url}/stream/{n}/50000"), ("x-id", f"mine-{n}")]
            call = await relay.call("POST", mine, target, b"half", length=8)
            await relay.until(lambda s: s["clients"][0]["flows"] == 1)
            for method, status in (
                ("GET", 404),
                ("HEAD", 404),
                ("PATCH", 404),
                ("DELETE", 204),
            ):
                theirs = await relay.call(method, mine, [("upload-offset", "4")], b"", token=OTHER)
                assert (await theirs.head()).status == status
                theirs.hang_up()
            # A POST opens a flow of their own; this id they have just given up.
            theirs = await relay.call("POST", mine, target, b"", token=OTHER)
            assert (await theirs.head()).status == 410
            theirs.hang_up()
            call.writer.write(b"rest")
            await call.head()
            assert call.headers["x-hash"] == sha(b"halfrest")
            data, clean = await call.read()
            assert (data, clean) == (content(n, 50_000), True)
            call.hang_up()
            assert origin.executed[f"mine-{n}"] == 1
            await (await relay.call("DELETE", mine)).head()

    attack(tmp_path, body)
