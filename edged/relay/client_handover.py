"""How a large flow goes over to a better way while nothing is wrong with the one that it takes:
back to the line that is best, or to the carrier that suits a large body.

Nothing should be sent twice for it. An upload is held until the relay has what was handed to the
old way, and goes on from there; but it leaves a connection of h3 that takes no more at once: what
waits there would hold it for seconds, and is not sent any more. A download is asked for over the
new way *instead*: the relay passes nothing more on over the old one, and begins on the new one
where that ends. What comes over the new way waits until all before it is here. Whenever anything is
the matter with either, the flow is asked for anew, from the first byte that is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edged.relay.client_visit import APART
from policies.model import RequestClass

if TYPE_CHECKING:
    from edged.relay.client_stream import FlowStream
    from edged.relay.client_visit import Visit

LARGE_BYTES = 512 << 10
"""What must be left of a body to be worth it."""
BULK = RequestClass.of(4 << 20)
"""What a large response is like for the line that brings it."""
WELL_S = 1.0
"""A line must have been well for so long."""
LIMIT_S = 2.0
"""A handover is broken off when nothing was moved on by it for so long."""


class Handover:
    """One flow's."""

    __slots__ = (
        "_at",
        "_flow",
        "_moved",
        "_new",
        "_old",
        "_suited",
        "_until",
        "_way",
        "opaque",
        "size",
    )

    def __init__(self, flow: FlowStream) -> None:
        self.opaque = False
        """The flow is bytes both ways, and stays where it is."""
        self.size: int | None = None
        """Of the response as it comes over the line, if that is known."""
        self._flow = flow
        self._new: Visit | None = None
        """Brings the response from `_at` on."""
        self._at: int | None = None
        self._old: Visit | None = None
        """Sends no more of the request; `_way` is next."""
        self._way = ""
        self._until = 0.0
        self._moved = -1  # bytes of both directions, as last seen
        self._suited = ""
        """The line on which the carrier was changed: once there is enough."""

    @property
    def large(self) -> bool:
        """Much is left of one of the bodies."""
        flow, size = self._flow, self.size
        if self.opaque:
            return False
        if not flow.machine.uploaded:
            taken, length = flow.outgoing.taken, flow.length
            return (taken if length is None else length - taken) > LARGE_BYTES
        received = flow.machine.received
        left = received if size is None else size - received
        return flow.machine.begun and left > LARGE_BYTES

    @property
    def visit_class(self) -> RequestClass | None:
        """What visits are, for the choice of carriers and lines."""
        flow = self._flow
        return BULK if flow.machine.uploaded and flow.large else flow.request_class

    def look_around(self, now: float) -> None:
        """Begin, if another flow like this one would take another way now."""
        flow = self._flow
        moved = flow.machine.received + flow.outgoing.taken
        if flow.paused or moved != self._moved:
            self._moved = moved
            self._until = now + LIMIT_S
        if flow.paused:  # nothing moves before the client reads on
            return
        if (self._new or self._old) is not None and now > self._until and self.broken():
            flow.anew()
        cls = self.visit_class
        if self.active or len(flow.visits) != 1 or cls is None or not flow.large:
            return
        ((way, visit),) = flow.visits.items()
        client = flow.client
        here = client.leg(way)
        best = client.best(flow.path, here, cls)
        if best is None or visit.stream is None:
            return
        if best is here:
            suits = client.pools.carrier_of(here.path, cls)
            if suits not in (None, visit.stream.carrier) and self._suited != here.name:
                self._suited = here.name
                other = here.name if way.endswith(APART) else here.name + APART
                self._begin(visit, other, now)
        elif best.connected and not best.doubtful and now - best.well_at >= WELL_S:
            self._begin(visit, best.name, now)

    @property
    def waiting(self) -> Visit | None:
        """A visit that must not bring anything yet."""
        return None if self._at is None else self._new

    def takes(self, visit: Visit) -> bool:
        """Whether the relay is to pass everything on over ``visit`` from now on."""
        return visit is self._new

    def _begin(self, visit: Visit, way: str, now: float) -> None:
        """Go from ``visit``, the only one, over to ``way``."""
        flow = self._flow
        self._until = now + LIMIT_S
        if flow.machine.uploaded:
            self._new = flow.make(flow.machine.ask(way))
            self._new.start()
            return
        if visit.clogged:
            flow.drop(visit.way)
            flow.carry_out(flow.machine.ask(way))
            return
        self._old, self._way = visit, way
        visit.held = True
        self.taken()

    def awaits(self, way: str) -> bool:
        """Whether ``way`` is the new one of a download: a line falls silent for a moment when a
        body begins on it, and all is well while the old one is.
        """
        return self._new is not None and self._new.way == way

    def headed(self, visit: Visit, offset: int) -> None:
        """The head over ``visit`` came: its bytes begin at ``offset``."""
        if visit is self._new:
            self._at = offset
            if self._flow.machine.received < offset and visit.stream is not None:
                visit.stream.pause_reading()
            self.received()

    def received(self) -> None:
        """Response bytes came."""
        flow, new = self._flow, self._new
        if new is None or self._at is None or flow.machine.received < self._at:
            return
        self._new = self._at = None
        flow.keep_only(new)

    def taken(self) -> None:
        """The relay took request bytes."""
        flow, old = self._flow, self._old
        if old is None:
            return
        at = old.sending_at
        if at is None:
            self.clear()
        elif flow.outgoing.taken >= at:
            self._old = None
            flow.drop(old.way)
            flow.carry_out(flow.machine.ask(self._way))

    def broken(self) -> bool:
        """Something is the matter with a visit: whether the flow must be asked for anew, as the old
        one may bring no more.
        """
        anew = self._new is not None
        self.clear()
        return anew

    @property
    def active(self) -> bool:
        """It is under way."""
        return self._new is not None or self._old is not None

    def end(self) -> None:
        """The flow is over."""
        self._new = self._at = self._old = None
        del self._flow  # a cycle would leave the flow to the garbage collector

    def clear(self) -> None:
        """Nothing more of it."""
        old, self._old = self._old, None
        self._new = self._at = None
        if old is not None:
            old.held = False
            old.feed()
