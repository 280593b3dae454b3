"""What exists: the lines, upstreams and paths that `edged.table.PathTable` keeps records of.

Upstreams come from the configuration (listed) or from clients that asked for a host which is in
none (unlisted). Records are kept by name: what keeps its name keeps its state. Nothing is decided
here; each change is told as a `Turnover`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from edged.records import LineRecord, PathRecord, UpstreamRecord
from policies.model import Endpoint, Path, Topology
from policies.schema import Policy

MOST_UNLISTED = 1024


@dataclass(frozen=True, slots=True)
class Turnover:
    """What a change of what exists brought and took."""

    gone: list[PathRecord] = field(default_factory=list)
    """They went; one of the same name may have come since."""
    dropped: set[str] = field(default_factory=set)
    """Upstreams that went, with all their paths; one of the same name may have come since."""
    placed: list[PathRecord] = field(default_factory=list)
    """They came, or stayed and may stand elsewhere."""


class Inventory:
    """See the module. The dicts are public to read, and stay the same objects."""

    def __init__(self, default_policy: Policy) -> None:
        """``default_policy``: of unlisted hosts, and of listed ones that none is given for."""
        self.lines: dict[str, LineRecord] = {}
        self.upstreams: dict[str, UpstreamRecord] = {}
        self.records: dict[str, PathRecord] = {}
        self.index: Mapping[str, tuple[str, ...]] = {}
        """Upstream to its paths; a new object after each change, as snapshots hold the old one."""
        self._default_policy = default_policy
        self._topology = Topology(None, (), ())
        self._unlisted: OrderedDict[str, None] = OrderedDict()

    def reload(
        self,
        topology: Topology,
        now: float,
        policies: Mapping[str, Policy] | None,
        default_policy: Policy | None,
    ) -> Turnover:
        """Take a new topology and, unless ``None``, policies.

        Unlisted hosts stay, over the lines that exist now.
        """
        turnover = Turnover()
        self._topology = topology
        if default_policy is not None:
            self._default_policy = default_policy
            for name in self._unlisted:
                self.upstreams[name].policy = default_policy
        for line in topology.lines:
            self.lines.setdefault(line.name, LineRecord(line, now)).line = line
        legs = topology.legs()
        doors = {leg.endpoint.upstream for leg in legs}
        listed = {endpoint.upstream for endpoint in topology.endpoints} | doors
        for name in listed:
            self._list(name, policies, turnover)
        paths = [*legs, *topology.paths(), *topology.relayed()]
        unlisted = (r.path.endpoint for r in self.records.values() if not r.upstream.listed)
        for endpoint in dict.fromkeys(unlisted):
            paths += self._paths_of(endpoint)
        for name in self.records.keys() - {path.name for path in paths}:
            self._forget(name, turnover)
        for name in [n for n, u in self.upstreams.items() if u.listed and n not in listed]:
            self._drop(name, turnover)
        for name in self.lines.keys() - {line.name for line in topology.lines}:
            del self.lines[name]
        self._place(paths, turnover)
        self._join(legs)
        return turnover

    def ensure(self, endpoint: Endpoint) -> tuple[str, Turnover | None]:
        """Paths over every line for a host that is in no upstream: its upstream's name, and
        ``None`` if there were paths already.

        ``host:port`` is that name (``http://host:port`` for cleartext on an odd port). The 1024
        hosts used last are kept; one with exchanges in flight is never dropped.
        """
        name = f"{endpoint.host}:{endpoint.port}"
        if endpoint.scheme == "http" and endpoint.port != 80:
            name = f"http://{name}"
        if name in self._unlisted:
            self._unlisted.move_to_end(name)
            return name, None
        if name in self.upstreams:
            return name, None
        turnover = Turnover()
        if len(self._unlisted) >= MOST_UNLISTED:
            self._drop_unlisted(turnover)
        self._unlisted[name] = None
        self.upstreams[name] = UpstreamRecord(name, self._default_policy, listed=False)
        self._place(self._paths_of(replace(endpoint, upstream=name)), turnover)
        return name, turnover

    # -- parts -------------------------------------------------------------------------------

    def _paths_of(self, endpoint: Endpoint) -> list[Path]:
        allowed = endpoint.lines
        return [
            Path(line, endpoint)
            for line in self._topology.lines
            if allowed is None or line.name in allowed
        ]

    def _place(self, paths: list[Path], turnover: Turnover) -> None:
        """Make or move the records of ``paths``, in this order."""
        touched = {path.endpoint.upstream for path in paths}
        for name in touched:
            self.upstreams[name].paths = []
        for path in paths:
            line, upstream = self.lines[path.line.name], self.upstreams[path.endpoint.upstream]
            record = self.records.get(path.name)
            if record is None:
                record = self.records[path.name] = PathRecord(path, line, upstream)
            else:
                record.place(path, line, upstream)
            record.locate(self._topology.node_location)
            upstream.paths.append(record)
            turnover.placed.append(record)
        for name in touched:
            upstream = self.upstreams[name]
            upstream.cohort.set_members(list(dict.fromkeys(r.endpoint for r in upstream.paths)))
        self.index = {
            name: tuple(r.path.name for r in upstream.paths)
            for name, upstream in self.upstreams.items()
        }

    def _join(self, legs: Sequence[Path]) -> None:
        """Tell paths through relays their legs, and the other way round."""
        dependents: dict[str, list[PathRecord]] = {leg.name: [] for leg in legs}
        for record in self.records.values():
            leg = record.path.leg
            if leg is not None:
                record.leg = self.records[leg.name]
                dependents[leg.name].append(record)
        for name, records in dependents.items():
            self.records[name].dependents = tuple(records)

    def _list(self, name: str, policies: Mapping[str, Policy] | None, turnover: Turnover) -> None:
        """Make or update a listed upstream. Without ``policies`` it keeps its own."""
        upstream = self.upstreams.get(name)
        if upstream is not None and not upstream.listed:
            self._drop(name, turnover)
            upstream = None
        if upstream is None:
            policy = (policies or {}).get(name, self._default_policy)
            self.upstreams[name] = UpstreamRecord(name, policy, listed=True)
        elif policies is not None:
            upstream.policy = policies.get(name, self._default_policy)

    def _drop(self, name: str, turnover: Turnover) -> None:
        """Forget an upstream and its paths."""
        upstream = self.upstreams.pop(name)
        self._unlisted.pop(name, None)
        turnover.dropped.add(name)
        for record in upstream.paths:
            self._forget(record.path.name, turnover)

    def _forget(self, name: str, turnover: Turnover) -> None:
        record = self.records.pop(name)
        record.line.in_flight -= record.in_flight
        record.remote.in_flight -= record.in_flight
        record.upstream.paths = [r for r in record.upstream.paths if r is not record]
        turnover.gone.append(record)

    def _drop_unlisted(self, turnover: Turnover) -> None:
        """Forget the unlisted host that was used longest ago and has nothing in flight."""
        for name in self._unlisted:
            if not any(record.in_flight for record in self.upstreams[name].paths):
                self._drop(name, turnover)
                return
