"""Moves before a server that nobody here wrote: Caddy (quic-go), on both engines."""

import asyncio
import hashlib
import os
from time import monotonic
from types import SimpleNamespace

import pytest

from policies.model import Kind
from tests.harness.h3 import both_engines, request, strictly, until
from tests.harness.migrating import Mobile, tend_soon
from tests.harness.servers import CADDY, Certificate, caddy
from tests.live.stepper import Stepper

pytestmark = pytest.mark.skipif(not CADDY.exists(), reason="caddy is not installed")
BYTES = 1_000_000


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A Caddy before a `Stepper`, with a file and an echo of its own."""
    folder = tmp_path_factory.mktemp("caddy")
    content = os.urandom(BYTES)
    (folder / "big").write_bytes(content)
    certificate = Certificate.make(folder)
    with Stepper() as stepper:
        routes = (
            f"handle /big {{\n root {folder}\n file_server\n }}\n"
            "handle /echo {\n respond {http.request.body}\n }\n"
            f"handle {{\n reverse_proxy 127.0.0.1:{stepper.port}\n }}\n"
        )
        with caddy(folder, certificate, routes, protocols="h1 h2 h3") as server:
            yield SimpleNamespace(
                port=server.port, ca=certificate.ca_file, content=content, stepper=stepper
            )


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    tend_soon(monkeypatch)


def run(engine, site, body, **rtts_s):
    async def main():
        rtts = rtts_s or {"a": 0.02, "b": 0.04}
        async with Mobile(engine, site, site.port, **rtts) as mobile:
            connection = await mobile.connect()
            await until(connection.engine.may_migrate)
            await body(mobile, connection)
            connection.close()
            await asyncio.sleep(max(rtts.values()))  # else Caddy would wait for it at its end

    asyncio.run(strictly(main()))


async def talking(site, mobile, connection):
    """A response that has begun."""
    attempt = mobile.send(connection, request(path=b"/steps"))
    site.stepper.say(b"0")
    await until(lambda: attempt.received == b"0")
    return attempt


@both_engines
def test_a_stream_goes_on_from_line_to_line(engine, site):
    async def body(mobile, connection):
        attempt = await talking(site, mobile, connection)
        said = b"0"
        for left, taken in ("ab", "bc", "ca"):
            mobile.wires[taken].dead = False
            mobile.up.add(taken)
            mobile.die(left)
            for piece in (b"1", b"2"):
                site.stepper.say(piece)
                said += piece
            await asyncio.sleep(0.05)  # sent into the void
            assert connection.leave()
            await until(lambda: connection.capacity)
            await until(lambda said=said: attempt.received == said)
        site.stepper.end()
        await attempt.done
        assert attempt.failure is None
        assert set(mobile.reported(Kind.KERNEL)) <= {"a", "b", "c"}

    run(engine, site, body, a=0.02, b=0.03, c=0.04)


def test_a_prepared_move_costs_no_round_trip(site):
    async def body(mobile, connection):
        attempt = await talking(site, mobile, connection)
        await until(lambda: mobile.reported(Kind.PING))
        await asyncio.sleep(0.3)  # the server has validated the address, too
        mobile.die("a")
        began = monotonic()
        assert connection.leave()
        site.stepper.say(b"1")
        await until(lambda: attempt.received == b"01")
        assert monotonic() - began < 0.55  # there and back; without preparation twice that
        site.stepper.end()
        await attempt.done

    # quic-go forgets a path after a second if it is much slower than the one in use: it takes the
    # packet with its challenge for lost.
    run("pure", site, body, a=0.3, b=0.3)


@both_engines
@pytest.mark.parametrize("loss", [0.0, 0.02])
def test_large_bodies_go_on_byte_for_byte(engine, site, loss):
    async def body(mobile, connection):
        mobile.wires["b"].loss = loss
        download = mobile.send(connection, request(path=b"/big"))
        await until(lambda: len(download.received) > BYTES // 5)
        mobile.die("a")
        await asyncio.sleep(0.1)
        assert connection.leave()
        await asyncio.wait_for(download.done, 25)
        assert download.failure is None
        assert hashlib.sha256(download.received).digest() == digest
        # And back, under an upload.
        mobile.wires["a"].dead = False
        mobile.up.add("a")
        head = request(b"POST", b"/echo", body_length=BYTES // 2)
        upload = mobile.send(connection, head, end=False)
        content = site.content[: BYTES // 2]
        for i in range(0, len(content), 65536):
            await upload.writable.wait()
            upload.stream.send_data(content[i : i + 65536])
            if i == 524288:
                mobile.die("b")
                await asyncio.sleep(0.1)
                assert connection.leave()
        upload.stream.send_end()
        await asyncio.wait_for(upload.done, 25)
        assert upload.failure is None
        assert upload.received == content

    digest = hashlib.sha256(site.content).digest()
    run(engine, site, body)


@both_engines
def test_many_streams_on_one_connection(engine, site):
    async def body(mobile, connection):
        asked = len(site.stepper.requests)
        attempts = [mobile.send(connection, request(path=b"/hold")) for _ in range(20)]
        await until(lambda: len(site.stepper.requests) == asked + 20)
        mobile.die("a")
        assert connection.leave()
        for _ in attempts:
            site.stepper.end()
        await asyncio.gather(*(a.done for a in attempts))
        assert not any(a.failure for a in attempts)
        assert {a.response.status for a in attempts} == {200}
        assert len(site.stepper.requests) == asked + 20  # nothing was repeated

    run(engine, site, body)
