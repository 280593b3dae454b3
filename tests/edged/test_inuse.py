"""PINGs as far as servers bear them, and what looks at connections lead to."""

from __future__ import annotations

import pytest

from edged.inuse import Activity, InUse, PingProbe
from edged.upstream.h2 import H2Connection
from policies.manners import TRIAL
from policies.model import Carrier, Endpoint, Kind, Line, Outcome, Path
from probes.watch import Look, Stuck

PATH = Path(Line("a"), Endpoint("u", "e", "https", "e.test", 443))


class Table:
    def __init__(self):
        self.announced, self.seen, self.judged, self.convincing = [], [], [], True

    def sent(self, path, kind, now, carrier=None):
        self.announced.append((path, kind, carrier))

    def saw(self, sent, seen, now):
        self.seen.append((sent, seen))

    def stuck(self, path, times, lost, now):
        self.judged.append((path, times, lost))
        return self.convincing


class Connection:
    """As much of an h3 connection as is looked at."""

    carrier = Carrier.H3
    path = PATH
    heard_at = 1.0

    def __init__(self, in_flight=0, fd=None):
        self.in_flight, self.fd, self.done, self.failure = in_flight, fd, [], None
        self.closed = self.calmed = False

    def ping(self, done, timeout_s):
        self.done.append(done)
        return True

    def fileno(self):
        return self.fd

    def close(self, failure=None):
        self.failure, self.closed = failure, True


class H2(Connection, H2Connection):
    carrier = Carrier.H2

    def __init__(self, in_flight=0, fd=None):  # not H2Connection's: no transport is needed
        Connection.__init__(self, in_flight, fd)


class Pools:
    def __init__(self, *connections):
        self.connections = connections

    def pingable(self, path):
        return iter(self.connections)

    def in_use(self):
        return (c for c in self.connections if c.in_flight)


class Bench:
    def __init__(self, *connections):
        self.now = 100.0
        self.table, self.pools = Table(), Pools(*connections)
        self.probe = PingProbe(self.pools, self.table, lambda: self.now)

    def ping(self):
        """One PING, 200 ms after the last; the carriers that were asked."""
        self.now += 0.2
        before = len(self.table.announced)
        self.probe.start(PATH, timeout_s=1.0, report=None)
        return [carrier for _, _, carrier in self.table.announced[before:]]


def test_quic_may_always_be_asked_and_is_announced_as_such():
    bench = Bench(Connection(in_flight=3))
    assert bench.ping() == [Carrier.H3]
    assert bench.table.announced == [(PATH.name, Kind.PING, Carrier.H3)]


def test_a_busy_h2_connection_is_asked_only_once_its_server_bore_it_on_an_idle_one():
    busy, idle = H2(in_flight=1), H2()
    bench = Bench(busy, idle)
    for _ in range(TRIAL):
        assert bench.ping() == [Carrier.H2]
        assert not busy.done
        idle.done.pop()(0.06)
    assert bench.probe.speaks(PATH.name, PATH.endpoint.key) == {Carrier.H2}
    bench.ping()
    assert len(busy.done) == 1, "the newest, busy or not"


def test_enhance_your_calm_silences_pings_on_every_connection_of_the_server():
    idle = H2()
    bench = Bench(idle)
    bench.ping()
    idle.done.pop()(0.06)
    bench.ping()
    idle.calmed = idle.closed = True
    idle.done.pop()(None)
    assert bench.ping() == []
    assert bench.probe.speaks(PATH.name, PATH.endpoint.key) == frozenset()


def test_connections_with_an_answer_outstanding_are_looked_at_until_it_is_there():
    idle = H2()
    bench = Bench(idle)
    bench.ping()
    bench.ping()
    assert list(bench.probe.asked) == [idle]
    idle.done.pop()(0.06)
    assert list(bench.probe.asked) == [idle]
    idle.done.pop()(None)
    assert not bench.probe.asked


class Tunnel:
    path_name = PATH.name

    def __init__(self, fd):
        self.fd, self.detail = fd, None

    def fileno(self):
        return self.fd

    def give_up(self, detail):
        self.detail = detail


def look_at(*stuck, connections=(), tunnels=(), convincing=True):
    bench = Bench(*connections)
    bench.table.convincing = convincing
    in_use = InUse(bench.pools, bench.table, (), lambda: tunnels, lambda sample: None)
    in_use._watch.look = lambda live, now: (list(live), Look([], [], [], list(stuck)))[1]
    in_use.look(105.0)
    return bench


def test_a_stuck_connection_is_closed_so_that_its_exchanges_move():
    stuck, other = H2(in_flight=1, fd=5), H2(in_flight=1, fd=6)
    look_at(Stuck(PATH.name, 5, 3, 2, 104.0), connections=(other, stuck))
    assert stuck.failure.path_down
    assert stuck.failure.outcome is Outcome.TIMEOUT
    assert "large packets" in stuck.failure.detail
    assert not other.closed


def test_what_may_be_loss_is_left_alone():
    stuck = H2(in_flight=1, fd=5)
    bench = look_at(Stuck(PATH.name, 5, 2, 0, 104.0), connections=(stuck,), convincing=False)
    assert bench.table.judged == [(PATH.name, 2, 0)]
    assert not stuck.closed


@pytest.mark.parametrize(("times", "given_up"), [(3, False), (5, True)])
def test_a_tunnel_cannot_move_and_is_given_more_time(times, given_up):
    tunnel = Tunnel(7)
    look_at(Stuck(PATH.name, 7, times, 0, 100.0), tunnels=(tunnel,))
    assert (tunnel.detail is not None) is given_up


class Resting:
    """A tunnel."""

    def __init__(self, line_name, waits):
        self.line_name, self.waiting = line_name, waits

    def waits(self, now):
        return self.waiting


def test_tunnels_that_rest_do_not_keep_their_line_busy():
    counts = {"a": 2, "b": 1}

    class Lines:
        doubted = silent = dead = stirred = None

        def in_flight(self, line):
            return counts.get(line, 0)

    tunnels = [Resting("a", False), Resting("a", False), Resting("b", True)]
    activity = Activity(Lines(), lambda: tunnels, lambda: 0.0)
    assert [activity.waiting(line) for line in "abc"] == [False, True, False]
    counts["a"] = 3  # an exchange beside them
    assert activity.waiting("a")
    counts["a"], tunnels[1].waiting = 2, True
    assert activity.waiting("a")
