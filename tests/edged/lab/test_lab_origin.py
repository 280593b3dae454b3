from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import hashlib
import json
import time

import brotli
import h2.config
import h2.connection
import httpx
import pytest
import websockets
import zstandard
from lab_clients import h3_client

from edged.lab import codings, resources
from edged.lab.certs import make_certificates
from edged.lab.origin import Origin

HTTP_VERSIONS = ["1.1", "2"]


@contextlib.asynccontextmanager
async def running(tmp_path, **named):
    origin = Origin(make_certificates(tmp_path, ["127.0.0.1", "api.lab.test"]), **named)
    await origin.start()
    try:
        yield origin, tmp_path / "ca.pem"
    finally:
        await origin.stop()


@contextlib.asynccontextmanager
async def client_of(tmp_path, version="1.1", **named):
    async with (
        running(tmp_path, **named) as (origin, _),
        httpx.AsyncClient(
            http2=version == "2",
            http1=version != "2",
            verify=origin._certificates.client_context(),
            base_url=f"https://127.0.0.1:{origin.port}",
        ) as client,
    ):
        yield origin, client


def both(test):
    return pytest.mark.parametrize("version", HTTP_VERSIONS)(test)


@both
def test_echo_tells_the_request_as_it_arrived(tmp_path, version):
    async def main():
        async with client_of(tmp_path, version) as (_, client):
            response = await client.put("/echo?a=b", content=b"hello", headers={"x-a": "1"})
            told = response.json()
            assert response.http_version == f"HTTP/{version}"
            assert (told["method"], told["target"], told["version"]) == (
                "PUT",
                "/echo?a=b",
                version,
            )
            assert ["x-a", "1"] in told["headers"]
            assert told["sha256"] == hashlib.sha256(b"hello").hexdigest()
            assert told["client"] == "127.0.0.1"

    asyncio.run(main())


@both
def test_downloads_are_the_same_bytes_every_time_and_in_ranges(tmp_path, version):
    async def main():
        async with client_of(tmp_path, version) as (_, client):
            whole = await client.get("/bytes/3000000")
            assert len(whole.content) == 3_000_000
            digest = hashlib.sha256(whole.content).hexdigest()
            assert (
                whole.headers["etag"] == f'"{digest}"' == f'"{resources.content_sha256(3_000_000)}"'
            )
            part = await client.get("/bytes/3000000", headers={"range": "bytes=70000-70009"})
            assert part.status_code == 206
            assert part.content == whole.content[70000:70010]
            assert (await client.get("/bytes/5", headers={"range": "bytes=5-"})).status_code == 416
            head = await client.head("/bytes/77")
            assert (head.headers["content-length"], head.content) == ("77", b"")

    asyncio.run(main())


@both
def test_uploads_of_any_framing_and_coding_are_summed(tmp_path, version):
    async def main():
        data = bytes(range(256)) * 20_000

        async def chunked():
            for at in range(0, len(data), 100_000):
                yield data[at : at + 100_000]

        wanted = hashlib.sha256(data).hexdigest()
        async with client_of(tmp_path, version) as (origin, client):
            for content in (data, chunked()):
                told = (await client.post("/upload", content=content)).json()
                assert (told["length"], told["sha256"]) == (len(data), wanted)
            coders = {
                "zstd": zstandard.ZstdCompressor().compress,
                "br": lambda d: brotli.compress(d, quality=1),
                "gzip": gzip.compress,
            }
            for name, coder in coders.items():
                headers = {"content-encoding": name}
                response = await client.post("/upload", content=coder(data), headers=headers)
                assert response.json()["sha256"] == wanted
                cut = await client.post("/upload", content=coder(data)[:-9], headers=headers)
                assert cut.status_code == 400
            origin.service.accepts_encoding = ("gzip",)
            headers = {"content-encoding": "zstd"}
            refused = await client.post("/upload", content=b"x", headers=headers)
            assert refused.status_code == 415
            assert refused.headers["accept-encoding"] == "gzip"

    asyncio.run(main())


@both
@pytest.mark.parametrize("coding", codings.CODINGS)
def test_answers_use_the_coding_that_the_client_accepts(tmp_path, version, coding):
    async def main():
        async with client_of(tmp_path, version) as (origin, client):
            headers = {"accept-encoding": coding}
            response = await client.get("/text/100000", headers=headers)
            assert response.headers["content-encoding"] == coding
            assert len(response.json()["rows"]) > 1000
            assert response.num_bytes_downloaded < 10_000
            origin.service.encode = False
            assert "content-encoding" not in (await client.get("/text/1", headers=headers)).headers

    asyncio.run(main())


def test_codings_are_negotiated_by_weight_then_by_preference():
    assert codings.negotiate("gzip, br, zstd") == "zstd"
    assert codings.negotiate("zstd;q=0.5, br;q=0.9") == "br"
    assert codings.negotiate("zstd;q=0, gzip") == "gzip"
    assert codings.negotiate("deflate, identity") is None
    assert codings.negotiate("br;q=x") is None


@both
@pytest.mark.parametrize("coding", [*codings.CODINGS, "identity"])
def test_events_leave_one_by_one_also_when_coded(tmp_path, version, coding):
    async def main():
        async with client_of(tmp_path, version) as (_, client):
            headers = {"accept-encoding": coding}
            arrived = []
            async with client.stream("GET", "/sse?n=5&rate=20", headers=headers) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data: "):
                        arrived.append((json.loads(line[6:])["i"], time.monotonic()))
            assert [i for i, _ in arrived] == list(range(5))
            assert arrived[-1][1] - arrived[0][1] > 0.15

    asyncio.run(main())


@both
def test_a_cut_response_is_no_clean_end(tmp_path, version):
    async def main():
        async with client_of(tmp_path, version) as (_, client):
            for framed in (0, 1):
                with pytest.raises(httpx.RemoteProtocolError):
                    await client.get(f"/cut?n=5000&framed={framed}")
            assert (await client.get("/")).status_code == 200

    asyncio.run(main())


@both
def test_statuses_errors_and_waits(tmp_path, version):
    async def main():
        async with client_of(tmp_path, version) as (_, client):
            busy = await client.get("/status/429?retry_after=7")
            assert (busy.status_code, busy.headers["retry-after"]) == (429, "7")
            assert (await client.get("/status/204")).content == b""
            assert (await client.get("/none")).status_code == 404
            refused = await client.get("/upload")
            assert (refused.status_code, refused.headers["allow"]) == (405, "POST, PUT")
            assert (await client.post("/v1/messages", content=b"{")).status_code == 400
            start = time.monotonic()
            slept = (await client.get("/slow?s=0.2")).json()
            assert slept["slept"] == 0.2
            assert start <= slept["asked_at"] <= time.monotonic() - 0.2

    asyncio.run(main())


@both
def test_executions_are_counted_once_the_request_is_complete(tmp_path, version):
    async def main():
        async with client_of(tmp_path, version) as (origin, client):
            for _ in range(2):
                await client.post("/echo", content=b"x", headers={"idempotency-key": "a"})
            await client.get("/echo", headers={"x-lab-id": "b"})

            async def broken():
                yield b"x"
                raise RuntimeError("client dies")

            with pytest.raises(RuntimeError):
                await client.post("/upload", content=broken(), headers={"x-lab-id": "c"})
            assert origin.service.executions == {"a": 2, "b": 1}
            told = await client.get("/executions?id=a")
            assert told.json() == {"id": "a", "count": 2}

    asyncio.run(main())


def test_h1_in_detail(tmp_path):
    """Pipelining, 100-continue, trailers both ways, 103, HTTP/1.0, an Upgrade not taken."""

    async def main():
        async with running(tmp_path) as (origin, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", origin.cleartext_port)
            writer.write(
                b"GET /echo?1 HTTP/1.1\r\nhost: a\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"
                b"GET /hints HTTP/1.1\r\nhost: a\r\n\r\n"
                b"GET /trailers HTTP/1.1\r\nhost: a\r\n\r\n"
                b"POST /echo HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n"
                b"transfer-encoding: chunked\r\n\r\n"
            )
            seen = await asyncio.wait_for(reader.readuntil(b"100 Continue\r\n\r\n"), 5)
            assert seen.index(b"/echo?1") < seen.index(b"103 ") < seen.index(b"x-sha256: ")
            assert b"part 2\n\r\n0\r\nx-sha256: " in seen
            writer.write(b"2\r\nhi\r\n0\r\nx-sum: 7\r\n\r\nGET / HTTP/1.0\r\n\r\n")
            rest = await asyncio.wait_for(reader.read(), 5)
            assert b'"trailers": [["x-sum", "7"]]' in rest
            assert b"connection: close" in rest
            writer.close()

    asyncio.run(main())


def test_broken_h1_is_refused(tmp_path):
    async def main():
        async with running(tmp_path) as (origin, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", origin.cleartext_port)
            writer.write(b"GET / HTTP/1.1\r\nbad header\r\n\r\n")
            assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 400 ")
            writer.close()

    asyncio.run(main())


def test_h2_with_prior_knowledge_in_cleartext(tmp_path):
    async def main():
        async with running(tmp_path) as (origin, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", origin.cleartext_port)
            machine = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
            machine.initiate_connection()
            pseudo = {":method": "GET", ":path": "/trailers", ":scheme": "http", ":authority": "a"}
            machine.send_headers(1, list(pseudo.items()), end_stream=True)
            preface = machine.data_to_send()
            writer.write(preface[:10])  # the preface may come in pieces
            await writer.drain()
            await asyncio.sleep(0.01)
            writer.write(preface[10:])
            names = []
            while "StreamEnded" not in names:
                for event in machine.receive_data(await asyncio.wait_for(reader.read(65536), 5)):
                    names.append(type(event).__name__)
            assert "TrailersReceived" in names
            writer.close()

    asyncio.run(main())


def test_websocket_echoes_frames_of_every_size(tmp_path):
    async def main():
        async with running(tmp_path) as (origin, _):
            context = origin._certificates.client_context()
            url = f"wss://127.0.0.1:{origin.port}/v1/realtime?model=lab"
            async with websockets.connect(url, ssl=context, max_size=None) as socket:
                for message in ("hi", "", "x" * 200, b"\0" * 70_000, "y" * 200_000):
                    await socket.send(message)
                    assert await asyncio.wait_for(socket.recv(), 5) == message
                await asyncio.wait_for(await socket.ping(), 5)
            assert socket.close_code == 1000

    asyncio.run(main())


@pytest.mark.parametrize("engine", ["aioquic", "qh3"])
def test_h3_serves_the_same_resources(tmp_path, engine):
    if engine == "qh3":
        pytest.importorskip("qh3")

    async def main():
        async with running(tmp_path, h3_engine=engine) as (origin, ca_file):
            address = ("127.0.0.1", origin.port)
            async with h3_client("127.0.0.1", address, "api.lab.test", ca_file) as client:
                heads, body = await client.request("POST", "a", "/echo", body=b"hello")
                told = json.loads(body)
                assert (told["version"], told["length"]) == ("3", 5)
                assert heads[0][b":status"] == b"200"
                heads, body = await client.request("GET", "a", "/bytes/1500000")
                digest = hashlib.sha256(body).hexdigest().encode()
                assert heads[0][b"etag"] == b'"' + digest + b'"'
                data = bytes(500_000)
                _, body = await client.request("POST", "a", "/upload", body=data)
                assert json.loads(body)["sha256"] == hashlib.sha256(data).hexdigest()
                heads, _ = await client.request("GET", "a", "/trailers")
                assert b"x-sha256" in heads[-1]
                _, body = await client.request("GET", "a", "/sse?n=3&rate=100")
                assert body.count(b"data: ") == 3
                with pytest.raises(ConnectionResetError):
                    await client.request("GET", "a", "/cut?n=100")
                several = [client.request("GET", "a", f"/bytes/{n}") for n in range(1, 20)]
                assert [len(b) for _, b in await asyncio.gather(*several)] == list(range(1, 20))

    asyncio.run(main())


def test_a_client_may_give_an_h3_stream_up_in_the_same_breath(tmp_path):
    async def main():
        complaints = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        async with running(tmp_path) as (origin, ca_file):
            address = ("127.0.0.1", origin.port)
            async with h3_client("127.0.0.1", address, "api.lab.test", ca_file) as client:
                for _ in range(10):
                    stream = client._quic.get_next_available_stream_id()
                    client.done[stream] = loop.create_future()
                    fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/echo")]
                    client.h3.send_headers(stream, [*fields, (b":authority", b"a")], True)
                    client._quic.stop_stream(stream, 0x10C)
                    client.transmit()
                _, body = await client.request("GET", "a", "/echo")
                assert json.loads(body)["method"] == "GET"
        gc.collect()  # a task's unheard exception is told when the task goes
        assert complaints == []

    asyncio.run(main())


def test_a_client_that_leaves_ends_the_handler(tmp_path):
    async def main():
        async with client_of(tmp_path, "2") as (_, client):
            before = len(asyncio.all_tasks())
            with pytest.raises(httpx.ReadTimeout):
                await client.get("/slow?s=60", timeout=0.2)
            await client.get("/")
            assert len(asyncio.all_tasks()) <= before + 1

    asyncio.run(main())
