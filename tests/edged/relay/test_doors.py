"""A whole relay on real sockets: who is let in, where to, and what they may hold."""

import asyncio
import io
import json
import shutil
import ssl

import httpx
import pytest
from rich.console import Console

from edged import resolver
from edged.admin.text import print_status
from edged.relay.flow import HISTORY
from tests.harness.h2client import H2Client
from tests.harness.h3client import connect
from tests.harness.live import free_port
from tests.harness.nameserver import NameServer

from .live import (
    FLOW,
    OTHER,
    PULSE,
    TOKEN,
    Origin,
    Relay,
    flow_id,
    relay_and_origin,
    run,
    sha,
    until,
)

needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")


def test_a_client_that_does_not_come_back_frees_all(tmp_path):
    async def scenario():
        async with relay_and_origin(tmp_path, journal={"linger_s": 0.3}) as (relay, origin):
            for _ in range(5):
                fields = [("edged-target", f"{origin.url}/endless"), ("edged-method", "GET")]
                call = await relay.call("POST", FLOW + flow_id(), fields)
                await call.head()
                call.hang_up()
            assert relay.flows.ledgers["one"].opened == 5
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
                most = (1 if flow.acknowledges else 1 + HISTORY) * (256 << 10)
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


def test_a_name_that_leads_elsewhere_after_it_was_allowed_is_judged_anew(tmp_path, monkeypatch):
    """DNS rebinding: what counts is the address of each connection."""
    monkeypatch.setattr(resolver, "MIN_TTL_S", 0.0)

    async def scenario():
        async with NameServer() as dns, Origin() as origin:
            port, dns.ttl = origin.port, 0
            dns.zone["name.example", "A"] = ["127.0.0.1"]
            more = {
                "allow": [f"*:{port}"],
                "lines": [{"name": "default", "dns": [dns.server]}],
                "private_networks": ["127.0.0.1/32"],
            }
            async with Relay(tmp_path, origin, **more) as relay:

                async def ask(target, method="GET"):
                    fields = [("edged-target", target), ("edged-method", method)]
                    call = await relay.call("POST", FLOW + flow_id(), fields)
                    await call.head()
                    call.hang_up()
                    return call.status

                assert await ask(f"http://name.example:{port}/cutchunked/1") == 200
                dns.zone["name.example", "A"] = ["127.0.0.2"]
                async with asyncio.timeout(10):  # the old answer serves while the new one comes
                    while await ask(f"http://name.example:{port}/cutchunked/1") != 403:
                        await asyncio.sleep(0.02)
                connections = origin.connections
                for number, addresses in enumerate(
                    (["127.0.0.2"], ["10.0.0.1", "127.0.0.2"], ["169.254.169.254"], ["0.0.0.0"])
                ):
                    dns.zone["name.example", "A"] = addresses
                    other = f"other{number}.example"
                    dns.zone[other, "A"] = addresses
                    assert await ask(f"http://name.example:{port}/hash") == 403
                    assert await ask(f"name.example:{port}", "CONNECT") == 403
                    assert await ask(f"http://{other}:{port}/hash") == 403
                # Names that are numbers to some, and addresses in disguise.
                for host in (
                    "2130706434",
                    "0x7f000002",
                    "127.2",
                    "[::1]",
                    "[::ffff:7f00:2]",
                    "[64:ff9b::a9fe:a9fe]",
                    "[2002:7f00:2::1]",
                ):
                    assert await ask(f"http://{host}:{port}/hash") in (403, 502, 503), host
                    assert await ask(f"{host}:{port}", "CONNECT") in (403, 502, 503), host
                assert origin.connections == connections
                dns.zone["again.example", "A"] = ["127.0.0.1"]
                assert await ask(f"http://again.example:{port}/hash") == 200

    run(scenario())


def test_redirects_are_not_followed(tmp_path):
    async def scenario():
        async with Origin() as elsewhere, relay_and_origin(tmp_path) as (relay, origin):
            target = f"{origin.url}/redirect/{elsewhere.port}"
            call = await relay.call("POST", FLOW + flow_id(), [("edged-target", target)], b"x")
            assert await call.answer() == b""
            assert (call.status, call.headers["location"]) == (302, f"{elsewhere.url}/hash")
            assert (origin.connections, elsewhere.connections) == (1, 0)

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


class Frames:
    """What `H2Client` needs to send and read over TLS."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    def send(self, data):
        self.writer.write(data)


async def h2(relay):
    context = ssl.create_default_context(cafile=str(relay.directory / "ca.pem"))
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port, ssl=context)
    return H2Client(Frames(reader, writer))


def opening(origin, path, flow, token=TOKEN):
    return [
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":authority", b"relay"),
        (b":path", (FLOW + flow).encode()),
        (b"proxy-authorization", b"Bearer " + token.encode()),
        (b"edged-target", f"{origin.url}/{path}".encode()),
        (b"content-length", b"10"),
    ]


def test_thousands_of_half_open_flows_are_bounded_and_harm_nobody(tmp_path):
    async def scenario():
        more = {"one": {"flows": 600}}
        journal = {"linger_s": 0.5}
        async with relay_and_origin(tmp_path, more=more, journal=journal) as (relay, origin):
            clients = [await h2(relay) for _ in range(3)]
            for n in range(3000):
                client = clients[n % 3]
                stream = 2 * (n // 3) + 1
                client.headers(stream, opening(origin, "hash", flow_id()), end=False)
                if n % 100 == 0:
                    await asyncio.sleep(0)
            await asyncio.gather(
                *(
                    client.until(lambda c=client, n=n: sum(map(len, c.heads.values())) >= n)
                    for client, n in zip(clients, (700, 700, 700), strict=True)
                )
            )
            await until(lambda: relay.flows.ledgers["one"].refused == 2400)
            assert relay.flows.count == 600
            statuses = {
                head[0][1]
                for client in clients
                for heads in client.heads.values()
                for head in heads
            }
            assert statuses == {b"429"}
            # The other client, and the same one's flows that are there, go on.
            fields = [("edged-target", f"{origin.url}/hash")]
            other = await relay.call("POST", FLOW + flow_id(), fields, b"abc", token=OTHER)
            assert await other.answer() == f"{sha(b'abc')} 3".encode()
            for client in clients:
                client.raw.writer.transport.abort()
            await until(lambda: relay.flows.count == 0)
            assert not relay.daemon.exchanges.live

    run(scenario())


@pytest.mark.parametrize("engine", ["aioquic", "qh3"])
def test_0rtt_joins_flows_and_opens_none(tmp_path, engine):
    if engine == "qh3":
        pytest.importorskip("qh3")

    async def scenario():
        async with relay_and_origin(tmp_path) as (relay, origin):
            ca = str(tmp_path / "ca.pem")
            auth = ("proxy-authorization", f"Bearer {TOKEN}")
            fields = [auth, ("edged-target", f"{origin.url}/hash"), ("edged-method", "GET")]
            known, unknown = FLOW + flow_id(), FLOW + flow_id()
            tickets = []
            async with connect(relay.port, ca=ca, engine=engine, on_ticket=tickets.append) as h3:
                assert (await h3.request("POST", known, fields).until()).status == 200
                await until(lambda: tickets)
            async with connect(relay.port, ca=ca, engine=engine, ticket=tickets[0]) as h3:
                opens = h3.request("POST", unknown, fields)
                joins = h3.request("POST", known, fields)
                reads = h3.request("GET", known, [auth])
                for reply in (opens, joins, reads):
                    await reply.until()
                assert (opens.status, joins.status, reads.status) == (425, 200, 200)
                # Once the handshake is complete it is no replay.
                assert (await h3.request("POST", unknown, fields).until()).status == 200
            assert len(origin.heads) == 2

    run(scenario())


def test_the_admin_pages_tell_of_flows_and_clients(tmp_path):
    async def scenario():
        admin = free_port()
        listen = {"relay": "127.0.0.1:0", "admin": f"127.0.0.1:{admin}"}
        async with relay_and_origin(tmp_path, listen=listen) as (relay, origin):
            fields = [("edged-target", f"{origin.url}/hash")]
            await (await relay.call("POST", FLOW + flow_id(), fields, b"abc")).answer()
            await (await relay.call("GET", "/", token=None)).answer()
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{admin}") as client:
                status = (await client.get("/status")).json()
                metrics = (await client.get("/metrics")).text
            assert status["relay"]["flows"] == 1
            assert status["relay"]["journal_bytes"] == relay.flows.account.used_bytes > 0
            one = status["relay"]["clients"][0]
            assert (one["name"], one["flows"], one["finished"], one["opened"]) == ("one", 1, 1, 1)
            assert "edged_relay_flows 1.0" in metrics
            assert 'edged_relay_opened_total{client="one"} 1.0' in metrics
            assert "edged_relay_strangers_total 1.0" in metrics
            console = Console(file=io.StringIO(), width=100)
            print_status(console, status)
            said = console.file.getvalue()
            assert "1 flows, 0.0 of 268 MB of responses kept, 1 requests of strangers" in said
            assert "one: 1 flows (1 finished)" in said

    run(scenario())
