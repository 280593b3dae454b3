"""The relay's end of a pulse: one long POST per line of a client, with lines both ways.

It tells the client that the line lives, how far its uploads are, how busy the relay is and how its
far legs do; and hears what has arrived, so that journals can let go. The lines are in
`edged.relay.beats`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from edged.downstream.base import Responder
from edged.messages import Headers, ResponseHead
from edged.relay.beats import BadBeat, ClientBeat, Lines, RelayBeat
from edged.relay.wire import BadFlow, host_and_port

if TYPE_CHECKING:
    from edged.relay.flow import Flow
    from edged.relay.flows import Flows, Ledger

IDLE_EVERY_S = 1.0
LEAST_EVERY_S, MOST_EVERY_S = 0.02, 15.0
SILENCE_S = 10.0
"""A client that says nothing for so long, or for four of its own intervals, has lost this line."""
REPORT_EVERY_S = 1.0
"""Load and far legs change all the time; they are told at most this often."""
MOST_GONE = 512
"""Unknown flows named in one line; the others are named again by the client, or forgotten."""

_HEADERS: Headers = [
    (b"content-type", b"application/x-ndjson"),
    (b"cache-control", b"no-store"),
]


class Timer(Protocol):
    """What a timer can be told."""

    def cancel(self) -> None: ...


class House(Protocol):
    """What a pulse reports of."""

    instance: str
    """Another word after each start."""

    def load(self) -> Mapping[str, float]:
        """How busy the relay is."""

    def far(self, host: str, port: int) -> Sequence[Mapping[str, Any]]:
        """The paths to an origin, best first, as the relay knows them."""


class Pulse:
    """The `RequestSink` of one pulse. ``permits(host, port)`` is the client's list;
    ``later(delay_s, call)`` arms a timer.
    """

    def __init__(
        self,
        flows: Flows,
        ledger: Ledger,
        house: House,
        responder: Responder,
        *,
        permits: Callable[[str, int], bool],
        later: Callable[[float, Callable[[], None]], Timer],
    ) -> None:
        self._flows = flows
        self._ledger = ledger
        self._house = house
        self._responder = responder
        self._permits = permits
        self._later = later
        self._lines = Lines()
        self._every_s = IDLE_EVERY_S
        self._number = 0
        self._seen = 0
        self._heard_at = ledger.heard_at = flows.clock()
        self._uploads: dict[bytes, int] = {}
        self._gone: dict[bytes, None] = {}
        self._report_at = 0.0
        self._load: Mapping[str, float] | None = None
        self._want: Sequence[str] = ()
        self._far: dict[str, Sequence[Mapping[str, Any]]] = {}
        self._slow = False
        self._over = False
        self._timer: Timer | None = None
        ledger.followers[self] = None
        responder.head(ResponseHead(200, list(_HEADERS)))
        responder.resume_body()
        self._beat()

    # -- the client's side (RequestSink) ----------------------------------------------------------

    def body(self, data: bytes) -> None:
        """Lines of the client's."""
        if self._over:
            return
        try:
            for line in self._lines.feed(data):
                self._take(ClientBeat.decode(line))
        except BadBeat:
            self.close()

    def body_end(self, trailers: Headers | None) -> None:
        """The client says no more: this pulse is over."""
        if not self._over:
            self._leave()
            self._responder.end()

    def gone(self) -> None:
        """The line died."""
        self._leave()

    def pause_response(self) -> None:
        """The connection is full: beats that cannot leave are left out."""
        self._slow = True

    def resume_response(self) -> None:
        """It drained."""
        self._slow = False

    # -- the relay's side -------------------------------------------------------------------------

    def upload_moved(self, flow: Flow) -> None:
        """An upload of this client took bytes."""
        self._uploads[flow.id] = flow.upload.offset

    def close(self) -> None:
        """Break it off."""
        if not self._over:
            self._leave()
            self._responder.abort()

    def _take(self, beat: ClientBeat) -> None:
        self._seen = beat.number
        self._heard_at = self._ledger.heard_at = self._flows.clock()
        known = self._ledger.flows
        for flow_id, offset in beat.acks.items():
            flow = known.get(flow_id)
            if flow is not None:
                flow.acknowledge(offset)
            elif len(self._gone) < MOST_GONE:
                self._gone[flow_id] = None
        for flow_id in beat.done:
            flow = known.get(flow_id)
            if flow is not None:
                self._flows.remove(flow)
        if beat.want is not None:
            self._want = tuple(beat.want)
            self._far = {}
            self._report_at = 0.0
        if beat.every_s is not None:
            every_s = min(max(beat.every_s, LEAST_EVERY_S), MOST_EVERY_S)
            sooner = every_s < self._every_s
            self._every_s = every_s
            if sooner and self._timer is not None and not self._over:
                self._timer.cancel()
                self._beat()

    def _beat(self) -> None:
        if self._over:
            return
        now = self._flows.clock()
        if now - self._heard_at > max(SILENCE_S, 4 * self._every_s):
            self.close()
            return
        self._timer = self._later(self._every_s, self._beat)
        if self._slow:
            return
        self._number += 1
        uploads, self._uploads = self._uploads, {}
        gone, self._gone = tuple(self._gone), {}
        load, far = self._report(now)
        if self._load is not None and self._load.get("draining") and not self._ledger.flows:
            self._leave()  # nobody needs it any more, and a relay that stops waits for requests
            self._responder.end()
            return
        self._responder.data(
            RelayBeat(
                self._number,
                self._seen,
                now - self._heard_at,
                uploads,
                gone,
                load,
                far,
                self._house.instance if self._number == 1 else None,
            ).encode()
        )

    def _report(
        self, now: float
    ) -> tuple[Mapping[str, float] | None, Mapping[str, Sequence[Mapping[str, Any]]] | None]:
        """Load and far legs, as far as they have changed."""
        if now < self._report_at:
            return None, None
        self._report_at = now + REPORT_EVERY_S
        far = {}
        for url in self._want:
            legs = self._far_legs(url)
            if legs != self._far.get(url, []):
                self._far[url] = far[url] = legs
        load = self._house.load()
        if load == self._load:
            return None, far or None
        self._load = load
        return load, far or None

    def _far_legs(self, url: str) -> Sequence[Mapping[str, Any]]:
        try:
            host, port = host_and_port(url.encode("ascii"))
        except (BadFlow, UnicodeError):
            return []
        return list(self._house.far(host, port)) if self._permits(host, port) else []

    def _leave(self) -> None:
        self._over = True
        self._ledger.followers.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
