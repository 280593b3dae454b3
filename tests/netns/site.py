"""The usual whole of a test: a lab, origins, perhaps a Caddy before them, and an edged."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from edged.lab.certs import Certificates, make_certificates
from tests.harness.live import Edged, wait_for
from tests.netns.lab import LINE_A, LINE_B, Lab, LineSpec
from tests.netns.origin_side import CLEARTEXT_PORT, PORT, READY

CADDY = Path(sys.executable).with_name("caddy")
CADDY_PORT = 8443
PREFIX = "/llm"
_HERE = Path(__file__).parent
_CADDYFILE = """
{
  admin off
  persist_config off
  auto_https off
  grace_period 1s
  servers {
    protocols h1 h2 h3
  }
}
"""
_CADDY_SITE = """
https://e{number}.lab.test:{port} {{
  bind {address}
  tls {directory}/lab.pem {directory}/lab.key
  header X-Remote {{http.request.remote.host}}
  reverse_proxy {address}:{cleartext}
}}
"""


class Site:
    """``with Site(directory) as site, site.lab.edge: site.edged.fetch("/llm/echo")``"""

    def __init__(
        self,
        directory: Path,
        *,
        lines: Iterable[LineSpec] = (LINE_A, LINE_B),
        seed: int = 0,
        endpoints: int = 1,
        protocols: Sequence[str] = ("h2",),
        accepts: Sequence[str] = (),
        caddy: bool = False,
        policy: dict[str, Any] | None = None,
        upstreams: dict[str, dict[str, Any]] | None = None,
        config: dict[str, Any] | None = None,
        edged: bool = True,
        engine: str = "aioquic",
        congestion: str | None = None,
    ) -> None:
        """``policy``: what differs from the default one. ``upstreams``: {name: {"protocols",
        "accepts", "policy"}}, each at ``/name``, in place of the one at ``/llm``. ``config``:
        sections of edged.yaml that differ. ``edged``: whether to run one. ``engine``: the
        origins' for h3. ``congestion``: as `Lab`'s, but edged may choose for itself, and would
        have reno if it did not."""
        self.directory = directory
        self.lab = Lab(
            lines,
            seed=seed,
            endpoints=endpoints,
            congestion=congestion,
            edge_default="reno" if edged and congestion else None,
        )
        self.port = CADDY_PORT if caddy else PORT
        self.certificates: Certificates
        self.edged: Edged
        one = {"protocols": protocols, "accepts": accepts, "policy": policy}
        self._upstreams = upstreams or {"llm": one}
        self._caddy, self._engine, self._with_edged = caddy, engine, edged
        self._config = config or {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Site:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            if self._with_edged and exc[0] is None:
                self.edged.__exit__()
        finally:
            self._stack.close()

    def _start(self) -> None:
        lab = self._stack.enter_context(self.lab)
        names = ["*.lab.test", "localhost", "127.0.0.1", *lab.addresses]
        self.certificates = make_certificates(self.directory, names)
        script = [sys.executable, _HERE / "origin_side.py", "--directory", self.directory]
        self.origin = lab.origin.start(
            [*script, "--engine", self._engine, *lab.addresses],
            stdout=subprocess.PIPE,
            stderr=self._stack.enter_context((self.directory / "origin.log").open("wb")),
        )
        self._stack.callback(self.origin.stdout.close)
        if self.origin.stdout.readline().decode().strip() != READY:
            raise RuntimeError((self.directory / "origin.log").read_text())
        if self._caddy:
            self.caddy = self.start_caddy(lab.addresses)
        if self._with_edged:
            self._start_edge()

    def _start_edge(self) -> None:
        for name, upstream in self._upstreams.items():
            if (policy := upstream.get("policy")) is not None:
                (self.directory / "policies.d").mkdir(exist_ok=True)
                file = self.directory / "policies.d" / f"{name}.yaml"
                file.write_text(yaml.safe_dump({"extends": "balanced", **policy}))
        self.edged = Edged({**self.configuration(), **self._config}, self.directory)
        self.start_edged()

    def start_edged(self) -> None:
        """Start the daemon (again)."""
        with self.lab.edge:
            self.edged.start()
        self._stack.callback(self.edged.stop)

    def start_caddy(self, addresses: Sequence[str]) -> subprocess.Popen[Any]:
        """One Caddy before the origins at some of the lab's addresses; it listens."""
        sites = [
            _CADDY_SITE.format(
                number=self.lab.addresses.index(address) + 1,
                port=CADDY_PORT,
                address=address,
                directory=self.directory,
                cleartext=CLEARTEXT_PORT,
            )
            for address in addresses
        ]
        file = self.directory / f"Caddyfile-{addresses[0]}"
        file.write_text(_CADDYFILE + "".join(sites))
        caddy = self.lab.origin.start(
            [CADDY, "run", "--config", file, "--adapter", "caddyfile"],
            log=self.directory / "caddy.log",
            env={"HOME": str(self.directory), "XDG_DATA_HOME": str(self.directory)},
        )
        with self.lab.origin:
            for address in addresses:
                _wait_for_port(address, CADDY_PORT)
        return caddy

    def configuration(self) -> dict[str, Any]:
        """What edged.yaml says of the lines and of the upstreams."""
        return {
            "lines": [
                {"name": name, "kind": "bgp", "bind": {"source": self.lab.source(name)}}
                for name in self.lab.lines
            ],
            "upstreams": [self._upstream(*one) for one in self._upstreams.items()],
            "tls": {"ca_file": str(self.certificates.ca_file)},
            "log": {"access": "access.log"},
        }

    def _upstream(self, name: str, upstream: dict[str, Any]) -> dict[str, Any]:
        endpoints = [
            {
                "name": f"e{number}",
                "url": f"https://e{number}.lab.test:{self.port}",
                "address": address,
                "protocols": list(upstream["protocols"]),
                "accepts_encoding": list(upstream.get("accepts", ())),
            }
            for number, address in enumerate(self.lab.addresses, 1)
        ]
        document: dict[str, Any] = {"name": name, "prefix": f"/{name}", "endpoints": endpoints}
        if upstream.get("policy") is not None:
            document["policy"] = name
        return document

    def executions(self) -> dict[str, int]:
        """How often each request was carried out, by ``x-lab-id``, ``idempotency-key`` or
        ``x-request-id``; asked past all lines."""
        with self.lab.origin:
            connection = http.client.HTTPConnection(self.lab.addresses[0], CLEARTEXT_PORT, 10)
            connection.request("GET", "/executions")
            answer = connection.getresponse().read()
            connection.close()
        counts: dict[str, int] = json.loads(answer)
        return counts

    def access_log(self) -> list[dict[str, Any]]:
        """What edged wrote of each exchange."""
        file = self.directory / "access.log"
        return [json.loads(line) for line in file.read_text().splitlines()]


def _wait_for_port(host: str, port: int) -> None:
    def listens() -> bool:
        try:
            socket.create_connection((host, port), 1).close()
        except OSError:
            return False
        return True

    wait_for(listens, f"{host}:{port} to listen")
