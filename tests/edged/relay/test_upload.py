"""Each request byte is passed on once, whatever comes again or too early."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.relay.upload import Gap, Inconsistent, Upload

BODY = bytes(range(256)) * 2


@given(st.lists(st.tuples(st.integers(0, 512), st.integers(0, 200)), max_size=40))
def test_overlaps_are_dropped_and_gaps_refused(parts):
    upload = Upload(None)
    passed = b""
    for at, size in parts:
        data = BODY[at : at + size]
        if at > upload.offset:
            with pytest.raises(Gap):
                upload.take(at, data)
            with pytest.raises(Gap):
                upload.check(at, None, last=False)
        else:
            passed += upload.take(at, data)
        assert passed == BODY[: upload.offset]


def test_a_known_length_is_kept_to():
    upload = Upload(10)
    assert upload.take(0, b"12345") == b"12345"
    with pytest.raises(Inconsistent):
        upload.take(5, b"678901")
    with pytest.raises(Inconsistent):
        upload.finish(5)
    with pytest.raises(Inconsistent):
        upload.check(5, 4, last=True)
    upload.check(5, 4, last=False)
    upload.check(3, 7, last=True)
    assert upload.take(3, b"4567890") == b"67890"
    assert upload.finish(10)
    assert upload.complete


def test_the_end_counts_once():
    upload = Upload(None)
    upload.take(0, b"abc")
    with pytest.raises(Inconsistent):
        upload.finish(2)
    with pytest.raises(Gap):
        upload.finish(4)
    assert upload.finish(3)
    assert not upload.finish(3)
    assert upload.take(0, b"abc") == b""
    with pytest.raises(Inconsistent):
        upload.take(0, b"abcd")


def test_nothing_is_awaited_of_an_empty_body():
    assert Upload(0).complete
    assert not Upload(0).finish(0)
