"""What the demo shows: the table on narrow terminals, and commands that can be copied."""

import asyncio
import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from edged.config import load
from edged.daemon import Daemon
from edged.lab import demo
from edged.lab.lab import Lab
from edged.lab.traffic import Tally
from edged.lab.view import View, _rtt
from policies.model import Estimate

ROOT = Path(__file__).parents[3]


def shown(width):
    """The view of a fresh lab on a terminal of that width, as lines."""

    async def main():
        async with Lab() as lab, Daemon(load(lab.write_config())) as daemon:
            view = View(lab, daemon.table, Tally(), [], live=False)
            console = Console(width=width, record=True, file=io.StringIO())
            console.print(view._render())
            return console.export_text().splitlines()

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (120, ("set to", "verdict", "RTT", "loss at most", "cost", "carrier", "in flight")),
        (79, ("verdict", "RTT", "cost", "carrier")),
        (50, ("verdict", "RTT")),
    ],
)
def test_narrow_terminals_lose_the_least_important_columns(width, columns):
    lines = shown(width)
    assert max(len(line) for line in lines) <= width
    assert all(column in lines[1] for column in columns)
    table = [line for line in lines if ">llm/" in line]
    assert len(table) == 6
    assert all(" UP " in line for line in table)


@pytest.mark.parametrize(("rtt_s", "cell"), [(None, "-"), (0.00003, "-"), (0.0634, "63 ms")])
def test_an_echo_of_this_host_is_no_round_trip_of_a_line(rtt_s, cell):
    assert _rtt(Estimate(rtt_s=rtt_s, samples=3)) == cell


@pytest.fixture
def called(tmp_path, monkeypatch):
    """How the demo was called: an executable of that name, from a directory beside it."""
    program = tmp_path / ".venv" / "bin" / "edged"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(sys, "argv", [str(program), "demo"])
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return program


def test_a_command_that_the_path_does_not_know_is_shown_from_where_the_user_stands(called):
    assert demo._own_command() == ".venv/bin/edged"


def test_one_elsewhere_is_shown_whole(called, monkeypatch):
    monkeypatch.chdir(called.parents[2] / "elsewhere")
    assert demo._own_command() == str(called)


def test_one_on_the_path_is_shown_by_its_name(called, monkeypatch):
    monkeypatch.setenv("PATH", f"{called.parent}:/usr/bin")
    assert demo._own_command() == "edged"
    # Another one of the same name comes first: the bare name would be that one.
    other = called.parents[2] / "elsewhere" / "edged"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{other.parent}:{called.parent}")
    assert demo._own_command() == ".venv/bin/edged"


def test_a_module_is_shown_as_one(called, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "edged" / "__main__.py"), "demo"])
    monkeypatch.setattr(sys, "executable", "/opt/a b/python")
    assert demo._own_command() == "'/opt/a b/python' -m edged"


@pytest.mark.slow
def test_ctrl_c_before_the_failover_says_so():
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "edged", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with process:
        while "edged.log" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "no failover was seen" in out
    assert err.startswith("edged: the demo ended before ")
    assert err.count("\n") == 1
