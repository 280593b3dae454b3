"""A seeded network in virtual time under the real probes' clockwork, table and connection watch.

What is simulated is what lies below: packets over lines, TCP's and QUIC's repetition of lost ones
(TLP, RACK and RTO as RFC 8985 and 6298 have them), echoes, connects, PINGs, servers that answer.
What decides is the real thing: `Scheduler` with its `Planner`, `ConnectionWatch`, `PathTable`.

Exchanges are simple: the table's first path, and when that is declared DOWN, or its transport
blocked, or the connection stuck, the next choice. `simnet` has the real attempt machine.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from dataclasses import dataclass, field

from edged.table import PathTable
from policies.model import (
    Carrier,
    Endpoint,
    Kind,
    Line,
    Outcome,
    RequestClass,
    Sample,
    Topology,
    Verdict,
)
from policies.schema import Policy
from probes.kernel import parse
from probes.schedule import Scheduler
from probes.watch import ConnectionWatch, Live

CLASS = RequestClass.of(1024)
MSS = 1448
_NO_INFO = parse(bytes(248))


@dataclass
class SimLine:
    """Changeable while running. ``hole`` and ``udp_hole``: "", "up", "down" or "both"."""

    rtt_s: float
    loss: float = 0.0
    jitter_s: float = 0.002
    hole: str = ""
    udp_hole: str = ""
    mtu: int | None = None
    """Longer packets vanish."""
    burst: tuple[float, float] | None = None
    """Mean seconds of good and of bad; bad loses all."""
    bad: bool = False
    turns_at: float = 0.0
    extra_s: float = 0.0
    """A queue: so much later one way."""

    def passes(self, way: str, rng: random.Random, now, size=80, udp=False) -> bool:
        if self.burst is not None:
            while now >= self.turns_at:
                self.bad = not self.bad
                self.turns_at += rng.expovariate(1 / self.burst[self.bad])
            if self.bad:
                return False
        if self.hole in (way, "both") or (udp and self.udp_hole in (way, "both")):
            return False
        if self.mtu is not None and size > self.mtu:
            return False
        return rng.random() >= self.loss


@dataclass
class SimEndpoint:
    carrier: Carrier = Carrier.H2
    icmp: bool = True
    dead: bool = False
    think_s: float = 0.0


@dataclass
class Request:
    """One exchange: when, over which paths, and how long."""

    begun: float
    starts: list = field(default_factory=list)
    ended: float | None = None
    moves: list = field(default_factory=list)

    @property
    def seconds(self):
        return None if self.ended is None else self.ended - self.begun


class Half:
    """One direction of a connection: reliable, in order, repeated when lost."""

    def __init__(self, net, path, way, udp):
        self.net, self.path, self.way, self.udp = net, path, way, udp
        self.line, self.endpoint = net.of(path)
        self.srtt, self.rttvar = self.line.rtt_s, self.line.rtt_s / 8
        self.flying: dict[int, list] = {}  # number -> [size, sent_at, times, arrived]
        self.next = self.total_retrans = self.delivered = self.rtos = self.segs_out = 0
        self.acked_bytes = 1
        self.sent_at = self.acked_at = self.got_at = self.newest = 0.0
        self.next_in_order = self.in_order = self.beyond = 0
        self.waiting: deque = deque()  # (first and last number, callback)
        self.timer = 0
        self.closed = False

    def send(self, size, delivered):
        idle, first = not self.open, self.next
        while size > 0:
            piece = min(size, MSS)
            size -= piece
            self.flying[self.next] = [piece, 0.0, 0, False]
            self.next += 1
            self._transmit(self.next - 1)
        self.waiting.append((first, self.next - 1, delivered))
        if idle:
            self._arm()

    def _transmit(self, number):
        if self.closed:
            return
        segment = self.flying[number]
        again = segment[2] > 0
        segment[1], segment[2] = self.net.now, segment[2] + 1
        self.sent_at = self.net.now
        self.segs_out += 1
        self.total_retrans += again
        if not self.endpoint.dead and self.line.passes(
            self.way, self.net.rng, self.net.now, segment[0] + 60, self.udp
        ):
            delay = self.line.rtt_s / 2 + self.net.jitter(self.line) + self.line.extra_s
            self.net.after(delay, self._arrive, number, self.net.now, again)

    def _arrive(self, number, sent_at, again):
        if self.closed:
            return
        self.got_at = self.net.now
        if number in self.flying and not self.flying[number][3]:
            self.flying[number][3] = True
            if number == self.next_in_order:
                while self.flying.get(self.next_in_order, (0, 0, 0, False))[3]:
                    self.in_order += self.flying[self.next_in_order][0]
                    self.next_in_order += 1
            else:
                self.beyond += 1
        back = "down" if self.way == "up" else "up"
        if not self.endpoint.dead and self.line.passes(
            back, self.net.rng, self.net.now, 60, self.udp
        ):
            delay = self.line.rtt_s / 2 + self.net.jitter(self.line) + self.line.extra_s
            self.net.after(delay, self._ack, number, sent_at, again)
        self._hand_over()

    def _hand_over(self):
        """TCP hands on in order; of QUIC each stream stands for itself."""
        missing = {n for n, segment in self.flying.items() if not segment[3]}
        for message in tuple(self.waiting):
            first, last, delivered = message
            if not missing.isdisjoint(range(first, last + 1)):
                if self.udp:
                    continue
                return
            self.waiting.remove(message)
            delivered()

    def _ack(self, number, sent_at, again):
        if self.closed:
            return
        self.acked_at = self.net.now
        self.newest = max(self.newest, sent_at)
        segment = self.flying.get(number)
        if segment is None or segment[2] < 0:
            return
        if not again:
            rtt = self.net.now - sent_at
            self.rttvar += (abs(rtt - self.srtt) - self.rttvar) / 4
            self.srtt += (rtt - self.srtt) / 8
        self.delivered += 1
        segment[2] = -segment[2]  # acknowledged, perhaps out of order
        progress = False
        while self.flying and self.flying[min(self.flying)][2] < 0:
            self.acked_bytes += self.flying.pop(min(self.flying))[0]
            self.rtos, progress = 0, True
        for lost in self.open:  # RACK: something sent later has come
            if self.late(lost):
                self._transmit(lost)
        if progress or not self.open:
            self._arm()

    def _arm(self):
        """After progress, or when the first segment leaves."""
        self.timer += 1
        if not self.open:
            return
        if all(self.flying[n][2] == 1 for n in self.open):
            wait = 2 * self.srtt + (0.2 if len(self.open) == 1 else 0.002)
            self.net.after(wait, self._expire, self.timer, True)
        else:
            self._arm_rto()

    def _arm_rto(self):
        rto = (self.srtt + max(0.2, 4 * self.rttvar)) * 2**self.rtos
        self.net.after(rto, self._expire, self.timer, False)

    def _expire(self, timer, tail):
        if timer != self.timer or self.closed or not self.open:
            return
        if tail:
            self._transmit(self.open[-1])
        else:
            self.rtos += 1
            self._transmit(self.open[0])
        self.timer += 1
        self._arm_rto()

    def late(self, number):
        """RACK: something sent later has come."""
        return self.flying[number][1] + self.srtt / 4 < self.newest

    @property
    def open(self):
        return [n for n, segment in self.flying.items() if segment[2] > 0]


class Connection:
    """Two halves; requests, PINGs and whoever waits on it."""

    def __init__(self, net, path, carrier):
        self.net, self.path, self.carrier = net, path, carrier
        udp = carrier is Carrier.H3
        self.up, self.down = Half(net, path, "up", udp), Half(net, path, "down", udp)
        self.fd = None if udp else next(net.fds)
        self.heard_at = 0.0
        self.waiters: dict[int, tuple] = {}
        self.closed = False
        self.pings = 0
        """Not answered yet."""
        if self.fd is not None:
            net.sockets[self.fd] = self

    def ask(self, up_bytes, think_s, down_bytes, answered, pieces=0, every_s=0.05, piece=None):
        """Send, let the server think, get the answer; then ``pieces`` more of a stream."""

        def at_server():
            self.net.after(think_s, reply)

        def reply():
            self.send_down(down_bytes, answered)
            for number in range(pieces):
                self.net.after(every_s * (number + 1), self.send_down, 200, piece)

        self.up.send(up_bytes, at_server)

    def send_down(self, size, got):
        def arrived():
            self.heard_at = self.net.now
            if not self.closed and got is not None:
                got()

        if not self.closed:
            self.down.send(size, arrived)

    def close(self):
        self.closed = self.up.closed = self.down.closed = True
        if self.fd is not None:
            self.net.sockets.pop(self.fd, None)

    def info(self):
        up, now = self.up, self.net.now
        return _NO_INFO._replace(
            state=1,
            retransmits=up.rtos,
            backoff=up.rtos,
            rto_s=up.srtt + 0.2,
            unacked=len(up.flying),
            sacked=len(up.flying) - len(up.open),
            lost=sum(up.flying[n][2] > 1 or up.late(n) for n in up.open),
            last_data_sent_s=now - up.sent_at,
            last_data_recv_s=now - self.down.got_at,
            last_ack_recv_s=now - up.acked_at,
            rtt_s=up.srtt,
            bytes_received=self.down.in_order,
            rcv_ooopack=self.down.beyond,
            rttvar_s=up.rttvar,
            total_retrans=up.total_retrans,
            bytes_acked=up.acked_bytes,
            data_segs_out=up.segs_out,
            delivered=up.delivered,
        )


class _Loop:
    """What `Scheduler` needs of an event loop and of its future."""

    def __init__(self, net):
        self.net = net

    def get_loop(self):
        return self

    def done(self):
        return False

    def set_exception(self, error):
        raise error

    def call_soon(self, call):
        self.net.after(0.0, call)

    def call_later(self, wait_s, call):
        handle = _Handle(call)
        self.net.after(wait_s, handle)
        return handle


class _Handle:
    def __init__(self, call):
        self.call = call

    def __call__(self):
        if self.call is not None:
            self.call()

    def cancel(self):
        self.call = None


class _Probe:
    """Every kind; starts are plain calls."""

    COSTS = {Kind.ICMP: 112, Kind.TCP: 420, Kind.PING: 354, Kind.HTTP: 8192, Kind.QUIC: 9000}

    def __init__(self, net, kind):
        self.net, self.kind, self.cost_bytes = net, kind, self.COSTS[kind]

    def start(self, path, *, timeout_s, report):
        self.net.probe_bytes[path.line.name] += self.cost_bytes
        self.net.sent.append((self.net.now, path.name, self.kind))
        getattr(self, f"_{self.kind.value}")(path.name, timeout_s, report)

    async def run(self, path, *, timeout_s):
        raise AssertionError("starts are plain calls")

    def _round_trip(self, path, trips, size=80, udp=False):
        line, endpoint = self.net.of(path)
        total = 0.0
        for _ in range(trips):
            ok = line.passes("up", self.net.rng, self.net.now, 80, udp) and not endpoint.dead
            if not ok or not line.passes("down", self.net.rng, self.net.now, size, udp):
                return None
            total += line.rtt_s + 2 * line.extra_s + self.net.jitter(line)
        return total

    def _settle(self, path, total_s, rtt_s, timeout_s, report, outcome=Outcome.OK):
        sent_at = self.net.now
        if total_s is None or total_s > timeout_s:
            sample = Sample(path, self.kind, sent_at, None, Outcome.TIMEOUT)
            self.net.after(timeout_s, report, sample)
        else:
            self.net.after(total_s, report, Sample(path, self.kind, sent_at, rtt_s, outcome))

    def _icmp(self, path, timeout_s, report):
        self.net.table.sent(path, self.kind, self.net.now)
        rtt = self._round_trip(path, 1) if self.net.of(path)[1].icmp else None
        self._settle(path, rtt, rtt, timeout_s, report)

    def _tcp(self, path, timeout_s, report):
        self.net.table.sent(path, self.kind, self.net.now)
        rtt = self._round_trip(path, 1)
        self._settle(path, rtt, rtt, timeout_s, report)

    def _http(self, path, timeout_s, report):
        tries = 3
        total, late = None, 0.0
        while total is None and tries:
            total = self._round_trip(path, 3, 1500)
            tries -= 1
            late += 0.3 if total is None else 0.0
        total = None if total is None else total + late
        self._settle(path, total, None if total is None else total / 3, timeout_s, report)

    def _quic(self, path, timeout_s, report):
        total = self._round_trip(path, 2, 1280, True)
        self._settle(path, total, None if total is None else total / 2, timeout_s, report)

    def _ping(self, path, timeout_s, report):
        net = self.net
        connection = net.pingable(path)
        if connection is None:
            return
        sent_at, carrier, told = net.now, connection.carrier, []
        net.table.sent(path, Kind.PING, sent_at, carrier)

        def acked():
            if not told:
                told.append(1)
                connection.pings -= 1
                report(Sample(path, Kind.PING, sent_at, net.now - sent_at, carrier=carrier))

        def lost():
            if not told and not connection.closed:
                told.append(1)
                connection.pings -= 1
                report(Sample(path, Kind.PING, sent_at, None, Outcome.TIMEOUT, carrier=carrier))

        connection.pings += 1
        connection.up.send(40, lambda: connection.send_down(40, acked))
        net.after(timeout_s, lost)


class Net:
    """Lines, endpoints, connections, probes, exchanges and the clock."""

    def __init__(self, seed, lines, endpoints=None, policy=None):
        self.rng = random.Random(seed)
        self.now = 0.0
        self.lines: dict[str, SimLine] = lines
        self.endpoints: dict[str, SimEndpoint] = endpoints or {"e1": SimEndpoint()}
        self.fds = itertools.count(10)
        self.sockets: dict[int, Connection] = {}
        self.pools: dict[str, list[Connection]] = {}
        self.busy: dict[Connection, int] = {}
        self.blocked: dict[str, tuple] = {}
        self.changes, self.carrier_changes, self.requests = [], [], []
        self.sent, self.stuck, self.choices = [], [], []
        self.probe_bytes = dict.fromkeys(lines, 0)
        self._heap, self._order = [], itertools.count()
        policy = policy or Policy()
        protocols = {
            Carrier.H1: (Carrier.H1,),
            Carrier.H2: (Carrier.H2, Carrier.H1),
            Carrier.H3: (Carrier.H3, Carrier.H2, Carrier.H1),
        }
        topology = Topology(
            None,
            tuple(Line(name) for name in lines),
            tuple(
                Endpoint("u", name, "https", f"{name}.test", 443, protocols=protocols[e.carrier])
                for name, e in self.endpoints.items()
            ),
        )
        self.table = PathTable(
            topology, {"u": policy}, 0.0, rng=random.Random(seed), on_choice=self.choices.append
        )
        self.table.subscribe(self._changed)
        self.table.subscribe_carriers(self._carrier_changed)
        for path in topology.paths():
            self.table.set_warm(path.name, self.endpoints[path.endpoint.name].carrier)
        self.watch = ConnectionWatch(
            lambda fd: self.sockets[fd].info() if fd in self.sockets else None
        )
        kinds = (Kind.ICMP, Kind.TCP, Kind.PING, Kind.HTTP, Kind.QUIC)
        self.scheduler = Scheduler(
            {kind: _Probe(self, kind) for kind in kinds},
            self.table,
            self._report,
            estimate=lambda name: self.table.snapshot.paths[name].estimate,
            watch=self,
            lacks=self._lacks,
            clock=lambda: self.now,
            rng=random.Random(seed),
        )
        self.scheduler.reload(topology.paths(), lambda _: policy.cadence)
        self.scheduler._stopped = _Loop(self)
        self.after(0.0, self.scheduler._turn)
        self.after(0.05, self._tick)

    # -- clock ---------------------------------------------------------------------------------

    def at(self, when, call, *args):
        heapq.heappush(self._heap, (max(when, self.now), next(self._order), call, args))

    def after(self, seconds, call, *args):
        self.at(self.now + seconds, call, *args)

    def run(self, until):
        """Events and the table's deadlines in the order of time."""
        while True:
            due = self.table.next_deadline()
            event = self._heap[0][0] if self._heap else None
            if due is not None and due <= until and (event is None or due <= event):
                self.now = max(self.now, due)
                self._advance()
            elif event is not None and event <= until:
                self.now, _, call, args = heapq.heappop(self._heap)
                call(*args)
            else:
                self.now = until
                return

    def _tick(self):
        self.after(0.05, self._tick)
        self._advance()

    def _advance(self):
        stirs = self.table.stirs
        self.table.tick(self.now)
        if self.table.stirs != stirs:
            self.scheduler.nudge()

    # -- network -------------------------------------------------------------------------------

    def of(self, path) -> tuple[SimLine, SimEndpoint]:
        line, _, rest = path.partition(">")
        return self.lines[line], self.endpoints[rest.partition("/")[2]]

    def jitter(self, line):
        return self.rng.random() * line.jitter_s

    def carrier(self, path):
        carrier = self.of(path)[1].carrier
        return Carrier.H2 if carrier in self.blocked.get(path, ()) else carrier

    def connection(self, path):
        carrier = self.carrier(path)
        pool = self.pools.setdefault(path, [])
        for connection in pool:
            free = connection.carrier is not Carrier.H1 or not self.busy.get(connection)
            if connection.carrier is carrier and free:
                return connection
        pool.append(Connection(self, path, carrier))
        return pool[-1]

    def pingable(self, path):
        if self.carrier(path) is Carrier.H1:
            return None
        down = self.table.snapshot.paths[path].verdict is Verdict.DOWN
        return next(iter(self.pools.get(path, ())), None) if down else self.connection(path)

    def sample(self, path, kind, rtt_s, **more):
        """One that just arrived."""
        return Sample(path, kind, self.now - rtt_s, rtt_s, **more)

    def _report(self, sample):
        if sample.kind is Kind.QUIC:
            sample = sample._replace(carrier=Carrier.H3)
        self.table.observe(sample, self.now)

    def _read(self, fd):
        connection = self.sockets.get(fd)
        return None if connection is None else connection.info()

    def _lacks(self, path):
        lacks = {Kind.ICMP} if self.table.mute(path) else set()
        carrier = self.carrier(path)
        more = {Carrier.H1: {Kind.PING}, Carrier.H3: {Kind.KERNEL}}
        return frozenset(lacks | more.get(carrier, set()))

    # -- the watch (`probes.schedule.Watch`) -----------------------------------------------------

    def next_due(self):
        return self.watch.next_due()

    def look(self, now):
        live = [
            Live(c.path, c.fd, c.carrier, c.heard_at)
            for pool in self.pools.values()
            for c in pool
            if self.busy.get(c) or c.pings
        ]
        look = self.watch.look(live, now)
        self.table.saw(look.sent, look.seen, now)
        for sample in look.samples:
            self._report(sample)
        for stuck in look.stuck:
            self.stuck.append((now, stuck))
            if (
                self.table.stuck(stuck.path, stuck.times, stuck.lost, now)
                and stuck.fd in self.sockets
            ):
                self._close(self.sockets[stuck.fd])

    # -- what the table tells --------------------------------------------------------------------

    def _changed(self, change):
        self.changes.append(change)
        self.scheduler.nudge()
        if change.new is Verdict.DOWN:
            self._leave(change.path, tuple(Carrier))

    def _carrier_changed(self, change):
        self.carrier_changes.append(change)
        self.blocked[change.path] = change.carriers if change.blocked else ()
        if change.blocked:
            self._leave(change.path, change.carriers)

    def _leave(self, path, carriers):
        for connection in self.pools.get(path, ())[:]:
            if connection.carrier in carriers:
                self._close(connection)

    def _close(self, connection):
        self.pools[connection.path].remove(connection)
        connection.close()
        self.busy.pop(connection, None)
        waiters, connection.waiters = connection.waiters, {}
        for move in waiters.values():
            move()

    # -- traffic -------------------------------------------------------------------------------

    def request(self, *, up=400, down=1000, think_s=None, pieces=0):
        request = Request(self.now)
        self.requests.append(request)
        self._try(request, up, down, think_s, pieces)
        return request

    def _try(self, request, up, down, think_s, pieces):
        state = self.table.ranking("u", CLASS).order[0].state
        if state.verdict is Verdict.DOWN:
            self.after(0.1, self._try, request, up, down, think_s, pieces)
            return
        path = state.path.name
        endpoint = self.of(path)[1]
        connection = self.connection(path)
        request.starts.append((self.now, path, connection.carrier))
        self.busy[connection] = self.busy.get(connection, 0) + 1
        self.table.started(path)
        sent_at, left = self.now, [pieces]

        def move():
            self.table.finished(path)
            request.moves.append(self.now)
            self.after(0.0, self._try, request, up, down, think_s, pieces)

        def finish():
            connection.waiters.pop(id(request), None)
            self.busy[connection] = max(0, self.busy.get(connection, 1) - 1)
            self.table.finished(path)
            request.ended = self.now

        def answered():
            sample = Sample(
                path, Kind.TTFB, sent_at, self.now - sent_at, carrier=connection.carrier
            )
            self.table.observe(sample, self.now)
            if not pieces:
                finish()

        def piece():
            left[0] -= 1
            if not left[0]:
                finish()

        connection.waiters[id(request)] = move
        think_s = endpoint.think_s if think_s is None else think_s
        connection.ask(up, think_s, down, answered, pieces, piece=piece)

    def traffic(self, per_s, until, **kwargs):
        """Requests at a steady rate from now on."""
        when = self.now
        while (when := when + 1 / per_s) < until:
            self.at(when, lambda: self.request(**kwargs))

    # -- what happened -------------------------------------------------------------------------

    def first(self, verdict, line, since=0.0):
        """When a path of ``line`` first got ``verdict``."""
        return next(
            (
                c.at
                for c in self.changes
                if c.at >= since and c.new is verdict and c.path.startswith(line + ">")
            ),
            None,
        )

    def line_down(self, line):
        return self.table.line_verdict(line) is Verdict.DOWN


def two_lines():
    """The two lines of the issue: A 60 ms, 0.1% loss; B 150 ms, 1% loss."""
    return {"a": SimLine(0.060, 0.001), "b": SimLine(0.150, 0.01)}
