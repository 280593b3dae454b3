"""Dialling over lines on loopback: binding, happy eyeballs, deadlines, errors that help."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import time

import pytest

from edged.binding import SO_BINDTODEVICE, SO_MARK, bind, dial_error, families
from edged.dialer import DialForbidden, LineDialer, most_telling
from edged.guard import forbidden
from edged.race import RaceLost, race
from edged.resolver import Resolver
from edged.system_dns import SystemFiles
from policies.model import Blame, Line, Outcome
from probes.base import DialError

CN2 = Line("cn2", source="127.0.0.2")
V6 = Line("v6", source="::1")
ANY = Line("any")


def may_mark():
    with socket.socket() as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, 1)
        except PermissionError:
            return False
    return True


needs_root = [
    pytest.mark.root,
    pytest.mark.skipif(not may_mark(), reason="needs CAP_NET_ADMIN to set a mark"),
]


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(5)
        yield sock


@pytest.fixture
def port(listener):
    return listener.getsockname()[1]


def dialer_for(tmp_path, hosts="", **kwargs):
    (tmp_path / "hosts").write_text(hosts)
    files = SystemFiles(hosts=str(tmp_path / "hosts"), resolv_conf="/nonexistent")

    async def lookup(_):
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    return LineDialer(Resolver(files=files, lookup=lookup), **kwargs)


def connect(line, host, port, *, dialer=None, timeout_s=2.0, udp=False, address=None):
    async def main():
        own = dialer or LineDialer()
        method = own.connect_udp if udp else own.connect_tcp
        try:
            return await method(line, host, port, address=address, timeout_s=timeout_s)
        finally:
            await own.close()

    return asyncio.run(main())


def refusal(*args, **kwargs):
    with pytest.raises(DialError) as caught:
        connect(*args, **kwargs)
    return caught.value


# --- binding ----------------------------------------------------------------------------------


def test_a_source_address_is_what_the_peer_sees(listener, port):
    dialed = connect(CN2, "127.0.0.1", port)
    with dialed.sock:
        peer, address = listener.accept()
        peer.close()
        assert address[0] == "127.0.0.2"
        assert dialed.peer == ("127.0.0.1", port)
        assert dialed.sock.getblocking() is False
        assert 0 < dialed.rtt_s <= dialed.connect_s
        assert dialed.dns_s < 0.5


def test_ipv6_source_and_destination():
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        port = listener.getsockname()[1]
        dialed = connect(V6, "[::1]", port)
        with dialed.sock:
            assert dialed.peer == ("::1", port)


def test_a_line_dials_only_the_family_of_its_source(tmp_path, port):
    dialer = dialer_for(tmp_path, "::1 both.test\n127.0.0.1 both.test\n")
    with connect(CN2, "both.test", port, dialer=dialer).sock as sock:
        assert sock.family == socket.AF_INET
    assert families(CN2) == (socket.AF_INET,)
    assert families(V6) == (socket.AF_INET6,)
    error = refusal(CN2, "::1", port)
    assert "families differ" in error.detail


def test_ports_are_not_taken_before_the_destination_is_known(port):
    with connect(CN2, "127.0.0.1", port).sock as sock:
        assert sock.getsockopt(socket.IPPROTO_IP, 24) == 1


def test_tcp_options_are_set(port):
    with connect(CN2, "127.0.0.1", port).sock as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, 18) == 30000  # TCP_USER_TIMEOUT
        with contextlib.suppress(OSError), socket.socket() as other:  # else an older kernel
            other.setsockopt(socket.IPPROTO_TCP, 45, 60_000)  # TCP_RTO_MIN_US
            assert sock.getsockopt(socket.IPPROTO_TCP, 45) <= 52_000
        with socket.socket() as other:
            try:
                other.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")
            except OSError:
                return  # not in this kernel, or not allowed to us
        used = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        assert used.rstrip(b"\0") == b"bbr"


def test_an_unknown_congestion_control_is_asked_for_once_and_done_without(port):
    dialer = LineDialer(congestion="nosuch")
    connect(CN2, "127.0.0.1", port, dialer=dialer).sock.close()
    assert dialer._congestion is None
    connect(CN2, "127.0.0.1", port, dialer=dialer).sock.close()


class TestRoot:
    pytestmark = needs_root

    def test_an_interface_binds(self, port):
        with connect(Line("bgp", interface="lo"), "127.0.0.1", port).sock as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"

    def test_a_mark_binds(self, port):
        with connect(Line("hk", mark=17), "127.0.0.1", port).sock as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, SO_MARK) == 17

    def test_udp_binds_too(self):
        with connect(Line("hk", mark=17), "127.0.0.1", 9, udp=True).sock as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, SO_MARK) == 17


# --- errors -----------------------------------------------------------------------------------


def test_a_source_that_is_not_here_blames_the_line_and_says_what_to_look_at(port):
    error = refusal(Line("cn2", source="10.71.1.2"), "127.0.0.1", port)
    assert error.outcome is Outcome.UNREACHABLE
    assert error.outcome.blame is Blame.LINE
    assert error.detail == "line cn2: source address 10.71.1.2 is not on this host: see `ip addr`"


def test_an_interface_that_is_not_here(port):
    error = refusal(Line("bgp", interface="nope0"), "127.0.0.1", port)
    assert error.outcome is Outcome.UNREACHABLE
    assert "interface nope0 does not exist on this host: see `ip link`" in error.detail


def test_no_way_from_the_source_names_the_command():
    # A loopback source cannot leave the host: the kernel refuses without sending anything.
    error = refusal(CN2, "203.0.113.1", 443)
    assert error.outcome is Outcome.UNREACHABLE
    assert "`ip route get 203.0.113.1 from 127.0.0.2`" in error.detail


def test_refused():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        error = refusal(CN2, "127.0.0.1", closed.getsockname()[1])
    assert error.outcome is Outcome.REFUSED
    assert error.outcome.blame is Blame.ENDPOINT


def test_names_that_do_not_resolve(tmp_path):
    assert refusal(ANY, "gone.test", 1, dialer=dialer_for(tmp_path)).outcome is Outcome.NO_NAME


def test_the_deadline_covers_a_silent_peer():
    with full_queue() as port:
        start = time.monotonic()
        error = refusal(CN2, "127.0.0.1", port, timeout_s=0.2)
        assert error.outcome is Outcome.TIMEOUT
        assert "within 0.2 s" in error.detail
        assert time.monotonic() - start < 1


def test_running_out_of_descriptors_blames_nobody(port):
    async def main():
        dialer = LineDialer()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        held = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 2, hard))
        try:
            with pytest.raises(DialError) as caught:
                while True:
                    held.append(await dialer.connect_tcp(CN2, "127.0.0.1", port, timeout_s=1))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for dialed in held:
                dialed.sock.close()
        return caught.value

    error = asyncio.run(main())
    assert error.outcome is Outcome.LOCAL
    assert error.outcome.blame is Blame.NOBODY
    assert "LimitNOFILE" in error.detail


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (errno.ENETUNREACH, Outcome.UNREACHABLE),
        (errno.EHOSTUNREACH, Outcome.UNREACHABLE),
        (errno.EPERM, Outcome.UNREACHABLE),
        (errno.ENODEV, Outcome.UNREACHABLE),
        (errno.EADDRNOTAVAIL, Outcome.LOCAL),  # at connect: no free port
        (errno.ETIMEDOUT, Outcome.TIMEOUT),
        (errno.ECONNRESET, Outcome.RESET),
        (errno.EPIPE, Outcome.RESET),
        (errno.ECONNREFUSED, Outcome.REFUSED),
        (errno.EMFILE, Outcome.LOCAL),
        (errno.ENOBUFS, Outcome.LOCAL),
    ],
)
@pytest.mark.parametrize("line", [CN2, ANY, Line("i", interface="eth1"), Line("m", mark=1)])
def test_every_errno_has_a_meaning_and_a_text(code, outcome, line):
    error = dial_error(line, OSError(code, os.strerror(code)), "[2001:db8::1]:443")
    if code == errno.EADDRNOTAVAIL and line is not CN2:
        outcome = Outcome.UNREACHABLE
    assert error.outcome is outcome
    assert line.name in error.detail or outcome is Outcome.LOCAL
    if outcome is Outcome.UNREACHABLE and code != errno.EPERM:
        assert "ip route get 2001:db8::1" in error.detail


@pytest.mark.parametrize(
    ("line", "code", "hint"),
    [
        (Line("m", mark=1), errno.EPERM, "CAP_NET_ADMIN"),
        (Line("i", interface="lo"), errno.EPERM, "CAP_NET_RAW"),
        (CN2, errno.EACCES, "cannot bind"),
    ],
)
def test_missing_privileges_are_named(line, code, hint):
    class Denied:
        def setsockopt(self, *_):
            raise OSError(code, os.strerror(code))

        bind = setsockopt

    with pytest.raises(DialError) as caught:
        bind(Denied(), line)
    assert caught.value.outcome is Outcome.UNREACHABLE
    assert hint in caught.value.detail


def test_no_socket_is_left_behind_by_failures(tmp_path, port):
    dialer = dialer_for(tmp_path, "::1 both.test\n127.0.0.1 both.test\n")
    connect(ANY, "both.test", port, dialer=dialer).sock.close()
    before = len(os.listdir("/proc/self/fd"))
    with full_queue() as silent:
        for target in (("127.0.0.1", 1), ("127.0.0.1", silent), ("both.test", 1)):
            refusal(ANY, *target, dialer=dialer, timeout_s=0.1)
    refusal(Line("x", source="10.71.1.2"), "127.0.0.1", port)
    assert len(os.listdir("/proc/self/fd")) == before


# --- happy eyeballs ---------------------------------------------------------------------------


class full_queue:
    """A port on 127.0.0.1 (or ``address``) whose SYNs go unanswered: its accept queue is full."""

    def __init__(self, address="127.0.0.1", port=0):
        self.address, self.port = address, port

    def __enter__(self):
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        self.socks = [socket.socket(family)]
        self.socks[0].bind((self.address, self.port))
        self.socks[0].listen(0)
        where = self.socks[0].getsockname()
        for _ in range(2):
            filler = socket.socket(family)
            filler.setblocking(False)
            filler.connect_ex(where)
            self.socks.append(filler)
        time.sleep(0.02)  # the handshakes that fill the queue
        return where[1]

    def drain(self):
        """From now on SYNs are answered."""
        self.socks += [self.socks[0].accept()[0] for _ in range(1)]

    def __exit__(self, *_):
        for sock in self.socks:
            sock.close()


def test_a_silent_ipv6_costs_one_delay_once(tmp_path):
    dialer = dialer_for(tmp_path, "::1 both.test\n127.0.0.1 both.test\n", rtt_s=lambda *_: 0.05)

    async def main(port):
        first = await dialer.connect_tcp(ANY, "both.test", port, timeout_s=2)
        second = await dialer.connect_tcp(ANY, "both.test", port, timeout_s=2)
        order = await dialer.resolve(ANY, "both.test")
        return first, second, order

    with full_queue("::1") as port, socket.create_server(("127.0.0.1", port)):
        start = time.monotonic()
        first, second, order = asyncio.run(main(port))
        assert first.sock.family == second.sock.family == socket.AF_INET
        assert 0.07 < time.monotonic() - start < 1.0
        assert first.connect_s < 0.07  # of the attempt that won, not of the race
        assert list(order) == ["127.0.0.1", "::1"]  # the family that worked leads from now on
        first.sock.close()
        second.sock.close()


def test_a_refusal_starts_the_next_address_at_once(tmp_path, port):
    dialer = dialer_for(tmp_path, "::1 both.test\n127.0.0.1 both.test\n", rtt_s=lambda *_: 1.0)
    start = time.monotonic()
    with connect(ANY, "both.test", port, dialer=dialer).sock as sock:
        assert sock.family == socket.AF_INET
    assert time.monotonic() - start < 0.5


def test_families_take_turns():
    dialer = LineDialer()
    addresses = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "192.0.2.3"]
    assert dialer._ordered(ANY, "h", addresses) == [
        "2001:db8::1",
        "192.0.2.1",
        "192.0.2.2",
        "192.0.2.3",
    ]


def test_datagrams_have_a_family_of_their_own(tmp_path):
    hosts = "::1 both.test\n127.0.0.1 both.test\n127.0.0.2 both.test\n"
    dialer = dialer_for(tmp_path, hosts, rtt_s=lambda *_: 0.05)

    async def main():
        before = await dialer.udp_choices(ANY, "both.test", timeout_s=2)
        dialer.udp_worked(ANY, "both.test", "127.0.0.1")
        after = await dialer.udp_choices(ANY, "both.test", timeout_s=2)
        dialed = await dialer.connect_udp(ANY, "both.test", 9, timeout_s=2)
        return before, after, dialed, await dialer.resolve(ANY, "both.test")

    before, after, dialed, over_tcp = asyncio.run(main())
    dialed.sock.close()
    assert list(before) == ["::1", "127.0.0.1", "127.0.0.2"]
    assert list(after) == ["127.0.0.1", "::1", "127.0.0.2"]
    assert dialed.peer[0] == "127.0.0.1"
    assert over_tcp[0] == "::1"


@pytest.mark.parametrize(("rtt_s", "delay_s"), [(None, 0.25), (0.001, 0.01), (0.1, 0.15), (9, 2)])
def test_the_delay_between_attempts_follows_the_measured_rtt(rtt_s, delay_s):
    assert LineDialer(rtt_s=lambda *_: rtt_s).stagger_s(ANY, "h") == pytest.approx(delay_s)


def test_when_all_fail_the_one_that_got_furthest_speaks(tmp_path):
    dialer = dialer_for(tmp_path, "203.0.113.1 two.test\n127.0.0.1 two.test\n")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        error = refusal(CN2, "two.test", closed.getsockname()[1], dialer=dialer)
    assert error.outcome is Outcome.REFUSED
    assert "203.0.113.1" in error.detail


def test_a_lost_syn_costs_a_spare_and_not_a_second():
    dialer = LineDialer(rtt_s=lambda *_: 0.02)

    async def main(queue, port):
        asyncio.get_running_loop().call_later(0.05, queue.drain)
        return await dialer.connect_tcp(ANY, "127.0.0.1", port, timeout_s=3)

    queue = full_queue("127.0.0.1")
    with queue as port:
        start = time.monotonic()
        dialed = asyncio.run(main(queue, port))
        assert time.monotonic() - start < 0.9
        assert dialed.syn_lost == 1
        assert dialed.rtt_s is None
        assert dialed.connect_s < 0.09  # of the connection that stood
        dialed.sock.close()


def test_a_refusal_by_the_only_address_is_not_asked_for_twice():
    dialer = LineDialer(rtt_s=lambda *_: 1.0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        start = time.monotonic()
        error = refusal(ANY, "127.0.0.1", closed.getsockname()[1], dialer=dialer)
    assert error.outcome is Outcome.REFUSED
    assert time.monotonic() - start < 0.9


def test_a_race_starts_by_delay_or_failure_and_disposes_of_late_results():
    async def main():
        order, disposed = [], []

        async def attempt(name, seconds, result):
            order.append(name)
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                if result == "stubborn":
                    return result
                raise
            if isinstance(result, Exception):
                raise result
            return result

        won = await race(
            [
                lambda: attempt("a", 5, "stubborn"),
                lambda: attempt("b", 0, ValueError("b")),
                lambda: attempt("c", 0.001, "c"),
                lambda: attempt("d", 0, "d"),
            ],
            0.03,
            disposed.append,
        )
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (won, order, disposed) == ("c", ["a", "b", "c"], ["stubborn"])
        with pytest.raises(RaceLost) as lost:
            await race(
                [lambda e=e: attempt("x", 0, ValueError(e)) for e in "12"], 0.01, disposed.append
            )
        assert [str(e) for e in lost.value.errors] == ["1", "2"]

    asyncio.run(main())


def test_a_race_begins_anew_what_runs_in_silence():
    async def main():
        begun, cancelled = [], []

        async def attempt(name):
            begun.append(name)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(name)
                raise

        async def refused():
            raise ValueError("refused")

        attempts = [lambda: attempt("a"), refused, lambda: attempt("b")]
        running = asyncio.create_task(race(attempts, 0.001, lambda _: None, again_s=0.005))
        while len(begun) < 6:
            await asyncio.sleep(0.001)
        assert begun[:6] == ["a", "b", "a", "b", "a", "b"]
        assert cancelled[:2] == ["a", "b"], "two of each run"
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.sleep(0)
        assert sorted(cancelled) == sorted(begun)
        with pytest.raises(RaceLost):
            await race([refused], 0.001, lambda _: None, again_s=0.001)

    asyncio.run(main())


# --- udp, guard -------------------------------------------------------------------------------


def test_udp_is_connected_bound_and_unfragmented():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        dialed = connect(CN2, "127.0.0.1", server.getsockname()[1], udp=True)
        with dialed.sock as sock:
            sock.send(b"hello")
            data, address = server.recvfrom(100)
            assert (data, address[0]) == (b"hello", "127.0.0.2")
            assert sock.getsockopt(socket.IPPROTO_IP, 10) == 3
            assert dialed.connect_s == 0


def test_udp_skips_addresses_without_a_route(tmp_path):
    dialer = dialer_for(tmp_path, "203.0.113.1 two.test\n127.0.0.1 two.test\n")
    with connect(CN2, "two.test", 9, dialer=dialer, udp=True).sock as sock:
        assert sock.getpeername() == ("127.0.0.1", 9)
    only = dialer_for(tmp_path, "203.0.113.1 one.test\n")
    assert refusal(CN2, "one.test", 9, dialer=only, udp=True).outcome is Outcome.UNREACHABLE


def test_udp_at_once_to_a_literal_address(tmp_path):
    dialer = dialer_for(tmp_path, guard=lambda host, address: forbidden(address))
    with dialer.open_udp(CN2, "any.test", "127.0.0.1", 9) as sock:
        assert sock.getpeername() == ("127.0.0.1", 9)
        assert sock.getsockname()[0] == "127.0.0.2"
        assert not sock.getblocking()
    with pytest.raises(DialForbidden):
        dialer.open_udp(CN2, "any.test", "169.254.169.254", 9)
    with pytest.raises(DialError) as refused:
        dialer.open_udp(Line("cn2", source="10.71.1.2"), "any.test", "127.0.0.1", 9)
    assert refused.value.outcome is Outcome.UNREACHABLE


def test_the_guard_sees_addresses_after_dns_and_keeps_the_allowed(tmp_path, port):
    hosts = "169.254.169.254 mixed.test\n127.0.0.1 mixed.test\n169.254.169.254 evil.test\n"

    def guard(host, address):
        return None if host == "listed.test" else forbidden(address)

    def dialer():
        return dialer_for(tmp_path, hosts, guard=guard)

    with connect(ANY, "mixed.test", port, dialer=dialer()).sock as sock:
        assert sock.getpeername()[0] == "127.0.0.1"
    for host in ("evil.test", "169.254.169.254", "::ffff:169.254.169.254"):
        error = refusal(ANY, host, 80, dialer=dialer())
        assert isinstance(error, DialForbidden)
        assert error.outcome.blame is Blame.NOBODY
        assert "169.254.169.254 is link-local" in error.detail


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254", "169.254.1.1", "fe80::1", "fe80::1%lo", "fd00:ec2::254",
        "100.100.100.200", "168.63.129.16", "192.0.0.192", "0.0.0.0", "::", "224.0.0.1",
        "ff02::1", "255.255.255.255", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
    ],
)  # fmt: skip
def test_forbidden_addresses(address):
    assert forbidden(address)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::1", "10.0.0.1", "192.168.1.1", "fd00::1", "8.8.8.8", "2606::1"]
)
def test_ordinary_and_private_addresses_are_allowed(address):
    assert forbidden(address) is None


# --- loop lag ---------------------------------------------------------------------------------


ANSWERS = (Outcome.OK, Outcome.BUSY, Outcome.HTTP_ERROR)


@pytest.mark.parametrize("outcome", [one for one in Outcome if one not in ANSWERS])
def test_any_failure_of_a_race_may_be_the_telling_one(outcome):
    lost = RaceLost([DialError(outcome, "a"), DialError(Outcome.DNS, "b")])
    assert most_telling(lost).outcome is outcome
