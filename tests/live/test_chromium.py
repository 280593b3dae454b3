"""Headless Chromium loads a page through the explicit proxy: absolute-form, and CONNECT."""

import json
import shutil
import struct
import subprocess
import zlib
from contextlib import ExitStack
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from tests.harness.live import Edged, wait_for
from tests.harness.servers import CADDY, Certificate, caddy
from tests.live.conftest import need
from tests.live.stepper import Stepper

pytestmark = pytest.mark.skipif(not CADDY.exists(), reason="caddy is not installed")

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--ignore-certificate-errors", "--window-size=640,360"),
)

PAGE = """<!doctype html>
<html><head><title>edged</title><link rel="stylesheet" href="style.css"></head>
<body><h1 id="title">A page through edged</h1>
<img id="image" src="image.png" alt=""><p id="told">nothing yet</p><ol id="events"></ol>
<script src="script.js"></script></body></html>
"""
STYLE = "body { background: #e8f0ff; font-family: sans-serif } #title { color: rgb(0, 85, 170) }"
SCRIPT = """
const told = document.getElementById("told");
const events = document.getElementById("events");
const streamed = new Promise((resolve, reject) => {
  const source = new EventSource("/steps");
  source.onmessage = event => {
    events.appendChild(document.createElement("li")).textContent = event.data;
    if (event.data === "last") { source.close(); resolve(); }
  };
  source.onerror = () => reject(new Error("the events broke"));
});
const fetched = fetch("data.json").then(response => response.json());
const posted = fetch("/post", {method: "POST", body: "x".repeat(100000)})
  .then(response => response.text());
const loaded = new Promise(resolve => window.addEventListener("load", resolve));
Promise.all([fetched, posted, streamed, loaded]).then(([data, post]) => {
  const image = document.getElementById("image");
  told.textContent = JSON.stringify({
    answer: data.answer, post, width: image.naturalWidth,
    color: getComputedStyle(document.getElementById("title")).color,
    protocol: location.protocol,
  });
}, error => { told.textContent = String(error); });
"""


def png(width, height):
    """An image of one colour (RFC 2083)."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    rows = (b"\0" + b"\xff\x88\x00" * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The page on two Caddys, one without and one with TLS."""
    directory = tmp_path_factory.mktemp("site")
    files = directory / "files"
    files.mkdir()
    (files / "index.html").write_text(PAGE)
    (files / "style.css").write_text(STYLE)
    (files / "script.js").write_text(SCRIPT)
    (files / "data.json").write_text(json.dumps({"answer": 42}))
    (files / "image.png").write_bytes(png(120, 80))
    with ExitStack() as stack:
        stepper = stack.enter_context(Stepper())
        routes = (
            f"root {files}\n file_server\n encode zstd gzip\n"
            "handle /post {\n respond {http.request.body} 200\n }\n"
            f"reverse_proxy /steps 127.0.0.1:{stepper.port}"
        )
        ports = {}
        for scheme, protocols in (("http", "h1"), ("https", "h1 h2")):
            folder = directory / scheme
            folder.mkdir()
            certificate = Certificate.make(folder) if scheme == "https" else None
            started = caddy(folder, certificate, routes, protocols=protocols)
            ports[scheme] = stack.enter_context(started).port
        yield SimpleNamespace(ports=ports, stepper=stepper)


class Told(HTMLParser):
    """The texts of the page's elements by id, and the events."""

    def __init__(self, document):
        super().__init__()
        self.texts, self.events, self._id, self._tag = {}, [], None, None
        self.feed(document)

    def handle_starttag(self, tag, attrs):
        self._tag, self._id = tag, dict(attrs).get("id")

    def handle_data(self, data):
        if self._id:
            self.texts.setdefault(self._id, data)
        elif self._tag == "li":
            self.events.append(data)

    def handle_endtag(self, tag):
        self._tag = self._id = None


def chromium(edged, url, directory, *arguments):
    """Run it once on ``url``; what it writes."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or need("google-chrome")
    done = subprocess.run(
        [
            program,
            *FLAGS,
            f"--user-data-dir={directory / 'profile'}",
            f"--proxy-server=127.0.0.1:{edged.port}",
            "--proxy-bypass-list=<-loopback>",
            "--virtual-time-budget=20000",
            *arguments,
            url,
        ],
        capture_output=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    return done.stdout.decode()


@pytest.mark.tool("chromium")
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_page_loads(site, scheme, tmp_path):
    for event in ("first", "second", "last"):
        site.stepper.say(f"data: {event}\n\n".encode())
    site.stepper.end()
    port = site.ports[scheme]
    with Edged({"log": {"access": "access.log"}}, tmp_path) as edged:
        shot = tmp_path / "shot.png"
        url = f"{scheme}://localhost:{port}/"
        document = chromium(edged, url, tmp_path, "--dump-dom", f"--screenshot={shot}")
        page = Told(document)
        assert "told" in page.texts, document
        told = json.loads(page.texts["told"])
        assert told == {
            "answer": 42,
            "post": "x" * 100_000,
            "width": 120,
            "color": "rgb(0, 85, 170)",
            "protocol": f"{scheme}:",
        }
        assert page.events == ["first", "second", "last"]

        def log():
            lines = (tmp_path / "access.log").read_text().splitlines()
            asked = [json.loads(line) for line in lines]
            return [a for a in asked if a["authority"] == f"localhost:{port}"]

        if scheme == "https":
            wait_for(lambda: any(a["method"] == "CONNECT" for a in log()), "the tunnel's line")
        else:
            wanted = {"/", "/style.css", "/script.js", "/image.png", "/data.json", "/steps"}
            wait_for(lambda: wanted <= {a["target"] for a in log()}, "the lines of the log")
            assert {a["status"] for a in log() if a["target"] in wanted} == {200}
