"""How closely a line is watched, and how often each probe runs then. The rules of when:
`probes.cadence`.
"""

from __future__ import annotations

import enum
import math

from policies.model import Kind
from policies.schema import Cadence

RECENT_ICMP_S = 0.4
ALONE_TCP_S = 0.2
MUTE_TCP_S = 0.5
ACTIVE_TCP_S = 1.0
DOUBT_PROBE_S = 0.5
DOUBT_HTTP_S = 3.0

_IDLE_TIMES = {Kind.ICMP: 2.0, Kind.TCP: 12.0, Kind.QUIC: 30.0, Kind.HTTP: 30.0}
"""How much rarer than by its policy a probe runs while its line is IDLE."""
_IDLE_MUTE_TIMES = _IDLE_TIMES | {Kind.ICMP: 15.0, Kind.TCP: 2.0}
"""The same on a path whose ICMP is not answered: connects get its bytes."""
_NONE: frozenset[Kind] = frozenset()
_ALONE = frozenset((Kind.ICMP, Kind.PING))


class Pace(enum.IntEnum):
    """How closely a line is watched."""

    IDLE = 0
    STANDBY = 1
    RECENT = 2
    DOUBTED = 3
    ACTIVE = 4
    ACTIVE_DOUBTED = 5
    STIRRED = 6


_DOUBT = (Pace.DOUBTED, Pace.ACTIVE_DOUBTED)


def period_s(
    kind: Kind,
    cadence: Cadence,
    pace: Pace,
    lacks: frozenset[Kind] = _NONE,
    *,
    udp_only: bool = False,
) -> float | None:
    """The time between two runs of a probe at a pace, uncapped; ``None``: never.

    ``lacks``: which of ICMP, PING and KERNEL (TCP_INFO; QUIC has none) say nothing on the path.
    ``udp_only``: its endpoint speaks nothing over TCP.
    """
    idle_s = {
        Kind.ICMP: cadence.icmp_s,
        Kind.PING: cadence.ping_idle_s,
        Kind.TCP: cadence.tcp_s,
        Kind.QUIC: cadence.quic_s,
        Kind.HTTP: cadence.http_s,
    }.get(kind)
    if idle_s is None:
        return None
    if pace is Pace.IDLE:
        times = _IDLE_MUTE_TIMES if Kind.ICMP in lacks else _IDLE_TIMES
        return idle_s * times.get(kind, 1.0)
    if kind is Kind.PING:
        if pace <= Pace.RECENT:
            return cadence.ping_s if pace is Pace.RECENT and Kind.ICMP in lacks else idle_s
        if pace is Pace.DOUBTED:
            return max(cadence.ping_active_s, DOUBT_PROBE_S)
        quic = pace is Pace.STIRRED and Kind.KERNEL in lacks
        return cadence.ping_active_s / 2 if quic else cadence.ping_active_s
    if kind is Kind.HTTP or (kind is Kind.QUIC and udp_only):
        # Where no connection is left to PING, only a request shows that a path is back end to end.
        return min(idle_s, DOUBT_HTTP_S) if pace in _DOUBT else idle_s
    if kind is Kind.ICMP:
        return min(
            idle_s,
            {
                Pace.STANDBY: idle_s,
                Pace.RECENT: RECENT_ICMP_S,
                Pace.DOUBTED: DOUBT_PROBE_S,
                Pace.STIRRED: cadence.icmp_active_s / 2,
            }.get(pace, cadence.icmp_active_s),
        )
    if kind is Kind.TCP:
        return min(idle_s, _connect_period_s(pace, lacks))
    return idle_s


def _connect_period_s(pace: Pace, lacks: frozenset[Kind]) -> float:
    mute, alone = Kind.ICMP in lacks, lacks >= _ALONE
    if pace is Pace.STIRRED:
        return ALONE_TCP_S / 2 if alone else ALONE_TCP_S
    if pace <= Pace.RECENT:
        return (MUTE_TCP_S if pace is Pace.RECENT else ACTIVE_TCP_S) if mute else math.inf
    if pace >= Pace.ACTIVE and alone:
        return ALONE_TCP_S
    return ACTIVE_TCP_S
