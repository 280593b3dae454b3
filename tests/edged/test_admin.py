"""The admin pages of a real daemon, asked over its admin port."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
from contextlib import asynccontextmanager

import httpx
import pytest
import uvloop
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from edged.admin import text, views
from edged.config import load
from edged.counters import Histogram
from edged.daemon import Daemon
from policies.model import Kind, Line, RequestClass, Sample

CONFIG = """
node: {{name: t1}}
listen: {{proxy: "127.0.0.1:0", admin: "127.0.0.1:0"}}
lines:
  - {{name: a, bind: {{source: 127.0.4.1}}}}
  - {{name: b, bind: {{source: 127.0.4.2}}}}
upstreams:
  - name: api
    prefix: /api
    hosts: [api.test]
    endpoints: [{{name: one, url: "http://127.0.0.1:{port}/base"}}]
log: {{access: null}}
{more}
"""


async def origin(reader, writer):
    """Answers each request with its request line."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            line = head.split(b"\r\n")[0]
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(line), line))
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


class Running:
    """A daemon, its origin, and a client for both its ports."""

    def __init__(self, daemon, client):
        self.daemon = daemon
        self.client = client
        host, port = daemon.proxy_addresses[0]
        self.proxy = f"http://{host}:{port}"
        host, port = daemon.admin_address
        self.admin = f"http://{host}:{port}"

    async def get(self, path, **options):
        return await self.client.get(self.admin + path, **options)


@asynccontextmanager
async def running(tmp_path, more=""):
    server = await asyncio.start_server(origin, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    file = tmp_path / "edged.yaml"
    file.write_text(CONFIG.format(port=port, more=more))
    async with Daemon(load(file)) as daemon, httpx.AsyncClient(trust_env=False) as client:
        yield Running(daemon, client)
    server.close()


def play(tmp_path, scenario, more=""):
    async def body():
        async with running(tmp_path, more) as r:
            return await scenario(r)

    return uvloop.run(asyncio.wait_for(body(), 30))


def test_status(tmp_path):
    async def scenario(r):
        for _ in range(3):
            answer = await r.client.get(r.proxy + "/api/x?key=secret")
            assert answer.text == "GET /base/x?key=secret HTTP/1.1"
        return (await r.get("/status")).json()

    data = play(tmp_path, scenario)
    assert data["ready"] is True
    assert data["state"] == "ready"
    assert data["node"] == "t1"
    assert [line["name"] for line in data["lines"]] == ["a", "b"]
    assert data["lines"][0]["bind"] == "127.0.4.1"
    (upstream,) = data["upstreams"]
    assert (upstream["name"], upstream["prefix"], upstream["policy"]) == (
        ("api", "/api", "balanced")
    )
    assert upstream["requests"] == 3
    assert upstream["statuses"] == {"200": 3}
    for times in (upstream["ttfb_ms"], upstream["total_ms"]):
        assert 0 < times["mean"] < 5000
        assert 1 <= times["p50_below"] <= times["p95_below"]
    assert {path["path"] for path in upstream["paths"]} == {"a>api/one", "b>api/one"}
    assert all(set(path["parts"]) >= {"rtt", "loss", "load"} for path in upstream["paths"])
    assert data["clients"]["requests_total"] == 3
    assert data["reload"]["ok"] is True
    assert data["reload"]["by"] == "start"


def test_why_of_a_request_and_of_a_url(tmp_path):
    async def scenario(r):
        answer = await r.client.get(r.proxy + "/api/x?key=secret")
        request_id = answer.headers["edged-request-id"]
        record = (await r.get(f"/why/{request_id}")).json()
        now = (await r.get("/why", params={"url": "http://api.test/x", "bytes": "5000"})).json()
        gateway = (await r.get("/why", params={"url": "/api/y", "stream": "1"})).json()
        return request_id, record, now, gateway

    request_id, record, now, gateway = play(tmp_path, scenario)
    assert record["request"]["id"] == request_id
    assert record["request"]["target"] == "/x"
    assert "secret" not in json.dumps(record)
    assert record["request"]["status"] == 200
    assert [a["outcome"] for a in record["attempts"]] == ["ok"]
    assert record["attempts"][0]["path"] == record["request"]["path"]
    for data in (record, now, gateway):
        ranking = data["ranking"]
        assert len(ranking["candidates"]) == 2
        assert ranking["decided_by"]
        for candidate in ranking["candidates"]:
            assert candidate["verdict"] == "UP"
            total = sum(v for v in candidate["parts"].values())
            assert candidate["cost_ms"] == pytest.approx(total, abs=0.05)
    assert now["ranking"]["class"]["up_bytes"] == 16384
    assert gateway["ranking"]["class"]["streaming"] is True


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/", 404, "no such page; there are /status"),
        ("/why/nothing-1", 404, "no exchange 'nothing-1'"),
        ("/why", 400, "give url=URL"),
        ("/why?url=http://other.test/", 404, "other.test is in no upstream"),
        ("/why?url=http://169.254.169.254/", 404, "it is refused: 169.254.169.254 is link-local"),
        ("/why?url=/nowhere", 404, "/nowhere is in no upstream"),
        ("/why?url=http://[::1/", 400, "url is a URL"),
        ("/why?url=/api&bytes=many", 400, "bytes is a number"),
        ("/reload", 405, "only POST"),
    ],
)
def test_what_cannot_be_answered_is_explained(tmp_path, path, status, words):
    async def scenario(r):
        return await r.get(path)

    answer = play(tmp_path, scenario)
    assert answer.status_code == status
    assert words in answer.json()["error"]


def test_health_and_readiness(tmp_path):
    async def scenario(r):
        assert (await r.get("/healthz")).status_code == 200
        assert (await r.get("/readyz")).json() == {"ready": True, "reason": None}
        r.daemon.live.state = "draining"
        answer = await r.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["reason"] == "draining"
        assert (await r.get("/healthz")).status_code == 200
        head = await r.client.head(r.admin + "/readyz")
        assert (head.status_code, head.content) == (503, b"")

    play(tmp_path, scenario)


def metrics_of(exposition):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


def test_the_ranking_that_is_shown_is_that_of_the_requests_there_are(tmp_path):
    async def scenario(r):
        before = (await r.get("/status")).json()["upstreams"][0]["class"]
        await r.client.get(r.proxy + "/api/x")
        for _ in range(2):
            await r.client.post(r.proxy + "/api/x", content=bytes(5000))
        status = (await r.get("/status")).json()
        cls = RequestClass.of(5000)
        ranking = r.daemon.table.peek("api", cls)
        return before, status, ranking, (await r.get("/metrics")).text

    before, status, ranking, metrics = play(tmp_path, scenario)
    (upstream,) = status["upstreams"]
    assert before == {"up_bytes": 0, "streaming": False}
    assert upstream["class"] == {"up_bytes": 16384, "streaming": False}
    assert [p["path"] for p in upstream["paths"]] == [p.name for p in ranking.paths]
    found = metrics_of(metrics)
    assert found["edged_usual_request_bytes", ("upstream", "api")] == 16384
    console = Console(record=True, width=250, file=io.StringIO())
    text.print_status(console, status)
    assert "for requests with a body of up to 16.0 KiB: " in console.export_text()


def test_why_takes_the_url_that_a_client_uses(tmp_path):
    async def scenario(r):
        port = r.proxy.rpartition(":")[2]
        gateway = [
            (await r.get("/why", params={"url": f"http://{host}:{port}/api/x"})).json()
            for host in ("127.0.0.1", "localhost")
        ]
        nowhere = (await r.get("/why", params={"url": r.proxy + "/nowhere"})).json()
        origin = f"http://127.0.0.1:{r.daemon.config.topology.endpoints[0].port}"
        asked = {"url": origin.replace("127.0.0.1", "localhost") + "/x"}
        before = await r.get("/why", params=asked)
        through = httpx.AsyncClient(trust_env=False, proxy=r.proxy)
        async with through:
            await through.get(asked["url"])
        return gateway, nowhere, before, (await r.get("/why", params=asked)).json()

    gateway, nowhere, before, unlisted = play(tmp_path, scenario)
    assert [data["ranking"]["upstream"] for data in gateway] == ["api", "api"]
    assert nowhere["error"] == "/nowhere is in no upstream; it is refused"
    assert before.status_code == 404
    assert "once it was asked for, its paths are shown" in before.json()["error"]
    assert len(unlisted["ranking"]["candidates"]) == 2


def test_metrics(tmp_path):
    async def scenario(r):
        for _ in range(5):
            await r.client.post(r.proxy + "/api/x", content=b"12345")
        await r.client.get(r.proxy + "/nowhere")
        now = time.monotonic()
        for n in range(20):
            sample = Sample("a>api/one", Kind.TCP, now + n / 10, 0.05 + n / 1000)
            r.daemon.table.observe(sample, now + n / 10 + 0.1)
        plain = await r.get("/metrics")
        accept = {"accept": "application/openmetrics-text; version=1.0.0"}
        families = openmetrics((await r.get("/metrics", headers=accept)).text)
        assert "edged_client_connections_open" in {family.name for family in families}
        return plain.text

    found = metrics_of(play(tmp_path, scenario))
    api = ("upstream", "api")
    assert found["edged_requests_total", api] == 5
    assert found["edged_responses_total", ("status", "200"), api] == 5
    assert found["edged_bytes_up_total", api] == 25
    assert found["edged_ttfb_seconds_count", api] == 5
    assert found["edged_exchange_seconds_bucket", ("le", "+Inf"), api] == 5
    assert found["edged_client_requests_total",] == 6
    assert found["edged_ready",] == 1
    verdicts = [key for key in found if key[0] == "edged_path_verdict"]
    path_a = next(key[1:] for key in verdicts if ("line", "a") in key)
    assert 0.05 <= found["edged_path_rtt_seconds", *path_a] <= 0.07
    assert 0 < found["edged_path_jitter_seconds", *path_a] < 0.02
    assert 0 < found["edged_path_loss_ratio", *path_a] < 0.2
    names = {key[0] for key in found}
    assert names >= {
        *("edged_path_score_ms", "edged_path_score_part_ms", "edged_path_verdict"),
        *("edged_retries_total", "edged_hedges_total", "edged_failovers_total"),
        *("edged_pool_connections", "edged_pool_in_flight", "edged_bytes_down_wire_total"),
        *("edged_loop_lag_seconds", "process_resident_memory_bytes", "edged_probe_bytes_total"),
    }
    chosen = [v for key, v in found.items() if key[0] == "edged_path_chosen"]
    assert sorted(chosen) == [0, 1]
    buckets = [
        (float(dict(key[1:])["le"]), value)
        for key, value in found.items()
        if key[0] == "edged_ttfb_seconds_bucket"
    ]
    assert [v for _, v in sorted(buckets)] == sorted(v for _, v in buckets), "cumulative"


def test_a_scrape_does_not_count_as_requests(tmp_path):
    async def scenario(r):
        before = r.daemon.table.snapshot.serial, len(r.daemon.exchanges.live)
        for _ in range(20):
            await r.get("/metrics")
        entry = r.daemon.table._entries
        assert all(e.requests == 0 for e in entry.values())
        assert before[1] == len(r.daemon.exchanges.live)

    play(tmp_path, scenario)


def test_reload_over_http(tmp_path):
    async def scenario(r):
        answer = await r.client.post(r.admin + "/reload")
        assert (answer.status_code, answer.json()["by"]) == (200, "admin")
        good = r.daemon.config.file.read_text()
        r.daemon.config.file.write_text(good + "\nnonsense: 1\n")
        answer = await r.client.post(r.admin + "/reload", content=b"ignored")
        assert answer.status_code == 422
        (mistake,) = answer.json()["mistakes"]
        assert re.search(r"edged\.yaml:\d+:1: nonsense: unknown key", mistake)
        assert (await r.get("/status")).json()["reload"]["ok"] is False
        assert (await r.client.get(r.proxy + "/api/x")).status_code == 200

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://evil.example"}, 403),
        ({"host": "evil.example"}, 421),
        ({"host": "localhost:7071"}, 200),
        ({"host": "[::1]:7071"}, 200),
    ],
)
def test_web_pages_cannot_ask_in_their_readers_name(tmp_path, headers, status):
    async def scenario(r):
        return (await r.get("/status", headers=headers)).status_code

    assert play(tmp_path, scenario) == status


def test_the_text_views_show_what_the_json_says(tmp_path):
    async def scenario(r):
        answer = await r.client.get(r.proxy + "/api/[bold]x")
        record = (await r.get(f"/why/{answer.headers['edged-request-id']}")).json()
        return (await r.get("/status")).json(), record

    status, record = play(tmp_path, scenario)
    status["reload"] = {"ok": False, "by": "SIGHUP", "mistakes": ["edged.yaml:1:1: wrong"], "at": 0}
    console = Console(markup=False, record=True, width=250, file=io.StringIO())
    text.print_status(console, status)
    text.print_why(console, record)
    said = console.export_text()
    for words in (
        *("edged.yaml:1:1: wrong", "a>api/one", "b>api/one", "127.0.4.1", "policy balanced"),
        *("/[bold]x", "GET", "first", "rtt", "hazard", record["ranking"]["decided_by"]),
    ):
        assert words in said, said


def test_the_status_says_once_that_a_breaker_is_open_and_why(tmp_path):
    async def scenario(r):
        return (await r.get("/status")).json()

    status = play(tmp_path, scenario)
    why = "breaker open: 3 failures in a row, the last: no_name"
    status["upstreams"][0]["paths"][0].update(filtered="breaker open", breaker="open", reason=why)
    console = Console(markup=False, record=True, width=250, file=io.StringIO())
    text.print_status(console, status)
    said = console.export_text()
    path = status["upstreams"][0]["paths"][0]["path"]
    assert f"{path}: {why}" in said
    row = next(line for line in said.splitlines() if line.startswith(f">  {path}"))
    assert row.count("breaker open") == 1


def test_the_text_says_why_each_attempt_was_made(tmp_path):
    async def scenario(r):
        answer = await r.client.get(r.proxy + "/api/x")
        return (await r.get(f"/why/{answer.headers['edged-request-id']}")).json()

    record = play(tmp_path, scenario)
    (first,) = record["attempts"]
    died = {**first, "outcome": "timeout", "detail": "path a is down: silence"}
    moved = {**first, "why": "failover", "reason": "path a is down: silence"}
    raced = {**first, "why": "race", "reason": "no connection after 0.145 s"}
    record["attempts"] = [died, moved, raced]
    console = Console(markup=False, record=True, width=250, file=io.StringIO())
    text.print_why(console, record)
    said = console.export_text()
    assert "race: no connection after 0.145 s" in said
    assert said.count("path a is down: silence") == 1, "once is enough"


@pytest.mark.parametrize("width", [60, 80, 250])
def test_a_narrow_terminal_gets_every_number_too(tmp_path, width):
    async def scenario(r):
        return (await r.get("/why", params={"url": "/api/x"})).json()

    data = play(tmp_path, scenario)
    console = Console(markup=False, record=True, width=width, file=io.StringIO())
    text.print_why(console, data)
    said = " ".join(console.export_text().split())
    assert "…" not in said
    for candidate in data["ranking"]["candidates"]:
        assert candidate["path"] in said
        assert text.ms(candidate["cost_ms"], unit="") in said
        for name, value in candidate["parts"].items():
            assert name in said
            assert text.ms(value, unit="") in said


def test_a_line_that_cannot_be_bound_is_explained(tmp_path):
    missing = Line("stick", interface="nosuch0")
    elsewhere = Line("far", source="192.0.2.7")
    assert "interface nosuch0" in views.bind_problem(missing)
    assert "192.0.2.7 is not on this host: see `ip addr`" in views.bind_problem(elsewhere)
    assert views.bind_problem(Line("here", source="127.0.4.1")) is None
    assert views.bind_problem(Line("default")) is None

    async def scenario(r):
        return (await r.get("/status")).json()

    status = play(tmp_path, scenario)
    assert [line["problem"] for line in status["lines"]] == [None, None]
    status["lines"][1]["problem"] = "line b: is gone"
    console = Console(markup=False, record=True, width=100, file=io.StringIO())
    text.print_status(console, status)
    assert "line b: is gone" in console.export_text()


def test_times_are_told_by_the_buckets_they_fell_into():
    histogram = Histogram()
    assert views._times(histogram) == {"mean": None, "p50_below": None, "p95_below": None}
    for _ in range(9):
        histogram.add(0.004)
    histogram.add(1000.0)
    times = views._times(histogram)
    assert times == {"mean": 100003.6, "p50_below": 5.0, "p95_below": None}


def test_numbers_for_people():
    assert text.ms(None) == "-"
    assert (text.ms(1.234), text.ms(12.34), text.ms(123.4)) == ("1.23 ms", "12.3 ms", "123 ms")
    assert (text.size(100), text.size(2048), text.size(3 << 30)) == ("100 B", "2.0 KiB", "3.0 GiB")
    assert (text.duration(5), text.duration(3725), text.duration(90000)) == (
        ("5 s", "1 h 2 min", "1 d 1 h")
    )
    assert text.percent(0.0375) == "3.8%"
