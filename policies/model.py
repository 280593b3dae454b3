"""The words of the house as frozen types: lines, endpoints, paths, samples, verdicts, snapshots.

Deciding and moving talk only through `Snapshot` one way and `Sample` the other. All times are
monotonic seconds (float), all sizes bytes (int); "no data" is ``None``, never 0.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Verdict(enum.IntEnum):
    """What a window says of a path. A greater value is worse, so verdicts combine with ``max``."""

    UP = 0
    SUSPECT = 1
    DOWN = 2


class Breaker(enum.Enum):
    """One path's gate: may I use it now?"""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Carrier(enum.StrEnum):
    """The protocol a path is used with."""

    H3 = "h3"
    H2 = "h2"
    H1 = "h1"


class Kind(enum.StrEnum):
    """What a sample measured. The comment says which round trip its ``rtt_s`` is."""

    ICMP = "icmp"  # echo request to reply
    TCP = "tcp"  # SYN to SYN-ACK
    TLS = "tls"  # ClientHello to Finished, divided by the handshake's round trips
    HTTP = "http"  # probe request written to first response byte
    QUIC = "quic"  # Initial to handshake complete
    PING = "ping"  # HTTP/2 or QUIC PING to its acknowledgement on a warm connection
    KERNEL = "kernel"  # the transport's own srtt on a live connection (TCP_INFO, QUIC)
    TTFB = "ttfb"  # a real exchange's request written to first response byte
    PULSE = "pulse"  # relay heartbeat


class Blame(enum.Enum):
    """Whom an outcome speaks against. Local failures blame the line, remote ones the endpoint."""

    NOBODY = "nobody"
    LINE = "line"
    ENDPOINT = "endpoint"
    UNKNOWN = "unknown"  # silence: whoever else is silent on the line or at the endpoint decides


class Outcome(enum.StrEnum):
    """How a measurement or an attempt ended."""

    OK = "ok"
    TIMEOUT = "timeout"  # silence until the deadline
    UNREACHABLE = "unreachable"  # this host or its gateway said no route, no device, no address
    REFUSED = "refused"  # the peer actively refused (RST, ICMP port unreachable)
    RESET = "reset"  # an established connection was reset or closed early
    DNS = "dns"  # no name server answered over this line
    NO_NAME = "no_name"  # a name server answered: there is no such name, or no usable address
    TLS = "tls"  # handshake or certificate failure
    PROTOCOL = "protocol"  # the peer broke HTTP, h2 or QUIC
    HTTP_ERROR = "http_error"  # 500, 502, 504
    BUSY = "busy"  # 429, or 503 with Retry-After: the endpoint backs off, nobody is blamed
    LOCAL = "local"  # this process ran out of descriptors, ports or memory: says nothing of paths
    FORBIDDEN = "forbidden"  # edged itself refused the address: says nothing of paths

    @property
    def blame(self) -> Blame:
        """Whom this outcome speaks against, before other paths are consulted."""
        return _BLAME[self]

    @property
    def about_path(self) -> bool:
        """Whether it says anything of the path; else it is this host's own affair."""
        return self is not Outcome.LOCAL and self is not Outcome.FORBIDDEN

    @property
    def ok(self) -> bool:
        """Whether the measurement got its answer (a busy endpoint did answer)."""
        return self is Outcome.OK or self is Outcome.BUSY


_BLAME = {
    Outcome.OK: Blame.NOBODY,
    Outcome.TIMEOUT: Blame.UNKNOWN,
    Outcome.UNREACHABLE: Blame.LINE,
    Outcome.REFUSED: Blame.ENDPOINT,
    Outcome.RESET: Blame.UNKNOWN,
    Outcome.DNS: Blame.LINE,
    Outcome.NO_NAME: Blame.ENDPOINT,
    Outcome.TLS: Blame.ENDPOINT,
    Outcome.PROTOCOL: Blame.ENDPOINT,
    Outcome.HTTP_ERROR: Blame.ENDPOINT,
    Outcome.BUSY: Blame.NOBODY,
    Outcome.LOCAL: Blame.NOBODY,
    Outcome.FORBIDDEN: Blame.NOBODY,
}


class Location(NamedTuple):
    """A point on the earth, in degrees."""

    latitude: float
    longitude: float


@dataclass(frozen=True, slots=True)
class Line:
    """One way out of this host. At most one of ``source``, ``interface``, ``mark`` binds it."""

    name: str
    kind: str = "bgp"
    source: str | None = None
    interface: str | None = None
    mark: int | None = None
    capacity_bps: float | None = None
    price_per_gb: float = 0.0
    dns: tuple[str, ...] = ()
    """Name servers asked over this line (``address`` or ``address:port``); empty: the system's."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address of an upstream service. ``name`` is unique within its upstream."""

    upstream: str
    name: str
    scheme: str
    """``https`` or ``http``."""
    host: str
    port: int
    base_path: str = ""
    """Prepended to request paths; has no trailing slash."""
    address: str | None = None
    """Fixed IP address instead of DNS."""
    location: Location | None = None
    protocols: tuple[Carrier, ...] = (Carrier.H2, Carrier.H1)
    """What it is known to speak; the order is no preference."""
    accepts_encoding: tuple[str, ...] = ()
    """Content codings it takes in request bodies."""
    lines: tuple[str, ...] | None = None
    """Names of the lines it may be reached over; ``None``: all."""
    learns_h3: bool = True
    """Whether an Alt-Svc field may add h3 to ``protocols``: not where the operator named them."""
    relays: tuple[str, ...] | None = ()
    """Names of the relays it may be reached through; ``None``: all."""
    direct: bool = True
    """Whether it is reached without a relay, too."""

    @property
    def key(self) -> str:
        """``upstream/name``: unique over the whole configuration."""
        return f"{self.upstream}/{self.name}"

    @property
    def is_door(self) -> bool:
        """It is a relay's: no configured upstream has a colon in its name."""
        return self.upstream.startswith("relay:")


@dataclass(frozen=True, slots=True)
class Relay:
    """A remote host running ``edged relay``."""

    name: str
    url: str
    location: Location | None = None
    door: Endpoint | None = None
    """Where it is dialled: its lines' legs are the paths to there. Its upstream is the relay's own,
    which no configured upstream can be named like."""


@dataclass(frozen=True, slots=True)
class Path:
    """Line x endpoint, or line x relay x endpoint: what is measured, scored and chosen."""

    line: Line
    endpoint: Endpoint
    relay: Relay | None = None
    name: str = field(init=False)
    """``line>upstream/endpoint`` or ``line>relay>upstream/endpoint``: the key everywhere."""

    def __post_init__(self) -> None:
        via = f"{self.relay.name}>" if self.relay else ""
        object.__setattr__(self, "name", f"{self.line.name}>{via}{self.endpoint.key}")

    @property
    def leg(self) -> Path | None:
        """The path from here to the relay; ``None`` where there is none."""
        door = None if self.relay is None else self.relay.door
        return None if door is None else Path(self.line, door)


class Sample(NamedTuple):
    """One measurement of one path, active or passive. Made often, hence a tuple.

    A sample of several packets (TCP_INFO, QUIC counters) states ``packets_sent`` and
    ``packets_lost`` since the previous one; otherwise it is one packet, lost when not ``ok``.
    """

    path: str
    kind: Kind
    sent_at: float
    rtt_s: float | None
    outcome: Outcome = Outcome.OK
    packets_sent: int = 1
    packets_lost: int = 0
    goodput_bps: float | None = None
    """Acknowledged bits per second over the sample's span, when it was large enough to tell."""
    retry_after_s: float | None = None
    """Of a BUSY outcome."""
    carrier: Carrier | None = None
    """Of the pooled connection that it was measured on; ``None``: none was."""
    found: int | None = None
    """Of a TTFB: attempts in flight at the endpoint when this one began, itself included."""
    detail: str = ""
    """Of a local failure (UNREACHABLE, DNS): what happened, for people."""


class Seen(NamedTuple):
    """What a look at the live connections of a path shows: an answer, a silence, or mere bytes."""

    path: str
    kind: Kind
    at: float
    """When the answer or the bytes arrived; of a silence, when it was overdue."""
    sent_at: float | None = None
    """When the thing was sent that was answered or not; ``None``: bytes came unasked."""
    reply_at: float | None = None
    """Of a silence only: when the answer should have come."""
    carrier: Carrier | None = None


class RequestClass(NamedTuple):
    """What the score needs to know of a request. Few values exist, so rankings are memoised."""

    up_bytes: int
    """Body size after compression, rounded up to a power of four KiB; 0: no body."""
    streaming: bool = False

    @classmethod
    def of(cls, body_length: int | None, *, streaming: bool = False) -> RequestClass:
        """The class of a request with ``body_length`` bytes; ``None`` counts as 64 KiB."""
        if body_length == 0:
            return _NO_BODY_STREAMING if streaming else _NO_BODY
        length = 65536 if body_length is None else body_length
        bucket = 1024
        while bucket < length and bucket < (1 << 30):
            bucket *= 4
        return cls(bucket, streaming)


_NO_BODY = RequestClass(0, False)
_NO_BODY_STREAMING = RequestClass(0, True)


class Part(NamedTuple):
    """One named part of a score, in ms of expected cost."""

    name: str
    ms: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a path's window says, as numbers. Loss is the upper 95% bound; see `policies.window`."""

    rtt_s: float | None = None
    rttvar_s: float | None = None
    rtt_min_s: float | None = None
    loss: float | None = None
    loss_least: float | None = None
    """The lower 95% bound: what is proven, where ``loss`` is what may be."""
    jitter_s: float | None = None
    p50_s: float | None = None
    p95_s: float | None = None
    goodput_bps: float | None = None
    samples: int = 0


class FarLeg(NamedTuple):
    """What a relay says of its own way to an endpoint."""

    verdict: Verdict
    rtt_s: float | None = None
    loss: float | None = None
    """Upper 95% bound, as in `Estimate`."""


@dataclass(frozen=True, slots=True)
class PathState:
    """One path as a snapshot shows it."""

    path: Path
    verdict: Verdict
    breaker: Breaker
    ejected_until: float | None
    """Monotonic time until which it is excluded; ``None``: it is not."""
    estimate: Estimate
    distance_km: float | None
    ttfb_p95_s: float | None
    """Of the endpoint, for hedging; ``None`` while unknown."""
    warm: Carrier | None
    """A carrier with an open, usable connection, or ``None``."""
    in_flight: int
    limit: float | None
    """Concurrency limit L of the endpoint; ``None``: unknown, no limit."""
    reason: str = ""
    """The sentence that explains verdict and gates, for people."""
    endpoint_in_flight: int = 0
    """Attempts in flight at the endpoint over all its lines: what ``limit`` limits."""
    near: Estimate | None = None
    """Of the leg to the relay, whose sum with ``far`` is ``estimate``; ``None``: no relay."""
    far: FarLeg | None = None
    """``None``: no relay, or it has not told."""

    @property
    def usable(self) -> bool:
        """Neither DOWN, nor behind an open breaker, nor ejected."""
        return (
            self.verdict is not Verdict.DOWN
            and self.breaker is not Breaker.OPEN
            and self.ejected_until is None
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """One path in a ranking: its state, its cost in parts, and why it stands where it stands."""

    state: PathState
    cost_ms: float
    parts: tuple[Part, ...]
    filtered: str = ""
    """Empty if eligible, else why it stands behind all that are (``down``, ``hot`` ...)."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The order of an upstream's paths for one class of request; first is the choice.

    Never empty while the upstream has a path: those filtered out follow as a last resort.
    """

    upstream: str
    request_class: RequestClass
    order: tuple[Candidate, ...]
    decided_by: str
    """The sentence that decided, for ``why``."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The paths, best first."""
        return tuple(c.state.path for c in self.order)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The immutable, ordered picture of all paths that requests read."""

    at: float
    serial: int
    paths: Mapping[str, PathState]
    upstreams: Mapping[str, tuple[str, ...]]
    """Upstream name to the names of its paths."""


class Replay(enum.StrEnum):
    """When a request that may have been executed may be sent again (methods that are not safe)."""

    NEVER = "never"
    LINE_DOWN = "line-down"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt ended without a complete response.

    ``unprocessed`` is a proof, not a guess: nothing of the request was sent, or the peer said
    it did not act on it (REFUSED_STREAM, GOAWAY beyond the last stream id, 421).
    """

    outcome: Outcome
    detail: str
    unprocessed: bool = False
    path_down: bool = False
    """The path was declared DOWN or the attempt failed because of that."""
    carrier_down: bool = False
    """Only the carrier stopped working on the path: it can be used again at once, on another."""

    @property
    def blame(self) -> Blame:
        """Whom it speaks against."""
        return self.outcome.blame

    @property
    def line_failed(self) -> bool:
        """Whether its line, or the carrier on it, is what failed."""
        return self.path_down or self.carrier_down or self.outcome is Outcome.UNREACHABLE


@dataclass(frozen=True, slots=True)
class Change:
    """Something about a path that others act on in the same loop turn."""

    path: str
    old: Verdict
    new: Verdict
    blame: Blame
    reason: str
    at: float


class CarrierChange(NamedTuple):
    """A transport stopped or began to work on a path whose other transport works."""

    path: str
    carriers: tuple[Carrier, ...]
    """H3, where datagrams vanish; H2 and H1, where TCP does."""
    blocked: bool
    reason: str
    at: float


@dataclass(frozen=True, slots=True)
class Topology:
    """What the configuration says exists; `policies.schema.Policy` objects stand beside it."""

    node_location: Location | None
    lines: tuple[Line, ...]
    endpoints: tuple[Endpoint, ...]
    relays: tuple[Relay, ...] = ()

    def paths(self) -> tuple[Path, ...]:
        """Every allowed line x endpoint, in the order of the configuration."""
        return tuple(
            Path(line, endpoint)
            for endpoint in self.endpoints
            for line in self.lines
            if endpoint.direct and (endpoint.lines is None or line.name in endpoint.lines)
        )

    def legs(self) -> tuple[Path, ...]:
        """Every allowed line x relay: what paths through relays begin with."""
        return tuple(
            Path(line, relay.door)
            for relay in self.relays
            for line in self.lines
            if relay.door is not None
            and (relay.door.lines is None or line.name in relay.door.lines)
        )

    def relayed(self) -> tuple[Path, ...]:
        """Every allowed line x relay x endpoint."""
        return tuple(
            Path(line, endpoint, relay)
            for endpoint in self.endpoints
            for relay in self.relays
            if relay.door is not None and (endpoint.relays is None or relay.name in endpoint.relays)
            for line in self.lines
            if relay.door.lines is None or line.name in relay.door.lines
        )
