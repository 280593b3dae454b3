"""Moves an HTTP/3 connection to another line while its streams go on (RFC 9000 section 9).

1. A connection moves for its streams, never to be better off: when its path is DOWN, or SUSPECT
   and another answers sooner. It does not move back; the pool of the path it came to has it then.
2. Where to: the best alternative that is told (another line to the same endpoint, with UDP) and
   has not refused lately; only off a path that is DOWN may it be one that is SUSPECT itself, and
   off a dead line one that is DOWN: nothing is lost by asking there, and while every line is dead
   it asks them in turn until QUIC's idle timeout. The server's preferred address is used if it gave
   one (section 9.6).
3. Standby. Once streams have been open for a second, one alternative has a socket and a connection
   id of its own and is validated now and then (section 8.2), so that a move costs no round trip.
   It is kept while it is an alternative at all. Only on engines that can probe, and not more
   often than `Pace` allows to all connections together.
4. SUSPECT: the old path gets a PING, the standby a challenge. Whatever comes on the old path ends
   the doubt; an answer on the standby moves, not before the old one had its time.
5. DOWN: it moves at once, to the standby or unprepared; then the challenge goes with the data.
6. It has arrived when a PING sent after the move was acknowledged on the new path: a peer does so
   once it has validated the address and followed. (Its answer to a challenge would not tell, and
   quic-go, once it followed, gives none.) Until then it takes no new streams, and asks again in
   time. When that has taken longer than a move does even if a packet is lost, requests without an
   answer that may be repeated leave it (`StreamEvents.stalled`).
7. Patience. After `TRIES` the streams without a response fail (`Failure.path_down`, so that the
   replay table decides): they can be had elsewhere. The others have nowhere else, so they stay
   while there is hope: for `FAIR_S` over a line that is UP (else it is the server that is gone),
   and over one that is not until another path is better, but for `LAST_S` at most.
8. A path that is UP and did not answer has refused: the server, or a balancer before it, does not
   know migrated clients (`Refusals`). Of a server that followed before it takes several in a row:
   lines that die and come back fail moves, too, and without one the streams are lost at once.
9. The socket of a line that was left is kept for `KEPT_S` and serves again if the connection comes
   back: what still comes on it is taken, and a server that minds only a few of its client's
   addresses at a time (quic-go: 3 within 5 s) meets no more than one for each line.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from edged.upstream.quic import PING_OF_NOBODY
from policies.model import Carrier, Failure, Kind, Line, Outcome, Path, PathState, Sample, Verdict
from policies.refusals import Refusals
from probes.base import DialError

if TYPE_CHECKING:
    from edged.upstream.h3_connection import H3Connection

_log = logging.getLogger("edged.migration")

PROBE_EVERY_S = 15.0
"""How often a standby is validated again: well within the 30 s that address translators keep."""
PROBE_GAP_S = 0.5
"""Between the validations of all standbys: 2.4 kB in this time are 38 kbit/s."""
FIRST_MARK = 1 << 32
"""PINGs of migrations have uids from here on."""
TRIES = 4
"""Challenges without an answer until a path is taken for a bad one."""
STALLED_TRIES = 2
"""Challenges without an answer until the streams are told."""
FAIR_S = 2.0
"""How long a server is asked over a line that is UP, beside two round trips. quic-go takes a second
to find out that its own challenge was lost, and sends the next one then."""
LAST_S = 10.0
"""How long a connection without any answer is kept for the responses that it has begun."""
KEPT_S = 30.0
"""How long address translators remember a socket that nobody uses."""

_RETRY_LEAST_S = 0.25
_RETRY_UNKNOWN_S = 0.3
_RETRY_MOST_S = 1.0


class Pace:
    """Spaces what is done ahead for all connections."""

    def __init__(self) -> None:
        self._next_at = 0.0

    def take(self, now: float) -> bool:
        """Whether it is somebody's turn."""
        if now < self._next_at:
            return False
        self._next_at = now + PROBE_GAP_S
        return True


class OpenUdp(Protocol):
    """`edged.dialer.LineDialer.open_udp`."""

    def __call__(self, line: Line, host: str, address: str, port: int) -> socket.socket:
        """A connected UDP socket. Raises `DialError`."""


@dataclass(frozen=True, slots=True)
class MigrationTools:
    """What the migrations of all connections share."""

    alternatives: Callable[[Path], Sequence[PathState]]
    """Paths over other lines with UDP to the endpoint of a path, best first; none that is DOWN
    unless the line of the path is."""
    open_udp: OpenUdp
    line_verdict: Callable[[str], Verdict]
    """Of a line by its name, whatever its endpoints do."""
    refusals: Refusals = field(default_factory=Refusals)
    pace: Pace = field(default_factory=Pace)


def _nowhere(path: Path) -> Sequence[PathState]:
    return ()


def _no_socket(line: Line, host: str, address: str, port: int) -> socket.socket:
    raise DialError(Outcome.LOCAL, "no migration")


def _unknown(line: str) -> Verdict:
    return Verdict.UP


NO_MIGRATION = MigrationTools(_nowhere, _no_socket, _unknown)
"""For connections that end with their line."""


@dataclass(slots=True, eq=False)
class _Way:
    """A path of the connection that is not in use, or not yet proven."""

    path: Path
    left: Path
    """The path that was in use when it was opened."""
    number: int
    rtt_s: float | None
    validated_at: float | None = None
    asked_at: float | None = None
    """When the first challenge without an answer was sent."""
    tries: int = 0
    timer: asyncio.TimerHandle | None = None

    @property
    def fair_s(self) -> float:
        """How long the peer may take to follow."""
        return FAIR_S + 2 * (self.rtt_s or 0.0)

    @property
    def retry_s(self) -> float:
        """How long an answer may take."""
        if self.rtt_s is None:
            return _RETRY_UNKNOWN_S
        return min(max(1.5 * self.rtt_s + 0.025, _RETRY_LEAST_S), _RETRY_MOST_S)

    def stop(self) -> None:
        """No further challenges."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.asked_at = None
        self.tries = 0


class Migration:
    """The moves of one connection. See the module."""

    def __init__(self, connection: H3Connection, tools: MigrationTools) -> None:
        self.moving = False
        """The peer has not answered on the path in use."""
        self.watching = False
        """`heard` is to be called after each wake."""
        self._mark = FIRST_MARK
        self._connection = connection
        self._tools = tools
        self._standby: _Way | None = None
        self._way: _Way | None = None
        """The path in use while it is not proven."""
        self._left: dict[str, tuple[int, asyncio.TimerHandle]] = {}
        """Paths whose sockets are kept, by line, each with the timer that ends that."""
        self._doubted_at: float | None = None
        self._fair: asyncio.TimerHandle | None = None

    # What the connection tells

    def tend(self) -> None:
        """Streams have been open for a while: see that there is a standby."""
        connection = self._connection
        if self.moving or not (connection.engine.probes and connection.engine.may_migrate()):
            return
        standby = self._standby
        if standby is not None and self._verdict(standby) is None:
            self._drop_standby()
            standby = None
        now = monotonic()
        due = standby is None or (
            standby.asked_at is None and now - (standby.validated_at or 0.0) >= PROBE_EVERY_S
        )
        if due and self._tools.pace.take(now):
            standby = self._standby = standby or self._open_best(Verdict.UP)
            if standby is not None:
                self._challenge(standby)

    def rest(self) -> None:
        """No streams: no standby is needed."""
        if not self.moving:
            self._drop_standby()
            self._end_doubt()
            for line in tuple(self._left):
                self._drop_left(line)

    def doubt(self) -> None:
        """The path is SUSPECT."""
        connection = self._connection
        if (
            self.moving
            or self._doubted_at is not None
            or not connection.in_flight
            or not (connection.engine.probes and connection.engine.may_migrate())
        ):
            return
        now = monotonic()
        if self._standby is None:
            self._standby = self._open_best(Verdict.UP)
        if self._standby is None:
            return
        self._doubted_at = now
        self.watching = True
        srtt_s = connection.engine.counters().srtt_s or 0.1
        self._fair = connection.loop.call_later(1.5 * srtt_s + 0.025, self._fair_passed)
        self._standby.validated_at = None
        self._standby.stop()
        self._challenge(self._standby)
        connection.engine.ping(PING_OF_NOBODY)
        connection.driver.touch()

    def leave(self) -> bool:
        """The path is DOWN: move now. False: nothing to move for, or nowhere to go."""
        connection = self._connection
        if not connection.in_flight or not connection.engine.may_migrate():
            return False
        way, self._standby = self._standby, None
        if way is not None and self._verdict(way) is not Verdict.UP:
            way.stop()
            connection.driver.drop(way.number)
            way = None
        for verdict in () if way is not None else (Verdict.UP, Verdict.SUSPECT, Verdict.DOWN):
            way = way or self._open_best(verdict)
        return way is not None and self._move(way)

    def heard(self) -> None:
        """Something came, on whatever path."""
        if self._doubted_at is not None and self._connection.heard_at > self._doubted_at:
            self._end_doubt()

    def acked(self, mark: int) -> None:
        """A PING with this uid was acknowledged."""
        way, driver = self._way, self._connection.driver
        if way is not None and mark == self._mark and driver.reading in (driver.path, None):
            way.stop()
            self._way = None
            self.moving = False
            self._tools.refusals.worked(way.path)
            self._connection.arrived()

    def validated(self, number: int, rtt_s: float | None) -> None:
        """The peer answered a challenge on path ``number``."""
        standby, now = self._standby, monotonic()
        if standby is None or standby.number != number:
            return
        standby.stop()
        standby.validated_at = now
        self._tools.refusals.worked(standby.path)
        if rtt_s is not None:
            standby.rtt_s = rtt_s
            name = standby.path.name
            self._connection.report(Sample(name, Kind.PING, now - rtt_s, rtt_s, carrier=Carrier.H3))
        if self._doubted_at is not None and self._fair is None:
            self._move_standby()

    def ended(self, failure: Failure) -> Failure:
        """The peer ended it before it had arrived: whoever got its packets does not know it."""
        if self._way is not None:
            self._refused(self._way)
        return replace(failure, path_down=True)

    def close(self) -> None:
        """The connection is over."""
        self._end_doubt()
        for way in (self._standby, self._way):
            if way is not None:
                way.stop()
        for _, timer in self._left.values():
            timer.cancel()
        self._left.clear()
        self._standby = self._way = None
        self.moving = self.watching = False

    # Standby

    def _verdict(self, way: _Way) -> Verdict | None:
        """Of ``way``; ``None``: it is not told any more to those on the path it was opened from."""
        for state in self._tools.alternatives(way.left):
            if state.path.line.name == way.path.line.name:
                return state.verdict
        return None

    def _open_best(self, verdict: Verdict) -> _Way | None:
        now, allowed = monotonic(), self._tools.refusals.allowed
        for state in self._tools.alternatives(self._connection.path):
            if state.verdict is not verdict or not allowed(state.path, now):
                continue
            way = self._open(state)
            if way is not None:
                return way
        return None

    def _open(self, state: PathState) -> _Way | None:
        connection = self._connection
        host, port = connection.peer
        target = connection.engine.preferred_address(ipv6=":" in host) or (host, port)
        endpoint = state.path.endpoint
        if (kept := self._left.pop(state.path.line.name, None)) is not None:
            kept[1].cancel()
            number = connection.driver.again(kept[0])
            return _Way(state.path, connection.path, number, state.estimate.rtt_s)
        try:
            sock = self._tools.open_udp(state.path.line, endpoint.host, *target)
        except DialError:
            return None  # the line's own probes tell more
        number = connection.driver.add(sock)
        return _Way(state.path, connection.path, number, state.estimate.rtt_s)

    def _drop_standby(self) -> None:
        standby, self._standby = self._standby, None
        if standby is not None:
            standby.stop()
            self._connection.driver.drop(standby.number)

    def _challenge(self, way: _Way) -> None:
        """Ask for an answer on ``way``, and again if none comes in time."""
        connection = self._connection
        now = monotonic()
        if way.asked_at is None:
            way.asked_at = now
        way.tries += 1
        connection.engine.challenge(way.number)
        if way is self._way:
            connection.engine.ping(self._mark)
        connection.driver.touch()
        way.timer = connection.loop.call_later(way.retry_s, self._unanswered, way)

    def _unanswered(self, way: _Way) -> None:
        way.timer = None
        if way.tries == STALLED_TRIES and way is self._way:
            self._connection.stalled(f"no answer over line {way.path.line.name} yet")
            if way is not self._way:
                return  # its last stream left, and it was closed
        if way.tries < TRIES:
            self._challenge(way)
        elif way is self._way:
            self._lose_patience(way)
        else:
            if self._connection.heard_at > (way.asked_at or 0.0):
                self._refused(way)
            self._drop_standby()

    def _refused(self, way: _Way) -> None:
        """No answer on ``way``: remember it if the line is not to blame."""
        if self._verdict(way) is Verdict.UP:
            self._tools.refusals.failed(way.path, monotonic())

    # Doubt

    def _fair_passed(self) -> None:
        self._fair = None
        if self._standby is not None and self._standby.validated_at is not None:
            self._move_standby()

    def _move_standby(self) -> None:
        way, self._standby = self._standby, None
        if way is not None and not self._move(way):
            self._end_doubt()

    def _end_doubt(self) -> None:
        self._doubted_at = None
        if self._fair is not None:
            self._fair.cancel()
            self._fair = None
        self.watching = False

    # Moving

    def _move(self, way: _Way) -> bool:
        connection = self._connection
        driver, old = connection.driver, connection.driver.path
        way.stop()
        if not driver.move(way.number):
            driver.drop(way.number)
            return False
        if self._way is not None:
            self._way.stop()
        self._way = way
        self._end_doubt()
        self.moving = True
        self._mark += 1
        connection.engine.ping(self._mark)
        self._keep(old, way.left.line.name)
        _log.info(
            "%s: %d streams go on over line %s",
            connection.path.name,
            connection.in_flight,
            way.path.line.name,
        )
        way.asked_at, way.tries = monotonic(), 1
        way.timer = connection.loop.call_later(way.retry_s, self._unanswered, way)
        connection.moved(way.path)
        return True

    def _keep(self, number: int, line: str) -> None:
        """Path ``number`` over ``line`` was left."""
        self._drop_left(line)
        timer = self._connection.loop.call_later(KEPT_S, self._drop_left, line)
        self._left[line] = number, timer

    def _drop_left(self, line: str) -> None:
        if (kept := self._left.pop(line, None)) is not None:
            kept[1].cancel()
            self._connection.driver.drop(kept[0])

    def _lose_patience(self, way: _Way) -> None:
        """The peer has not followed yet."""
        connection, asked_s = self._connection, monotonic() - (way.asked_at or 0.0)
        detail = f"the server did not follow to line {way.path.line.name}"
        failure = Failure(Outcome.TIMEOUT, detail, path_down=True)
        connection.fail_waiting(failure)
        if way is not self._way:
            return  # that was its last stream, and it was closed
        up = self._tools.line_verdict(way.path.line.name) is Verdict.UP
        if up and connection.in_flight and asked_s < way.fair_s:
            self._challenge(way)
            return
        _log.warning(
            "%s: the server did not follow the connection to line %s; requests on it start anew, "
            "if they may",
            way.path.name,
            way.path.line.name,
        )
        self._refused(way)
        if self.leave():
            return
        if up or not connection.in_flight or monotonic() - connection.heard_at >= LAST_S:
            connection.close(failure)
        else:
            self._challenge(way)
