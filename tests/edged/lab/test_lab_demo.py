from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from edged.lab import demo
from edged.lab.certs import make_certificates
from edged.lab.origin import Origin
from edged.lab.traffic import Traffic


@contextlib.asynccontextmanager
async def traffic_on_origin(tmp_path, **named):
    """The clients without a proxy in between."""
    origin = Origin(make_certificates(tmp_path, ["127.0.0.1"]), h3=False)
    await origin.start()
    traffic = Traffic(f"http://127.0.0.1:{origin.cleartext_port}", **named)
    try:
        yield origin, traffic
    finally:
        await origin.stop()


def test_right_answers_are_counted_with_the_line_that_carried_them(tmp_path):
    async def main():
        async with traffic_on_origin(
            tmp_path, requests_per_s=100, streams=2, stream_tokens=5, tokens_per_s=100
        ) as (_, traffic):
            traffic.start()
            first = await asyncio.wait_for(traffic.completion(lambda done: True), 10)
            assert first == traffic.tally.done[0]
            while len(traffic.tally.done) < 20 or traffic.tally.streams < 4:
                await asyncio.sleep(0.01)
            await traffic.stop(10)
            tally = traffic.tally
            assert tally.failed == tally.streams_broken == tally.tokens_lost == 0
            assert tally.requests == len(tally.done)
            assert tally.tokens == 5 * tally.streams
            assert {done.source for done in tally.done} == {"127.0.0.1"}
            assert 0 < tally.longest_s < 5

    asyncio.run(main())


def test_a_dead_server_fails_requests_and_breaks_streams(tmp_path):
    async def main():
        async with traffic_on_origin(
            tmp_path, requests_per_s=50, streams=1, stream_tokens=50, tokens_per_s=50
        ) as (origin, traffic):
            traffic.start()
            while traffic.tally.streams < 1 or len(traffic.tally.done) < 10:
                await asyncio.sleep(0.01)
            await origin.stop()
            while not (traffic.tally.failed and traffic.tally.streams_broken):
                await asyncio.sleep(0.01)
            await traffic.stop(10)
            tally = traffic.tally
            assert tally.requests == len(tally.done) + tally.failed
            assert tally.tokens_lost == 50 * tally.streams - tally.tokens > 0
            assert sum(tally.errors.values()) == tally.failed + tally.streams_broken

    asyncio.run(main())


def test_what_does_not_end_in_time_has_failed(tmp_path):
    async def main():
        async with socket_that_never_answers() as url:
            traffic = Traffic(url, requests_per_s=50, streams=1)
            traffic.start()
            await asyncio.sleep(0.1)
            await traffic.stop(0.1)
            assert traffic.tally.failed == traffic.tally.requests > 0
            assert traffic.tally.streams_broken == 1
            assert traffic.in_flight == 0

    asyncio.run(main())


@contextlib.asynccontextmanager
async def socket_that_never_answers():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_the_schedule_fits_into_the_time_there_is():
    for total_s in (5.0, 12.0, 25.0, 100.0):
        schedule = demo.Schedule.within(total_s)
        assert schedule.warm_up_s + schedule.settle_s + schedule.dark_s < 0.5 * total_s
    assert demo.Schedule.within(None).total_s is None


@pytest.mark.parametrize(
    ("tally", "gap_s", "sentence"),
    [
        ({}, None, "the demo ended before its first request"),
        ({"requests": 9}, None, "the demo ended before a failover was seen"),
        (
            {"requests": 9, "failed": 2, "errors": {"status 503": 2}},
            0.3,
            "2 of 9 requests failed: status 503 2",
        ),
        ({"requests": 9}, 0.3, None),
    ],
)
def test_a_status_of_1_has_its_sentence(tally, gap_s, sentence):
    show = demo.Show.__new__(demo.Show)
    show._traffic = SimpleNamespace(
        tally=SimpleNamespace(**{"requests": 0, "failed": 0, "errors": {}, **tally})
    )
    show.result = demo.Result(failover_gap_s=gap_s)
    assert show._fault() == sentence


def test_a_taken_port_is_replaced_and_told(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        address, _, other = demo._free("127.0.0.1", port).partition(":")
        assert (address, other != str(port)) == ("127.0.0.1", True)
    assert f"port {port} is taken: using {other} instead" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_demo_sees_a_failover_and_loses_no_request():
    code = (
        "import sys; from edged.lab.demo import run_demo as d; sys.exit(d(seconds=9, as_json=True))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    lines = process.stdout.strip().splitlines()
    told = json.loads(lines[-1])
    assert process.returncode == 0, process.stdout + process.stderr
    assert told["failed"] == 0
    assert told["requests"] > 100
    assert told["failover_gap_s"] is not None
    assert told["line"] != told["moved_to"]
    assert told["streams"] > 0
    assert any("silently blackholed" in line for line in lines)
    assert any(line.startswith("curl ") for line in lines)
    assert process.stderr == ""
