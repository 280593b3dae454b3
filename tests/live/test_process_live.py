"""A whole daemon's start, permissions, reloads, drain, and clients that vanish."""

import http.client
import os
import signal
import socket
import subprocess
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.harness.live import ROOT, Edged, wait_for
from tests.harness.servers import CADDY, Certificate, caddy
from tests.live.conftest import need
from tests.live.stepper import Stepper

with_caddy = pytest.mark.skipif(not CADDY.exists(), reason="caddy is not installed")
carriers = pytest.mark.parametrize("carrier", ["h1", "h2", "h3"])


# -- what may be in the way of a start ------------------------------------------------------------


@pytest.mark.parametrize("listener", ["proxy", "admin"])
def test_a_port_in_use_is_one_line_and_status_1(listener, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listen = {"proxy": "127.0.0.1:0", "admin": "127.0.0.1:0", listener: f"127.0.0.1:{port}"}
        edged = Edged({"listen": listen}, tmp_path)
        done = subprocess.run(
            [*Edged.EXECUTABLE, "run", "-c", str(edged.file)],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=ROOT,
            check=False,
        )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert str(port) in line
    assert "in use" in line


class Ok(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


@pytest.fixture
def plain():
    """A plain origin's port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Ok)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def without_icmp():
    """A prefix to a command that may send no ICMP, by neither way; skips where there is none."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ping_group_range").read_text().split())
    groups = {os.getegid(), *os.getgroups()}
    prefix = [need("setpriv")]
    if os.geteuid() == 0:
        prefix += ["--bounding-set=-net_raw", "--inh-caps=-net_raw"]
        if any(first <= group <= last for group in groups):
            if last > 65000:
                pytest.skip("every group may send ICMP here (net.ipv4.ping_group_range)")
            prefix += [f"--regid={last + 1}", "--clear-groups"]
    elif any(first <= group <= last for group in groups):
        pytest.skip("this group may send ICMP (net.ipv4.ping_group_range)")
    return prefix


def test_without_permission_for_icmp_there_is_one_warning_and_all_else_works(plain, tmp_path):
    (tmp_path / "policies.d").mkdir()
    often = "cadence: {icmp_s: 50ms, tcp_s: 100ms, http_s: 1s}\n"
    (tmp_path / "policies.d" / "often.yaml").write_text(often)
    lines = [{"name": name, "bind": {"source": f"127.0.8.{n}"}} for n, name in enumerate("ab", 1)]
    config = {
        "lines": lines,
        "upstreams": [
            {
                "name": "api",
                "prefix": "/api",
                "policy": "often",
                "endpoints": [{"name": "one", "url": f"http://127.0.0.1:{plain}"}],
            }
        ],
        "log": {"access": None},
    }
    with Edged(config, tmp_path, executable=(*without_icmp(), *Edged.EXECUTABLE)) as edged:

        def measured():
            assert edged.fetch("/api/x").body == b"ok"
            (upstream,) = edged.status()["upstreams"]
            return all(path["samples"] >= 5 for path in upstream["paths"])

        wait_for(measured, "TCP probes of both lines")
        (upstream,) = edged.status()["upstreams"]
        assert [path["verdict"] for path in upstream["paths"]] == ["UP", "UP"]
        warnings = [line for line in edged.log.splitlines() if "ICMP" in line]
        assert len(warnings) == 1, warnings
        assert "WARNING" in warnings[0]
        assert "ping_group_range" in warnings[0]


# -- reload and drain under a stream --------------------------------------------------------------


@pytest.fixture
def site(request, tmp_path):
    """edged before a Caddy before a `Stepper`, with one carrier and a policy of its own."""
    carrier = request.getfixturevalue("carrier")
    certificate = Certificate.make(tmp_path)
    files = tmp_path / "files"
    files.mkdir()
    with ExitStack() as stack:
        stepper = stack.enter_context(Stepper())
        routes = (
            f"handle_path /files/* {{\n root {files}\n file_server\n }}\n"
            f"reverse_proxy 127.0.0.1:{stepper.port}"
        )
        started = caddy(tmp_path, certificate, routes, protocols="h1 h2 h3")
        port = stack.enter_context(started).port
        (tmp_path / "policies.d").mkdir()
        policy = tmp_path / "policies.d" / "mine.yaml"
        policy.write_text("cadence: {icmp_s: null, tcp_s: null, http_s: null, quic_s: null}\n")
        endpoint = {
            "name": "one",
            "url": f"https://localhost:{port}",
            "address": "127.0.0.1",
            "protocols": [carrier],
        }
        config = {
            "upstreams": [
                {"name": "api", "prefix": "/api", "policy": "mine", "endpoints": [endpoint]}
            ],
            "tls": {"ca_file": certificate.ca_file},
            "log": {"access": None},
        }
        edged = stack.enter_context(Edged(config, tmp_path))
        yield SimpleNamespace(edged=edged, stepper=stepper, policy=policy, files=files)


def heard(site, stream, text):
    """The origin says it, and it comes out of the stream."""
    site.stepper.say(text + b"\n")
    assert stream.readline() == text + b"\n"


@with_caddy
@pytest.mark.parametrize("carrier", ["h1", "h3"])
def test_reloads_leave_an_open_stream_alone(site, carrier):
    edged = site.edged
    stream = edged.open("/api/steps")
    heard(site, stream, b"before")

    def reloaded(since, by):
        note = edged.status()["reload"]
        return note["at"] > since and note["by"] == by and note

    started = edged.status()["reload"]["at"]
    site.policy.write_text("extends: realtime\nretry: {max_attempts: many}\n")
    refused = wait_for(lambda: reloaded(started, "policy file"), "the refusal")
    assert not refused["ok"]
    assert "mine.yaml:2:" in refused["mistakes"][0]
    assert edged.status()["upstreams"][0]["policy"] == "mine"
    heard(site, stream, b"after a bad policy")

    site.policy.write_text("extends: realtime\n")
    taken = wait_for(lambda: reloaded(refused["at"], "policy file"), "the policy")
    assert taken["ok"]
    heard(site, stream, b"after a good policy")

    good = edged.file.read_text()
    edged.file.write_text(good.replace("prefix: /api", "prefix: api"))
    edged.process.send_signal(signal.SIGHUP)
    refused = wait_for(lambda: reloaded(taken["at"], "SIGHUP"), "the refusal")
    assert not refused["ok"]
    assert "edged.yaml:" in refused["mistakes"][0]
    (site.files / "x").write_text("still there")
    assert edged.fetch("/api/files/x").body == b"still there"

    edged.file.write_text(good.replace("prefix: /api", "prefix: /v2"))
    edged.process.send_signal(signal.SIGHUP)
    assert wait_for(lambda: reloaded(refused["at"], "SIGHUP"), "the reload")["ok"]
    assert edged.fetch("/v2/files/x").body == b"still there"
    assert edged.fetch("/api/files/x").status == 404
    heard(site, stream, b"after a new configuration")
    assert edged.gauge("edged_pool_opened_total") <= (2 if carrier == "h1" else 1)
    site.stepper.end()
    assert stream.read() == b""
    stream.leave()


@with_caddy
@carriers
def test_sigterm_finishes_what_is_in_flight(site, carrier):
    edged = site.edged
    stream = edged.open("/api/steps")
    heard(site, stream, b"before")
    idle = http.client.HTTPConnection("127.0.0.1", edged.port, timeout=30)
    idle.request("GET", "/api/files/none")
    assert idle.getresponse().read() is not None
    edged.process.send_signal(signal.SIGTERM)

    def refuses():
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", edged.port)) != 0

    wait_for(refuses, "the listener to close")
    assert idle.sock.recv(1) == b"", "idle clients are let go"
    for number in range(5):
        heard(site, stream, b"draining %d" % number)
    assert edged.process.poll() is None
    site.stepper.end()
    assert stream.read() == b""
    assert edged.process.wait(20) == 0
    stream.leave()
    assert "cut off" not in edged.log


# -- clients that vanish --------------------------------------------------------------------------

SIZE = 40_000_000


def held(edged):
    """What exchanges hold: the gauges by name, and descriptors beside those of the pools."""
    gauges = (
        *("edged_exchanges_in_flight", "edged_client_connections", "edged_client_requests_open"),
        *("edged_path_in_flight", "edged_pool_in_flight", "edged_pool_waiting"),
    )
    found = {name: edged.gauge(name) for name in gauges}
    found["descriptors"] = edged.usage.num_fds() - edged.gauge("edged_pool_connections")
    return found


def five_clients(site, version):
    """Downloads, uploads and a request without an answer, all under way."""
    curl = [need("curl"), "-sS", version, "--limit-rate", "1M", "-o", "/dev/null"]
    url, big = f"{site.edged.url}/api", str(site.files / "big")
    clients = [
        subprocess.Popen([*curl, *arguments], stderr=subprocess.DEVNULL)
        for arguments in (
            [f"{url}/files/big"],
            [f"{url}/files/big"],
            ["-T", big, f"{url}/hold"],
            ["-T", big, "-H", "Content-Length:", f"{url}/hold"],
            [f"{url}/hold"],
        )
    ]
    wait_for(lambda: held(site.edged)["edged_pool_in_flight"] == 5, "all to be under way")
    return clients


@with_caddy
@carriers
def test_clients_that_are_killed_leave_nothing_behind(site, carrier):
    edged = site.edged
    with (site.files / "big").open("wb") as file:
        file.truncate(SIZE)
    most = float("inf")
    for version in ("--http1.1", "--http2-prior-knowledge", "--http1.1"):
        for client in five_clients(site, version):
            client.kill()
            client.wait()

        def at_rest(most=most):
            now = held(edged)
            descriptors = now.pop("descriptors")
            return descriptors <= most and set(now.values()) == {0} and descriptors

        most = wait_for(at_rest, f"all to be let go ({version}; {most} descriptors)")
    assert edged.gauge("edged_client_gone_total") == 15
    assert edged.fetch("/api/files/big").body == bytes(SIZE)
    for _ in site.stepper.requests:
        site.stepper.end()
