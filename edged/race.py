"""Attempts started one after another, the first success wins (RFC 8305, section 5)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
Attempt = Callable[[], Coroutine[Any, Any, T]]


class RaceLost(Exception):
    """Every attempt failed; ``errors`` holds their exceptions in the order of failing."""

    def __init__(self, errors: Sequence[Exception]) -> None:
        super().__init__("; ".join(str(e) for e in errors))
        self.errors = tuple(errors)


async def race(
    attempts: Sequence[Attempt[T]],
    delay_s: float,
    dispose: Callable[[T], None],
    *,
    after_failure: bool = True,
    again_s: float | None = None,
) -> T:
    """The first result of ``attempts``; the next one starts after ``delay_s`` or a failure.

    Unless ``after_failure``, a failure starts none any more: where all attempts are the same, only
    silence is a reason for another. With ``again_s``, one after another of those that run in
    silence when all were started is started once more, each so long after the last start; twice as
    many run at most, the oldest go. Losers are cancelled; a result that arrives all the same goes
    to ``dispose``, also when the race itself is cancelled. Raises `RaceLost` when all fail.
    """
    waiting = deque(attempts)
    running: dict[asyncio.Task[T], Attempt[T]] = {}
    errors: list[Exception] = []
    try:
        while waiting or running:
            if waiting:
                attempt = waiting.popleft()
                running[asyncio.create_task(attempt())] = attempt
            done, _ = await asyncio.wait(
                running,
                timeout=delay_s if waiting else again_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not (done or waiting):
                attempt, oldest = _again(running)
                waiting.append(attempt)
                if oldest is not None:
                    del running[oldest]
                    _give_up(oldest, dispose)
            for task in done:
                error = task.exception()
                if error is None:
                    del running[task]
                    return task.result()
                del running[task]
                if not isinstance(error, Exception):
                    raise error
                errors.append(error)
                if not after_failure:
                    waiting.clear()
        raise RaceLost(errors)
    finally:
        for task in running:
            _give_up(task, dispose)


def _again(
    running: dict[asyncio.Task[T], Attempt[T]],
) -> tuple[Attempt[T], asyncio.Task[T] | None]:
    """Which of those that run is started once more, and which task has to go for it."""
    kinds = list(running.values())
    attempt = min(kinds, key=kinds.count)
    if kinds.count(attempt) == 1:
        return attempt, None
    return attempt, next(task for task, of in running.items() if of is attempt)


def _give_up(task: asyncio.Task[T], dispose: Callable[[T], None]) -> None:
    task.cancel()
    task.add_done_callback(lambda late: _dispose_late(late, dispose))


def _dispose_late(task: asyncio.Task[T], dispose: Callable[[T], None]) -> None:
    if not task.cancelled() and task.exception() is None:
        dispose(task.result())
