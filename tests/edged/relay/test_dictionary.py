"""Bodies as differences from earlier ones, and responses coded for the line."""

import hashlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.compress import CodingError
from edged.messages import ResponseHead
from edged.relay import wire
from edged.relay.dictionary import (
    LEAST_BYTES,
    MOST_BYTES,
    Keeper,
    Library,
    Store,
    common_prefix,
    decoder,
    encode,
    encode_large,
    name_of,
)
from tests.harness import texts

from .live import content
from .test_server import TARGET, A, B, House


def chat(turns):
    return texts.chat("english", turns=turns, largest=8000 * turns)


def decoded(coded, dictionary=None):
    state = decoder(dictionary)
    body = b"".join(state.feed(coded))
    state.finish()
    return body


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_common_prefix(one, other):
    n = common_prefix(one, other)
    assert one[:n] == other[:n]
    assert n == min(len(one), len(other)) or one[n] != other[n]


@settings(max_examples=40)
@given(st.binary(max_size=5000), st.binary(max_size=5000), st.booleans())
def test_what_was_coded_is_decoded(past, new, related):
    body = past[:4000] + new if related else new
    assert decoded(encode(body, past), past) == body
    assert decoded(encode(body, None)) == body


@settings(max_examples=40)
@given(st.binary(min_size=1, max_size=3000), st.integers(1, 200_000), st.integers(0, 200_000))
def test_large_bodies_are_what_follows_a_beginning(new, same, gone):
    past = content(1, 200_000 + 1)
    body = past[:same] + new + past[gone:]
    frame, prefix = encode_large(body, past, 6)
    assert prefix >= same
    state = decoder(past, prefix)
    assert b"".join(state.feed(frame)) == body
    state.finish()
    with pytest.raises(CodingError):
        decoder(past, prefix).finish()


def test_large_bodies_cost_what_is_new():
    past = content(1, 4_000_000)
    frame, prefix = encode_large(past + b"and more", past, 6)
    assert (prefix, len(frame) < 100) == (len(past), True)
    pieces = list(decoder(past, prefix).feed(frame))
    assert max(map(len, pieces)) <= 256 << 10


def test_the_wrong_past_is_noticed():
    bodies = chat(3)
    coded = encode(bodies[2], bodies[1])
    with pytest.raises(CodingError):
        decoded(coded, bodies[0])
    with pytest.raises(CodingError):
        decoded(coded)


def test_stores_are_bounded_and_forget_the_least_used():
    store = Store(100_000)
    bodies = [bytes([n]) * 10_000 for n in range(20)]
    for body in bodies:
        store.put(b"a", body)
        store.get(b"a", name_of(bodies[0]))
        assert store.used_bytes <= 100_000
    assert store.get(b"a", name_of(bodies[0])) == bodies[0]
    assert store.get(b"a", name_of(bodies[1])) is None
    assert store.get(b"b", name_of(bodies[0])) is None
    assert store.put(b"a", b"x" * (LEAST_BYTES - 1)) is None
    assert store.put(b"a", bodies[0]) == name_of(bodies[0])
    assert store.used_bytes == 100_000


def test_a_body_that_its_successor_repeats_goes_first():
    store = Store(100_000)
    one, other = content(1, 30_000), content(2, 30_000)
    old = store.put(b"a", one)
    store.put(b"a", other)
    store.put(b"a", one + b"more", old)
    store.put(b"a", content(3, 20_000))
    assert store.peek(b"a", old) is None
    assert store.peek(b"a", name_of(other)) == other
    # One that has something else to say stays, and the least used goes.
    store.put(b"a", content(4, 30_000), name_of(other))
    assert store.peek(b"a", name_of(other)) is None
    assert store.peek(b"a", name_of(one + b"more")) is not None


def test_what_was_used_before_a_body_that_is_missing_is_missing_too():
    store = Store(100_000)
    names = [store.put(b"a", content(n, 10_000)) for n in range(5)]
    store.get(b"a", names[0])
    store.forget(b"a", names[2])
    assert [store.peek(b"a", name) is not None for name in names] == [1, 0, 0, 1, 1]
    assert store.used_bytes == 30_000
    store.forget(b"a", names[2])
    store.forget(b"b", names[4])
    assert store.used_bytes == 30_000
    store.clear()
    assert (store.used_bytes, store.peek(b"a", names[4])) == (0, None)


def test_no_client_drives_out_what_belongs_to_others():
    library = Library(100_000)
    one, two = library.store(), library.store()
    kept = [two.put(b"a", content(n, 10_000)) for n in range(3)]
    for n in range(40):
        one.put(b"a", content(100 + n, 10_000))
        assert library.used_bytes <= 100_000
    assert all(two.peek(b"a", name) for name in kept)
    assert one.used_bytes == 70_000
    for n in range(40):
        two.put(b"a", content(200 + n, 10_000))
    assert (one.used_bytes, two.used_bytes) == (50_000, 50_000)
    assert one.peek(b"a", kept[0]) is None
    library.resize(20_000)
    assert library.used_bytes == 20_000
    assert two.put(b"a", content(1, 20_001)) is None
    library.discard(one)
    assert library.used_bytes == two.used_bytes


def test_long_bodies_are_not_gathered():
    keeper = Keeper()
    keeper.add(b"x" * MOST_BYTES)
    assert keeper.size == MOST_BYTES
    keeper.add(b"x")
    assert (keeper.size, keeper.body()) == (0, None)


def coded_fields(body, past=None, scope="k1"):
    frame = encode(body, past)
    fields = [TARGET, ("edged-coding", "zstd"), ("edged-length", str(len(body)))]
    if scope:
        fields.append(("edged-scope", scope))
    if past is not None:
        fields.append(("edged-dictionary", hashlib.sha256(past).hexdigest()))
    return frame, fields


def test_a_relay_decodes_and_keeps_what_it_decoded():
    house = House()
    ledger = house.flows.ledgers["one"]
    bodies = chat(3)
    past = None
    for n, body in enumerate(bodies):
        frame, fields = coded_fields(body, past)
        house.flow("POST", *fields, body=frame, flow_id=f"{n:032x}")
        inner = house.inner[n]
        assert inner.head.body_length == len(body)
        assert (inner.received, inner.ends) == (body, 1)
        assert not [name for name, _ in inner.head.headers if name.startswith(b"edged")]
        past = body
    assert ledger.bodies_plain == sum(map(len, bodies))
    assert ledger.bodies_coded < ledger.bodies_plain / 2
    assert house.flows.account.used_bytes == 0
    # Another scope, and another client, do not find it.
    frame, fields = coded_fields(bodies[2], bodies[1], scope="k2")
    assert house.flow("POST", *fields, body=frame, flow_id=A).status == 412
    frame, fields = coded_fields(bodies[2], bodies[1])
    assert house.flow("POST", *fields, body=frame, flow_id=A, token="token-two").status == 412
    assert len(house.inner) == 3
    # The id was not used up by the miss.
    missed, fields = coded_fields(bodies[2])
    house.flow("POST", *fields, body=missed, flow_id=A)
    assert house.inner[3].received == bodies[2]


def test_a_relay_puts_the_beginning_before_what_is_new():
    house = House()
    past = content(1, 300_000)
    frame, fields = coded_fields(past + b"x" * 10, None)
    # Noise does not shrink, but is kept.
    house.flow("POST", *fields, body=frame, flow_id="1" * 32)
    body = past[:250_000] + content(2, 5000)
    frame, prefix = encode_large(body, past + b"x" * 10, 6)
    fields = [
        TARGET,
        ("edged-coding", "zstd"),
        ("edged-length", str(len(body))),
        ("edged-scope", "k1"),
        ("edged-dictionary", hashlib.sha256(past + b"x" * 10).hexdigest()),
    ]
    house.flow("POST", *fields, ("edged-prefix", str(prefix)), body=frame, flow_id="2" * 32)
    assert (prefix, house.inner[1].received, house.inner[1].ends) == (250_000, body, 1)
    for wrong in (300_011, 10**17):
        refused = house.flow("POST", *fields, ("edged-prefix", str(wrong)), body=frame, flow_id=A)
        assert refused.status == 400
    # One that is not what the body was coded with is noticed by its length, or by the checksum.
    wrong = house.flow("POST", *fields, ("edged-prefix", "249999"), body=frame, flow_id=A)
    assert wrong.status == 400
    assert house.inner[-1].ends == 0


def test_coded_uploads_are_carried_on_by_coded_offsets():
    house = House()
    body = b"".join(chat(4))
    frame, fields = coded_fields(body)
    first = house.flow("POST", *fields, length=len(frame))
    first.sink.body(frame[:1000])
    first.sink.gone()
    assert house.flow("HEAD").headers[b"upload-offset"] == b"1000"
    house.flow("PATCH", ("upload-offset", "900"), body=frame[900:])
    assert (house.inner[0].received, house.inner[0].ends) == (body, 1)


def test_an_origin_that_pauses_pauses_the_decoder():
    house = House()
    body = bytes(10 << 20)  # a small frame
    frame, fields = coded_fields(body)
    house.on_open = lambda head, flow: flow.pause_body()
    house.flow("POST", *fields, body=frame)
    inner = house.inner[0]
    assert inner.received == b""
    inner.responder.resume_body()
    assert (len(inner.received), inner.ends) == (len(body), 1)


@pytest.mark.parametrize("change", ["corrupt", "short", "long", "cut"])
def test_a_body_that_cannot_be_decoded_ends_its_flow(change):
    house = House()
    (body, _) = chat(2)
    frame, fields = coded_fields(body)
    if change == "corrupt":
        frame = frame[:-3] + b"xyz"
    elif change == "cut":
        frame = frame[:-3]
    else:
        wrong = len(body) + (1 if change == "short" else -1)
        fields[2] = ("edged-length", str(wrong))
    reader = house.flow("POST", *fields, body=frame)
    assert reader.status == 400
    assert house.inner[0].left
    assert house.inner[0].ends == 0
    assert house.flows.count == 0
    assert house.flows.account.used_bytes == 0


@pytest.mark.parametrize(
    "fields",
    [
        [("edged-coding", "br")],
        [("edged-dictionary", "0" * 64)],
        [("edged-coding", "zstd"), ("edged-dictionary", "0" * 64)],
        [("edged-coding", "zstd"), ("edged-scope", "a b")],
        [("edged-coding", "zstd"), ("edged-scope", "a"), ("edged-prefix", "1")],
        [("edged-coding", "zstd"), ("edged-scope", "a"), ("edged-prefix", "-1")],
        [("edged-accept", "gzip")],
        [("edged-coding", "zstd"), ("edged-method", "CONNECT"), ("edged-target", "x:1")],
        [("edged-coding", "zstd"), ("edged-upgrade", "websocket")],
    ],
)
def test_what_cannot_be_meant_is_refused(fields):
    house = House()
    fields = fields if any(n == "edged-target" for n, _ in fields) else [TARGET, *fields]
    assert house.flow("POST", *fields, body=b"x").status == 400
    assert house.inner == []


def sse(n):
    return b'data: {"id":"x","choices":[{"delta":{"content":" word%d"}}]}\n\n' % n


def test_each_event_of_a_coded_response_can_be_decoded_at_once():
    house = House()
    reader = house.flow("POST", TARGET, ("edged-accept", "zstd"))
    flow = house.inner[0].responder
    flow.head(ResponseHead(200, [(b"content-type", b"text/event-stream")]))
    assert reader.headers[b"edged-coding"] == b"zstd"
    state = zstandard.ZstdDecompressor().decompressobj()
    seen = plain = b""
    for n in range(200):
        flow.data(sse(n))
        plain += sse(n)
        new = reader.received[len(seen) :]
        seen = reader.received
        assert state.decompress(new) == sse(n)
    flow.end()
    assert len(reader.received) < len(plain) / 3
    assert decoded(reader.received) == plain
    half = len(reader.received) // 2
    rest = house.flow("GET", ("edged-offset", str(half)))
    assert rest.headers[b"edged-coding"] == b"zstd"
    assert rest.received == reader.received[half:]


def test_the_length_of_a_coded_response_is_told_apart():
    house = House()
    reader = house.flow("POST", TARGET, ("edged-accept", "zstd"))
    flow = house.inner[0].responder
    (body, _) = chat(2)
    flow.head(ResponseHead(200, [(b"content-type", b"application/json")], len(body)))
    flow.data(body)
    flow.end()
    assert reader.length is None
    assert decoded(reader.received) == body
    outer = ResponseHead(200, list(reader.headers.items()))
    inner = wire.inner_response(outer)
    assert (inner.head.body_length, inner.offset, inner.coded) == (len(body), 0, True)


@pytest.mark.parametrize(
    ("status", "headers", "length"),
    [
        (200, [(b"content-type", b"image/png")], None),
        (200, [], None),
        (200, [(b"content-type", b"text/html"), (b"content-encoding", b"gzip")], None),
        (200, [(b"content-type", b"text/html"), (b"cache-control", b"no-transform")], None),
        (200, [(b"content-type", b"text/html")], 100),
        (206, [(b"content-type", b"text/html")], None),
        (304, [(b"content-type", b"text/html")], 0),
    ],
)
def test_what_coding_would_not_help_goes_plain(status, headers, length):
    house = House()
    reader = house.flow("POST", TARGET, ("edged-accept", "zstd"), flow_id=B)
    house.inner[0].responder.head(ResponseHead(status, headers, length))
    assert b"edged-coding" not in reader.headers


def test_nobody_gets_a_coded_response_unasked():
    house = House()
    reader = house.flow("POST", TARGET)
    head = ResponseHead(200, [(b"content-type", b"text/event-stream")])
    house.inner[0].responder.head(head)
    assert b"edged-coding" not in reader.headers
