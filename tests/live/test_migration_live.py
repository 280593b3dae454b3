"""A token stream over HTTP/3 from Caddy survives the silent death of its line, on both engines."""

import contextlib
import json
import re
from types import SimpleNamespace

import pytest

from edged.lab.certs import make_certificates
from edged.lab.lines import Lines, LineSpec
from edged.lab.origin import Origin
from edged.lab.tcp import TcpFront
from edged.lab.udp import UdpFront
from tests.harness.h3 import both_engines
from tests.harness.live import Edged, wait_for
from tests.harness.servers import CADDY, Certificate, caddy
from tests.live.conftest import OwnLoop

pytestmark = [
    both_engines,
    pytest.mark.skipif(not CADDY.exists(), reason="caddy is not installed"),
]
ADDRESS = "127.72.9.1"
TOKENS = 50
RATE = 20
LINES = (
    LineSpec.symmetric("near", "127.71.6.2", rtt_s=0.060, loss=0.001),
    LineSpec.symmetric("far", "127.71.7.2", rtt_s=0.150, loss=0.010),
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A Caddy behind two emulated lines: the loop they run in, the lines, and edged's config."""
    directory = tmp_path_factory.mktemp("site")
    certificate = Certificate.make(directory)
    with contextlib.ExitStack() as stack:
        loop = stack.enter_context(OwnLoop())
        certificates = make_certificates(tmp_path_factory.mktemp("origin"), ["localhost"])
        origin = loop.do(Origin, certificates, h3=False)
        loop.call(origin.start())
        stack.callback(lambda: loop.call(origin.stop()))
        routes = f"reverse_proxy 127.0.0.1:{origin.cleartext_port}"
        server = stack.enter_context(caddy(directory, certificate, routes, protocols="h1 h2 h3"))
        lines = Lines(LINES, 3)
        target = ("127.0.0.1", server.port)
        tcp, udp = loop.do(TcpFront, lines, target), loop.do(UdpFront, lines, target)
        loop.do(tcp.start, ADDRESS, server.port)
        stack.callback(lambda: loop.call(tcp.stop()))
        loop.do(udp.start, ADDRESS, server.port)
        stack.callback(lambda: loop.do(udp.stop))
        endpoint = {
            "name": "e",
            "url": f"https://localhost:{server.port}",
            "address": ADDRESS,
            "protocols": ["h3"],
        }
        config = {
            "lines": [{"name": line.name, "bind": {"source": line.spec.source}} for line in lines],
            "upstreams": [{"name": "api", "prefix": "/api", "endpoints": [endpoint]}],
            "tls": {"ca_file": certificate.ca_file},
            "log": {"access": "access.log"},
            "limits": {"drain_s": "100ms"},
        }
        yield SimpleNamespace(loop=loop, lines=lines, config=config)


@pytest.fixture
def edged(site, engine, tmp_path):
    with Edged(site.config, tmp_path, env={"EDGED_ENGINES": engine}) as edged:
        yield edged
    for line in LINES:
        site.loop.do(site.lines.restore, line.name)


def flights(edged):
    """Attempts in flight by line, as the status has them."""
    upstream = next(u for u in edged.status()["upstreams"] if u["name"] == "api")
    return {path["line"]: path["in_flight"] for path in upstream["paths"]}


def test_every_token_once_and_in_order(site, edged, tmp_path):
    wait_for(lambda: edged.fetch("/api/echo", "POST", body=b"x").status == 200, "an answer")
    response = edged.open(f"/api/sse?n={TOKENS}&rate={RATE}")
    tokens, left, came_to = [], None, None
    while line := response.readline():
        if token := re.match(rb'data: .*"i": ?(\d+)', line):
            tokens.append(int(token[1]))
            if len(tokens) == TOKENS // 2:
                (left,) = (name for name, count in flights(edged).items() if count)
                site.loop.do(site.lines.blackhole, left)
            if len(tokens) == TOKENS - 2:
                (came_to,) = (name for name, count in flights(edged).items() if count)
    assert tokens == list(range(TOKENS))
    assert came_to == {"near": "far", "far": "near"}[left]
    assert edged.gauge("edged_migrations_total", 'upstream="api"') == 1
    log = wait_for(lambda: _record(tmp_path), "the access log")
    assert log["path"].startswith(f"{came_to}>")
    tried = [(t["path"].partition(">")[0], t["why"], t["outcome"]) for t in log["tried"]]
    # Where the first was slow to connect, another one was raced.
    (first, why, outcome), last = tried[-2:]
    assert (first, outcome, why in ("first", "race")) == (left, "moved", True)
    assert last == (came_to, "migration", "ok")
    assert all(outcome == "cancelled" for _, _, outcome in tried[:-2])
    # The connection is the other line's now, and serves there.
    assert edged.fetch("/api/echo", "POST", body=b"x").status == 200


def _record(directory):
    lines = (directory / "access.log").read_text().splitlines()
    return next((r for r in map(json.loads, lines) if r["target"] == "/sse"), None)
