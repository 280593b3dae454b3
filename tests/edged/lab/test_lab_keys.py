import asyncio
import socket

import pytest

from edged.lab import silence
from edged.lab.lines import Lines, LineSpec
from edged.lab.tcp import TcpFront

pytestmark = pytest.mark.skipif(not silence.can_mute(), reason="this kernel refuses keys")


def test_where_filters_are_refused_a_dead_line_is_silent_all_the_same():
    async def scenario():
        lines = Lines([LineSpec("a", "127.71.1.2"), LineSpec("b", "127.71.2.2")])
        front = TcpFront(lines, ("127.0.0.1", 9))
        front.kernel = False
        port = front.start("127.72.9.1")
        loop = asyncio.get_running_loop()

        async def connects(source):
            with socket.socket() as sock:
                sock.setblocking(False)
                sock.bind((source, 0))
                try:
                    await asyncio.wait_for(loop.sock_connect(sock, ("127.72.9.1", port)), 0.5)
                except TimeoutError:
                    return False
                return True

        try:
            lines.blackhole("a")
            assert not await connects("127.71.1.2")
            assert await connects("127.71.2.2")
            lines.blackhole("a", False)
            assert await connects("127.71.1.2")
        finally:
            await front.stop()

    asyncio.run(scenario())
