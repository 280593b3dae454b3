"""Which carrier a path's requests take, and how many streams share a connection: by what was
measured on that path, never by a fixed preference.

The model says what a carrier costs beyond one round trip, in expectation. p loss, R round trip,
v its variation, k streams beside this one on the same connection, n packets of the request:

```
own     (1 - (1-p)^2) * T          the only packet of a flight is lost, this way or that
others  k * p * T^2 / R            TCP hands on in order: k/R packets a second each way, each lost
                                   one stops all for T, a newcomer waits half of what is left
body    (flights - 1) * R + (1 - (1-p)^(n-1)) * 9/8 * R + bulk / G     (`policies.score.transfer`)
moves   a stream of events on h3 can change its line; on TCP it ends with it

T   h3: R + max(4v, 1 ms) + 25 ms                     RFC 9002 section 6.2, PTO
    h2: R + R/4 + 20 ms                               RFC 8985: something follows on the connection
    h1: R + max(4v, 200 ms)                           RFC 6298: nothing follows, the timer must fire
G   where congestion control takes loss for congestion 1.22 * packet / (R * sqrt p) (Mathis et
    al. 1997), p at least `LEAST_LOSS`, and at most `SAWTOOTH` of what was measured; where it
    measures bandwidth (BBR) what was measured
```

What was measured of a carrier (time from sending a request to its response) outweighs the model
as it becomes significant: both are means of normal errors. The endpoint's own time is common to
the carriers of a path and falls out: a carrier is compared with what the others leave as base. An
endpoint that thinks for seconds has a variance that says nothing of carriers, and the model rules.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import ceil, sqrt
from typing import Final, NamedTuple

from policies.model import Carrier, RequestClass
from policies.score import PACKET_BYTES, transfer

TAIL_S: Final = 0.02
"""After so much silence behind a request h2 sends something more, that a loss may show."""
TOLERANCE_S: Final = 0.001
TOLERANCE: Final = 0.01
"""What streams on one connection may cost each other: the greater of 1 ms and 1% of R."""
H2_CONNECTIONS_MAX: Final = 6
"""As browsers do towards one host."""
H1_CONNECTIONS_MAX: Final = 32
"""Of those opened where h2 could be had."""
STREAM_MOVES_S: Final = 0.01
"""What it is worth to a stream of events that it can change its line: an outage a day and line,
30 s of stream, 30 s of it to be done again."""
LEAST_LOSS: Final = 2e-3
"""What a body on a carrier that takes loss for congestion has to reckon with where none was seen:
a few hundred probes do not show it, and it costs such a body tens of seconds."""
SAWTOOTH: Final = 0.75
"""Of what could be used what is, in the mean, by a window that halves with each loss. That also
decides where so little was measured that either carrier would do as well: one that measures
bandwidth may find more.
"""
EXPLORE_EVERY: Final = 64
"""One request of so many takes the carrier that may be better than the best."""
HALF_LIFE_S: Final = 60.0
_MAX_ACK_DELAY_S: Final = 0.025
_RTO_MIN_S: Final = 0.2
_PRIOR_SD_S: Final = 0.01
_PRIOR_SD: Final = 0.15
"""How far off the model may be: the greatest of 10 ms, 15% of R and half of what it says."""
_MARGIN_S: Final = 0.002
_MARGIN: Final = 0.02
_LOOK_S: Final = 0.02
_LOOK: Final = 0.25
"""What one look may cost in expectation: the greater of 20 ms and a quarter of the best time."""
_VARIANCE_SAMPLES: Final = 3

_SIZES: Final = (16 << 10, 256 << 10)
"""Up to the first a body leaves in one flight; up to the second slow start is most of it."""
_TYPICAL_BYTES: Final = (0, 128 << 10, 4 << 20)
SIZES: Final = len(_TYPICAL_BYTES)
GROUPS: Final = 2 * SIZES
"""Kinds of requests that are decided apart: by size of the body, twice: with a plain response and
with a stream of events."""


def group_of(request_class: RequestClass) -> int:
    """The group of a class of requests, from 0 to below `GROUPS`."""
    up_bytes, streaming = request_class
    size = 0 if up_bytes <= _SIZES[0] else 1 if up_bytes <= _SIZES[1] else 2
    return size + SIZES * streaming


class Facts(NamedTuple):
    """What is known of a path that its carriers share."""

    rtt_s: float
    rttvar_s: float
    loss: float
    """Per packet; the lower bound of what was measured, so that a clean line is not condemned."""
    goodput_bps: float | None = None


class Load(NamedTuple):
    """How a carrier is used on a path."""

    beside: float = 0.0
    """Streams on the same connection."""
    paced: bool = True
    """Congestion control measures bandwidth; else it takes loss for congestion."""


def repair_s(carrier: Carrier, facts: Facts) -> float:
    """T: how long a lost packet holds up the response, when it was alone on its way."""
    rtt_s, variation_s = facts.rtt_s, 4 * facts.rttvar_s
    if carrier is Carrier.H3:
        return rtt_s + max(variation_s, 0.001) + _MAX_ACK_DELAY_S
    timer_s = rtt_s + max(variation_s, _RTO_MIN_S)
    return timer_s if carrier is Carrier.H1 else min(timer_s, 1.25 * rtt_s + TAIL_S)


def expected_s(carrier: Carrier, facts: Facts, load: Load, group: int) -> float:
    """What ``carrier`` costs a request of ``group`` beyond one round trip."""
    rtt_s, p = max(facts.rtt_s, 1e-4), facts.loss
    repair = repair_s(carrier, facts)
    own = (1 - (1 - p) ** 2) * repair
    others = 0.0 if carrier is not Carrier.H2 else load.beside * p * repair * repair / rtt_s
    moves = STREAM_MOVES_S if group >= SIZES and carrier is not Carrier.H3 else 0.0
    size = _TYPICAL_BYTES[group % SIZES]
    if not size:
        return own + others + moves
    again = (1 - (1 - p) ** (ceil(size / PACKET_BYTES) - 1)) * 9 / 8 * rtt_s
    body_s = _body_s(size, rtt_s, 0.0, facts.goodput_bps)
    if not load.paced:
        used_bps = None if facts.goodput_bps is None else SAWTOOTH * facts.goodput_bps
        body_s = max(
            _body_s(size, rtt_s, 0.0, used_bps), _body_s(size, rtt_s, max(p, LEAST_LOSS), None)
        )
    return own + others + moves + again + body_s


def _body_s(size: int, rtt_s: float, loss: float, goodput_bps: float | None) -> float:
    """How long a body takes beyond its first flight."""
    body = transfer(size, rtt_s, loss, goodput_bps)
    return (body.flights - 1) * rtt_s + body.bulk_s


def streams_per_connection(facts: Facts) -> int | None:
    """How many streams an h2 connection carries before another one is better; ``None``: any."""
    rtt_s = max(facts.rtt_s, 1e-4)
    repair = repair_s(Carrier.H2, facts)
    tolerated = max(TOLERANCE_S, TOLERANCE * rtt_s) * rtt_s
    of_each = facts.loss * repair * repair
    # Compared before dividing: a loss may be too small to divide by.
    return None if 1000 * of_each <= tolerated else 1 + int(tolerated / of_each)


class Choice(NamedTuple):
    """What is decided for a path."""

    orders: tuple[tuple[Carrier, ...], ...]
    """By group: the carriers, best first."""
    explore: tuple[tuple[Carrier, ...], ...]
    """By group: carriers that may be the best; one request in `EXPLORE_EVERY` takes the first of
    them that is open, to see how it does."""
    streams: int | None
    """Streams on an h2 connection while another one can be had."""
    costs: Mapping[Carrier, float]
    """What a small request costs on each beyond one round trip, in s, for people."""


class _Arm:
    """Decayed count, mean and variance of one carrier's latency for one group."""

    __slots__ = ("_at", "_squares", "count", "mean_s")

    def __init__(self, now: float) -> None:
        self.count = 0.0
        self.mean_s = 0.0
        self._squares = 0.0
        self._at = now

    def add(self, latency_s: float, now: float) -> None:
        self.decay(now)
        self.count += 1
        delta = latency_s - self.mean_s
        self.mean_s += delta / self.count
        self._squares += delta * (latency_s - self.mean_s)

    def decay(self, now: float) -> None:
        if now > self._at:
            keep = 0.5 ** ((now - self._at) / HALF_LIFE_S)
            self.count *= keep
            self._squares *= keep
            self._at = now

    def precision(self, prior_sd_s: float) -> float:
        """One over the variance of the mean; ``prior_sd_s`` stands for samples not there yet."""
        variance = (self._squares + _VARIANCE_SAMPLES * prior_sd_s**2) / (
            self.count + _VARIANCE_SAMPLES
        )
        return self.count / max(variance, 1e-9)


class _Cost(NamedTuple):
    """Of one carrier for one group, in s."""

    carrier: Carrier
    expected_s: float
    error_s: float
    """How far off it may be."""
    noise_s: float
    """How far chance may have moved it."""


class Chooser:
    """The memory and the choice of one path. Pure: ``now`` is an argument.

    ``carriers`` are all that the endpoint may speak; the first wins a tie.
    """

    def __init__(self, carriers: Sequence[Carrier]) -> None:
        self._carriers = tuple(carriers)
        self._arms: dict[tuple[Carrier, int], _Arm] = {}
        self._first: list[Carrier | None] = [None] * GROUPS

    def observe(self, carrier: Carrier, group: int, latency_s: float, now: float) -> None:
        """A request of ``group`` on ``carrier`` was answered ``latency_s`` after it was sent."""
        arm = self._arms.get((carrier, group))
        if arm is None:
            arm = self._arms[carrier, group] = _Arm(now)
        arm.add(latency_s, now)

    def forget(self, carrier: Carrier) -> None:
        """What was known of ``carrier`` is of another time (it was blocked, and is back)."""
        for key in [key for key in self._arms if key[0] is carrier]:
            del self._arms[key]

    def choose(
        self,
        facts: Facts | None,
        usable: Collection[Carrier],
        loads: Mapping[Carrier, Load],
        now: float,
    ) -> Choice:
        """The choice at ``now`` among ``usable`` carriers; without ``facts`` nothing is modelled.

        A carrier that is not usable stands in no order. The one in use keeps its place until one
        that loses ties to it is better by more than 2 ms, 2% of R and what chance may do.
        """
        carriers = [carrier for carrier in self._carriers if carrier in usable]
        rtt_s = 0.0 if facts is None else facts.rtt_s
        orders, explore = [], []
        small: dict[Carrier, float] = {}
        for group in range(GROUPS):
            costs = self._order(group, self._costs(group, carriers, facts, loads, now), rtt_s)
            orders.append(tuple(cost.carrier for cost in costs))
            explore.append(_worth_a_look(costs, rtt_s))
            small = small or {cost.carrier: cost.expected_s for cost in costs}
        streams = None if facts is None else streams_per_connection(facts)
        return Choice(tuple(orders), tuple(explore), streams, small)

    def _order(self, group: int, costs: list[_Cost], rtt_s: float) -> list[_Cost]:
        """Best first."""
        order = sorted(costs, key=lambda cost: cost.expected_s)
        for used in order:
            if used.carrier is self._first[group] and self._holds(used, order[0], rtt_s):
                order.remove(used)
                order.insert(0, used)
                break
        self._first[group] = order[0].carrier if order else None
        return order

    def _holds(self, used: _Cost, best: _Cost, rtt_s: float) -> bool:
        """Whether the carrier in use keeps its place; one that wins ties need not be better."""
        rank = self._carriers.index
        noise_s = 2 * sqrt(used.noise_s**2 + best.noise_s**2)
        margin_s = max(_MARGIN_S, _MARGIN * rtt_s, noise_s)
        return (
            rank(used.carrier) <= rank(best.carrier)
            and used.expected_s - best.expected_s <= margin_s
        )

    def _costs(
        self,
        group: int,
        carriers: Sequence[Carrier],
        facts: Facts | None,
        loads: Mapping[Carrier, Load],
        now: float,
    ) -> list[_Cost]:
        """What is expected of each: the model's word and the measured one."""
        rtt_s = 0.0 if facts is None else facts.rtt_s
        modelled: dict[Carrier, float] = {}
        weights: dict[Carrier, float] = {}
        base = total = 0.0
        for carrier in carriers:
            load = loads.get(carrier, Load())
            modelled[carrier] = 0.0 if facts is None else expected_s(carrier, facts, load, group)
            arm = self._arms.get((carrier, group))
            if arm is None:
                continue
            arm.decay(now)
            weight = weights[carrier] = arm.precision(max(rtt_s / 2, arm.mean_s / 4))
            base += weight * (arm.mean_s - modelled[carrier])
            total += weight
        costs = []
        for carrier, model_s in modelled.items():
            prior = 1 / max(_PRIOR_SD_S, _PRIOR_SD * rtt_s, model_s / 2) ** 2
            weight = weights.get(carrier, 0.0)
            measured_s = self._arms[carrier, group].mean_s - base / total if weight else 0.0
            both = prior + weight
            expected = (prior * model_s + weight * measured_s) / both
            costs.append(_Cost(carrier, expected, 1 / sqrt(both), sqrt(weight) / both))
        return costs


def _worth_a_look(order: Sequence[_Cost], rtt_s: float) -> tuple[Carrier, ...]:
    """The carriers within two errors of the best, unless looking would cost too much."""
    if not order:
        return ()
    best_s = order[0].expected_s
    affordable_s = best_s + max(_LOOK_S, _LOOK * (rtt_s + best_s))
    return tuple(
        cost.carrier
        for cost in order[1:]
        if cost.expected_s - 2 * cost.error_s < best_s and cost.expected_s <= affordable_s
    )
