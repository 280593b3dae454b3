"""A whole daemon before servers that nobody here wrote: h1, h2, h3 to Caddy, nginx and HAProxy."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest
from websockets.sync.client import connect as websocket

from edged.lab.certs import make_certificates
from edged.lab.origin import Origin
from tests.harness.live import Edged, wait_for
from tests.harness.servers import CADDY, Certificate, caddy, haproxy, nginx
from tests.live.conftest import OwnLoop, need
from tests.live.stepper import Stepper

HAVE = {
    "caddy": CADDY.exists(),
    "nginx": shutil.which("nginx") is not None,
    "haproxy": shutil.which("haproxy") is not None,
}
SPOKEN = {"caddy": ("h1", "h2", "h3"), "nginx": ("h1", "h2"), "haproxy": ("h1", "h2")}
BOTH = [(server, carrier) for server, carriers in SPOKEN.items() for carrier in carriers]
MEGABYTE = 1_000_000


def marked(server, carrier):
    missing = pytest.mark.skipif(not HAVE[server], reason=f"{server} is not installed")
    return pytest.param((server, carrier), id=f"{server}-{carrier}", marks=missing)


every = pytest.mark.parametrize("way", [marked(*both) for both in BOTH])
caddys = pytest.mark.parametrize("way", [marked("caddy", c) for c in SPOKEN["caddy"]])


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """What stands behind the servers: the lab's origin, in cleartext."""
    with OwnLoop() as loop:
        directory = tmp_path_factory.mktemp("origin")
        certificates = make_certificates(directory, ["localhost"])
        origin = loop.call(_started(Origin, certificates, h3=False))
        yield origin
        loop.call(origin.stop())


async def _started(kind, *args, **named):
    made = kind(*args, **named)
    await made.start()
    return made


@pytest.fixture(scope="module")
def stepper():
    with Stepper() as running:
        yield running


CADDY_ROUTES = """
header X-Resumed {{http.request.tls.resumed}}
handle_path /files/* {{
    root {files}
    file_server
}}
@steps path /steps
reverse_proxy @steps 127.0.0.1:{stepper}
reverse_proxy 127.0.0.1:{origin}
"""
NGINX_ROUTES = """
add_header x-resumed $ssl_session_reused; ssl_session_cache shared:s:1m;
proxy_http_version 1.1; proxy_set_header upgrade $http_upgrade; proxy_request_buffering off;
proxy_set_header connection $joined; proxy_buffering off; set $joined "";
if ($http_upgrade) {{ set $joined upgrade; }}
location /files/ {{ alias {files}/; }}
location = /steps {{ proxy_pass http://127.0.0.1:{stepper}; }}
location / {{ proxy_pass http://127.0.0.1:{origin}; }}
"""
HAPROXY_RULES = "http-response set-header x-resumed %[ssl_fc_is_resumed]"


@contextlib.contextmanager
def all_servers(directory, origin, stepper, patience_s):
    """Those that are here, in front of the origin; each keeps idle connections for so long."""
    (directory / "files").mkdir()
    certificate = Certificate.make(directory)
    named = {"files": directory / "files", "origin": origin.cleartext_port, "stepper": stepper.port}
    ports = {}
    with contextlib.ExitStack() as stack:
        if HAVE["caddy"]:
            routes = CADDY_ROUTES.format(**named)
            started = caddy(
                directory, certificate, routes, protocols="h1 h2 h3", patience_s=patience_s
            )
            ports["caddy"] = stack.enter_context(started).port
        if HAVE["nginx"]:
            routes = NGINX_ROUTES.format(**named)
            started = nginx(directory, certificate, routes, h2=True, patience_s=patience_s)
            ports["nginx"] = stack.enter_context(started).port
        if HAVE["haproxy"]:
            started = haproxy(
                directory,
                certificate,
                origin.cleartext_port,
                rules=HAPROXY_RULES,
                patience_s=patience_s,
            )
            ports["haproxy"] = stack.enter_context(started).port
        yield SimpleNamespace(directory=directory, ca=certificate.ca_file, ports=ports)


def upstreams(site, ways):
    """A gateway prefix and an upstream for each (server, carrier)."""
    return {
        "upstreams": [
            {
                "name": f"{server}-{carrier}",
                "prefix": f"/{server}-{carrier}",
                "endpoints": [
                    {
                        "name": "one",
                        "url": f"https://localhost:{site.ports[server]}",
                        "address": "127.0.0.1",
                        "protocols": [carrier],
                    }
                ],
            }
            for server, carrier in ways
            if server in site.ports
        ],
        "tls": {"ca_file": site.ca},
        "log": {"access": None},
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory, origin, stepper):
    with all_servers(tmp_path_factory.mktemp("site"), origin, stepper, 60) as running:
        yield running


@pytest.fixture(scope="module")
def edged(site, tmp_path_factory):
    with Edged(upstreams(site, BOTH), tmp_path_factory.mktemp("edged")) as running:
        yield running


def prefix(way):
    return "/" + "-".join(way)


def curl(*arguments):
    return subprocess.run(
        [need("curl"), "-sS", "--max-time", "30", *arguments],
        capture_output=True,
        check=True,
    ).stdout


# -- requests -------------------------------------------------------------------------------------


@every
def test_requests_take_the_carrier(edged, way):
    body = os.urandom(300_000)
    answer = edged.fetch(f"{prefix(way)}/echo", "POST", body=body)
    assert answer.status == 200
    assert (answer.json["method"], answer.json["length"]) == ("POST", len(body))
    assert answer.json["sha256"] == hashlib.sha256(body).hexdigest()
    for _ in range(2):  # what the first answer advertised changes nothing
        why = edged.why(answer)["request"]
        assert (why["carrier"], why["path"]) == (way[1], f"default>{way[0]}-{way[1]}/one")
        answer = edged.fetch(f"{prefix(way)}/echo")
    assert b'"GET"' in curl("--http2-prior-knowledge", f"{edged.url}{prefix(way)}/echo")


@every
def test_head_has_a_length_and_no_body(edged, way):
    response = edged.open(f"{prefix(way)}/bytes/100000", "HEAD")
    assert response.headers["content-length"] == "100000"
    assert response.read() == b""
    same = response.connection
    same.request("GET", f"{prefix(way)}/bytes/1000")
    assert len(same.getresponse().read()) == 1000
    same.close()


interim = pytest.mark.parametrize("way", [marked(*both) for both in BOTH if both[0] != "nginx"])


@interim  # nginx takes a 103 for the final response
def test_early_hints_are_passed_on(edged, way, tmp_path):
    heads = tmp_path / "heads"
    assert json.loads(curl("-D", str(heads), f"{edged.url}{prefix(way)}/hints"))["hinted"]
    first, last = heads.read_text().strip().replace("\r", "").split("\n\n")
    assert (first.split()[1], last.split()[1]) == ("103", "200")
    assert "rel=preload" in first


@every
def test_trailers_are_passed_on(edged, way, tmp_path):
    heads = tmp_path / "heads"
    body = curl("-D", str(heads), f"{edged.url}{prefix(way)}/trailers?n=3")
    assert body == b"part 0\npart 1\npart 2\n"
    digest = hashlib.sha256(body).hexdigest()
    # nginx drops them before they come here.
    assert (f"x-sha256: {digest}" in heads.read_text().lower()) is (way[0] != "nginx")


def test_request_trailers(edged):
    if not HAVE["haproxy"]:
        pytest.skip("haproxy is not installed")
    for carrier in SPOKEN["haproxy"]:
        with socket.create_connection(("127.0.0.1", edged.port), 30) as sock:
            sock.sendall(
                f"POST /haproxy-{carrier}/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                "Transfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n"
                "5\r\nhello\r\n0\r\nx-sum: 17\r\n\r\n".encode()
            )
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        assert b'["x-sum", "17"]' in answer, answer
        assert b'"length": 5' in answer


# -- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [marked(*both) for both in BOTH if both[0] != "haproxy"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_events_arrive_one_by_one(edged, stepper, way, method):
    # The origin says the next event only when the one before has arrived here.
    stepper.say(b"data: 0\n\n")
    stream = edged.open(f"{prefix(way)}/steps", method, body=b"x" if method == "POST" else None)
    for number in range(5):
        assert stream.readline() == b"data: %d\n" % number
        assert stream.readline() == b"\n"
        stepper.say(b"data: %d\n\n" % (number + 1))
    assert stream.readline() == b"data: 5\n"
    stepper.end()
    assert stream.read() == b"\n"
    stream.leave()


@every
def test_websocket_through_the_gateway(edged, way):
    # Upgrades go over h1 whatever the endpoint speaks.
    url = f"ws://127.0.0.1:{edged.port}{prefix(way)}/ws"
    with websocket(url, proxy=None, max_size=None) as client:
        exchange_messages(client)


@pytest.mark.parametrize("way", [marked(server, "h1") for server in SPOKEN])
def test_websocket_through_connect(edged, site, way):
    authority = f"localhost:{site.ports[way[0]]}"
    trust = ssl.create_default_context(cafile=site.ca)
    sock = edged.tunnel(authority)
    with websocket(f"wss://{authority}/ws", sock=sock, ssl=trust, proxy=None, max_size=None) as ws:
        exchange_messages(ws)


def exchange_messages(client):
    for message in ("hello", "", "é" * 10_000, b"\x00\xff" * 200_000):
        client.send(message)
        assert client.recv(timeout=30) == message


# -- sessions -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fleeting(tmp_path_factory, origin, stepper):
    """The same servers, but they close what was idle for a second."""
    directory = tmp_path_factory.mktemp("fleeting")
    with (
        all_servers(directory, origin, stepper, 1) as servers,
        Edged(upstreams(servers, BOTH), directory) as running,
    ):
        yield running


@every
def test_tls_sessions_resume(fleeting, way):
    resumed = {"caddy": "true", "nginx": "r", "haproxy": "1"}[way[0]]

    def seen():
        answer = fleeting.fetch(f"{prefix(way)}/bytes/10")
        assert answer.status == 200
        return answer.headers["x-resumed"] == resumed

    wait_for(seen, "a resumed session", step_s=1.3)


@pytest.mark.skipif(not HAVE["caddy"], reason="caddy is not installed")
def test_a_safe_request_goes_out_in_0rtt(fleeting):
    def connections():
        stats = fleeting.status()["pools"]
        return sum(p["connections"].get("h3", 0) for p in stats if "caddy-h3" in p["path"])

    def early():
        # Caddy closed the idle connection; the next request must dial.
        wait_for(lambda: connections() == 0, "the server to close", step_s=0.01)
        answer = fleeting.fetch("/caddy-h3/echo", "GET")
        assert answer.status == 200
        return ["early-data", "1"] in answer.json["headers"]

    wait_for(early, "a request in 0-RTT", limit_s=40)
    wait_for(lambda: connections() == 0, "the server to close", step_s=0.01)
    answer = fleeting.fetch("/caddy-h3/echo", "POST", body=b"not twice")
    assert answer.json["length"] == 9
    assert "early-data" not in dict(answer.json["headers"])


# -- bodies ---------------------------------------------------------------------------------------

DOWN, UP = 100 * MEGABYTE, 50 * MEGABYTE
GROWTH = 32 * MEGABYTE


class Watch:
    """The most memory that a process held while the block ran, beyond what it held before."""

    def __init__(self, process):
        self.process = process
        self.first = process.memory_info().rss
        self.grown = 0
        self._over = threading.Event()

    def __enter__(self):
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _look(self):
        while not self._over.wait(0.01):
            self.grown = max(self.grown, self.process.memory_info().rss - self.first)


@pytest.fixture(scope="module")
def big(site):
    """A file that the servers have; its SHA-256."""
    block, digest = os.urandom(MEGABYTE), hashlib.sha256()
    with (site.directory / "files" / "big").open("wb") as file:
        for number in range(DOWN // MEGABYTE):
            piece = number.to_bytes(8, "big") + block[8:]
            file.write(piece)
            digest.update(piece)
    return digest.hexdigest()


@caddys
def test_large_bodies_pass_whole_in_flat_memory(site, big, way, tmp_path):
    with Edged(upstreams(site, [way]), tmp_path) as edged:
        assert edged.fetch(f"{prefix(way)}/echo", "POST", body=b"warm").status == 200
        with Watch(edged.usage) as watch:
            assert download(edged, f"{prefix(way)}/files/big") == (DOWN, big)
        down_grown = watch.grown
        with Watch(edged.usage) as watch:
            sent, answer = upload(edged, f"{prefix(way)}/upload")
        assert (answer["length"], answer["sha256"]) == (UP, sent)
        print(f"{way[1]}: RSS grew by {down_grown / 1e6:.1f} MB, {watch.grown / 1e6:.1f} MB")
        assert down_grown < GROWTH
        assert watch.grown < GROWTH


def download(edged, path):
    """At a stretch, but for some rests in which the servers want to go on sending."""
    response, digest, size = edged.open(path), hashlib.sha256(), 0
    while data := response.read(1 << 16):
        digest.update(data)
        if size // (20 * MEGABYTE) != (size + len(data)) // (20 * MEGABYTE):
            time.sleep(0.2)
        size += len(data)
    response.leave()
    return size, digest.hexdigest()


def upload(edged, path):
    """Chunked; the SHA-256 of what was sent and the origin's answer."""
    block, digest = os.urandom(1 << 16), hashlib.sha256()

    def pieces():
        left = UP
        while left:
            piece = block[: min(left, len(block))]
            left -= len(piece)
            digest.update(piece)
            yield piece

    answer = edged.fetch(path, "POST", body=pieces(), timeout=60)
    return digest.hexdigest(), answer.json
