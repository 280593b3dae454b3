"""The spool: what was appended can be read again, until it cannot and says so."""

import os
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.spool import MEMORY_BYTES, Spool


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 150_000), max_size=12),
    limit=st.integers(0, 900_000),
    reads=st.lists(st.integers(1, 200_000), max_size=40),
)
def test_a_reader_sees_the_body_whatever_the_limit(sizes, limit, reads):
    spool, sent, got = Spool(limit), bytearray(), bytearray()
    steps = iter(reads)
    for number, size in enumerate(sizes):
        data = bytes([number + 1]) * size
        sent += data
        spool.append(data, len(got))
        got += spool.read(len(got), next(steps, 1000))
    while len(got) < spool.size:
        got += spool.read(len(got), 65536)
    assert bytes(got) == bytes(sent)
    assert spool.replayable == (len(sent) <= limit)
    spool.close()


def test_a_second_reader_starts_from_the_first_byte():
    spool = Spool(10 << 20)
    body = os.urandom(3 << 20)
    for at in range(0, len(body), 100_000):
        spool.append(body[at : at + 100_000], spool.size)
    first = b"".join(iter_reads(spool))
    assert first == body
    assert b"".join(iter_reads(spool)) == body
    spool.close()


def iter_reads(spool):
    at = 0
    while piece := spool.read(at, 50_000):
        at += len(piece)
        yield piece


def test_beyond_the_limit_only_what_is_needed_is_kept():
    spool = Spool(100_000)
    for _ in range(50):
        spool.append(b"x" * 10_000, spool.size)
    assert not spool.replayable
    assert len(spool._chunks) <= 10_000
    with pytest.raises(ValueError, match="no longer kept"):
        spool.read(0, 1)


class FullDisk:
    """A file that takes so many bytes and then says ENOSPC."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if self.room <= 0:
            raise OSError(28, "No space left on device")
        part = bytes(data)[: self.room]
        self.room -= len(part)
        return self.file.write(part)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 1000, MEMORY_BYTES + 5000])
def test_a_full_disk_loses_the_replay_but_no_byte(monkeypatch, room):
    real = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **kw: FullDisk(real(**kw), room))
    errors = []
    spool, body, got = Spool(10 << 20, None, errors.append), os.urandom(1 << 20), bytearray()
    for at in range(0, len(body), 60_000):
        spool.append(body[at : at + 60_000], len(got))
        if at % 180_000 == 0:
            got += spool.read(len(got), 50_000)
    while len(got) < spool.size:
        got += spool.read(len(got), 65536)
    assert bytes(got) == body
    assert not spool.replayable
    assert len(errors) == 1
    assert errors[0].errno == 28


def test_a_missing_directory_is_reported_not_raised():
    errors = []
    spool = Spool(10 << 20, "/nonexistent/spool", errors.append)
    spool.append(bytes(MEMORY_BYTES + 1), 0)
    assert len(errors) == 1
    assert len(spool.read(0, 1 << 20)) == MEMORY_BYTES + 1
