"""One line to one relay: its pulse, whether it is silent, and which visits go over it.

The pulse is a POST that stays open, with a line of JSON each way (`edged.relay.beats`): every 50 ms
while a flow goes over this line, more rarely while one goes over another, once a second else. The
relay answers at the same pace. Nothing heard for a round trip and 4 rttvar beyond that pace is
silence: no verdict yet, but reason to ask another line as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from edged.messages import Headers, RequestHead, ResponseHead
from edged.relay import wire
from edged.relay.beats import BadBeat, ClientBeat, Lines, RelayBeat
from edged.upstream.base import Pending, Stream, StreamEvents
from policies.model import (
    Carrier,
    Failure,
    Kind,
    Outcome,
    Path,
    RequestClass,
    Sample,
    Verdict,
)
from policies.rtt import RttEstimator

if TYPE_CHECKING:
    from edged.relay.client import Door, RelayClient
    from edged.relay.client_visit import Visit

_log = logging.getLogger("edged.relay")

ACTIVE_S = 0.05
STANDBY_S = 0.2
IDLE_S = 1.0
ACTIVE_AFTER_S = 2.0
"""So long after its last flow a line is still watched as if it had one."""
SLOT_S = 0.2
"""Beats that are evidence of the line come at most so often: TCP repairs a loss in less."""
RTT_S = 0.2
"""Assumed before anything was measured."""
LEAST_PATIENCE_S = 0.04
MOST_ACKS = 500
STUCK_S = 1.5
"""Silence of a pulse on a line that is not DOWN: others answer there, so that it is the connection
that carries nothing any more. A relay that was killed says so once to each, which may be lost: then
what it had begun is over 2 s after at the latest."""
RETRY_S = 0.2
RETRY_MAX_S = 5.0
_UNANSWERED = 256


class Leg:
    """See the module. Implements `StreamEvents` for the pulse."""

    def __init__(self, client: RelayClient, path: Path) -> None:
        self.client = client
        self.path = path
        self.name = path.line.name
        self.verdict = Verdict.UP
        self.visits: dict[Visit, None] = {}
        self.acks: dict[bytes, int] = {}
        """Response bytes by flow that this pulse has not told of."""
        self.done: dict[bytes, int] = {}
        """Flows that it has not told to be over."""
        self.silent = False
        """Nothing was heard for longer than is usual."""
        self.well_at = 0.0
        """Since when nothing was the matter with it, monotonic."""
        self.connected = False
        """The relay answered the pulse."""
        self.since = inf
        """When the pulse began, monotonic."""
        self.closed = False
        self.rtt: RttEstimator | None = None
        self._stream: Stream | None = None
        self._pending: Pending | None = None
        self._lines = Lines()
        self._number = 0
        self._sent: deque[tuple[int, float]] = deque(maxlen=_UNANSWERED)
        self._every_s = IDLE_S
        self._answered_every_s = IDLE_S
        self._told_number = 0
        self._heard_at = 0.0
        self._opened_at = 0.0
        self._active_until = 0.0
        self._awaited_at = 0.0
        self._slot_at = 0.0
        self._slow = False
        self._retry_s = RETRY_S
        self._timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._hurried = False
        self._want: tuple[str, ...] | None = None
        self._warned = ""

    @property
    def door(self) -> Door:
        """How the relay is spoken to."""
        return self.client.door

    @property
    def doubtful(self) -> bool:
        """Another line is better."""
        return self.silent or self.verdict is not Verdict.UP

    @property
    def loss(self) -> float:
        """What is proven to be lost, as a share."""
        state = self.client.table.snapshot.paths.get(self.path.name)
        return 0.0 if state is None else state.estimate.loss_least or 0.0

    def open(
        self, events: StreamEvents, request_class: RequestClass | None, *, repeats: bool = False
    ) -> Pending | None:
        """A stream to the relay over this line; for ``repeats`` one with datagrams, if there is a
        connection that has them.
        """
        now = monotonic()
        self._active_until = now + ACTIVE_AFTER_S
        self.client.visits += 1
        self.client.wake(now)
        pools = self.client.pools
        if repeats and pools.open_apart(self.path, events, Carrier.H2):
            return None
        return pools.open(self.path, events, early_data=False, request_class=request_class)

    def open_apart(self, events: StreamEvents, carrier: Carrier) -> bool:
        """A stream on another connection than one of ``carrier``; False: there is none now."""
        self.client.visits += 1
        return self.client.pools.open_apart(self.path, events, carrier)

    def left(self, visit: Visit) -> None:
        """A visit is over."""
        if self.visits.pop(visit, ...) is None:
            self._active_until = monotonic() + ACTIVE_AFTER_S

    # -- the pulse's life ------------------------------------------------------------------------

    def start(self) -> None:
        """Open the pulse."""
        if self._stream is None and self._pending is None and not self.closed:
            self._stop_timer()
            self._pending = self.client.pools.open(self.path, self, early_data=False)

    def close(self) -> None:
        """For ever."""
        self.closed = True
        self._stop_timer()
        self._stop_watch()
        if self._pending is not None:
            self._pending.cancel()
        if self._stream is not None:
            self._stream.cancel()
        self._pending = self._stream = None

    def stream_ready(self, stream: Stream) -> None:
        """Begin the pulse."""
        self._pending = None
        self._stream = stream
        self._lines = Lines()
        self._number = self._told_number = 0
        self._sent.clear()
        self._slow = False
        self._want = None
        self._every_s = self._answered_every_s = IDLE_S
        self._opened_at = monotonic()
        self._active_until = monotonic() + ACTIVE_AFTER_S  # a new line is measured at once
        door = self.door
        fields = [*door.fields, (b"content-type", b"application/x-ndjson")]
        head = RequestHead(b"POST", door.scheme, door.authority, wire.PULSE, fields, None)
        stream.send_head(head, end=False)
        self.acks |= self.client.offsets()
        self._beat()

    def informational(self, status: int, headers: Headers) -> None:
        """Nothing of interest."""

    def head(self, head: ResponseHead) -> None:
        """The relay knows us, or does not."""
        self.heard()
        self.connected = head.status == 200
        if self.connected:
            self.since = min(self.since, self._heard_at)
            self._warned = ""
            self._retry_s = RETRY_S
            self.client.known(self)
            return
        text = f"relay {self.client.name} answered {head.status} over line {self.name}"
        if head.status == 404:
            text += ": does it know this edge's token?"
        self._warn(text)
        self._retry_s = RETRY_MAX_S
        self.client.unknown(self)

    def data(self, data: bytes) -> None:
        """Lines of the relay's."""
        self.heard()
        try:
            for line in self._lines.feed(data):
                self._take(RelayBeat.decode(line))
        except BadBeat as error:
            self._warn(f"relay {self.client.name} over line {self.name}: {error}")
            if self._stream is not None:
                self._stream.cancel()
            self._over()

    def end(self, trailers: Headers | None) -> None:
        """The relay ended it."""
        self._over()

    def failed(self, failure: Failure) -> None:
        """The line or the relay ended it, or there is no relay."""
        self._over()
        if failure.outcome is Outcome.REFUSED:
            self.client.refused()

    def moved(self, path: Path) -> None:
        """Connections to relays stay on their lines."""

    def stalled(self, reason: str) -> None:
        """So this never comes."""

    def pause_body(self) -> None:
        """The connection is full: a beat that cannot leave is left out."""
        self._slow = True

    def resume_body(self) -> None:
        """It drained."""
        self._slow = False

    def _over(self) -> None:
        self._stream = self._pending = None
        self.connected = False
        self._stop_timer()
        self._stop_watch()
        if not self.closed:
            self._timer = self.client.loop.call_later(self._retry_s, self.start)
            self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)

    def _warn(self, text: str) -> None:
        if text != self._warned:
            self._warned = text
            _log.warning("%s", text)

    # -- our beats -------------------------------------------------------------------------------

    def quicken(self, now: float) -> None:
        """A flow begins: beat as often as that asks for, from now on."""
        if self._stream is not None and self._pace(now) < self._every_s:
            self._beat()

    def hurry(self) -> None:
        """There is something to tell that should not wait."""
        if self._stream is not None and not self._hurried:
            self._hurried = True
            self.client.loop.call_soon(self._beat)

    def _pace(self, now: float) -> float:
        if self.visits or now < self._active_until:
            return ACTIVE_S
        return STANDBY_S if self.client.busy(now) else IDLE_S

    def _beat(self) -> None:
        self._hurried = False
        stream = self._stream
        if stream is None:
            return
        self._stop_timer()
        now = monotonic()
        every_s = self._pace(now)
        self._timer = self.client.loop.call_later(every_s, self._beat)
        since_s = now - max(self._heard_at, self._opened_at)
        quiet = self.silent or not self.connected
        if quiet and since_s > STUCK_S + every_s and self.verdict is not Verdict.DOWN:
            self._forsake(f"nothing came over this connection for {since_s:.1f} s")
            return
        if self._slow:
            return
        self._number = number = self._number + 1
        told = None
        if every_s != self._every_s or number == 1:
            if every_s < self._every_s:
                self._awaited_at = now + self._rtt_s()
                self._stop_watch()
            told = self._every_s = every_s
            self._told_number = number
        want = self.client.wanted
        acks, done = _portion(self.acks), _portion(self.done)
        beat = ClientBeat(
            number, told, acks, tuple(done), None if want == self._want else list(want)
        )
        self._want = want
        self._sent.append((number, now))
        if now - self._slot_at >= min(SLOT_S, every_s):
            self._slot_at = now
            self.client.table.sent(self.path.name, Kind.PULSE, now, stream.carrier, every_s)
        stream.send_data(beat.encode())
        if self.connected:
            self._arm(now)

    def _forsake(self, text: str) -> None:
        """Neither the pulse nor any visit hears anything: give up what they are on."""
        _log.warning("relay %s over line %s: %s", self.client.name, self.name, text)
        failure = Failure(Outcome.TIMEOUT, text, carrier_down=True)
        for stream in (self._stream, *(visit.stream for visit in tuple(self.visits))):
            if stream is not None:
                stream.forsake(failure)

    # -- the relay's beats -----------------------------------------------------------------------

    def heard(self) -> None:
        """Something arrived over this line."""
        self._heard_at = monotonic()
        if self.silent:
            self.silent = False
            self.well_at = self._heard_at
            self.client.heard(self)

    def _take(self, beat: RelayBeat) -> None:
        now, sent_at = self._heard_at, None
        while self._sent and self._sent[0][0] <= beat.seen:
            sent_at = self._sent.popleft()[1]
        if sent_at is not None:
            rtt_s = max(0.0, now - sent_at - beat.held_s)
            if self.rtt is None:
                self.rtt = RttEstimator(rtt_s, now)
            else:
                self.rtt.observe(rtt_s, now)
            assert self._stream is not None
            carrier = self._stream.carrier
            self.client.report(
                Sample(self.path.name, Kind.PULSE, sent_at, rtt_s, Outcome.OK, carrier=carrier)
            )
        if beat.seen >= self._told_number:
            self._answered_every_s = self._every_s
        self.client.told(self, beat)

    # -- silence ---------------------------------------------------------------------------------

    def _rtt_s(self) -> float:
        return RTT_S if self.rtt is None else self.rtt.srtt_s

    def _due(self) -> float:
        """When the next sign of life is overdue."""
        every_s = max(self._answered_every_s, self._every_s)
        rtt = self.rtt
        patience_s = 2 * RTT_S if rtt is None else rtt.srtt_s + 4 * rtt.rttvar_s
        expected_at = max(self._heard_at + every_s, 0.0)
        if self._answered_every_s > self._every_s:
            expected_at = min(expected_at, max(self._awaited_at, self._heard_at + self._every_s))
        return expected_at + max(LEAST_PATIENCE_S, patience_s)

    def _arm(self, now: float) -> None:
        if self._watch is None and not self.silent:
            self._watch = self.client.loop.call_later(max(0.0, self._due() - now), self._look)

    def _look(self) -> None:
        self._watch = None
        now = monotonic()
        if not self.connected or self.silent:
            return
        if now < self._due():
            self._arm(now)
            return
        self.silent = True
        _log.debug(
            "line %s to relay %s is silent for %.0f ms",
            self.name,
            self.client.name,
            1e3 * (now - self._heard_at),
        )
        self.client.silent(self)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None


def _portion(told: dict[bytes, int]) -> dict[bytes, int]:
    """What one line can tell; the rest stays for the next."""
    if len(told) <= MOST_ACKS:
        part = told.copy()
        told.clear()
        return part
    part = {}
    for key in list(told)[:MOST_ACKS]:
        part[key] = told.pop(key)
    return part
