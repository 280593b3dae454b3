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
NAMES = ("hk", "sg", "la")
"""Of relays; each has the ports after those of the one before."""


class RelaySite(Site):
    """``with RelaySite(directory) as site, site.lab.edge: site.edged.fetch("/llm/echo")``.

    ``direct``: whether the edge reaches the origin without a relay, too; ``relay``: sections of
    relay.yaml that differ; ``relays``: how many there are.
    """

    def __init__(
        self,
        directory: Path,
        *,
        direct: bool = False,
        relay: dict[str, Any] | None = None,
        relays: int = 1,
        **more,
    ) -> None:
        self._direct, self._relay = direct, relay or {}
        self._names = NAMES[:relays]
        self._relays: dict[str, subprocess.Popen[Any]] = {}
        super().__init__(directory, **more)

    @property
    def relay(self) -> subprocess.Popen[Any]:
        """The first one's process."""
        return self._relays[NAMES[0]]

    def configuration(self) -> dict[str, Any]:
        """As of the site, and the relay."""
        document = super().configuration()
        for number, upstream in enumerate(document["upstreams"]):
            if number == 0:
                upstream["hosts"] = ["*.lab.test"]  # for tunnels
            for endpoint in upstream["endpoints"]:
                endpoint["direct"] = self._direct
        address = self.lab.addresses[0]
        document["relays"] = [
            {"name": name, "url": f"https://{address}:{RELAY_PORT + number}", "token_file": "token"}
            for number, name in enumerate(self._names)
        ]
        return document

    def relay_configuration(self, number: int = 0) -> dict[str, Any]:
        """What relay.yaml says."""
        upstreams = super().configuration()["upstreams"][:1]
        for upstream in upstreams:
            upstream["hosts"] = ["*.lab.test"]
            for name in ("prefix", "policy"):
                upstream.pop(name, None)
        return {
            "node": {"name": f"{NAMES[number]}-1"},
            "listen": {
                "relay": f"{self.lab.addresses[0]}:{RELAY_PORT + number}",
                "admin": f"127.0.0.1:{ADMIN_PORT + number}",
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

    def start_relay(self, name: str = NAMES[0]) -> None:
        """Start it (again); it listens."""
        number = NAMES.index(name)
        file = self.directory / f"{name}.yaml"
        file.write_text(yaml.safe_dump(self.relay_configuration(number), sort_keys=False))
        self._relays[name] = self.lab.origin.start(
            [sys.executable, "-m", "edged", "relay", "-c", file],
            log=self.directory / "relay.log",
            cwd=Path(__file__).parents[2],
        )
        with self.lab.origin:
            _wait_for_port(self.lab.addresses[0], RELAY_PORT + number)

    def kill_relay(self, name: str = NAMES[0]) -> None:
        """As a crash does."""
        os.kill(self._relays[name].pid, signal.SIGKILL)
        self._relays[name].wait()

    def relay_status(self, name: str = NAMES[0]) -> dict[str, Any]:
        """A relay's /status, asked past all lines."""
        with self.lab.origin:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            url = f"http://127.0.0.1:{ADMIN_PORT + NAMES.index(name)}/status"
            answer: dict[str, Any] = json.load(opener.open(url, timeout=5))
        return answer

    def pulses(self, name: str = NAMES[0]) -> int:
        """How many lines a relay hears of."""
        return int(self.relay_status(name)["relay"]["clients"][0]["pulses"])

    def _start_edge(self) -> None:
        (self.directory / "token").write_text(TOKEN)
        for name in self._names:
            self.start_relay(name)
        super()._start_edge()
        self.until_connected()

    def until_connected(self) -> None:
        """The edge's pulses are there, over all lines."""
        for name in self._names:
            wait_for(lambda name=name: self.pulses(name) == len(self.lab.lines), f"{name}'s pulses")
