"""A whole relay on real sockets: curl, connections that break, carriers, tunnels, pulses."""

import asyncio
import json
import random
import shutil
import ssl

import httpx
import pytest

from tests.harness.h3 import FAST
from tests.harness.h3client import connect

from .live import (
    FLOW,
    PULSE,
    TOKEN,
    H3Calls,
    Origin,
    Relay,
    content,
    flow_id,
    relay_and_origin,
    run,
    sha,
    until,
)

needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
AUTH = ("-H", f"proxy-authorization: Bearer {TOKEN}")


@needs_curl
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_curl_opens_resumes_and_ends_a_flow(tmp_path, version):
    async def scenario():
        async with relay_and_origin(tmp_path) as (relay, origin):
            flow = relay.url + flow_id()
            whole = content(5, 3_000_000)
            out = tmp_path / "out"
            broken, _, _ = await relay.curl(
                *(version, *AUTH, "-X", "POST", "-N", "-o", str(out), "--limit-rate", "1M"),
                *("-m", "0.7", "-H", "edged-method: GET"),
                *("-H", f"edged-target: {origin.url}/bytes/5/3000000", flow),
            )
            assert broken == 28
            got = out.read_bytes()
            assert 0 < len(got) < len(whole)
            status, rest, _ = await relay.curl(
                version, *AUTH, "-H", f"edged-offset: {len(got)}", flow
            )
            assert status == 0
            assert sha(got + rest) == sha(whole)
            status, told, _ = await relay.curl(version, *AUTH, "-I", flow)
            assert b"edged-state: complete" in told
            await relay.curl(version, *AUTH, "-X", "DELETE", flow)
            status, told, _ = await relay.curl(version, *AUTH, "-w", "%{http_code}", flow)
            assert told.endswith(b"410")
            assert len(origin.heads) == 1

    run(scenario())


@needs_curl
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_curl_uploads_and_carries_on(tmp_path, version):
    async def scenario():
        async with relay_and_origin(tmp_path) as (relay, origin):
            flow = relay.url + flow_id()
            body = content(6, 2_500_000)
            target = ("-H", f"edged-target: {origin.url}/hash")
            status, _, _ = await relay.curl(
                *(version, *AUTH, *target, "--data-binary", "@-", "-H", "expect:"),
                *("--limit-rate", "1M", "-m", "0.7", flow),
                data=body,
            )
            assert status == 28
            _, told, _ = await relay.curl(version, *AUTH, "-I", flow)
            told = dict(line.split(": ") for line in told.decode().strip().split("\r\n")[1:])
            offset = int(told["upload-offset"])
            assert 0 < offset < len(body)
            status, said, _ = await relay.curl(
                *(version, *AUTH, "-X", "PATCH", "-H", f"upload-offset: {offset}"),
                *("--data-binary", "@-", "-w", "%{http_code}", flow),
                data=body[offset:],
            )
            assert said == b"204"
            _, said, _ = await relay.curl(version, *AUTH, flow)
            assert said.decode() == f"{sha(body)} {len(body)}"
            assert len(origin.heads) == 1

    run(scenario())


@needs_curl
def test_a_response_cut_short_is_an_error_for_curl(tmp_path):
    async def scenario():
        async with relay_and_origin(tmp_path) as (relay, origin):
            for path in ("cut/1000/500", "cutchunked/500"):
                for version, status in (("--http1.1", 18), ("--http2", 92)):
                    flow = relay.url + flow_id()
                    target = ("-H", f"edged-target: {origin.url}/{path}", "-H", "edged-method: GET")
                    for again in range(2):
                        arguments = ("-X", "POST", *target) if not again else ()
                        broken, out, _ = await relay.curl(version, *AUTH, *arguments, flow)
                        assert broken == status
                        # What has come when a stream is reset, curl may drop.
                        assert len(out) == 500 or (status == 92 and len(out) < 500)

    run(scenario())


async def exchange(relay, origin, rng, name):
    """One flow with random sizes both ways, broken off at random; how often it was.

    ``relay`` makes the calls: over connections of their own, or as streams of one.
    """
    path = FLOW + flow_id()
    up, down = (rng.choice([0, rng.randrange(3000), rng.randrange(800_000)]) for _ in range(2))
    seed = rng.randrange(1 << 30)
    body = content(seed + 1, up)
    target = f"{origin.url}/stream/{seed}/{down}"
    opening = [("edged-target", target), ("x-id", name), ("edged-method", "PUT")]
    breaks = 0
    sent = received = 0
    got = b""
    clean = False
    opened = False
    head = None
    while not clean:
        assert breaks < 40
        steady = breaks > 8
        headers = [("upload-offset", str(sent)), ("edged-offset", str(received))]
        if not opened:
            headers = opening + ([("edged-ack", "0")] if seed % 2 else [])
        left = body[sent:]
        cut = len(left) if steady else rng.randrange(len(left) + 1)
        if opened and rng.random() < 0.3 and sent == up:
            call = await relay.call("GET", path, headers[1:])
        else:
            call = await relay.call("POST", path, headers, left[:cut], length=len(left))
        try:
            await call.writer.drain()
            if cut < len(left) or (not steady and rng.random() < 0.2):
                await asyncio.sleep(rng.random() * 0.02)
                raise ConnectionError
            await call.head()
            assert call.status == 200, (call.status, await call.read())
            assert int(call.headers["edged-offset"]) == received
            head = call.headers
            most = down - received + 1 if steady else rng.randrange(down - received + 2)
            piece, clean = await call.read(most)
            got += piece
            received += len(piece)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        call.hang_up()
        if not clean:
            breaks += 1
            told = await (await relay.call("HEAD", path)).head()
            told.hang_up()
            if told.status == 404:
                assert not opened
                continue
            opened = True
            sent = int(told.headers["upload-offset"])
    assert sha(got) == sha(content(seed, down))
    assert head["x-hash"] == sha(body)
    assert origin.executed[name] == 1
    done = await (await relay.call("DELETE", path)).head()
    done.hang_up()
    return breaks


def test_flows_survive_breaks_at_random_byte_for_byte(tmp_path):
    async def scenario():
        async with relay_and_origin(tmp_path) as (relay, origin):
            rng = random.Random(20)
            tasks = []
            for batch in range(6):
                seeds = [rng.randrange(1 << 30) for _ in range(8)]
                tasks += await asyncio.gather(
                    *(
                        exchange(relay, origin, random.Random(seed), f"{batch}-{seed}")
                        for seed in seeds
                    )
                )
            assert sum(tasks) > 48
            assert set(origin.executed.values()) == {1}
            assert relay.flows.count == 0
            assert relay.flows.account.used_bytes == 0

    run(scenario())


@pytest.mark.parametrize("server", [FAST, "pure"])
def test_flows_survive_broken_streams_and_connections_of_h3(tmp_path, monkeypatch, server):
    monkeypatch.setenv("EDGED_ENGINES", server)

    async def several(relay, origin, seed):
        calls = H3Calls(relay)
        rng = random.Random(seed)
        breaks = 0
        for n in range(4):
            breaks += await exchange(calls, origin, rng, f"{seed}-{n}")
            if rng.random() < 0.5:
                await calls.hang_up()
        await calls.hang_up()
        return breaks

    async def scenario():
        async with relay_and_origin(tmp_path) as (relay, origin):
            breaks = await asyncio.gather(*(several(relay, origin, seed) for seed in range(3)))
            assert sum(breaks) > 12
            assert set(origin.executed.values()) == {1}
            assert relay.flows.count == 0
            await until(lambda: not relay.daemon.proxy.hub.connections)

    run(scenario())


@pytest.mark.parametrize("engine", ["aioquic"])
def test_a_flow_changes_its_carrier(tmp_path, engine):
    async def scenario():
        async with relay_and_origin(tmp_path) as (relay, origin):
            path = FLOW + flow_id()
            whole = content(7, 1_000_000)
            auth = ("proxy-authorization", f"Bearer {TOKEN}")
            async with connect(relay.port, ca=str(tmp_path / "ca.pem"), engine=engine) as h3:
                stranger = await h3.request("POST", path, [("edged-target", "x")]).until()
                assert (stranger.status, stranger.body) == (404, b"Not Found\n")
                target = ("edged-target", f"{origin.url}/bytes/7/1000000")
                fields = [auth, target, ("edged-method", "GET"), ("edged-ack", "0")]
                reply = h3.request("POST", path, fields)
                await reply.until(lambda r: len(r.body) > 100_000)
                got = reply.body
            await until(lambda: not relay.daemon.proxy.hub.connections)
            context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
            async with httpx.AsyncClient(http2=True, verify=context) as client:
                url = f"https://127.0.0.1:{relay.port}{path}"
                headers = [auth, ("edged-offset", str(len(got)))]
                rest = await client.get(url, headers=headers)
                assert rest.http_version == "HTTP/2"
                assert rest.headers["edged-offset"] == str(len(got))
            assert sha(got + rest.content) == sha(whole)
            assert len(origin.heads) == 1

    run(scenario())


def test_websockets_and_tunnels_are_flows(tmp_path):
    async def talk(relay, path, headers):
        """An echo that outlives three connections; every byte once and in order."""
        call = await relay.call("POST", path, [*headers, ("edged-ack", "0")], length="chunked")
        await call.head()
        assert call.status == 200
        first = call.headers
        sent = received = 0
        for turn in range(12):
            data = b"<%d>" % turn * 50
            call.writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            sent += len(data)
            if turn % 4 != 3:
                got, _ = await call.read(len(data))
                assert got == data
                received += len(got)
                continue
            await asyncio.sleep(0.05)  # the echo is on its way to a connection that dies
            call.hang_up()
            fields = [("upload-offset", str(sent)), ("edged-offset", str(received))]
            call = await relay.call("POST", path, fields, length="chunked")
            await call.head()
            assert call.status == 200
            got, _ = await call.read(len(data))
            assert got == data
            received += len(got)
        call.writer.write(b"0\r\n\r\n")
        _, clean = await call.read()
        assert clean
        call.hang_up()
        return first

    async def echo(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def scenario():
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with Origin() as origin:
            allow = [f"127.0.0.1:{origin.port}", f"127.0.0.1:{port}"]
            async with Relay(tmp_path, origin, allow=allow) as relay:
                tunnel = [("edged-target", f"127.0.0.1:{port}"), ("edged-method", "CONNECT")]
                await talk(relay, FLOW + flow_id(), tunnel)
                socket = [("edged-target", f"{origin.url}/ws"), ("edged-method", "GET")]
                socket.append(("edged-upgrade", "websocket"))
                call = await relay.call("POST", FLOW + flow_id(), socket, length="chunked")
                await call.head()
                assert call.headers["edged-status"] == "101"
                assert call.headers["edged-upgrade"] == "websocket"
                call.writer.write(b"5\r\nhello\r\n")
                assert (await call.read(5))[0] == b"hello"
                call.hang_up()
                assert origin.heads[-1][2]["upgrade"] == "websocket"
        server.close()

    run(scenario())


def test_a_long_poll_is_a_flow(tmp_path):
    async def scenario():
        async with relay_and_origin(tmp_path) as (relay, origin):
            path = FLOW + flow_id()
            fields = [("edged-target", f"{origin.url}/poll"), ("edged-method", "GET")]
            first = await relay.call("POST", path, fields)
            await until(lambda: origin.heads)
            first.hang_up()
            await until(lambda: not relay.daemon.proxy.hub.requests_open)
            second = await relay.call("GET", path)
            await until(lambda: relay.daemon.proxy.hub.requests_open)
            origin.go_on.set()
            assert await second.answer() == b"news"
            assert len(origin.heads) == 1

    run(scenario())


def test_pulses_work_over_real_connections(tmp_path):
    async def scenario():
        async with relay_and_origin(tmp_path) as (relay, origin):
            pulse = await relay.call("POST", PULSE, length="chunked")
            await pulse.head()
            assert pulse.status == 200
            flow = flow_id()
            said = json.dumps({"n": 1, "every": 0.05, "want": [origin.url]}).encode() + b"\n"
            pulse.writer.write(b"%x\r\n%b\r\n" % (len(said), said))
            fields = [("edged-target", f"{origin.url}/hash"), ("edged-ack", "0")]
            call = await relay.call("POST", FLOW + flow, fields, b"x" * 1000)
            await call.answer()
            told = {}
            text = b""
            while not (told.get("up") and told.get("far") and told["seen"] == 1):
                piece, _ = await pulse.read(1)
                text += piece
                *lines, text = text.split(b"\n")
                for line in lines:
                    told |= json.loads(line)
            assert told["up"] == {flow: 1000}
            (leg,) = told["far"][origin.url]
            assert leg["endpoint"].endswith(f"127.0.0.1:{origin.port}")
            assert told["relay"] == relay.daemon.instance
            done = json.dumps({"n": 2, "done": [flow]}).encode() + b"\n"
            pulse.writer.write(b"%x\r\n%b\r\n" % (len(done), done))
            await until(lambda: relay.flows.count == 0)
            pulse.hang_up()

    run(scenario())
