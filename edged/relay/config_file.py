"""What may stand in ``relay.yaml``: every key with its type, default and meaning.

Lines, upstreams, policies and the rest are those of ``edged.yaml`` (`edged.config_file`): a relay's
upstream side is the edge's.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from edged.config_file import (
    LimitsSection,
    LineSection,
    Listen,
    LogSection,
    Name,
    NodeSection,
    TlsSection,
    UpstreamSection,
)
from edged.relay.targets import parse
from policies.schema import Seconds

_SHA256 = re.compile(r"[0-9a-f]{64}")
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _sha256(value: str) -> str:
    digest = value.replace(":", "").lower()
    if not _SHA256.fullmatch(digest):
        raise ValueError("a SHA-256 has 64 hexadecimal digits; see docs/relay.md for how to get it")
    if digest == EMPTY_SHA256:
        raise ValueError("this is the SHA-256 of nothing; the command had no input")
    return digest


def _target(value: str) -> str:
    parse(value)
    return value


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError as error:
        if "host bits" in str(error):
            net = ipaddress.ip_network(value, strict=False)
            raise ValueError(f"has host bits set; the network is {net}") from None
        raise ValueError("not an IP address or network, as 10.0.0.0/8") from None


Sha256 = Annotated[str, AfterValidator(_sha256)]
Megabytes = Annotated[float, Field(strict=True, gt=0, le=1 << 20, allow_inf_nan=False)]
Rate = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ListenSection(_Section):
    """Where the relay listens."""

    relay: Annotated[tuple[Listen, ...], BeforeValidator(_listed), Field(min_length=1)] = (
        "0.0.0.0:443",
    )
    """h3 over UDP, h2 and http/1.1 over TLS: an address or a list of them."""
    admin: Listen | None = "127.0.0.1:7071"
    """Status, health, metrics, reload; null: none."""
    h3: bool = True
    """Whether UDP is listened on, too."""


class CertificateSection(_Section):
    """What the relay shows to its clients. The files are read again when they change."""

    chain_file: str
    """PEM: the certificate, then those that lead to a root."""
    key_file: str
    """PEM: its private key, not encrypted."""
    client_ca_file: str | None = None
    """PEM: authorities of client certificates; without it none are asked for."""


class ClientSection(_Section):
    """One client: an edge, or somebody with curl. Flows belong to it and to nobody else."""

    name: Name
    """Unique; for people, logs and metrics."""
    token_sha256: Annotated[tuple[Sha256, ...], BeforeValidator(_listed)] = ()
    """SHA-256 of its bearer token, or of several while one replaces another."""
    token_file: str | None = None
    """Holds the token itself, instead of its hash."""
    certificate_sha256: Annotated[tuple[Sha256, ...], BeforeValidator(_listed)] = ()
    """SHA-256 of its TLS certificate (over TCP only: h3 knows none). With a token it needs both."""
    allow: Annotated[tuple[Annotated[str, AfterValidator(_target)], ...], Field(min_length=1)]
    """Where it may go: host, *.host, * (any public one), address or network, and :port or :*;
    without a port 443."""
    flows: Count = 4096
    """Open at a time."""
    requests_per_s: Rate | None = None
    """Beyond it (two seconds' worth at once) requests are refused; null: any."""
    mbit_s: Rate | None = None
    """Both directions together; beyond it flows are slowed down; null: any."""


class JournalSection(_Section):
    """What is kept of responses until a client has them."""

    flow_mb: Megabytes = 4.0
    """Of one flow. It bounds what a line can carry: so much a round trip, until it is
    acknowledged."""
    total_mb: Megabytes = 256.0
    """Of all flows together."""
    dictionaries_mb: Megabytes = 64.0
    """Of earlier request bodies, against which clients code the next ones."""
    flows: Count = 16384
    """Flows at a time."""
    linger_s: Seconds = 30.0
    """How long a flow is kept that no line carries."""


class RelayFile(_Section):
    """relay.yaml"""

    node: NodeSection = NodeSection()
    """This host."""
    listen: ListenSection = ListenSection()
    """Where it listens."""
    certificate: CertificateSection
    """What it shows to its clients."""
    clients: Annotated[tuple[ClientSection, ...], Field(min_length=1)]
    """Who may use it, and for what."""
    private_networks: tuple[Annotated[str, AfterValidator(_network)], ...] = ()
    """Networks that are not public and that names may lead to all the same, as 10.0.0.0/8."""
    journal: JournalSection = JournalSection()
    """What is kept of responses."""
    lines: Annotated[tuple[LineSection, ...], Field(min_length=1)] = (LineSection(name="default"),)
    """The ways out; default: one that follows the system's routes."""
    upstreams: tuple[UpstreamSection, ...] = ()
    """Services with several endpoints, or with a policy of their own; other targets need none."""
    unlisted_policy: str = "balanced"
    """The policy of targets in no upstream."""
    tls: TlsSection = TlsSection()
    """TLS towards upstreams."""
    limits: LimitsSection = LimitsSection()
    """What clients may hold."""
    log: LogSection = LogSection()
    """What is written where."""
    policies_dir: str | None = None
    """Policy files, read from here again when they change; default: policies.d beside this file,
    if it exists."""
