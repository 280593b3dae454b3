"""Slow and silent clients, by sweeps at times of the test's choosing."""

import pytest

from edged.downstream.limits import Limits
from edged.messages import ResponseHead
from tests.harness.clients import ok, serving, turns

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LIMITS = Limits(header_time_s=10, idle_s=100, body_stall_s=20, write_stall_s=50, linger_s=2)


@serving(ok, limits=LIMITS)
async def test_idle_connection_is_closed_silently(served):
    fresh = await served.connect()
    used = await served.connect(GET)
    await used.response()
    await turns()
    served.pass_time(99)
    assert len(served.hub.connections) == 2
    served.pass_time(2)
    assert await fresh.rest() == await used.rest() == b""


@serving(ok, limits=LIMITS)
async def test_slow_head_is_cut_with_408_however_it_drips(served, recorder):
    client = await served.connect(b"GET / HTTP/1.1\r\n")
    await turns()
    for _ in range(3):
        served.pass_time(3)
        client.send(b"X: y\r\n")
        await turns()
    served.pass_time(2)
    answer = await client.rest()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer
    assert not recorder.requests


@serving(ok, limits=LIMITS)
async def test_empty_lines_are_a_head_that_never_comes(served):
    client = await served.connect(b"\r\n")
    for _ in range(3):
        await turns()
        served.pass_time(4)
        client.send(b"\r\n")
    assert await client.rest() == b""


@serving(ok, limits=LIMITS)
async def test_second_head_on_a_connection_has_its_own_clock(served):
    client = await served.connect(GET)
    await client.response()
    served.pass_time(50)
    client.send(b"GET / HT")
    await turns()
    served.pass_time(9)
    assert served.hub.connections
    served.pass_time(2)
    assert (await client.rest()).startswith(b"HTTP/1.1 408 ")


def post(recorder, served, body=b"x"):
    return served.connect(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + body)


@serving(limits=LIMITS)
async def test_stalled_body_is_answered_with_408_and_its_handler_told(served, recorder):
    client = await post(recorder, served)
    request = await recorder.number(1)
    await request.until("body")
    served.pass_time(21)
    assert request.events[-1] == "gone"
    assert (await client.rest()).startswith(b"HTTP/1.1 408 ")


@serving(limits=LIMITS)
async def test_body_that_drips_is_stalled_and_one_that_moves_is_not(served, recorder):
    good = await post(recorder, served)
    await recorder.number(1)
    bad = await post(recorder, served)
    await recorder.number(2)
    for _ in range(2):
        good.send(b"x" * 2000)
        bad.send(b"x")
        await turns()
        served.pass_time(11)
    assert not recorder.requests[0].is_gone
    assert recorder.requests[1].is_gone


@serving(lambda r: r.responder.head(ResponseHead(200, [], None)), limits=LIMITS)
async def test_stalled_body_after_the_response_began_is_cut(served, recorder):
    client = await post(recorder, served)
    await client.head()
    served.pass_time(21)
    assert await client.reset()
    assert recorder.requests[0].is_gone


@serving(lambda r: r.responder.pause_body(), limits=LIMITS)
async def test_pause_by_the_handler_is_no_stall(served, recorder):
    await post(recorder, served)
    request = await recorder.number(1)
    for _ in range(5):
        served.pass_time(21)
    assert not request.is_gone


@serving(limits=LIMITS)
async def test_a_client_that_waits_for_100_owes_nothing_until_it_comes(served):
    client, request = await served.ask(
        b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n"
    )
    served.pass_time(21)
    served.pass_time(19)
    assert not request.is_gone
    request.responder.resume_body()
    assert (await client.head()).startswith(b"HTTP/1.1 100 ")
    served.pass_time(19)
    assert not request.is_gone
    served.pass_time(2)
    assert request.is_gone


@serving(limits=LIMITS)
async def test_waiting_for_the_handler_is_no_stall(served):
    client, request = await served.ask(GET)
    served.pass_time(100_000)
    request.answer(body=b"thought")
    assert (await client.response())[1] == b"thought"


@pytest.mark.parametrize("reads", [True, False])
@serving(limits=LIMITS)
async def test_client_that_takes_nothing_is_cut_and_a_slow_one_is_not(served, reads):
    client, request = await served.ask(GET)
    request.responder.head(ResponseHead(200, [], None))
    await client.head()
    client.writer.transport.pause_reading()
    while not request.paused:
        request.responder.data(b"x" * 100_000)
    for _ in range(400):
        request.responder.data(b"x" * 100_000)
    await turns()
    for _ in range(3):
        served.pass_time(51)
        if reads:
            client.writer.transport.resume_reading()
            await client.reader.readexactly(6_000_000)
            await turns()
    assert request.is_gone != reads


@serving(lambda r: r.answer(413, b"no"), limits=LIMITS)
async def test_answer_to_a_client_that_keeps_sending_lingers_briefly(served):
    client = await post(None, served)
    assert (await client.rest()).endswith(b"no")
    await turns()
    assert served.hub.connections
    served.pass_time(3)
    await turns()
    assert not served.hub.connections
