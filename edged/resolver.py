"""Names to addresses, per line, because answers differ by line.

A line asks its own servers (``dns``) over its own binding. A bound line without asks the system's
servers over its binding, and one that is not reached or not heard from there (a stub on loopback, a
router of another network) by the system's route; a line without either is the host's default way
out and uses the system's resolver as any program would. /etc/hosts comes first everywhere.

Kept per (line, host): positive answers for their TTL (1 s to 1 h), missing names for the zone's
negative TTL (RFC 2308, at most 5 min), failures for 1 s (RFC 9520). When a refresh fails or drags
on, the old answer serves for up to a day (RFC 8767): a dead DNS must not take a live line with it.
One question at a time per key; answers in use are refreshed before they expire.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import dns.rdatatype

from edged.binding import bind, families, family_of, is_bound, via
from edged.dns_outages import Outages
from edged.dnsquery import Answer, QueryFailed, Server, Way, ask
from edged.system_dns import SystemFiles, getaddrinfo
from policies.model import Line, Outcome
from probes.base import DialError

MIN_TTL_S = 1.0
MAX_TTL_S = 3600.0
MAX_NEGATIVE_S = 300.0
FAILURE_S = 1.0
SYSTEM_TTL_S = 30.0
"""Of getaddrinfo's answers, which carry none."""
STALE_S = 86400.0
STALE_WAIT_S = 0.5
"""How long a refresh may take before the old answer is given (RFC 8767 says 1.8 s at most)."""
STALE_RECHECK_S = 30.0
"""How long a failed refresh is not repeated (RFC 8767, 5)."""
REFRESH_SHARE = 0.8
FLIGHT_S = 8.0
"""Longest a question is pursued, whoever waits for it."""
SECOND_FAMILY_S = 0.05
"""How long the other family's answer is awaited (RFC 8305, 3: the resolution delay)."""
MAX_ENTRIES = 4096
_ROUNDS = 3
_SYSTEM_ROUNDS = 2
"""Of twice as many ways; three servers (resolv.conf(5)) get both rounds within `FLIGHT_S`."""

_RDTYPE = {socket.AF_INET: dns.rdatatype.A, socket.AF_INET6: dns.rdatatype.AAAA}


class _Key(NamedTuple):
    line: Line
    host: str


@dataclass(slots=True)
class _Entry:
    """What is known of a key: addresses, or ``error`` instead."""

    addresses: tuple[str, ...]
    fresh_until: float
    refresh_at: float
    stale_until: float
    error: str = ""
    outcome: Outcome = Outcome.DNS


class _Flight(NamedTuple):
    """A question under way."""

    question: asyncio.Task[_Entry]
    since: float


class Resolver:
    """Addresses by line and host. One object a daemon; `close` it in its loop."""

    def __init__(
        self,
        *,
        files: SystemFiles | None = None,
        lookup: Callable[[str], Awaitable[tuple[str, ...]]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        bind: Callable[[socket.socket, Line], None] = bind,
    ) -> None:
        """``files`` and ``lookup`` (getaddrinfo) stand for the host's own knowledge of names.

        ``bind`` gives a socket to a line, or raises `DialError`.
        """
        self._bind = bind
        self._files = files or SystemFiles()
        self._lookup = lookup
        self._clock = clock
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._flights: dict[_Key, _Flight] = {}
        self.outages = Outages()

    async def resolve(self, line: Line, host: str, *, timeout_s: float = 5.0) -> Sequence[str]:
        """Addresses of ``host`` as seen from ``line``, of the families that it can carry.

        Literal addresses pass. Raises `DialError` (DNS) within ``timeout_s``.
        """
        host = host.strip("[]").rstrip(".").lower()
        now = self._clock()
        known = literal(host) or self._files.addresses(host, now)
        if known:
            return _carried(line, host, known)
        key = _Key(line, host)
        entry = self._entries.get(key)
        if entry is not None and now < entry.fresh_until:
            self._entries.move_to_end(key)
            if entry.error:
                raise DialError(entry.outcome, entry.error)
            if now >= entry.refresh_at:
                self._fly(key)
            return entry.addresses
        stale = entry.addresses if entry is not None and now < entry.stale_until else ()
        question, since = self._fly(key)
        wait_s = timeout_s
        if stale:
            # A question that drags on is waited for once, not by each who asks meanwhile.
            wait_s = max(0.0, min(timeout_s, since + STALE_WAIT_S - now))
        # Not wait_for: the question goes on for others and for the cache.
        done, _ = await asyncio.wait({question}, timeout=wait_s)
        if done and not question.cancelled():
            entry = question.result()
            if entry.error:
                raise DialError(entry.outcome, entry.error)
            return entry.addresses
        if stale:
            return stale
        raise DialError(
            Outcome.DNS,
            f"line {line.name}: no answer for {host} within {timeout_s:g} s "
            f"from {self._describe(line)}",
        )

    def cached(self, line: Line, host: str) -> Sequence[str]:
        """What is known now, fresh or stale, without asking anyone; empty: nothing."""
        host = host.strip("[]").rstrip(".").lower()
        known = literal(host) or self._files.addresses(host, self._clock())
        if known:
            wanted = families(line)
            return tuple(a for a in known if family_of(a) in wanted)
        entry = self._entries.get(_Key(line, host))
        return entry.addresses if entry is not None else ()

    def expire(self, line: str) -> None:
        """The network changed under ``line``: ask again; what was known is good only if nobody
        answers."""
        now = self._clock()
        for key, entry in tuple(self._entries.items()):
            if key.line.name == line and entry.error:
                del self._entries[key]
            elif key.line.name == line:
                entry.fresh_until = min(entry.fresh_until, now)

    async def close(self) -> None:
        """Give up all questions."""
        questions = [flight.question for flight in self._flights.values()]
        for question in questions:
            question.cancel()
        await asyncio.gather(*questions, return_exceptions=True)

    # --- one flight -------------------------------------------------------------------------

    def _fly(self, key: _Key) -> _Flight:
        flight = self._flights.get(key)
        if flight is None:
            question = asyncio.get_running_loop().create_task(self._question(key))
            flight = self._flights[key] = _Flight(question, self._clock())
            question.add_done_callback(lambda _: self._flights.pop(key, None))
        return flight

    async def _question(self, key: _Key) -> _Entry:
        """Ask, and keep what came of it. Never raises but on cancellation."""
        line, host = key
        try:
            async with asyncio.timeout(FLIGHT_S):
                if line.dns or is_bound(line):
                    answer = await self._ask_servers(line, host)
                else:
                    answer = await self._ask_system(line, host)
        except TimeoutError:
            return self._failed(key, f"no answer from {self._describe(line)}")
        except QueryFailed as error:
            return self._failed(key, str(error), answered=error.answered)
        except (DialError, OSError) as error:
            return self._failed(key, str(error))
        return self._answered(key, answer)

    async def _ask_system(self, line: Line, host: str) -> Answer:
        lookup = self._lookup or getaddrinfo
        try:
            addresses = await lookup(host)
        except socket.gaierror as error:
            if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None)):
                return Answer((), 5.0, exists=False)
            raise QueryFailed(f"system resolver: {error.strerror}") from error
        wanted = families(line)
        return Answer(tuple(a for a in addresses if family_of(a) in wanted), SYSTEM_TTL_S, True)

    async def _ask_servers(self, line: Line, host: str) -> Answer:
        """A and AAAA side by side; the later one may keep the first waiting for 50 ms."""
        ways = self._ways(line)
        tasks = [asyncio.create_task(ask(ways, host, _RDTYPE[family])) for family in families(line)]
        try:
            pending = set(tasks)
            while pending:
                got = any(t.done() and not t.exception() and t.result().addresses for t in tasks)
                done, pending = await asyncio.wait(
                    pending,
                    timeout=SECOND_FAMILY_S if got else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if got and not done:
                    break
        finally:
            for task in tasks:
                task.cancel()
        return _merge(tasks)

    def _ways(self, line: Line) -> tuple[Way, ...]:
        """What is tried in turn. Raises `QueryFailed` if nothing can be."""
        own = self._usable(line, tuple(Server.parse(text) for text in line.dns))
        if line.dns and not own:
            raise QueryFailed(
                f"none of its name servers ({', '.join(line.dns)}) can be asked "
                f"from {line.source}: name one of that family in `dns`"
            )
        over = partial(self._open, line)
        plain = partial(self._open, None)
        if own:
            return (
                tuple(
                    Way(server, plain if _host_local(line, server) else over, via(line))
                    for server in own
                )
                * _ROUNDS
            )
        ways = []
        for server in self._files.servers(self._clock()):
            if self._usable(line, (server,)) and not _host_local(line, server):
                ways.append(Way(server, over, via(line)))
            ways.append(Way(server, plain, "by the system's route"))
        return tuple(ways) * _SYSTEM_ROUNDS

    def _open(self, line: Line | None, server: Server, kind: int) -> socket.socket:
        sock = socket.socket(family_of(server.address), kind)
        try:
            sock.setblocking(False)
            if line is not None:
                self._bind(sock, line)
        except BaseException:
            sock.close()
            raise
        return sock

    @staticmethod
    def _usable(line: Line, servers: tuple[Server, ...]) -> tuple[Server, ...]:
        wanted = families(line)
        return tuple(s for s in servers if family_of(s.address) in wanted)

    def _describe(self, line: Line) -> str:
        if not (line.dns or is_bound(line)):
            return "the system's resolver"
        servers = tuple(Server.parse(text) for text in line.dns)
        return f"name server {', '.join(map(str, servers or self._files.servers(self._clock())))}"

    # --- keeping ----------------------------------------------------------------------------

    def _answered(self, key: _Key, answer: Answer) -> _Entry:
        now = self._clock()
        line, host = key
        self.outages.answered(line.name, host, self._describe(line))
        if answer.addresses:
            ttl_s = min(max(answer.ttl_s, MIN_TTL_S), MAX_TTL_S)
            entry = _Entry(
                answer.addresses, now + ttl_s, now + ttl_s * REFRESH_SHARE, now + ttl_s + STALE_S
            )
        else:
            ttl_s = min(max(answer.ttl_s, MIN_TTL_S), MAX_NEGATIVE_S)
            what = "has no address" if answer.exists else "does not exist"
            family = f" that {line.source} can reach" if line.source and answer.exists else ""
            error = f"line {line.name}: {host} {what}{family} ({self._describe(line)})"
            entry = _Entry((), now + ttl_s, now + ttl_s, now, error, Outcome.NO_NAME)
        return self._keep(key, entry)

    def _failed(self, key: _Key, reason: str, *, answered: bool = False) -> _Entry:
        now = self._clock()
        old = self._entries.get(key)
        if old is not None and old.addresses and now < old.stale_until:
            until = max(old.fresh_until, now + STALE_RECHECK_S)
            self.outages.failed(key.line.name, key.host, reason, answered=answered)
            return self._keep(key, _Entry(old.addresses, until, until, old.stale_until))
        error = f"line {key.line.name}: cannot resolve {key.host}: {reason}"
        return self._keep(key, _Entry((), now + FAILURE_S, now + FAILURE_S, now, error))

    def _keep(self, key: _Key, entry: _Entry) -> _Entry:
        self._entries[key] = entry
        self._entries.move_to_end(key)
        if len(self._entries) > MAX_ENTRIES:
            dropped, _ = self._entries.popitem(last=False)
            self.outages.forget(dropped.line.name, dropped.host)
        return entry


def literal(host: str) -> tuple[str, ...]:
    """``host`` itself when it is an IP address, else nothing."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return ()
    return (host,)


def _carried(line: Line, host: str, addresses: Sequence[str]) -> tuple[str, ...]:
    wanted = families(line)
    usable = tuple(address for address in addresses if family_of(address) in wanted)
    if not usable:
        raise DialError(
            Outcome.NO_NAME,
            f"line {line.name}: {host} ({', '.join(addresses)}) cannot be reached from "
            f"{line.source}: the address families differ",
        )
    return usable


def _merge(tasks: Sequence[asyncio.Task[Answer]]) -> Answer:
    """One answer from those that arrived; a failure counts only when no address came."""
    answers = [t.result() for t in tasks if t.done() and not t.cancelled() and not t.exception()]
    found = [answer for answer in answers if answer.addresses]
    if found:
        addresses = tuple(address for answer in found for address in answer.addresses)
        return Answer(addresses, min(answer.ttl_s for answer in found), True)
    errors = [e for t in tasks if t.done() and not t.cancelled() and (e := t.exception())]
    if errors:
        answered = bool(answers) or any(isinstance(e, QueryFailed) and e.answered for e in errors)
        raise QueryFailed("; ".join(dict.fromkeys(map(str, errors))), answered=answered)
    return Answer((), min(a.ttl_s for a in answers), all(a.exists for a in answers))


def _host_local(line: Line, server: Server) -> bool:
    """A stub on this host (systemd-resolved) answers nobody who comes from a real line."""
    if not ipaddress.ip_address(server.address.partition("%")[0]).is_loopback:
        return False
    return line.source is None or not ipaddress.ip_address(line.source).is_loopback
