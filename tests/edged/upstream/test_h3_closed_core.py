"""A core that closed itself before its end was told: nothing that is asked of it raises."""

import asyncio

import pytest

from tests.harness.h3 import FAST, Certificates, request, until
from tests.harness.migrating import run


@pytest.mark.parametrize("engine", [FAST])
def test_nothing_raises_between_the_end_and_its_telling(engine):
    async def body(mobile, origin, talk):
        connection = await mobile.connect()
        await until(connection.engine.may_migrate)
        attempt = mobile.send(connection, request(b"POST", b"/", body_length=None), end=False)
        await until(lambda: talk.exchanges)
        connection.engine.close(0)
        attempt.stream.send_data(bytes(100))
        assert connection.ping(lambda rtt_s: None, 1.0)
        connection.engine.reset(0, 0x10C)
        connection.engine.stop(0, 0x10C)
        await asyncio.sleep(0.05)
        connection.close()
        await attempt.done

    run(engine, Certificates(), body)
