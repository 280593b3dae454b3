"""The traffic of `bench/chaos.py`: a mix of requests at a rate, and streams that never pause.

Each request knows what its answer must be. What is asked for is drawn from the seed, too.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from collections.abc import Sequence

from bench.chaos_verdict import Asked
from bench.wan_traffic import Client, Shot, conversation, noise
from edged.lab.resources import content_sha256

SMALL_LIMIT_S, LARGE_LIMIT_S = 40.0, 90.0
UPLOAD_BYTES = 200_000
_MIX = {"get": 40, "post": 24, "keyed": 20, "text": 5, "download": 6, "upload": 4, "cut": 1}
"""Of 100 requests."""
_DOWNLOADS = (1_000, 20_000, 100_000, 300_000)
_EVENTS_PER_S = 4.0
_TEXT_BYTES = 20_000


class Traffic:
    """All that is asked for, and what came of it."""

    def __init__(self, client: Client, upstreams: dict[str, Sequence[str]], seed: int) -> None:
        """``upstreams``: the protocols of each."""
        self._client = client
        self._upstreams = upstreams
        self._rng = random.Random(f"chaos traffic/{seed}")
        self._open: set[asyncio.Task[None]] = set()
        self._documents = [conversation(UPLOAD_BYTES, number) for number in range(4)]
        self._documents.append(noise(UPLOAD_BYTES))
        self._digests = [hashlib.sha256(one).hexdigest() for one in self._documents]
        self.asked: list[Asked] = []

    @property
    def pending(self) -> int:
        """Requests and streams that are not over."""
        return len(self._open)

    async def requests(self, rate: float, begun: float, until: float) -> None:
        """So many a second, each when it is due, over the upstreams in turn."""
        names = list(self._upstreams)
        kinds = self._rng.choices(list(_MIX), list(_MIX.values()), k=int((until - begun) * rate))
        for number, kind in enumerate(kinds):
            due = begun + number / rate
            await asyncio.sleep(due - time.monotonic())
            self._spawn(self._request(kind, names[number % len(names)], number, due))

    async def streams(self, count: int, begun: float, until: float) -> None:
        """So many at any time, over the upstreams in turn."""
        names = list(self._upstreams)
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                rng = random.Random(f"{self._rng.random()}")
                group.create_task(
                    self._stream(names[number % len(names)], number, rng, begun, until)
                )

    async def finish(self, limit_s: float) -> None:
        """Wait for all that is open; what is left then is given up, and shows as open."""
        if self._open:
            await asyncio.wait(self._open, timeout=limit_s)
        self._client.close()

    def _spawn(self, work) -> None:  # type: ignore[no-untyped-def]  # a coroutine
        task = asyncio.ensure_future(work)
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    def _ask(self, kind: str, upstream: str, number: int, due: float, **more) -> Asked:  # type: ignore[no-untyped-def]  # fields of Asked
        asked = Asked(
            Shot(kind, f"{kind}-{number}", due),
            kind,
            udp_only=set(self._upstreams[upstream]) == {"h3"},
            **{"repeatable": True, "limit_s": SMALL_LIMIT_S, **more},
        )
        self.asked.append(asked)
        return asked

    async def _request(self, kind: str, upstream: str, number: int, due: float) -> None:
        rng = self._rng
        if kind == "get":
            asked = self._ask(kind, upstream, number, due)
            await self._carry_out(asked, "GET", f"/{upstream}/echo")
            _check_echo(asked, b"")
        elif kind in ("post", "keyed"):
            asked = self._ask(kind, upstream, number, due, repeatable=kind == "keyed")
            body = json.dumps({"pad": "x" * rng.randint(10, 2000)}).encode()
            await self._carry_out(asked, "POST", f"/{upstream}/echo", body)
            _check_echo(asked, body)
        elif kind == "text":
            asked = self._ask(kind, upstream, number, due, sha256=_text_sha256())
            await self._carry_out(asked, "GET", f"/{upstream}/text/{_TEXT_BYTES}")
        elif kind == "download":
            size = rng.choice(_DOWNLOADS)
            more = {"length": size, "sha256": content_sha256(size), "limit_s": LARGE_LIMIT_S}
            asked = self._ask(kind, upstream, number, due, **more)
            await self._carry_out(asked, "GET", f"/{upstream}/bytes/{size}")
        elif kind == "upload":
            which = rng.randrange(len(self._documents))
            keyed = rng.random() < 0.5
            asked = self._ask(kind, upstream, number, due, repeatable=keyed, limit_s=LARGE_LIMIT_S)
            body = self._documents[which]
            await self._carry_out(asked, "POST", f"/{upstream}/upload", body)
            _check_upload(asked, self._digests[which])
        else:
            size, framed = rng.randint(1, 50_000), rng.randint(0, 1)
            asked = self._ask(kind, upstream, number, due, length=2 * size)
            await self._carry_out(asked, "GET", f"/{upstream}/cut?n={size}&framed={framed}")

    async def _stream(
        self, upstream: str, number: int, rng: random.Random, begun: float, until: float
    ) -> None:
        await asyncio.sleep(begun + number / 10 - time.monotonic())
        turn = 0
        while (now := time.monotonic()) < until:
            count = rng.randint(20, 160)
            limit_s = count / _EVENTS_PER_S + SMALL_LIMIT_S
            asked = self._ask(
                "stream", upstream, number + 1000 * turn, now, tokens=count, limit_s=limit_s
            )
            target = f"/{upstream}/sse?n={count}&rate={_EVENTS_PER_S}"
            work = self._carry_out(asked, "GET", target)
            self._spawn(work)
            # Over before its time, or longer than it may last: the next begins.
            while asked.shot.ended is None:
                await asyncio.sleep(0.1)
            if not asked.shot.ok:
                await asyncio.sleep(0.5)
            turn += 1

    async def _carry_out(self, asked: Asked, method: str, target: str, body: bytes = b"") -> None:
        shot = asked.shot
        headers = {"accept-encoding": "identity"}
        if method == "POST":
            headers["content-type"] = "application/json"
            if asked.repeatable:
                headers["idempotency-key"] = shot.id
        if asked.kind == "stream":
            headers["accept"] = "text/event-stream"
        await self._client.shoot(shot, method, target, body, headers, asked.limit_s)
        asked.got = len(shot.body), hashlib.sha256(shot.body).hexdigest()
        if shot.ok and asked.kind not in ("get", "post", "keyed", "upload"):
            shot.body = b""


def _check_echo(asked: Asked, body: bytes) -> None:
    """The origin says what it got."""
    if asked.shot.ok:
        _compare(asked, hashlib.sha256(body).hexdigest())


def _check_upload(asked: Asked, sha256: str) -> None:
    if asked.shot.ok:
        _compare(asked, sha256)


def _compare(asked: Asked, sha256: str) -> None:
    try:
        said = json.loads(asked.shot.body)["sha256"]
    except (ValueError, KeyError):
        said = "no JSON"
    asked.sha256, asked.got = sha256, (asked.got[0], said)
    asked.shot.body = b""


def _text_sha256() -> str:
    """Of what `edged.lab.resources.text` answers."""
    rows = [{"id": i, "name": f"item {i}", "price": i * 7 % 100} for i in range(50)]
    document = json.dumps({"rows": rows * max(1, _TEXT_BYTES // 2200)}, ensure_ascii=False)
    return hashlib.sha256(document.encode()).hexdigest()
