"""The daemon's life: every example starts, reloads are atomic, signals and systemd are obeyed."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import uvloop

from edged.config import load
from edged.daemon import Daemon
from edged.sdnotify import Notifier
from policies.model import Breaker, Carrier, Endpoint, Kind, Outcome, Sample
from tests.harness.live import Edged, wait_for

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(set((ROOT / "configs").glob("*.yaml")) - {ROOT / "configs" / "relay.yaml"})


class Slow(BaseHTTPRequestHandler):
    """Answers at once; /slow begins at once and ends when the test says so."""

    protocol_version = "HTTP/1.1"
    go_on = threading.Event()

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "10")
        self.end_headers()
        self.wfile.write(b"01234")
        self.wfile.flush()
        if self.path.endswith("/slow"):
            self.go_on.wait(20)
        self.wfile.write(b"56789")

    def log_message(self, *_):
        pass


@pytest.fixture
def origin():
    Slow.go_on = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    Slow.go_on.set()
    server.shutdown()
    server.server_close()


def config_for(port, **more):
    return {
        "upstreams": [
            {
                "name": "api",
                "prefix": "/api",
                "policy": "mine",
                "endpoints": [{"name": "one", "url": f"http://127.0.0.1:{port}"}],
            }
        ],
        "log": {"access": "access.log"},
        **more,
    }


@pytest.fixture
def mine(tmp_path):
    """The policy that `config_for` names."""
    (tmp_path / "policies.d").mkdir()
    file = tmp_path / "policies.d" / "mine.yaml"
    file.write_text("extends: balanced\n")
    return file


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_example_starts(example):
    config = load(example)
    anywhere = replace(
        config,
        listen_proxy=tuple((host, 0) for host, _ in config.listen_proxy),
        listen_admin=("127.0.0.1", 0),
    )

    async def body():
        async with Daemon(anywhere) as daemon:
            assert daemon.proxy_addresses
            assert daemon.live.not_ready() is None

    uvloop.run(asyncio.wait_for(body(), 20))


# -- reload ---------------------------------------------------------------------------------------


def in_process(file, scenario):
    async def body():
        async with Daemon(load(file)) as daemon:
            await scenario(daemon)

    uvloop.run(asyncio.wait_for(body(), 20))


RELOADABLE = """
listen: {{proxy: "127.0.0.1:0", admin: "127.0.0.1:0"}}
lines: [{{name: a, bind: {{source: 127.0.4.1}}}}, {{name: b, bind: {{source: 127.0.4.2}}}}]
upstreams:
  - {{name: api, prefix: /api, policy: {policy}, endpoints: [{{name: one, url: "http://127.0.0.1:9"}}]}}
log: {{access: null}}
{more}
"""


def test_a_reload_takes_all_and_state_survives(tmp_path):
    file = tmp_path / "edged.yaml"
    file.write_text(RELOADABLE.format(policy="balanced", more=""))

    async def scenario(daemon):
        now = time.monotonic()
        for n in range(12):
            # One after the other: failures that overlap count once.
            daemon.observe(Sample("a>api/one", Kind.TLS, time.monotonic(), None, Outcome.NO_NAME))
            daemon.observe(Sample("b>api/one", Kind.TCP, now, 0.05 + n / 1000))
        before = daemon.table.snapshot.paths["a>api/one"]
        assert before.breaker is Breaker.OPEN
        there = Endpoint("", "", "http", "other.test", 80)
        unlisted = daemon.table.ensure(there, now)
        more = """
unlisted_hosts: deny
unlisted_policy: bulk
limits: {header_bytes: 2048}
"""
        text = RELOADABLE.format(policy="realtime", more=more).replace("/api,", "/v2,")
        file.write_text(text)
        note = await daemon.reload("test")
        assert (note.ok, note.mistakes) == (True, ())
        after = daemon.table.snapshot.paths["a>api/one"]
        assert after.breaker is not Breaker.CLOSED, "at most half open by now"
        assert daemon.table.snapshot.paths["b>api/one"].estimate.samples > 0
        assert daemon.table.policy("api").weights.rtt == 2
        assert daemon.table.policy(unlisted).weights.rtt == 0.5
        later = daemon.table.ensure(replace(there, host="later.test"), now)
        assert daemon.table.policy(later).weights.rtt == 0.5
        assert daemon.exchanges.services["api"].policy.weights.rtt == 2
        assert daemon.route.table.by_prefix(b"/v2/x") is not None
        assert daemon.route.table.by_prefix(b"/api/x") is None
        assert not daemon.route.unlisted_allowed
        assert daemon.proxy.hub.limits.header_bytes == 2048
        assert daemon.live.config is daemon.config
        probed = daemon.probing.scheduler.interval_s("a>api/one", Kind.TCP)
        assert probed is not None

    in_process(file, scenario)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("policy: balanced", "policy: balance", "no policy file and no preset is named 'balance'"),
        ("name: b,", "name: a,", "the name 'a' is taken"),
        ("upstreams:", "upstreams", "edged.yaml"),
        (
            'proxy: "127.0.0.1:0"',
            'proxy: "127.0.0.1:1"',
            "listen.proxy cannot change while edged runs; restart it",
        ),
        ("log:", "node: {name: new}\nlog:", "node.name cannot change while edged runs"),
    ],
)
def test_a_bad_reload_changes_nothing_and_is_told(tmp_path, old, new, words):
    file = tmp_path / "edged.yaml"
    good = RELOADABLE.format(policy="balanced", more="")
    file.write_text(good)

    async def scenario(daemon):
        config, snapshot, routes = daemon.config, daemon.table.snapshot.paths, daemon.route.table
        file.write_text(good.replace(old, new) + "unlisted_hosts: deny\n")
        note = await daemon.reload("test")
        assert not note.ok
        assert words in "\n".join(note.mistakes)
        assert daemon.config is config
        assert daemon.route.table is routes
        assert daemon.route.unlisted_allowed
        assert daemon.table.snapshot.paths.keys() == snapshot.keys()
        assert daemon.live.reload is note
        file.write_text(good)
        assert (await daemon.reload("test")).ok

    in_process(file, scenario)


def test_a_line_that_goes_takes_its_paths_and_one_that_comes_is_probed(tmp_path):
    file = tmp_path / "edged.yaml"
    good = RELOADABLE.format(policy="balanced", more="")
    file.write_text(good)

    async def scenario(daemon):
        file.write_text(good.replace("name: b,", "name: c,"))
        assert (await daemon.reload("test")).ok
        assert set(daemon.table.snapshot.paths) == {"a>api/one", "c>api/one"}
        daemon.table.set_warm("c>api/one", Carrier.H1)
        assert daemon.probing.scheduler.interval_s("c>api/one", Kind.TCP) is not None
        assert daemon.probing.scheduler.interval_s("b>api/one", Kind.TCP) is None

    in_process(file, scenario)


def test_a_start_that_fails_leaves_nothing_behind(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        file = tmp_path / "edged.yaml"
        port = taken.getsockname()[1]
        file.write_text(f"listen: {{proxy: '127.0.0.1:0', admin: '127.0.0.1:{port}'}}\n")

        async def body():
            before = asyncio.all_tasks()
            daemon = Daemon(load(file))
            with pytest.raises(OSError, match="in use by another process"):
                await daemon.start()
            assert daemon.proxy_addresses == []
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == before

        uvloop.run(asyncio.wait_for(body(), 20))


def test_off_a_dead_line_connections_may_go_to_paths_that_are_down(tmp_path):
    """Lines come back before it is known of each path; off a dead one there is nothing to lose."""
    file = tmp_path / "edged.yaml"
    file.write_text(RELOADABLE.format(policy="balanced", more=""))

    async def scenario(daemon):
        paths = daemon.table.snapshot.paths
        here = paths["a>api/one"].path
        assert [state.path.name for state in daemon.standby.alternatives(here)] == ["b>api/one"]
        daemon.table.lost("b", "no route", time.monotonic())
        assert daemon.standby.alternatives(here) == []
        daemon.table.lost("a", "no route", time.monotonic())
        assert [state.path.name for state in daemon.standby.alternatives(here)] == ["b>api/one"]

    in_process(file, scenario)


# -- the process ----------------------------------------------------------------------------------


def get(edged, path):
    connection = http.client.HTTPConnection("127.0.0.1", edged.port, timeout=20)
    connection.request("GET", path)
    return connection.getresponse()


def ids(file):
    return [json.loads(line)["target"] for line in file.read_text().splitlines()]


def test_sighup_and_policy_files(tmp_path, origin, mine):
    with Edged(config_for(origin), tmp_path) as edged:

        def reloads(by, ok=True):
            reload = edged.status()["reload"]
            return (reload["by"], reload["ok"]) == (by, ok) and reload

        edged.config["unlisted_hosts"] = "deny"
        edged.write()
        edged.process.send_signal(signal.SIGHUP)
        first = wait_for(lambda: reloads("SIGHUP"), "the reload")
        mine.write_text("extends: realtime\nhedge: {when: sometimes}\n")
        refused = wait_for(lambda: reloads("policy file", ok=False), "the refusal")
        assert "mine.yaml:2:15: hedge.when: 'sometimes' is not valid" in refused["mistakes"][0]
        assert "hedge.when" in edged.log
        assert get(edged, "/api/x").read() == b"0123456789"
        mine.write_text("extends: realtime\n")
        second = wait_for(lambda: reloads("policy file"), "the reload")
        assert second["at"] > first["at"]
        (mine.parent / "another.yaml").write_text("extends: bulk\n")
        third = wait_for(
            lambda: (r := reloads("policy file")) and r["at"] > second["at"] and r, "a new file"
        )
        assert third["ok"]


def test_rotation_and_drain(tmp_path, origin, mine):
    file = tmp_path / "access.log"
    edged = Edged(config_for(origin), tmp_path).start()
    try:
        get(edged, "/api/one?key=secret").read()
        wait_for(lambda: file.read_text().count("\n") == 1, "the line")
        file.rename(tmp_path / "access.log.1")
        edged.process.send_signal(signal.SIGUSR1)
        wait_for(file.exists, "the new file")

        soft, hard = resource.prlimit(edged.process.pid, resource.RLIMIT_NOFILE)
        assert soft == hard

        response = get(edged, "/api/slow")
        assert response.read(5) == b"01234"
        edged.process.send_signal(signal.SIGTERM)

        def refuses():
            with socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", edged.port)) != 0

        wait_for(refuses, "the listener to close")
        assert edged.process.poll() is None, "it waits for what is in flight"
        assert "SIGTERM: draining for at most 30 s: 1 request in progress, " in edged.log
        Slow.go_on.set()
        assert response.read() == b"56789"
        assert edged.process.wait(20) == 0
    finally:
        edged.stop()
    assert "secret" not in (tmp_path / "access.log.1").read_text()
    line = json.loads((tmp_path / "access.log.1").read_text())
    assert line["path"] == "default>api/one"
    assert (line["status"], line["carrier"], line["attempts"]) == (200, "h1", 1)
    assert (line["bytes_down"], line["target"]) == (10, "/one")
    assert ids(file) == ["/slow"]


def test_drain_has_a_limit(tmp_path, origin):
    file = tmp_path / "edged.yaml"
    file.write_text(
        RELOADABLE.format(policy="balanced", more="").replace("127.0.0.1:9", f"127.0.0.1:{origin}")
    )

    async def scenario(daemon):
        reader, writer = await asyncio.open_connection(*daemon.proxy_addresses[0])
        writer.write(b"GET /api/slow HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"content-length: 10" in head.lower()
        assert await reader.readexactly(5) == b"01234"
        assert await daemon.drain(0.1) == 1
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(5)
        writer.close()

    in_process(file, scenario)


# -- systemd --------------------------------------------------------------------------------------


@contextmanager
def manager(path):
    """The socket of a service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(20)
        yield sock


def test_the_conversation_with_systemd(tmp_path, origin, mine):
    with manager(tmp_path / "notify") as sock:

        def told(word):
            while True:
                message = sock.recv(4096).decode()
                if word in message:
                    return message

        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000"}
        environment["JOURNAL_STREAM"] = "8:1"
        edged = Edged(config_for(origin), tmp_path, env=environment).start()
        assert "STATUS=serving on 127.0.0.1:" in told("READY=1")
        told("WATCHDOG=1")
        told("WATCHDOG=1")
        edged.process.send_signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in told("RELOADING=1")
        assert "STATUS=reloaded by SIGHUP" in told("READY=1")
        mine.write_text("nonsense: 1\n")
        told("RELOADING=1")
        assert "nonsense: unknown key" in told("READY=1")
        edged.process.send_signal(signal.SIGINT)
        told("STOPPING=1")
        assert edged.process.wait(20) == 130
        assert "<6>edged" in edged.log
        assert "Traceback" not in edged.log


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/notify"])
def test_without_a_manager_nothing_happens(address):
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "x"})
    notifier.ready("a\nb")
    notifier.close()
    notifier.ready("after the end")
    assert notifier.watchdog_period_s is None


def test_the_watchdog_is_for_this_process_only(tmp_path):
    with manager(tmp_path / "notify"):
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000"}
        assert Notifier(environment).watchdog_period_s == 1.0
        assert Notifier({**environment, "WATCHDOG_PID": "1"}).watchdog_period_s is None
        mine = {**environment, "WATCHDOG_PID": str(os.getpid())}
        assert Notifier(mine).watchdog_period_s == 1.0


def test_an_abstract_address(tmp_path):
    name = f"edged-test-{os.getpid()}"
    with manager("\0" + name) as sock:
        Notifier({"NOTIFY_SOCKET": "@" + name}).ready("hello  there\nyou")
        assert sock.recv(4096) == b"READY=1\nSTATUS=hello there you"


@pytest.mark.tool("systemd-analyze")
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_the_unit_is_valid(tmp_path):
    unit = (ROOT / "systemd" / "edged.service").read_text()
    file = tmp_path / "edged.service"
    file.write_text(unit.replace("/opt/edged/bin/edged", shutil.which("true")))
    result = subprocess.run(
        ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "Type=notify" in unit
    assert "DynamicUser=yes" in unit
