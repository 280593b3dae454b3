"""The impairment model in virtual time: each field does what it says, and nothing else."""

import itertools
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.netns.impair import NEVER, TCP, UDP, Burst, Impairment, Wire

COUNT = 20_000
END_S = 1e9


def packet(size=100, protocol=TCP, *, number=0, source="10.71.1.2", target="10.72.1.1"):
    head = bytes([0x45, 0, 0, 0]) + number.to_bytes(4, "big") + bytes([64, protocol, 0, 0])
    addresses = bytes(int(part) for host in (source, target) for part in host.split("."))
    return (head + addresses).ljust(size, b"x")


def number_of(data):
    return int.from_bytes(data[4:8], "big")


def passed(impairment, packets=COUNT, *, gap_s=0.001, size=100, seed=1, **kind):
    """(sent, arrived, number) of each packet that came through."""
    wire, arrivals = Wire(impairment, seed), []

    def drain(until):
        while (due := wire.due) <= until:
            arrivals.append((due, number_of(wire.pop(due))))

    for number in range(packets):
        drain(number * gap_s)
        wire.push(packet(size, number=number, **kind), number * gap_s)
    drain(END_S)
    return [(number * gap_s, at, number) for at, number in arrivals], wire


def test_a_clean_wire_gives_back_what_it_got_at_once():
    arrivals, wire = passed(Impairment(), 100)
    assert [(a[1], a[2]) for a in arrivals] == [(a[0], n) for n, a in enumerate(arrivals)]
    assert wire.due == NEVER
    assert wire.pop(END_S) is None
    assert wire.counters.offered == wire.counters.delivered
    assert wire.counters.offered.bytes == 10_000


def test_delay_is_exact_and_a_change_spares_what_is_under_way():
    wire = Wire(Impairment(delay_s=0.030), 1)
    wire.push(packet(number=1), 5.0)
    wire.set(Impairment(blackhole=True))
    wire.push(packet(number=2), 5.01)
    assert wire.pop(5.0299) is None
    assert wire.due == pytest.approx(5.030)
    assert number_of(wire.pop(5.030)) == 1
    assert wire.due == NEVER
    assert wire.counters.lost == {"blackhole": 1}


def test_a_shorter_delay_overtakes_nothing():
    wire = Wire(Impairment(delay_s=0.1), 1)
    wire.push(packet(number=1), 0.0)
    wire.set(Impairment(delay_s=0.0))
    wire.push(packet(number=2), 0.01)
    assert wire.pop(0.05) is None
    assert [number_of(wire.pop(0.1)) for _ in range(2)] == [1, 2]


def test_jitter_varies_both_ways_and_keeps_order():
    arrivals, _ = passed(Impairment(delay_s=0.05, jitter_s=0.01), gap_s=0.1)
    delays = [at - sent for sent, at, _ in arrivals]
    assert 0.04 <= min(delays) < 0.0405
    assert 0.0595 < max(delays) <= 0.06 + 1e-9
    assert statistics.mean(delays) == pytest.approx(0.05, abs=0.0002)
    dense, _ = passed(Impairment(delay_s=0.05, jitter_s=0.01), 5000, gap_s=0.0001)
    assert [number for *_, number in dense] == list(range(5000))


@pytest.mark.parametrize("loss", [0.001, 0.02, 0.3])
def test_random_loss_is_as_set_and_independent(loss):
    arrivals, wire = passed(Impairment(loss=loss))
    spread = 4 * (loss * (1 - loss) / COUNT) ** 0.5
    assert wire.counters.lost["loss"] / COUNT == pytest.approx(loss, abs=spread)
    assert mean_run(arrivals) == pytest.approx(1 / (1 - loss), rel=0.15)


def mean_run(arrivals):
    """Mean length of the runs of consecutive losses."""
    gaps = [b[2] - a[2] - 1 for a, b in itertools.pairwise(arrivals)]
    return statistics.mean(gap for gap in gaps if gap)


@pytest.mark.parametrize(("enter", "leave"), [(0.01, 0.25), (0.002, 0.05), (0.05, 0.5)])
def test_bursts_have_their_share_and_their_length(enter, leave):
    burst = Burst(enter, leave)
    arrivals, wire = passed(Impairment(burst=burst), 150_000 if enter < 0.01 else 50_000)
    total = wire.counters.offered.packets
    assert burst.mean_loss == pytest.approx(enter / (enter + leave))
    assert wire.counters.lost["burst"] / total == pytest.approx(burst.mean_loss, rel=0.15)
    assert mean_run(arrivals) == pytest.approx(1 / leave, rel=0.2)


def test_both_states_have_a_loss_of_their_own():
    burst = Burst(0.02, 0.1, loss_bad=0.5, loss_good=0.01)
    _, wire = passed(Impairment(burst=burst), 60_000)
    assert wire.counters.lost["burst"] / 60_000 == pytest.approx(burst.mean_loss, rel=0.1)


@pytest.mark.parametrize("gap_s", [0.001, 0.01])
def test_bursts_in_time_last_as_long_at_any_rate_of_packets(gap_s):
    # 50 ms of every 500 ms in the mean, seen by 1000 packets/s and by 100.
    burst = Burst(0.001 / 0.45, 0.001 / 0.05, step_s=0.001)
    arrivals, wire = passed(Impairment(burst=burst), 60_000, gap_s=gap_s)
    assert wire.counters.lost["burst"] / 60_000 == pytest.approx(0.1, rel=0.25)
    # A run of losses ends with the first packet after its burst: half a gap more, on average.
    assert mean_run(arrivals) * gap_s == pytest.approx(0.05 + gap_s / 2, rel=0.3)


def test_a_rate_spaces_packets_and_its_queue_is_bounded():
    # 100 packets of 1250 bytes at once into 10 Mbit/s with room for 20: one a millisecond.
    arrivals, wire = passed(
        Impairment(rate_bps=10e6, queue_bytes=25_001, delay_s=0.1), 100, gap_s=0, size=1250
    )
    assert len(arrivals) == 20
    assert [at for _, at, _ in arrivals] == pytest.approx([0.101 + n / 1000 for n in range(20)])
    assert wire.counters.lost == {"queue": 80}
    # Offered at half the rate, nothing waits.
    arrivals, _ = passed(Impairment(rate_bps=10e6), 100, gap_s=0.002, size=1250)
    assert all(at - sent == pytest.approx(0.001) for sent, at, _ in arrivals)


def test_blocked_udp_spares_tcp():
    assert not passed(Impairment(udp_blocked=True), 10, protocol=UDP)[0]
    assert len(passed(Impairment(udp_blocked=True), 10)[0]) == 10


def test_an_mtu_hole_swallows_long_packets_only():
    hole = Impairment(mtu_bytes=1280)
    assert len(passed(hole, 10, size=1280)[0]) == 10
    assert not passed(hole, 10, size=1281)[0]


@pytest.mark.parametrize("kind", [{"target": "10.72.2.1"}, {"source": "10.72.2.1"}])
def test_a_silent_host_neither_hears_nor_speaks(kind):
    silent = Impairment(silent_hosts=("10.72.2.1",))
    assert not passed(silent, 10, **kind)[0]
    assert len(passed(silent, 10)[0]) == 10


def test_duplicates_follow_their_originals():
    arrivals, wire = passed(Impairment(duplicate=0.1, delay_s=0.01))
    assert len(arrivals) / COUNT == pytest.approx(1.1, abs=0.008)
    assert [a[2] for a in arrivals] == sorted(a[2] for a in arrivals)
    assert wire.counters.delivered.packets == len(arrivals)


def test_reordered_packets_are_overtaken():
    arrivals, _ = passed(Impairment(reorder=0.1, reorder_s=0.0035, delay_s=0.02))
    assert len(arrivals) == COUNT
    late = [number for sent, at, number in arrivals if at - sent > 0.021]
    assert len(late) / COUNT == pytest.approx(0.1, abs=0.008)
    order = [number for *_, number in arrivals]
    first = late[0]
    assert order.index(first) == order.index(first + 3) + 1


def test_the_same_seed_gives_the_same_fate():
    cruel = Impairment(loss=0.1, jitter_s=0.01, delay_s=0.02, duplicate=0.1, reorder=0.1)
    assert passed(cruel, 1000, seed=7)[0] == passed(cruel, 1000, seed=7)[0]
    assert passed(cruel, 1000, seed=7)[0] != passed(cruel, 1000, seed=8)[0]


def test_changes_come_from_json():
    changed = Impairment(loss=0.5).changed(
        {"burst": {"enter": 0.1, "leave": 0.2}, "silent_hosts": ["10.72.1.1"]}
    )
    assert changed == Impairment(loss=0.5, burst=Burst(0.1, 0.2), silent_hosts=("10.72.1.1",))
    with pytest.raises(ValueError, match="losss"):
        Impairment().changed({"losss": 1})


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**32),
    st.lists(
        st.tuples(st.floats(0, 0.1), st.sampled_from(["send", "still", "blackhole", "clear"])),
        max_size=60,
    ),
)
def test_packets_are_conserved(seed, steps):
    """Everything offered is delivered, lost or under way; nothing comes before it is due."""
    rng = random.Random(seed)
    impairment = Impairment(
        delay_s=rng.uniform(0, 0.2),
        jitter_s=rng.choice([0, 0.05]),
        loss=rng.choice([0, 0.3]),
        reorder=rng.choice([0, 0.3]),
        rate_bps=rng.choice([None, 1e5]),
        queue_bytes=500,
    )
    wire, now, sent = Wire(impairment, seed), 0.0, 0
    for wait, step in steps:
        now += wait
        if step == "send":
            wire.push(packet(number=sent), now)
            sent += 1
        elif step != "still":
            wire.set(Impairment(blackhole=True) if step == "blackhole" else impairment)
        while wire.pop(now):
            pass
        assert wire.due > now
    while wire.pop(END_S):
        pass
    counters = wire.counters
    assert counters.offered.packets == sent
    assert counters.delivered.packets + sum(counters.lost.values()) == sent
