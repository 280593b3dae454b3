"""Datagrams where the congestion window is nearly full."""

from types import SimpleNamespace

import pytest

from edged.quic import PACKET_OVERHEAD_BYTES, aioquic, qh3

WINDOW = 4000


def qh3_streams(in_flight):
    streams = qh3.Streams()
    sent = []
    streams._core = SimpleNamespace(
        congestion_window=WINDOW, bytes_in_flight=in_flight, send_datagram=sent.append
    )
    return streams, sent


def aioquic_streams(in_flight):
    streams = aioquic.Streams()
    sent = []
    streams._quic = SimpleNamespace(
        _loss=SimpleNamespace(congestion_window=WINDOW, bytes_in_flight=in_flight),
        _remote_max_datagram_frame_size=1200,
        _datagrams_pending=[],
        send_datagram_frame=sent.append,
    )
    return streams, sent


@pytest.mark.parametrize("make", [qh3_streams, aioquic_streams])
@pytest.mark.parametrize(
    ("in_flight", "waiting", "spare", "leaves"),
    [
        (2900, 0, False, True),
        (2901, 0, False, False),
        (2900, 1, False, False),
        (2400, 500, False, True),
        (1900, 0, True, True),
        (1901, 0, True, False),
    ],
)
def test_a_datagram_leaves_if_the_window_has_room_for_streams_besides(
    make, in_flight, waiting, spare, leaves
):
    data = b"x" * (100 - PACKET_OVERHEAD_BYTES)
    streams, sent = make(in_flight)
    assert streams.message(data, waiting=waiting, spare=spare) is leaves
    assert sent == [data] * leaves
