"""Attempts started one after another, the first success wins (RFC 8305, section 5)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class RaceLost(Exception):
    """Every attempt failed; ``errors`` holds their exceptions in the order of failing."""

    def __init__(self, errors: Sequence[Exception]) -> None:
        super().__init__("; ".join(str(e) for e in errors))
        self.errors = tuple(errors)


async def race(
    attempts: Sequence[Callable[[], Coroutine[Any, Any, T]]],
    delay_s: float,
    dispose: Callable[[T], None],
    *,
    after_failure: bool = True,
) -> T:
    """The first result of ``attempts``; the next one starts after ``delay_s`` or a failure.

    Unless ``after_failure``, a failure starts none any more: where all attempts are the same, only
    silence is a reason for another. Losers are cancelled; a result that arrives all the same goes
    to ``dispose``, also when the race itself is cancelled. Raises `RaceLost` when all fail.
    """
    waiting = deque(attempts)
    running: set[asyncio.Task[T]] = set()
    errors: list[Exception] = []
    try:
        while waiting or running:
            if waiting:
                running.add(asyncio.create_task(waiting.popleft()()))
            done, _ = await asyncio.wait(
                running,
                timeout=delay_s if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                error = task.exception()
                if error is None:
                    running.discard(task)
                    return task.result()
                running.discard(task)
                if not isinstance(error, Exception):
                    raise error
                errors.append(error)
                if not after_failure:
                    waiting.clear()
        raise RaceLost(errors)
    finally:
        for task in running:
            task.cancel()
            task.add_done_callback(lambda late: _dispose_late(late, dispose))


def _dispose_late(task: asyncio.Task[T], dispose: Callable[[T], None]) -> None:
    if not task.cancelled() and task.exception() is None:
        dispose(task.result())
