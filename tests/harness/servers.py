"""Servers that nobody here wrote, on free ports of loopback: Caddy, nginx and HAProxy.

Each is a context manager that yields a `Server`. With a `Certificate` it speaks TLS, without one
cleartext. ``patience_s`` is how long the server keeps an idle client connection.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.harness.live import with_us

CADDY = Path(sys.executable).with_name("caddy")


@dataclass
class Certificate:
    """A leaf certificate and the throw-away authority that issued it."""

    ca: trustme.CA
    ca_file: str
    chain: str
    key: str

    @classmethod
    def make(cls, directory: Path, *names: str) -> Certificate:
        ca = trustme.CA()
        leaf = ca.issue_cert(*(names or ("localhost", "127.0.0.1")))
        ca.cert_pem.write_to_path(str(directory / "ca.pem"))
        (directory / "chain.pem").write_bytes(b"".join(p.bytes() for p in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(str(directory / "key.pem"))
        return cls(
            ca,
            str(directory / "ca.pem"),
            str(directory / "chain.pem"),
            str(directory / "key.pem"),
        )


@dataclass
class Server:
    """A running server."""

    port: int
    process: subprocess.Popen

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    """A port that nothing listened on a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _wait(port: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError("the server did not start")


@contextmanager
def _run(command: list[str], port: int, directory: Path):
    environment = {**os.environ, "HOME": str(directory), "XDG_DATA_HOME": str(directory)}
    with (directory / "server.log").open("ab") as log:
        process = subprocess.Popen(with_us(command), stdout=log, stderr=log, env=environment)
        try:
            _wait(port, process)
            yield Server(port, process)
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def caddy(
    directory: Path,
    certificate: Certificate | None,
    routes: str,
    *,
    protocols: str,
    patience_s: float | None = None,
):
    """Caddy; ``routes`` is what a site's block holds. h2c and h1 without a certificate."""
    port = free_port()
    site = f"https://localhost:{port}" if certificate else f"http://localhost:{port}"
    tls = f"tls {certificate.chain} {certificate.key}" if certificate else ""
    patience = f"timeouts {{\n idle {patience_s}s\n }}\n" if patience_s else ""
    file = directory / "Caddyfile"
    file.write_text(
        "{\n admin off\n persist_config off\n auto_https off\n"
        f" servers {{\n  protocols {protocols}\n {patience}}}\n}}\n"
        f"{site} {{\n bind 127.0.0.1\n {tls}\n {routes}\n}}\n"
    )
    command = [str(CADDY), "run", "--config", str(file), "--adapter", "caddyfile"]
    with _run(command, port, directory) as server:
        yield server


@contextmanager
def nginx(
    directory: Path,
    certificate: Certificate | None,
    location: str,
    *,
    h2: bool,
    patience_s: float = 75,
):
    """nginx; ``location`` is what a server's block holds. In cleartext either h2 or h1."""
    port = free_port()
    (directory / "temp").mkdir(exist_ok=True)
    temp = "".join(
        f"{kind}_temp_path {directory}/temp/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    tls = (
        f"ssl_certificate {certificate.chain}; ssl_certificate_key {certificate.key};"
        if certificate
        else ""
    )
    listen = f"listen 127.0.0.1:{port}{' ssl' if certificate else ''}{' http2' if h2 else ''};"
    file = directory / "nginx.conf"
    file.write_text(
        f"daemon off; master_process off; pid {directory}/nginx.pid;\n"
        f"error_log {directory}/error.log;\nevents {{ worker_connections 4096; }}\n"
        f"http {{ access_log off; keepalive_requests 1000000; client_max_body_size 1g;\n{temp}"
        f"keepalive_timeout {patience_s}s;\nserver {{ {listen} {tls}\n{location}\n}} }}\n"
    )
    binary = shutil.which("nginx")
    command = [binary, "-c", str(file), "-p", str(directory), "-e", "stderr"]
    with _run(command, port, directory) as server:
        yield server


@contextmanager
def haproxy(
    directory: Path,
    certificate: Certificate,
    backend_port: int,
    *,
    rules: str = "",
    patience_s: float = 60,
):
    """HAProxy ending TLS for h1 and h2 in front of a plain h1 server; ``rules`` in its frontend."""
    port = free_port()
    pem = directory / "both.pem"
    pem.write_bytes(Path(certificate.chain).read_bytes() + Path(certificate.key).read_bytes())
    file = directory / "haproxy.cfg"
    patience_ms = round(patience_s * 1000)
    file.write_text(
        "defaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n"
        f" timeout http-keep-alive {patience_ms}ms\n"
        f"frontend f\n bind 127.0.0.1:{port} ssl crt {pem} alpn h2,http/1.1\n {rules}\n"
        f" default_backend b\nbackend b\n server s 127.0.0.1:{backend_port}\n"
    )
    with _run([shutil.which("haproxy"), "-db", "-f", str(file)], port, directory) as server:
        yield server
