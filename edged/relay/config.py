"""``relay.yaml`` to frozen models, or every mistake at once (`edged.config` does the like)."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from edged.config import Config, Parsed, build, parse
from edged.config_file import ConfigFile, ListenSection, split_address
from edged.downstream.secure import CertificateError, check
from edged.mistakes import ConfigError, Mistake, of_value
from edged.relay.config_file import ClientSection, RelayFile
from edged.relay.flows import ClientLimits, FlowLimits
from edged.relay.targets import AllowList, Network
from edged.relay.targets import parse as parse_target
from edged.relay.tokens import Client
from edged.yaml_positions import Loc

TOKEN_BYTES = 16
"""A shorter token could be guessed from its hash."""


@dataclass(frozen=True, slots=True)
class RelayConfig(Config):
    """Everything that a relay is told; ``listen_proxy`` is where it listens for its clients."""

    chain_file: Path = Path()
    key_file: Path = Path()
    client_ca_file: Path | None = None
    h3: bool = True
    clients: tuple[Client, ...] = ()
    private_networks: tuple[Network, ...] = ()
    flow_limits: FlowLimits = field(default_factory=FlowLimits)


def load(file: Path | str) -> RelayConfig:
    """Read, check and build the configuration. Raises `ConfigError` with every mistake."""
    parsed = parse(Path(file), RelayFile)
    mistakes = list(parsed.mistakes)
    tokens = _tokens(parsed, mistakes)
    if not parsed.document.broken:
        _check(parsed, tokens, mistakes)
    model = parsed.model
    if mistakes or model is None:
        raise ConfigError(mistakes)
    base = build(parsed, _as_edge(model))
    kept: dict[str, Any] = {f.name: getattr(base, f.name) for f in fields(base)}
    here = parsed.document.file.parent
    certificate, journal = model.certificate, model.journal
    ca_file = certificate.client_ca_file
    return RelayConfig(
        **kept,
        chain_file=here / certificate.chain_file,
        key_file=here / certificate.key_file,
        client_ca_file=here / ca_file if ca_file else None,
        h3=model.listen.h3,
        clients=tuple(
            _client(section, tokens.get(n, b"")) for n, section in enumerate(model.clients)
        ),
        private_networks=tuple(ipaddress.ip_network(n) for n in model.private_networks),
        flow_limits=FlowLimits(
            flow_bytes=int(journal.flow_mb * (1 << 20)),
            total_bytes=int(journal.total_mb * (1 << 20)),
            dictionary_bytes=int(journal.dictionaries_mb * (1 << 20)),
            flows=journal.flows,
            linger_s=journal.linger_s,
        ),
    )


def _as_edge(model: RelayFile) -> ConfigFile:
    """What a relay's file has in common with an edge's."""
    return ConfigFile(
        node=model.node,
        listen=ListenSection(proxy=model.listen.relay, admin=model.listen.admin),
        lines=model.lines,
        upstreams=model.upstreams,
        unlisted_policy=model.unlisted_policy,
        tls=model.tls,
        limits=model.limits,
        log=model.log,
        policies_dir=model.policies_dir,
    )


def _client(section: ClientSection, token: bytes) -> Client:
    tokens = {bytes.fromhex(digest) for digest in section.token_sha256}
    if token:
        tokens.add(hashlib.sha256(token).digest())
    return Client(
        section.name,
        frozenset(tokens),
        frozenset(bytes.fromhex(digest) for digest in section.certificate_sha256),
        AllowList(parse_target(entry) for entry in section.allow),
        ClientLimits(
            section.flows,
            section.requests_per_s,
            None if section.mbit_s is None else section.mbit_s * 1e6 / 8,
        ),
    )


# What spans several values.


def _wrong(parsed: Parsed[Any], mistakes: list[Mistake], place: Loc, text: str) -> None:
    mistakes.append(of_value(parsed.document, place, text))


def _items(parsed: Parsed[Any], key: str) -> range:
    value = parsed.document.get(key)
    return range(len(value)) if isinstance(value, list) else range(0)


def _tokens(parsed: Parsed[RelayFile], mistakes: list[Mistake]) -> Mapping[int, bytes]:
    """The tokens in files, by the client's number."""
    tokens: dict[int, bytes] = {}
    for n in _items(parsed, "clients"):
        place = ("clients", n, "token_file")
        name = parsed.document.get(*place)
        if not isinstance(name, str):
            continue
        try:
            words = (parsed.document.file.parent / name).read_bytes().split()
        except (OSError, ValueError) as error:
            # The name is not shown: it may be the secret, put there by mistake.
            reason = error.strerror if isinstance(error, OSError) else "not a file name"
            _wrong(parsed, mistakes, place, f"the file cannot be read: {reason}")
            continue
        if len(words) != 1:
            text = "the file must hold one token and nothing else"
            _wrong(parsed, mistakes, place, text)
        elif len(words[0]) < TOKEN_BYTES:
            text = f"the token has fewer than {TOKEN_BYTES} characters: `openssl rand -hex 32`"
            _wrong(parsed, mistakes, place, text)
        else:
            tokens[n] = words[0]
    return tokens


def _check(parsed: Parsed[RelayFile], tokens: Mapping[int, bytes], mistakes: list[Mistake]) -> None:
    _check_listeners(parsed, mistakes)
    _check_certificate(parsed, mistakes)
    _check_clients(parsed, tokens, mistakes)
    for n in _items(parsed, "upstreams"):
        entry = parsed.document.get("upstreams", n)
        if isinstance(entry, dict) and not entry.get("hosts") and entry.get("prefix"):
            text = "has no hosts: a relay finds upstreams by the host that is asked for"
            _wrong(parsed, mistakes, ("upstreams", n), text)


def _check_listeners(parsed: Parsed[RelayFile], mistakes: list[Mistake]) -> None:
    if parsed.model is None:
        return
    listen = parsed.model.listen
    addresses = [split_address(text) for text in listen.relay]
    for n, address in enumerate(addresses):
        if address[1] and address in addresses[:n]:
            _wrong(parsed, mistakes, ("listen", "relay", n), "is listened on already")
    if listen.admin is not None and split_address(listen.admin) in addresses:
        _wrong(parsed, mistakes, ("listen", "admin"), "is listened on already")


def _check_certificate(parsed: Parsed[RelayFile], mistakes: list[Mistake]) -> None:
    model = parsed.model
    if model is None:
        return
    here = parsed.document.file.parent
    certificate = model.certificate
    try:
        check(
            here / certificate.chain_file,
            here / certificate.key_file,
            here / certificate.client_ca_file if certificate.client_ca_file else None,
        )
    except CertificateError as error:
        _wrong(parsed, mistakes, ("certificate",), str(error))
    if certificate.client_ca_file is None:
        for n, client in enumerate(model.clients):
            if client.certificate_sha256:
                place = ("clients", n, "certificate_sha256")
                text = "no certificate is asked for without certificate.client_ca_file"
                _wrong(parsed, mistakes, place, text)


def _check_clients(
    parsed: Parsed[RelayFile], tokens: Mapping[int, bytes], mistakes: list[Mistake]
) -> None:
    model = parsed.model
    if model is None:
        return
    names: set[str] = set()
    used: dict[str, str] = {}
    for n, client in enumerate(model.clients):
        if client.name in names:
            text = f"the name {client.name!r} is taken"
            _wrong(parsed, mistakes, ("clients", n, "name"), text)
        names.add(client.name)
        digests = set(client.token_sha256)
        if n in tokens:
            digests.add(hashlib.sha256(tokens[n]).hexdigest())
        if not digests and client.token_file is None and not client.certificate_sha256:
            text = "has neither a token nor a certificate: nobody could be it"
            _wrong(parsed, mistakes, ("clients", n), text)
        for digest in sorted(digests) or sorted(client.certificate_sha256):
            if digest in used:
                text = f"is known by the same secret as client {used[digest]!r}"
                _wrong(parsed, mistakes, ("clients", n), text)
            used[digest] = client.name
