"""A client that waits for 100 (Continue) before it sends its body (RFC 9110 section 10.1.1).

It waits until the first of these: an upstream says 100, or gives its final answer; the client loses
patience and begins; or nothing is heard for a while, as many servers ignore Expect. Until then
attempts carry the expectation, and from then on none does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

EXPECT: Final = (b"expect", b"100-continue")
LONGEST_WAIT_S: Final = 1.0
"""As long as clients wait (curl, Go); also where the round trip is not known."""
SLACK_S: Final = 0.25
"""Beside the way there and back, for an upstream that asks another before it decides."""


class Expectation:
    """What is left to wait. ``go_ahead`` is called once if that is too long."""

    __slots__ = ("_go_ahead", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, go_ahead: Callable[[], None]) -> None:
        self._loop = loop
        self._go_ahead = go_ahead
        self._timer: asyncio.TimerHandle | None = None

    def asked(self, rtt_s: float | None) -> None:
        """A head went out with the expectation, on a path of this round trip."""
        self.over()
        wait_s = LONGEST_WAIT_S if rtt_s is None else min(LONGEST_WAIT_S, 2 * rtt_s + SLACK_S)
        self._timer = self._loop.call_later(wait_s, self._go_ahead)

    def over(self) -> None:
        """Nobody waits any longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
