"""The whole lab: lines, endpoints (a front each, an origin each), certificates, and a configuration
for the daemon that describes them."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from edged.lab.certs import Certificates, make_certificates
from edged.lab.lines import Lines, LineSpec
from edged.lab.origin import Origin
from edged.lab.service import Service
from edged.lab.tcp import TcpFront
from edged.lab.udp import UdpFront

_ORIGIN_ADDRESS = "127.73.0.1"
_PORT_TRIES = 20
HOST = "api.lab.test"
PREFIX = "/llm"


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """One endpoint as first set up. Its host name is ``NAME.lab.test``."""

    name: str
    address: str
    location: str
    extra_rtt_s: float = 0.0
    """Round trip on top of the line's."""
    protocols: tuple[str, ...] = ("h3", "h2", "h1")


DEFAULT_LINES = (
    LineSpec.symmetric("cn2", "127.71.1.2", kind="cn2", rtt_s=0.060, jitter_s=0.001, loss=0.001),
    LineSpec.symmetric("bgp", "127.71.2.2", kind="bgp", rtt_s=0.150, jitter_s=0.004, loss=0.01),
    LineSpec.symmetric("hk", "127.71.3.2", kind="hk", rtt_s=0.135, jitter_s=0.002, loss=0.002),
)
DEFAULT_ENDPOINTS = (
    EndpointSpec("tokyo", "127.72.1.1", "asia-northeast1"),
    EndpointSpec("oregon", "127.72.2.1", "us-west1", extra_rtt_s=0.080),
)


@dataclass(slots=True, eq=False)
class LabEndpoint:
    """One endpoint while it runs."""

    spec: EndpointSpec
    origin: Origin
    tcp: TcpFront
    udp: UdpFront
    port: int

    @property
    def host(self) -> str:
        """Its name in the certificate."""
        return f"{self.spec.name}.lab.test"

    @property
    def service(self) -> Service:
        """The origin's switches and counters."""
        return self.origin.service

    def silence(self, silent: bool = True) -> None:
        """Silence the endpoint on every line, or bring it back."""
        self.tcp.silence(silent)
        self.udp.silence(silent)


@dataclass(slots=True, eq=False)
class Lab:
    """``async with Lab() as lab``: everything in this process and its event loop."""

    line_specs: Iterable[LineSpec] = DEFAULT_LINES
    endpoint_specs: Sequence[EndpointSpec] = DEFAULT_ENDPOINTS
    hosts: tuple[str, ...] = ()
    """Further names for the certificate."""
    seed: int | None = None
    h3_engine: str = "aioquic"
    lines: Lines = field(init=False)
    endpoints: dict[str, LabEndpoint] = field(init=False, default_factory=dict)
    certificates: Certificates = field(init=False)
    directory: Path = field(init=False)

    def __post_init__(self) -> None:
        self.lines = Lines(self.line_specs, self.seed)

    @property
    def kernel_silence(self) -> bool:
        """False where the kernel refuses filters and keys: dead lines only stall in user space."""
        return all(
            endpoint.tcp.kernel or endpoint.tcp.signs for endpoint in self.endpoints.values()
        )

    @property
    def ca_file(self) -> Path:
        """What the daemon and clients must trust."""
        return self.certificates.ca_file

    async def start(self) -> None:
        """Start origins and fronts. Raises `OSError`."""
        self.directory = Path(tempfile.mkdtemp(prefix="edged-lab-"))
        names = [HOST, "*.lab.test", "localhost", "127.0.0.1", _ORIGIN_ADDRESS, *self.hosts]
        names += [spec.address for spec in self.endpoint_specs]
        self.certificates = make_certificates(self.directory, dict.fromkeys(names))
        try:
            for spec in self.endpoint_specs:
                service = Service(name=spec.name)
                origin = Origin(self.certificates, service=service, h3_engine=self.h3_engine)
                await origin.start(_ORIGIN_ADDRESS)
                self.endpoints[spec.name] = self._front(spec, origin)
        except OSError:
            await self.stop()
            raise

    def _front(self, spec: EndpointSpec, origin: Origin) -> LabEndpoint:
        target = (_ORIGIN_ADDRESS, origin.port)
        tcp = TcpFront(self.lines, target, extra_delay_s=spec.extra_rtt_s / 2)
        udp = UdpFront(self.lines, target, extra_delay_s=spec.extra_rtt_s / 2)
        tcp.start(spec.address)
        for _ in range(_PORT_TRIES):
            try:
                udp.start(spec.address, tcp.port)
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                tcp.close_listener()
                tcp.start(spec.address)
        return LabEndpoint(spec, origin, tcp, udp, tcp.port)

    async def stop(self) -> None:
        """Stop everything and remove the keys."""
        for endpoint in self.endpoints.values():
            endpoint.udp.stop()
            await endpoint.tcp.stop()
            await endpoint.origin.stop()
        self.endpoints.clear()
        shutil.rmtree(self.directory, ignore_errors=True)

    async def __aenter__(self) -> Lab:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def write_config(
        self,
        *,
        proxy: str = "127.0.0.1:0",
        admin: str | None = "127.0.0.1:0",
        preset: str = "balanced",
        protocols: Sequence[str] | None = None,
        policy: dict[str, Any] | None = None,
        access_log: str | None = "access.log",
    ) -> Path:
        """Write ``edged.yaml`` and its policy beside the keys; returns the file.

        ``policy`` overrides members of the preset. ICMP is off: echoes on loopback say nothing of
        the emulated lines.
        """
        upstream = {
            "name": "llm",
            "hosts": [HOST],
            "prefix": PREFIX,
            "policy": "lab",
            "endpoints": [
                {
                    "name": endpoint.spec.name,
                    "url": f"https://{endpoint.host}:{endpoint.port}",
                    "address": endpoint.spec.address,
                    "location": endpoint.spec.location,
                    "protocols": list(protocols or endpoint.spec.protocols),
                    "accepts_encoding": list(endpoint.service.accepts_encoding),
                }
                for endpoint in self.endpoints.values()
            ],
        }
        lines = [
            {"name": line.name, "kind": line.spec.kind, "bind": {"source": line.spec.source}}
            for line in self.lines
        ]
        config = {
            "node": {"name": "lab", "location": "asia-east1"},
            "listen": {"proxy": proxy, "admin": admin},
            "lines": lines,
            "upstreams": [upstream],
            "tls": {"ca_file": str(self.ca_file)},
            "log": {"access": access_log},
            "policies_dir": "policies.d",
        }
        rules: dict[str, Any] = {"extends": preset, **(policy or {})}
        rules["cadence"] = {"icmp_s": None, **rules.get("cadence", {})}
        (self.directory / "policies.d").mkdir(exist_ok=True)
        _write_yaml(self.directory / "policies.d" / "lab.yaml", rules)
        file = self.directory / "edged.yaml"
        _write_yaml(file, config)
        return file


def _write_yaml(file: Path, document: object) -> None:
    file.write_text(yaml.safe_dump(document, sort_keys=False))
