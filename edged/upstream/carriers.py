"""Which carriers can be had on a path: what the endpoint speaks, what it advertised, where UDP
passes. Which of them is best is `policies.carriers`' to say.

h3 is raced against TCP with a head start, because where UDP is blocked nothing says so: packets
vanish. What was learnt is kept per (line, origin), and per line when several origins agree that
UDP does not pass there; both are tried again after a time that doubles.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from policies.model import Carrier, Path

HEAD_START_S = 0.1
HEAD_START_MAX_S = 0.5
BACKOFF_MIN_S = 5.0
BACKOFF_MAX_S = 600.0
ORIGINS_TO_CONVICT_A_LINE = 2
MAX_AGE_DEFAULT_S = 86_400.0
MAX_AGE_CAP_S = 7 * 86_400.0

PREFERENCE = (Carrier.H3, Carrier.H2, Carrier.H1)
"""Where nothing speaks for another order: the fewest round trips until the first request."""
NO_H2_S = 3600.0
"""How long an origin that chose http/1.1 although h2 was offered is taken to know only that."""

_H1, _H2 = frozenset((Carrier.H1,)), frozenset((Carrier.H2,))

_ALTERNATIVE = re.compile(
    rb"""\s*([!#$%&'*+\-.^_`|~0-9A-Za-z]+)="([^"]*)"((?:\s*;\s*[\w-]+=(?:"[^"]*"|[^;,"\s]*))*)\s*(?:,|$)"""
)
_MAX_AGE = re.compile(rb""";\s*ma="?(\d{1,10})""")


class Plan(NamedTuple):
    """What one dial tries."""

    tcp: bool
    h3: bool
    head_start_s: float
    """How long TCP waits for h3; it starts at once when h3 failed."""


@dataclass(slots=True)
class _Backoff:
    until: float = 0.0
    seconds: float = 0.0

    def failed(self, now: float) -> None:
        self.seconds = min(max(self.seconds * 2, BACKOFF_MIN_S), BACKOFF_MAX_S)
        self.until = now + self.seconds


@dataclass(slots=True)
class _Line:
    backoff: _Backoff = field(default_factory=_Backoff)
    failed: set[tuple[str, int]] = field(default_factory=set)
    """Origins whose h3 failed since it last worked for any."""


class Carriers:
    """The memory. Pure: ``now`` is an argument."""

    def __init__(self, *, h3_available: bool) -> None:
        self._h3_available = h3_available
        self._advertised: dict[tuple[str, int], float] = {}
        self._backoffs: dict[tuple[str, str, int], _Backoff] = {}
        self._lines: dict[str, _Line] = {}
        self._h3_rtt_s: dict[tuple[str, str, int], float] = {}
        self._no_h2: dict[tuple[str, int], float] = {}
        self.silenced: set[str] = set()
        """Names of paths on which datagrams vanish while TCP works."""

    def usable(self, path: Path, now: float) -> frozenset[Carrier]:
        """The carriers that requests on ``path`` may take now."""
        endpoint = path.endpoint
        if endpoint.scheme != "https":
            return _H1 if Carrier.H1 in endpoint.protocols else _H2
        found = set(endpoint.protocols)
        if found == {Carrier.H3}:
            return frozenset(found)
        found.discard(Carrier.H3)
        if len(found) > 1 and self._no_h2.get((endpoint.host, endpoint.port), 0.0) > now:
            found.discard(Carrier.H2)
        if self._h3_available and self.speaks_h3(path, now) and self.blocked_until(path) <= now:
            found.add(Carrier.H3)
        return frozenset(found)

    def plan(
        self,
        path: Path,
        now: float,
        *,
        upgrade: bool = False,
        only: Carrier | None = None,
        first: Carrier | None = None,
        hurried: bool = False,
    ) -> Plan:
        """What a dial on ``path`` tries now. ``only`` wants this carrier and no other; ``first``
        is the one that suits the path best, as far as anybody knows. ``hurried``: the path is in
        doubt, and nobody waits for anybody.
        """
        endpoint = path.endpoint
        if only is Carrier.H3:
            return Plan(tcp=False, h3=True, head_start_s=0.0)
        if upgrade or only or endpoint.scheme != "https" or not self._h3_available:
            return Plan(tcp=True, h3=False, head_start_s=0.0)
        if endpoint.protocols == (Carrier.H3,):
            return Plan(tcp=False, h3=True, head_start_s=0.0)
        if not self.speaks_h3(path, now) or self.blocked_until(path) > now:
            return Plan(tcp=True, h3=False, head_start_s=0.0)
        if first in (Carrier.H2, Carrier.H1):
            return Plan(tcp=True, h3=False, head_start_s=0.0)
        key = _key(path)
        if key in self._backoffs:  # it failed last time: it is looked at again with ``only``
            return Plan(tcp=True, h3=False, head_start_s=0.0)
        rtt_s = self._h3_rtt_s.get(key)
        if hurried:
            head_start_s = 0.0
        elif rtt_s is not None:
            head_start_s = min(max(3 * rtt_s, HEAD_START_S), HEAD_START_MAX_S)
        else:
            head_start_s = HEAD_START_S
        return Plan(tcp=True, h3=True, head_start_s=head_start_s)

    def speaks_h3(self, path: Path, now: float) -> bool:
        """By configuration, or by an Alt-Svc that has not expired."""
        endpoint = path.endpoint
        if Carrier.H3 in endpoint.protocols or not endpoint.learns_h3:
            return Carrier.H3 in endpoint.protocols
        until = self._advertised.get((endpoint.host, endpoint.port))
        return until is not None and until > now

    def blocked_until(self, path: Path) -> float:
        """When h3 is tried again on ``path``'s line to its origin; 0 if it is not held back."""
        if path.name in self.silenced:
            return inf
        backoff = self._backoffs.get(_key(path))
        line = self._lines.get(path.line.name)
        return max(
            backoff.until if backoff else 0.0,
            line.backoff.until if line else 0.0,
        )

    def h3_worked(self, path: Path, rtt_s: float | None = None) -> None:
        """A QUIC handshake on ``path`` ended well."""
        key = _key(path)
        self._backoffs.pop(key, None)
        self._lines.pop(path.line.name, None)
        if rtt_s is not None:
            self._h3_rtt_s[key] = rtt_s

    def h3_failed(self, path: Path, now: float) -> None:
        """A QUIC handshake failed although TCP reached the origin, or nothing did."""
        key = _key(path)
        self._h3_rtt_s.pop(key, None)
        self._backoffs.setdefault(key, _Backoff()).failed(now)
        line = self._lines.setdefault(path.line.name, _Line())
        line.failed.add(key[1:])
        if len(line.failed) >= ORIGINS_TO_CONVICT_A_LINE:
            line.backoff.failed(now)

    def agreed(self, path: Path, carrier: Carrier, now: float) -> None:
        """A TCP connection for which both were offered came to speak ``carrier``."""
        origin = (path.endpoint.host, path.endpoint.port)
        if carrier is Carrier.H1:
            self._no_h2[origin] = now + NO_H2_S
        else:
            self._no_h2.pop(origin, None)

    def learned(self, path: Path, value: bytes, now: float) -> None:
        """An Alt-Svc field of ``path``'s origin (RFC 7838 section 3) replaces what was known.

        Only h3 at the same host and port counts: another place would be another endpoint, which
        is for the operator to name.
        """
        endpoint = path.endpoint
        origin = (endpoint.host, endpoint.port)
        self._advertised.pop(origin, None)
        for protocol, authority, parameters in _ALTERNATIVE.findall(value):
            host, _, port = authority.rpartition(b":")
            if (
                protocol == b"h3"
                and port == b"%d" % endpoint.port
                and host.strip(b"[]") in (b"", endpoint.host.encode())
            ):
                found = _MAX_AGE.search(parameters)
                max_age_s = min(float(found[1]) if found else MAX_AGE_DEFAULT_S, MAX_AGE_CAP_S)
                self._advertised[origin] = now + max_age_s
                return


def _key(path: Path) -> tuple[str, str, int]:
    return (path.line.name, path.endpoint.host, path.endpoint.port)
