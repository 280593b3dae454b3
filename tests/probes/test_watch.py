"""What looks at connections in use tell, with scripted TCP_INFO; real lines are in tests/netns."""

from __future__ import annotations

import itertools
import math
import socket
import time

import pytest

from policies.model import Carrier, Kind, Outcome, Seen
from probes import kernel
from probes.watch import SOCKETS_PER_PATH, ConnectionWatch, Live

EMPTY = kernel.parse(bytes(248))._replace(
    state=1, rtt_s=0.06, rttvar_s=0.005, rto_s=0.26, bytes_acked=1, delivered=1
)


class Socket:
    """TCP_INFO of one socket, kept as a kernel would: ages from absolute times."""

    def __init__(self, **fields):
        self.info = EMPTY._replace(**fields)
        self.sent_at = self.acked_at = self.received_at = 0.0

    def read(self, now):
        return self.info._replace(
            last_data_sent_s=now - self.sent_at,
            last_ack_recv_s=now - self.acked_at,
            last_data_recv_s=now - self.received_at,
        )

    def send(self, at, segments=1):
        self.sent_at = at
        self.info = self.info._replace(unacked=self.info.unacked + segments)

    def send_again(self, at):
        self.sent_at = at
        self.info = self.info._replace(
            retransmits=self.info.retransmits + 1, total_retrans=self.info.total_retrans + 1
        )

    def ack(self, at, segments=1):
        self.acked_at = at
        info = self.info
        self.info = info._replace(
            unacked=info.unacked - segments,
            delivered=info.delivered + segments,
            bytes_acked=info.bytes_acked + 1000 * segments,
            retransmits=0,
        )


class Host:
    def __init__(self, **sockets):
        self.now = 100.0
        self.sockets = {int(name[1:]): it for name, it in sockets.items()}
        self.reads = 0
        self.watch = ConnectionWatch(self.read)

    def read(self, fd):
        self.reads += 1
        it = self.sockets.get(fd)
        return None if it is None else it.read(self.now)

    def look(self, at, *live):
        self.now = at
        live = live or [Live("p", fd, Carrier.H2, 0.0) for fd in self.sockets]
        return self.watch.look(live, at)


def test_data_that_is_acknowledged_in_time_is_an_answer_to_when_it_was_sent():
    host = Host(s5=Socket())
    sock = host.sockets[5]
    sock.send(100.0)
    look = host.look(100.03)
    assert look.sent == ["p"]
    assert look.seen == []
    assert host.watch.next_due() == pytest.approx(100.0 + 0.06 + 0.05)
    sock.ack(100.062)
    look = host.look(100.08)
    assert look.seen == [Seen("p", Kind.KERNEL, pytest.approx(100.062), pytest.approx(100.0))]
    assert host.watch.next_due() is None


def test_data_that_is_not_is_a_silent_slot_and_each_repetition_one_more():
    host = Host(s5=Socket())
    sock = host.sockets[5]
    sock.send(100.0)
    host.look(100.03)
    assert host.look(100.1).seen == []
    (seen,) = host.look(100.111).seen
    assert (seen.sent_at, seen.reply_at) == (pytest.approx(100.0), pytest.approx(100.06))
    assert host.look(100.2).seen == []  # told once
    sock.send_again(100.32)
    assert host.look(100.35).sent == ["p"]
    (seen,) = host.look(100.44).seen
    assert seen.sent_at == pytest.approx(100.32)
    assert seen.reply_at is not None


def test_acknowledgements_of_earlier_data_do_not_answer_for_what_was_sent_after():
    host = Host(s5=Socket())
    sock = host.sockets[5]
    sock.send(100.0)
    host.look(100.01)
    sock.send(100.05)
    host.look(100.055)
    sock.ack(100.061)  # of the first; the line is dead since 100.04
    (first,) = host.look(100.07).seen
    assert first.sent_at == pytest.approx(100.0)
    (second,) = host.look(100.161).seen
    assert second.sent_at == pytest.approx(100.05)
    assert second.reply_at is not None


def test_segments_that_pass_while_one_is_missing_are_answers():
    host = Host(s5=Socket())
    sock = host.sockets[5]
    sock.send(100.0)
    host.look(100.01)
    sock.send(100.05)
    host.look(100.055)
    sock.acked_at = 100.11  # a SACK: the first is lost, the second came
    sock.info = sock.info._replace(delivered=sock.info.delivered + 1)
    seen = host.look(100.115).seen
    assert [s.reply_at for s in seen] == [None, None]
    assert max(s.sent_at for s in seen) == pytest.approx(100.05)


def test_an_ack_without_progress_is_no_answer():
    host = Host(s5=Socket())
    sock = host.sockets[5]
    sock.send(100.0)
    host.look(100.01)
    sock.acked_at = 100.1  # data of the peer that acknowledges nothing new
    (seen,) = host.look(100.12).seen
    assert seen.reply_at is not None


def test_the_slack_is_4_rttvar_where_that_is_more_than_50_ms():
    host = Host(s5=Socket(rtt_s=0.2, rttvar_s=0.03))
    host.sockets[5].send(100.0)
    host.look(100.01)
    assert host.watch.next_due() == pytest.approx(100.0 + 0.2 + 0.12)


def test_what_was_outstanding_when_its_work_ended_was_answered_or_is_void():
    host = Host(s5=Socket(), s6=Socket())
    for fd in (5, 6):
        host.sockets[fd].send(100.0)
    host.look(100.03)
    host.sockets[5].ack(100.06)
    host.sockets[6].info = None
    host.sockets.pop(6)
    look = host.look(100.2, Live("p", None, Carrier.H3, 0.0))
    assert [(s.sent_at, s.reply_at) for s in look.seen] == [(pytest.approx(100.0), None)]
    assert host.watch.next_due() is None


def test_bytes_received_are_told_once_per_path_and_carrier():
    host = Host()
    live = [Live("p", None, Carrier.H3, 99.0), Live("p", None, Carrier.H3, 99.5)]
    assert host.look(100.0, *live).seen == [Seen("p", Kind.TTFB, 99.5, carrier=Carrier.H3)]
    assert host.look(100.1, *live).seen == []
    live.append(Live("q", None, Carrier.H2, 100.11))
    assert host.look(100.2, *live).seen == [Seen("q", Kind.TTFB, 100.11, carrier=Carrier.H2)]


def test_a_tunnels_bytes_are_seen_by_the_kernel():
    host = Host(s5=Socket())
    tunnel = Live("p", 5, None, 0.0)
    host.look(100.0, tunnel)
    host.sockets[5].received_at = 100.2
    assert host.look(100.25, tunnel).seen == [Seen("p", Kind.KERNEL, pytest.approx(100.2))]


def test_a_segment_sent_again_and_again_without_progress_is_stuck():
    host = Host(s5=Socket())
    sock = host.sockets[5]
    sock.send(100.0)
    host.look(100.03)
    sock.send_again(100.38)
    assert host.look(100.4).stuck == []  # it may still be answered
    (stuck,) = host.look(100.5).stuck
    assert (stuck.path, stuck.fd, stuck.times) == ("p", 5, 2)
    assert stuck.since == pytest.approx(100.03)
    assert host.look(100.6).stuck == []
    sock.send_again(100.9)
    (stuck,) = host.look(101.05).stuck
    assert stuck.times == 3
    sock.ack(101.1)
    assert host.look(101.15).stuck == []


def test_large_segments_that_vanish_among_small_ones_are_counted_together():
    host = Host(s5=Socket())
    sock = host.sockets[5]
    sock.send(100.0, segments=6)
    host.look(100.01)
    sock.acked_at, sock.sent_at = 100.06, 100.08  # two came; the rest is repeated, in vain
    sock.info = sock.info._replace(
        sacked=2, lost=4, delivered=sock.info.delivered + 2, total_retrans=4
    )
    assert host.look(100.1).stuck == []
    assert host.look(100.2).stuck == []
    (stuck,) = host.look(100.27).stuck
    assert (stuck.times, stuck.lost) == (2, 4)
    assert host.look(100.3).stuck == []


def test_repetitions_alone_convict_no_line_that_brought_what_was_sent_with_them():
    host = Host(s5=Socket(data_segs_out=10))
    sock = host.sockets[5]
    sock.send(100.0, segments=3)
    sock.info = sock.info._replace(data_segs_out=13)
    host.look(100.01)
    sock.acked_at, sock.sent_at = 100.06, 100.08
    sock.info = sock.info._replace(
        sacked=1, lost=2, delivered=sock.info.delivered + 1, total_retrans=2, data_segs_out=15
    )
    (answer,) = host.look(100.09).seen
    assert answer.reply_at is None
    assert host.look(100.3).seen == []


def test_a_gap_that_stays_open_is_stuck_and_a_pause_is_not():
    host = Host(s5=Socket(), s6=Socket())
    gap, pause = host.sockets[5], host.sockets[6]
    host.look(100.0)
    gap.info = gap.info._replace(rcv_ooopack=1)
    pause.info = pause.info._replace(rcv_ooopack=1, bytes_received=3000)  # filled at once
    assert host.look(100.05).stuck == []
    assert host.look(100.8).stuck == []
    (stuck,) = host.look(100.9).stuck
    assert (stuck.fd, stuck.times) == (5, 3)
    assert stuck.since == pytest.approx(100.05)
    assert host.look(103.0).stuck == []


def test_a_gap_that_is_filled_was_a_loss():
    host = Host(s5=Socket())
    host.look(100.0)
    sock = host.sockets[5]
    sock.info = sock.info._replace(rcv_ooopack=1)
    host.look(100.05)
    sock.info = sock.info._replace(bytes_received=3000)
    host.look(100.5)
    assert host.look(101.5).stuck == []


def test_a_reused_descriptor_is_another_socket():
    host = Host(s5=Socket(bytes_acked=5000, delivered=9))
    host.sockets[5].send(100.0)
    host.look(100.03)
    host.sockets[5] = Socket()
    host.sockets[5].sent_at = 100.05
    assert host.look(100.2).seen == []


def test_sockets_that_connect_or_are_gone_say_nothing():
    host = Host(s5=Socket(state=2, unacked=1))
    assert host.look(100.0) == ([], [], [], [])
    assert host.look(100.1, Live("p", 77, Carrier.H1, 0.0)) == ([], [], [], [])


def test_of_many_sockets_a_few_are_looked_at_in_turn_and_those_outstanding_always():
    host = Host(**{f"s{fd}": Socket() for fd in range(5, 105)})
    host.sockets[50].send(100.0)
    seen = set()
    for i in range(16):
        before = host.reads
        host.look(100.0 + i / 1000)
        assert host.reads - before <= SOCKETS_PER_PATH
        seen |= set(host.watch._sockets)
    assert len(seen) == 100
    assert host.watch.next_due() is not None
    (silent,) = host.look(100.3).seen
    assert silent.sent_at == pytest.approx(100.0)


def test_samples_of_rtt_and_loss_come_four_times_a_second():
    host = Host(s5=Socket(data_segs_out=10, delivered=10))
    (sample,) = host.look(100.0).samples
    assert (sample.kind, sample.outcome, sample.packets_sent) == (Kind.KERNEL, Outcome.OK, 10)
    host.sockets[5].info = host.sockets[5].info._replace(data_segs_out=12, delivered=12)
    assert host.look(100.1).samples == []
    (sample,) = host.look(100.26).samples
    assert sample.packets_sent == 2


def test_a_look_at_sixteen_sockets_costs_less_than_a_millisecond():
    listener = socket.create_server(("127.0.0.1", 0))
    clients = [socket.create_connection(listener.getsockname()) for _ in range(16)]
    servers = [listener.accept()[0] for _ in clients]
    watch = ConnectionWatch()
    live = [Live("p", client.fileno(), Carrier.H1, 1.0) for client in clients]
    best = math.inf
    for _ in range(5):
        for client in clients:
            client.send(b"x")
        start = time.perf_counter()
        for _ in itertools.repeat(None, 20):
            watch.look(live, time.monotonic())
        best = min(best, (time.perf_counter() - start) / 20)
    for sock in (*clients, *servers, listener):
        sock.close()
    print(f"{best * 1e6:.0f} us")
    assert best < 2e-3  # about 0.3 ms; the bound only catches a blunder
