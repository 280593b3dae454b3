"""What a conversation costs through a relay as differences, plain and by gzip: bytes, CPU, time.

    python bench/conversation.py [--only bytes|time|table] [--repeats 3] [--json]

Plays the 40 requests of a chat (English, Chinese) and of an agent, which grow from 2 to 300 KB,
through a real edge and a real relay over a real line (tests/netns: root is needed), and prints

* bytes of the request bodies on the leg, and of all packets that the edge sent; of these also what
  the same requests with hardly a body would have cost;
* CPU of both processes for 100 KB of body, beyond that of the same requests with hardly a body;
* over 300 ms, the time to the first byte of the last request: as a difference after the 39 before
  it, and plain and by gzip on a connection that has carried little;
* what the default level makes of one body by itself (needs no root).
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edged.compress import encoder
from policies.schema import Compression
from tests.harness import texts
from tests.netns.lab import LINE_A, LineSpec
from tests.netns.relay_site import RelaySite

FAR_RTT_S = 0.3
KINDS: dict[str, Callable[[], list[bytes]]] = {
    "english": lambda: texts.chat("english"),
    "chinese": lambda: texts.chat("chinese"),
    "agent": texts.agent,
}
WAYS = ("differences", "plain", "gzip")
HARDLY_A_BODY = b'{"messages":[{"role":"user","content":"?"}],"stream":true}'


@dataclass
class Played:
    """What a conversation cost."""

    body_bytes: int
    """Of the requests as the client meant them."""
    leg_bytes: int
    """Of their bodies between edge and relay."""
    line_bytes: int
    """Of all packets from the edge."""
    edge_cpu_s: float
    relay_cpu_s: float
    first_byte_s: float
    """Of the last request."""


def site_of(directory: Path, lines: Sequence[LineSpec], **more: Any) -> RelaySite:
    """An edge whose upstreams send through the relay as differences, or plain."""
    upstreams = {
        "differences": {"protocols": ("h2",)},
        "plain": {"protocols": ("h2",), "policy": {"compression": {"requests": False}}},
    }
    return RelaySite(directory, lines=lines, upstreams=upstreams, **more)


def ask(site: RelaySite, way: str, body: bytes, key: str) -> float:
    """One request; seconds to its first byte."""
    fields = {
        "authorization": f"Bearer {key}",
        "content-type": "application/json",
        "x-lab-tokens": "5",
        "x-lab-rate": "0",
    }
    if way == "gzip":
        body = gzip.compress(body, 6)
        fields["content-encoding"] = "gzip"
    upstream = "differences" if way == "differences" else "plain"
    began = time.monotonic()
    response = site.edged.open(
        f"/{upstream}/v1/chat/completions", "POST", body=body, headers=fields
    )
    took = time.monotonic() - began
    said = response.read()
    response.leave()
    if response.status != 200 or not said.rstrip().endswith(b"[DONE]"):
        raise SystemExit(f"{way}: {response.status} {said[-200:]!r}")
    return took


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def play(site: RelaySite, way: str, bodies: Sequence[bytes], key: str) -> Played:
    """All of them, one after the other."""

    def state() -> tuple[int, int, float, float]:
        relay = site.edged.status()["relays"][0]
        sent = sum(line["up"]["offered"]["bytes"] for line in site.lab.counters().values())
        saved = relay["bodies_plain"] - relay["bodies_coded"]
        return saved, sent, _cpu_s(site.edged.process.pid), _cpu_s(site.relay.pid)

    before = state()
    took = [ask(site, way, body, key) for body in bodies]
    saved, sent, edge, relay = (b - a for a, b in zip(before, state(), strict=True))
    given = sum(len(gzip.compress(b, 6)) if way == "gzip" else len(b) for b in bodies)
    plain = sum(map(len, bodies))
    return Played(plain, given - saved, sent, edge, relay, took[-1])


def measure_bytes(note: Callable[[str, dict[str, Any]], None], turns: int | None = None) -> None:
    """Each conversation each way over a line of 60 ms."""
    with (
        tempfile.TemporaryDirectory() as directory,
        site_of(Path(directory), [LINE_A]) as site,
        site.lab.edge,
    ):
        for way in WAYS:
            ask(site, way, HARDLY_A_BODY, "first")
        for kind, make in KINDS.items():
            bodies = make()[:turns]
            bare = play(site, "plain", [HARDLY_A_BODY] * len(bodies), "bare")
            played = {way: play(site, way, bodies, kind) for way in WAYS}
            note(f"{kind}: bare", asdict(bare))
            for way, one in played.items():
                hundreds = one.body_bytes / 1e5
                figures = {
                    **asdict(one),
                    "line_bytes_for_bodies": one.line_bytes - bare.line_bytes,
                    "edge_ms_per_100_kb": 1e3 * (one.edge_cpu_s - bare.edge_cpu_s) / hundreds,
                    "relay_ms_per_100_kb": 1e3 * (one.relay_cpu_s - bare.relay_cpu_s) / hundreds,
                }
                note(f"{kind}: {way}", figures)
            best = played["differences"]
            for other in ("plain", "gzip"):
                than = played[other]
                note(
                    f"{kind}: {other} / differences",
                    {
                        "leg": than.leg_bytes / best.leg_bytes,
                        "line": than.line_bytes / best.line_bytes,
                        "line_for_bodies": (than.line_bytes - bare.line_bytes)
                        / (best.line_bytes - bare.line_bytes),
                    },
                )


def measure_time(note: Callable[[str, dict[str, Any]], None], repeats: int) -> None:
    """The last request's first byte over 300 ms."""
    bodies = KINDS["english"]()
    took: dict[str, list[float]] = {way: [] for way in (*WAYS, "plain, warm")}
    for _ in range(repeats):
        with (
            tempfile.TemporaryDirectory() as directory,
            site_of(Path(directory), [LineSpec("far", rtt_s=FAR_RTT_S)]) as site,
            site.lab.edge,
        ):
            for way in ("plain", "gzip"):
                ask(site, way, HARDLY_A_BODY, "first")
                took[way].append(ask(site, way, bodies[-1], "cold"))
                site.edged.stop()
                site.start_edged()
                site.until_connected()
            took["differences"].append(play(site, "differences", bodies, "d").first_byte_s)
            took["plain, warm"].append(play(site, "plain", bodies[-5:], "p").first_byte_s)
    base = statistics.median(took["differences"])
    for way, all_s in took.items():
        middle = statistics.median(all_s)
        figures = {"first_byte_s": middle, "worst_s": max(all_s)}
        note(f"first byte: {way}", figures | {"rtts_more": (middle - base) / FAR_RTT_S})


def measure_table(note: Callable[[str, dict[str, Any]], None]) -> None:
    """One body by itself, by the codings that a policy may pick."""
    level = Compression().level
    prose = texts.chinese_prose()
    escaped = json.dumps(prose.decode()).encode()[: len(prose)]
    samples = {
        "Python source, 50 KB": texts.python_source(),
        "Chinese prose, 100 KB": [prose],
        "Chinese prose, escaped": [escaped],
        "API JSON, 200 KB": [texts.api_json()],
    }
    for name, bodies in samples.items():
        for coding in ("zstd", "br"):
            saved, cpu_s = zip(*(_coded(coding, level, body) for body in bodies), strict=True)
            note(
                f"{name}, {coding} {level}",
                {
                    "saved_percent": 100 * statistics.median(saved),
                    "least": 100 * min(saved),
                    "most": 100 * max(saved),
                    "cpu_ms": 1e3 * statistics.median(cpu_s),
                },
            )


def _coded(coding: str, level: int, body: bytes) -> tuple[float, float]:
    """The share that is saved, and CPU in s: the least of five."""
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        codec = encoder(coding, level, len(body))
        size = len(codec.feed(body)) + len(codec.finish())
        best = min(best, time.process_time() - began)
    return 1 - size / len(body), best


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=("bytes", "time", "table"))
    parser.add_argument("--repeats", type=int, default=3, help="of the times")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}

    def note(name: str, figures: dict[str, Any]) -> None:
        results[name] = figures
        if not arguments.json:
            said = ", ".join(
                f"{k} {v:,.0f}" if isinstance(v, int) else f"{k} {v:,.3f}"
                for k, v in figures.items()
            )
            print(f"{name:<32} {said}", flush=True)

    if arguments.only in (None, "table"):
        measure_table(note)
    if arguments.only in (None, "bytes"):
        measure_bytes(note)
    if arguments.only in (None, "time"):
        measure_time(note, arguments.repeats)
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
