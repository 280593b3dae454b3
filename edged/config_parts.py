"""A `Config` as the parts of a daemon take it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from edged.config import Config
from edged.downstream.limits import Limits
from edged.routes import RouteEntry, RouteTable
from edged.stages import AccessRules
from policies.schema import Policy

RESTART_ONLY = (
    ("listen_proxy", "listen.proxy"),
    ("listen_admin", "listen.admin"),
    ("node_name", "node.name"),
    ("ca_file", "tls.ca_file"),
    ("access_log", "log.access"),
)
"""What a reload cannot change: attribute of `Config` and its name for people."""


def needs_restart(old: Config, new: Config, fixed: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """A sentence for each of ``fixed``, given like `RESTART_ONLY`, that ``new`` would change."""
    return tuple(
        f"{new.file}: {name} cannot change while edged runs; restart it to use the new value"
        for attribute, name in fixed
        if getattr(old, attribute) != getattr(new, attribute)
    )


def policies_of(config: Config) -> dict[str, Policy]:
    """By upstream name."""
    return {name: upstream.policy for name, upstream in config.upstreams.items()}


def rules_of(config: Config) -> AccessRules:
    """Who may use the proxy."""
    access = config.access
    return AccessRules(config.node_name.encode(), access.allow, access.credentials)


def routes_of(config: Config) -> RouteTable:
    """Which upstream a request is for."""
    ports: defaultdict[str, set[int]] = defaultdict(set)
    for endpoint in config.topology.endpoints:
        ports[endpoint.upstream].add(endpoint.port)
    return RouteTable(
        RouteEntry(u.name, u.hosts, u.prefix, frozenset(ports[u.name]))
        for u in config.upstreams.values()
    )


def limits_of(config: Config) -> Limits:
    """The listeners' limits."""
    given = config.limits
    return Limits(
        header_bytes=given.header_bytes,
        connections=given.connections,
        idle_s=given.idle_s,
        header_time_s=given.header_s,
    )
