"""Decoding towards a slow client."""

import gzip

from edged.compress import decoder
from edged.delivery import Decoding


class Client:
    def __init__(self, pause_after=None):
        self.got, self.log, self.pause_after = bytearray(), [], pause_after
        self.decoding = Decoding(
            decoder("gzip"), self.send, lambda t: self.log.append(("end", t)), self.broken
        )

    def send(self, piece):
        self.got += piece
        if self.pause_after is not None:
            self.decoding.pause()

    def broken(self, detail):
        self.log.append(("broken", detail))


def test_pieces_then_the_end_with_trailers():
    client = Client()
    body = gzip.compress(b"hello" * 1000)
    client.decoding.data(body[:10])
    client.decoding.data(body[10:])
    client.decoding.end([(b"a", b"b")])
    assert bytes(client.got) == b"hello" * 1000
    assert client.log == [("end", [(b"a", b"b")])]


def test_nothing_is_decoded_while_the_client_is_slow_and_nothing_is_lost():
    client = Client(pause_after=1)
    client.decoding.data(gzip.compress(bytes(10 << 20)))
    client.decoding.end(None)
    steps = 0
    while not client.log:
        size = len(client.got)
        client.decoding.resume()
        assert len(client.got) - size <= 1 << 20
        steps += 1
    assert steps >= 10
    assert len(client.got) == 10 << 20
    assert client.log == [("end", None)]


def test_a_truncated_body_breaks():
    client = Client()
    client.decoding.data(gzip.compress(b"hello")[:-3])
    client.decoding.end(None)
    assert client.log[0][0] == "broken"
    assert len(client.log) == 1


def test_a_corrupt_body_breaks_once():
    client = Client()
    client.decoding.data(b"garbage")
    client.decoding.data(b"more garbage")
    client.decoding.end(None)
    assert [what for what, _ in client.log] == ["broken"]
