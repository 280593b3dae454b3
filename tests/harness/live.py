"""A real ``edged run`` process for live tests: started with a config, stopped by pid."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]


def free_port(host="127.0.0.1"):
    with socket.socket() as sock:
        sock.bind((host, 0))
        return sock.getsockname()[1]


def wait_for(condition, what, limit_s=20.0, step_s=0.02):
    """Poll ``condition`` until it is true; its last value is returned."""
    end = time.monotonic() + limit_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"timed out waiting for {what}")
        time.sleep(step_s)


@dataclass
class Answer:
    """A whole response."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def request_id(self):
        return self.headers["edged-request-id"]


_SERIES = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.M)


def with_us(command):
    """``command`` as one that is killed when this process is, however that happens."""
    setpriv = shutil.which("setpriv")
    return [*((setpriv, "--pdeathsig", "KILL") if setpriv else ()), *command]


class Edged:
    """``with Edged(config, tmp_path) as edged: ... edged.url``"""

    EXECUTABLE = (sys.executable, "-m", "edged")

    def __init__(self, config, directory, *, env=None, executable=EXECUTABLE):
        self.directory = Path(directory)
        self.port, self.admin_port = free_port(), free_port()
        self.config = {
            "node": {"name": "t1"},
            "listen": {
                "proxy": f"127.0.0.1:{self.port}",
                "admin": f"127.0.0.1:{self.admin_port}",
            },
            **config,
        }
        self.file = self.directory / "edged.yaml"
        self.log_file = self.directory / "edged.log"
        self.env = {**os.environ, **(env or {})}
        self.command = list(executable)
        self.write()

    def write(self):
        """Put the config on disk (for a reload: change ``config`` first)."""
        self.file.write_text(yaml.safe_dump(self.config, sort_keys=False))

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin(self):
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def log(self):
        return self.log_file.read_text(errors="replace")

    def start(self):
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                with_us([*self.command, "run", "-c", str(self.file)]),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self.env,
                cwd=ROOT,
            )
        wait_for(self.ready, "edged to be ready")
        return self

    def ready(self):
        assert self.process.poll() is None, f"edged ended:\n{self.log}"
        try:
            return self.get("/readyz").status == 200
        except OSError:
            return False

    def get(self, path):
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            self.admin + path, timeout=5
        )

    def status(self):
        return json.load(self.get("/status"))

    def metrics(self):
        return self.get("/metrics").read().decode()

    def why(self, answer):
        """What edged says of an exchange that is over."""
        return json.load(self.get(f"/why/{answer.request_id}"))

    def gauge(self, name, *labels):
        """The sum of a metric's series whose labels contain each of ``labels`` (as ``a="b"``)."""
        return sum(
            float(value)
            for found, having, value in _SERIES.findall(self.metrics())
            if found == name and all(label in having for label in labels)
        )

    @property
    def usage(self):
        """The process, for memory and descriptors."""
        return psutil.Process(self.process.pid)

    def open(self, path, method="GET", *, body=None, headers=None, timeout=30):
        """Send a request; the `http.client.HTTPResponse` once its head is there.

        Its ``connection`` can be used on; ``leave()`` closes it, whatever is still to come.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        response.connection = connection
        response.leave = connection.close
        return response

    def fetch(self, path, method="GET", *, body=None, headers=None, timeout=30):
        """A whole exchange on a connection of its own."""
        response = self.open(path, method, body=body, headers=headers, timeout=timeout)
        try:
            return Answer(response.status, response.headers, response.read())
        finally:
            response.leave()

    def tunnel(self, authority, timeout=30):
        """A socket through CONNECT to ``authority``."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout)
        sock.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):  # byte by byte: what follows belongs to the caller
            byte = sock.recv(1)
            assert byte, head
            head += byte
        assert head.startswith(b"HTTP/1.1 200"), head
        return sock

    def stop(self):
        """Ask it to stop; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode

    def __enter__(self):
        return self.start()

    def __exit__(self, *exc):
        self.stop()
        assert "Traceback" not in self.log, self.log
