"""The HTTP/3 carrier under volume, backpressure and bad lines, on both engines."""

import asyncio
import contextlib
import hashlib
import itertools

import pytest
from aioquic.h3.connection import FrameUnexpected

from policies.model import Kind
from tests.harness.h3 import both_engines, request, run, until

pytestmark = both_engines


# Backpressure


def test_a_paused_response_is_bounded_and_goes_on(engine, certificates):
    content = bytes(range(256)) * (8 << 12)

    def script(exchange):
        exchange.answer(content if exchange.path == b"/big" else b"small")

    async def body(client, origin):
        connection = await client.connect()
        attempt = client.send(
            connection, request(path=b"/big"), on_head=lambda a: a.stream.pause_reading()
        )
        await until(lambda: attempt.response)
        driver = connection.driver
        last = -1
        while last != driver.bytes_received:
            last = driver.bytes_received
            await asyncio.sleep(0.1)
        assert not attempt.received
        assert last < 6e6 < len(content)
        if engine == "pure":
            assert (await client.get(connection)).received == b"small"
        else:
            # Credit is one queue on this engine: no new streams while it is withheld.
            assert connection.capacity == 0
            answers = []
            connection.ping(answers.append, 5)
            await until(lambda: answers)
            assert answers[0] is not None
        attempt.stream.resume_reading()
        await asyncio.wait_for(attempt.done, 20)
        assert attempt.failure is None
        assert hashlib.sha256(attempt.received).digest() == hashlib.sha256(content).digest()
        await until(lambda: connection.capacity > 0)
        connection.close()

    run(engine, certificates, script, body)


def test_a_paused_response_does_not_hold_up_its_neighbours(engine, certificates):
    content = bytes(range(256)) * (3 << 12)

    def script(exchange):
        if exchange.path == b"/big":
            exchange.answer(content)
        else:
            exchange.head(200, [])

    async def body(client, origin):
        connection = await client.connect()
        events = client.send(connection, request(path=b"/events"))
        await until(lambda: events.response)
        big = client.send(
            connection, request(path=b"/big"), on_head=lambda a: a.stream.pause_reading()
        )
        await until(lambda: connection.driver.bytes_received > 2.5e6)
        for i in range(3):
            origin.exchanges[0].data(b"event")
            await until(lambda i=i: len(events.received) == 5 * (i + 1))
        assert connection.capacity > 0
        big.stream.resume_reading()
        await asyncio.wait_for(big.done, 20)
        assert big.received == content
        connection.close()

    run(engine, certificates, script, body)


def test_pausing_inside_data_stops_at_once(engine, certificates):
    def script(exchange):
        exchange.head(200, [])
        exchange.raw(b"\x00\x03one\x00\x03two", end=True)

    async def body(client, origin):
        connection = await client.connect()
        attempt = client.send(connection, on_data=lambda a: a.stream.pause_reading())
        await until(lambda: attempt.received)
        await asyncio.sleep(0.05)
        assert attempt.log == ["head", 3]
        attempt.stream.resume_reading()
        assert attempt.log == ["head", 3]
        await attempt.done
        assert attempt.log == ["head", 3, 3, "end"]
        connection.close()

    run(engine, certificates, script, body)


def test_cancelling_a_paused_response_frees_the_connection(engine, certificates):
    content = b"x" * (6 << 20)

    def script(exchange):
        exchange.answer(content if exchange.path == b"/big" else b"small")

    async def body(client, origin):
        connection = await client.connect()
        attempt = client.send(
            connection, request(path=b"/big"), on_head=lambda a: a.stream.pause_reading()
        )
        await until(lambda: connection.driver.bytes_received > 3e6)
        attempt.stream.cancel()
        await until(lambda: connection.capacity > 0)
        assert (await client.get(connection)).received == b"small"
        connection.close()

    run(engine, certificates, script, body)


def test_a_request_body_is_held_back_while_the_line_takes_nothing(engine, certificates):
    chunk = bytes(range(256)) * 256
    chunks = 40

    async def body(client, origin, forwarder):
        connection = await client.connect()
        attempt = client.send(connection, request(b"POST", body_length=None), end=False)
        stream = attempt.stream
        forwarder.dead = True
        queued = 0
        while attempt.writable.is_set() and queued < chunks:
            stream.send_data(chunk)
            queued += 1
            await asyncio.sleep(0)
        assert attempt.body_pauses == 1
        assert queued * len(chunk) < 1 << 20
        forwarder.dead = False
        while queued < chunks:
            await asyncio.wait_for(attempt.writable.wait(), 10)
            stream.send_data(chunk)
            queued += 1
            assert connection.engine.unsent(stream.id) < 1 << 20
        stream.send_end()
        await until(lambda: origin.exchanges and origin.exchanges[0].ended)
        assert bytes(origin.exchanges[0].body) == chunk * chunks
        origin.exchanges[0].answer()
        await attempt.done
        assert attempt.body_resumes == attempt.body_pauses
        connection.close()

    run(engine, certificates, lambda e: None, body, through={})


# The line


def test_loss_is_repaired_and_reported(engine, certificates, monkeypatch):
    monkeypatch.setattr("edged.upstream.h3_meter.SAMPLE_EVERY_S", 0.05)
    monkeypatch.setattr("edged.upstream.h3_meter.GOODPUT_MIN_BYTES", 10_000)
    content = bytes(range(256)) * 2048

    async def body(client, origin, forwarder):
        connection = await client.connect()
        forwarder.loss = 0.03
        attempt = client.send(connection, request(b"POST", body_length=len(content)), end=False)
        for i in range(0, len(content), 65536):
            await attempt.writable.wait()
            attempt.stream.send_data(content[i : i + 65536])
        attempt.stream.send_end()
        await until(lambda: origin.exchanges and origin.exchanges[0].ended, 20)
        origin.exchanges[0].answer(content)
        await attempt.done
        assert attempt.received == content
        assert forwarder.lost
        reports = [s for s in client.samples if s.kind is Kind.KERNEL]
        sent = sum(s.packets_sent for s in reports)
        lost = sum(s.packets_lost for s in reports)
        assert 200 < sent < 2000
        assert 0 < lost < sent / 4
        assert all(s.rtt_s >= 0.009 for s in reports)
        assert any(s.goodput_bps for s in reports)
        connection.close()

    run(engine, certificates, lambda e: None, body, through={"delay_s": 0.005})


def test_an_origin_that_thinks_is_not_taken_for_dead(engine, certificates):
    async def body(client, origin, forwarder):
        origin.configuration.idle_timeout = 0.6
        connection = await client.connect()
        attempt = client.send(connection)
        await until(lambda: origin.exchanges)
        await asyncio.sleep(1.5)
        origin.exchanges[0].answer()
        await attempt.done
        assert attempt.failure is None
        # Without a stream nothing keeps it: that is the pool's to decide.
        await until(lambda: client.pool.ended)
        assert client.pool.ended == [None]

    run(engine, certificates, lambda e: None, body, through={})


def test_the_socket_can_be_replaced_under_a_download(engine, certificates):
    content = bytes(range(256)) * 8192

    async def body(client, origin, forwarder):
        connection = await client.connect()
        attempt = client.send(connection)
        await until(lambda: len(attempt.received) > 200_000)
        dialed = await client.dialer.connect_udp(None, "", forwarder.port, timeout_s=1)
        driver = connection.driver
        assert driver.move(driver.add(dialed.sock))
        await until(lambda: len(attempt.received) > 400_000)
        driver.drop(0)
        assert client.dialer.sockets[0].fileno() == -1
        await asyncio.wait_for(attempt.done, 20)
        assert attempt.received == content
        connection.close()

    run(engine, certificates, lambda e: e.answer(content), body, through={"delay_s": 0.01})


# Cancelling


@pytest.mark.parametrize("downloads", [0, 3])
def test_cancelled_streams_do_not_take_their_connection_along(engine, certificates, downloads):
    """A stream that ends while its STOP_SENDING waits for a congestion window that an upload keeps
    full: qh3's core fails when it comes to send it. What it sends meanwhile for downloads says
    nothing of that: acknowledgements need no window."""

    def script(exchange):
        loop = asyncio.get_running_loop()
        if exchange.path == b"/upload":
            loop.call_soon(say, exchange.answer, b"thanks")
            return
        if exchange.path == b"/download":
            loop.call_soon(say, exchange.answer, bytes(300_000))
            return
        loop.call_soon(say, exchange.head)
        for number in range(6):
            loop.call_later(number * 0.02, say, exchange.data, b"x" * 400, number == 5)

    def say(what, *words):
        with contextlib.suppress(RuntimeError, ValueError, FrameUnexpected):
            what(*words)  # unless the client stopped it

    async def body(client, origin, forwarder):
        connection = await client.connect()
        end = asyncio.get_running_loop().time() + 4

        async def room():
            await until(lambda: connection.capacity > 0 or not on())
            return on()

        def on():
            return connection.end is None and asyncio.get_running_loop().time() < end

        async def upload():
            while await room():
                head = request(b"POST", b"/upload", body_length=60_000)
                attempt = client.send(connection, head, end=False)
                attempt.stream.send_data(bytes(60_000))
                attempt.stream.send_end()
                await attempt.done

        async def browse(number):
            while await room():
                attempt = client.send(connection)
                await asyncio.sleep(0.02 * (1 + number))
                if not attempt.done.done():
                    attempt.stream.cancel()

        async def download():
            while await room():
                await client.send(connection, request(path=b"/download")).done

        users = (
            (upload() for _ in range(2)),
            map(browse, range(7)),
            (download() for _ in range(downloads)),
        )
        await asyncio.gather(*itertools.chain(*users))
        assert connection.end is None
        connection.close()

    lossy = {"delay_s": 0.02, "loss": 0.06}
    run(engine, certificates, script, body, through=lossy)
