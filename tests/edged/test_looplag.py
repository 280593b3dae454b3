"""A loop that stood still convicts nobody."""

from __future__ import annotations

import asyncio
import time

import pytest
import uvloop

from edged.looplag import LoopLag
from policies.detector import STALL_S
from policies.model import Kind, Outcome, Sample


def lost(sent_at, kind=Kind.PING):
    return Sample("p", kind, sent_at, None, Outcome.TIMEOUT)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_what_timers_report_after_a_stall_is_void_and_round_trips_are_unknown(run):
    async def main():
        lag = LoopLag()
        lag.start()
        await asyncio.sleep(0.06)
        before = time.monotonic()
        time.sleep(STALL_S + 0.1)  # noqa: ASYNC251 - that is what is tested
        now = time.monotonic()
        # Before the lag's own timer could run:
        assert lag.honest(lost(before), now) is None
        answered = Sample("p", Kind.PING, before, now - before)
        assert lag.honest(answered, now) == answered._replace(rtt_s=None)
        by_kernel = Sample("p", Kind.ICMP, before, 0.06)
        assert lag.honest(by_kernel, now) is by_kernel
        assert lag.honest(lost(before, Kind.ICMP), now) is None
        refused = Sample("p", Kind.TCP, before, None, Outcome.REFUSED)
        assert lag.honest(refused, now) is refused
        await asyncio.sleep(0.06)
        # And after it, too: what was sent before is no better for it.
        assert lag.honest(lost(before), time.monotonic()) is None
        later = lost(time.monotonic())
        assert lag.honest(later, time.monotonic() + 0.001) is later
        assert lag.max_s > STALL_S
        lag.stop()

    run(main())


def test_a_short_lag_changes_nothing():
    async def main():
        lag = LoopLag()
        lag.start()
        before = time.monotonic()
        await asyncio.sleep(0.01)
        sample = lost(before)
        assert lag.honest(sample, before + 0.05 + STALL_S / 2) is sample
        lag.stop()
        assert lag.honest(sample, before + 100.0) is sample  # not running: nothing is known

    asyncio.run(main())
