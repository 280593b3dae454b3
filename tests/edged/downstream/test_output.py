"""How responses leave: in few writes, and never late."""

import pytest

from edged.downstream.h1 import H1Connection
from edged.downstream.hub import Hub
from edged.downstream.limits import Limits
from edged.messages import ResponseHead
from tests.harness.clients import FakeTransport, NoLoop, Recorder, ok

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Counting(FakeTransport):
    """Keeps each write apart."""

    def __init__(self):
        super().__init__()
        self.writes = []

    def write(self, data):
        super().write(data)
        self.writes.append(data)


def connected(recorder):
    loop = NoLoop()
    connection = H1Connection(Hub(recorder, Limits(), loop))
    transport = Counting()
    connection.connection_made(transport)
    return connection, transport, loop


def test_answer_inside_the_parser_callback_is_one_write():
    connection, transport, _ = connected(Recorder(ok))
    connection.data_received(GET)
    assert len(transport.writes) == 1


def test_pipelined_answers_leave_together():
    connection, transport, loop = connected(Recorder(ok))
    connection.data_received(GET * 3)
    loop.run()
    assert len(transport.writes) == 1
    assert transport.written.count(b"HTTP/1.1 200") == 3


def test_small_answer_from_an_upstream_callback_is_one_write():
    for length in ("known", None):
        recorder = Recorder()
        connection, transport, loop = connected(recorder)
        connection.data_received(GET)
        recorder.requests[0].answer(body=b"x", length=length)
        if length == "known":
            assert len(transport.writes) == 1
        loop.run()
        assert len(transport.writes) == 1


def test_head_alone_leaves_in_this_turn():
    recorder = Recorder()
    connection, transport, loop = connected(recorder)
    connection.data_received(GET)
    recorder.requests[0].responder.head(ResponseHead(200, [], None))
    assert transport.writes == []
    loop.run()
    assert len(transport.writes) == 1


def test_event_of_a_running_stream_is_written_inside_the_call():
    recorder = Recorder()
    connection, transport, loop = connected(recorder)
    connection.data_received(GET)
    responder = recorder.requests[0].responder
    responder.head(ResponseHead(200, [], None))
    loop.run()
    for n in range(3):
        responder.data(b"event")
        assert len(transport.writes) == n + 2


def test_large_data_does_not_wait_behind_the_cork():
    connection, transport, _ = connected(
        Recorder(
            lambda r: (
                r.responder.head(ResponseHead(200, [], None)),
                r.responder.data(b"x" * 100_000),
                checks.append(len(transport.written)),
            )
        )
    )
    checks = []
    connection.data_received(GET)
    assert checks[0] > 100_000


def test_heads_of_one_turn_share_a_callback_and_none_waits_for_another():
    recorder = Recorder()
    loop = NoLoop()
    hub = Hub(recorder, Limits(), loop)
    transports = [Counting() for _ in range(3)]
    for transport in transports:
        connection = H1Connection(hub)
        connection.connection_made(transport)
        connection.data_received(GET)
    transports[1].closed = True  # its write fails
    for request in recorder.requests:
        request.responder.head(ResponseHead(200, [], 1))
    assert len(loop.soon) == 1
    with pytest.raises(AssertionError):
        loop.run()
    loop.run()
    assert [len(transport.writes) for transport in transports] == [1, 0, 1]


def test_nothing_is_left_to_flush_once_the_body_has_left():
    recorder = Recorder()
    connection, transport, loop = connected(recorder)
    connection.data_received(GET)
    recorder.requests[0].responder.head(ResponseHead(200, [], 2))
    recorder.requests[0].responder.data(b"ok")
    recorder.requests[0].responder.end()
    loop.run()
    assert len(transport.writes) == 1
    connection.data_received(GET)
    recorder.requests[1].answer(body=b"ok")
    assert len(transport.writes) == 2
