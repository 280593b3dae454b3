"""``edged drill`` on a real daemon with two lines to a real origin."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from contextlib import asynccontextmanager, suppress
from time import monotonic

import httpx
import pytest
import uvloop
import yaml

from edged import drill
from edged.config import load
from edged.daemon import Daemon
from edged.drill import DrillRefused
from edged.socket_filter import supported

pytestmark = pytest.mark.skipif(not supported(), reason="this kernel refuses socket filters")

SOURCES = {"a": "127.76.1.2", "b": "127.76.2.2"}


class Origin:
    """Answers every request, slowly where it is asked to; knows what came over which line."""

    def __init__(self):
        self.arrived = []
        """When and over which line bytes or connections came."""
        self.executed = Counter()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def serve(self, reader, writer):
        source = writer.get_extra_info("peername")[0]
        line = next(name for name, address in SOURCES.items() if address == source)
        self.arrived.append((monotonic(), line))
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.arrived.append((monotonic(), line))
                target = head.split(b" ")[1].decode()
                self.executed[target] += 1
                if "stream" in target:
                    await self.stream(writer)
                else:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + line.encode())
        writer.close()

    async def stream(self, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(200):
            writer.write(b"1\r\nx\r\n")
            await asyncio.sleep(0.02)
        writer.write(b"0\r\n\r\n")

    def over(self, line, since, until):
        return [at for at, came in self.arrived if came == line and since < at < until]


class Bench:
    """A daemon, its origin, traffic, and the admin port."""

    def __init__(self, daemon, origin, client):
        self.daemon, self.origin, self.client = daemon, origin, client
        self.admin = "http://{}:{}".format(*daemon.admin_address)
        self.proxy = "http://{}:{}".format(*daemon.proxy_addresses[0])
        self.answers = []
        self.ids = 0

    async def get(self, target):
        response = await self.client.get(f"{self.proxy}/api{target}", timeout=10)
        self.answers.append((monotonic(), response.status_code, response.text))

    async def traffic(self):
        """50 requests a second until cancelled; then those in flight are waited for."""
        async with asyncio.TaskGroup() as group:
            with suppress(asyncio.CancelledError):
                while True:
                    self.ids += 1
                    group.create_task(self.get(f"/r{self.ids}"))
                    await asyncio.sleep(0.02)

    async def line_in_use(self):
        await self.until(lambda: len(self.answers) > 10)
        return self.daemon.drills._choices()["api"].line.name

    async def events(self, line, for_s, **more):
        query = {"line": line, "for": for_s, **more}
        async with self.client.stream("POST", f"{self.admin}/drill", params=query) as response:
            assert response.status_code == 200, await response.aread()
            assert response.headers["content-type"] == "application/x-ndjson"
            async for text in response.aiter_lines():
                yield json.loads(text)

    async def drill(self, line, for_s, **more):
        """By name of the event, the last of each."""
        return {e["event"]: e async for e in self.events(line, for_s, **more)}

    async def until(self, condition, timeout_s=10):
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.01)


def config(port, lines=SOURCES):
    return {
        "listen": {"proxy": "127.0.0.1:0", "admin": "127.0.0.1:0"},
        "lines": [{"name": n, "bind": {"source": a}} for n, a in lines.items()],
        "upstreams": [
            {
                "name": "api",
                "prefix": "/api",
                "endpoints": [{"name": "one", "url": f"http://127.0.0.1:{port}"}],
            }
        ],
        "log": {"access": None},
    }


@asynccontextmanager
async def bench(tmp_path, lines=SOURCES, traffic=True):
    async with Origin() as origin, httpx.AsyncClient(trust_env=False, timeout=40) as client:
        file = tmp_path / "edged.yaml"
        file.write_text(yaml.safe_dump(config(origin.port, lines)))
        async with Daemon(load(file)) as daemon:
            one = Bench(daemon, origin, client)
            task = asyncio.create_task(one.traffic()) if traffic else None
            try:
                yield one
            finally:
                if task is not None:
                    task.cancel()
                    await task


@pytest.fixture(autouse=True)
def _short_wait(monkeypatch):
    """The lines are equally good: traffic has no reason to return."""
    monkeypatch.setattr(drill, "RETURN_S", 1.5)


def run(main):
    uvloop.run(main())


def test_the_line_in_use_dies_and_nobody_notices(tmp_path):
    async def main():
        async with bench(tmp_path) as b:
            line = await b.line_in_use()
            other = {"a": "b", "b": "a"}[line]
            outages = b.daemon.table._lines[line].hazard._outages
            begun = monotonic()
            events = await b.drill(line, 1.5)
            report = events["report"]
            assert events["silent"]["in_use"] == ["api"]
            assert not b.origin.over(line, begun + 0.5, begun + 1.4)  # truly nothing
            assert len(b.origin.over(other, begun + 0.9, begun + 1.4)) > 10
            assert report["ok"]
            assert report["failed"] == report["broken"] == report["unfinished"] == 0
            assert report["requests"] > 50
            assert report["moved"] > 0
            assert 0 < report["suspect_s"] <= report["down_s"] < 1.5
            assert 0 < report["gap_s"] < 1.5
            assert report["ended_by"] == "time"
            assert 1.49 <= report["silent_s"] < 2.5  # timers have a resolution
            assert report["up_s"] is not None
            assert report["longest_s"] >= report["gap_s"] / 2
            assert b.daemon.recent.get(report["longest_id"]) is not None
            assert {status for _, status, _ in b.answers} == {200}
            # A GET may be repeated; whoever was not in flight when the line died was not.
            assert sum(n - 1 for n in b.origin.executed.values()) <= report["moved"]
            hazard = b.daemon.table._lines[line].hazard
            assert hazard._outages <= outages  # rehearsed outages do not count
            assert b.daemon.drills.current is None

    run(main)


def test_traffic_returns_to_a_line_that_is_the_only_good_one(tmp_path):
    async def main():
        async with bench(tmp_path, {"a": SOURCES["a"]}) as b:
            with pytest.raises(AssertionError, match="no other path that is UP"):
                await b.drill("a", 1)
            await b.line_in_use()
            report = (await b.drill("a", 0.8, force=1))["report"]
            assert report["returned_s"] is not None
            assert report["gap_s"] is None

    run(main)


def test_a_stream_that_is_cut_is_told(tmp_path):
    async def main():
        async with bench(tmp_path) as b:
            line = await b.line_in_use()
            stream = asyncio.create_task(b.get("/stream"))
            await b.until(lambda: b.origin.executed["/stream"])
            report = (await b.drill(line, 1))["report"]
            with pytest.raises(httpx.RemoteProtocolError):
                await stream
            assert not report["ok"]
            assert report["broken"] == 1
            assert report["errors"] == {"http_response_incomplete": 1}

    run(main)


def test_one_at_a_time_and_only_of_lines_that_exist(tmp_path):
    async def main():
        async with bench(tmp_path, traffic=False) as b:
            events = b.events("a", 30)
            assert (await anext(events))["event"] == "silent"
            for query, code, text in (
                ({"line": "b"}, 409, "there is a drill already: of a"),
                ({"line": "c"}, 404, "lines: a, b"),
                ({"line": "b", "for": "x"}, 400, "number of seconds"),
                ({"line": "b", "for": "601"}, 400, "at most 600"),
            ):
                answer = await b.client.post(f"{b.admin}/drill", params=query)
                assert answer.status_code == code
                assert text in answer.json()["error"]
            status = (await b.client.get(f"{b.admin}/status")).json()
            assert status["drill"]["line"] == "a"
            assert 20 < status["drill"]["silent_for_s"] <= 30
            metrics = (await b.client.get(f"{b.admin}/metrics")).text
            assert 'edged_drill_silenced{line="a"} 1.0' in metrics
            assert "edged_drills_total 1.0" in metrics
            assert (await b.client.delete(f"{b.admin}/drill")).status_code == 200
            last = [event async for event in events][-1]
            assert last["event"] == "report"
            assert last["ended_by"] == "request"
            assert (await b.client.delete(f"{b.admin}/drill")).status_code == 404
            assert (await b.client.get(f"{b.admin}/drill")).status_code == 405

    run(main)


def test_no_web_page_can_begin_or_end_one(tmp_path):
    async def main():
        async with bench(tmp_path, traffic=False) as b:
            for method in ("POST", "DELETE"):
                answer = await b.client.request(
                    method, f"{b.admin}/drill?line=a", headers={"origin": "https://evil.example"}
                )
                assert answer.status_code == 403
                answer = await b.client.request(
                    method, f"{b.admin}/drill?line=a", headers={"host": "rebound.example"}
                )
                assert answer.status_code == 421
            assert b.daemon.drills.count == 0

    run(main)


def test_it_ends_with_the_connection_that_began_it(tmp_path):
    async def main():
        async with bench(tmp_path) as b:
            line = await b.line_in_use()
            events = b.events(line, 60)
            await anext(events)
            sockets = b.daemon.dialer.sockets(line)
            assert sockets.silent
            await events.aclose()
            await b.until(lambda: b.daemon.drills.current is None)
            assert not sockets.silent

    run(main)


def test_it_ends_with_its_line_and_with_the_daemon(tmp_path):
    async def main():
        async with bench(tmp_path, traffic=False) as b:
            events = b.events("a", 60)
            await anext(events)
            file = tmp_path / "edged.yaml"
            file.write_text(yaml.safe_dump(config(b.origin.port, {"b": SOURCES["b"]})))
            assert (await b.daemon.reload("test")).ok
            assert [event async for event in events][-1]["ended_by"] == "reload"
            sockets = b.daemon.dialer.sockets("b")
            b.daemon.drills.begin("b", 60, force=True, tell=lambda event: None)
            assert sockets.silent
        assert not sockets.silent

    run(main)


def test_a_dead_line_cannot_stand_in(tmp_path):
    async def main():
        async with bench(tmp_path) as b:
            line = await b.line_in_use()
            other = {"a": "b", "b": "a"}[line]
            b.daemon.dialer.sockets(other).silence()
            await b.until(lambda: states_of(b, other) == {"DOWN"})
            with pytest.raises(DrillRefused, match=f"{other} is DOWN"):
                b.daemon.drills.begin(line, 1, force=False, tell=lambda event: None)
            b.daemon.drills.begin(line, 1, force=True, tell=lambda event: None)
            assert b.daemon.dialer.sockets(line).silent
            b.daemon.dialer.sockets(other).restore()

    run(main)


def states_of(b, line):
    states = b.daemon.table.snapshot.paths.values()
    return {s.verdict.name for s in states if s.path.line.name == line}


def test_a_kernel_that_refuses_filters_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("edged.drill.supported", lambda: False)

    async def main():
        async with bench(tmp_path) as b:
            process = await command(b, await b.line_in_use(), "--for", "1s")
            out, _ = await process.communicate()
            assert b"what is already on its way in still arrives" in out

    run(main)


async def command(b, *arguments):
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "edged", "drill", "blackhole", *arguments),
        *("--admin", b.admin.removeprefix("http://")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def test_the_command_reports_and_says_by_its_status_whether_all_went_well(tmp_path):
    async def main():
        async with bench(tmp_path) as b:
            line = await b.line_in_use()
            process = await command(b, line, "--for", "1s")
            out, err = await process.communicate()
            assert process.returncode == 0, out + err
            text = out.decode()
            assert f"{line} is silent for 1 s; " in text
            assert f"{line} is DOWN" in text
            assert f"{line} is back" in text
            assert " 0 failed, 0 broken" in text
            assert "still arrives" not in text
            process = await command(b, "c")
            _, err = await process.communicate()
            assert process.returncode == 1
            assert b"no line is named 'c'" in err

    run(main)


def test_ctrl_c_restores_the_line_and_gives_the_report(tmp_path):
    async def main():
        async with bench(tmp_path, traffic=False) as b:
            process = await command(b, "a", "--for", "60s", "--json")
            await b.until(lambda: b.daemon.drills.current)
            process.send_signal(signal.SIGINT)
            await b.until(lambda: not b.daemon.dialer.sockets("a").silent)
            out, err = await process.communicate()
            report = json.loads(out)
            assert report["ended_by"] == "request"
            assert report["silent_s"] < 20
            assert process.returncode == 0
            assert b"ending the drill" in err

    run(main)


def test_a_command_that_is_killed_leaves_nothing_behind(tmp_path):
    async def main():
        async with bench(tmp_path, traffic=False) as b:
            process = await command(b, "a", "--for", "60s")
            await b.until(lambda: b.daemon.drills.current)
            process.kill()
            await process.wait()
            await b.until(lambda: b.daemon.drills.current is None)
            assert not b.daemon.dialer.sockets("a").silent

    run(main)
