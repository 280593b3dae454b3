"""The body that the next one is made a difference from."""

import gzip
import json

import pytest

from edged.relay.conversations import LAST, Conversations
from edged.relay.dictionary import Store, decoder, encode, name_of
from tests.harness import texts

from .live import content

KEY, PATH = b"k", b"/chat"


def turn(conversations, body, key=KEY, path=PATH):
    """Send it; the coded bytes."""
    best = conversations.best(key, path, body)
    name, past = best or (None, None)
    frame = encode(body, past)
    assert b"".join(decoder(past).feed(frame)) == body
    conversations.sent(key, path, body, name)
    return frame


@pytest.mark.parametrize("kind", ["english", "chinese", "agent"])
def test_a_conversation_costs_what_is_new(kind):
    bodies = texts.agent() if kind == "agent" else texts.chat(kind)
    assert len(bodies) == 40
    assert (len(bodies[0]) < 10_000, len(bodies[-1]) > 290_000) == (True, True)
    conversations = Conversations()
    coded = sum(len(turn(conversations, body)) for body in bodies)
    plain = sum(map(len, bodies))
    zipped = sum(len(gzip.compress(body, 6)) for body in bodies)
    assert plain > 20 * coded
    assert zipped > 6 * coded


def test_the_best_past_is_the_longest_common_prefix_of_the_same_scope_and_path():
    conversations = Conversations()
    one = texts.chat("english", turns=4, largest=30_000, seed=1)
    two = texts.chat("english", turns=4, largest=30_000, seed=2)
    for first, second in zip(one[:3], two[:3], strict=True):
        conversations.sent(KEY, PATH, first)
        conversations.sent(KEY, PATH, second)
    assert conversations.best(KEY, PATH, one[3])[1] == one[2]
    assert conversations.best(KEY, PATH, two[3])[1] == two[2]
    assert conversations.best(b"other", PATH, one[3]) is None
    assert conversations.best(KEY, b"/other", one[3]) is None
    assert conversations.best(KEY, PATH, b"x" * 5000) is None


def asks(number, turns):
    """One of many conversations with the same beginning."""
    said = [
        {"role": "user", "content": content(1000 * number + n, 400).hex()} for n in range(turns)
    ]
    system = {"role": "system", "content": content(1, 1500).hex()}
    return json.dumps({"model": "m", "messages": [system, *said], "stream": True}).encode()


def test_one_key_holds_many_conversations():
    conversations = Conversations()
    many = 40 * LAST
    for number in range(many):
        conversations.sent(KEY, PATH, asks(number, 6))
    for number in range(0, many, 7):
        assert conversations.best(KEY, PATH, asks(number, 7))[1] == asks(number, 6)


def test_of_equals_the_newest():
    conversations = Conversations()
    same = content(1, 3000).hex().encode()
    for ending in (b"one", b"two"):
        conversations.sent(KEY, PATH, same + ending * 1000)
    assert conversations.best(KEY, PATH, same + b"three")[1].endswith(b"two")


def test_bodies_that_begin_with_what_is_new_are_known_by_their_strings():
    conversations = Conversations()

    def body(request, conversation, turns):
        messages = json.loads(asks(conversation, turns))["messages"][1:]
        return json.dumps({"metadata": {"request": request}, "messages": messages}).encode()

    for turns in (3, 4):
        for conversation in (1, 2):
            conversations.sent(KEY, PATH, body(f"{turns}{conversation}", conversation, turns))
    next_one = body("51", 1, 5)
    name, past = conversations.best(KEY, PATH, next_one)
    assert (name, past) == (name_of(body("41", 1, 4)), body("41", 1, 4))
    assert len(encode(next_one, past)) < len(encode(next_one, None)) / 3
    assert conversations.best(KEY, PATH, body("53", 3, 5)) is None


def test_a_store_holds_the_last_bodies_of_many_conversations():
    conversations = Conversations(Store(300_000))
    quiet = asks(0, 20)
    turn(conversations, quiet)
    for turns in range(1, 60):
        turn(conversations, asks(1, turns))
    assert len(asks(1, 59)) * 59 / 2 > 4 * 300_000
    assert conversations.best(KEY, PATH, asks(0, 21))[1] == quiet


def test_both_sides_forget_the_same():
    edge, relay = Conversations(Store(200_000)), Store(200_000)
    used = missed = 0
    for turns in range(2, 14):
        for number in range(30):
            body = asks(number, turns)
            best = edge.best(KEY, PATH, body)
            name = None if best is None else best[0]
            used += name is not None
            missed += name is not None and relay.get(KEY, name) is None
            edge.sent(KEY, PATH, body, name)
            relay.put(KEY, body, name)
    assert (used > 200, missed) == (True, 0)


def test_what_the_relay_does_not_know_is_not_used():
    conversations = Conversations()
    bodies = [asks(1, turns) for turns in range(2, 6)]
    for body in bodies[:3]:
        conversations.sent(KEY, PATH, body)
    conversations.missed(KEY, name_of(bodies[1]))
    assert conversations.best(KEY, PATH, bodies[0] + b" ")[1] == bodies[2]
    conversations.missed(KEY, name_of(bodies[2]))
    assert conversations.best(KEY, PATH, bodies[3]) is None
    conversations.sent(KEY, PATH, bodies[2])
    assert conversations.best(KEY, PATH, bodies[3]) is not None
    conversations.forget()
    assert conversations.best(KEY, PATH, bodies[3]) is None


def test_what_is_remembered_is_bounded():
    conversations = Conversations(Store(3_000_000))
    for n in range(6000):
        conversations.sent(KEY, b"/%d" % n, b"%06d" % n * 1000)
        conversations.sent(KEY, PATH, b"%05d " % n * 1000)
    assert conversations.store.used_bytes <= 3_000_000
    assert len(conversations._recent[KEY, PATH]) == LAST
    assert len(conversations._recent) == 4096
    assert len(conversations._begins) == 1 << 16
