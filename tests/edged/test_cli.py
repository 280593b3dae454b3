"""The command line as a user meets it; in a process of its own where that matters."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from edged.cli import main

ROOT = Path(__file__).parents[2]


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def edged(capsys, monkeypatch):
    """Run a command in this process."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("EDGED_ADMIN", raising=False)

    def run(*arguments):
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code
        out, err = capsys.readouterr()
        return Result(status, out, err)

    return run


def process(*arguments):
    """Run a command in a process of its own, to its end."""
    result = subprocess.run(
        [sys.executable, "-m", "edged", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert "Traceback" not in result.stderr + result.stdout, result.stderr
    return result


def complaint(result, status):
    """The one line that a failed command says."""
    assert result.returncode == status, result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no command given; commands: run, check"),
        (["stats"], "unknown command 'stats'; did you mean 'status'?"),
        (["xyzzy"], "unknown command 'xyzzy'; commands: run, check"),
        (["run", "--port", "80"], "unrecognized arguments"),
        (["why"], "required: URL|request-id"),
        (["probe", "ftp://x"], "a URL that starts with https://"),
        (["probe", "https://x", "--timeout", "soon"], "write a duration as 200ms"),
        (["probe", "https://x", "--timeout", "0"], "'0': more than 0 and at most a day"),
        (["why", "x", "--bytes", "many"], "'many' is not a number of bytes"),
        (["schema", "everything"], "argument config|policy|relay: invalid choice: 'everything'"),
        (["status", "--admin", "localhost"], "write address:port"),
        (["probe", "https://x", "--line", "cn3", "-c", "configs/two-lines.yaml"], "mean 'cn2'"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(edged, arguments, words):
    assert words in complaint(edged(*arguments), 2)


@pytest.mark.parametrize(
    "command", ["run", "check", "status", "why", "probe", "demo", "reload", "relay"]
)
def test_help(edged, command):
    result = edged(command, "--help")
    assert result.returncode == 0
    assert f"edged {command}" in result.stdout


def test_check(edged, tmp_path):
    good = edged("check", "-c", "configs/two-lines.yaml")
    assert good.returncode == 0
    assert (
        good.stdout == "configs/two-lines.yaml: good: 2 lines, 2 upstreams, 3 endpoints, 5 paths\n"
    )
    bad = tmp_path / "bad.yaml"
    bad.write_text("node: {nmae: a}\nunlisted_hosts: alow\n")
    result = edged("check", "-c", str(bad))
    assert result.returncode == 1
    first, second = result.stdout.splitlines()
    assert first.startswith(f"{bad}:1:8: node.nmae: unknown key")
    assert second.startswith(f"{bad}:2:17: unlisted_hosts: 'alow'")
    assert result.stderr == f"{bad}: 2 mistakes\n"


def test_check_notes_a_line_that_cannot_reach_an_endpoint_while_others_can(edged, tmp_path):
    file = tmp_path / "edged.yaml"
    file.write_text(
        "lines: [{name: a, bind: {source: 10.71.1.2}}, {name: b, bind: {interface: lo}}]\n"
        'upstreams: [{name: x, prefix: /x, endpoints: [{name: e, url: "http://[::1]:9106"}]}]\n'
    )
    result = edged("check", "-c", str(file))
    assert result.returncode == 0
    (note,) = [line for line in result.stdout.splitlines() if "note:" in line]
    assert "note: line a cannot reach x/e at ::1 from 10.71.1.2" in note


def test_check_of_a_relays_configuration_names_the_right_command(edged):
    said = complaint(edged("check", "-c", "configs/relay.yaml"), 1)
    assert "is a relay's configuration: edged relay --check -c configs/relay.yaml" in said


EXAMPLES = sorted(set((ROOT / "configs").glob("*.yaml")) - {ROOT / "configs" / "relay.yaml"})


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.name)
def test_every_example_passes_the_check(edged, example):
    result = edged("check", "-c", str(example))
    assert (result.returncode, result.stderr) == (0, "")


def test_paths_through_relays_are_counted(edged, tmp_path):
    file = tmp_path / "edged.yaml"
    file.write_text(
        'relays: [{name: hk, url: "https://hk.example"}]\n'
        'upstreams: [{name: a, prefix: /a, endpoints: [{url: "https://a.example"}]}]\n'
    )
    result = edged("check", "-c", str(file))
    assert "1 line, 1 upstream, 1 endpoint, 2 paths" in result.stdout


def test_run_with_mistakes_tells_them_all_and_starts_nothing(edged, tmp_path):
    file = tmp_path / "edged.yaml"
    file.write_text("listen: {proxy: 0.0.0.0:1}\nnode: {name: '!'}\n")
    result = edged("run", "-c", str(file))
    assert result.returncode == 1
    assert f"{file}:1:17: listen.proxy: 0.0.0.0 is not a loopback address" in result.stderr
    assert f"{file}:2:14: node.name: '!': a name has" in result.stderr


def test_run_without_its_file(edged):
    said = edged("run", "-c", "/nowhere").stderr
    assert "cannot be read: No such file or directory; -c FILE names another" in said


def test_a_port_in_use_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        file = tmp_path / "edged.yaml"
        file.write_text(f"listen: {{proxy: 127.0.0.1:{port}, admin: null}}\n")
        words = complaint(process("run", "-c", str(file)), 1)
    assert f"127.0.0.1:{port} is in use by another process" in words


def test_an_address_of_another_host_is_one_line(tmp_path):
    file = tmp_path / "edged.yaml"
    file.write_text(
        "listen: {proxy: '192.0.2.1:7070', admin: null}\naccess: {allow: [10.0.0.0/8]}\n"
    )
    assert "192.0.2.1:7070 is no address of this host" in complaint(
        process("run", "-c", str(file)), 1
    )


def test_a_log_that_cannot_be_opened_is_named(edged, tmp_path):
    file = tmp_path / "edged.yaml"
    listen = "listen: {proxy: 127.0.0.1:0, admin: null}\n"
    long = "a" * 300  # refused by the system, whoever asks
    file.write_text(f"{listen}log: {{access: {long}}}\n")
    assert f"{long}: File name too long" in complaint(process("run", "-c", str(file)), 1)
    file.write_text(f"{listen}log: {{access: {long}/x.log}}\npolicies_dir: {long}\n")
    result = edged("check", "-c", str(file))
    assert (result.returncode, result.stdout.count("is no directory")) == (1, 2)


def test_run_tells_of_a_line_that_cannot_be_bound(tmp_path):
    file = tmp_path / "edged.yaml"
    file.write_text(
        "listen: {proxy: 127.0.0.1:0, admin: null}\n"
        "lines: [{name: stick, bind: {interface: nosuch0}}]\n"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "edged", "run", "-c", str(file)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as daemon:
        line = next(line for line in daemon.stderr if "line stick" in line or "stopped" in line)
        daemon.terminate()
    assert "interface nosuch0" in line


@pytest.mark.parametrize("command", [["status"], ["why", "/x"], ["reload"]])
def test_no_daemon_is_one_line(edged, command):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        words = complaint(edged(*command, "--admin", address), 1)
        by_name = address.replace("127.0.0.1", "localhost")
        assert complaint(edged(*command, "--admin", by_name), 1) == words
    assert f"no daemon answers on {address}" in words


def test_an_empty_address_in_the_environment_means_the_default(edged, monkeypatch):
    monkeypatch.setenv("EDGED_ADMIN", "")
    monkeypatch.setattr("edged.cli.DEFAULT_ADMIN", "127.0.0.1:2")
    assert "127.0.0.1:2;" in edged("status").stderr


def test_schema_is_json_schema(edged):
    config = json.loads(edged("schema").stdout)
    policy = json.loads(edged("schema", "policy").stdout)
    assert config["$schema"].endswith("2020-12/schema")
    assert config["additionalProperties"] is False
    assert config["properties"]["unlisted_hosts"]["enum"] == ["allow", "deny"]
    assert config["properties"]["unlisted_hosts"]["description"]
    assert "extends" in policy["properties"]


def test_version(edged):
    assert edged("version").stdout.startswith("edged 0.")


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


@pytest.fixture
def origin():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_probe_measures_each_line(edged, origin):
    result = edged("probe", f"{origin}/x?key=1", "-c", "configs/two-lines.yaml", "--json")
    assert result.returncode == 0
    rows = json.loads(result.stdout)
    assert [row["line"] for row in rows] == ["cn2", "bgp"]
    for row in rows:
        assert row["http"]["status"] == 200
        assert row["http"]["connect_s"] > 0
        assert row["http"]["first_byte_s"] > 0
        assert row["http"]["url"].endswith("/x?key=1")
    table = edged("probe", origin, "--line", "bgp", "-c", "configs/two-lines.yaml").stdout
    assert "200 HTTP/1.0" in table
    assert "bgp" in table
    assert "cn2" not in table


def test_probe_asks_where_the_configuration_says_a_host_is(edged, origin, tmp_path):
    port = origin.rpartition(":")[2].strip("/")
    file = tmp_path / "edged.yaml"
    file.write_text(
        "upstreams: [{name: a, prefix: /a, endpoints: "
        f'[{{url: "http://host.invalid:{port}", address: 127.0.0.1}}]}}]\n'
    )
    url = f"http://host.invalid:{port}/"
    assert edged("probe", url, "-c", str(file)).returncode == 0
    said = edged("probe", f"http://other.invalid:{port}/", "-c", str(file), "--timeout", "2s")
    assert said.returncode == 1
    assert said.stdout.count("other.invalid") == 1, "each reason once"
    said = edged("probe", f"https://other.invalid:{port}/", "-c", str(file), "--timeout", "2s")
    assert said.returncode == 1
    assert "UDP" not in said.stdout


def test_probe_of_what_does_not_answer(edged):
    result = edged("probe", "http://127.0.0.1:1/", "--timeout", "2s")
    assert result.returncode == 1
    assert "refused" in result.stdout
    assert result.stderr == "edged: no line got an answer from http://127.0.0.1:1/\n"


def test_a_reader_that_stops_is_no_error():
    command = f"{sys.executable} -m edged schema | head -1"
    result = subprocess.run(
        command, shell=True, capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (result.stdout, result.stderr) == ("{\n", "")


def test_a_table_ends_like_any_output_when_its_reader_stops(origin):
    command = f"{sys.executable} -m edged probe {origin} | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.parametrize("streams", [">&-", "<&- >&-"])
def test_a_closed_output_is_no_error(streams):
    command = f"{sys.executable} -m edged version {streams}"
    result = subprocess.run(
        command, shell=True, capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_what_the_terminal_cannot_show_is_replaced(edged, tmp_path):
    file = tmp_path / "edged.yaml"
    file.write_text("nöde: {}\n")
    result = subprocess.run(
        [sys.executable, "-m", "edged", "check", "-c", str(file)],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 1
    assert b"n?de: unknown key" in result.stdout


def test_ctrl_c_is_quiet(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts and never answers
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/"
        process = subprocess.Popen(
            [sys.executable, "-m", "edged", "probe", url, "--timeout", "60s"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        mute.accept()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, b"", b"")


def test_a_bug_is_a_sentence(monkeypatch, capsys):
    def broken():
        raise RuntimeError("the\nmiddle fell out")

    monkeypatch.setattr("edged.cli._version", broken)
    monkeypatch.delenv("EDGED_DEBUG", raising=False)
    assert main(["version"]) == 70
    assert capsys.readouterr().err == (
        "edged: a bug in edged: RuntimeError: the middle fell out (EDGED_DEBUG=1 shows where)\n"
    )


def test_the_readme_is_about_this_program(edged):
    text = (ROOT / "README.md").read_text()
    first, second = text.index("make run"), text.index("make test")
    assert first < second < text.index("##")
    commands = edged("--help").stdout
    for command in (
        "run",
        "check",
        "schema",
        "status",
        "why",
        "probe",
        "reload",
        "demo",
        "version",
    ):
        assert f"`edged {command}" in text
        assert f"\n    {command} " in commands
    for link in re.findall(r"\]\(([\w/.-]+)\)", text):
        assert (ROOT / link).exists(), link
