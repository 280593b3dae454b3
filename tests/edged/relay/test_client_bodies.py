"""Which request bodies are coded, with what, and for whom they are kept."""

import random

import pytest

from edged.messages import RequestHead
from edged.relay import wire
from edged.relay.client_bodies import MOST_HELD_BYTES, Bodies
from edged.relay.dictionary import LEAST_BYTES, decoder, name_of
from policies.schema import Compression
from tests.harness import texts

TEXT = random.Random(7).randbytes(20_000).hex().encode()
SIZE = len(TEXT)


def head(*fields, length=SIZE, method=b"POST", path=b"/v1/chat", **more):
    return RequestHead(method, b"https", b"x", path, list(fields), length, **more)


KEY = (b"authorization", b"Bearer one")


@pytest.mark.parametrize(
    ("request_head", "codes"),
    [
        (head(), True),
        (head(length=LEAST_BYTES - 1), False),
        (head(length=MOST_HELD_BYTES + 1), False),
        (head(length=None), False),
        (head((b"content-encoding", b"gzip")), False),
        (head(method=b"CONNECT"), False),
        (head(upgrade=b"websocket"), False),
    ],
)
def test_bodies_of_a_known_and_moderate_length(request_head, codes):
    assert Bodies().codes(request_head, Compression()) is codes
    assert not Bodies().codes(request_head, Compression(requests=False))


def test_an_earlier_body_of_the_same_key_upstream_and_path():
    bodies = Bodies()
    first = bodies.code(head(KEY), "u", TEXT, 6)
    bodies.arrived(first, TEXT)
    more = TEXT + b"more"
    coded = bodies.code(head(KEY), "u", more, 6)
    assert len(coded.data) < 200
    assert coded.dictionary == name_of(TEXT)
    assert (wire.DICTIONARY, name_of(TEXT).hex().encode()) in coded.fields
    assert b"".join(decoder(TEXT).feed(coded.data)) == more
    assert bodies.code(head(KEY), "u", more, 6, alone=True).dictionary is None
    assert bodies.code(head(KEY), "other", more, 6).dictionary is None
    assert bodies.code(head(KEY, path=b"/v1/else"), "u", more, 6).dictionary is None
    assert bodies.code(head((b"x-api-key", b"2")), "u", more, 6).dictionary is None
    assert bodies.code(head(), "u", more, 6).dictionary is None


def test_the_key_is_not_told():
    coded = Bodies().code(head(KEY), "u", TEXT, 6)
    assert all(b"one" not in value for _, value in coded.fields)
    assert coded.scope != Bodies().code(head(KEY), "u", TEXT, 6).scope


def test_without_a_key_nothing_is_kept():
    bodies = Bodies()
    coded = bodies.code(head(), "u", TEXT, 6)
    assert coded.scope is None
    assert all(name != wire.SCOPE for name, _ in coded.fields)
    bodies.arrived(coded, TEXT)
    assert bodies.code(head(), "u", TEXT, 6).dictionary is None


def test_what_does_not_shrink_goes_as_it_is():
    noise = random.Random(1).randbytes(20_000)
    assert Bodies().code(head(KEY), "u", noise, 6) is None


def test_a_forgotten_body_is_forgotten_here_too():
    bodies = Bodies()
    bodies.arrived(bodies.code(head(KEY), "u", TEXT, 6), TEXT)
    coded = bodies.code(head(KEY), "u", TEXT, 6)
    bodies.unknown(coded)
    assert bodies.missed == 1
    assert bodies.code(head(KEY), "u", TEXT, 6).dictionary is None


def test_a_relay_that_keeps_nothing_is_asked_ever_less_often():
    bodies = Bodies()

    def misses(n):
        """The next bodies that name an earlier one, of which the relay has none."""
        for at in range(n):
            coded = bodies.code(head(KEY), "u", TEXT + b"%d" % at, 6)
            yield coded.dictionary is not None
            if coded.dictionary is not None:
                bodies.unknown(coded)
                coded = bodies.code(head(KEY), "u", TEXT + b"%d" % at, 6, alone=True)
            bodies.arrived(coded, TEXT + b"%d" % at)

    asked = [*misses(400)]
    assert [at for at, asks in enumerate(asked) if asks][:6] == [1, 2, 4, 7, 12, 21]
    assert asked[200:].count(True) <= 4
    while (coded := bodies.code(head(KEY), "u", TEXT, 6)).dictionary is None:
        pass
    bodies.arrived(coded, TEXT)
    assert [*misses(3)] == [True, True, False]
    bodies.forget()
    assert bodies.code(head(KEY), "u", TEXT, 6).dictionary is None
    bodies.arrived(bodies.code(head(KEY), "u", TEXT, 6), TEXT)
    assert bodies.code(head(KEY), "u", TEXT, 6).dictionary is not None


def test_what_takes_long_is_coded_fast():
    def size(body, level):
        return len(Bodies().code(head(KEY), "u", body, level).data)

    text = texts.chinese_prose(600_000)
    assert size(text[:200_000], 9) < size(text[:200_000], 3)
    assert size(text, 9) == size(text, 3)
