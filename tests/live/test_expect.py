"""Clients that wait for 100 (Continue) before servers that nobody here wrote."""

import contextlib
import json
import shutil
import socket
import subprocess

import h2.config
import h2.connection
import h2.events
import pytest

from edged.lab.certs import make_certificates
from edged.lab.origin import Origin
from tests.harness.live import Edged
from tests.harness.servers import CADDY, Certificate, caddy, nginx
from tests.live.conftest import OwnLoop, need

SPOKEN = {"caddy": ("h1", "h2", "h3"), "nginx": ("h1", "h2")}
HAVE = {"caddy": CADDY.exists(), "nginx": shutil.which("nginx") is not None}
BOTH = [(server, carrier) for server, carriers in SPOKEN.items() for carrier in carriers]
UP = 50_000_000


def over(ways):
    return pytest.mark.parametrize(
        "way",
        [
            pytest.param(
                f"{server}-{carrier}",
                marks=pytest.mark.skipif(not HAVE[server], reason=f"{server} is not installed"),
            )
            for server, carrier in ways
        ],
    )


every = over(BOTH)
judging = over([way for way in BOTH if way[1] != "h1"])
"""Over HTTP/1.1 both servers want the body before they say 401: nginx sends 100, Caddy nothing."""

CADDY_ROUTES = "respond /denied denied 401\nreverse_proxy 127.0.0.1:{origin}"
NGINX_ROUTES = """
location = /denied {{ return 401 denied; }}
location = /small {{ client_max_body_size 1m; proxy_pass http://127.0.0.1:{origin}; }}
location / {{ proxy_pass http://127.0.0.1:{origin}; proxy_http_version 1.1;
proxy_request_buffering off; }}
"""


@pytest.fixture(scope="module")
def edged(tmp_path_factory):
    """One upstream for each server and carrier, under a prefix."""
    directory = tmp_path_factory.mktemp("expect")
    certificate = Certificate.make(directory)
    own = tmp_path_factory.mktemp("origin")
    with OwnLoop() as loop, contextlib.ExitStack() as stack:
        origin = Origin(make_certificates(own, ["localhost"]), h3=False)
        loop.call(origin.start())
        stack.callback(lambda: loop.call(origin.stop()))
        servers = {}
        if HAVE["caddy"]:
            routes = CADDY_ROUTES.format(origin=origin.cleartext_port)
            started = caddy(directory, certificate, routes, protocols="h1 h2 h3")
            servers["caddy"] = stack.enter_context(started)
        if HAVE["nginx"]:
            routes = NGINX_ROUTES.format(origin=origin.cleartext_port)
            servers["nginx"] = stack.enter_context(nginx(directory, certificate, routes, h2=True))
        upstreams = [
            {
                "name": f"{server}-{carrier}",
                "prefix": f"/{server}-{carrier}",
                "endpoints": [
                    {
                        "name": "one",
                        "url": f"https://localhost:{servers[server].port}",
                        "address": "127.0.0.1",
                        "protocols": [carrier],
                    }
                ],
            }
            for server, carrier in BOTH
            if server in servers
        ]
        config = {"upstreams": upstreams, "tls": {"ca_file": certificate.ca_file}}
        yield stack.enter_context(Edged(config, directory))


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    file = tmp_path_factory.mktemp("big") / "big"
    with file.open("wb") as writer:
        writer.truncate(UP)
    return file


def put(url, file):
    """Status and sent bytes, by curl; it waits longer for 100 than edged does."""
    options = ["-sS", "--max-time", "60", "--expect100-timeout", "30", "-H", "Expect:100-continue"]
    options += ["-T", str(file), "-o", f"{file}.answer", "-w", "%{http_code} %{size_upload}"]
    command = [need("curl"), *options, url]
    said = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    return tuple(map(int, said.split()))


@judging
def test_an_answer_to_the_head_saves_the_body(edged, big, way):
    assert put(f"{edged.url}/{way}/denied", big) == (401, 0)


@pytest.mark.skipif(not HAVE["nginx"], reason="nginx is not installed")
@pytest.mark.parametrize("carrier", SPOKEN["nginx"])
def test_a_length_that_is_refused_saves_the_body(edged, big, carrier):
    assert put(f"{edged.url}/nginx-{carrier}/small", big) == (413, 0)


@every
def test_a_body_that_is_wanted_arrives(edged, big, way):
    # nginx says no 100 over HTTP/2: then edged does.
    assert put(f"{edged.url}/{way}/echo", big) == (200, UP)
    with open(f"{big}.answer") as answer:
        assert json.load(answer)["length"] == UP


@every
def test_a_client_on_http2_is_told_likewise(edged, way):
    assert asked_over_h2(edged.port, f"/{way}/echo") == [100, 200]


@judging
def test_a_client_on_http2_is_answered_likewise(edged, way):
    assert asked_over_h2(edged.port, f"/{way}/denied") == [401]


def asked_over_h2(port, path):
    """The statuses of a PUT whose client sends its body after 100 and not before."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    fields = {":method": "PUT", ":scheme": "http", ":authority": "x", ":path": path}
    fields |= {"expect": "100-continue", "content-length": "5"}
    client.send_headers(1, list(fields.items()))
    statuses = []
    with socket.create_connection(("127.0.0.1", port), 30) as sock:
        while True:
            sock.sendall(client.data_to_send())
            data = sock.recv(65536)
            assert data
            for event in client.receive_data(data):
                if isinstance(event, h2.events.InformationalResponseReceived):
                    statuses.append(int(dict(event.headers)[":status"]))
                    client.send_data(1, b"hello", end_stream=True)
                elif isinstance(event, h2.events.ResponseReceived):
                    statuses.append(int(dict(event.headers)[":status"]))
                elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
                    return statuses
