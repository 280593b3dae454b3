from __future__ import annotations

import contextlib
import socket

import pytest

from edged.lab import silence
from edged.socket_filter import set_filter, supported

pytestmark = pytest.mark.skipif(not supported(), reason="this kernel refuses socket filters")


@contextlib.contextmanager
def pair():
    with socket.socket() as listener:
        listener.bind(("127.72.9.1", 0))
        listener.listen()
        with socket.socket() as client:
            client.bind(("127.71.1.2", 0))
            client.connect(listener.getsockname())
            server, _ = listener.accept()
            with server:
                client.settimeout(5)
                server.settimeout(5)
                yield listener, client, server


def test_a_listener_answers_no_syn_of_a_filtered_source_only():
    with pair() as (listener, _, _), socket.socket() as dead, socket.socket() as alive:
        assert set_filter(listener, silence.sources_program([("127.71.1.2", 1.0)]))
        dead.bind(("127.71.1.2", 0))
        dead.settimeout(0.3)
        with pytest.raises(TimeoutError):
            dead.connect(listener.getsockname())
        alive.bind(("127.71.2.2", 0))
        alive.settimeout(5)
        alive.connect(listener.getsockname())


def test_filtered_segments_arrive_once_the_filter_is_gone():
    with pair() as (_, client, server):
        assert set_filter(server, silence.drop_program(1))
        client.send(b"hello")
        server.settimeout(0.3)
        with pytest.raises(TimeoutError):
            server.recv(10)
        assert set_filter(server, None)
        server.settimeout(5)
        assert server.recv(10) == b"hello"


def test_a_mute_socket_is_not_heard_until_it_speaks_again():
    with pair() as (_, client, server):
        if not silence.set_mute(server, "127.71.1.2", True):
            pytest.skip("this kernel has no TCP_MD5SIG")
        server.send(b"hello")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(10)
        assert silence.set_mute(server, "127.71.1.2", False)
        client.settimeout(5)
        assert client.recv(10) == b"hello"


def test_lifting_what_was_never_set_is_no_error():
    with pair() as (_, _, server):
        assert set_filter(server, None)
        assert silence.set_mute(server, "127.71.1.2", False)


def test_the_threshold_stays_in_32_bits():
    assert silence.threshold(0) == 0
    assert silence.threshold(1) == 0xFFFFFFFF
    assert silence.threshold(0.5) == 1 << 31
