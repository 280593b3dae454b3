"""When a flow goes over two lines at once (`policies.schema.Redundancy`).

Token streams and small requests cost little twice, and a gap in them is what people see. Whichever
byte comes first goes on, so that a line can die without a gap at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edged.relay.client_visit import APART
from policies.model import RequestClass, Verdict
from policies.schema import Redundancy

if TYPE_CHECKING:
    from edged.relay.client_leg import Leg
    from edged.relay.client_stream import FlowStream

SMALL_BYTES = 4096
"""Of a request's body: what costs less than to be late."""
BURST_S = 2.0
"""So much faster than its rate a response may begin."""
LOSSY = 0.01
SETTLE_S = 1.0
"""So long a second line is kept beside one that is well again."""
YOUNG_S = 10.0
"""So long after its first pulse nobody knows much of a line."""


class Copying:
    """Whether one flow is sent twice. Times are monotonic."""

    __slots__ = ("_policy", "began_at", "small")

    def __init__(self, policy: Redundancy, request_class: RequestClass | None, now: float) -> None:
        self._policy = policy
        self.began_at = now
        cls = request_class
        self.small = policy.small_streams != "never" and (
            cls is not None and (cls.streaming or cls.up_bytes <= SMALL_BYTES)
        )
        """As far as is known."""

    def answers(self, length: int | None) -> bool:
        """The response begins; ``length`` of its body, if it is known. Whether it turned out not to
        be small just now.
        """
        if self.small and length is not None and length > self._most_bytes(0.0):
            self.small = False
            return True
        return False

    def passed(self, received: int, now: float) -> bool:
        """So much of the response is here: whether it turned out not to be small just now."""
        if self.small and received > self._most_bytes(now - self.began_at):
            self.small = False
            return True
        return False

    def wanted(self, best: Leg, copies: int, second: Leg, now: float) -> bool:
        """Whether it should go over ``second``, too, while ``copies`` others do. ``best``: the line
        that it would go over alone.
        """
        if not self.small:
            return False
        capacity_bps = second.path.line.capacity_bps
        policy = self._policy
        if capacity_bps is not None:
            taken_bps = (copies + 1) * policy.max_kbit_s * 1e3
            if taken_bps > policy.max_share * capacity_bps:
                return False
        return policy.small_streams == "always" or (
            best.verdict is not Verdict.UP
            or best.silent
            or now - best.since < YOUNG_S
            or best.loss > LOSSY
        )

    def repeats(self, leg: Leg) -> bool:
        """Whether pieces should come over ``leg`` once more: on a stream a loss costs a round trip
        and more, and holds up what follows.
        """
        return self.small and (self._policy.small_streams == "always" or leg.loss > LOSSY)

    def _most_bytes(self, span_s: float) -> float:
        return self._policy.max_kbit_s * 125 * (BURST_S + span_s)


def review(flow: FlowStream, now: float) -> None:
    """Let ``flow`` go over two lines if that is wanted, and over one if it is not any more."""
    client = flow.client
    ways = client.usable()
    lines = {way.removesuffix(APART) for way in flow.visits}
    best = next((way for way in ways if way in lines), None)
    if best is None:
        return
    leg = client.legs[best]
    other = next((way for way in ways if way != best), None)
    second = leg if other is None else client.legs[other]
    if flow.copying.wanted(leg, client.copies, second, now):
        cheap = flow.machine.uploaded or flow.outgoing.end <= SMALL_BYTES
        if cheap and flow.headed:
            flow.carry_out(flow.machine.second((*ways, best + APART)))
        if best + APART in flow.visits and other is not None and other in flow.visits:
            flow.drop(best + APART)  # another line is better than another connection
    elif flow.doubled_at <= now - SETTLE_S and not leg.doubtful and not flow.handover.active:
        flow.settle(best)
