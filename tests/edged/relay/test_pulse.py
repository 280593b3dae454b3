"""Pulses: what each side says, when, and what it does to flows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.relay.beats import LINE_BYTES, BadBeat, ClientBeat, Lines, RelayBeat

from .fakes import ok
from .test_server import TARGET, A, House

IDS = st.binary(min_size=16, max_size=16)
OFFSETS = st.dictionaries(IDS, st.integers(0, 1 << 60), max_size=3)
PULSE = "/.well-known/edged/pulse"


@given(
    st.integers(0, 1 << 40),
    st.none() | st.sampled_from([0.05, 1.0]),
    OFFSETS,
    st.lists(IDS, max_size=3),
    st.none() | st.lists(st.sampled_from(["https://a", "http://b"]), max_size=2),
)
def test_client_beats_arrive_as_they_were(number, every_s, acks, done, want):
    beat = ClientBeat(number, every_s, acks, tuple(done), want)
    (line,) = Lines().feed(beat.encode())
    assert ClientBeat.decode(line) == beat


@given(st.integers(0, 1 << 40), st.floats(0, 10), OFFSETS, st.lists(IDS, max_size=3))
def test_relay_beats_arrive_as_they_were(number, held_s, uploads, gone):
    beat = RelayBeat(number, 3, round(held_s, 6), uploads, tuple(gone), {"flows": 1}, {}, "w")
    (line,) = Lines().feed(beat.encode())
    assert RelayBeat.decode(line) == beat


@pytest.mark.parametrize(
    "line",
    [
        b"x",
        b"[]",
        b"{",
        b'{"n":-1}',
        b'{"n":true}',
        b'{"n":1.5}',
        b'{"n":1,"every":0}',
        b'{"n":1,"every":"1"}',
        b'{"n":1,"every":NaN}',
        b'{"n":1,"ack":[]}',
        b'{"n":1,"ack":{"00":1}}',
        b'{"n":1,"ack":{"000102030405060708090a0b0c0d0e0f":-1}}',
        b'{"n":1,"done":"x"}',
        b'{"n":1,"done":["zz"]}',
        b'{"n":1,"want":"x"}',
        b'{"n":1,"want":[1]}',
        b"[" * 5000,
    ],
)
def test_other_lines_are_no_beats(line):
    with pytest.raises(BadBeat):
        ClientBeat.decode(line)


def test_lines_are_cut_where_they_end_and_are_bounded():
    lines = Lines()
    assert lines.feed(b'{"n":') == []
    assert lines.feed(b'1}\n\n{"n":2}\n{') == [b'{"n":1}', b'{"n":2}']
    with pytest.raises(BadBeat):
        lines.feed(b"x" * (LINE_BYTES + 1))


def beats(responder):
    return [RelayBeat.decode(line) for line in responder.received.splitlines()]


def test_a_pulse_beats_at_the_pace_that_is_asked_for():
    house = House()
    pulse = house.ask("POST", PULSE, length=None)
    (first,) = beats(pulse)
    assert (first.number, first.relay, first.load) == (1, "boot-1", {"flows": 0})
    for _ in range(3):
        house.pass_time(1.0)
        pulse.sink.body(ClientBeat(0).encode())
    assert len(beats(pulse)) == 4
    pulse.sink.body(ClientBeat(7, 0.05).encode())
    house.pass_time(1.0)
    told = beats(pulse)
    assert 24 <= len(told) <= 26
    assert [beat.number for beat in told] == list(range(1, len(told) + 1))
    assert told[-1].seen == 7
    assert told[-1].held_s == pytest.approx(1.0, abs=0.06)
    assert all(beat.relay is None for beat in told[1:])
    assert all(beat.load is None for beat in told[1:])


def test_a_relay_that_stops_waits_for_flows_and_not_for_pulses():
    house = House()
    pulse = house.ask("POST", PULSE, length=None)
    flow = house.flow("POST", TARGET, ("edged-ack", "0"), length=10)
    house.draining = True
    house.pass_time(2.0)
    assert pulse.ended is None
    assert any(beat.load and beat.load.get("draining") for beat in beats(pulse))
    house.flow("DELETE")
    assert flow.ended == "abort"
    house.pass_time(2.0)
    assert pulse.ended == "end"


def test_a_pulse_lets_journals_go_and_tells_of_uploads():
    house = House()
    pulse = house.ask("POST", PULSE, length=None)
    flow_id = bytes.fromhex(A)
    sender = house.flow("POST", TARGET, ("edged-ack", "0"), length=10)
    sender.sink.body(b"01234")
    house.pass_time(1.0)
    assert beats(pulse)[-1].uploads == {flow_id: 5}
    house.pass_time(1.0)
    assert beats(pulse)[-1].uploads == {}
    flow = house.inner[0].responder
    flow.head(ok())
    flow.data(b"abcdef")
    unknown = bytes(16)
    pulse.sink.body(ClientBeat(1, acks={flow_id: 4, unknown: 9}).encode())
    assert not flow.keeps(3)
    assert flow.keeps(4)
    house.pass_time(1.0)
    assert beats(pulse)[-1].gone == (unknown,)
    pulse.sink.body(ClientBeat(2, done=[flow_id]).encode())
    assert house.flows.count == 0
    assert house.inner[0].left
    assert house.flow("POST", TARGET).status == 410


def test_flows_of_others_are_out_of_reach():
    house = House()
    pulse = house.ask("POST", PULSE, length=None, token="token-two")
    sender = house.flow("POST", TARGET, length=10)
    sender.sink.body(b"01234")
    flow_id = bytes.fromhex(A)
    pulse.sink.body(ClientBeat(1, acks={flow_id: 0}, done=[flow_id]).encode())
    house.pass_time(1.0)
    assert beats(pulse)[-1].uploads == {}
    assert beats(pulse)[-1].gone == (flow_id,)
    assert not house.inner[0].left


def test_far_legs_are_told_for_targets_that_are_allowed():
    house = House()
    pulse = house.ask("POST", PULSE, length=None)
    want = ["https://api.example.com", "https://10.0.0.1", "https://other.example", "junk", "é"]
    pulse.sink.body(ClientBeat(1, want=want).encode())
    house.pass_time(1.0)
    far = beats(pulse)[-1].far
    assert far == {want[0]: [{"endpoint": "api.example.com:443", "rtt_ms": 9.0}]}
    house.pass_time(1.0)
    assert beats(pulse)[-1].far is None


@pytest.mark.parametrize("data", [b"junk\n", b"x" * (LINE_BYTES + 1)])
def test_junk_ends_a_pulse(data):
    house = House()
    pulse = house.ask("POST", PULSE, length=None)
    pulse.sink.body(data)
    assert pulse.ended == "abort"
    pulse.sink.body(data)
    house.pass_time(5)
    assert house.flows.ledgers["one"].followers == {}
    assert not [t for t in house.timers if not t[2].cancelled]


def test_silence_ends_a_pulse_and_so_does_its_client():
    house = House()
    silent = house.ask("POST", PULSE, length=None)
    house.pass_time(12)
    assert silent.ended == "abort"
    polite = house.ask("POST", PULSE, length=None)
    polite.sink.body_end(None)
    assert polite.ended == "end"
    gone = house.ask("POST", PULSE, length=None)
    gone.sink.gone()
    house.pass_time(3)
    assert len(beats(gone)) == 1
    assert house.flows.ledgers["one"].followers == {}


def test_a_full_connection_leaves_beats_out():
    house = House()
    pulse = house.ask("POST", PULSE, length=None)
    pulse.sink.pause_response()
    house.pass_time(3)
    assert len(beats(pulse)) == 1
    pulse.sink.resume_response()
    house.pass_time(1)
    assert len(beats(pulse)) == 2
