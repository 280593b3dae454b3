"""`qh3` as an `Engine`: its Rust core is driven directly once the handshake is complete.

Migration (RFC 9000 section 9). The core is told of the peer's address only, and takes packets from
another one for another path: it gives that path a connection id, sends a PATH_CHALLENGE, and uses
it with congestion control and RTT begun anew once the answer came. So what the user receives on a
path after the handshake's gets an address of its own here, from a network that does not exist (RFC
5737). Until the answer is there the core goes on as on the old path, but with another connection
id and out of the new socket. It cannot probe a path that is not in use, knows `_PATHS` in its life
(on later ones congestion control goes on as it was), and does not pad path validation to 1200
bytes; docs/decisions/quic-migration.md says what that means.

Streams that are over. The core forgets one when its end is told. Frames of it that it has made, but
had no congestion window for, it then looks up in vain, and the connection is lost ("reserved stream
is missing"). So no event is taken behind the end of a response while frames of that stream may
wait: it was cancelled, or packets were lost in its time, and when datagrams were last taken the
window was full (`_Parting`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from qh3.quic import events
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection

from edged.quic import Address
from edged.quic.qh3 import Broken, Streams, demand_core
from edged.upstream.quic_base import (
    CONNECTION_IDS,
    DATAGRAM_BYTES,
    BaseEngine,
    limit_payload,
    options,
)
from edged.upstream.quic_engines import ClientSettings, Counters, Sink

_INTERNAL_ERROR, _PADDING = 0x1, 0x0
_PATHS = 4
_BATCH = 16
_WAIT_RTTS, _WAIT_S = 3.0, 1.0
_NOWHERE = "192.0.2.%d"
_NO_KEY = "missing OneRtt packet key"


class _Parting:
    """Streams whose response has ended, and that the core has not forgotten."""

    def __init__(self) -> None:
        self.streams: set[int] = set()
        self._losses: dict[int, int] = {}
        """Of open streams: what had been lost when they were opened."""
        self.until: float | None = None
        """When the wait for the window ends, whatever comes of it; ``None``: nobody waits."""
        self._left_bytes = 0

    def opened(self, stream_id: int, losses: int) -> None:
        """A stream begins, when so much had been lost."""
        self._losses[stream_id] = losses

    def cancelled(self, stream_id: int) -> None:
        """What is told of its end can cross what comes of it."""
        if stream_id in self._losses:
            self._losses[stream_id] = -1

    def finished(self, stream_id: int) -> None:
        """The core has forgotten it."""
        self.streams.discard(stream_id)
        self._losses.pop(stream_id, None)

    def endangered(self, losses: int) -> bool:
        """Whether frames of one of them may wait."""
        known = self._losses
        return any(known.get(stream_id, losses) != losses for stream_id in self.streams)

    def wait(self, now: float, core: Any, left_bytes: int) -> bool:
        """The window is full, also after so much more has left: whether to wait for it.

        Frames leave in the order in which they were made, at most `_BATCH` at a time. What only
        acknowledges carries none of them and needs no window, so that it does not count here.
        """
        if self.until is None:
            wait_s = max(_WAIT_S, _WAIT_RTTS * (core.smoothed_rtt or 0.0))
            self.until, self._left_bytes = now + wait_s, 0
        self._left_bytes += left_bytes
        if self._left_bytes < _BATCH * DATAGRAM_BYTES and now < self.until:
            return True
        losses = core.loss_total + core.pto_total
        for stream_id in self.streams:
            self._losses[stream_id] = losses
        return False


class _Connection(QuicConnection):
    """A client's."""

    def _create_tls(self, remote_source_cid: bytes | None) -> Any:
        bridge = super()._create_tls(remote_source_cid)
        tls: Any = bridge.tls
        tls.handshake_extensions = [
            (kind, limit_payload(value)) for kind, value in tls.handshake_extensions
        ]
        return bridge


class Qh3Engine(Streams, BaseEngine):
    """A client connection on `qh3` 2.1 or later. Raises `EngineError` on an older one."""

    probes = False

    def __init__(self, settings: ClientSettings, on_ticket: Callable[[Any], None]) -> None:
        demand_core()
        # On another line the core begins with small datagrams again, but cannot cut smaller what it
        # has to repeat there: so none may be larger.
        quic: Any = _Connection(
            configuration=QuicConfiguration(
                **options(settings),
                active_connection_id_limit=CONNECTION_IDS,
                max_datagram_size=DATAGRAM_BYTES,
                probe_datagram_size=False,
            ),
            session_ticket_handler=on_ticket,
        )
        if settings.moves:
            # No connection id: each connection has sockets of its own (RFC 9000 section 5.1), and a
            # server needs an unused one for each address that it comes to know, of which none are
            # left after some moves whose frames were lost. (The configuration has one length for
            # both sides' first ids.) qh3's servers, which relays are, cannot do without.
            quic.host_cid = b""
        super().__init__(quic, events)
        self._core = None
        self._next_ids = {0: 0, 2: 2}
        self._broken: str | None = None
        self._path = 0
        self._addresses: dict[int, Address] = {}
        """What the core is told that datagrams of a path come from."""
        self._moves = 0
        self._unseen = False
        """Nothing came yet on the path in use, which the core does not know."""
        self._seen = False
        """Something came, and its answer was not sent yet."""
        self._parting = _Parting()
        self._full = False
        """The congestion window was, when datagrams were last taken."""
        self._out: list[bytes] = []
        """Datagrams taken before they were asked for."""
        self._now = 0.0

    def connect(self, peer: Address, now: float) -> None:
        super().connect(peer, now)
        self._addresses[0] = peer

    def receive(self, datagrams: list[bytes], now: float, path: int = 0) -> None:
        self._now = now
        address = self._addresses.get(path)
        if address is None:
            return
        if self._unseen and path == self._path:
            self._unseen = False
            self._seen = True
        if self._core is not None:
            try:
                self._core.receive_many_datagrams(datagrams, address, now)
            except (RuntimeError, ValueError) as error:
                self._broken = self._broken or str(error)
            return
        for i, datagram in enumerate(datagrams):
            self._quic.receive_datagram(datagram, address, now)
            if self._quic._handshake_complete:
                self._core = self._quic._core
                self._core.receive_many_datagrams(datagrams[i + 1 :], address, now)
                return

    def pump(self, sink: Sink) -> None:
        quic = self._quic
        while quic._events:
            self._tell(quic._events.popleft(), sink)
        core = self._core
        parting = self._parting
        if parting.until is not None and not self._full:
            self._wait_no_more()
        while core is not None and not self.stalled:
            if parting.streams and self._full and self._withheld():
                break
            event = core.next_event()
            if event is None:
                break
            kind = event[0]
            if kind == "stream_data":
                if event[3]:
                    parting.streams.add(event[1])
                sink.stream_data(event[1], event[2], event[3])
            elif kind == "stream_finished":
                parting.finished(event[1])
            elif kind == "streams_available":
                continue
            elif kind == "stream_reset":
                parting.streams.add(event[1])
                sink.stream_reset(event[1], event[2])
            elif kind == "stop_sending":
                parting.cancelled(event[1])
                sink.stop_sending(event[1], event[2])
            elif kind == "ping_acknowledged":
                sink.ping_acked(event[1])
            elif kind == "datagram":
                sink.message(event[1])
            elif kind == "path_validated":
                sink.path_validated(self._path, None)
            else:
                self._hand_back(event)
                while quic._events:
                    self._tell(quic._events.popleft(), sink)
        ended = quic._close_event
        if ended is not None and (ended.error_code, ended.frame_type) == (0, None):
            # Not an end that HTTP/3 has: so the core tells a stateless reset.
            quic._close_event = events.ConnectionTerminated(0, _PADDING, "stateless reset")
        self._tell_end(sink)
        if self._broken is not None and not self._ended:
            self._ended = True
            sink.terminated(_INTERNAL_ERROR, _PADDING, self._broken)

    def datagrams_to_send(self, now: float) -> list[bytes]:
        core = self._core
        if core is None:
            return self._shake(now)
        self._take(core, now)
        out, self._out = self._out, []
        return out

    def _shake(self, now: float) -> list[bytes]:
        """As long as the handshake takes. Asked for an answer to what went out as 0-RTT the core
        wants the keys that come of the handshake, and refuses; what it has queued for that goes
        with those of 0-RTT when it is asked again.
        """
        quic, out = self._quic, list[bytes]()
        refused = False
        while (core := quic._core) is not None:
            try:
                transmit = quic._call_core(core.poll_transmit, now)
            except Broken as error:
                if _NO_KEY not in str(error):
                    self._break(error, now)
                elif not refused:
                    refused = True
                    continue
                break
            if transmit is None:
                break
            out.append(transmit[0])
        return out

    def _take(self, core: Any, now: float) -> None:
        try:
            self._poll(core, now, self._out)
            self._full = core.congestion_window - core.bytes_in_flight < DATAGRAM_BYTES
        except Broken as error:
            self._break(error, now)

    def _break(self, error: Exception, now: float) -> None:
        """It would be silent from now on. The end is told when time has passed: at once."""
        self._broken = self._broken or str(error)
        self.get_timer = lambda: now

    def _withheld(self) -> bool:
        """Whether to take no event now, lest frames of a stream that is over be lost."""
        core, parting, now = self._core, self._parting, self._now
        if parting.endangered(core.loss_total + core.pto_total):
            before = core.bytes_in_flight
            self._take(core, now)
            if self._full and parting.wait(now, core, core.bytes_in_flight - before):
                if self._broken is None:
                    self.get_timer = self._next_look
                return True
        self._wait_no_more()
        return False

    def _wait_no_more(self) -> None:
        self._parting.until = None
        if self._broken is None:
            self.get_timer = self._quic.get_timer

    def _next_look(self) -> float | None:
        due, until = self._quic.get_timer(), self._parting.until
        return until if due is None else due if until is None else min(due, until)

    def _poll(self, core: Any, now: float, out: list[bytes]) -> None:
        poll = core.poll_transmit
        while (transmit := poll(now)) is not None:
            out.append(transmit[0])
        if self._seen:
            # quic-go leaves a challenge unanswered that comes after the answer to its own, with
            # which it begins to use the path. So the challenge overtakes; and since it has the
            # higher number, the path is used with what comes next.
            self._seen = False
            out.reverse()
            with suppress(RuntimeError):  # it is closing
                core.send_ping(0)
            while (transmit := poll(now)) is not None:
                out.append(transmit[0])

    def take_elsewhere(self) -> list[tuple[int, bytes]]:
        return []

    def handle_timer(self, now: float) -> None:
        self._now = now
        if self._core is None:
            self._quic.handle_timer(now)
        else:
            try:
                self._core.handle_timer(now)
            except (RuntimeError, ValueError) as error:
                self._broken = self._broken or str(error)

    def next_stream_id(self, *, unidirectional: bool = False) -> int:
        return self._next_ids[2 if unidirectional else 0]

    def send(self, stream_id: int, data: bytes, fin: bool) -> None:
        kind = stream_id & 3
        if stream_id >= self._next_ids[kind]:
            self._next_ids[kind] = stream_id + 4
            if (core := self._core) is not None:
                self._parting.opened(stream_id, core.loss_total + core.pto_total)
        self._send(stream_id, data, fin)

    def reset(self, stream_id: int, code: int) -> None:
        self._parting.cancelled(stream_id)
        super().reset(stream_id, code)

    def stop(self, stream_id: int, code: int) -> None:
        self._parting.cancelled(stream_id)
        super().stop(stream_id, code)

    def streams_allowed(self) -> int:
        allowed: int = self._quic.max_concurrent_bidi_streams
        return allowed

    def peer_idle_timeout_s(self) -> float | None:
        parameters = self._quic._applied_transport_parameters
        if parameters is None or not parameters.max_idle_timeout:
            return None
        seconds: float = parameters.max_idle_timeout / 1000
        return seconds

    def counters(self) -> Counters:
        core = self._core or self._quic._core
        if core is None:
            return Counters(None, None, 0, None)
        return Counters(core.smoothed_rtt, core.latest_rtt, core.loss_total, None)

    def may_migrate(self) -> bool:
        quic = self._quic
        parameters = quic._applied_transport_parameters
        return (
            self._core is not None
            and quic._handshake_confirmed
            and not parameters.disable_active_migration
        )

    def preferred_address(self, *, ipv6: bool) -> Address | None:
        parameters = self._quic._applied_transport_parameters
        return self._preferred(parameters and parameters.preferred_address, ipv6=ipv6)

    def challenge(self, path: int) -> bool:
        return False

    def migrate(self, path: int, now: float) -> bool:
        try:
            self._core.change_connection_id()
        except (RuntimeError, ValueError):  # no unused connection id, in either wording
            return False
        self._path = path
        self._moves += 1
        self._unseen = self._moves < _PATHS
        if self._unseen:
            self._addresses[path] = (_NOWHERE % self._moves, self._peer[1])
        else:
            self._addresses[path] = self._core.active_path[2]
        return True

    def forget_path(self, path: int) -> None:
        if path != self._path:
            self._addresses.pop(path, None)

    def release(self) -> None:
        tls = self._quic._tls
        self._free(*(() if tls is None else (tls,)))
        self._core = None
