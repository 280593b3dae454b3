"""TLS: who is trusted, what is resumed, what is measured, what a failure says."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager

import pytest
import trustme
import uvloop

from edged.upstream.tls import Tls, TlsConfigError
from policies.model import Blame, Carrier, Change, Kind, Line, Outcome, Verdict
from tests.edged.upstream.support import eventually, get, path_to, server, setup

RUNNERS = [pytest.param(asyncio.run, id="asyncio"), pytest.param(uvloop.run, id="uvloop")]
GET = get(scheme=b"https")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    ca = trustme.CA()
    file = tmp_path_factory.mktemp("tls") / "ca.pem"
    ca.cert_pem.write_to_path(str(file))
    return ca, str(file)


def context_of(ca, *names, alpn=("http/1.1",), version=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names).configure_cert(context)
    context.set_alpn_protocols(list(alpn))
    if version is not None:
        context.maximum_version = version
    return context


def speaking_tls(resumed, offered=None):
    """Answers each request, then closes, so that the next one shakes hands again."""

    async def handler(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        resumed.append(writer.get_extra_info("ssl_object").session_reused)
        if offered is not None:
            offered.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

    return handler


@asynccontextmanager
async def serving(handler, context, ca_file, **options):
    async with server(handler, ssl=context) as port, setup(tls=Tls(ca_file), **options) as pools:
        yield port, pools


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_sessions_are_resumed_per_path(authority, run, version):
    ca, ca_file = authority
    resumed = []

    async def main():
        context = context_of(ca, "localhost", version=version)
        async with serving(speaking_tls(resumed), context, ca_file) as (port, pools):
            path = path_to(port, scheme="https")
            for _ in range(3):
                assert (await pools.fetch(path, GET)).ended
            other = path_to(port, scheme="https", line=Line("b", source="127.0.0.3"))
            assert (await pools.fetch(other, GET)).ended
            tls = [s for s in pools.samples if s.kind is Kind.TLS]
            assert len(tls) == 4
            assert all(s.rtt_s > 0 for s in tls)

    run(main())
    assert resumed == [False, True, True, False]


def test_a_session_of_another_context_is_never_offered(authority):
    ca, ca_file = authority
    resumed, offered = [], []

    async def main():
        context = context_of(ca, "localhost", alpn=("h2", "http/1.1"))
        async with serving(speaking_tls(resumed, offered), context, ca_file) as (port, pools):
            path = path_to(port, scheme="https", protocols=(Carrier.H1,))
            await pools.fetch(path, GET)
            both = path_to(port, scheme="https", name="p")
            upgrade = get(scheme=b"https", upgrade=b"websocket")
            await pools.fetch(both, upgrade, upgrade=True)

    asyncio.run(main())
    # The second offers h2 as an endpoint, but not for an upgrade.
    assert offered == ["http/1.1", "http/1.1"]


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize("case", ["stranger", "wrong name"])
def test_verification_is_always_on(authority, run, case):
    ca, ca_file = authority
    issuer = trustme.CA() if case == "stranger" else ca
    name = "localhost" if case == "stranger" else "other.example"

    async def main():
        async with serving(speaking_tls([]), context_of(issuer, name), ca_file) as (port, pools):
            path = path_to(port, scheme="https")
            failure = (await pools.fetch(path, GET)).failure
            assert failure.outcome is Outcome.TLS
            assert failure.unprocessed
            assert "certificate not accepted" in failure.detail
            sample = next(s for s in pools.samples if s.kind is Kind.TLS)
            assert sample.outcome is Outcome.TLS
            assert sample.rtt_s is None

    run(main())


@pytest.mark.parametrize("run", RUNNERS)
def test_a_server_that_speaks_no_tls(run, authority):
    async def handler(reader, writer):
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")

    async def main():
        async with server(handler) as port, setup(tls=Tls(authority[1])) as pools:
            failure = (await pools.fetch(path_to(port, scheme="https"), GET)).failure
            assert failure.outcome is Outcome.TLS
            assert failure.unprocessed

    run(main())


@pytest.mark.parametrize("run", RUNNERS)
def test_a_silent_handshake_ends_with_the_connect_timeout(run, authority):
    async def handler(reader, writer):
        await reader.read()

    async def main():
        async with serving(handler, None, authority[1], connect_timeout=lambda name: 0.1) as (
            port,
            pools,
        ):
            failure = (await pools.fetch(path_to(port, scheme="https"), GET)).failure
            assert failure.outcome is Outcome.TIMEOUT
            assert failure.unprocessed

    run(main())


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize("how", ["timeout", "cancelled"])
def test_a_handshake_that_ends_early_leaves_no_socket(run, how, authority):
    ended = []

    async def handler(reader, writer):
        while await reader.read(1000):
            pass
        ended.append(True)

    async def main():
        timeout_s = 0.1 if how == "timeout" else 30
        options = {"connect_timeout": lambda name: timeout_s}
        async with serving(handler, None, authority[1], **options) as (port, pools):
            path = path_to(port, scheme="https")
            events = pools.open(path, GET)
            await eventually(lambda: pools.samples)
            if how == "cancelled":
                down = Change(path.name, Verdict.UP, Verdict.DOWN, Blame.LINE, "silent", 0.0)
                pools.pools.path_changed(down)
            await events.done()
            await eventually(lambda: ended)

    run(main())


def test_a_bad_ca_file_is_named(tmp_path):
    with pytest.raises(TlsConfigError, match=r"none\.pem"):
        Tls(str(tmp_path / "none.pem"))
    (tmp_path / "bad.pem").write_text("not a certificate")
    with pytest.raises(TlsConfigError, match=r"bad\.pem"):
        Tls(str(tmp_path / "bad.pem"))
