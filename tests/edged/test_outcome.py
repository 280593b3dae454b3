"""What a failure is called towards the client."""

from __future__ import annotations

from dataclasses import replace

from edged.outcome import cause
from policies.model import Failure, Outcome, RequestClass
from tests.harness.scripted import Stage, staged

SILENT = Failure(Outcome.TIMEOUT, "no QUIC handshake within 5 s (is UDP blocked?)")


def ranking(stage, down):
    stage.table.order(stage.paths, down)
    found = stage.table.peek("up", RequestClass.of(0))
    told = tuple(
        replace(c, state=replace(c.state, reason=f"{c.state.path.line.name} is silent"))
        for c in found.order
    )
    return replace(found, order=told)


@staged
async def test_in_the_dark_the_cause_is_the_lines_silence_and_no_guess_about_udp():
    stage = Stage()
    assert cause(SILENT, ranking(stage, 0)) == SILENT.detail
    assert cause(SILENT, ranking(stage, 1)) == SILENT.detail
    told = cause(SILENT, ranking(stage, len(stage.paths)))
    assert told == ("every path is DOWN: cn2>up/e1 (cn2 is silent); bgp>up/e1 (bgp is silent)")


@staged
async def test_an_error_of_its_own_is_named_with_every_path_down():
    stage = Stage()
    failure = Failure(Outcome.UNREACHABLE, "line cn2: source address 10.71.1.2 is not on this host")
    told = cause(failure, ranking(stage, len(stage.paths)))
    assert told == f"every path is DOWN; the last one tried: {failure.detail}"
