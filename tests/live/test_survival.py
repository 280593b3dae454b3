"""What a whole daemon makes of upstreams, lines and name servers that die, and of a full disk."""

import collections
import contextlib
import hashlib
import http.client
import itertools
import os
import re
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from edged.lab.certs import make_certificates
from edged.lab.lines import LineSpec
from edged.lab.origin import Origin
from tests.harness.live import Edged, wait_for
from tests.harness.nameserver import NameServer
from tests.harness.servers import CADDY, Certificate, caddy
from tests.live.conftest import LabThread, OwnLoop, need
from tests.live.stepper import Stepper

CARRIERS = ("h1", "h2", "h3")
BROKEN = (http.client.IncompleteRead, ConnectionError)


# -- kill -9 of an upstream -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    with OwnLoop() as loop:
        certificates = make_certificates(tmp_path_factory.mktemp("origin"), ["localhost"])
        origin = loop.do(Origin, certificates, h3=False)
        loop.call(origin.start())
        yield origin
        loop.call(origin.stop())


@contextlib.contextmanager
def two_endpoints(origin, stepper, carrier, directory):
    """edged before two Caddys that say who they are; the process of the near one, a."""
    certificate = Certificate.make(directory)
    (directory / "policies.d").mkdir()
    (directory / "policies.d" / "near.yaml").write_text(
        # With `line-down` it would depend on whether the path is DOWN before the connection ends.
        "weights: {distance: 100}\nreplay: never\n"
    )
    servers, endpoints = [], []
    with contextlib.ExitStack() as stack:
        for name, location in (("a", [0, 0]), ("b", [0, 90])):
            (directory / name).mkdir()
            routes = (
                f"header X-Server {name}\n request_header X-Server {name}\n"
                f"@steps path /steps /hold /half\n reverse_proxy @steps 127.0.0.1:{stepper.port}\n"
                f"reverse_proxy 127.0.0.1:{origin.cleartext_port}"
            )
            started = caddy(directory / name, certificate, routes, protocols="h1 h2 h3")
            server = stack.enter_context(started)
            servers.append(server)
            endpoints.append(
                {
                    "name": name,
                    "url": f"https://localhost:{server.port}",
                    "address": "127.0.0.1",
                    "location": location,
                    "protocols": [carrier],
                }
            )
        config = {
            "node": {"name": "t1", "location": [0, 0]},
            "upstreams": [
                {"name": "api", "prefix": "/api", "policy": "near", "endpoints": endpoints}
            ],
            "tls": {"ca_file": certificate.ca_file},
            "log": {"access": None},
        }
        yield stack.enter_context(Edged(config, directory)), servers[0].process


def hold(edged, method, key):
    """A request that the origin does not answer until the test ends it."""
    body = b"x" if method == "POST" else None
    return edged.fetch("/api/hold", method, body=body, headers=key and {"idempotency-key": key})


@pytest.mark.skipif(not CADDY.exists(), reason="caddy is not installed")
@pytest.mark.parametrize("carrier", CARRIERS)
def test_an_upstream_killed_with_requests_in_flight(origin, carrier, tmp_path):
    with (
        Stepper() as stepper,
        two_endpoints(origin, stepper, carrier, tmp_path) as (edged, process),
        ThreadPoolExecutor(16) as pool,
        contextlib.closing(stepper),
    ):
        # Two bodies that a has begun, one of known length and one of unknown length.
        near = lambda answer: answer.headers["x-server"] == "a"  # noqa: E731
        wait_for(lambda: near(edged.fetch("/api/echo")), "a warm connection to a")
        stepper.say(b"data: 1\n\n")
        stream = edged.open("/api/steps")
        while not near(known := edged.open("/api/half")):
            known.leave()  # a was slow to connect, and b won the race
        assert near(stream)
        assert stream.readline() == b"data: 1\n"
        known.read(100_000)
        # Requests that were sent and not answered; b has those that a was slow to connect for.
        kinds = [("POST", None), ("GET", None), ("POST", "k")] * 3
        asked = [pool.submit(hold, edged, *kind) for kind in kinds]
        wait_for(lambda: len(stepper.requests) == 10, "the requests")
        lost = collections.Counter(r[:2] for r in stepper.requests[1:] if r.server == "a")
        assert set(lost) == set(kinds)
        refused = lost.pop(("POST", None))

        process.kill()
        with pytest.raises(BROKEN):
            known.read()
        with pytest.raises(BROKEN):
            stream.read()
        sent = 10 + lost.total()
        wait_for(lambda: len(stepper.requests) == sent, "the safe ones to be repeated")
        for _ in range(sent):
            stepper.end()
        answers = [request.result() for request in asked]
        for answer in answers:
            if answer.status != 200:
                assert answer.status == 502
                assert 'endpoint="api/a"' in answer.headers["proxy-status"]
                assert "replay" in answer.json["error"]["message"]
            else:
                assert answer.headers["x-server"] == "b"
        assert sum(answer.status != 200 for answer in answers) == refused
        assert collections.Counter(r[:2] for r in stepper.requests[10:]) == lost
        for _ in range(20):
            answer = edged.fetch("/api/echo", "POST", body=b"x")
            assert (answer.status, answer.headers["x-server"]) == (200, "b")
        assert edged.gauge("edged_aborted_total") == 2


# -- death of a line ------------------------------------------------------------------------------


LINES = (
    LineSpec.symmetric("cn2", "127.71.4.2", kind="cn2", rtt_s=0.010),
    LineSpec.symmetric("bgp", "127.71.5.2", kind="bgp", rtt_s=0.120),
)


@pytest.fixture(scope="module")
def lines_lab():
    with LabThread(line_specs=LINES, seed=2) as thread:
        yield thread


@pytest.fixture
def over_lines(lines_lab, request, tmp_path):
    """edged over the lab's two lines with one carrier; /careful never repeats what was sent."""
    lab = lines_lab.lab
    endpoint = {
        "name": "tokyo",
        "url": f"https://tokyo.lab.test:{lab.endpoints['tokyo'].port}",
        "address": lab.endpoints["tokyo"].spec.address,
        "protocols": [request.getfixturevalue("carrier")],
    }
    (tmp_path / "policies.d").mkdir()
    quiet = "cadence: {icmp_s: null}\n"
    (tmp_path / "policies.d" / "plain.yaml").write_text(quiet)
    (tmp_path / "policies.d" / "careful.yaml").write_text(
        "replay: never\nfailover: {connect_timeout_s: 1s}\n" + quiet
    )
    config = {
        "lines": [
            {"name": line.name, "kind": line.spec.kind, "bind": {"source": line.spec.source}}
            for line in lab.lines
        ],
        "upstreams": [
            {
                "name": name,
                "prefix": f"/{name}",
                "hosts": [f"{name}.lab.test"],
                "policy": name,
                "endpoints": [endpoint],
            }
            for name in ("plain", "careful")
        ],
        "tls": {"ca_file": str(lab.ca_file)},
        "log": {"access": None},
    }
    with Edged(config, tmp_path) as edged:
        yield edged
        for line in lab.lines:
            lines_lab.do(lab.lines.restore, line.name)


@pytest.mark.parametrize("carrier", ["h1", "h2"])
def test_a_line_dies_under_requests_in_flight(over_lines, lines_lab, carrier):
    edged, lab = over_lines, lines_lab.lab
    service = lab.endpoints["tokyo"].service
    sources = {line.spec.source: line.name for line in lab.lines}

    def line_of(answer):
        return sources[answer.headers["x-lab-client"]]

    def settled():
        lines = {line_of(edged.fetch(f"/{way}/echo")) for way in ("plain", "careful")}
        return lines == {"cn2"}

    wait_for(settled, "the better line to be in use", step_s=0.05)
    victim = "cn2"
    in_flight = ("edged_path_in_flight", f'line="{victim}"')
    marks, slow = itertools.count(service.requests), "/slow?s=2"
    with ThreadPoolExecutor(16) as pool:

        def start(path, method="GET", **headers):
            mark = f"mark-{next(marks)}"
            body = b"x" * 5000 if method == "POST" else None
            headers = {"x-lab-id": mark, **headers}
            return mark, pool.submit(edged.fetch, path, method, body=body, headers=headers)

        _, get = start(f"/careful{slow}")
        replayed, post = start(f"/plain{slow}", "POST")
        once, never = start(f"/careful{slow}", "POST")
        keyed, key = start(f"/careful{slow}", "POST", **{"Idempotency-Key": "k"})
        _, proxied = start(f"http://plain.lab.test{slow}", "POST")
        stream = edged.open("/plain/sse?n=1000&rate=20")
        assert line_of(stream) == victim
        assert stream.readline().startswith(b"data:")
        tunnel = edged.tunnel("plain.lab.test:443")
        wait_for(lambda: all(service.executions[m] for m in (replayed, once, keyed)), "the POSTs")
        wait_for(lambda: edged.gauge(*in_flight) == 7, "all to be on one line", limit_s=1)
        lines_lab.do(lab.lines.blackhole, victim)
        began = time.monotonic()
        with pytest.raises(BROKEN):
            stream.read()
        with contextlib.suppress(ConnectionError):
            assert tunnel.recv(1) == b""
        broken_s = time.monotonic() - began
        fresh = edged.fetch("/plain/echo", "POST", body=b"new")
        for answer in (never.result(), proxied.result()):
            assert answer.status == 502
            assert f'line="{victim}"' in answer.headers["proxy-status"]
        for answer in (get.result(), post.result(), key.result(), fresh):
            assert answer.status == 200
            assert line_of(answer) != victim
    assert (service.executions[once], service.executions[replayed]) == (1, 2)
    assert service.executions[keyed] == 2
    wait_for(lambda: edged.gauge(*in_flight) == 0, "nothing to be left")
    print(f"broken after {broken_s:.2f} s")
    assert broken_s < 10
    lines_lab.do(lab.lines.restore, victim)
    lines = {"name": victim, "paths_usable": 2}.items()
    usable = lambda: any(lines <= line.items() for line in edged.status()["lines"])  # noqa: E731
    wait_for(usable, "the line to be back", limit_s=45)


@pytest.mark.parametrize("carrier", ["h3"])
def test_what_is_in_flight_over_http3_goes_on_over_another_line(over_lines, lines_lab, carrier):
    edged, lab = over_lines, lines_lab.lab
    service = lab.endpoints["tokyo"].service
    sources = {line.spec.source: line.name for line in lab.lines}
    line_of = lambda answer: sources[answer.headers["x-lab-client"]]  # noqa: E731

    def better():
        return {line_of(edged.fetch(f"/{way}/echo")) for way in ("plain", "careful")} == {"cn2"}

    wait_for(better, "the better line to be in use", step_s=0.05)
    mark = f"moved-{service.requests}"
    with ThreadPoolExecutor(1) as pool:
        headers = {"x-lab-id": mark}
        never = pool.submit(
            edged.fetch, "/careful/slow?s=2", "POST", body=b"x" * 5000, headers=headers
        )
        stream = edged.open("/plain/sse?n=60&rate=20")
        assert line_of(stream) == "cn2"
        wait_for(lambda: service.executions[mark], "the POST")
        lines_lab.do(lab.lines.blackhole, "cn2")
        assert stream.read().count(b"data:") >= 60
        assert never.result().status == 200
        assert line_of(edged.fetch("/plain/echo")) != "cn2"
    assert service.executions[mark] == 1


@pytest.mark.parametrize("carrier", ["h2", "h3"])
def test_both_lines_dead_is_told_and_passes(over_lines, lines_lab, carrier):
    edged, lab = over_lines, lines_lab.lab
    assert edged.fetch("/careful/echo", "POST", body=b"x").status == 200
    for line in lab.lines:
        lines_lab.do(lab.lines.blackhole, line.name)
    wait_for(lambda: not edged.status()["ready"], "all paths to be DOWN")
    answer = edged.fetch("/careful/echo", "POST", body=b"x")
    assert answer.status in (502, 503, 504)
    assert answer.json["error"]["hint"]
    message = answer.json["error"]["message"]
    print(answer.status, message)
    assert "every path is DOWN: " in message
    assert "UDP" not in message
    status = answer.headers["proxy-status"]
    assert re.search(r"edged; error=(connection_timeout|destination_unavailable)", status), status
    for line in lab.lines:
        lines_lab.do(lab.lines.restore, line.name)
    wait_for(lambda: edged.fetch("/careful/echo").status == 200, "the way out", limit_s=45)


# -- dead name servers ----------------------------------------------------------------------------

HOST = "svc.example.test"


class Brief(BaseHTTPRequestHandler):
    """Closes after each answer, so that each request needs an address."""

    def do_GET(self):
        body = self.client_address[0].encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def brief():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Brief)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture
def name_servers():
    """Two, one a line; each knows the host for a second."""
    with OwnLoop() as loop:
        servers = {"a": NameServer("127.0.0.53"), "b": NameServer("127.0.0.54")}
        for server in servers.values():
            server.zone[HOST, "A"] = ["127.0.0.1"]
            server.ttl = 1
            loop.call(server.__aenter__())
            server.leave = lambda server=server: loop.call(server.__aexit__())
        yield servers
        for server in servers.values():
            if server.leave is not None:
                server.leave()


def resolving(brief, name_servers, lines, directory):
    (directory / "policies.d").mkdir()
    (directory / "policies.d" / "hasty.yaml").write_text("failover: {connect_timeout_s: 1s}\n")
    return {
        "lines": [
            {
                "name": name,
                "bind": {"source": f"127.0.9.{number}"},
                "dns": [name_servers[name].server],
            }
            for number, name in enumerate(lines, 1)
        ],
        "upstreams": [
            {
                "name": "svc",
                "prefix": "/svc",
                "policy": "hasty",
                "endpoints": [{"url": f"http://{HOST}:{brief}"}],
            }
        ],
        "log": {"access": None},
    }


@pytest.mark.parametrize("death", ["silent", "gone"])
def test_a_dead_name_server_does_not_take_a_live_line_with_it(brief, name_servers, death, tmp_path):
    server = name_servers["a"]
    with Edged(resolving(brief, name_servers, "a", tmp_path), tmp_path) as edged:
        assert edged.fetch("/svc/x").body == b"127.0.9.1"
        asked = len(server.asked)
        if death == "silent":
            server.dead = True
        else:
            server.leave()
            server.leave = None
        dead_at = time.monotonic()

        def long_enough():
            # Far beyond the second for which the answer was good, however slow this machine is.
            assert edged.fetch("/svc/x").status == 200
            again = death == "gone" or len(server.asked) > asked + 1
            return again and time.monotonic() > dead_at + 2

        wait_for(long_enough, "the answer to be stale")
        assert edged.status()["ready"]
        # Requests go on, so that the log and the pages must tell.
        stale = lambda: edged.gauge("edged_dns_stale", 'line="a"')  # noqa: E731
        wait_for(lambda: stale() == 1, "the question to be given up", limit_s=15)
        said = f"line a: {'no answer from ' if death == 'silent' else ''}name server"
        told = [line for line in edged.log.splitlines() if said in line]
        assert len(told) == 1, edged.log
        assert "WARNING" in told[0]
        assert "name server" in edged.status()["lines"][0]["dns_problem"]


def test_a_line_without_dns_leaves_the_work_to_the_other(brief, name_servers, tmp_path):
    name_servers["a"].dead = True
    with Edged(resolving(brief, name_servers, "ab", tmp_path), tmp_path) as edged:
        for _ in range(10):
            answer = edged.fetch("/svc/x")
            assert (answer.status, answer.body) == (200, b"127.0.9.2")


def test_no_dns_at_all_is_told(brief, name_servers, tmp_path):
    for server in name_servers.values():
        server.dead = True
    with Edged(resolving(brief, name_servers, "a", tmp_path), tmp_path) as edged:

        def refused():
            # Silence for long enough makes the paths DOWN first.
            answer = edged.fetch("/svc/x")
            assert answer.status in (502, 503, 504)
            assert answer.json["error"]["hint"]
            return "error=dns_" in answer.headers["proxy-status"] and answer

        answer = wait_for(refused, "an answer that names the cause")
        assert HOST in answer.json["error"]["message"]
        assert "name server 127.0.0.5" in answer.json["error"]["message"]
        for server in name_servers.values():
            server.dead = False
        wait_for(lambda: edged.fetch("/svc/x").status == 200, "the names to come back")


# -- a full disk ----------------------------------------------------------------------------------

BODY = 6_000_000


@contextlib.contextmanager
def small_disk(directory):
    """A file system of 1 MiB."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def uploads_pass(origin, directory, **options):
    config = {
        "upstreams": [
            {
                "name": "api",
                "prefix": "/api",
                "endpoints": [{"url": f"http://127.0.0.1:{origin.cleartext_port}"}],
            }
        ],
        "limits": {"spool_dir": "spool"},
        "log": {"access": None},
    }
    body = os.urandom(BODY)
    with Edged(config, directory, **options) as edged:
        for _ in range(2):
            answer = edged.fetch("/api/upload", "POST", body=body)
            assert answer.status == 200
            assert answer.json["length"] == BODY
            assert answer.json["sha256"] == hashlib.sha256(body).hexdigest()
        told = [line for line in edged.log.splitlines() if "not spooled" in line]
        assert len(told) == 1, edged.log
        assert "WARNING" in told[0]
        return told[0]


@pytest.mark.root
def test_a_full_disk_costs_the_replay_and_nothing_else(origin, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    with small_disk(tmp_path / "spool"):
        assert "No space left on device" in uploads_pass(origin, tmp_path)
        assert os.statvfs(tmp_path / "spool").f_ffree > 0


def test_a_limit_on_file_size_is_no_different(origin, tmp_path):
    (tmp_path / "spool").mkdir()
    limited = (need("prlimit"), f"--fsize={1 << 20}", *Edged.EXECUTABLE)
    assert "File too large" in uploads_pass(origin, tmp_path, executable=limited)
    assert os.listdir(tmp_path / "spool") == []
