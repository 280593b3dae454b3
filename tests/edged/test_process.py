"""What a process says of errors that nobody took."""

import asyncio
import logging

import pytest

from edged.process import _told_in_a_line


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("x"), ["a bug in edged: in a callback: ValueError('x')"]),
        # uvloop's words for TLS that had something to send when its socket was closed.
        (RuntimeError("unable to perform operation on <X>; the handler is closed"), []),
    ],
)
def test_a_bug_is_told_in_a_line(caplog, error, told):
    loop = asyncio.new_event_loop()
    caplog.set_level(logging.INFO)
    _told_in_a_line(loop, {"exception": error})
    loop.close()
    assert caplog.messages == told
