"""The edge's side of its relays: streams through them, and what their pulses tell.

`Relayed` is the `Upstreams` of an edge that has relays: direct paths go to the pools, paths through
a relay become flows (`edged.relay.client_stream`). A `RelayClient` is one relay: its legs, one a
line (`edged.relay.client_leg`), and the flows that go over them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from math import inf
from time import monotonic
from typing import Any, NamedTuple

from edged.messages import Headers
from edged.relay import wire
from edged.relay.beats import MOST_WANTED, RelayBeat
from edged.relay.client_bodies import Bodies
from edged.relay.client_leg import ACTIVE_AFTER_S, Leg
from edged.relay.client_silence import fell_silent, is_down, was_heard
from edged.relay.client_stream import FlowStream
from edged.relay.client_visit import APART
from edged.table import PathTable
from edged.upstream.base import Pending, StreamEvents
from edged.upstream.pool import Pools
from policies.model import (
    Carrier,
    Change,
    FarLeg,
    Path,
    RequestClass,
    Sample,
    Topology,
    Verdict,
)

_log = logging.getLogger("edged.relay")

TICK_S = 0.5
CLEARLY = 0.8
"""Of the cost where a flow is: what makes it go elsewhere."""
_VERDICTS = {"up": Verdict.UP, "suspect": Verdict.SUSPECT, "down": Verdict.DOWN}


class Door(NamedTuple):
    """How a relay is spoken to."""

    scheme: bytes
    authority: bytes
    fields: Headers
    """Of every request to it."""


class RelayClient:
    """One relay, as long as it is configured the same."""

    def __init__(
        self,
        name: str,
        legs: Sequence[Path],
        paths: Sequence[Path],
        token: bytes | None,
        *,
        pools: Pools,
        table: PathTable,
        report: Callable[[Sample], None],
    ) -> None:
        """``legs``: the paths to it; ``paths``: those through it."""
        self.name = name
        self.token = token
        self.pools = pools
        self.table = table
        self.report = report
        self.loop = asyncio.get_running_loop()
        endpoint = legs[0].endpoint
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        port = "" if endpoint.port == 443 else f":{endpoint.port}"
        fields = [] if token is None else [(wire.AUTHORIZATION, b"Bearer " + token)]
        self.door = Door(b"https", f"{host}{port}".encode(), fields)
        self.legs = {leg.line.name: Leg(self, leg) for leg in legs}
        self.flows: dict[bytes, FlowStream] = {}
        self.copies = 0
        """Flows that go over two lines, as of the last count."""
        self.opened = 0
        """Flows so far."""
        self.visits = 0
        """Requests about flows so far."""
        self.bodies = Bodies()
        """Request bodies, and what is known of earlier ones."""
        self._paths = {path.name: path for path in paths}
        self._by_url: dict[str, list[str]] = {}
        for path in paths:
            self._by_url.setdefault(_url(path), []).append(path.name)
        self.wanted = tuple(self._by_url)[:MOST_WANTED]
        """The origins whose far legs are asked for."""
        self._awake_until = 0.0
        self._instance: str | None = None
        self._timer = self.loop.call_later(TICK_S, self._tick)

    def start(self) -> None:
        """Open all pulses."""
        for leg in self.legs.values():
            leg.start()

    def close(self) -> None:
        """End everything: flows that are left are lost."""
        self._timer.cancel()
        for leg in self.legs.values():
            leg.close()
        for flow in tuple(self.flows.values()):
            flow.lost()

    def open(
        self, path: Path, events: StreamEvents, request_class: RequestClass | None
    ) -> Pending | None:
        """A flow along ``path``, or over a better line if that is silent just now."""
        policy = self.table.policy(path.endpoint.upstream)
        flow = FlowStream(self, path, events, request_class, policy)
        self.flows[flow.id] = flow
        self.opened += 1
        line = path.line.name
        if self.legs[line].silent:
            line = next(iter(self.usable()), line)
        return flow.open(line)

    # -- lines -----------------------------------------------------------------------------------

    def usable(self) -> list[str]:
        """The lines that a flow can be asked over, best first."""
        legs = [leg for leg in self.legs.values() if leg.verdict is not Verdict.DOWN]
        legs = [leg for leg in legs if not leg.silent] or legs
        legs.sort(key=_quality)
        return [leg.name for leg in legs]

    def best(self, path: Path, here: Leg, request_class: RequestClass) -> Leg | None:
        """The line that suits a flow of that class along ``path`` best: ``here``, where it is, but
        for one that is clearly better. (The choice of requests waits for a regret that grows with
        each of them; a flow is but one.)
        """
        costs = {
            candidate.state.path.line.name: candidate.cost_ms
            for candidate in self.table.peek(path.endpoint.upstream, request_class).order
            if candidate.filtered in ("", "recovering")  # it must have been well for a while
            and candidate.state.path.relay == path.relay
            and candidate.state.path.endpoint.name == path.endpoint.name
        }
        if not costs:
            return None
        name = min(costs, key=costs.__getitem__)
        return here if costs[name] > CLEARLY * costs.get(here.name, inf) else self.legs[name]

    def leg(self, way: str) -> Leg:
        """The leg that ``way`` is on."""
        return self.legs[way.removesuffix(APART)]

    def path_over(self, line: str, path: Path) -> Path | None:
        """The path to the same endpoint over ``line``."""
        assert path.relay is not None
        return self._paths.get(f"{line}>{path.relay.name}>{path.endpoint.key}")

    def wake(self, now: float) -> None:
        """A flow begins, or goes on: all lines are watched."""
        asleep = now >= self._awake_until
        self._awake_until = now + ACTIVE_AFTER_S
        for leg in self.legs.values():
            if asleep or leg.visits:
                leg.quicken(now)

    def busy(self, now: float) -> bool:
        """Whether there are flows, or were just now."""
        return bool(self.flows) or now < self._awake_until

    def silent(self, leg: Leg) -> None:
        """``leg`` says nothing: its flows ask others."""
        for visit in tuple(leg.visits):
            if visit.flow is not None:
                fell_silent(visit.flow, visit.way)

    def heard(self, leg: Leg) -> None:
        """``leg`` says something again."""
        for visit in tuple(leg.visits):
            if visit.flow is not None:
                was_heard(visit.flow, visit.way)

    def verdict(self, leg: Leg, verdict: Verdict) -> None:
        """The detector has judged ``leg``."""
        old, leg.verdict = leg.verdict, verdict
        leg.well_at = monotonic()
        if verdict is Verdict.DOWN:
            for visit in tuple(leg.visits):
                if visit.flow is not None:
                    is_down(visit.flow, visit.way)
        elif verdict is Verdict.SUSPECT and old is Verdict.UP:
            for visit in tuple(leg.visits):
                # A line that a large body fills is suspected now and then: while its bytes come,
                # all would only cross twice.
                if visit.flow is not None and (leg.silent or not visit.flow.large):
                    fell_silent(visit.flow, visit.way)
        elif verdict is Verdict.UP and not leg.silent:
            self.heard(leg)
        if old is Verdict.DOWN and verdict is not Verdict.DOWN:
            leg.start()
            for flow in tuple(self.flows.values()):
                flow.line_back()

    def known(self, leg: Leg) -> None:
        """The relay took our pulse."""
        now = monotonic()
        for name in self._over(leg):
            state = self.table.snapshot.paths.get(name)
            if state is not None and state.far == _STRANGER:
                self.table.reported(name, None, now)

    def unknown(self, leg: Leg) -> None:
        """The relay does not know us: nothing can go through it."""
        for name in self._over(leg):
            self.table.reported(name, _STRANGER, monotonic())

    def refused(self) -> None:
        """Nobody listens there. Unless another line knows better, the relay has ended, and with it
        all its flows.
        """
        if not any(leg.connected for leg in self.legs.values()):
            for flow in tuple(self.flows.values()):
                flow.lost()

    def _over(self, leg: Leg) -> list[str]:
        return [name for name, path in self._paths.items() if path.line.name == leg.name]

    # -- what pulses tell ------------------------------------------------------------------------

    def told(self, leg: Leg, beat: RelayBeat) -> None:
        """A line of the relay's."""
        flows = self.flows
        for flow_id, offset in beat.uploads.items():
            if (flow := flows.get(flow_id)) is not None:
                flow.taken(offset)
        for flow_id in beat.gone:
            if (flow := flows.get(flow_id)) is not None:
                flow.lost()
        if beat.relay is not None and beat.relay != self._instance:
            if self._instance is not None:
                _log.warning("relay %s was restarted: its flows are lost", self.name)
                self.bodies.forget()
                for flow in tuple(flows.values()):
                    flow.lost()
            self._instance = beat.relay
        if beat.far is not None:
            now = monotonic()
            for url, legs in beat.far.items():
                far = _far(legs)
                for name in self._by_url.get(url, ()):
                    self.table.reported(name, far, now)

    def received(self, flow_id: bytes, offset: int) -> None:
        """Response bytes arrived: every pulse may say so."""
        for leg in self.legs.values():
            leg.acks[flow_id] = offset

    def offsets(self) -> dict[bytes, int]:
        """How far the flows are that the relay has answered. Others it may not know yet, and would
        say so: a pulse can overtake the request that opens a flow over a slower line.
        """
        return {i: flow.machine.received for i, flow in self.flows.items() if flow.machine.begun}

    def hurry(self) -> None:
        """Tell it now."""
        for leg in self.legs.values():
            if not leg.silent and leg.visits:
                leg.hurry()

    def ended(self, flow: FlowStream) -> None:
        """A flow is over for us: the relay may forget it."""
        if self.flows.pop(flow.id, None) is None:
            return
        for leg in self.legs.values():
            leg.acks.pop(flow.id, None)
            if leg.connected:
                leg.done[flow.id] = 0
                leg.hurry()

    def _tick(self) -> None:
        """What is sent twice, and need not be any more, or should be from now on."""
        self._timer = self.loop.call_later(TICK_S, self._tick)
        now = monotonic()
        flows = tuple(self.flows.values())
        self.copies = sum(len(flow.machine.lines) > 1 for flow in flows)
        for flow in flows:
            if flow.copying.small or len(flow.machine.lines) > 1:
                flow.review(now)
            flow.look_after(now)
            if flow.large:
                flow.handover.look_around(now)


class Relayed:
    """See the module: `edged.upstream.base.Upstreams`."""

    def __init__(self, pools: Pools, table: PathTable, report: Callable[[Sample], None]) -> None:
        self.clients: dict[str, RelayClient] = {}
        self._pools = pools
        self._table = table
        self._report = report
        self._made: dict[str, tuple[Any, ...]] = {}

    def configure(self, topology: Topology, tokens: Mapping[str, bytes]) -> None:
        """Take what there is now. Flows of a relay that stays the same go on."""
        legs: dict[str, list[Path]] = {}
        paths: dict[str, list[Path]] = {}
        names = {relay.door.upstream: relay.name for relay in topology.relays if relay.door}
        for leg in topology.legs():
            legs.setdefault(names[leg.endpoint.upstream], []).append(leg)
        for path in topology.relayed():
            assert path.relay is not None
            paths.setdefault(path.relay.name, []).append(path)
        for name in [n for n in self.clients if n not in legs]:
            self.clients.pop(name).close()
        for name, its in legs.items():
            through = paths.get(name, [])
            made = (its, through, tokens.get(name))
            if self._made.get(name) == made and name in self.clients:
                continue
            if (old := self.clients.pop(name, None)) is not None:
                old.close()
            self._made[name] = made
            client = self.clients[name] = RelayClient(
                name,
                its,
                through,
                tokens.get(name),
                pools=self._pools,
                table=self._table,
                report=self._report,
            )
            client.start()

    def close(self) -> None:
        """End everything."""
        for client in self.clients.values():
            client.close()
        self.clients.clear()

    def open(
        self,
        path: Path,
        events: StreamEvents,
        *,
        early_data: bool,
        upgrade: bool = False,
        request_class: RequestClass | None = None,
    ) -> Pending | None:
        """See `Upstreams.open`."""
        if path.relay is not None and (client := self.clients.get(path.relay.name)) is not None:
            return client.open(path, events, request_class)
        return self._pools.open(
            path, events, early_data=early_data, upgrade=upgrade, request_class=request_class
        )

    def answered(
        self, path: Path, carrier: Carrier, request_class: RequestClass, latency_s: float
    ) -> None:
        """See `Upstreams.answered`. What a carrier is worth on a leg is learnt from direct use."""
        if path.relay is None:
            self._pools.answered(path, carrier, request_class, latency_s)

    def prepare(self, path: Path, streams: int) -> None:
        """See `Upstreams.prepare`. Connections to relays are there already."""
        if path.relay is None:
            self._pools.prepare(path, streams)

    def path_leaving(self, change: Change) -> None:
        """A verdict changed. Subscribe this before whoever acts on those in flight: flows go on
        over another line before anybody hears that theirs is DOWN.
        """
        for client in self.clients.values():
            for leg in client.legs.values():
                if leg.path.name == change.path:
                    client.verdict(leg, change.new)


_STRANGER = FarLeg(Verdict.DOWN, None, 1.0)
"""Of all that lies behind a relay that does not know us."""


def _quality(leg: Leg) -> tuple[bool, Verdict, float]:
    return not leg.connected, leg.verdict, 1.0 if leg.rtt is None else leg.rtt.srtt_s


def _url(path: Path) -> str:
    endpoint = path.endpoint
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return f"{endpoint.scheme}://{host}:{endpoint.port}"


def _far(legs: Sequence[Mapping[str, Any]]) -> FarLeg | None:
    """The best of the relay's own paths to an origin; ``None``: it knows none."""
    for leg in legs:
        verdict = _VERDICTS.get(str(leg.get("verdict")))
        if verdict is not None:
            rtt_ms, loss = leg.get("rtt_ms"), leg.get("loss")
            return FarLeg(
                verdict,
                rtt_ms / 1e3 if isinstance(rtt_ms, int | float) else None,
                float(loss) if isinstance(loss, int | float) else None,
            )
    return None
