"""A site whose origin lies behind a relay: edge, two lines, `edged relay`, origin."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from tests.harness.live import wait_for
from tests.netns.origin_side import PORT
from tests.netns.site import Site, _wait_for_port

RELAY_PORT = 8443
ADMIN_PORT = 7071
TOKEN = "0123456789abcdef0123456789abcdef"


class RelaySite(Site):
    """``with RelaySite(directory) as site, site.lab.edge: site.edged.fetch("/llm/echo")``.

    ``direct``: whether the edge reaches the origin without the relay, too.
    """

    def __init__(
        self, directory: Path, *, direct: bool = False, relay: dict[str, Any] | None = None, **more
    ) -> None:
        self._direct, self._relay = direct, relay or {}
        self.relay: subprocess.Popen[Any]
        super().__init__(directory, **more)

    def configuration(self) -> dict[str, Any]:
        """As of the site, and the relay."""
        document = super().configuration()
        for upstream in document["upstreams"]:
            for endpoint in upstream["endpoints"]:
                endpoint["direct"] = self._direct
        address = self.lab.addresses[0]
        document["relays"] = [
            {"name": "hk", "url": f"https://{address}:{RELAY_PORT}", "token_file": "token"}
        ]
        return document

    def relay_configuration(self) -> dict[str, Any]:
        """What relay.yaml says."""
        upstreams = super().configuration()["upstreams"][:1]
        for upstream in upstreams:
            upstream["hosts"] = ["*.lab.test"]
            for name in ("prefix", "policy"):
                upstream.pop(name, None)
        return {
            "node": {"name": "hk-1"},
            "listen": {
                "relay": f"{self.lab.addresses[0]}:{RELAY_PORT}",
                "admin": f"127.0.0.1:{ADMIN_PORT}",
            },
            "certificate": {
                "chain_file": str(self.certificates.certificate),
                "key_file": str(self.certificates.key),
            },
            "clients": [
                {
                    "name": "edge",
                    "token_sha256": hashlib.sha256(TOKEN.encode()).hexdigest(),
                    "allow": [f"*.lab.test:{PORT}"],
                }
            ],
            "upstreams": upstreams,
            "tls": {"ca_file": str(self.certificates.ca_file)},
            "log": {"access": None},
            **self._relay,
        }

    def start_relay(self) -> None:
        """Start it (again); it listens."""
        file = self.directory / "relay.yaml"
        file.write_text(yaml.safe_dump(self.relay_configuration(), sort_keys=False))
        self.relay = self.lab.origin.start(
            [sys.executable, "-m", "edged", "relay", "-c", file],
            log=self.directory / "relay.log",
            cwd=Path(__file__).parents[2],
        )
        with self.lab.origin:
            _wait_for_port(self.lab.addresses[0], RELAY_PORT)

    def kill_relay(self) -> None:
        """As a crash does."""
        os.kill(self.relay.pid, signal.SIGKILL)
        self.relay.wait()

    def relay_status(self) -> dict[str, Any]:
        """The relay's /status, asked past all lines."""
        with self.lab.origin:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            url = f"http://127.0.0.1:{ADMIN_PORT}/status"
            answer: dict[str, Any] = json.load(opener.open(url, timeout=5))
        return answer

    def pulses(self) -> int:
        """How many lines the relay hears of."""
        return int(self.relay_status()["relay"]["clients"][0]["pulses"])

    def _start_edge(self) -> None:
        (self.directory / "token").write_text(TOKEN)
        self.start_relay()
        super()._start_edge()
        self.until_connected()

    def until_connected(self) -> None:
        """The edge's pulses are there, over all lines."""
        wait_for(lambda: self.pulses() == len(self.lab.lines), "the pulses of all lines")
