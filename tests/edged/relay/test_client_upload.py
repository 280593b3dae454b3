"""Request bytes that may have to be sent again."""

from hypothesis import given
from hypothesis import strategies as st

from edged.relay.client_upload import MOST_BYTES, Outgoing


def test_bytes_from_an_offset():
    out = Outgoing()
    out.append(b"0123")
    out.append(b"456")
    assert (out.read(0), out.read(2), out.read(4), out.read(7)) == (b"0123", b"23", b"456", b"")
    out.release(5)
    assert out.read(5) == b"56"
    assert not out.done
    out.complete = True
    out.release(7)
    assert out.done


def test_too_much_under_way():
    out = Outgoing()
    out.append(bytes(MOST_BYTES))
    assert not out.full
    out.append(b"x")
    assert out.full
    assert not out.roomy
    out.release(MOST_BYTES)
    assert out.roomy


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 50)), max_size=60))
def test_what_was_not_taken_can_always_be_read(steps):
    out, body = Outgoing(), b""
    for append, size in steps:
        if append:
            piece = bytes(len(body) + i & 255 for i in range(size))
            body += piece
            out.append(piece)
        else:
            out.release(out.taken + size)
        assert out.end == len(body)
        found, at = b"", out.taken
        while piece := out.read(at):
            found += piece
            at += len(piece)
        assert found == body[out.taken :]


def test_what_somebody_still_sends_is_kept():
    out = Outgoing()
    for piece in (b"01", b"23", b"45"):
        out.append(piece)
    out.release(5, 2)
    assert out.taken == 5
    assert out.read(2) == b"23"
    out.release(5, None)
    assert out.read(5) == b"5"
