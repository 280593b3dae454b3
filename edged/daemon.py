"""One daemon: everything wired together, started, reloaded, drained and stopped.

It knows nothing of signals, systemd or the command line (`edged.process` does), so that the demo
and tests run it in their own loop:

    async with Daemon(load(file)) as daemon:
        daemon.proxy_addresses ...
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from random import Random
from time import monotonic
from typing import Any

from edged.accesslog import AccessLog, ExchangeRecord
from edged.admin.api import Admin
from edged.admin.views import Live, ReloadNote
from edged.changes import Changes, ChoiceLog, gate_turned
from edged.cli import DEFAULT_ADMIN
from edged.config import Config, ConfigError, load
from edged.config_parts import (
    RESTART_ONLY,
    limits_of,
    needs_restart,
    policies_of,
    routes_of,
    rules_of,
)
from edged.dialer import LineDialer
from edged.downstream.limits import Limits
from edged.downstream.listener import Listener
from edged.drill import Drills
from edged.exchanges import Exchanges
from edged.guard import forbidden
from edged.looplag import LoopLag
from edged.netwatch import NetChange, NetWatch
from edged.probing import Probing
from edged.recent import Recent
from edged.relay.client import Relayed
from edged.relay.client_report import RelaysReport
from edged.stages import Access, Route
from edged.standby import Standby
from edged.table import PathTable
from edged.upstream.h3 import H3Connector
from edged.upstream.migration import MigrationTools
from edged.upstream.pool import Pools
from edged.upstream.pool_types import PoolLimits
from edged.upstream.tls import Tls
from policies.detector import STALL_S
from policies.model import (
    Line,
    RequestClass,
    Sample,
)
from policies.schema import Cadence, Policy

_log = logging.getLogger("edged")

TICK_S = 0.05
"""The table is ticked at least this often; its own deadlines come on top."""
HOUSEKEEPING_S = 1.0
_OF_LEGS = Policy(cadence=Cadence(http_s=None))
"""A relay is asked by its pulse."""
_ADMIN_LIMITS = Limits(connections=256, idle_s=60.0, body_stall_s=15.0)


class Daemon:
    """See the module. Make it in a running loop; ``rng`` only jitters."""

    def __init__(self, config: Config, *, rng: Random | None = None) -> None:
        """Raises OSError or `edged.upstream.tls.TlsConfigError` for what the disk refuses."""
        self._loop = asyncio.get_running_loop()
        self._rng = rng or Random()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._tick_timer: asyncio.TimerHandle | None = None
        self._tick_due = 0.0
        self._keep_timer: asyncio.TimerHandle | None = None
        self._probe_task: asyncio.Task[None] | None = None
        self._reloading = asyncio.Lock()
        self.failed: asyncio.Future[None] = self._loop.create_future()
        """Gets an exception when a part that must run for ever ended."""
        self.config = config
        self.recent = Recent()
        self.table = PathTable(
            config.topology,
            policies_of(config),
            monotonic(),
            rng=self._rng,
            default_policy=config.unlisted_policy,
            on_choice=ChoiceLog(),
            on_gate=gate_turned,
        )
        self.dialer = LineDialer(guard=self._guard, rtt_s=self._rtt_s)
        ca_file = str(config.ca_file) if config.ca_file else None
        self.pools = self._make_pools(ca_file)
        self.relays = Relayed(self.pools, self.table, self.observe)
        self.exchanges = self._make_exchanges(
            self.table,
            self.pools,
            self.dialer,
            node=config.node_name,
            record=self._record,
            spool_dir=str(config.limits.spool_dir) if config.limits.spool_dir else None,
        )
        self.probing = Probing(
            self.dialer,
            self.pools,
            self.table,
            self.observe,
            ca_file=ca_file,
            rng=self._rng,
            tunnels=lambda: self.exchanges.legs,
        )
        self.standby = Standby(
            self.table, self.pools, self.exchanges, self.recent, self._shown_classes
        )
        self.drills = Drills(self.table, self.exchanges, self.dialer.sockets, self.standby.in_use)
        self.lag = LoopLag()
        self.net = NetWatch(self._line_lost, self._net_changed)
        self.route = Route(
            routes_of(config), self.exchanges, unlisted_allowed=config.unlisted_allowed
        )
        self.access = Access(rules_of(config), self.route)
        self.proxy = self._make_listener(config)
        self.access_log = AccessLog(config.access_log, self._loop) if config.access_log else None
        self.live: Live | None = None
        self._admin: Listener | None = None
        self.table.subscribe(self.relays.path_leaving)  # first: flows go on over another line
        Changes(self.table, self.pools, self.exchanges, self.probing.scheduler.nudge)

    # -- start and stop ---------------------------------------------------------------------------

    @property
    def proxy_addresses(self) -> list[tuple[str, int]]:
        """Where clients connect, with the ports that port 0 became."""
        return self.proxy.addresses

    @property
    def admin_address(self) -> tuple[str, int] | None:
        """Where the admin pages are."""
        return self._admin.addresses[0] if self._admin else None

    async def start(self) -> None:
        """Listen, probe, serve. Raises OSError with a text for people; then nothing runs."""
        try:
            await self._listen()
            self.exchanges.configure(policies_of(self.config), self.config.unlisted_policy)
            self._relay(self.config)
            await self._probe(self.config)
            live = self.live = self._make_live()
            if self.config.listen_admin is not None:
                admin = Admin(live, reload=lambda: self.reload("admin"), spawn=self._spawn)
                self._admin = Listener(admin, _ADMIN_LIMITS)
                await self._admin.start(*self.config.listen_admin)
                if (where := _text(*self._admin.addresses[0])) != DEFAULT_ADMIN:
                    self.exchanges.admin = f" --admin {where}"
        except OSError:
            await self.close()
            raise
        self._probe_task = self._loop.create_task(self.probing.run())
        self._probe_task.add_done_callback(self._part_ended)
        self.lag.start()
        self.net.start(self.config.topology.lines)
        self._tick()
        self._keep_house()
        live.listening = tuple(_text(*address) for address in self.proxy.addresses)
        live.state = "ready"

    async def drain(self, grace_s: float) -> int:
        """Take nothing new, finish what is in flight; returns how many clients were cut off."""
        if self.live is not None:
            self.live.state = "draining"
        started = monotonic()
        self.exchanges.drain()
        cut = await self.proxy.drain(grace_s)
        self.relays.close()
        await self.pools.drain(min(1.0, max(0.0, grace_s - (monotonic() - started))))
        await self.close()
        return cut

    async def close(self) -> None:
        """Close everything at once."""
        for timer in (self._tick_timer, self._keep_timer):
            if timer is not None:
                timer.cancel()
        self.drills.end("shutdown")
        self.lag.stop()
        self.net.close()
        tasks = [*self._tasks, *([self._probe_task] if self._probe_task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.proxy.close()
        if self._admin is not None:
            await self._admin.close()
        self.relays.close()
        self.pools.close()
        await self.dialer.close()
        if self.access_log is not None:
            self.access_log.close()

    async def __aenter__(self) -> Daemon:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- reload -----------------------------------------------------------------------------------

    async def reload(self, by: str) -> ReloadNote:
        """Read the configuration again and take all of it, or nothing.

        Paths, windows, breakers, connections and what is in flight stay, by name.
        """
        async with self._reloading:
            try:
                # Reading and checking takes some ms: not in the loop.
                config = await asyncio.to_thread(self.load_config, self.config.file)
                mistakes = needs_restart(self.config, config, self.restart_only)
            except ConfigError as error:
                mistakes = tuple(str(mistake) for mistake in error.mistakes)
            note = ReloadNote(time.time(), not mistakes, by, mistakes)
            if mistakes:
                _log.error("reload by %s refused, nothing changed: %s", by, "; ".join(mistakes))
            else:
                self._apply(config)
                await self._probe(config)
                _log.info("configuration reloaded by %s", by)
            if self.live is not None:
                self.live.reload = note
            return note

    def _apply(self, config: Config) -> None:
        policies = policies_of(config)
        self.config = config
        if self.live is not None:
            self.live.config = config
        self.table.reload(config.topology, monotonic(), policies, config.unlisted_policy)
        self.drills.reloaded(line.name for line in config.topology.lines)
        self.net.reload(config.topology.lines)
        self.exchanges.configure(policies, config.unlisted_policy)
        self._relay(config)
        self.route.table = routes_of(config)
        self.route.unlisted_allowed = config.unlisted_allowed
        self.access.rules = rules_of(config)
        self.proxy.reconfigure(limits_of(config))
        logging.getLogger("edged").setLevel(config.log_level.upper())
        if self.access_log is not None:
            self.access_log.reopen()

    def _relay(self, config: Config) -> None:
        """Exchanges go through relays where there are some."""
        topology = config.topology
        self.relays.configure(topology, {n: token.secret for n, token in config.tokens.items()})
        self.exchanges.upstreams = self.relays if self.relays.clients else self.pools

    async def _probe(self, config: Config) -> None:
        legs = config.topology.legs()
        policies = policies_of(config) | {leg.endpoint.upstream: _OF_LEGS for leg in legs}
        await self.probing.reload((*config.topology.paths(), *legs), policies)

    # -- what happens meanwhile -------------------------------------------------------------------

    def observe(self, sample: Sample) -> None:
        """A sample of a probe or a connection."""
        now = monotonic()
        if (honest := self.lag.honest(sample, now)) is not None:
            self.table.observe(honest, now)

    def _line_lost(self, line: str, why: str) -> None:
        self.table.lost(line, why, monotonic())

    def _net_changed(self, change: NetChange) -> None:
        """Nothing is taken for granted that was known of these lines."""
        _log.info("%s: looking at %s anew", change.what, ", ".join(change.lines))
        now = monotonic()
        if change.slept:
            self.table.lagged(STALL_S, now)
        for line in change.lines:
            self.dialer.resolver.expire(line)
            self.pools.revalidate(line)
            self.probing.scheduler.ask(line)

    def _record(self, record: ExchangeRecord) -> None:
        self.recent.add(record)
        self.drills.record(record)
        if self.access_log is not None:
            self.access_log.write(record)

    def _tick(self) -> None:
        now = monotonic()
        # Its own lateness tells how long the loop stood still: silence meanwhile convicts nobody.
        stirs = self.table.stirs
        self.table.tick(now, max(0.0, now - self._tick_due) if self._tick_due else 0.0)
        if self.table.stirs != stirs:
            self.probing.scheduler.nudge()
        due = self.table.next_deadline()
        wait_s = TICK_S if due is None else min(TICK_S, max(0.001, due - now))
        self._tick_due = now + wait_s
        self._tick_timer = self._loop.call_later(wait_s, self._tick)

    def _keep_house(self) -> None:
        self._keep_timer = self._loop.call_later(HOUSEKEEPING_S, self._keep_house)
        now = monotonic()
        self.exchanges.tick(now)
        self.standby.tick(now)

    def _spawn(self, awaitable: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(awaitable)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _part_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) and not self.failed.done():
            self.failed.set_exception(error)

    # -- what another kind of daemon does otherwise ------------------------------------------------

    _make_exchanges: type[Exchanges] = Exchanges
    pool_limits = PoolLimits()
    load_config = staticmethod(load)
    restart_only: Sequence[tuple[str, str]] = RESTART_ONLY

    def _make_listener(self, config: Config) -> Listener:
        return Listener(self.access, limits_of(config))

    async def _listen(self) -> None:
        for host, port in self.config.listen_proxy:
            await self.proxy.start(host, port)

    # -- for the parts ----------------------------------------------------------------------------

    def _policy(self, upstream: str) -> Policy:
        known = self.config.upstreams.get(upstream)
        return self.config.unlisted_policy if known is None else known.policy

    def _guard(self, host: str, address: str) -> str | None:
        """No client may reach metadata services; what the operator listed may be anywhere."""
        if any(endpoint.host == host for endpoint in self.config.topology.endpoints):
            return None
        return forbidden(address)

    def _rtt_s(self, line: Line, host: str) -> float | None:
        states = self.table.snapshot.paths.values()
        return next(
            (
                state.estimate.rtt_s
                for state in states
                if state.path.line.name == line.name and state.path.endpoint.host == host
            ),
            None,
        )

    def _make_pools(self, ca_file: str | None) -> Pools:
        return Pools(
            self.dialer,
            self.observe,
            tls=Tls(ca_file),
            limits=self.pool_limits,
            h3=H3Connector(
                self.dialer,
                self.observe,
                ca_file=ca_file,
                migration=MigrationTools(
                    lambda path: self.standby.alternatives(path),
                    self.dialer.open_udp,
                    self.table.line_verdict,
                ),
                families=self.dialer,
                sent=self.table.sent,
            ),
            connect_timeout=lambda upstream: self._policy(upstream).failover.connect_timeout_s,
            set_warm=self.table.set_warm,
            estimate=lambda path: (
                state.estimate if (state := self.table.snapshot.paths.get(path)) else None
            ),
        )

    def _shown_classes(self) -> dict[str, RequestClass]:
        return {} if self.live is None else self.live.shown_classes()

    def _make_live(self) -> Live:
        return Live(
            config=self.config,
            table=self.table,
            services=self.exchanges.services,
            clients=self.proxy.hub,
            pools=self.pools.stats,
            route=self._upstream_of,
            recent=self.recent,
            lag=self.lag,
            started_at=monotonic(),
            reload=ReloadNote(time.time(), True, "start"),
            drills=self.drills,
            parts=[RelaysReport(self.relays)],
            access_log=self.access_log,
            dns_problem=self.dialer.resolver.outages.of,
            probe_bytes=self.probing.bytes,
        )

    def _upstream_of(self, host: str, path: str) -> str | None:
        routes = self.route.table
        routed = (
            routes.by_host(host) if host else routes.by_prefix(path.encode("latin-1", "replace"))
        )
        return None if routed is None else routed.upstream


def _text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
