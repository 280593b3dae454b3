"""Row "random" of `bench/flows.py`: flows of random sizes, methods and bodies through a relay,
while its lines are killed, restored and impaired.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import random
import re
import ssl
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from bench.chaos_schedule import LINE_KINDS, Health, Kind
from bench.chaos_watch import Holding, holding, left_behind
from bench.flows_client import Ask, Got, fetch
from bench.wan_rows import WIDE
from bench.wan_traffic import conversation, noise, plainly, tunnelled
from edged.lab.resources import content_sha256
from tests.netns.origin_side import PORT
from tests.netns.relay_site import RelaySite

BUG = re.compile(r"Traceback|a bug in edged.*")
"""What must be in no log."""
QUIET_S = 4.0
"""At the beginning nothing happens."""
DARK_S = 3.0
"""The longest without any line."""
_LASTS_S, _REST_S = (0.7, 6.0), (0.5, 6.0)
_PACE = 3.6
"""Flows a second: 1,000 in five minutes."""
_LIMIT_S = 90.0
_LEFT_S = 45.0
_MOST_BYTES = 3 << 20


@dataclass(frozen=True, slots=True)
class Event:
    """Something is the matter with a line for a while."""

    at_s: float
    until_s: float
    line: str
    kind: Kind

    def __str__(self) -> str:
        return f"{self.at_s:6.2f} to {self.until_s:6.2f} s {self.line} {self.kind.name}"


def events(seed: int, seconds: float, lines: Sequence[str] = ("a", "b")) -> list[Event]:
    """What happens to all lines, by beginning; the same for the same arguments."""
    rng = random.Random(f"flows/{seed}")
    kinds = [kind for kind in LINE_KINDS if kind.direction != "*" and len(kind.changes)]
    kinds = [kind for kind in kinds if kind.name not in ("flap", "all lines dead")]
    found: list[Event] = []
    for line in lines:
        at = QUIET_S + rng.uniform(0, 3)
        while True:
            at += rng.uniform(*_REST_S)
            until = min(at + rng.uniform(*_LASTS_S), seconds)
            if at >= seconds - 1:
                break
            kind = rng.choice([*kinds, *(k for k in kinds if k.health is Health.DEAD)])
            if kind.health is Health.DEAD:
                until = _not_too_dark(at, until, [e for e in found if e.line != line])
            if until > at:
                found.append(Event(at, until, line, kind))
                at = until
    return sorted(found, key=lambda event: event.at_s)


def _not_too_dark(at: float, until: float, others: Sequence[Event]) -> float:
    """When an event that kills a line must end so that no more than `DARK_S` are without any."""
    for other in others:
        if other.kind.health is Health.DEAD:
            begin = max(at, other.at_s)
            if min(until, other.until_s) - begin > DARK_S:
                until = begin + DARK_S
    return until


# -- what is asked for -----------------------------------------------------------------------------


def asks(seed: int) -> Iterator[Ask]:
    """Requests without end."""
    rng = random.Random(f"flows/{seed}/asks")
    blob = noise(2 * _MAX_BLOB)
    texts = [conversation(size, size) for size in (3_000, 20_000, 60_000, 61_000, 200_000)]
    for number in itertools.count():
        make = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
        ask = make(rng, f"f{seed}-{number}", partial(_some_body, rng, blob, texts))
        ask.limit_s = _LIMIT_S
        yield ask


_MAX_BLOB = _MOST_BYTES


def _size(rng: random.Random, most: int = _MOST_BYTES) -> int:
    """Mostly small, sometimes large, now and then nothing."""
    return 0 if rng.random() < 0.05 else int(most ** rng.random())


def _some_body(rng: random.Random, blob: bytes, texts: Sequence[bytes], most: int) -> bytes:
    size = _size(rng, most)
    if rng.random() < 0.4:
        text = rng.choice(texts)
        return (text * (size // len(text) + 1))[:size]
    at = rng.randrange(len(blob) - size)
    return blob[at : at + size]


def _sent(rng: random.Random, body: bytes) -> dict[str, Any]:
    """How a body goes: framed or not, with a key of a client or without."""
    fields = {"content-type": rng.choice(["application/json", "application/octet-stream"])}
    if rng.random() < 0.5:
        fields["authorization"] = f"Bearer {rng.randrange(3)}"
    return {"body": body, "fields": fields, "chunked": bool(body) and rng.random() < 0.25}


def _download(rng: random.Random, id_: str, body: Any) -> Ask:
    size = _size(rng)
    return Ask(id_, "download", "GET", f"/bytes/{size}", sha256=content_sha256(size))


def _head(rng: random.Random, id_: str, body: Any) -> Ask:
    return Ask(id_, "head", "HEAD", f"/bytes/{_size(rng)}")


def _upload(rng: random.Random, id_: str, body: Any) -> Ask:
    sent = _sent(rng, body(_MOST_BYTES))
    digest = hashlib.sha256(sent["body"]).hexdigest()
    return Ask(
        id_, "upload", rng.choice(["POST", "PUT"]), "/upload", keeps=True,
        right=lambda answer: json.loads(answer)["sha256"] == digest, **sent,
    )  # fmt: skip


def _echo(rng: random.Random, id_: str, body: Any) -> Ask:
    method = rng.choice(["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY"])
    sent = _sent(rng, b"" if method == "GET" else body(20_000))
    digest = hashlib.sha256(sent["body"]).hexdigest()

    def right(answer: bytes) -> bool:
        said = json.loads(answer)
        return (said["method"], said["sha256"]) == (method, digest)

    return Ask(id_, "echo", method, "/echo", keeps=True, right=right, **sent)


def _stream(rng: random.Random, id_: str, body: Any) -> Ask:
    count, size = rng.randint(5, 120), int(500 ** rng.random())

    def right(answer: bytes) -> bool:
        said = [json.loads(event[6:]) for event in answer.split(b"\n\n")[:-1]]
        return [event["i"] for event in said] == list(range(count)) and all(
            event["pad"] == "x" * size for event in said
        )

    target = f"/sse?n={count}&rate=20&size={size}"
    return Ask(id_, "stream", "GET", target, keeps=True, right=right)


def _slow(rng: random.Random, id_: str, body: Any) -> Ask:
    sent = _sent(rng, body(5_000))
    return Ask(id_, "slow", "POST", f"/slow?s={rng.uniform(0, 6):.1f}", **sent)


def _trailers(rng: random.Random, id_: str, body: Any) -> Ask:
    count = rng.randint(1, 300)
    sha256 = hashlib.sha256(b"".join(b"part %d\n" % n for n in range(count))).hexdigest()
    fields = {"te": "trailers"}
    return Ask(id_, "trailers", "GET", f"/trailers?n={count}", sha256=sha256, fields=fields)


def _tunnel(rng: random.Random, id_: str, body: Any) -> Ask:
    ask = (_download if rng.random() < 0.5 else _upload)(rng, id_, body)
    ask.kind, ask.tunnelled = f"tunnel {ask.kind}", True
    return ask


_KINDS = {
    _download: 25, _head: 3, _upload: 25, _echo: 20, _stream: 10, _slow: 6, _trailers: 3,
    _tunnel: 8,
}  # fmt: skip


# -- a run -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Result:
    """Of one run."""

    seed: int
    happened: list[Event]
    got: list[Got]
    begun: float = 0.0
    executions: dict[str, int] = field(default_factory=dict)
    left: dict[str, list[str]] = field(default_factory=dict)
    log: str = ""

    def misses(self) -> list[str]:
        """What should not be."""
        found = [f"due {got.began - self.begun:.2f} {got}" for got in self.got if not got.fine]
        for got in self.got:
            count = self.executions.get(got.ask.id, 0)
            if count != 1:
                found.append(f"{got.ask.id} ({got.ask.kind}) was carried out {count} times")
        found += [f"left on the {side}: {one}" for side, all_ in self.left.items() for one in all_]
        found += sorted({f"in a log: {line}" for line in BUG.findall(self.log)})
        return found

    def told(self) -> str:
        """Figures for people."""
        took = sorted(got.took_s for got in self.got if got.fine)
        kinds = Counter(got.ask.kind for got in self.got)
        up = sum(len(got.ask.body) for got in self.got)
        down = sum(got.size for got in self.got)
        return (
            f"seed {self.seed}: {len(self.got)} flows, {up / 1e6:.0f} MB up, {down / 1e6:.0f} MB "
            f"down, {len(self.happened)} events; right {len(took)}, median "
            f"{took[len(took) // 2]:.2f} s, slowest {took[-1]:.1f} s; "
            + ", ".join(f"{kind} {count}" for kind, count in kinds.items())
        )


class RelaySide:
    """The relay as `bench.chaos_watch` asks a daemon."""

    def __init__(self, site: RelaySite) -> None:
        self._site = site

    @property
    def usage(self) -> psutil.Process:
        """Its process."""
        return psutil.Process(self._site.relay.pid)

    def status(self) -> dict[str, Any]:
        """Its /status."""
        return self._site.relay_status()


def run(directory: Path, seed: int, seconds: float, left_s: float = _LEFT_S) -> Result:
    """Flows for so long, then what is left of them after at most ``left_s``."""
    happened = events(seed, seconds)
    with RelaySite(directory, lines=WIDE, seed=seed) as site:
        with site.lab.edge:
            result = asyncio.run(_play(site, seed, seconds, happened, left_s))
        result.executions = site.executions()
        result.log = site.edged.log + (directory / "relay.log").read_text(errors="replace")
    return result


async def _play(
    site: RelaySite, seed: int, seconds: float, happened: list[Event], left_s: float
) -> Result:
    context = ssl.create_default_context(cafile=str(site.certificates.ca_file))
    plain = plainly("127.0.0.1", site.edged.port)
    tunnel = tunnelled(site.edged.port, f"e1.lab.test:{PORT}", context)
    result = Result(seed, happened, [], time.monotonic())
    rng = random.Random(f"flows/{seed}/times")

    async def one(ask: Ask) -> None:
        way, prefix = (tunnel, "") if ask.tunnelled else (plain, "/llm")
        result.got.append(await fetch(ask, way, prefix))

    happening = asyncio.ensure_future(_happen(site, happened, result.begun))
    relay, warm = RelaySide(site), list[Holding]()
    async with asyncio.TaskGroup() as group:
        for ask in asks(seed):
            group.create_task(one(ask))
            if len(warm) < 2 and time.monotonic() > result.begun + QUIET_S:
                warm = [await asyncio.to_thread(holding, side) for side in (site.edged, relay)]  # type: ignore[arg-type]  # as much of one as is asked
            await asyncio.sleep(rng.expovariate(_PACE))
            if time.monotonic() > result.begun + seconds:
                break
    await happening
    for name, side, was in zip(("edge", "relay"), (site.edged, relay), warm, strict=True):
        _, result.left[name] = await left_behind(side, was, left_s, len(site.lab.lines))  # type: ignore[arg-type]  # the same
    said = (await asyncio.to_thread(relay.status))["relay"]
    for key in ("flows", "journal_bytes"):
        if said[key]:
            result.left["relay"].append(f"{key}: {said[key]}")
    return result


async def _happen(site: RelaySite, happened: list[Event], begun: float) -> None:
    moments = [(event.at_s, 1, event) for event in happened]
    moments += [(event.until_s, 0, event) for event in happened]
    for at_s, begins, event in sorted(moments, key=lambda moment: moment[:2]):
        await asyncio.sleep(begun + at_s - time.monotonic())
        usual = asdict(site.lab.lines[event.line].impairment("up"))
        changes = dict(event.kind.changes)
        if "delay_s" in changes:
            changes["delay_s"] += usual["delay_s"]
        if begins:
            await asyncio.to_thread(site.lab.set, event.line, event.kind.direction, **changes)
        else:
            await asyncio.to_thread(site.lab.restore, event.line)
