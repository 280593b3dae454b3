"""An endpoint that speaks nothing but h3: no answer over TCP makes up for datagrams that vanish."""

import pytest

from policies.detector import Detector
from policies.model import Kind, Sample, Verdict

PATH, RTT_S, STEP_S = "a>u/x", 0.06, 0.1
OVER_TCP = (Kind.TCP, Kind.ICMP)


def drive(detector, kinds, begin, end, changes):
    """Probe each kind that answers; QUIC is asked in any case."""
    for n in range(round((end - begin) / STEP_S)):
        now = begin + n * STEP_S
        for kind in {*kinds, Kind.QUIC}:
            detector.sent(PATH, kind, now, RTT_S, 0.03)
        for kind in kinds:
            changes += detector.observe(Sample(PATH, kind, now, RTT_S), now + RTT_S)
        changes += detector.tick(now + 0.99 * STEP_S)


@pytest.mark.parametrize("udp_only", [True, False])
def test_silent_datagrams_end_a_path_that_has_nothing_else(udp_only):
    detector, changes = Detector(), []
    detector.watch(PATH, "a", "u/x", udp_only=udp_only)
    drive(detector, (*OVER_TCP, Kind.QUIC), 1000.0, 1005.0, changes)
    assert not changes
    drive(detector, OVER_TCP, 1005.0, 1007.0, changes)
    blocked = list(detector.take_carrier_changes())
    assert (detector.finding(PATH).verdict is Verdict.DOWN) is udp_only
    assert bool(blocked) is not udp_only
    assert detector.line_verdict("a") is not Verdict.DOWN, "TCP shows the line alive"
    if udp_only:
        drive(detector, (*OVER_TCP, Kind.QUIC), 1007.0, 1012.0, changes)
        assert detector.finding(PATH).verdict is Verdict.UP


@pytest.mark.parametrize("udp_only", [True, False])
def test_where_nothing_else_serves_datagrams_need_not_have_been_answered_before(udp_only):
    detector, changes = Detector(), []
    detector.watch(PATH, "a", "u/x", udp_only=udp_only)
    drive(detector, OVER_TCP, 1000.0, 1003.0, changes)
    assert (detector.finding(PATH).verdict is Verdict.DOWN) is udp_only


def test_since_when_it_is_silent():
    detector, changes = Detector(), []
    detector.watch(PATH, "a", "u/x", udp_only=True)
    drive(detector, (*OVER_TCP, Kind.QUIC), 1000.0, 1005.0, changes)
    assert detector.silent_since(PATH) is None
    drive(detector, OVER_TCP, 1005.0, 1007.0, changes)
    assert detector.silent_since(PATH) == pytest.approx(1005.0)
    assert detector.silent_since("nowhere") is None
