"""The laboratory against itself: what was set is what comes out, with real kernels and packets."""

import itertools
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness.live import wait_for
from tests.netns.impair import Burst
from tests.netns.lab import LINE_A, LINE_B, Lab, LineSpec

pytestmark = pytest.mark.root

ECHO_PORT = 7
SLACK_S = 0.015  # what a busy machine may add to one round trip
ECHO = """
import selectors, socket, threading
def tcp():
    server = socket.create_server(("0.0.0.0", 7))
    while True:
        threading.Thread(target=count, args=(server.accept()[0],)).start()
def count(peer):
    total = 0
    while data := peer.recv(1 << 16):
        total += len(data)
    peer.sendall(b"%d" % total)
    peer.close()
threading.Thread(target=tcp).start()
# A socket of its own for each address: answers come from where questions went.
selector = selectors.DefaultSelector()
for address in ADDRESSES:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 7))
    selector.register(sock, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in selector.select():
        data, peer = key.fileobj.recvfrom(65536)
        key.fileobj.sendto(data, peer)
"""


@pytest.fixture(scope="module")
def lab():
    """Two perfect lines, and an origin that echoes datagrams and counts bytes."""
    with Lab([LineSpec("a"), LineSpec("b")], seed=3) as lab:
        code = ECHO.replace("ADDRESSES", repr(lab.addresses))
        echo = lab.origin.start([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert echo.stdout.readline() == b"ready\n"
        yield lab
        echo.stdout.close()


@pytest.fixture(autouse=True)
def clean(request):
    """Each test finds the lines as they were, with nothing under way."""
    yield
    if "lab" in request.fixturenames:
        lab = request.getfixturevalue("lab")
        for line in lab.lines:
            lab.restore(line)


def datagrams(lab, line="a", count=1, *, size=100, gap_s=0.0, address=0, wait_s=0.5):
    """Round trips of those of ``count`` datagrams that came back, by number, as they came."""
    with lab.edge, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((lab.source(line), 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        sock.connect((lab.addresses[address], ECHO_PORT))
        sent, back = [], []

        def listen(until):
            while (left := until - time.monotonic()) > 0 and select.select([sock], [], [], left)[0]:
                number = int.from_bytes(sock.recv(65536)[:4], "big")
                back.append((number, time.monotonic() - sent[number]))

        start = time.monotonic()
        for number in range(count):
            sent.append(time.monotonic())
            sock.send(number.to_bytes(4, "big").ljust(size, b"x"))
            listen(start + (number + 1) * gap_s)
        end = time.monotonic() + wait_s
        while len(back) < count and time.monotonic() < end:
            listen(min(end, time.monotonic() + 0.05))
        return back


def upload(lab, size, line="a", timeout_s=10.0):
    """Seconds until the origin has said that it got ``size`` bytes by TCP. Raises TimeoutError."""
    with lab.edge:
        source = (lab.source(line), 0)
        sock = socket.create_connection((lab.addresses[0], ECHO_PORT), timeout_s, source)
    with sock:
        start = time.monotonic()
        sock.sendall(b"x" * size)
        sock.shutdown(socket.SHUT_WR)
        assert int(sock.recv(100)) == size
        return time.monotonic() - start


# -- impairments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("up_s", "down_s"), [(0.030, 0.030), (0.150, 0.0), (0.0, 0.005)])
def test_round_trips_are_as_set(lab, up_s, down_s):
    lab.set("a", "up", delay_s=up_s)
    lab.set("a", "down", delay_s=down_s)
    trips = [trip for _, trip in datagrams(lab, count=20, gap_s=0.01)]
    assert up_s + down_s <= min(trips) < up_s + down_s + SLACK_S
    untouched = [trip for _, trip in datagrams(lab, "b", count=5, gap_s=0.01)]
    assert min(untouched) < SLACK_S


def test_loss_is_as_set_in_each_direction(lab):
    lab.set("a", "up", loss=0.1)
    lab.set("a", "down", loss=0.2)
    back = datagrams(lab, count=3000, gap_s=0.0005)
    assert len(back) / 3000 == pytest.approx(0.9 * 0.8, abs=0.05)
    counters = lab.counters()["a"]
    assert counters["up"]["lost"]["loss"] / 3000 == pytest.approx(0.1, abs=0.03)
    assert len(datagrams(lab, "b", count=500, gap_s=0.0005)) == 500


def test_bursts_lose_in_runs(lab):
    lab.set("a", "up", burst=Burst(0.01, 0.1))
    back = {number for number, _ in datagrams(lab, count=3000, gap_s=0.0005)}
    lost = [number for number in range(3000) if number not in back]
    runs = sum(number - 1 in back for number in lost if number)
    assert len(lost) / 3000 == pytest.approx(1 / 11, abs=0.05)
    assert len(lost) / runs == pytest.approx(10, rel=0.6)


def test_a_rate_limits_tcp_and_its_queue_is_bounded(lab):
    lab.set("a", "up", rate_bps=20e6, queue_bytes=100_000)
    seconds = upload(lab, 4_000_000)
    assert 0.9 * 1.6 < seconds < 3 * 1.6
    before = lab.counters()["a"]["up"]
    back = datagrams(lab, count=200, size=1472)
    # The queue holds 66 packets of 1500 bytes; some leave while the others come.
    assert 66 <= len(back) < 150
    assert 0.7 * 66 * 1500 * 8 / 20e6 < max(trip for _, trip in back) < 0.12
    lost = lab.counters()["a"]["up"]["lost"]["queue"] - before["lost"].get("queue", 0)
    assert lost == 200 - len(back)


def test_jitter(lab):
    lab.set("a", "up", delay_s=0.030, jitter_s=0.020)
    trips = [trip for _, trip in datagrams(lab, count=60, gap_s=0.02)]
    assert min(trips) < 0.020
    assert max(trips) > 0.040
    assert [number for number, _ in datagrams(lab, count=100)] == list(range(100))


def test_a_blackhole_says_nothing(lab):
    lab.set("a", blackhole=True)
    with pytest.raises(TimeoutError):
        upload(lab, 1, timeout_s=0.3)
    assert datagrams(lab, "b")
    lab.restore("a")
    assert upload(lab, 1) < 1


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_one_way_blackhole_lets_the_other_way_through(lab, way):
    lab.set("a", way, blackhole=True)
    before = lab.counters()["a"]
    assert not datagrams(lab, count=3, wait_s=0.1)
    after = lab.counters()["a"]
    arrived = after["up"]["delivered"]["packets"] - before["up"]["delivered"]["packets"]
    answered = after["down"]["offered"]["packets"] - before["down"]["offered"]["packets"]
    assert (arrived, answered) == ((0, 0) if way == "up" else (3, 3))


def test_udp_alone_can_be_blocked(lab):
    lab.set("a", udp_blocked=True)
    assert not datagrams(lab, count=3, wait_s=0.1)
    assert upload(lab, 100_000) < 5


def test_an_mtu_hole_stalls_large_packets_silently(lab):
    lab.set("a", "up", mtu_bytes=1280)
    assert datagrams(lab, size=1252)
    assert not datagrams(lab, size=1253, wait_s=0.1)
    with pytest.raises(TimeoutError):
        upload(lab, 100_000, timeout_s=1)
    assert upload(lab, 1000) < 1


def test_a_silent_host_is_silent_on_a_line_or_on_all(lab):
    dead, alive = lab.addresses[1], 2
    lab.set("a", "up", silent_hosts=(dead,))
    assert not datagrams(lab, address=1, wait_s=0.1)
    assert datagrams(lab, address=alive)
    assert datagrams(lab, "b", address=1)


def test_duplicates_and_reordering(lab):
    lab.set("a", "up", duplicate=0.2)
    back = [number for number, _ in datagrams(lab, count=500, gap_s=0.001, wait_s=0.1)]
    assert 540 < len(back) < 660
    assert back == sorted(back)
    lab.set("a", "up", duplicate=0.0, reorder=0.1, reorder_s=0.010)
    back = [number for number, _ in datagrams(lab, count=500, gap_s=0.001)]
    assert sorted(back) == list(range(500))
    assert sum(a > b for a, b in itertools.pairwise(back)) > 25


def test_unknown_changes_are_refused(lab):
    with pytest.raises(ValueError, match="blackhol"):
        lab.set("a", blackhol=True)
    with pytest.raises(ValueError, match="c"):
        lab.set("c", blackhole=True)
    assert datagrams(lab)


# -- routing --------------------------------------------------------------------------------------


def bound_by_source(lab, sock):
    sock.bind((lab.source("b"), 0))


def bound_by_device(lab, sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"b\0")


def bound_by_mark(lab, sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, lab.mark("b"))


@pytest.mark.parametrize("bound", [bound_by_source, bound_by_device, bound_by_mark])
def test_a_bound_socket_takes_its_line_and_is_answered_on_it(lab, bound):
    before = lab.counters()
    with lab.edge, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        bound(lab, sock)
        sock.connect((lab.addresses[0], ECHO_PORT))
        sock.settimeout(2)
        sock.send(b"question")
        assert sock.recv(100) == b"question"
    after = lab.counters()

    def grown(line, way):
        return after[line][way]["offered"]["bytes"] - before[line][way]["offered"]["bytes"]

    assert grown("b", "up") == grown("b", "down") == 28 + len("question")
    assert grown("a", "up") == grown("a", "down") == 0


def test_nothing_is_sent_on_an_idle_line(lab):
    before = lab.offered_bytes()
    time.sleep(0.5)
    assert lab.offered_bytes() == before


def test_counters_tell_protocols_apart(lab):
    before = lab.counters()["a"]["up"]["by_protocol"]
    datagrams(lab, count=10, size=72)
    upload(lab, 50_000)
    after = lab.counters()["a"]["up"]["by_protocol"]
    assert after["udp"]["packets"] - before["udp"]["packets"] == 10
    assert after["udp"]["bytes"] - before["udp"]["bytes"] == 1000
    assert 50_000 < after["tcp"]["bytes"] - before["tcp"]["bytes"] < 60_000


# -- labs as a whole ------------------------------------------------------------------------------


def test_the_usual_lines_are_those_of_the_bars():
    with Lab([LINE_A, LINE_B]) as lab:
        assert [lab.lines[name].rtt_s for name in "ab"] == [0.060, 0.150]
        assert [lab.lines[name].loss for name in "ab"] == [0.001, 0.01]


def test_labs_do_not_see_each_other(lab):
    with Lab([LineSpec("a")]) as other:
        with other.edge, pytest.raises(ConnectionRefusedError):
            socket.create_connection((other.addresses[0], ECHO_PORT), 2)
        assert datagrams(lab)


def test_a_thread_comes_back_to_where_it_was(lab):
    here = os.readlink("/proc/thread-self/ns/net")
    with lab.edge:
        edge = os.readlink("/proc/thread-self/ns/net")
        with lab.origin:
            assert os.readlink("/proc/thread-self/ns/net") not in (here, edge)
        assert os.readlink("/proc/thread-self/ns/net") == edge
    assert os.readlink("/proc/thread-self/ns/net") == here != edge
    assert lab.edge.run(["readlink", "/proc/self/ns/net"]).strip() == edge


@pytest.mark.parametrize("default", [None, "reno"])
def test_congestion_control_can_be_chosen_and_left_to_sockets(default):
    with Lab([LineSpec("a")], congestion="cubic", edge_default=default) as lab:
        lab.origin.start([sys.executable, "-c", ECHO.replace("ADDRESSES", repr(lab.addresses))])

        def connected(control=None):
            sock = socket.socket()
            if control:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, control)
            try:
                sock.connect((lab.addresses[0], ECHO_PORT))
            except ConnectionRefusedError:
                sock.close()
                return None
            return sock

        with lab.edge:
            with wait_for(connected, "the origin") as sock:
                assert control_of(sock) == (default or "cubic")
            with connected(b"cubic" if default else b"reno") as sock:
                assert control_of(sock) == "cubic"


def control_of(sock):
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()


OWNER = """
import subprocess, time
from tests.netns.lab import Lab, LineSpec
with Lab([LineSpec("a")]) as lab:
    children = [lab.edge.start(["sleep", "1000"])]
    with lab.origin:
        children.append(subprocess.Popen(["sleep", "1000"]))
        print(lab._forwarder.pid, *(child.pid for child in children), flush=True)
        time.sleep(1000)
"""


def test_nothing_outlives_a_killed_owner():
    root = Path(__file__).resolve().parents[2]
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, cwd=root)
    with owner.stdout:
        pids = [int(pid) for pid in owner.stdout.readline().split()]
    assert len(pids) == 3
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    wait_for(lambda: not any(alive(pid) for pid in pids), "the lab's processes to end")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
