"""Playbooks of one exchange: a scripted upstream side, a recording client, the real machine."""

import asyncio
import gzip
import json
import zlib
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import monotonic

import pytest

from edged.messages import ResponseHead
from policies.model import Blame, Change, Outcome, RequestClass, Verdict
from policies.schema import Compression, Failover, Hedge, Limits, Policy, Retry
from tests.harness.scripted import Stage, make_path, staged


def down(stage, path):
    """``path`` goes DOWN: the table's order changes, exchanges hear of it."""
    rest = [p for p in stage.paths if p.name != path]
    stage.table.order(rest + [p for p in stage.paths if p.name == path], 1)
    change = Change(path, Verdict.UP, Verdict.DOWN, Blame.LINE, "silence", 0.0)
    stage.exchanges.path_changed(change)


@staged
async def test_a_plain_request_goes_over_the_best_path_and_comes_back():
    stage = Stage()
    client = stage.request(headers=[(b"x-a", b"1"), (b"proxy-authorization", b"secret")])
    (stream,) = stage.streams
    assert stream.path.name == "cn2>up/e1"
    assert stream.ended
    fields = dict(stream.head.headers)
    assert (stream.head.authority, stream.head.path) == (b"e1.example", b"/v1/x")
    assert fields[b"x-a"] == b"1"
    assert fields[b"via"] == b"1.1 t1"
    assert b"proxy-authorization" not in fields
    stream.answer(200, [(b"content-type", b"text/plain"), (b"alt-svc", b"h3=:1")], 5, b"hello")
    assert (client.status, bytes(client.body), client.over) == (200, b"hello", "end")
    assert client.length == 5
    assert b"alt-svc" not in client.headers
    assert b"cn2" in client.headers[b"proxy-status"]
    (record,) = stage.records
    assert record.request_id == client.headers[b"edged-request-id"].decode()
    assert (record.path_name, record.status, record.bytes_down) == ("cn2>up/e1", 200, 5)
    assert [s.outcome for s in stage.table.samples] == [Outcome.OK]
    assert stage.idle()


@staged
async def test_a_response_without_date_gets_one_and_a_date_stays():
    stage = Stage()
    for status in (200, 204, 304, 404):
        client = stage.request()
        before = datetime.now(UTC).replace(microsecond=0)
        stage.streams[-1].answer(status, (), 0, b"")
        date = parsedate_to_datetime(client.headers[b"date"].decode())
        assert before <= date <= datetime.now(UTC)
    client = stage.request()
    stage.streams[-1].answer(200, [(b"date", b"Mon, 01 Jan 2024 00:00:00 GMT")], 0, b"")
    assert client.fields.count((b"date", b"Mon, 01 Jan 2024 00:00:00 GMT")) == 1
    assert [name for name, _ in client.fields].count(b"date") == 1


@staged
async def test_the_hint_names_the_admin_port_where_it_is_not_the_default():
    stage = Stage([make_path("cn2")])
    stage.exchanges.admin = " --admin 127.0.0.1:9"
    client = stage.request(b"POST", length=0)
    stage.streams[0].fail(Outcome.RESET, "closed")
    (record,) = stage.records
    hint = json.loads(client.body)["error"]["hint"]
    assert f"`edged why {record.request_id} --admin 127.0.0.1:9`" in hint
    assert "`edged status --admin 127.0.0.1:9`" in hint


@staged
async def test_the_endpoints_base_path_and_port_are_used():
    path = make_path("cn2", host="h.example", port=8443, base_path="/base")
    stage = Stage([path])
    stage.request()
    head = stage.streams[0].head
    assert (head.authority, head.path) == (b"h.example:8443", b"/base/v1/x")


@staged
async def test_a_small_body_is_sent_once_it_is_complete():
    stage = Stage()
    client = stage.request(b"POST", length=10)
    client.sink.body(b"01234")
    assert not stage.streams
    client.sink.body(b"56789")
    client.sink.body_end([(b"t", b"1")])
    (stream,) = stage.streams
    assert (bytes(stream.body), stream.ended, stream.trailers) == (
        b"0123456789",
        True,
        [(b"t", b"1")],
    )


@staged
async def test_a_large_body_flows_and_the_client_is_paused_while_the_stream_is():
    stage = Stage()
    client = stage.request(b"POST", length=None)
    (stream,) = stage.streams
    client.sink.body(b"a" * 1000)
    assert len(stream.body) == 1000
    stream.events.pause_body()
    for _ in range(10):
        client.sink.body(b"b" * 40_000)
    assert client.paused
    assert len(stream.body) == 1000
    stream.events.resume_body()
    assert not client.paused
    client.sink.body_end(None)
    assert len(stream.body) == 401_000
    assert stream.ended


@staged
async def test_a_refused_attempt_is_repeated_on_the_other_path_whatever_the_method():
    stage = Stage()
    client = stage.request(b"POST", length=5)
    client.sink.body(b"hello")
    client.sink.body_end(None)
    stage.streams[0].fail(Outcome.PROTOCOL, "REFUSED_STREAM", unprocessed=True)
    second = stage.streams[1]
    assert second.path.name == "bgp>up/e1"
    assert bytes(second.body) == b"hello"
    second.answer(200, (), 2, b"ok")
    assert client.over == "end"
    assert stage.counters.retries == 1
    assert stage.counters.double_executions == 0
    (record,) = stage.records
    assert [a.path for a in record.attempts] == ["cn2>up/e1", "bgp>up/e1"]
    assert stage.idle()


@staged
async def test_a_post_that_was_sent_is_not_repeated_after_a_reset():
    stage = Stage()
    client = stage.request(b"POST", length=5)
    client.sink.body(b"hello")
    client.sink.body_end(None)
    stage.streams[0].fail()
    assert len(stage.streams) == 1
    assert client.status == 502
    answer = json.loads(bytes(client.body))["error"]
    assert answer["request_id"]
    assert f"`edged why {stage.records[0].request_id}` to see" in answer["hint"]
    assert client.headers[b"proxy-status"].startswith(b"edged; error=connection_terminated")
    assert stage.records[0].error == "connection_terminated"
    assert stage.idle()


@staged
async def test_a_get_that_was_sent_is_repeated_after_a_reset():
    stage = Stage()
    client = stage.request()
    stage.streams[0].fail()
    stage.streams[1].answer(200, (), 2, b"ok")
    assert client.over == "end"
    assert stage.idle()


@pytest.mark.parametrize(("gateway", "repeated"), [(True, True), (False, False)])
def test_a_post_on_a_line_that_dies_is_repeated_for_gateway_requests(gateway, repeated):
    @staged
    async def play():
        stage = Stage()
        client = stage.request(b"POST", length=5, gateway=gateway)
        client.sink.body(b"hello")
        client.sink.body_end(None)
        down(stage, "cn2>up/e1")
        assert stage.streams[0].cancelled
        if repeated:
            stage.streams[1].answer(200, (), 2, b"ok")
            assert client.status == 200
            assert stage.counters.failovers == 1
            assert stage.counters.double_executions == 1
        else:
            assert client.status == 502
            assert b"path cn2>up/e1 is down: silence" in client.body
        assert stage.idle()

    play()


@staged
async def test_a_response_cut_short_is_never_ended_cleanly():
    stage = Stage()
    client = stage.request()
    (stream,) = stage.streams
    stream.answer(200, (), 100)
    stream.events.data(b"x" * 60)
    stream.fail(Outcome.RESET, "closed after 60 of 100 bytes")
    assert len(stage.streams) == 1
    assert client.over == "abort"
    assert stage.records[0].error == "http_response_incomplete"
    assert stage.idle()


@staged
async def test_a_tiny_coded_response_cut_short_is_never_ended_cleanly():
    stage = Stage()
    client = stage.request()
    (stream,) = stage.streams
    stream.events.head(ResponseHead(200, [(b"content-encoding", b"gzip")], None))
    stream.events.data(gzip.compress(b"hello")[:-4])
    stream.events.end(None)
    assert client.over == "abort"
    assert stage.idle()


@staged
async def test_a_response_is_decoded_for_a_client_that_did_not_ask():
    stage = Stage()
    client = stage.request()
    (stream,) = stage.streams
    assert dict(stream.head.headers)[b"accept-encoding"] == b"zstd, br, gzip"
    body = gzip.compress(b"hello" * 100)
    stream.events.head(ResponseHead(200, [(b"content-encoding", b"gzip")], len(body)))
    stream.events.data(body[:7])
    stream.events.data(body[7:])
    stream.events.end(None)
    assert bytes(client.body) == b"hello" * 100
    assert (client.length, client.over) == (None, "end")
    assert b"content-encoding" not in client.headers
    assert stage.records[0].bytes_down == 500
    assert stage.records[0].bytes_down_wire == len(body)


@staged
async def test_an_event_leaves_in_the_turn_in_which_it_arrived_also_when_decoded():
    stage = Stage()
    client = stage.request(headers=[(b"accept", b"text/event-stream")])
    (stream,) = stage.streams
    stream.events.head(ResponseHead(200, [(b"content-encoding", b"gzip")], None))
    state = zlib.compressobj(6, zlib.DEFLATED, 31)
    for number in range(3):
        event = b"data: %d\n\n" % number
        stream.events.data(state.compress(event) + state.flush(zlib.Z_SYNC_FLUSH))
        assert client.body.endswith(event)


@staged
async def test_a_client_that_takes_the_coding_gets_it_untouched():
    stage = Stage()
    client = stage.request(headers=[(b"accept-encoding", b"gzip")])
    stage.streams[0].answer(200, [(b"content-encoding", b"gzip")], 9, b"whatever!")
    assert bytes(client.body) == b"whatever!"
    assert client.headers[b"content-encoding"] == b"gzip"


@staged
async def test_backpressure_from_the_client_reaches_the_stream():
    stage = Stage()
    client = stage.request()
    (stream,) = stage.streams
    stream.answer(200, (), None)
    client.sink.pause_response()
    assert stream.paused
    client.sink.resume_response()
    assert not stream.paused


@pytest.mark.parametrize("spool_bytes", [64 << 20, 100_000])
def test_a_client_paused_for_want_of_a_stream_goes_on_with_it(spool_bytes):
    @staged
    async def play():
        stage = Stage(policy=Policy(limits=Limits(spool_bytes=spool_bytes)))
        stage.upstreams.busy = {p.name for p in stage.paths}
        client = stage.request(b"POST", length=1_000_000)
        client.sink.body(bytes(500_000))
        assert client.paused
        (pending,) = stage.upstreams.pending
        stream = stage.upstreams.grant(pending.path, pending.events)
        assert len(stream.body) == 500_000  # it took all at once and will ask for nothing
        assert not client.paused
        client.sink.body(bytes(500_000))
        client.sink.body_end(None)
        assert stream.ended
        stream.answer(200, (), 2, b"ok")
        assert client.over == "end"
        assert stage.idle()

    play()


@staged
async def test_a_client_that_leaves_cancels_its_attempt():
    stage = Stage()
    client = stage.request()
    client.sink.gone()
    assert stage.streams[0].cancelled
    assert stage.records[0].error == "client_gone"
    assert stage.counters.client_gone == 1
    assert stage.idle()


@pytest.mark.parametrize(
    ("method", "length", "sent"), [(b"GET", 5, b"hello"), (b"HEAD", 0, b""), (b"GET", 0, b"")]
)
def test_a_client_that_leaves_with_all_of_its_answer_is_no_client_gone(method, length, sent):
    """The upstream's end of the stream (END_STREAM) may come in a packet of its own."""

    @staged
    async def play():
        stage = Stage()
        client = stage.request(method, headers=[(b"range", b"bytes=0-")])
        (stream,) = stage.streams
        stream.answer(200, (), length)
        stage.exchanges.tick(monotonic() + 30)  # what was held back is passed on
        if sent:
            stream.events.data(sent)
        assert bytes(client.body) == sent
        client.sink.gone()
        (record,) = stage.records
        assert (record.status, record.error, record.bytes_down) == (200, None, length)
        (attempt,) = record.tries
        assert (attempt.cancelled, attempt.failure) == (False, None)
        assert stream.cancelled
        assert stage.counters.client_gone == 0
        assert stage.idle()

    play()


@pytest.mark.parametrize(("length", "sent"), [(5, b"hell"), (None, b"hello")])
def test_a_client_that_leaves_before_its_answer_is_whole_is_gone(length, sent):
    @staged
    async def play():
        stage = Stage()
        client = stage.request()
        (stream,) = stage.streams
        stream.answer(200, (), length)
        stage.exchanges.tick(monotonic() + 30)
        stream.events.data(sent)
        client.sink.gone()
        (record,) = stage.records
        assert record.error == "client_gone"
        assert record.tries[0].cancelled
        assert stage.counters.client_gone == 1

    play()


@staged
async def test_no_path_is_503_and_says_what_to_do():
    stage = Stage()
    stage.table.order([])
    client = stage.request()
    assert client.status == 503
    assert b"destination_unavailable" in client.headers[b"proxy-status"]
    assert stage.idle()


@staged
async def test_all_paths_failing_to_connect_is_one_502():
    stage = Stage()
    stage.upstreams.busy = {p.name for p in stage.paths}
    client = stage.request(b"POST", length=None)
    while client.status is None:
        while stage.upstreams.pending:
            stage.upstreams.pending.pop(0).fail(Outcome.REFUSED, "connection refused")
        await asyncio.sleep(0.01)
    assert client.status == 502
    assert stage.idle()


@staged
async def test_421_means_another_path():
    stage = Stage()
    client = stage.request(b"POST", length=1)
    client.sink.body(b"x")
    client.sink.body_end(None)
    stage.streams[0].answer(421)
    assert stage.streams[0].cancelled
    stage.streams[1].answer(200, (), 2, b"ok")
    assert client.status == 200


@pytest.mark.parametrize("status", [429, 503, 529])
def test_a_busy_endpoint_is_passed_through_and_nobody_is_blamed(status):
    @staged
    async def play():
        stage = Stage()
        client = stage.request()
        stage.streams[0].answer(status, [(b"retry-after", b"7")], 2, b"no")
        assert client.status == status
        (sample,) = stage.table.samples
        assert (sample.outcome, sample.retry_after_s) == (Outcome.BUSY, 7.0)

    play()


@staged
async def test_interim_responses_are_passed_on_but_no_100_that_nobody_waits_for():
    stage = Stage()
    client = stage.request()
    (stream,) = stage.streams
    stream.events.informational(100, [])
    stream.events.informational(103, [(b"link", b"x")])
    assert client.interim == [103]


def quick_stage(last_resorts=0):
    """A stage whose GETs were answered in 10 ms until now."""
    stage = Stage(policy=Policy(hedge=Hedge(min_delay_s=0.01)))
    tails = stage.exchanges.services["up"].tails[RequestClass(0)]
    tails.fresh["e1"] += [0.01] * 20
    tails.flush(monotonic())
    stage.table.order(stage.paths, last_resorts)
    return stage


async def hedge(stage):
    """Wait for the second stream."""
    async with asyncio.timeout(5):
        while len(stage.streams) < 3:
            await asyncio.sleep(0.005)
    return stage.streams[0], stage.streams[2]


@staged
async def test_a_slow_get_is_hedged_and_the_faster_answer_wins():
    stage = quick_stage()
    client, other = stage.request(), stage.request()
    stage.streams[1].answer(200, (), 2, b"ok")
    slow, fast = await hedge(stage)
    assert other.over == "end"
    fast.answer(200, (), 2, b"ok")
    assert slow.cancelled
    assert client.over == "end"
    assert stage.counters.hedges == stage.counters.double_executions == 1
    assert (stage.records[1].hedged, stage.records[1].replayed) == (True, False)
    assert "no answer after 0.0" in stage.records[1].attempts[1].reason
    assert stage.idle()


@staged
async def test_the_loser_of_a_hedge_is_cancelled_even_if_the_first_wins():
    stage = quick_stage()
    client, _ = stage.request(), stage.request()
    stage.streams[1].answer(200, (), 2, b"ok")
    first, second = await hedge(stage)
    first.answer(200, (), 2, b"ok")
    assert second.cancelled
    assert (client.over, stage.records[1].path_name) == ("end", "cn2>up/e1")
    assert stage.idle()


@pytest.mark.parametrize("why_not", ["nobody is answered", "last resort", "another class"])
def test_what_is_not_hedged(why_not):
    @staged
    async def play():
        stage = quick_stage(last_resorts=why_not == "last resort")
        if why_not == "another class":
            stage.request(headers=[(b"accept", b"text/event-stream")])
        else:
            stage.request()
        stage.request()
        if why_not != "nobody is answered":
            stage.streams[1].answer(200, (), 2, b"ok")
        await asyncio.sleep(0.1)
        assert len(stage.streams) == 2

    play()


@staged
async def test_waiting_too_long_for_a_head_is_a_504():
    stage = Stage(policy=Policy(failover=Failover(first_byte_timeout_s=1.0)))
    client = stage.request()
    now = asyncio.get_running_loop().time()
    stage.exchanges.tick(now + 5)
    assert client.status == 504
    assert b"error=http_response_timeout" in client.headers[b"proxy-status"]
    assert b"first_byte_timeout_s" in client.body
    assert stage.streams[0].cancelled
    assert stage.idle()


@staged
async def test_connections_that_time_out_are_told_from_a_slow_answer():
    stage = Stage(policy=Policy(retry=Retry(max_attempts=1)))
    stage.upstreams.busy = {p.name for p in stage.paths}
    client = stage.request()
    stage.upstreams.pending.pop(0).fail()
    assert client.status == 504
    assert b"error=connection_timeout" in client.headers[b"proxy-status"]
    assert b"edged status" in client.body
    assert stage.idle()


@staged
async def test_silence_inside_a_response_breaks_it():
    stage = Stage(policy=Policy(failover=Failover(idle_timeout_s=1.0, first_byte_timeout_s=1.0)))
    client = stage.request()
    stage.streams[0].answer(200, (), 10_000_000)
    stage.exchanges.tick(asyncio.get_running_loop().time() + 5)
    assert client.over == "abort"
    assert stage.idle()


@staged
async def test_a_body_beyond_the_limit_is_413():
    stage = Stage(policy=Policy(limits=Limits(body_bytes=10)))
    client = stage.request(b"POST", length=None)
    client.sink.body(b"x" * 11)
    assert client.status == 413
    assert stage.streams[0].cancelled
    assert stage.idle()


@staged
async def test_a_body_beyond_the_spool_flows_but_is_not_repeated():
    stage = Stage(policy=Policy(limits=Limits(spool_bytes=1000)))
    client = stage.request(b"PUT", length=None)
    for _ in range(30):
        client.sink.body(b"y" * 500)
    client.sink.body_end(None)
    assert len(stage.streams[0].body) == 15_000
    stage.streams[0].fail(Outcome.PROTOCOL, "refused", unprocessed=True)
    assert client.status == 502
    assert len(stage.streams) == 1


# -- request coding -------------------------------------------------------------------------------


def coded_stage(**extra):
    path = make_path("cn2", accepts_encoding=("gzip",), **extra)
    return Stage([path], policy=Policy(compression=Compression(min_bytes=100)))


def post(stage, body, length=-1, **extra):
    client = stage.request(b"POST", length=len(body) if length == -1 else length, **extra)
    for at in range(0, len(body), 30_000):
        client.sink.body(body[at : at + 30_000])
    client.sink.body_end(None)
    return client


@staged
async def test_a_body_is_coded_for_an_endpoint_that_accepts_it():
    stage, body = coded_stage(), b"hello " * 1000
    post(stage, body)
    (stream,) = stage.streams
    assert dict(stream.head.headers)[b"content-encoding"] == b"gzip"
    assert stream.head.body_length == len(stream.body)
    assert gzip.decompress(stream.body) == body


@staged
async def test_a_long_body_is_coded_as_it_streams():
    stage, body = coded_stage(), b"hello " * 100_000
    post(stage, body, None)
    (stream,) = stage.streams
    assert stream.head.body_length is None
    assert gzip.decompress(stream.body) == body
    stream.answer(200, (), 2, b"ok")
    assert stage.records[0].bytes_up == len(body)
    assert stage.records[0].bytes_up_wire == len(stream.body)


@pytest.mark.parametrize("status", [400, 415])
def test_a_refused_coding_is_sent_again_plain_and_remembered(status):
    @staged
    async def play():
        stage, body = coded_stage(), b"hello " * 1000
        client = post(stage, body)
        stage.streams[0].answer(status)
        assert stage.streams[0].cancelled
        plain = stage.streams[1]
        assert b"content-encoding" not in dict(plain.head.headers)
        assert bytes(plain.body) == body
        plain.answer(200, (), 2, b"ok")
        assert client.status == 200
        client = post(stage, body)
        assert b"content-encoding" not in dict(stage.streams[2].head.headers)
        stage.streams[2].answer(400, (), 2, b"no")  # the request's own fault
        assert client.status == 400
        post(stage, body)
        assert b"content-encoding" not in dict(stage.streams[3].head.headers)
        stage.streams[3].answer(200, (), 2, b"ok")
        assert stage.idle()

    play()


@staged
async def test_a_415_from_another_url_is_sent_again_plain_and_remembered_for_that_url():
    def coded(stream):
        return b"content-encoding" in dict(stream.head.headers)

    stage, body = coded_stage(), b"hello " * 1000
    post(stage, body)
    stage.streams[0].answer(200, (), 2, b"ok")
    client = post(stage, body, path=b"/other?x=1")
    stage.streams[1].answer(415)
    plain = stage.streams[2]
    assert (coded(plain), bytes(plain.body)) == (False, body)
    plain.answer(200, (), 2, b"ok")
    assert client.status == 200
    post(stage, body, path=b"/other?x=2")
    assert not coded(stage.streams[3])
    post(stage, body)
    assert coded(stage.streams[4])


@staged
async def test_an_error_to_a_coded_body_does_not_say_that_codings_are_taken():
    stage, body = coded_stage(), b"hello " * 1000
    post(stage, body)
    stage.streams[0].answer(404, (), 2, b"no")
    post(stage, body)
    stage.streams[1].answer(400)
    assert len(stage.streams) == 3


@staged
async def test_a_short_body_of_unknown_length_goes_plain():
    stage = coded_stage()
    client = stage.request(b"POST", length=None)
    client.sink.body(b"123456")
    assert not stage.streams
    client.sink.body_end(None)
    (stream,) = stage.streams
    assert b"content-encoding" not in dict(stream.head.headers)
    assert (bytes(stream.body), stream.ended) == (b"123456", True)


@staged
async def test_a_body_of_unknown_length_is_coded_from_the_limit_on():
    stage = coded_stage()
    client = stage.request(b"POST", length=None)
    client.sink.body(b"a" * 99)
    assert not stage.streams
    client.sink.body(b"b" * 9)
    (stream,) = stage.streams
    assert dict(stream.head.headers)[b"content-encoding"] == b"gzip"
    client.sink.body_end(None)
    assert gzip.decompress(stream.body) == b"a" * 99 + b"b" * 9


@staged
async def test_who_waits_for_100_has_a_long_body():
    stage = coded_stage()
    client = stage.request(b"POST", length=None, expects_continue=True)
    (stream,) = stage.streams
    assert dict(stream.head.headers)[b"content-encoding"] == b"gzip"
    client.sink.body(b"a" * 1000)
    client.sink.body_end(None)
    assert gzip.decompress(stream.body) == b"a" * 1000


@staged
async def test_who_sends_little_and_waits_is_not_held_up():
    stage = coded_stage()
    client = stage.request(b"POST", length=None)
    client.sink.body(b"ping")
    async with asyncio.timeout(5):
        while not stage.streams:
            await asyncio.sleep(0.005)
    (stream,) = stage.streams
    assert b"content-encoding" not in dict(stream.head.headers)
    assert bytes(stream.body) == b"ping"
    client.sink.body(b"pong" * 1000)
    assert bytes(stream.body) == b"ping" + b"pong" * 1000


@staged
async def test_a_client_that_leaves_before_its_body_came_starts_nothing():
    stage = coded_stage()
    client = stage.request(b"POST", length=None)
    client.sink.gone()
    await asyncio.sleep(0.1)
    assert not stage.streams
    assert stage.idle()


@staged
async def test_a_request_that_is_bad_anyway_does_not_condemn_the_coding():
    stage, body = coded_stage(), b"hello " * 1000
    client = post(stage, body)
    stage.streams[0].answer(400)
    stage.streams[1].answer(400, (), 2, b"no")
    assert client.status == 400
    post(stage, body)
    assert b"content-encoding" in dict(stage.streams[2].head.headers)


@staged
async def test_an_endpoint_that_took_a_coding_before_is_believed():
    stage, body = coded_stage(), b"hello " * 1000
    post(stage, body)
    stage.streams[0].answer(200, (), 2, b"ok")
    client = post(stage, body)
    stage.streams[1].answer(400, (), 2, b"no")
    assert (client.status, len(stage.streams)) == (400, 2)


# -- upgrades and redirects -----------------------------------------------------------------------


@staged
async def test_an_upgrade_switches_to_raw_bytes_both_ways():
    stage = Stage()
    client = stage.request(upgrade=b"websocket")
    (stream,) = stage.streams
    assert stage.upstreams.asked[0][2]
    stream.answer(101)
    client.sink.body(b"ping")
    assert bytes(stream.body) == b"ping"
    stream.events.data(b"pong")
    assert bytes(client.body) == b"pong"
    stream.events.pause_body()
    assert client.paused
    stream.events.resume_body()
    assert not client.paused
    client.sink.body_end(None)
    stream.events.end(None)
    assert client.over == "end"
    (record,) = stage.records
    assert (record.bytes_up, record.bytes_up_wire) == (4, 4)
    assert (record.bytes_down, record.bytes_down_wire) == (4, 4)
    assert stage.counters.bytes_up == stage.counters.bytes_up_wire == 4
    stage.exchanges.tick(monotonic() + 1)
    assert stage.table.usage["cn2"] > 0
    assert stage.idle()


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (b"https://e1.example/v1/y?a=1", b"/api/v1/y?a=1"),
        (b"/v1/y", b"/api/v1/y"),
        (b"https://elsewhere.example/v1", b"https://elsewhere.example/v1"),
        (b"//elsewhere.example/v1", b"//elsewhere.example/v1"),
        (b"https://e1.example.evil/", b"https://e1.example.evil/"),
    ],
)
def test_redirects_to_the_endpoint_come_back_through_the_prefix(location, expected):
    @staged
    async def play():
        stage = Stage()
        client = stage.request()
        stage.streams[0].answer(302, [(b"location", location)], 0)
        assert client.headers[b"location"] == expected

    play()


@staged
async def test_records_hold_no_query_and_no_secret():
    stage = Stage()
    stage.request(path=b"/v1/x?key=sk-123", headers=[(b"authorization", b"B x")])
    stage.streams[0].answer(200, (), 0, b"")
    record = stage.records[0]
    assert record.path_without_query == "/v1/x"
    assert "sk-123" not in repr([getattr(record, n) for n in dir(record)])


@staged
async def test_the_table_learns_how_much_each_line_carries():
    stage = Stage()
    now = asyncio.get_running_loop().time()
    stage.exchanges.tick(now)
    client = stage.request(b"POST", length=None)
    client.sink.body(b"x" * 25_000)
    stage.streams[0].answer(200, (), None)
    stage.streams[0].events.data(b"y" * 100_000)
    stage.exchanges.tick(now + 10)
    assert stage.table.usage["cn2"] == pytest.approx(100_000, rel=0.2)
    stage.exchanges.tick(now + 20)
    assert stage.table.usage["cn2"] == 0


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"method": b"HEAD"}, b"identity"),
        ({"headers": [(b"range", b"bytes=0-1"), (b"accept-encoding", b"identity")]}, b"identity"),
        ({}, b"zstd, br, gzip"),
    ],
)
def test_edged_asks_for_codings_but_not_where_bytes_must_stay(fields, asked):
    @staged
    async def play():
        stage = Stage()
        stage.request(**{"headers": [(b"accept-encoding", b"identity")], **fields})
        assert dict(stage.streams[0].head.headers)[b"accept-encoding"] == asked

    play()


@staged
async def test_good_answers_in_quick_succession_reach_the_table_together():
    stage = Stage()
    for _ in range(5):
        stage.request()
        stage.streams[-1].answer(200, (), 2, b"ok")
    assert len(stage.table.samples) == 1
    stage.request()
    stage.streams[-1].answer(500, (), 2, b"no")
    assert [s.outcome for s in stage.table.samples] == [Outcome.OK, Outcome.HTTP_ERROR]
    assert len(stage.table.held) == 4
    stage.request()
    stage.streams[-1].answer(200, (), 2, b"ok")
    stage.exchanges.tick(asyncio.get_running_loop().time() + 1)
    assert len(stage.table.held) == 5


@staged
async def test_the_record_tells_a_dead_attempt_from_one_that_answered():
    stage = Stage()
    stage.request()
    down(stage, "cn2>up/e1")
    stage.streams[1].answer(200, (), 2, b"ok")
    (record,) = stage.records
    first, second = record.tries
    assert (first.cancelled, second.cancelled) == (False, False)
    assert first.failure.outcome is Outcome.TIMEOUT
    assert second.why == "failover"
    assert first.failure.detail == second.reason == "path cn2>up/e1 is down: silence"
    assert record.path_name == "bgp>up/e1"


@staged
async def test_why_it_failed_is_told_rather_than_that_the_path_is_down_by_now():
    stage = Stage([make_path("cn2")])
    stage.upstreams.busy = {"cn2>up/e1"}
    client = stage.request()
    stage.upstreams.pending.pop().fail(Outcome.REFUSED, "connection refused")
    down(stage, "cn2>up/e1")
    while client.status is None:
        for pending in stage.upstreams.pending:
            pending.fail(Outcome.TIMEOUT, "path is down", path_down=True)
        stage.upstreams.pending.clear()
        await asyncio.sleep(0.01)
    assert client.status == 502
    assert b"connection_refused" in client.headers[b"proxy-status"]


# -- every path is DOWN ---------------------------------------------------------------------------


def back(stage, path, last_resorts=0):
    """``path`` shows a sign of life."""
    rest = [p for p in stage.paths if p.name != path]
    stage.table.order([p for p in stage.paths if p.name == path] + rest, last_resorts)
    change = Change(path, Verdict.DOWN, Verdict.SUSPECT, Blame.LINE, "heard again", 0.0)
    stage.exchanges.path_changed(change)


async def asked(stage, count):
    """Wait for that many attempts."""
    async with asyncio.timeout(5):
        while len(stage.upstreams.asked) < count:
            await asyncio.sleep(0.005)
    return [name for name, *_ in stage.upstreams.asked]


@pytest.mark.parametrize("when", ["before", "pending", "sent"])
def test_with_every_path_down_the_first_to_come_back_serves_at_once(when):
    @staged
    async def play():
        stage = Stage()
        both = [p.name for p in stage.paths]
        stage.upstreams.busy = set(both) - ({"cn2>up/e1"} if when == "sent" else set())
        if when == "before":
            stage.table.order(stage.paths, 2)
        client = stage.request()
        stage.upstreams.busy = set(both)
        if when != "before":
            stage.table.order(stage.paths, 2)
            change = Change("cn2>up/e1", Verdict.UP, Verdict.DOWN, Blame.LINE, "silence", 0.0)
            stage.exchanges.path_changed(change)
            await asked(stage, 2)
        assert len(stage.exchanges.stranded) == 1
        stage.upstreams.busy = set()
        back(stage, "bgp>up/e1", 1)
        stage.streams[-1].answer(200, (), 2, b"ok")
        assert client.over == "end"
        (record,) = stage.records
        assert record.tries[-1].path == "bgp>up/e1"
        assert record.tries[-1].reason == "path bgp>up/e1 is back"
        assert record.replayed == (when == "sent")
        assert not stage.exchanges.stranded
        assert stage.idle()

    play()


@pytest.mark.parametrize("when", ["before", "pending"])
def test_with_every_path_down_one_connect_timeout_is_waited_in_all(when):
    @staged
    async def play():
        policy = Policy(failover=Failover(connect_timeout_s=0.3))
        stage = Stage(policy=policy, rtt_s=0.01)
        stage.upstreams.busy = {p.name for p in stage.paths}
        if when == "before":
            stage.table.order(stage.paths, 2)
        client = stage.request()
        if when == "pending":
            down(stage, "cn2>up/e1")
            stage.table.order(stage.paths, 2)
            change = Change("bgp>up/e1", Verdict.UP, Verdict.DOWN, Blame.LINE, "silence", 0.0)
            stage.exchanges.path_changed(change)
        async with asyncio.timeout(3):
            while client.status is None:
                await asyncio.sleep(0.01)
        assert client.status == 503
        assert b"destination_unavailable" in client.headers[b"proxy-status"]
        tried = [name for name, *_ in stage.upstreams.asked]
        assert {"cn2>up/e1", "bgp>up/e1"} == set(tried)
        assert len(tried) <= 4
        assert 0.25 < stage.records[0].total_s < 1.5
        assert not stage.exchanges.stranded
        assert stage.idle()

    play()


@staged
async def test_a_retry_takes_the_order_of_now_not_that_of_its_beginning():
    stage = Stage([make_path("cn2"), make_path("bgp"), make_path("hk")])
    client = stage.request()
    first, second, third = stage.paths
    stage.table.order([first, third, second], 1)  # bgp went DOWN while the model thinks
    stage.streams[0].fail()
    assert stage.streams[1].path.name == "hk>up/e1"
    stage.streams[1].answer(200, (), 2, b"ok")
    assert client.over == "end"
