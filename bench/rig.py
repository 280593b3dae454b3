"""What the benchmarks share: child processes, an nginx origin, wrk, and figures of processes.

Everything runs on loopback with ports chosen free, and is stopped by pid.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_for_port(port: int, limit_s: float = 15.0, host: str = "127.0.0.1") -> None:
    """Return when something listens. Raises `TimeoutError`."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection((host, port), 0.5):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on {host}:{port}")


@contextlib.contextmanager
def process(
    command: Sequence[str], *, log: Path | None = None, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A child in its own process group, ended with the block."""
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("wb")) if log else subprocess.DEVNULL
        child = subprocess.Popen(
            list(command),
            stdout=out,
            stderr=subprocess.STDOUT if log else subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
        )
        try:
            yield child
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A directory that goes with the block."""
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name:
        yield Path(name)


def tool(name: str) -> str | None:
    """The program's path, also in the places where Debian keeps servers."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    beside = Path(PYTHON).parent / name
    return found or (str(beside) if beside.exists() else None)


NGINX = """
worker_processes 1;
pid {dir}/nginx.pid;
error_log {dir}/nginx-error.log crit;
daemon off;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  keepalive_requests 100000000;
  keepalive_timeout 600s;
  server {{
    listen 127.0.0.1:{port} backlog=4096 reuseport;
    {tls}
    location / {{ default_type text/plain; return 200 "{body}"; }}
  }}
}}
"""


@contextlib.contextmanager
def nginx(directory: Path, body_bytes: int = 1024, tls: str = "") -> Iterator[int]:
    """An nginx that answers every request with ``body_bytes`` bytes; yields its port."""
    binary = tool("nginx")
    if binary is None:
        raise SystemExit("nginx is not installed: apt-get install nginx-light")
    port = free_port()
    config = directory / f"nginx-{port}.conf"
    config.write_text(NGINX.format(dir=directory, port=port, body="x" * body_bytes, tls=tls))
    with process([binary, "-c", str(config), "-p", str(directory)]):
        wait_for_port(port)
        yield port


@dataclass(frozen=True, slots=True)
class Load:
    """One run of wrk."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int
    cpu_us_per_request: float | None
    """Of the process under test."""


_UNIT_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60000.0}


def wrk(url: str, *, seconds: float, connections: int = 64, pid: int | None = None) -> Load:
    """Load ``url`` and read the figures; ``pid``: whose CPU time is counted."""
    binary = tool("wrk")
    if binary is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    before = _cpu_s(pid)
    run = subprocess.run(
        [binary, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", url],
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds + 30,
    )
    after = _cpu_s(pid)
    text = run.stdout
    total = int(_find(r"(\d+) requests in", text))
    errors = sum(int(n) for n in re.findall(r"(?:connect|read|write|timeout) (\d+)", text))
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors += int(bad[1]) if bad else 0
    cpu = None
    if before is not None and after is not None and total:
        cpu = (after - before) / total * 1e6
    return Load(
        float(_find(r"Requests/sec:\s+([\d.]+)", text)),
        _duration_ms(_find(r"\n\s+50%\s+(\S+)", text)),
        _duration_ms(_find(r"\n\s+99%\s+(\S+)", text)),
        errors,
        cpu,
    )


def _find(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise SystemExit(f"wrk printed no {pattern!r}:\n{text}")
    return match[1]


def _duration_ms(text: str) -> float:
    match = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text)
    assert match is not None, text
    return float(match[1]) * _UNIT_MS[match[2]]


def _cpu_s(pid: int | None) -> float | None:
    if pid is None:
        return None
    root = psutil.Process(pid)
    total = 0.0
    for one in [root, *root.children(recursive=True)]:
        times = one.cpu_times()
        total += times.user + times.system
    return total


def rss_bytes(pid: int) -> int:
    """Resident memory of a process and its children."""
    root = psutil.Process(pid)
    return sum(one.memory_info().rss for one in [root, *root.children(recursive=True)])


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)
