"""HTTP probe: each phase apart, over the line, against real servers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path as File

import httpx
import pytest
import trustme
import uvloop

from edged.dialer import LineDialer
from policies.model import Endpoint, Kind, Line, Outcome, Path
from probes.base import DialError
from probes.http import BODY_BYTES, HttpProbe, HttpReport
from probes.transport import LineStream, LineTransport, trust
from tests.harness.nameserver import NameServer

LINE = Line("cn2", source="127.0.0.2")
CADDY = shutil.which("caddy") or str(File(sys.executable).with_name("caddy"))

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    ca = trustme.CA()
    where = tmp_path_factory.mktemp("ca")
    ca.cert_pem.write_to_path(where / "ca.pem")
    certificate = ca.issue_cert("localhost", "api.test")
    for i, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(where / "cert.pem", append=i > 0)
    certificate.private_key_pem.write_to_path(where / "key.pem")
    return where


def server_context(authority, version=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "cert.pem", authority / "key.pem")
    if version:
        context.maximum_version = version
    return context


class Origin:
    """Answers each request on a connection with ``answer`` (bytes, or called with the request)."""

    def __init__(self, answer=OK, tls=None, close_after=None):
        self.answer, self.tls, self.close_after = answer, tls, close_after
        self.requests, self.connections, self.clients = [], 0, set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()
        for writer in list(self.clients):
            writer.transport.abort()

    async def serve(self, reader, writer):
        self.connections += 1
        self.clients.add(writer)
        self.peer = writer.get_extra_info("peername")
        served = 0
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while self.close_after is None or served < self.close_after:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                if self.answer is None:
                    await reader.read()
                writer.write(self.answer)
                await writer.drain()
                served += 1
            writer.close()
        self.clients.discard(writer)

    def path(self, scheme="http", host="localhost", **kwargs):
        return Path(LINE, Endpoint("u", "e", scheme, host, self.port, **kwargs))


def run(test, *, loop=asyncio.run, **kwargs):
    if "ca_file" not in kwargs:  # verifies, trusts nobody, and loads no bundle
        kwargs["ssl_context"] = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    async def main():
        probe = HttpProbe(LineDialer(), **kwargs)
        try:
            return await test(probe)
        finally:
            await probe.close()

    return loop(main())


def test_a_run_that_begins_while_another_hangs_has_a_connection_of_its_own():
    async def test(probe):
        async with Origin(answer=None) as origin:
            path = origin.path()
            hangs = asyncio.create_task(probe.run(path, timeout_s=1.0))
            while not origin.requests:
                await asyncio.sleep(0.001)
            origin.answer = OK
            (sample,) = [s for s in await probe.run(path, timeout_s=5) if s.kind is Kind.HTTP]
            assert sample.outcome is Outcome.OK
            assert not hangs.done()
            (late,) = [s for s in await hangs if s.kind is Kind.HTTP]
            assert late.outcome is Outcome.TIMEOUT
            again = await probe.measure(path, timeout_s=5)
            assert again.reused
            assert origin.connections == 2

    run(test)


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run])
def test_a_fresh_connection_shows_every_phase_and_a_kept_one_only_the_last(authority, loop):
    async def test(probe):
        async with Origin(tls=server_context(authority)) as origin:
            path = origin.path("https", base_path="/v1")
            first = await probe.measure(path, timeout_s=5)
            second = await probe.measure(path, timeout_s=5)
            third = await probe.measure(path, timeout_s=5, fresh=True)
            assert origin.peer[0] == "127.0.0.2"
            assert origin.connections == 2
            assert origin.requests[0].lower().startswith(b"get /v1/ http/1.1\r\nhost: localhost:")
            return first, second, third

    first, second, third = run(test, loop=loop, ca_file=str(authority / "ca.pem"))
    assert (first.outcome, first.status, first.http_version) == (Outcome.OK, 200, "HTTP/1.1")
    assert (first.reused, first.tls_version, first.peer[0]) == (False, "TLSv1.3", "127.0.0.1")
    for report in (first, third):
        phases = (report.dns_s, report.connect_s, report.tls_s, report.first_byte_s)
        assert all(phase > 0 for phase in phases)
        assert sum(phases) <= report.total_s
    assert [s.kind for s in first.samples()] == [Kind.TCP, Kind.TLS, Kind.HTTP]
    assert second.reused
    (sample,) = second.samples()
    assert (sample.path, sample.kind, sample.outcome) == ("cn2>u/e", Kind.HTTP, Outcome.OK)
    assert sample.rtt_s == second.first_byte_s > 0


def test_tls_12_takes_two_round_trips(authority):
    async def test(probe):
        tls = server_context(authority, ssl.TLSVersion.TLSv1_2)
        async with Origin(tls=tls) as origin:
            return await probe.measure(origin.path("https"), timeout_s=5)

    report = run(test, ca_file=str(authority / "ca.pem"))
    (sample,) = (s for s in report.samples() if s.kind is Kind.TLS)
    assert sample.rtt_s == pytest.approx(report.tls_s / 2)


def test_a_certificate_nobody_vouches_for_is_the_endpoints_fault_and_says_what_to_do(authority):
    async def test(probe):
        async with Origin(tls=server_context(authority)) as origin:
            return await probe.measure(origin.path("https"), timeout_s=5)

    report = run(test)
    assert report.outcome is Outcome.TLS
    assert "tls.ca_file" in report.detail
    assert [(s.kind, s.outcome) for s in report.samples()] == [
        (Kind.TCP, Outcome.OK),
        (Kind.TLS, Outcome.TLS),
    ]


def test_the_name_is_verified_also_when_the_address_is_given(authority):
    async def test(probe):
        async with Origin(tls=server_context(authority)) as origin:
            right = origin.path("https", "api.test", address="127.0.0.1")
            wrong = origin.path("https", "other.test", address="127.0.0.1")
            return [(await probe.measure(p, timeout_s=5)).outcome for p in (right, wrong)]

    assert run(test, ca_file=str(authority / "ca.pem")) == [Outcome.OK, Outcome.TLS]


@pytest.mark.parametrize(
    ("answer", "outcome", "after_s"),
    [
        (b"404 Not Found\r\n", Outcome.OK, None),
        (b"500 Oops\r\n", Outcome.HTTP_ERROR, None),
        (b"502 Bad\r\n", Outcome.HTTP_ERROR, None),
        (b"503 Busy\r\n", Outcome.HTTP_ERROR, None),
        (b"503 Busy\r\nretry-after: 7\r\n", Outcome.BUSY, 7.0),
        (b"429 Slow\r\nretry-after: soon\r\n", Outcome.BUSY, None),
    ],
)
def test_what_a_status_means(answer, outcome, after_s):
    async def test(probe):
        async with Origin(b"HTTP/1.1 " + answer + b"content-length: 0\r\n\r\n") as origin:
            return await probe.run(origin.path(), timeout_s=5)

    sample = run(test)[-1]
    assert (sample.kind, sample.outcome, sample.retry_after_s) == (Kind.HTTP, outcome, after_s)
    assert sample.rtt_s > 0  # the network did its part


def test_an_idle_connection_that_the_server_ended_says_nothing_of_the_path():
    async def test(probe):
        async with Origin(close_after=1) as origin:
            outcomes = []
            for _ in range(3):
                report = await probe.measure(origin.path(), timeout_s=5)
                outcomes.append((report.outcome, report.reused))
            assert origin.connections == 3
            return outcomes

    assert run(test) == [(Outcome.OK, False)] * 3


def test_a_name_server_that_is_silent_is_named_and_not_the_endpoint_blamed():
    async def test(probe):
        async with NameServer() as server:
            server.dead = True
            line = Line("a", source="127.0.0.2", dns=(server.server,))
            path = Path(line, Endpoint("u", "e", "http", "nobody.example", 80))
            report = await probe.measure(path, timeout_s=2)
            assert report.outcome is Outcome.DNS
            assert server.address in report.detail

    run(test)


def test_silence_is_a_timeout_and_the_connection_is_not_used_again():
    async def test(probe):
        async with Origin() as origin:
            await probe.run(origin.path(), timeout_s=5)
            origin.answer = None
            (sample,) = await probe.run(origin.path(), timeout_s=0.2)
            assert (sample.kind, sample.outcome, sample.rtt_s) == (
                Kind.HTTP,
                Outcome.TIMEOUT,
                None,
            )
            origin.answer = OK
            report = await probe.measure(origin.path(), timeout_s=5)
            assert (report.outcome, report.reused) == (Outcome.OK, False)

    run(test)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [(b"", Outcome.RESET), (b"SSH-2.0-OpenSSH\r\n\r\n", Outcome.PROTOCOL)],
)
def test_servers_that_hang_up_or_speak_something_else(answer, outcome):
    async def test(probe):
        async with Origin(answer, close_after=1) as origin:
            return await probe.measure(origin.path(), timeout_s=5)

    assert run(test).outcome is outcome


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH\r\n\r\n", None])
def test_a_connection_that_failed_is_free_without_the_garbage_collector(authority, answer):
    def held():
        return sum(type(one) is LineStream for one in gc.get_objects())

    async def test(probe):
        async with Origin(answer, tls=server_context(authority), close_after=1) as origin:
            report = await probe.measure(origin.path("https", address="127.0.0.1"), timeout_s=0.5)
        assert report.outcome not in (Outcome.OK, Outcome.TLS)
        del report
        await asyncio.sleep(0.01)
        return held()

    gc.collect()
    before = held()
    gc.disable()
    try:
        assert run(test, loop=uvloop.run, ca_file=str(authority / "ca.pem")) == before
    finally:
        gc.enable()


def test_a_connection_that_was_closed_gives_its_buffers_back(authority):
    def held():
        return sum(type(one).__name__ == "SSLProtocol" for one in gc.get_objects())

    async def test(probe):
        async with Origin(tls=server_context(authority)) as origin:
            report = await probe.measure(origin.path("https", address="127.0.0.1"), timeout_s=5)
            assert report.outcome is Outcome.OK
            assert report.tls_version == "TLSv1.3"
            await probe.close()
            assert (await probe.measure(origin.path("https"), timeout_s=5)).reused is False
            await probe.close()
        await asyncio.sleep(0.05)
        return held()

    gc.collect()
    before = held()
    gc.disable()
    try:
        assert run(test, loop=uvloop.run, ca_file=str(authority / "ca.pem")) == before
    finally:
        gc.enable()


def test_dial_errors_keep_their_outcome():
    async def test(probe):
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
            refused = await probe.run(
                Path(LINE, Endpoint("u", "e", "http", "localhost", port)), timeout_s=5
            )
        gone = Path(Line("gone", source="10.71.1.2"), Endpoint("u", "e", "http", "localhost", 80))
        return refused, await probe.run(gone, timeout_s=5)

    (refused,), (gone,) = run(test)
    assert (refused.kind, refused.outcome) == (Kind.TCP, Outcome.REFUSED)
    assert gone.outcome is Outcome.UNREACHABLE


def test_a_long_page_is_broken_off():
    page = b"HTTP/1.1 200 OK\r\ncontent-length: 10000000\r\n\r\n" + b"x" * (BODY_BYTES * 2)

    async def test(probe):
        async with Origin(page) as origin:
            for _ in range(2):
                report = await probe.measure(origin.path(), timeout_s=5)
                assert report.outcome is Outcome.OK
            assert origin.connections == 2

    run(test)


def test_the_policys_path_is_asked_for():
    async def test(probe):
        async with Origin() as origin:
            await probe.run(origin.path(base_path="/base"), timeout_s=5)
            return origin.requests[0].split(b" ")[1]

    assert run(test, target=lambda _: "/healthz?x=1") == b"/base/healthz?x=1"


def test_reload_closes_clients_of_changed_paths():
    async def test(probe):
        async with Origin() as origin:
            path = origin.path()
            await probe.run(path, timeout_s=5)
            await probe.retain([path])
            assert (await probe.measure(path, timeout_s=5)).reused
            await probe.retain([origin.path(base_path="/v2")])
            assert not (await probe.measure(path, timeout_s=5)).reused

    run(test)


def test_an_exhausted_host_gives_no_samples():
    report = HttpReport("p", "u", 0.0, Outcome.LOCAL, "no descriptors")
    assert report.samples() == []


def test_the_transport_serves_httpx_with_bodies_both_ways(authority):
    """The command line uses it, too: an upload and a streamed answer over the line."""

    async def echo(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % length + body)
        await writer.drain()
        writer.close()

    async def main():
        server = await asyncio.start_server(
            echo, "127.0.0.1", 0, ssl=server_context(authority), limit=1 << 20
        )
        port = server.sockets[0].getsockname()[1]
        transport = LineTransport(
            LineDialer(), LINE, ssl_context=trust(str(authority / "ca.pem")), address="127.0.0.1"
        )
        async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
            answer = await client.post(f"https://api.test:{port}/", content=b"z" * 300_000)
            assert answer.content == b"z" * 300_000
            with pytest.raises(DialError):
                await client.get("https://api.test:1/")
        server.close()

    asyncio.run(main())


@pytest.mark.tool("caddy")
@pytest.mark.skipif(not File(CADDY).exists(), reason="needs Caddy")
def test_http2_against_a_server_nobody_here_wrote(authority, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    (tmp_path / "Caddyfile").write_text(
        "{\n admin off\n auto_https off\n}\n"
        f"https://localhost:{port} {{\n bind 127.0.0.1\n"
        f" tls {authority}/cert.pem {authority}/key.pem\n"
        ' respond /small "ok"\n respond /big "' + "x" * 50_000 + '"\n}\n'
    )
    caddy = subprocess.Popen(
        [CADDY, "run", "--config", str(tmp_path / "Caddyfile")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin"},
    )  # fmt: skip
    try:

        async def test(probe):
            async with asyncio.timeout(20):
                while True:
                    with contextlib.suppress(OSError):
                        socket.create_connection(("127.0.0.1", port), 1).close()
                        break
                    await asyncio.sleep(0.05)
            path = Path(LINE, Endpoint("u", "e", "https", "localhost", port))
            return [await probe.measure(path, timeout_s=5) for _ in range(4)]

        targets = iter(["/small", "/small", "/big", "/small"])
        reports = run(test, ca_file=str(authority / "ca.pem"), target=lambda _: next(targets))
    finally:
        caddy.terminate()
        caddy.wait(10)
    assert all(r.outcome is Outcome.OK and r.http_version == "HTTP/2" for r in reports)
    # The long page costs its connection, so that the rest of it is never sent.
    assert [r.reused for r in reports] == [False, True, True, False]
