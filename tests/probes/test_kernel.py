"""TCP_INFO: real sockets for the layout, constructed structs for what loopback does not do."""

from __future__ import annotations

import itertools
import math
import os
import socket
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.model import Kind, Outcome
from probes import kernel
from probes.kernel import KernelSampler, parse, read
from tests.harness.namespace import in_namespace, needs_root


def pair():
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    listener.close()
    return client, server


def raw_info(
    *, rtt_us=60_000, retrans=0, sent=0, delivered=0, dsack=0, backoff=0, limited=0, rate=0, **more
):
    raw = bytearray(248)
    raw[0], raw[2], raw[4], raw[7] = 1, more.get("retransmits", 0), backoff, limited
    for offset, value in (
        (16, 1448),
        (24, more.get("unacked", 0)),
        (56, more.get("since_ack_ms", 5)),
        (68, rtt_us),
        (72, 4000),
        (100, retrans),
        (136, sent + 3),
        (156, sent),
        (192, delivered),
        (216, dsack),
    ):
        struct.pack_into("=I", raw, offset, value)
    struct.pack_into("=Q", raw, 160, rate)
    return bytes(raw)


@pytest.fixture
def scripted(monkeypatch):
    """Lets a test say what each descriptor's next TCP_INFO is."""
    answers = {}
    monkeypatch.setattr(kernel, "read", lambda fd: answers.get(fd) and parse(answers[fd]))
    return answers


def test_reads_a_live_socket_by_object_and_by_descriptor():
    client, server = pair()
    with client, server:
        client.sendall(b"x" * 5000)
        assert len(server.recv(5000, socket.MSG_WAITALL)) == 5000
        info = read(client)
        assert info.rtt_s is not None
        assert 0 < info.rtt_s < 0.5
        assert info.data_segs_out >= 1
        assert info.total_retrans == 0
        assert read(client.fileno()).data_segs_out == info.data_segs_out
        assert read(server).data_segs_out == 0


def test_closed_and_foreign_descriptors_give_nothing():
    client, server = pair()
    client.close()
    server.close()
    assert read(client) is None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        assert read(udp) is None
    assert read(-1) is None


@given(size=st.integers(0, 300), filler=st.integers(0, 255))
def test_any_length_parses_and_only_later_fields_are_missing(size, filler):
    info = parse(bytes([filler]) * size)
    assert (info is None) == (size < 104)
    if info is not None:
        assert (info.bytes_acked is None) == (size < 128)
        assert (info.segs_out is None) == (size < 140)
        assert (info.dsack_dups is None) == (size < 220)


def test_no_rtt_yet_is_none_not_zero():
    info = parse(raw_info(rtt_us=0))
    assert info.rtt_s is None
    assert info.delivery_rate_bps is None


def test_one_sample_a_path_with_what_changed_since_the_last_look(scripted):
    sampler = KernelSampler()
    scripted[5] = raw_info(sent=10, delivered=10)
    scripted[6] = raw_info(sent=4, delivered=4, rtt_us=80_000, since_ack_ms=900)
    (first,) = sampler.sample([("a", 5), ("a", 6)], 1.0)
    assert (first.kind, first.outcome, first.packets_sent, first.packets_lost) == (
        Kind.KERNEL,
        Outcome.OK,
        14,
        0,
    )
    assert first.rtt_s == pytest.approx(0.06)  # of the socket that heard last
    scripted[5] = raw_info(sent=30, delivered=28, retrans=3, dsack=1)
    (second,) = sampler.sample([("a", 5), ("a", 6)], 2.0)
    assert (second.packets_sent, second.packets_lost, second.sent_at) == (20, 2, 1.995)


def test_idle_sockets_and_segments_under_way_say_nothing_yet(scripted):
    sampler = KernelSampler()
    scripted[5] = raw_info(sent=10, delivered=10)
    assert sampler.sample([("a", 5)], 1.0)
    assert sampler.sample([("a", 5)], 2.0) == []
    scripted[5] = raw_info(sent=15, delivered=10, unacked=5)
    assert sampler.sample([("a", 5)], 3.0) == []
    scripted[5] = raw_info(sent=15, delivered=15)
    assert sampler.sample([("a", 5)], 4.0)[0].packets_sent == 5


def test_retransmission_without_an_answer_is_silence_never_life(scripted):
    sampler = KernelSampler()
    scripted[5] = raw_info(sent=10, delivered=10)
    sampler.sample([("a", 5)], 1.0)
    scripted[5] = raw_info(
        sent=12, delivered=10, retrans=1, retransmits=1, backoff=1, unacked=1, since_ack_ms=400
    )
    (sample,) = sampler.sample([("a", 5)], 2.0)
    assert (sample.outcome, sample.rtt_s, sample.packets_sent, sample.packets_lost) == (
        Outcome.TIMEOUT,
        None,
        2,
        1,
    )


def test_goodput_counts_only_when_the_path_was_the_limit(scripted):
    sampler = KernelSampler()
    scripted[5] = raw_info(sent=10, delivered=10, rate=1_000_000, limited=1)
    assert sampler.sample([("a", 5)], 1.0)[0].goodput_bps is None
    scripted[5] = raw_info(sent=20, delivered=20, rate=1_000_000)
    assert sampler.sample([("a", 5)], 2.0)[0].goodput_bps == 8_000_000


def test_a_reused_descriptor_starts_from_zero(scripted):
    sampler = KernelSampler()
    scripted[5] = raw_info(sent=100, delivered=100)
    sampler.sample([("a", 5)], 1.0)
    scripted[5] = raw_info(sent=7, delivered=7)
    assert sampler.sample([("a", 5)], 2.0)[0].packets_sent == 7
    scripted[5] = raw_info(sent=9, delivered=9)
    (sample,) = sampler.sample([("b", 5)], 3.0)
    assert (sample.path, sample.packets_sent) == ("b", 9)


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 10)), max_size=20
    )
)
def test_the_deltas_add_up_and_loss_never_exceeds_what_was_sent(steps):
    sampler = KernelSampler()
    sent = delivered = retrans = 0
    counted = 0
    original = kernel.read
    try:
        for extra_sent, extra_delivered, extra_lost in steps:
            sent += extra_sent
            delivered = min(sent, delivered + extra_delivered)
            retrans += min(extra_lost, extra_sent)
            raw = raw_info(sent=sent, delivered=delivered, retrans=retrans)
            kernel.read = lambda fd, raw=raw: parse(raw)
            for sample in sampler.sample([("a", 5)], 0.0):
                assert 0 <= sample.packets_lost <= sample.packets_sent
                counted += sample.packets_sent
    finally:
        kernel.read = original
    assert counted <= sent


def test_a_look_at_a_socket_costs_microseconds():
    client, server = pair()
    with client, server:
        best = math.inf
        for _ in range(5):
            start = time.perf_counter()
            for _ in itertools.repeat(None, 500):
                read(client)
            best = min(best, (time.perf_counter() - start) / 500)
    assert best < 100e-6  # about 5 us; the bound only catches a blunder


INSIDE = """
import socket, subprocess, sys, time
from probes.kernel import KernelSampler, read
ns = sys.argv[1]
def ip(*args): subprocess.run(["ip", *args], check=True)
peer = subprocess.Popen(
    ["ip", "netns", "exec", ns, sys.executable, "-c",
     "import socket\\nl = socket.create_server(('10.9.0.2', 7))\\nprint('up', flush=True)\\n"
     "c, _ = l.accept()\\nwhile c.recv(65536): pass"], stdout=subprocess.PIPE)
peer.stdout.readline()
client = socket.create_connection(("10.9.0.2", 7), 5)
client.sendall(b"x" * 1000)
sampler = KernelSampler()
def look(done):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = sampler.sample([("p", client)], time.monotonic())
        if done(found): return found and found[0]
        time.sleep(0.01)
    raise SystemExit("nothing seen")
alive = look(lambda found: found)
print("alive", alive.outcome.value, alive.packets_lost, alive.rtt_s is not None)
ip("-n", ns, "addr", "del", "10.9.0.2/24", "dev", "v1")   # packets now vanish without a word
client.sendall(b"y" * 1000)
dead = look(lambda found: found)
print("dead", dead.outcome.value, dead.packets_lost > 0, dead.rtt_s)
look(lambda _: read(client).backoff > 0)
info = read(client)
print("info", info.retransmits > 0, info.unacked == 1, info.last_ack_recv_s > 0.1)
ip("-n", ns, "addr", "add", "10.9.0.2/24", "dev", "v1")
back = look(lambda found: found and found[0].outcome.value == "ok")
print("back", back.outcome.value, read(client).unacked)
peer.kill()
"""


@pytest.mark.root
@needs_root
def test_a_real_line_that_dies_and_comes_back():
    ns = f"edged-kernel-{os.getpid()}"
    setup = (
        f"ip link set lo up && ip link add v0 type veth peer name v1 && ip netns add {ns} && "
        f"ip link set v1 netns {ns} && ip addr add 10.9.0.1/24 dev v0 && ip link set v0 up && "
        f"ip -n {ns} addr add 10.9.0.2/24 dev v1 && ip -n {ns} link set v1 up && "
        f'"$@"; status=$?; ip netns del {ns}; exit $status'
    )
    assert in_namespace(setup, INSIDE, ns) == [
        "alive ok 0 True",
        "dead timeout True None",
        "info True True True",
        "back ok 0",
    ]
