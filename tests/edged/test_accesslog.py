"""Access log lines and the writer that never stops the loop."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from edged.accesslog import AccessLog, AttemptRecord, ExchangeRecord, format_line
from edged.recent import Recent
from policies.model import Carrier, Failure, Outcome, Ranking, RequestClass


def record(request_id: str = "ab-1", **fields: object) -> ExchangeRecord:
    fields = {"status": 200, "path_name": "cn2>openai/us", "carrier": Carrier.H2} | fields
    return ExchangeRecord(
        request_id, 1700000000.1234, "openai", "POST", "api.openai.com", "/v1/chat", **fields
    )


def attempt(path: str, failure: Failure | None = None, why: str = "first") -> AttemptRecord:
    return AttemptRecord(path, Carrier.H2, 0.0, 0.0123, failure, why)


def test_a_line() -> None:
    line = format_line(
        record(ttfb_s=0.2504, total_s=1.5, bytes_up=7, bytes_down=9, attempts=(attempt("a>b/c"),))
    )
    assert line.endswith("}\n")
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.123Z",
        "id": "ab-1",
        "client": "",
        "upstream": "openai",
        "method": "POST",
        "authority": "api.openai.com",
        "target": "/v1/chat",
        "status": 200,
        "path": "cn2>openai/us",
        "carrier": "h2",
        "attempts": 1,
        "ttfb_ms": 250.4,
        "total_ms": 1500.0,
        "bytes_up": 7,
        "bytes_down": 9,
        "bytes_up_wire": 0,
        "bytes_down_wire": 0,
    }


def test_a_line_of_an_exchange_that_had_trouble() -> None:
    failure = Failure(Outcome.RESET, "reset by peer", path_down=True)
    line = json.loads(
        format_line(
            record(
                status=None,
                path_name=None,
                carrier=None,
                error="connection_terminated",
                hedged=True,
                replayed=True,
                attempts=(attempt("a>b/c", failure), attempt("d>b/c", None, "retry")),
            )
        )
    )
    assert (line["status"], line["path"], line["carrier"], line["ttfb_ms"]) == (None,) * 4
    assert line["error"] == "connection_terminated"
    assert line["hedged"]
    assert line["replayed"]
    first, second = line["tried"]
    assert (first["outcome"], first["detail"], first["ended_ms"]) == (
        "reset",
        "reset by peer",
        12.3,
    )
    assert (second["outcome"], second["why"]) == ("ok", "retry")


def test_a_client_cannot_forge_a_line() -> None:
    odd = record(client='"x\n{"', path_name="a")
    odd.method = 'G"E\nT'
    odd.path_without_query = "/\x00é\u2028"
    line = format_line(odd)
    assert line.count("\n") == 1
    assert line.isascii()
    assert json.loads(line)["target"] == "/\x00é\u2028"


def run_log(target: Path | str, *steps: object, **options: object) -> AccessLog:
    """Open a log, carry out ``steps`` (records, or callables given the log), close it."""

    async def body() -> AccessLog:
        log = AccessLog(str(target), asyncio.get_running_loop(), **options)
        for step in steps:
            if isinstance(step, ExchangeRecord):
                log.write(step)
            else:
                step(log)
        log.close()
        return log

    return asyncio.run(body())


def ids(file: Path) -> list[str]:
    return [json.loads(line)["id"] for line in file.read_text().splitlines()]


def test_lines_reach_the_file_in_order(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    log = run_log(file, *(record(f"id-{n}") for n in range(500)))
    assert ids(file) == [f"id-{n}" for n in range(500)]
    assert log.dropped == 0
    assert file.stat().st_mode & 0o777 == 0o640


def test_the_tick_flushes(tmp_path: Path) -> None:
    file = tmp_path / "access.log"

    async def body() -> None:
        log = AccessLog(str(file), asyncio.get_running_loop(), flush_s=0.01)
        log.write(record())
        for _ in range(2000):
            await asyncio.sleep(0.005)
            if file.read_text():
                break
        else:
            pytest.fail("nothing was flushed in ten seconds")
        log.close()

    asyncio.run(body())
    assert ids(file) == ["ab-1"]


def test_rotation(tmp_path: Path) -> None:
    file = tmp_path / "access.log"

    def rotate(log: AccessLog) -> None:
        file.rename(tmp_path / "access.log.1")
        log.reopen()

    run_log(file, record("one"), rotate, record("two"))
    assert ids(tmp_path / "access.log.1") == ["one"]
    assert ids(file) == ["two"]


def test_a_failed_rotation_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    file = tmp_path / "logs" / "access.log"

    def move_away(log: AccessLog) -> None:
        (tmp_path / "logs").rename(tmp_path / "old")
        log.reopen()

    run_log(file, record("one"), move_away, record("two"))
    assert ids(tmp_path / "old" / "access.log") == ["one", "two"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_loses_lines_and_counts_them() -> None:
    log = run_log("/dev/full", record(), record(), AccessLog.flush, record())
    assert log.dropped == 3


def test_a_blocked_reader_loses_lines_and_counts_them(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:

        def flood(log: AccessLog) -> None:
            for n in range(2000):
                log.write(record(f"id-{n}"))
                if n % 50 == 0:
                    log.flush()

        async def body() -> AccessLog:
            loop = asyncio.get_running_loop()
            log = AccessLog(str(fifo), loop, max_pending_bytes=100_000)
            flood(log)
            log.close(timeout_s=0.05)  # it is still blocked: the daemon ends all the same
            return log

        log = asyncio.run(body())
        assert 0 < log.dropped < 2000
        got = b""
        while chunk := os.read(reader, 1 << 20):
            got += chunk
            log._sink.join(0.01)
        assert got.count(b"\n") == 2000 - log.dropped
    finally:
        os.close(reader)


def test_a_line_cut_by_a_full_disk_does_not_spoil_the_next(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)

    def end_within_a_line(log: AccessLog) -> None:
        log.flush()
        log._sink._torn = True

    run_log(fifo, end_within_a_line, record("next"))
    first, second, _ = os.read(reader, 1 << 16).split(b"\n")
    os.close(reader)
    assert first == b""
    assert json.loads(second)["id"] == "next"


def test_a_missing_directory_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run_log(tmp_path / "no" / "access.log")


def test_recent_is_bounded_and_finds_by_id() -> None:
    recent = Recent(size=3)
    for n in range(10):
        recent.add(record(f"id-{n}"))
    assert len(recent) == 3
    assert recent.get("id-6") is None
    found = recent.get("id-9")
    assert found is not None
    assert found.request_id == "id-9"


def test_rankings_are_forgotten_before_their_records_unless_something_happened() -> None:
    recent = Recent(size=100, ranked=3)
    ranking = Ranking("up", RequestClass(0), (), "")
    tried = (AttemptRecord("a>up/e", None, 0.0, 0.1), AttemptRecord("b>up/e", None, 0.1, 0.2))
    recent.add(record("repeated", ranking=ranking, attempts=tried))
    recent.add(record("refused", ranking=ranking, attempts=(), error="destination_unavailable"))
    for n in range(10):
        recent.add(record(f"id-{n}", ranking=ranking, attempts=(), error=None))
    found = {r.request_id for r in recent._records if r.ranking is not None}
    assert found == {"repeated", "refused", "id-7", "id-8", "id-9"}
    assert len(recent) == 12
