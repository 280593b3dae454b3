"""The rows of `bench/wan.py`: the lines, what happens to them, what is sent meanwhile, what is read
off, and the bar.

A row is data. Loss and delay of a line are per direction and round trip: ``loss`` hits packets each
way. Times of events vary with the seed, so that they meet probes and requests in every phase.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench import wan_figures as figures
from bench.wan_figures import Figures, Run
from bench.wan_traffic import Cuts, Documents, Flow, Steady, Stream, Thinkers, Upload
from tests.netns.impair import Burst
from tests.netns.lab import LINE_A, LINE_B, LineSpec
from tests.netns.site import PREFIX

ALL = ("edged", "haproxy", "envoy", "sing-box")
EDGED = ("edged",)


@dataclass(frozen=True, slots=True)
class Event:
    """At a time, and up to ``spread_s`` later, a line is changed; nothing to change: restored."""

    at_s: float
    line: str
    changes: dict[str, Any] = field(default_factory=dict)
    direction: str = "both"
    spread_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure's limits: of the median, and of the worst."""

    figure: str
    median: float | None
    worst: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One scenario."""

    key: str
    title: str
    flows: tuple[Flow, ...]
    events: tuple[Event, ...] = ()
    bars: tuple[Bar, ...] = ()
    read: tuple[Callable[[Run], Figures], ...] = ()
    """What is read off besides what is read off everywhere."""
    site: dict[str, Any] = field(default_factory=dict)
    peers: tuple[str, ...] = ALL
    lead_s: float = 1.0
    """Between the start of a peer and the first request."""
    seeds: int | None = None
    """Fewer than asked for, where a run is long."""
    span: tuple[float, float] | None = None
    """When bytes are counted besides, from the first request on."""
    prefix: str = PREFIX
    """What edged's upstream is found by."""
    cases: int = 0
    """Not flows and events, but as many cases of `bench.wan_attribution`."""

    @property
    def span_s(self) -> float:
        """Length of ``span``."""
        return self.span[1] - self.span[0] if self.span else 0.0

    @property
    def kills(self) -> bool:
        """Whether the first event silences something, wholly or for some packets."""
        return bool(self.events) and not self.events[0].changes.keys() & {
            "loss",
            "delay_s",
            "burst",
        }

    def times(self, seed: int) -> list[tuple[float, Event]]:
        """When each event happens in the run of a seed; events with no spread of their own move
        along with those before."""
        rng, moved, times = random.Random(f"{self.key}/{seed}"), 0.0, []
        for event in self.events:
            moved += rng.uniform(0, event.spread_s)
            times.append((event.at_s + moved, event))
        return times


RTT_A_S, RTT_B_S = LINE_A.rtt_s, LINE_B.rtt_s
DEAD = {"blackhole": True}
WARM_S, AFTER_S = 8.0, 8.0
STEADY = Steady("r", count=int((WARM_S + AFTER_S) * 20))
TWO_RTT_S = 2 * RTT_B_S
PER_LINE = (*(LineSpec(name, rtt_s=0.150, loss=0.02) for name in "ab"),)
"""For the steady state: 150 ms, 2% each way, both alike."""
WIDE = tuple(
    LineSpec(line.name, line.rtt_s, line.loss, both={"rate_bps": 40e6, "queue_bytes": 512 << 10})
    for line in (LINE_A, LINE_B)
)
"""For uploads: 40 Mbit/s."""


def no_failure(longest_median_s: float, longest_worst_s: float) -> tuple[Bar, ...]:
    """Of a line that dies somehow under 20 requests/s."""
    return (
        Bar("failed", 0, 0),
        Bar("longest", longest_median_s, longest_worst_s),
        Bar("doubled", 0, 0),
    )


BLACKHOLES = tuple(
    Row(key, title, (STEADY,), (Event(WARM_S, "a", DEAD, way),), no_failure(median, worst))
    for key, title, way, median, worst in (
        ("1", "A silently dead", "both", 0.6, 0.9),
        ("4a", "A dead upwards", "up", 0.6 + TWO_RTT_S, 0.9 + TWO_RTT_S),
        ("4b", "A dead downwards", "down", 0.6 + TWO_RTT_S, 0.9 + TWO_RTT_S),
    )
)
SELDOM = (
    Row(
        "2a",
        "1 request in 5 s, A dead for over 1 s",
        (Steady("r", rate=0.2, count=4),),
        (Event(5.3, "a", DEAD, spread_s=3.5),),
        (Bar("failed", 0, 0), Bar("first", 0.7, 0.7), Bar("touched", 0, 0)),
        (figures.first_after, figures.touched),
    ),
    Row(
        "2b",
        "1 request in 5 s, A dead for under 1 s",
        (Steady("r", rate=0.2, count=4),),
        (Event(9.05, "a", DEAD, spread_s=0.9),),
        (Bar("failed", 0, 0), Bar("first", 0.7, 0.7)),
        (figures.first_after,),
    ),
)
STREAM = Row(
    "3",
    "200 tokens at 20/s (edged: h3 to Caddy), A dead",
    (Steady("w", rate=1, count=3), Stream("s", start_s=4.0)),
    (Event(7.0, "a", DEAD, spread_s=3.0),),
    (Bar("failed", 0, 0), Bar("lost", 0, 0), Bar("again", 0, 0), Bar("gap", 0.9, 1.5)),
    (figures.streams,),
    site={"protocols": ("h3",), "caddy": True},
)
HOLES = (
    Row(
        "4c",
        "UDP dead on A (edged: h3, h2)",
        (STEADY,),
        (Event(WARM_S, "a", {"udp_blocked": True}),),
        no_failure(0.6 + TWO_RTT_S, 0.9 + TWO_RTT_S),
        site={"protocols": ("h3", "h2"), "caddy": True},
        peers=EDGED,
    ),
    Row(
        "4d",
        "UDP dead on both (edged: h3, h2)",
        (STEADY,),
        (
            Event(WARM_S, "a", {"udp_blocked": True}),
            Event(WARM_S, "b", {"udp_blocked": True}, spread_s=0),
        ),
        (Bar("failed", 0, 0), Bar("longest", 0.6 + TWO_RTT_S, 1.0 + TWO_RTT_S)),
        site={"protocols": ("h3", "h2"), "caddy": True},
        peers=EDGED,
    ),
    Row(
        "4e",
        "3 KB POSTs, packets over 1280 B vanish on A",
        (Steady("r", count=STEADY.count, body_bytes=3000),),
        (Event(WARM_S, "a", {"mtu_bytes": 1280}),),
        no_failure(0.6 + TWO_RTT_S, 0.9 + TWO_RTT_S),
    ),
    Row(
        "4f",
        "20 KB answers over h3 alone, packets over 1280 B vanish on A",
        (Steady("r", method="GET", target="/bytes/20000", count=STEADY.count),),
        (Event(WARM_S, "a", {"mtu_bytes": 1280}),),
        no_failure(0.6 + TWO_RTT_S, 0.9 + TWO_RTT_S)[:2],  # what is safe may be hedged
        site={"protocols": ("h3",), "caddy": True},
        peers=EDGED,
    ),
    Row(
        "4g",
        "UDP dead on A (edged: h3 alone)",
        (STEADY,),
        (Event(WARM_S, "a", {"udp_blocked": True}),),
        no_failure(0.6 + TWO_RTT_S, 0.9 + TWO_RTT_S),
        site={"protocols": ("h3",), "caddy": True},
        peers=EDGED,
    ),
)
WORSE_A = {"loss": 0.1, "delay_s": (RTT_A_S + 0.3) / 2}
BURSTS = {"burst": Burst(0.01 / 1.8, 0.01 / 0.2, step_s=0.01)}
"""Silence of 200 ms in the mean, one in 2 s."""
BROWN = (
    Row(
        "5a",
        "A: brown-out (10%, +300 ms)",
        (Steady("r", count=400),),
        (Event(WARM_S, "a", WORSE_A),),
        (
            Bar("failed", 0, 0),
            Bar("moved", 2.0, 2.0),
            Bar("p99 ratio", 1.25, None),
            Bar("doubled", 0, 2),
        ),
        (figures.moved, figures.against_b),
    ),
    Row(
        "5b",
        "A: bursts of 200 ms, one in 2 s",
        (Steady("r", count=400),),
        (Event(WARM_S, "a", BURSTS),),
        (Bar("failed", 0, 0), Bar("p99 ratio", 1.25, None)),
        (figures.moved, figures.against_b),
    ),
    Row(
        "5c",
        "A: dead and alive every 2 s, for 20 s",
        (Steady("r", count=600),),
        tuple(
            Event(WARM_S + 2.0 * n, "a", {} if n % 2 else DEAD, spread_s=0 if n else 0.5)
            for n in range(10)
        ),
        (Bar("failed", 0, 0), Bar("moves", 2, 2), Bar("p99 ratio", 1.25, None)),
        (figures.moved, figures.against_b),
    ),
    Row(
        "5d",
        "A: 1 s of 100 ms more (a false alarm)",
        (Steady("r", count=300),),
        (
            Event(WARM_S, "a", {"delay_s": RTT_A_S / 2 + 0.05}),
            Event(WARM_S + 1.0, "a", spread_s=0),
        ),
        (Bar("failed", 0, 0), Bar("longest", 0.5, 0.7)),
        (figures.moved,),
        peers=EDGED,
    ),
)
ALONE = (
    Row(
        "B",
        "B alone, for comparison",
        (Steady("r", count=400),),
        site={"lines": (LINE_B,)},
        peers=("edged", "direct"),
    ),
    Row(
        "B upload",
        "B alone, 10 MB upload (40 Mbit/s)",
        (Steady("w", rate=1, count=3), Upload("u", start_s=4.0)),
        read=(figures.uploads,),
        site={"lines": WIDE[1:]},
        peers=("edged", "direct"),
    ),
)
WHOSE_FAULT = Row(
    "6",
    "an endpoint of three dead, or a line under three: 40 cases",
    (),
    (),
    (Bar("wrong", 1, 1), Bar("failed", 0, 0)),
    site={"endpoints": 3},
    peers=EDGED,
    seeds=1,
    cases=40,
)
UPLOADS = (
    Row(
        "7a",
        "10 MB upload (40 Mbit/s), A dead at half",
        (Steady("w", rate=1, count=3), Upload("u", start_s=4.0)),
        (Event(5.4, "a", DEAD, spread_s=0.2),),
        (Bar("failed", 0, 0), Bar("upload ratio", 2.0, 2.0)),
        (figures.uploads, figures.upload_against_b),
        site={"lines": WIDE},
    ),
    *(
        Row(
            key,
            f"answers that the origin breaks off, {carrier}",
            (Cuts("c", target="", count=20),),
            (),
            (Bar("whole", 0, 0),),
            (figures.broken,),
            site={"protocols": (carrier,)},
            peers=EDGED,
            seeds=1,
        )
        for key, carrier in (("7b", "h1"), ("7c", "h2"), ("7d", "h3"))
    ),
)
STEADY_STATE = (
    Row(
        "8a",
        "2% each way, 150 ms, both lines: GETs",
        (Steady("r", method="GET", count=600),),
        (),
        (
            Bar("failed", 0, 0),
            Bar("p50 over RTT", 0.010, None),
            Bar("p99", 0.5, None),
            Bar("more", 0.05, None),
        ),
        (figures.steady_state,),
        site={"lines": PER_LINE, "protocols": ("h3", "h2", "h1")},
    ),
    *(
        Row(
            key,
            f"200 KB JSON uploads, {control} unless chosen"
            + (", endpoint takes zstd" if accepts else ""),
            (Documents("d", start_s=2.0),),
            (),
            (Bar("failed", 0, 0), Bar("document", 0.5 if accepts else 1.0, None)),
            (figures.documents,),
            site={
                "lines": PER_LINE,
                "protocols": ("h3", "h2", "h1"),
                "congestion": control,
                **({"accepts": accepts} if accepts else {}),
            },
            peers=EDGED if accepts else ALL,
        )
        for key, control, accepts in (
            ("8b", "bbr", ()),
            ("8c", "bbr", ("zstd",)),
            ("8d", "cubic", ()),
            ("8e", "cubic", ("zstd",)),
        )
    ),
)


def thinking(key: str, think_s: float, dies_at_s: float | None, seeds: int | None = None) -> Row:
    """20 requests at once to a model that thinks, over each carrier, and to one whose policy
    forbids replay."""
    carriers = ("h1", "h2", "h3")
    flows: list[Flow] = [
        Steady("w", target=f"/{name}/echo", rate=1, count=3) for name in (*carriers, "never")
    ]
    flows += [Thinkers(c, start_s=4.0, target=f"/{c}", think_s=think_s) for c in carriers]
    bars = [Bar("failed", 0, 0), Bar("doubled", 0, 0)]
    if dies_at_s is not None:
        flows.append(Thinkers("never", start_s=4.0, target="/never", think_s=think_s))
        bars = [Bar("failed", 0, 0), Bar("moved in", 1.0, 1.0), Bar("refused in", 1.0, 1.0)]
    return Row(
        key,
        f"60 think for {think_s:g} s"
        + (f", A dies at {dies_at_s:g} s" if dies_at_s else ", h1, h2 and h3"),
        tuple(flows),
        (Event(4.0 + dies_at_s, "a", DEAD),) if dies_at_s else (),
        tuple(bars),
        (figures.thinkers,),
        site={
            "upstreams": {
                **{carrier: {"protocols": (carrier,)} for carrier in carriers},
                "never": {"protocols": ("h2",), "policy": {"replay": "never"}},
            }
        },
        prefix="",
        peers=EDGED,
        seeds=seeds,
    )


ROWS: tuple[Row, ...] = (
    *ALONE,
    BLACKHOLES[0],
    *SELDOM,
    STREAM,
    *BLACKHOLES[1:],
    *HOLES,
    *BROWN,
    WHOSE_FAULT,
    *UPLOADS,
    *STEADY_STATE,
    thinking("10a", 60.0, None, seeds=1),
    thinking("10b", 60.0, 30.0, seeds=2),
    thinking("10c", 8.0, 4.0),
    Row(
        "11a",
        "nobody asks for anything, 90 s",
        (Steady("w", rate=1, count=2), Steady("e", start_s=110.0, rate=1, count=1)),
        (),
        (Bar("MB a day", 10, 10),),
        (figures.idle,),
        site={"protocols": ("h3", "h2", "h1")},
        peers=("edged", "haproxy", "envoy"),
        seeds=2,
        span=(20.0, 110.0),
    ),
    Row(
        "11b",
        "one waits for 20 s: probes",
        (Thinkers("t", start_s=2.0, target="", count=1, think_s=20.0),),
        (),
        (Bar("probes", 64.0, 64.0),),
        (figures.waiting,),
        site={"protocols": ("h3", "h2", "h1")},
        span=(3.0, 21.0),
        peers=EDGED,
    ),
)
