"""One flow as the edge sees it: which byte goes on, who is asked, when it is over."""

from hypothesis import given
from hypothesis import strategies as st

from edged.relay.client_flow import (
    FRUITLESS,
    LINGER_S,
    PAUSE_S,
    Ask,
    FlowClient,
    Give,
    Wait,
)
from policies.model import Failure, Outcome

RESET = Failure(Outcome.RESET, "the server reset the stream (CANCEL)")
DOWN = Failure(Outcome.TIMEOUT, "silent", path_down=True)
BOTH = ["a", "b"]


def opened(*, uploaded=True):
    flow = FlowClient()
    flow.uploaded = uploaded
    assert flow.ask("a") == Ask("a", True, 0)
    return flow


def begun(received=b"0123"):
    flow = opened()
    assert flow.head("a", 0)
    assert flow.data("a", received) == received
    return flow


def test_bytes_of_one_visit():
    flow = begun()
    assert flow.data("a", b"45") == b"45"
    assert flow.received == 6
    assert flow.ended("a")
    assert flow.complete
    assert flow.over


def test_a_silent_line_is_not_given_up_but_another_is_asked():
    flow = begun()
    assert flow.silent("a", ["b"]) == Ask("b", False, 4)
    assert flow.lines == ("a", "b")
    assert flow.silent("a", ["b"]) is None
    assert not flow.head("b", 4)
    assert flow.data("b", b"4567") == b"4567"
    assert flow.data("a", b"45") == b""
    assert flow.data("a", b"6789") == b"89"
    assert flow.data("b", b"89") == b""
    assert flow.ended("b")


def test_silence_without_another_line_asks_nobody():
    flow = begun()
    assert flow.silent("a", ["a"]) is None
    assert flow.silent("a", []) is None
    assert flow.silent("b", ["a"]) is None


def test_a_second_visit_counts_as_better_while_it_is_not_silent():
    flow = begun()
    flow.silent("a", ["b"])
    assert flow.silent("b", ["c"]) is None  # two are enough
    flow.heard("a")
    assert flow.surplus("a") == ("b",)
    flow.silent("a", ["b"])
    assert flow.surplus("a") == ()


def test_a_visit_is_not_surplus_before_the_other_has_caught_up():
    flow = begun()
    flow.silent("a", ["b"])
    flow.head("b", 4)
    flow.data("b", b"45")
    flow.heard("a")
    assert flow.surplus("a") == ()
    flow.data("a", b"45")
    assert flow.surplus("a") == ("b",)


def test_until_the_response_begins_the_flow_is_opened_or_joined():
    flow = opened()
    assert flow.silent("a", ["b"]) == Ask("b", True, 0)
    assert flow.head("b", 0)
    assert not flow.head("a", 0)


def test_a_request_that_is_not_all_there_is_sent_on():
    flow = opened(uploaded=False)
    flow.head("a", 0)
    flow.data("a", b"01")
    assert flow.silent("a", ["b"]) == Ask("b", True, 2)
    flow.drop("b")
    flow.uploaded = True
    assert flow.silent("a", ["b"]) == Ask("b", False, 2)


def test_the_last_visit_that_fails_has_a_successor_at_once():
    flow = begun()
    assert flow.failed("a", DOWN, BOTH, 1.0) == Ask("b", False, 4)
    flow.head("b", 4)
    assert flow.failed("b", DOWN, ["b"], 2.0) == Ask("b", False, 4)


def test_another_visit_goes_on_when_one_fails():
    flow = begun()
    flow.silent("a", ["b"])
    assert flow.failed("a", DOWN, ["b"], 1.0) is None
    assert flow.lines == ("b",)


def test_without_a_line_it_waits_as_long_as_the_relay_keeps_it():
    flow = begun()
    assert flow.failed("a", DOWN, [], 5.0) == Wait(5.0 + LINGER_S)
    assert flow.line_back([]) is None
    assert flow.expired(5.0 + LINGER_S - 1) is None
    assert flow.line_back(["b"]) == Ask("b", False, 4)
    assert flow.expired(100.0) is None
    assert flow.failed("b", DOWN, [], 50.0) == Wait(50.0 + LINGER_S)
    given = flow.expired(50.0 + LINGER_S)
    assert isinstance(given, Give)
    assert given.failure.path_down
    assert flow.over


def test_a_response_that_is_broken_at_the_relay_is_broken():
    flow = begun()
    asked = flow.failed("a", RESET, BOTH, 1.0)
    pauses = []
    while isinstance(asked, Ask):
        pauses.append(asked.pause_s)
        flow.head(asked.line, 4)
        asked = flow.failed(asked.line, RESET, BOTH, 1.0)
    assert isinstance(asked, Give)
    assert (asked.failure.outcome, asked.failure.unprocessed) == (Outcome.RESET, False)
    assert len(pauses) == FRUITLESS
    assert pauses == [0.0, 0.0, PAUSE_S]
    assert flow.data("a", b"more") == b""


def test_every_new_byte_earns_patience():
    flow = begun()
    for number in range(20):
        asked = flow.failed(flow.lines[0], RESET, BOTH, 1.0)
        assert isinstance(asked, Ask)
        flow.head(asked.line, 4 + number)
        assert flow.data(asked.line, b"x") == b"x"


def test_a_relay_that_forgot_is_as_a_path_that_is_down():
    flow = opened()
    given = flow.refused("a", 404, "")
    assert isinstance(given, Give)
    assert given.failure.path_down
    assert not given.failure.unprocessed


def test_a_relay_that_refuses_has_not_executed_anything():
    flow = opened()
    given = flow.refused("a", 403, "the relay answered 403")
    assert isinstance(given, Give)
    assert given.failure.unprocessed
    busy = opened().refused("a", 429, "")
    assert isinstance(busy, Give)
    assert busy.failure.outcome is Outcome.BUSY
    late = begun().refused("a", 416, "")
    assert isinstance(late, Give)
    assert not late.failure.unprocessed


def test_what_one_visit_proves_does_not_excuse_another():
    flow = opened()
    refused = Failure(Outcome.REFUSED, "connection refused", unprocessed=True)
    assert isinstance(flow.failed("a", RESET, BOTH, 1.0), Ask)
    assert isinstance(flow.failed("b", refused, BOTH, 1.0), Ask)
    given = flow.failed("a", refused, BOTH, 1.0)
    assert isinstance(given, Give)
    assert not given.failure.unprocessed
    assert given.failure.path_down

    flow = opened()
    for line in ("a", "b", "a"):
        given = flow.failed(line, refused, BOTH, 1.0)
    assert isinstance(given, Give)
    assert given.failure.unprocessed

    flow = opened()
    flow.silent("a", ["b"])
    flow.drop("a")
    given = flow.refused("b", 503, "")
    assert isinstance(given, Give)
    assert not given.failure.unprocessed


def test_a_refusal_of_one_visit_does_not_end_another():
    flow = begun()
    flow.silent("a", ["b"])
    assert flow.refused("b", 429, "") is None
    assert flow.data("a", b"4") == b"4"


BODY = bytes(range(256)) * 4


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1), st.integers(1, 400)), max_size=120))
def test_every_byte_once_and_in_order_whatever_happens(events):
    """A relay with all of BODY; visits deliver, fall silent, fail and come again as they like."""
    flow = FlowClient()
    flow.uploaded = True
    sent = {}
    out = bytearray()

    def make(command):
        if isinstance(command, Ask):
            assert command.line not in sent
            sent[command.line] = (command.offset, False)

    make(flow.ask("a"))
    now = 0.0
    for what, which, size in events:
        line = BOTH[which]
        now += 0.01
        if flow.over:
            break
        if line in sent:
            at, told = sent[line]
            if not told:
                first = not flow.begun
                assert flow.head(line, at) is first
                sent[line] = (at, True)
            elif what <= 2:
                piece = BODY[at : at + size]
                out += flow.data(line, piece)
                sent[line] = (at + len(piece), True)
                if at + len(piece) == len(BODY):
                    del sent[line]
                    if flow.ended(line):
                        break
            elif what == 3:
                make(flow.silent(line, [name for name in BOTH if name != line]))
            elif what == 4:
                flow.heard(line)
                for name in flow.surplus(line):
                    flow.drop(name)
                    del sent[name]
            else:
                del sent[line]
                make(flow.failed(line, DOWN, BOTH if what == 5 else [], now))
        else:
            make(flow.line_back(BOTH))
        assert set(flow.lines) == set(sent)
        assert flow.received == len(out)
        assert len(sent) <= 2
        assert sent or flow.waits_until is not None
    assert BODY.startswith(bytes(out))
    if flow.complete:
        assert bytes(out) == BODY
