"""The demo's clients: small JSON requests at a steady rate and token streams, through the proxy.

Requests start by the clock whether or not earlier ones have ended, so that a stall is seen as one.
Every answer is checked word by word. What counts as what:

* a request fails when its answer is not complete, right and 200;
* a stream that breaks is no failed request: on a direct path it cannot outlive its line (README).
  It is counted in ``streams_broken``, and the words that never came in ``tokens_lost``.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from edged.lab.chat import word
from edged.lab.client import TROUBLES, Client

_WORDS = 8
_ANSWER = "".join(word(i) for i in range(_WORDS))
_QUESTION = [{"role": "user", "content": "What is the fastest way out of here? " * 20}]
_TIMEOUT_S = 30.0
_CHAT = "/v1/chat/completions"
_KEPT = 20_000


class Done(NamedTuple):
    """One request that was answered."""

    started_at: float
    ended_at: float
    source: str
    """The source address of the line that carried it."""
    endpoint: str


@dataclass(slots=True)
class Tally:
    """What the clients saw."""

    requests: int = 0
    failed: int = 0
    longest_s: float = 0.0
    streams: int = 0
    streams_broken: int = 0
    tokens: int = 0
    tokens_lost: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    done: deque[Done] = field(default_factory=lambda: deque(maxlen=_KEPT))


class Traffic:
    """Load on ``base_url``, whose ``/v1`` is the API, until `stop`."""

    def __init__(
        self,
        base_url: str,
        *,
        requests_per_s: float = 20.0,
        streams: int = 2,
        stream_tokens: int = 40,
        tokens_per_s: float = 20.0,
    ) -> None:
        self.tally = Tally()
        self._interval_s = 1 / requests_per_s
        self._streams = streams
        self._stream_tokens = stream_tokens
        self._tokens_per_s = tokens_per_s
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: list[tuple[Callable[[Done], bool], asyncio.Future[Done]]] = []
        self._client = Client(base_url, _TIMEOUT_S)

    def start(self) -> None:
        """Begin."""
        self._spawn(self._requests())
        for index in range(self._streams):
            self._spawn(self._stream_after_stream(index))

    @property
    def in_flight(self) -> int:
        """Requests and streams not yet over."""
        return len(self._tasks)

    async def completion(self, wanted: Callable[[Done], bool]) -> Done:
        """The first wanted one of the requests answered from now on."""
        future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, future))
        return await future

    def _answered(self, done: Done) -> None:
        self.tally.done.append(done)
        waiting, self._waiting = self._waiting, []
        for wanted, future in waiting:
            if future.done():
                continue  # nobody waits any more
            if wanted(done):
                future.set_result(done)
            else:
                self._waiting.append((wanted, future))

    async def stop(self, patience_s: float) -> None:
        """Start nothing new, wait for what runs; what does not end in time counts as failed."""
        self._stopping.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience_s)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._client.close()

    def _spawn(self, work: asyncio._CoroutineLike[None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pause(self, seconds: float) -> None:
        """Sleep, or less when the end comes."""
        if seconds > 0:
            try:
                await asyncio.wait_for(self._stopping.wait(), seconds)
            except TimeoutError:
                return

    async def _requests(self) -> None:
        loop = asyncio.get_running_loop()
        start, number = loop.time(), 0
        while not self._stopping.is_set():
            self._spawn(self._request())
            number += 1
            await self._pause(start + number * self._interval_s - loop.time())

    async def _request(self) -> None:
        tally, loop = self.tally, asyncio.get_running_loop()
        started_at = loop.time()
        trouble: str | None = "unfinished at the end"
        tally.requests += 1
        try:
            async with self._client.post(
                _CHAT,
                {"model": "lab", "messages": _QUESTION},
                {"x-lab-tokens": str(_WORDS), "x-lab-rate": "0"},
            ) as response:
                trouble = _trouble(response.status, await response.read())
            if trouble is None:
                source = response.headers.get("x-lab-client", "")
                endpoint = response.headers.get("x-lab-endpoint", "")
                self._answered(Done(started_at, loop.time(), source, endpoint))
        except TROUBLES as error:
            trouble = type(error).__name__
        finally:
            tally.longest_s = max(tally.longest_s, loop.time() - started_at)
            if trouble is not None:
                tally.failed += 1
                tally.errors[trouble] += 1

    async def _stream_after_stream(self, index: int) -> None:
        duration_s = self._stream_tokens / self._tokens_per_s
        await self._pause(duration_s * index / max(1, self._streams))
        while not self._stopping.is_set():
            got = await self._stream()
            if got < self._stream_tokens:
                await self._pause(0.2)

    async def _stream(self) -> int:
        """One stream; returns how many words came, in order and once."""
        tally, got = self.tally, 0
        tally.streams += 1
        trouble: str | None = "stream unfinished at the end"
        try:
            async with self._client.post(
                _CHAT,
                {"model": "lab", "messages": _QUESTION, "stream": True},
                {
                    "x-lab-tokens": str(self._stream_tokens),
                    "x-lab-rate": str(self._tokens_per_s),
                },
            ) as response:
                trouble = "stream cut short"
                async for line in response.lines():
                    if line == "data: [DONE]":
                        trouble = None
                    elif text := _words_of(line):
                        got += text == word(got)
        except TROUBLES as error:
            trouble = f"stream: {type(error).__name__}"
        finally:
            tally.tokens += got
            if trouble is not None or got < self._stream_tokens:
                tally.streams_broken += 1
                tally.tokens_lost += self._stream_tokens - got
                tally.errors[trouble or "stream: words lost or swapped"] += 1
        return got


def _trouble(status: int, body: bytes) -> str | None:
    """What is wrong with an answer, if anything."""
    if status != 200:
        return f"status {status}"
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return "not the expected JSON"
    return None if text == _ANSWER else "wrong words"


def _words_of(line: str) -> str:
    """The text in one line of a stream, if any."""
    if not line.startswith("data: {"):
        return ""
    try:
        choice = json.loads(line[6:])["choices"][0]
    except (ValueError, KeyError, IndexError):
        return ""
    return str(choice["delta"].get("content") or "")
