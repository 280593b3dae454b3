"""What a flow does when a line falls silent, is heard again, or is DOWN."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edged.relay.client_stream import FlowStream

HOLD_S = 0.15
"""So much longer a line must be silent before a large upload is sent over another: a line that is
full falls silent now and then, and what goes over both is sent twice."""


def fell_silent(flow: FlowStream, way: str) -> None:
    """Others are asked for what comes next."""
    if not flow.handover.awaits(way) and flow.handover.broken():
        flow.anew()
        return
    command = flow.machine.silent(way, flow.client.usable())
    flow.carry_out(command)
    visit = None if command is None else flow.visits.get(command.line)
    if visit is not None and flow.large and not flow.machine.uploaded:
        visit.held = True
        flow.client.loop.call_later(HOLD_S, visit.let_go)
    flow.review(monotonic())


def was_heard(flow: FlowStream, way: str) -> None:
    """It says something again."""
    flow.machine.heard(way)
    if len(flow.visits) > 1 and flow.large and not flow.handover.active:
        # Whichever is ahead goes on alone: on both, all would come, or go, twice.
        ahead = (other for other in (way, *flow.visits) if flow.machine.surplus(other))
        flow.settle(next(ahead, way))


def is_down(flow: FlowStream, way: str) -> None:
    """The flow goes on over another line, if there is one."""
    if flow.handover.broken():
        flow.anew()
        return
    fell_silent(flow, way)
    if len(flow.visits) > 1:
        flow.drop(way)
        flow.moved()
