"""PINGs of a connection, from being sent until they are answered, lost or left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from edged.upstream.connection import Report
from policies.model import Carrier, Kind, Outcome, Sample

Told = Callable[[float | None], None]
"""Is told the round trip in s; ``None``: there was no answer."""


class _Ping:
    """A PING on its way."""

    __slots__ = ("path", "sent_at", "timer", "told")

    def __init__(self, path: str, sent_at: float, told: Told, timer: asyncio.TimerHandle) -> None:
        self.path = path
        self.sent_at: float | None = sent_at
        """``None``: on a path that was left since."""
        self.told = told
        self.timer = timer


class Pings:
    """Those of one connection that have no answer yet. Each end of one is a sample, too."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, report: Report, carrier: Carrier | None = None
    ) -> None:
        """``carrier``: what the samples say that they were sent with."""
        self._loop = loop
        self._report = report
        self._carrier = carrier
        self._waiting: dict[int, _Ping] = {}
        self._last = 0

    @property
    def waiting(self) -> list[int]:
        """The numbers of those without an answer."""
        return list(self._waiting)

    def begin(self, path: str, told: Told, timeout_s: float) -> int:
        """The number of a PING that the caller sends on ``path`` now. They count from 1."""
        self._last = number = self._last + 1
        timer = self._loop.call_later(timeout_s, self._lost, number)
        self._waiting[number] = _Ping(path, monotonic(), told, timer)
        return number

    def answered(self, number: int, measured_s: float | None = None) -> float | None:
        """The peer answered: the round trip, if it is one of the path in use.

        ``measured_s``: what the transport measured. It knows better where that is less.
        """
        ping = self._waiting.pop(number, None)
        if ping is None:
            return None
        ping.timer.cancel()
        if ping.sent_at is None:
            ping.told(0.0)
            return None
        rtt_s = monotonic() - ping.sent_at
        if measured_s is not None and measured_s < rtt_s:
            rtt_s = measured_s
        self._report(Sample(ping.path, Kind.PING, ping.sent_at, rtt_s, carrier=self._carrier))
        ping.told(rtt_s)
        return rtt_s

    def left_path(self) -> None:
        """The connection runs on another path: round trips would be half of one line and half of
        another, and silence says nothing of either.
        """
        for ping in self._waiting.values():
            ping.sent_at = None

    def close(self) -> None:
        """The connection is over."""
        waiting, self._waiting = self._waiting, {}
        for ping in waiting.values():
            ping.timer.cancel()
            ping.told(None)

    def _lost(self, number: int) -> None:
        ping = self._waiting.pop(number)
        if ping.sent_at is not None:
            self._report(
                Sample(
                    ping.path,
                    Kind.PING,
                    ping.sent_at,
                    None,
                    Outcome.TIMEOUT,
                    carrier=self._carrier,
                )
            )
        ping.told(None)
