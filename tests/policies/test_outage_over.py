"""What was silent before an outage ended says nothing of what works after it."""

import pytest

from policies.detector import Detector
from policies.model import Carrier, Kind, Sample, Verdict

PATH, OTHER, RTT_S, STEP_S = "a>u/x", "a>u/y", 0.06, 0.1
ALL = (Kind.TCP, Kind.TLS, Kind.QUIC)


@pytest.fixture
def detector():
    detector = Detector()
    detector.watch(PATH, "a", "u/x")
    detector.watch(OTHER, "a", "u/y")
    drive(detector, 1000.0, 1005.0, ALL, ALL)
    assert not detector.take_carrier_changes()
    return detector


def drive(detector, begin, end, asked, answered, paths=(PATH, OTHER)):
    """Ask with some kinds, of which some are answered."""
    for n in range(round((end - begin) / STEP_S)):
        now = begin + n * STEP_S
        for path in paths:
            for kind in asked:
                detector.sent(path, kind, now, RTT_S, 0.03)
        for path in paths:
            for kind in answered:
                detector.observe(Sample(path, kind, now, RTT_S), now + RTT_S)
        detector.tick(now + 0.99 * STEP_S)


def one_slot(detector, kind, at):
    """Sent, and lost."""
    detector.sent(PATH, kind, at, RTT_S, 0.03)
    detector.tick(at + 0.099)


@pytest.mark.parametrize(
    ("asks", "other"), [(Kind.QUIC, (Kind.TCP, Kind.TLS)), (Kind.TLS, (Kind.QUIC,))]
)
def test_a_transport_is_not_blocked_by_its_silence_in_an_outage(detector, asks, other):
    drive(detector, 1005.0, 1010.0, ALL, ())
    assert detector.line_verdict("a") is Verdict.DOWN
    drive(detector, 1010.0, 1010.5, other, other)  # the line is back; nobody asks ``asks``
    one_slot(detector, asks, 1010.5)  # lost, as happens
    drive(detector, 1010.6, 1010.9, other, other)
    assert not detector.take_carrier_changes()


def test_it_is_blocked_if_it_stays_silent_after_it(detector):
    drive(detector, 1005.0, 1010.0, ALL, ())
    drive(detector, 1010.0, 1012.0, ALL, (Kind.TCP, Kind.TLS))
    changes = detector.take_carrier_changes()
    assert {change.path for change in changes} == {PATH, OTHER}
    assert all(change.blocked and change.carriers == (Carrier.H3,) for change in changes)


def test_an_endpoint_that_comes_back_over_tcp_first_has_its_datagrams_asked_anew(detector):
    drive(detector, 1005.0, 1010.0, ALL, ALL, [OTHER])
    for n in range(50):
        for kind in ALL:
            detector.sent(PATH, kind, 1010.0 + n * STEP_S, RTT_S, 0.03)
        drive(detector, 1010.0 + n * STEP_S, 1010.1 + n * STEP_S, ALL, ALL, [OTHER])
    assert detector.finding(PATH).verdict is Verdict.DOWN
    assert detector.line_verdict("a") is not Verdict.DOWN
    drive(detector, 1015.0, 1015.5, (Kind.TCP, Kind.TLS), (Kind.TCP, Kind.TLS))
    one_slot(detector, Kind.QUIC, 1015.5)
    assert not detector.take_carrier_changes()


@pytest.mark.parametrize(("acknowledged", "blocked"), [(True, False), (False, True)])
def test_what_a_lost_segment_holds_up_is_not_blocked_while_data_is_acknowledged(
    detector, acknowledged, blocked
):
    answered = (Kind.QUIC, Kind.KERNEL) if acknowledged else (Kind.QUIC,)
    drive(detector, 1005.0, 1009.0, (Kind.PING, *answered), answered)
    assert bool(detector.take_carrier_changes()) is blocked


def test_who_acknowledges_data_and_answers_nothing_is_not_waited_for(detector):
    drive(detector, 1005.0, 1011.0, (Kind.PING, Kind.QUIC, Kind.KERNEL), (Kind.QUIC, Kind.KERNEL))
    assert detector.take_carrier_changes()
