"""All exchanges: the last stage of a request, and what they share.

Per upstream a `Service` (policy, budgets, counters), per path a `Target`, per (upstream, class) a
`Plan` made once per ranking: whatever does not differ between requests is worked out before them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from operator import itemgetter
from time import monotonic
from typing import TYPE_CHECKING, Any

from edged.accesslog import ExchangeRecord
from edged.counters import UpstreamCounters
from edged.downstream.base import RequestSink, Responder
from edged.driver import Candidates, Driver, candidates
from edged.exchange import Exchange
from edged.headers import REQUEST_ID, answer, error_response, http_date, via_value
from edged.messages import RequestHead, ResponseHead, header
from edged.preferences import read as preferences_of
from edged.tails import Tails
from edged.targets import Target, Targets
from edged.tunnel import Leg, Tunnel
from edged.upstream.base import Upstreams
from policies.attempts import Exchange as Machine
from policies.budget import hedge_budget, retry_bucket, retry_capacity
from policies.commands import Traits
from policies.costing import race_delay_s
from policies.model import (
    Carrier,
    CarrierChange,
    Change,
    Ranking,
    Replay,
    RequestClass,
    Verdict,
)
from policies.schema import Policy
from probes.base import Dialer

if TYPE_CHECKING:
    from edged.routes import Routed
    from edged.table import PathTable

_log = logging.getLogger("edged.exchange")

UNLISTED = "*"
"""The service of hosts in no upstream."""
_MOST_PLANS = 4096
_name_of = itemgetter(0)

_TRIED = (
    "run `edged why {id}{admin}` to see what was tried; a line that is DOWN shows in "
    "`edged status{admin}`"
)
_HINTS = {
    502: _TRIED,
    503: "see `edged status{admin}`: every path is DOWN, or none exists; then check `lines` in the "
    "configuration, and the endpoint's `lines`",
    504: _TRIED,
    403: "link-local and cloud-metadata addresses are not reachable through edged",
    413: "raise limits.body_bytes in the upstream's policy",
}
_SLOW_HINT = "raise first_byte_timeout_s in the upstream's policy if the service may take this long"


class Service:
    """One upstream as exchanges need it. Budgets and counters survive a reload."""

    __slots__ = ("counters", "hedges", "name", "policy", "retries", "tails")

    def __init__(self, name: str, policy: Policy) -> None:
        self.name = name
        self.policy = policy
        self.counters = UpstreamCounters()
        self.retries = retry_bucket(policy.retry)
        self.hedges = hedge_budget(policy.hedge)
        self.tails: defaultdict[RequestClass, Tails] = defaultdict(Tails)

    def configure(self, policy: Policy) -> None:
        """Take a new policy."""
        self.policy = policy
        retry = policy.retry
        self.retries.resize(
            share=retry.budget, per_s=retry.min_per_s, capacity=retry_capacity(retry)
        )
        self.hedges.resize(0.0 if policy.hedge.when == "off" else policy.hedge.budget)


class Plan:
    """What exchanges of one upstream and class have in common under one ranking."""

    __slots__ = (
        "_hedge_delay_s",
        "_other",
        "_race_delay_s",
        "_safe",
        "candidates",
        "codes_requests_from",
        "codes_responses",
        "connect_timeout_s",
        "first_byte_timeout_s",
        "idle_timeout_s",
        "ranking",
        "service",
        "tails",
    )

    def __init__(self, service: Service, ranking: Ranking, *, gateway: bool) -> None:
        policy = service.policy
        self.service = service
        self.ranking = ranking
        self.candidates = candidates(ranking)
        self.codes_responses = policy.compression.responses
        self.codes_requests_from: int | None = None
        """Bytes of body from which some endpoint gets it coded; ``None``: none does."""
        if policy.compression.requests and any(p.endpoint.accepts_encoding for p in ranking.paths):
            self.codes_requests_from = policy.compression.min_bytes
        self.first_byte_timeout_s = policy.failover.first_byte_timeout_s
        self.idle_timeout_s = policy.failover.idle_timeout_s
        self.connect_timeout_s = policy.failover.connect_timeout_s
        replay = policy.replay or (Replay.LINE_DOWN if gateway else Replay.NEVER)
        attempts_allowed = policy.retry.max_attempts
        when = policy.hedge.when
        self._safe = Traits(True, replay, when != "off", attempts_allowed)
        self._other = Traits(False, replay, when == "always", attempts_allowed)
        self.tails = service.tails[ranking.request_class].fresh
        self._hedge_delay_s: float | None = None
        self._race_delay_s: float | None = None
        if len(ranking.order) > 1:
            best = ranking.order[0].state
            self._race_delay_s = race_delay_s(best)
            tails = service.tails[ranking.request_class]
            p95_s = tails.p95_s(best.path.endpoint.name, monotonic())
            if p95_s is not None:
                self._hedge_delay_s = max(p95_s, policy.hedge.min_delay_s)

    def machine(self, safe: bool, candidates: Candidates) -> Machine:
        """The decider of one exchange over these candidates."""
        paths, eligible, reachable = candidates
        return Machine(
            paths,
            self._safe if safe else self._other,
            self.service.retries,
            self.service.hedges,
            hedge_delay_s=self._hedge_delay_s,
            race_delay_s=self._race_delay_s,
            eligible=eligible,
            reachable=reachable,
            patience_s=self.connect_timeout_s,
        )


class Exchanges:
    """The stage that turns a routed request into an exchange or a tunnel.

    ``node`` is this daemon's pseudonym in Via; ``record`` takes the record of each exchange when
    it is over.
    """

    def __init__(
        self,
        table: PathTable,
        upstreams: Upstreams,
        dialer: Dialer,
        *,
        node: str,
        record: Callable[[ExchangeRecord], None],
        spool_dir: str | None = None,
    ) -> None:
        self.table = table
        self.upstreams = upstreams
        self.dialer = dialer
        self.loop = asyncio.get_running_loop()
        self.spool_dir = spool_dir
        self.services: dict[str, Service] = {}
        self.live: dict[Driver[Any], None] = {}
        self.legs: dict[Leg, None] = {}
        """Connected tunnels' upstream connections."""
        self.stranded: dict[Driver[Any], None] = {}
        """Those that wait for any path that is not DOWN."""
        self._draining = False
        self.admin = ""
        """What commands need to find this daemon: `` --admin HOST:PORT`` where it is not the
        default."""
        self.targets = Targets(lambda name: table.snapshot.paths[name].path)
        self._pseudonym = node.encode()
        self.via = {
            version: (b"via", via_value(version, self._pseudonym))
            for version in (b"1.0", b"1.1", b"2", b"3")
        }
        self._record = record
        self._default_policy = Policy()
        self._plans: dict[tuple[str, RequestClass, bool], Plan] = {}
        self._disk_warned_at: float | None = None
        self._metered_at = monotonic()
        self.wall_offset_s = time.time() - monotonic()

    # -- configuration ----------------------------------------------------------------------------

    def configure(self, policies: Mapping[str, Policy], default: Policy) -> None:
        """Policies by upstream name; ``default`` serves unlisted hosts. State survives."""
        self._default_policy = default
        for name, service in self.services.items():
            service.configure(policies.get(name, default))
        for name, policy in policies.items():
            if name not in self.services:
                self.services[name] = Service(name, policy)
        self._plans.clear()
        self.targets.refresh()

    # -- the stage --------------------------------------------------------------------------------

    def __call__(self, routed: Routed, head: RequestHead, responder: Responder) -> RequestSink:
        """Handle one request."""
        preferences = preferences_of(head.headers)
        plan = self._plan(routed, head, preferences.streaming)
        counters = plan.service.counters
        counters.requests += 1
        counters.in_flight += 1
        exchange: Exchange | Tunnel
        if head.method == b"CONNECT":
            exchange = Tunnel(self, plan, head, responder)
        else:
            exchange = Exchange(self, plan, head, preferences, responder, routed.prefix)
        self.live[exchange] = None
        exchange.begin()
        return exchange

    def path_changed(self, change: Change) -> None:
        """A verdict changed: those in flight on the path hear of it now.

        Subscribe this before the pools: an exchange must know the new order before its streams
        fail.
        """
        if change.old is Verdict.DOWN:
            for stranded in tuple(self.stranded):
                stranded.path_back()
        elif change.new is Verdict.DOWN:
            for attempt in self.targets.live_on(change.path):
                attempt.exchange.path_down(change)
        elif change.new is Verdict.SUSPECT:
            for attempt in self.targets.live_on(change.path):
                attempt.exchange.path_suspect(change)
            self._prepare_leaving(change.path)

    def _prepare_leaving(self, doubted: str) -> None:
        """Those who would go elsewhere if the line of ``doubted`` went DOWN find connections there.

        All on the line: its other paths are doubted a moment later, and a handshake takes longer
        than from that doubt to the verdict.
        """
        coming: Counter[str] = Counter()
        for target in self.targets.beside(doubted):
            path = target.path.name
            for attempt in tuple(target.live):
                if (refuge := attempt.exchange.refuge(path)) is not None:
                    coming[refuge] += 1
        for name, streams in coming.items():
            self.upstreams.prepare(self.targets.get(name).path, streams)

    def carrier_changed(self, change: CarrierChange) -> None:
        """A carrier stopped working on a path where others work: those on it hear of it now.

        Call this before `Pools.carrier_changed`, which ends what is left on it.
        """
        for attempt in self.targets.live_on(change.path) if change.blocked else ():
            tunnel = isinstance(attempt.exchange, Tunnel)
            if (Carrier.H1 if tunnel else attempt.carrier) in change.carriers:
                attempt.exchange.carrier_lost(attempt.number, change.reason)

    def drain(self) -> None:
        """The end is near: from now on `tick` closes tunnels that carry nothing."""
        self._draining = True
        self._close_rested(monotonic())

    def _close_rested(self, now: float) -> None:
        rested = [t for t in self.live if isinstance(t, Tunnel) and t.rested(now)]
        for tunnel in rested:
            tunnel.drain()

    def tick(self, now: float) -> None:
        """Call about once a second: deadlines, and how much each line carries.

        A loop timer per exchange would cost more than looking at all of them once a second: nearly
        all meet their deadline, which is minutes away.
        """
        for exchange in [e for e in self.live if e.deadline <= now]:
            if not exchange.ended:
                exchange.deadline_passed(now)
        if self._draining:
            self._close_rested(now)
        self.wall_offset_s = time.time() - monotonic()
        self.targets.flush(self.table, now)
        for service in self.services.values():
            for tails in service.tails.values():
                tails.flush(now)
        span_s = now - self._metered_at
        if span_s > 0:
            self._metered_at = now
            for line, moved_bytes in self.targets.take_moved().items():
                self.table.set_line_usage(line, moved_bytes * 8 / span_s)

    # -- for exchanges ----------------------------------------------------------------------------

    def dress(self, head: ResponseHead, target: Target, request_id: str, prefix: bytes) -> None:
        """Add what a proxy adds to a response, remove what only the upstream's own client needs."""
        headers = [field for field in head.headers if field[0] != b"alt-svc"]
        headers += (
            self.via[head.version],
            target.proxy_status,
            (REQUEST_ID, request_id.encode()),
        )
        head.headers = headers
        if b"date" not in map(_name_of, headers):  # RFC 9110 section 6.6.1
            headers.append((b"date", http_date()))
        if 300 <= head.status < 400 or head.status == 201:
            location = header(headers, b"location")
            local = None if location is None else target.local_location(location, prefix)
            if local is not None:
                head.headers = [field for field in headers if field[0] != b"location"]
                head.headers.append((b"location", local))

    def send_error(self, exchange: Driver[Any], error: str, detail: str) -> None:
        """Answer with one of edged's own errors (RFC 9209)."""
        record = exchange.record
        status = record.status
        assert status is not None
        last = record.attempts[-1].path if record.attempts else ""
        state = self.table.snapshot.paths.get(last)
        hint = _SLOW_HINT if error == "http_response_timeout" else _HINTS.get(status, "")
        answer(
            exchange.responder,
            error_response(
                status,
                error,
                detail,
                hint.format(id=record.request_id, admin=self.admin),
                request_id=record.request_id,
                proxy_error=error,
                line=None if state is None else state.path.line.name,
                endpoint=None if state is None else state.path.endpoint.key,
            ),
        )
        _log.warning("%s %d %s: %s", record.request_id, status, error, detail)

    def broken(self, exchange: Driver[Any], detail: str) -> None:
        """A response was broken after its head had gone out."""
        exchange.service.counters.aborted += 1
        _log.warning(
            "%s response broken after %d bytes on %s: %s",
            exchange.record.request_id,
            exchange.record.bytes_down,
            exchange.winner.target.path.name if exchange.winner else None,
            detail,
        )

    def spool_failed(self, error: OSError) -> None:
        """The disk did not take a request body: it flows on, but cannot be replayed."""
        now = monotonic()
        if self._disk_warned_at is None or now - self._disk_warned_at > 60:
            self._disk_warned_at = now
            _log.warning(
                "request body not spooled: %s; bodies above 256 KiB cannot be replayed on another "
                "line until there is room in %s",
                error.strerror or error,
                self.spool_dir or "the temporary directory",
            )

    def closed(self, exchange: Driver[Any]) -> None:
        """An exchange is over: count it and hand in its record."""
        self.live.pop(exchange, None)
        if self.stranded:
            self.stranded.pop(exchange, None)
        record, winner, machine = exchange.record, exchange.winner, exchange.machine
        record.total_s = total_s = monotonic() - exchange.started_at
        if winner is not None:
            record.path_name = winner.target.path.name
            record.carrier = winner.carrier
        counters = exchange.service.counters
        counters.in_flight -= 1
        counters.total.add(total_s)
        counters.bytes_down += record.bytes_down
        counters.bytes_down_wire += record.bytes_down_wire
        counters.bytes_up += record.bytes_up
        counters.bytes_up_wire += record.bytes_up_wire
        if record.ttfb_s is not None:
            counters.ttfb.add(record.ttfb_s)
        if record.status is not None:
            counters.statuses[record.status] += 1
        if machine.starts > 1:
            record.hedged = machine.hedged
            record.replayed = machine.doubled > machine.hedged
            counters.double_executions += machine.doubled
        self._record(record)

    # -- parts ------------------------------------------------------------------------------------

    def _plan(self, routed: Routed, head: RequestHead, streaming: bool) -> Plan:
        request_class = RequestClass.of(head.body_length, streaming=streaming)
        upstream = routed.upstream
        if routed.endpoint is not None:
            upstream = self.table.ensure(routed.endpoint, monotonic())
        ranking = self.table.ranking(upstream, request_class)
        key = (upstream, request_class, routed.gateway)
        plan = self._plans.get(key)
        if plan is None or plan.ranking is not ranking:
            if len(self._plans) > _MOST_PLANS:
                self._plans.clear()
            service = self.services.get(upstream) or self._unlisted_service()
            plan = self._plans[key] = Plan(service, ranking, gateway=routed.gateway)
        return plan

    def _unlisted_service(self) -> Service:
        service = self.services.get(UNLISTED)
        if service is None:
            service = self.services[UNLISTED] = Service(UNLISTED, self._default_policy)
        return service
