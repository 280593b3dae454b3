"""Datagrams where the congestion window is nearly full."""

from types import SimpleNamespace

import pytest

from edged.quic import PACKET_OVERHEAD_BYTES, aioquic, qh3

WINDOW = 3000


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
    ("free", "waiting", "spare", "leaves"),
    [
        (100, 0, False, True),
        (99, 0, False, False),
        (100, 1, False, False),
        (600, 500, False, True),
        (WINDOW // 2 + 100, 0, True, True),
        (WINDOW // 2 + 99, 0, True, False),
    ],
)
def test_a_datagram_leaves_if_the_window_has_room_for_it_behind_its_stream(
    make, free, waiting, spare, leaves
):
    data = b"x" * (100 - PACKET_OVERHEAD_BYTES)
    streams, sent = make(WINDOW - free)
    assert streams.message(data, waiting=waiting, spare=spare) is leaves
    assert sent == [data] * leaves
