"""The demo's client: framing, reuse, and what it raises."""

import asyncio
import contextlib

import pytest

from edged.lab.client import TROUBLES, Client


class Server:
    """Answers with what the test says, one answer a request."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.connections = 0
        self.requests = []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.client = Client(f"http://127.0.0.1:{port}/base", 1.0)
        return self

    async def __aexit__(self, *_):
        self.client.close()
        self.server.close()

    async def serve(self, reader, writer):
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while self.answers:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append((head, await reader.readexactly(length)))
                for piece in self.answers.pop(0):
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.01)
        writer.close()

    async def post(self):
        async with self.client.post("/x", {"a": 1}, {"x-lab": "1"}) as response:
            return response.status, response.headers, await response.read()


PLAIN = [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", b"X-A: b\r\n\r\nhel", b"lo"]
CHUNKED = [
    b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n3\r",
    b"\nabc\r\n1;x=y\r\nd",
    b"\r\n0\r\nt: 1\r\n\r\n",
]


def test_both_framings_and_one_connection():
    async def main():
        async with Server(PLAIN, CHUNKED, PLAIN) as server:
            assert await server.post() == (200, {"content-length": "5", "x-a": "b"}, b"hello")
            status, _, body = await server.post()
            assert (status, body) == (201, b"abcd")
            assert (await server.post())[2] == b"hello"
            assert server.connections == 1
            head, body = server.requests[0]
            assert head.startswith(b"POST /base/x HTTP/1.1\r\nhost: 127.0.0.1:")
            assert b"\r\nx-lab: 1\r\n" in head
            assert body == b'{"a": 1}'

    asyncio.run(main())


def test_lines_are_whole_however_the_body_is_cut():
    body = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nda\r\n6\r\nta: 1\n\r\n"]
    body += [b"3\r\n\nx\n\r\n1\r\ny\r\n0\r\n\r\n"]

    async def main():
        async with Server(body) as server, server.client.post("/", {}, {}) as response:
            assert [line async for line in response.lines()] == ["data: 1", "", "x", "y"]

    asyncio.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        [],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"],
        [b"nonsense\r\n\r\n"],
    ],
)
def test_what_is_cut_or_nonsense_raises_and_its_connection_is_not_used_again(answer):
    async def main():
        async with Server(answer) as server:
            with pytest.raises(TROUBLES):
                await server.post()
            assert not server.client._idle

    asyncio.run(main())


def test_silence_raises_in_time():
    async def main():
        async with Server([b"HTTP/1.1 "] + [b""] * 50) as server:
            server.client._timeout_s = 0.1
            with pytest.raises(TimeoutError):
                await server.post()

    asyncio.run(main())


def test_a_connection_that_ended_meanwhile_is_not_used():
    async def main():
        async with Server(PLAIN) as server:
            await server.post()
            await asyncio.sleep(0.05)  # the server has no more answers and closes
            server.answers.append(PLAIN)
            assert (await server.post())[0] == 200
            assert server.connections == 2

    asyncio.run(main())
