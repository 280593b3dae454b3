"""A request that is over leaves nothing to the cycle collector."""

import contextlib
import gc

import pytest

from edged.downstream.h1 import H1Connection
from edged.downstream.hub import Hub
from edged.downstream.limits import Limits
from edged.messages import ResponseHead
from tests.harness.clients import FakeTransport, NoLoop
from tests.harness.h2client import END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, frame

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CONNECT = b"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n"


class Holder:
    """A sink that holds its responder, as exchanges do."""

    def __init__(self, responder):
        self.responder = responder

    def body(self, data):
        pass

    def body_end(self, trailers):
        pass

    def gone(self):
        pass


@contextlib.contextmanager
def collected():
    """The types of what only the cycle collector freed."""
    names = []
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield names
        gc.collect()
        names.extend(type(thing).__name__ for thing in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def serve(data, end):
    """One request, brought to its ``end`` after the handler has returned."""
    sinks = []

    def handler(head, responder):
        sinks.append(Holder(responder))
        return sinks[-1]

    loop = NoLoop()
    transport = FakeTransport()
    connection = H1Connection(Hub(handler, Limits(), loop))
    transport.protocol = connection
    connection.connection_made(transport)
    connection.data_received(data)
    end(sinks.pop().responder, transport)
    loop.run()
    transport.protocol.connection_lost(None)
    transport.protocol = None


def complete(responder, transport):
    responder.head(ResponseHead(200, [], 2))
    responder.data(b"ok")
    responder.end()


def abort(responder, transport):
    responder.head(ResponseHead(200, [], 2))
    responder.abort()


def lose(responder, transport):
    transport.protocol.connection_lost(None)


def kill(responder, transport):
    transport.protocol.kill()


@pytest.mark.parametrize("end", [complete, abort, lose, kill])
@pytest.mark.parametrize("data", [GET, b"POST" + GET[3:-2] + b"Content-Length: 5\r\n\r\n"])
def test_exchanges(data, end):
    with collected() as names:
        serve(data, end)
    assert names == []


def both_ways(responder, transport):
    responder.head(ResponseHead(200, [], None))
    responder.end()
    transport.protocol.eof_received()


def cut(responder, transport):
    responder.head(ResponseHead(200, [], None))
    responder.abort()


def vanish(responder, transport):
    responder.head(ResponseHead(200, [], None))


@pytest.mark.parametrize("end", [both_ways, cut, vanish])
def test_tunnels(end):
    with collected() as names:
        serve(CONNECT, end)
    assert names == []


H2_GET = bytes.fromhex("828684") + b"\x41\x01h"  # GET, http, /, and :authority h
H2 = PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_STREAM | END_HEADERS, 1, H2_GET)


@pytest.mark.parametrize("end", [complete, abort, kill])
def test_h2_streams(end):
    with collected() as names:
        serve(H2, end)
    assert not {"H2Exchange", "Holder"} & set(names)
