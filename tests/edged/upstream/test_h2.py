"""HTTP/2 to upstreams, on both engines, against a peer that sends exactly the frames of a test."""

from __future__ import annotations

import asyncio

import pytest
import uvloop
from hyperframe.frame import (
    DataFrame,
    GoAwayFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from edged.upstream import h2_stream
from policies.model import Carrier, Failure, Kind, Outcome
from tests.edged.upstream.h2_peer import Peer
from tests.edged.upstream.support import Events, eventually, get, path_to, server, setup

REFUSED_STREAM, CANCEL, NO_ERROR, INTERNAL_ERROR, CALM = 7, 8, 0, 2, 11

pytestmark = pytest.mark.parametrize(
    ("run", "engine"),
    [(asyncio.run, "pure"), (asyncio.run, "fast"), (uvloop.run, "fast")],
    ids=["asyncio-pure", "asyncio-fast", "uvloop-fast"],
)


def play(run, engine, script, scenario, **settings):
    """Run ``scenario(pools, path)`` against ``script(peer)``."""

    async def handler(reader, writer):
        peer = await Peer(reader, writer).start(**settings)
        await script(peer)
        while True:
            await peer.read()

    async def main():
        async with server(handler) as port, setup(engine=engine) as pools:
            return await scenario(pools, path_to(port, protocols=(Carrier.H2,)))

    return run(main())


def fetch(run, engine, script, head=None, body=None, **settings):
    async def scenario(pools, path):
        return await pools.fetch(path, head or get(), body)

    return play(run, engine, script, scenario, **settings)


def test_a_request_and_its_response(run, engine):
    seen = []

    async def script(peer):
        stream_id, fields = await peer.request()
        seen.extend(fields)
        peer.send(
            peer.headers(stream_id, ("link", "</a>"), status=103),
            peer.headers(stream_id, ("content-length", "5"), ("x-a", "1"), ("cookie", "c")),
            peer.data(stream_id, b"hel"),
            peer.data(stream_id, b"lo"),
            peer.headers(stream_id, ("x-sum", "5"), status=None, end=True),
        )

    head = get(b"/a?b", headers=[(b"x-one", b"1"), (b"te", b"trailers")])
    events = fetch(run, engine, script, head)
    assert [tuple(field) for field in seen] == [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":authority", b"localhost"),
        (b":path", b"/a?b"),
        (b"x-one", b"1"),
        (b"te", b"trailers"),
    ]
    assert events.calls == ["ready", "informational", "head", "data", "end"]
    assert events.interim == [(103, [(b"link", b"</a>")])]
    assert events.response.status == 200
    assert events.response.body_length == 5
    assert events.response.headers == [(b"x-a", b"1"), (b"cookie", b"c")]
    assert all(type(field) is tuple for field in events.response.headers)
    assert events.content == b"hello"
    assert events.trailers == [(b"x-sum", b"5")]
    assert events.stream.carrier is Carrier.H2
    assert not events.stream.reused


def test_streams_share_a_connection_and_finish_in_any_order(run, engine):
    async def script(peer):
        ids = [(await peer.request())[0] for _ in range(3)]
        assert ids == [1, 3, 5]
        for stream_id in reversed(ids):
            peer.send(peer.headers(stream_id), peer.data(stream_id, b"%d" % stream_id, end=True))

    async def scenario(pools, path):
        events = [pools.open(path, get()) for _ in range(3)]
        for e in events:
            await e.done()
        assert [e.content for e in events] == [b"1", b"3", b"5"]
        assert pools.dialer.dials == 1
        assert [e.stream.reused for e in events] == [False, True, True]

    play(run, engine, script, scenario)


@pytest.mark.parametrize(
    ("head", "fields", "length", "declared"),
    [
        (get(method=b"HEAD"), [("content-length", "9")], 0, 9),
        (get(), [], 0, None),
        (get(), [("content-length", "0")], 0, 0),
    ],
)
def test_responses_without_a_body(run, engine, head, fields, length, declared):
    async def script(peer):
        stream_id, _ = await peer.request()
        peer.send(peer.headers(stream_id, *fields, end=True))

    events = fetch(run, engine, script, head)
    assert events.calls == ["ready", "head", "end"]
    assert events.response.body_length == length
    assert events.response.declared_length == declared


@pytest.mark.parametrize("limit", [1, 3])
def test_the_peers_limit_on_streams_is_kept(run, engine, limit):
    most = 0

    async def script(peer):
        nonlocal most
        open_ids = []
        left = 10
        while left:
            try:
                async with asyncio.timeout(0.05):
                    open_ids.append((await peer.request())[0])
                    most = max(most, len(open_ids))
            except TimeoutError:
                for stream_id in open_ids:
                    peer.send(peer.headers(stream_id, end=True))
                    left -= 1
                open_ids.clear()

    async def scenario(pools, path):
        first = pools.open(path)  # lets the SETTINGS arrive
        await first.until(lambda e: e.stream)
        await eventually(lambda: next(iter(pools.pools._pools.values())).connections)
        connection = next(iter(next(iter(pools.pools._pools.values())).connections))
        await eventually(lambda: connection.capacity < 10)
        first.stream.cancel()
        connection_limit = [pools.open(path, get()) for _ in range(10)]
        for e in connection_limit:
            await e.done()
        assert all(e.ended for e in connection_limit)

    play(run, engine, script, scenario, MAX_CONCURRENT_STREAMS=limit)
    assert most <= limit


def test_a_refused_stream_is_unprocessed(run, engine):
    async def script(peer):
        stream_id, _ = await peer.request()
        peer.send(peer.reset(stream_id, REFUSED_STREAM))

    failure = fetch(run, engine, script).failure
    assert failure.unprocessed
    assert failure.outcome is Outcome.REFUSED


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (INTERNAL_ERROR, Outcome.RESET),
        (CANCEL, Outcome.RESET),
        (NO_ERROR, Outcome.RESET),
        (CALM, Outcome.BUSY),
        (1234, Outcome.RESET),
    ],
)
def test_another_reset_proves_nothing(run, engine, code, outcome):
    async def script(peer):
        stream_id, _ = await peer.request()
        peer.send(peer.headers(stream_id), peer.data(stream_id, b"part"))
        peer.send(peer.reset(stream_id, code))

    events = fetch(run, engine, script)
    assert events.content == b"part"
    assert not events.failure.unprocessed
    assert events.failure.outcome is outcome


def test_a_refusal_after_the_head_proves_nothing(run, engine):
    async def script(peer):
        stream_id, _ = await peer.request()
        peer.send(peer.headers(stream_id), peer.reset(stream_id, REFUSED_STREAM))

    assert not fetch(run, engine, script).failure.unprocessed


def test_goaway_spares_what_is_below_its_id_and_refuses_the_rest(run, engine):
    async def script(peer):
        ids = [(await peer.request())[0] for _ in range(3)]
        peer.send(peer.goaway(ids[1]))
        # All in one write: the frames after the GOAWAY belong to streams that live on.
        peer.send(peer.headers(ids[0], end=True), peer.headers(ids[1]))
        await asyncio.sleep(0.02)
        peer.send(peer.data(ids[1], b"x" * 1000), peer.data(ids[1], b"y", end=True))

    async def scenario(pools, path):
        events = [pools.open(path, get()) for _ in range(3)]
        for e in events:
            await e.done()
        assert events[0].ended
        assert events[1].ended
        assert len(events[1].content) == 1001
        assert events[2].failure.unprocessed
        assert events[2].failure.outcome is Outcome.RESET
        await eventually(lambda: not pools.stat(path).connections)

    play(run, engine, script, scenario)


def test_after_goaway_a_new_connection_serves(run, engine):
    async def script(peer):
        stream_id, _ = await peer.request()
        peer.send(peer.goaway(stream_id), peer.headers(stream_id))
        await asyncio.sleep(0.05)
        peer.send(peer.data(stream_id, b"late", end=True))

    async def scenario(pools, path):
        first = pools.open(path, get())
        await first.until(lambda e: e.response)
        second = await pools.fetch(path, get())
        await first.done()
        assert first.content == second.content == b"late"
        assert pools.dialer.dials == 2
        assert not second.stream.reused

    play(run, engine, script, scenario)


@pytest.mark.parametrize("half", ["none", "head", "part"])
def test_a_lost_connection_fails_its_streams(run, engine, half):
    async def handler(reader, writer):
        peer = await Peer(reader, writer).start()
        stream_id, _ = await peer.request()
        if half != "none":
            peer.send(peer.headers(stream_id))
        if half == "part":
            peer.send(peer.data(stream_id, b"part"))
        await writer.drain()

    async def main():
        async with server(handler) as port, setup(engine=engine) as pools:
            path = path_to(port, protocols=(Carrier.H2,))
            events = await pools.fetch(path, get())
            assert events.failure.outcome is Outcome.RESET
            assert not events.failure.unprocessed
            assert not pools.stat(path).connections

    run(main())


@pytest.mark.parametrize(
    ("length", "pieces"),
    [("5", [b"abc"]), ("5", [b"abcdef"]), ("5", []), ("x", [b"abc"])],
    ids=["short", "long", "none", "no number"],
)
def test_a_body_unlike_its_length_fails_alone(run, engine, length, pieces):
    async def script(peer):
        bad, _ = await peer.request()
        good, _ = await peer.request()
        peer.send(peer.headers(bad, ("content-length", length), end=not pieces))
        for piece in pieces:
            peer.send(peer.data(bad, piece, end=piece is pieces[-1]))
        await asyncio.sleep(0.02)
        peer.send(peer.headers(good), peer.data(good, b"fine", end=True))

    async def scenario(pools, path):
        bad, good = pools.open(path, get()), pools.open(path, get())
        await good.done()
        await bad.done()
        assert not bad.ended
        assert bad.failure.outcome is Outcome.PROTOCOL
        assert not bad.failure.unprocessed
        assert good.content == b"fine"

    play(run, engine, script, scenario)


@pytest.mark.parametrize(
    "fields",
    [
        [("connection", "close")],
        [("transfer-encoding", "chunked")],
        [("X-Upper", "1")],
        [("bad name", "1")],
        [("x", "a\r\nset-cookie: b")],
        [("x", "a\0b")],
        [("", "a")],
    ],
)
def test_a_malformed_head_fails_alone(run, engine, fields):
    async def script(peer):
        bad, _ = await peer.request()
        good, _ = await peer.request()
        peer.send(peer.headers(bad, *fields), peer.data(bad, b"x", end=True))
        peer.send(peer.headers(good, end=True))

    async def scenario(pools, path):
        bad, good = pools.open(path, get()), pools.open(path, get())
        await good.done()
        assert bad.response is None
        assert bad.failure.outcome is Outcome.PROTOCOL
        assert good.ended

    play(run, engine, script, scenario)


@pytest.mark.parametrize("status", [None, "20", "abc"])
def test_a_head_without_a_status_is_malformed(run, engine, status):
    async def script(peer):
        stream_id, _ = await peer.request()
        peer.send(peer.headers(stream_id, ("x", "y"), status=status, end=True))

    assert fetch(run, engine, script).failure.outcome is Outcome.PROTOCOL


def test_a_broken_frame_ends_the_connection(run, engine):
    async def script(peer):
        await peer.request()
        peer.writer.write(b"\x00\x00\x05\x00\x00\x00\x00\x00\x00hello")  # DATA on stream 0

    failure = fetch(run, engine, script).failure
    assert failure.outcome is Outcome.PROTOCOL
    assert not failure.unprocessed


def test_push_is_switched_off(run, engine):
    settings = {}

    async def script(peer):
        stream_id, _ = await peer.request()
        for frame in peer.frames:
            if isinstance(frame, SettingsFrame):
                settings.update(frame.settings)
        peer.send(peer.headers(stream_id, end=True))

    assert fetch(run, engine, script).ended
    assert settings[SettingsFrame.ENABLE_PUSH] == 0


def test_ping_measures_and_reports(run, engine):
    async def script(peer):
        stream_id, _ = await peer.request()
        peer.send(peer.headers(stream_id, end=True))

    async def scenario(pools, path):
        await pools.fetch(path, get())
        assert next(pools.pools.pingable(path.name)).ping(lambda rtt_s: None, 5)
        await eventually(lambda: any(s.kind is Kind.PING for s in pools.samples))
        sample = next(s for s in pools.samples if s.kind is Kind.PING)
        assert sample.path == path.name
        assert sample.outcome is Outcome.OK
        assert 0 < sample.rtt_s < 5

    # The peer's own loop answers PINGs only inside `next`.
    async def answering(peer):
        await script(peer)
        await peer.next(DataFrame)

    play(run, engine, answering, scenario)


def test_an_unanswered_ping_is_a_lost_sample(run, engine):
    async def script(peer):
        stream_id, _ = await peer.request()
        peer.send(peer.headers(stream_id, end=True))
        await asyncio.sleep(60)

    async def scenario(pools, path):
        await pools.fetch(path, get())
        assert next(pools.pools.pingable(path.name)).ping(lambda rtt_s: None, 0.02)
        await eventually(lambda: any(s.kind is Kind.PING for s in pools.samples))
        sample = next(s for s in pools.samples if s.kind is Kind.PING)
        assert sample.rtt_s is None
        assert sample.outcome is Outcome.TIMEOUT

    play(run, engine, script, scenario)


def test_an_upload_keeps_to_the_windows_and_pauses_its_source(run, engine):
    size = 3_000_000
    received = bytearray()

    async def script(peer):
        stream_id, fields = await peer.request()
        assert (b"content-length", b"%d" % size) in [tuple(f) for f in fields]
        window = 65_535
        while len(received) < size:
            frame = await peer.next(DataFrame)
            received.extend(frame.data)
            window -= len(frame.data)
            assert window >= 0, "beyond the window"
            assert len(frame.data) <= 16_384
            if window == 0:
                window = 200_000
                peer.send(peer.window(0, window), peer.window(stream_id, window))
        if "END_STREAM" not in frame.flags:
            frame = await peer.next(DataFrame)
        assert "END_STREAM" in frame.flags
        peer.send(peer.headers(stream_id, end=True))

    async def scenario(pools, path):
        events = pools.open(path)
        await events.until(lambda e: e.stream)
        events.stream.send_head(get(method=b"PUT", length=size), end=False)
        piece = bytes(range(256)) * 40
        sent = 0
        while sent < size:
            part = piece[: size - sent]
            events.stream.send_data(part)
            sent += len(part)
            if events.pauses > events.resumes:
                await events.until(lambda e: e.pauses == e.resumes)
        events.stream.send_end()
        await events.done()
        assert events.ended
        assert events.pauses > 3
        assert bytes(received) == (piece * (size // len(piece) + 1))[:size]

    play(run, engine, script, scenario)


def test_request_trailers_come_after_the_queued_body(run, engine):
    seen = []

    async def script(peer):
        stream_id, _ = await peer.request()
        size = 0
        while size < 200_000:
            frame = await peer.next(DataFrame)
            size += len(frame.data)
            increment = len(frame.data)
            peer.send(peer.window(0, increment), peer.window(stream_id, increment))
        seen.append((await peer.request())[1])
        peer.send(peer.headers(stream_id, end=True))

    async def scenario(pools, path):
        head = get(method=b"POST", length=None)
        events = await pools.fetch(path, head, [b"x" * 200_000], trailers=[(b"x-sum", b"1")])
        assert events.ended

    play(run, engine, script, scenario)
    assert [tuple(field) for field in seen[0]] == [(b"x-sum", b"1")]


def test_a_held_stream_stops_its_peer_and_nobody_else(run, engine):
    async def script(peer):
        slow, _ = await peer.request()
        fast, _ = await peer.request()
        window = h2_stream.WINDOW_BYTES
        for _ in range(window // 16_384):
            peer.send(peer.headers(slow) if _ == 0 else peer.data(slow, b"s" * 16_384))
        peer.send(peer.headers(fast))
        sent, allowed = 0, window
        while sent < 4 * window:
            if allowed < 16_384:
                frame = await peer.next(WindowUpdateFrame)
                assert frame.stream_id in (0, fast), "window for a stream that is held"
                allowed += frame.window_increment if frame.stream_id == fast else 0
                continue
            peer.send(peer.data(fast, b"f" * 16_384))
            sent += 16_384
            allowed -= 16_384
        peer.send(peer.data(fast, end=True))
        while (await peer.next(WindowUpdateFrame)).stream_id != slow:
            pass
        peer.send(peer.data(slow, b"end", end=True))

    async def scenario(pools, path):
        class Held(Events):
            def head(self, head):
                super().head(head)
                self.stream.pause_reading()

        slow, fast = Held(get()), Events(get())
        pools.pools.open(path, slow, early_data=True)
        pools.pools.open(path, fast, early_data=True)
        await fast.done()
        assert len(fast.content) == 4 * h2_stream.WINDOW_BYTES
        assert slow.content == b""
        slow.stream.resume_reading()
        await slow.done()
        assert len(slow.content) == h2_stream.WINDOW_BYTES - 16_384 + 3

    play(run, engine, script, scenario)


def test_cancel_resets_the_stream_and_keeps_the_connection(run, engine):
    codes = []

    async def script(peer):
        stream_id, _ = await peer.request()
        peer.send(peer.headers(stream_id))
        frame = await peer.next(RstStreamFrame)
        codes.append((frame.stream_id, frame.error_code))
        peer.send(peer.data(stream_id, b"late"))  # was on its way
        second, _ = await peer.request()
        peer.send(peer.headers(second, end=True))

    async def scenario(pools, path):
        first = pools.open(path, get())
        await first.until(lambda e: e.response)
        first.stream.cancel()
        second = await pools.fetch(path, get())
        assert second.ended
        assert second.stream.reused
        assert first.calls == ["ready", "head"]
        assert pools.stat(path).in_flight == 0

    play(run, engine, script, scenario)
    assert codes == [(1, CANCEL)]


def test_an_early_response_stops_the_upload(run, engine):
    codes = []

    async def script(peer):
        stream_id, _ = await peer.request()
        peer.send(peer.headers(stream_id, status=413, end=True))
        codes.append((await peer.next(RstStreamFrame)).error_code)

    async def scenario(pools, path):
        events = pools.open(path)
        await events.until(lambda e: e.stream)
        events.stream.send_head(get(method=b"PUT", length=None), end=False)
        events.stream.send_data(b"x" * 1_000_000)
        await events.done()
        assert events.ended
        assert events.response.status == 413
        events.stream.send_data(b"x")  # too late: ignored
        events.stream.send_end()
        await eventually(lambda: codes)
        assert pools.stat(path).in_flight == 0
        assert pools.stat(path).connections == {"h2": 1}

    play(run, engine, script, scenario)
    assert codes == [NO_ERROR]


@pytest.mark.parametrize("pieces", [[b"abcd"], [b"ab"]], ids=["longer", "shorter"])
def test_a_request_body_unlike_its_length_is_reset(run, engine, pieces):
    async def script(peer):
        await peer.request()

    events = fetch(run, engine, script, get(method=b"POST", length=3), pieces)
    assert events.failure.outcome is Outcome.LOCAL
    assert not events.failure.unprocessed


def test_a_line_break_in_a_head_is_not_sent(run, engine):
    async def script(peer):
        await peer.request()

    events = fetch(run, engine, script, get(headers=[(b"x", b"1\r\n2")]))
    assert events.failure.unprocessed
    assert events.failure.outcome is Outcome.LOCAL


def test_closing_with_a_failure_tells_each_stream_what_is_proven(run, engine):
    async def script(peer):
        await peer.request()

    async def scenario(pools, path):
        unsent = pools.open(path)
        sent = pools.open(path, get())
        await sent.until(lambda e: e.stream)
        pool = next(iter(pools.pools._pools.values()))
        next(iter(pool.connections)).close(Failure(Outcome.TIMEOUT, "gone", path_down=True))
        assert unsent.failure == Failure(Outcome.TIMEOUT, "gone", True, True)
        assert sent.failure == Failure(Outcome.TIMEOUT, "gone", False, True)
        assert not pool.connections

    play(run, engine, script, scenario)


def test_an_orderly_close_sends_goaway(run, engine):
    seen = []

    async def script(peer):
        stream_id, _ = await peer.request()
        peer.send(peer.headers(stream_id, end=True))
        seen.append(await peer.next(GoAwayFrame))

    async def scenario(pools, path):
        await pools.fetch(path, get())
        await pools.pools.drain(1)
        await eventually(lambda: seen)

    play(run, engine, script, scenario)
    assert seen[0].error_code == NO_ERROR


def test_the_peers_pings_are_answered(run, engine):
    answers = []

    async def script(peer):
        stream_id, _ = await peer.request()
        peer.send(PingFrame(0, b"12345678"))
        answers.append(await peer.next(PingFrame))
        peer.send(peer.headers(stream_id, end=True))

    assert fetch(run, engine, script).ended
    assert answers[0].opaque_data == b"12345678"
    assert "ACK" in answers[0].flags
