"""The configuration: YAML files to frozen models, or every mistake at once.

`load` is the only way in; it does all the file I/O, so that a reload either has everything or
changes nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from edged import config_checks, config_policies
from edged.config_file import (
    ConfigFile,
    EndpointSection,
    LineSection,
    RelaySection,
    split_address,
    split_url,
)
from edged.mistakes import ConfigError, Mistake, of_validation, of_value
from edged.yaml_positions import Document
from policies import geo
from policies.model import Carrier, Endpoint, Line, Location, Relay, Topology
from policies.schema import Policy

__all__ = ["Access", "Config", "ConfigError", "Credentials", "Limits", "Upstream", "load"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Upstream:
    """A logical service: how requests find it and what decides them."""

    name: str
    hosts: tuple[str, ...]
    """Lower-case names and IP literals; ``*.`` and a name stands for everything below it."""
    prefix: str | None
    """Without a trailing slash, but for ``/`` itself."""
    policy_name: str
    policy: Policy


class Credentials:
    """Who may use the proxy. Holds digests; shows nothing."""

    __slots__ = ("_digests",)

    def __init__(self, pairs: Iterable[bytes]) -> None:
        """``pairs`` are ``user:password``."""
        self._digests = tuple(hashlib.sha256(pair).digest() for pair in pairs)

    def accepts(self, pair: bytes) -> bool:
        """Whether ``user:password`` is known; compares without leaking where it differs."""
        digest = hashlib.sha256(pair).digest()
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, digest)
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Credentials) and self._digests == other._digests

    def __hash__(self) -> int:
        return hash(self._digests)

    def __repr__(self) -> str:
        return f"<{len(self._digests)} credentials>"


class Token:
    """What a relay knows this edge by. Shows nothing."""

    __slots__ = ("secret",)

    def __init__(self, secret: bytes) -> None:
        self.secret = secret

    def __repr__(self) -> str:
        return "<token>"


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use the listeners, loopback clients apart."""

    allow: tuple[Network, ...] = ()
    """Empty: any address, if ``credentials`` are asked for; else loopback only."""
    credentials: Credentials | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may hold of this process."""

    header_bytes: int
    connections: int
    idle_s: float
    header_s: float
    drain_s: float
    spool_dir: Path | None


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that a daemon is told."""

    file: Path
    node_name: str
    topology: Topology
    upstreams: Mapping[str, Upstream]
    """By name, in the order of the file."""
    listen_proxy: tuple[tuple[str, int], ...]
    """IP and port."""
    listen_admin: tuple[str, int] | None
    access: Access
    limits: Limits
    unlisted_allowed: bool
    """Explicit-proxy requests to hosts in no upstream are served."""
    unlisted_policy: Policy
    ca_file: Path | None
    access_log: str | None
    """``stdout``, ``stderr`` or a file."""
    log_level: str
    policies_dir: Path | None
    tokens: Mapping[str, Token] = field(default_factory=dict)
    """By relay."""


def load(file: Path | str) -> Config:
    """Read, check and build the configuration. Raises `ConfigError` with every mistake."""
    parsed = parse(Path(file), ConfigFile)
    if parsed.mistakes or parsed.model is None:
        raise ConfigError(parsed.mistakes)
    return build(parsed, parsed.model)


@dataclass(frozen=True, slots=True)
class Parsed(Generic[ModelT]):
    """A configuration file as far as it could be understood."""

    document: Document
    model: ModelT | None
    policies: Mapping[str, Policy]
    policies_dir: Path | None
    access: Access
    mistakes: list[Mistake]


def parse(file: Path, schema: type[ModelT]) -> Parsed[ModelT]:
    """Read ``file`` by ``schema`` and check all that it has in common with `ConfigFile`."""
    document, mistakes = config_policies.read_document(file, "; -c FILE names another")
    policies_dir, missing = _policies_dir(document)
    policies = config_policies.load(policies_dir)
    mistakes += policies.mistakes
    if missing is not None:
        mistakes.append(of_value(document, ("policies_dir",), missing))
    model: ModelT | None = None
    access = Access()
    if not document.broken:
        try:
            model = schema.model_validate(document.data or {})
        except ValidationError as error:
            syntax = {problem.mark for problem in document.problems}
            found = of_validation(document, schema, error)
            mistakes += [m for m in found if m.mark not in syntax]
        told = {(mistake.mark, mistake.where) for mistake in mistakes}
        checked = config_checks.check(document, policies.names)
        mistakes += [m for m in checked.mistakes if (m.mark, m.where) not in told]
        access = Access(
            tuple(ipaddress.ip_network(n) for n in checked.allow),
            None if checked.credentials is None else Credentials(checked.credentials),
        )
    return Parsed(document, model, policies.policies, policies_dir, access, mistakes)


def _policies_dir(document: Document) -> tuple[Path | None, str | None]:
    """The directory of the policy files, and what is wrong with it."""
    base = document.file.parent
    named = document.get("policies_dir")
    if isinstance(named, str):
        directory = base / named
        if os.path.isdir(directory):
            return directory, None
        return None, f"{named!r} is no directory (looked for {directory})"
    default = base / "policies.d"
    return (default if os.path.isdir(default) else None), None


def build(parsed: Parsed[Any], model: ConfigFile) -> Config:
    """The frozen types of a model without mistakes."""
    file, policies = parsed.document.file, parsed.policies
    base = file.parent
    limits = model.limits
    return Config(
        file=file,
        node_name=model.node.name,
        topology=_topology(model),
        upstreams={
            u.name: Upstream(u.name, u.hosts, u.prefix, u.policy, policies[u.policy])
            for u in model.upstreams
        },
        listen_proxy=tuple(split_address(a) for a in model.listen.proxy),
        listen_admin=split_address(model.listen.admin) if model.listen.admin else None,
        access=parsed.access,
        limits=Limits(
            limits.header_bytes,
            limits.connections,
            limits.idle_s,
            limits.header_s,
            limits.drain_s,
            base / limits.spool_dir if limits.spool_dir else None,
        ),
        unlisted_allowed=model.unlisted_hosts == "allow",
        unlisted_policy=policies[model.unlisted_policy],
        ca_file=base / model.tls.ca_file if model.tls.ca_file else None,
        access_log=_log_target(base, model.log.access),
        log_level=model.log.level,
        policies_dir=parsed.policies_dir,
        tokens={
            relay.name: Token((base / relay.token_file).read_bytes().strip())
            for relay in model.relays
            if relay.token_file is not None
        },
    )


def _log_target(base: Path, target: str | None) -> str | None:
    return target if target in (None, "stdout", "stderr") else str(base / target)


def _topology(model: ConfigFile) -> Topology:
    return Topology(
        node_location=_location(model.node.location),
        lines=tuple(_line(section) for section in model.lines),
        endpoints=tuple(
            _endpoint(upstream.name, section)
            for upstream in model.upstreams
            for section in upstream.endpoints
        ),
        relays=tuple(_relay(section) for section in model.relays),
    )


def _line(section: LineSection) -> Line:
    bind = section.bind
    return Line(
        section.name,
        section.kind,
        bind.source,
        bind.interface,
        bind.mark,
        None if section.capacity_mbps is None else section.capacity_mbps * 1e6,
        section.price_per_gb,
        section.dns,
    )


def _endpoint(upstream: str, section: EndpointSection) -> Endpoint:
    url = split_url(section.url)
    secure = url.scheme == "https"
    protocols = section.protocols
    if protocols is None:
        protocols = (Carrier.H2, Carrier.H1) if secure else (Carrier.H1,)
    host = config_checks.url_host(url)
    return Endpoint(
        upstream=upstream,
        name=section.name or host,
        scheme=url.scheme,
        host=host,
        port=url.port or (443 if secure else 80),
        base_path=url.path.rstrip("/"),
        address=section.address,
        location=_location(section.location),
        protocols=protocols,
        accepts_encoding=section.accepts_encoding,
        lines=section.lines,
        learns_h3=section.protocols is None,
        relays=section.relays,
        direct=section.direct,
    )


def _relay(section: RelaySection) -> Relay:
    url = split_url(section.url, schemes=("https",))
    location = _location(section.location)
    door = Endpoint(
        upstream=f"relay:{section.name}",
        name=section.name,
        scheme="https",
        host=config_checks.url_host(url),
        port=url.port or 443,
        address=section.address,
        location=location,
        protocols=(Carrier.H3, Carrier.H2),
        lines=section.lines,
        learns_h3=False,
        relays=(),
    )
    return Relay(section.name, section.url, location, door)


def _location(value: list[float] | str | None) -> Location | None:
    if value is None:
        return None
    if isinstance(value, str):
        return geo.locate(value)
    return Location(*value)
