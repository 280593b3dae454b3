"""A whole relay on real sockets: curl, broken connections, tunnels, limits, reloads."""

import asyncio
import json
import random
import shutil
import ssl

import httpx
import pytest

from tests.harness.h3client import connect
from tests.harness.nameserver import NameServer

from .live import (
    FLOW,
    OTHER,
    PULSE,
    TOKEN,
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
    """One flow with random sizes both ways, broken off at random; how often it was."""
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


def test_a_client_that_does_not_come_back_frees_all(tmp_path):
    async def scenario():
        async with relay_and_origin(tmp_path, journal={"linger_s": 0.3}) as (relay, origin):
            for _ in range(5):
                fields = [("edged-target", f"{origin.url}/endless"), ("edged-method", "GET")]
                call = await relay.call("POST", FLOW + flow_id(), fields)
                await call.head()
                call.hang_up()
            await until(lambda: relay.flows.count == 5)
            await until(lambda: relay.flows.count == 0)
            await until(lambda: origin.open == 0)
            assert relay.flows.account.used_bytes == 0

    run(scenario())


def test_readers_that_stop_reading_hold_a_journal_and_no_more(tmp_path):
    async def scenario():
        async with relay_and_origin(tmp_path, journal={"flow_mb": 0.25}) as (relay, origin):
            stuck = []
            for n in range(4):
                fields = [("edged-target", f"{origin.url}/endless"), ("edged-method", "GET")]
                fields += [("edged-ack", "0")] if n % 2 else []
                call = await relay.call("POST", FLOW + flow_id(), fields)
                call.writer.transport.pause_reading()
                stuck.append(call)
            before = -1
            while origin.sent != before:
                before = origin.sent
                await asyncio.sleep(0.4)
            # What is not in a journal is in the buffers of sockets.
            for flow in relay.flows.ledgers["one"].flows.values():
                most = (1 if flow.acknowledges else 9) * (256 << 10)
                assert flow.journal.held_bytes <= most + (512 << 10)
            body = [("edged-target", f"{origin.url}/hash")]
            other = await relay.call("POST", FLOW + flow_id(), body, b"x" * 100_000)
            assert await other.answer() == f"{sha(b'x' * 100_000)} 100000".encode()
            for call in stuck:
                call.hang_up()

    run(scenario())


@needs_curl
def test_strangers_get_404_and_nothing_else(tmp_path):
    async def scenario():
        async with relay_and_origin(tmp_path) as (relay, origin):
            path = FLOW + flow_id()
            target = [("edged-target", f"{origin.url}/hash")]
            mine = await relay.call("POST", path, target, b"x")
            await mine.answer()
            said = set()
            for token in (None, "wrong", TOKEN[:-1]):
                for method, where in (
                    ("POST", path),
                    ("GET", path),
                    ("DELETE", path),
                    ("POST", PULSE),
                    ("GET", "/"),
                    ("OPTIONS", "*"),
                    ("GET", "https://other.example/"),
                    ("CONNECT", "other.example:443"),
                ):
                    call = await relay.call(method, where, target, token=token)
                    body = await call.answer()
                    headers = {k: v for k, v in call.headers.items() if k != "date"}
                    headers.pop("connection", None)
                    said.add((call.status, str(headers), body))
            assert len(said) == 1
            ((status, headers, body),) = said
            assert (status, body) == (404, b"Not Found\n")
            assert "edged" not in headers
            broken = await relay.call("GET", "/ x", token=None)
            await broken.head()
            assert broken.status == 400
            assert "edged" not in str(broken.headers)
            broken.hang_up()
            _, out, _ = await relay.curl("-i", "--http2", "-H", "content-length: 5", relay.url)
            assert b"edged" not in out
            assert len(origin.heads) == 1
            # Another client's token does not help with this one's flow.
            for method in ("GET", "HEAD", "PATCH"):
                call = await relay.call(method, path, token=OTHER)
                await call.head()
                assert call.status == 404
                call.hang_up()

    run(scenario())


def test_targets_are_judged_by_name_by_address_and_after_dns(tmp_path):
    async def scenario():
        async with NameServer() as dns, Origin() as origin:
            port = origin.port
            for name in ("inside.example", "rebind.example", "named.example"):
                dns.zone[name, "A"] = ["127.0.0.1"]
            dns.zone["named.example", "A"] = ["127.0.0.9"]
            dns.zone["mixed.example", "A"] = ["127.0.0.1", "10.0.0.1"]
            dns.ttl = 0
            lines = [{"name": "default", "dns": [dns.server]}]
            allow = [f"*.example:{port}", f"127.0.0.1:{port}"]
            async with Relay(tmp_path, origin, allow=allow, lines=lines) as relay:

                async def ask(target):
                    fields = [("edged-target", target), ("edged-method", "GET")]
                    call = await relay.call("POST", FLOW + flow_id(), fields)
                    body = await call.answer()
                    return call.status, body

                for target in (
                    f"http://127.0.0.2:{port}/hash",
                    f"http://localhost:{port}/hash",
                    f"http://[::ffff:127.0.0.2]:{port}/hash",
                    "http://169.254.169.254/latest",
                    "https://example.org/",
                    f"http://inside.example:{port + 1}/hash",
                ):
                    status, body = await ask(target)
                    assert (status, json.loads(body)["error"]["code"]) == (
                        403,
                        "target_not_allowed",
                    )
                # Names on the list that lead to private addresses: refused when they are dialled.
                for name in ("inside.example", "rebind.example", "mixed.example"):
                    status, body = await ask(f"http://{name}:{port}/hash")
                    assert status == 403, body
                assert origin.connections == 0
                # An address on the list may be asked for as such, also while a name leads there.
                assert (await ask(f"http://127.0.0.1:{port}/hash"))[0] == 200
                assert (await ask(f"http://rebind.example:{port}/hash"))[0] == 403
                status, _ = await ask(f"http://127.0.0.1:{port}/redirect")
                assert status == 302
                assert origin.connections == 1
            networks = {"private_networks": ["127.0.0.1/32"]}
            async with Relay(tmp_path, origin, allow=allow, lines=lines, **networks) as relay:
                assert (await ask(f"http://inside.example:{port}/hash"))[0] == 200
                assert (await ask(f"http://named.example:{port}/hash"))[0] == 403

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


def test_a_reload_takes_clients_and_certificates(tmp_path):
    async def scenario():
        async with relay_and_origin(tmp_path) as (relay, origin):
            fields = [("edged-target", f"{origin.url}/endless"), ("edged-method", "GET")]
            mine = await (await relay.call("POST", FLOW + flow_id(), fields)).head()
            theirs = await (await relay.call("POST", FLOW + flow_id(), fields, token=OTHER)).head()
            relay.config["clients"] = relay.config["clients"][1:]
            relay.write()
            note = await relay.daemon.reload("test")
            assert note.ok, note
            _, clean = await mine.read()
            assert not clean
            data, _ = await theirs.read(100_000)
            assert len(data) >= 100_000
            refused = await relay.call("POST", FLOW + flow_id(), fields)
            await refused.head()
            assert refused.status == 404
            for call in (mine, theirs, refused):
                call.hang_up()
            relay.config["clients"] = [{"name": "x", "allow": ["no way"]}]
            relay.write()
            note = await relay.daemon.reload("test")
            assert not note.ok
            assert (await (await relay.call("GET", "/", token=OTHER)).head()).status == 404

            async def serial():
                context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
                _, writer = await asyncio.open_connection("127.0.0.1", relay.port, ssl=context)
                found = writer.get_extra_info("peercert")["serialNumber"]
                writer.transport.abort()
                return found

            before = await serial()
            (tmp_path / "key.pem").write_text("nonsense")
            await asyncio.sleep(1.3)
            assert await serial() == before
            relay.issue()
            async with asyncio.timeout(10):
                while await serial() == before:
                    await asyncio.sleep(0.1)
            async with connect(relay.port, ca=str(tmp_path / "ca.pem")) as h3:
                assert (await h3.request("GET", "/").until()).status == 404

    run(scenario())


def test_clients_may_be_known_by_certificate(tmp_path):
    async def scenario():
        async with Origin() as origin:
            relay = Relay(tmp_path, origin)
            edge = relay.ca.issue_cert("edge-1")
            pem = tmp_path / "edge.pem"
            edge.private_key_and_cert_chain_pem.write_to_path(str(pem))
            der = ssl.PEM_cert_to_DER_cert(edge.cert_chain_pems[0].bytes().decode())
            relay.config["certificate"]["client_ca_file"] = "ca.pem"
            relay.config["clients"].append(
                {
                    "name": "three",
                    "certificate_sha256": sha(der),
                    "allow": [f"127.0.0.1:{origin.port}"],
                }
            )
            async with relay:
                url = relay.url + flow_id()
                headers = {"edged-target": f"{origin.url}/hash"}
                for http2 in (False, True):
                    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
                    async with httpx.AsyncClient(verify=context, http2=http2) as nobody:
                        assert (await nobody.post(url, headers=headers)).status_code == 404
                    context.load_cert_chain(pem)
                    url = relay.url + flow_id()
                    async with httpx.AsyncClient(verify=context, http2=http2) as known:
                        answer = await known.post(url, headers=headers, content=b"abc")
                        assert answer.text == f"{sha(b'abc')} 3"
                        assert (await known.get(url)).status_code == 200

    run(scenario())


def test_draining_finishes_what_flows_and_takes_nothing_new(tmp_path):
    async def scenario():
        async with relay_and_origin(tmp_path) as (relay, origin):
            fields = [("edged-target", f"{origin.url}/poll"), ("edged-method", "GET")]
            call = await relay.call("POST", FLOW + flow_id(), fields)
            await until(lambda: origin.heads)
            draining = asyncio.ensure_future(relay.daemon.drain(10))
            await asyncio.sleep(0.05)
            origin.go_on.set()
            assert await call.answer() == b"news"
            assert await draining == 0

    run(scenario())
