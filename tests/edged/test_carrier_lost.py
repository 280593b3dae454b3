"""A carrier stops working under exchanges, on a path where others work."""

from __future__ import annotations

from policies.model import Carrier, CarrierChange, Replay
from policies.schema import Policy
from tests.harness.scripted import Stage, staged

H1, H2, H3 = Carrier.H1, Carrier.H2, Carrier.H3
PATH = "cn2>up/e1"


def lose(stage, *carriers):
    stage.exchanges.carrier_changed(CarrierChange(PATH, carriers, True, "silence", 0.0))


@staged
async def test_a_request_without_a_response_begins_anew_on_the_same_path():
    stage = Stage()
    client = stage.request(b"POST", length=2)
    client.sink.body(b"ab")
    client.sink.body_end(None)
    lose(stage, H2, H1)
    first, second = stage.streams
    assert first.cancelled
    assert (second.path.name, bytes(second.body)) == (PATH, b"ab")
    second.answer(200, (), 2, b"ok")
    assert (client.over, bytes(client.body)) == ("end", b"ok")
    (record,) = stage.records
    assert [t.why for t in record.tries] == ["first", "failover"]
    assert record.tries[1].reason == "silence"
    assert stage.idle()


@staged
async def test_exchanges_on_another_carrier_are_left_alone():
    stage = Stage()
    stage.request()
    lose(stage, H3)
    assert len(stage.streams) == 1
    assert not stage.streams[0].cancelled


@staged
async def test_what_must_not_be_repeated_stays_with_its_connection():
    stage = Stage(policy=Policy(replay=Replay.NEVER))
    client = stage.request(b"POST", length=0)
    lose(stage, H2, H1)
    (stream,) = stage.streams
    assert not stream.cancelled
    stream.answer(200, (), 2, b"ok")
    assert client.over == "end"


@staged
async def test_a_response_that_has_begun_stays_with_its_connection():
    stage = Stage()
    client = stage.request()
    (stream,) = stage.streams
    stream.answer(200, (), 4)
    lose(stage, H2, H1)
    assert not stream.cancelled
    stream.events.data(b"1234")
    stream.events.end(None)
    assert (client.over, bytes(client.body)) == ("end", b"1234")
    assert len(stage.streams) == 1
